//! Killed at any instant, or interrupted: nothing committed is lost, and the result is the same.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{digests, events, folder, small_demo, start_until};

const STAGES: [&str; 8] = ["download", "filter", "recaption", "bucket", "index", "train", "samples", "evaluate"];

fn is(event: &Value, kind: &str, stage: &str) -> bool {
    event["event"] == kind && event["stage"] == stage
}

fn all_digests(workdir: &Path) -> Vec<Vec<(String, String)>> {
    STAGES.iter().map(|stage| digests(workdir, stage)).collect()
}

#[test]
fn a_run_killed_in_any_stage_goes_on_and_ends_with_the_same_bytes() {
    let whole = folder();
    let whole = whole.path().join("work");
    events(small_demo(&whole));

    let killed = folder();
    let killed = killed.path().join("work");
    let mut committed = 0;
    for stage in ["download", "bucket", "train"] {
        // In the middle: partitions of the stage are committed and others are not; the training is past a checkpoint, which is written
        // while the training goes on.
        let mut child = start_until(small_demo(&killed), |event| {
            is(event, "partition_committed", stage)
                || (stage == "train" && is(event, "progress", stage) && has_checkpoint(&killed))
        });
        child.kill().unwrap();
        child.wait().unwrap();
        let now: usize =
            STAGES.iter().map(|s| killed.join("stages").join(s)).filter(|p| p.exists()).map(|p| sidecars(&p)).sum();
        assert!(now > committed, "{stage}: something new was committed before the kill");
        committed = now;
    }
    assert!(!sidecar_of(&killed, "train"), "the kill came before the training was committed");
    let last = events(small_demo(&killed));
    assert!(
        last.iter().any(|e| is(e, "note", "train") && e["text"].as_str().is_some_and(|t| t.starts_with("going on from step "))),
        "the training was resumed"
    );
    assert!(last.iter().all(|e| !is(e, "partition_started", "download")), "no download was repeated");
    assert_eq!(all_digests(&killed), all_digests(&whole), "to the bit, the training included");

    // And once more: nothing to do.
    let again = events(small_demo(&killed));
    assert!(again.iter().all(|e| e["event"] != "partition_started"));
    assert_eq!(again.last().unwrap()["outcome"], "up_to_date");
}

fn sidecars(stage: &Path) -> usize {
    let names = std::fs::read_dir(stage).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|n| n.starts_with("part-") && n.ends_with(".json")).count()
}

fn has_checkpoint(workdir: &Path) -> bool {
    let runs = std::fs::read_dir(workdir.join("stages/train")).into_iter().flatten();
    runs.filter_map(Result::ok).any(|run| run.path().join("latest").exists())
}

fn sidecar_of(workdir: &Path, stage: &str) -> bool {
    let folder = workdir.join("stages").join(stage);
    folder.exists() && sidecars(&folder) > 0
}

#[test]
fn an_interrupted_run_ends_cleanly_and_goes_on() {
    let folder = folder();
    let workdir = folder.path().join("work");
    let child = start_until(small_demo(&workdir), |event| is(event, "partition_committed", "download"));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130));
    let half: Vec<_> = std::fs::read_dir(workdir.join("stages/download"))
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|n| n.ends_with(".parquet"))
        .collect();
    assert_eq!(half.len(), sidecars(&workdir.join("stages/download")), "every data file is committed: {half:?}");
    assert_eq!(std::fs::read_dir(workdir.join("lease")).unwrap().count(), 0, "it has left");
    events(small_demo(&workdir));
}
