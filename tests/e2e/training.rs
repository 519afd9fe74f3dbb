//! `ferrotype train` and `launch`: ranks that start together, train the same as one, and end together; runs that are killed go on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{bucketed, ferrotype, folder, run, text, trained};

/// An index of thirty pictures in two buckets.
fn index(folder: &Path) -> PathBuf {
    let sizes: Vec<(u32, u32)> = (0..30).map(|n| if n < 20 { (32, 32) } else { (32, 16) }).collect();
    let manifest = bucketed(folder, &sizes, "[stage.index]\nuses = \"index\"\nfrom = \"bucket\"\n");
    assert!(run(&["run", &manifest, "-q"]).status.success());
    let found = fs::read_dir(folder.join("work/stages/index")).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        path.extension().is_some_and(|ending| ending == "parquet").then_some(path)
    });
    found.unwrap()
}

/// A configuration of a small model that trains into the folder `name`; `more` keys of it.
fn config(index: &Path, folder: &Path, name: &str, more: &str) -> String {
    let file = folder.join(format!("{name}.toml"));
    let text = format!(
        "index = \"{}\"\nout = \"{}\"\nwidth = 32\nheads = 2\nblocks = 2\nbatch_size = 8\nwarmup_steps = 2\nlearning_rate = 1e-3\n\
         device = \"cpu\"\nlog_every = 1\ncheckpoint_every = 3\n{more}\n",
        index.display(),
        folder.join(name).display()
    );
    fs::write(&file, text).unwrap();
    file.to_string_lossy().into_owned()
}

/// The bytes of the last checkpoint's weights, average and moments.
fn weights(folder: &Path, name: &str) -> Vec<Vec<u8>> {
    let run = folder.join(name);
    let latest = fs::read_to_string(run.join("latest")).unwrap();
    let files = ["model.safetensors", "ema.safetensors", "optimizer.safetensors"];
    files.map(|file| fs::read(run.join(latest.trim()).join(file)).unwrap()).to_vec()
}

fn records(folder: &Path, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.join(name).join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn ranks_are_launched_and_train_the_same_whoever_loads() {
    let folder = folder();
    let index = index(folder.path());
    let config = |name: &str, more: &str| config(&index, folder.path(), name, &format!("steps = 6\n{more}"));
    let alone = run(&["train", &config("alone", "")]);
    assert!(alone.status.success(), "{}", text(&alone.stderr));
    for (name, ranks, more) in [("two", "2", ""), ("loader", "4", "loaders = { 1 = [0, 2, 3] }")] {
        let launched = run(&["launch", "-n", ranks, "--", "train", &config(name, more)]);
        assert!(launched.status.success(), "{}", text(&launched.stderr));
        assert!(text(&launched.stdout).trim().ends_with("step-000000006"), "{}", text(&launched.stdout));
        for (one, other) in records(folder.path(), "alone").iter().zip(records(folder.path(), name)) {
            let (one, other) = (one["loss"].as_f64().unwrap(), other["loss"].as_f64().unwrap());
            assert!((one - other).abs() < 1e-5, "{name}: {one} {other}");
        }
    }
    let refused = run(&["launch", "-n", "2", "--", "train", &config("refused", "loaders = { 0 = [5] }")]);
    assert_eq!(refused.status.code(), Some(1));
    let words = text(&refused.stderr);
    assert!(words.contains("the roles do not fit a world of 2 ranks") && words.contains("rank 5"), "{words}");
    let refused = run(&["launch", "-n", "0", "--", "train", "x.toml"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
}

#[test]
fn the_first_rank_that_holds_the_model_shows_how_far_all_are() {
    let folder = folder();
    let config = config(&index(folder.path()), folder.path(), "fed", "steps = 2\nloaders = { 0 = [1] }");
    let launched = run(&["launch", "-n", "2", "--", "train", &config, "--json"]);
    let words = text(&launched.stderr);
    assert!(launched.status.success(), "{words}");
    let shown = words.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("[1] ")?).ok());
    let steps: Vec<u64> =
        shown.filter(|event| event["event"] == "progress").filter_map(|event| event["done"].as_u64()).collect();
    assert_eq!(steps, [0, 1, 2], "{words}");
}

/// As `nohup` starts things.
#[test]
fn ranks_that_ignore_the_end_of_their_terminal_go_on() {
    let folder = folder();
    let config = config(&index(folder.path()), folder.path(), "kept", "steps = 120");
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_ferrotype")]);
    command.args(["launch", "-n", "2", "--", "train", &config]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut launcher = command.spawn().unwrap();
    wait_for_checkpoint(&folder.path().join("kept"), &mut launcher);
    for process in children(&launcher).into_iter().chain([launcher.id()]) {
        kill(process, "-HUP");
    }
    let ended = launcher.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    assert_eq!(records(folder.path(), "kept").last().unwrap()["step"], 120);
}

#[test]
fn a_training_for_which_there_is_no_memory_says_what_takes_less() {
    let folder = folder();
    let (index, file) = (index(folder.path()), folder.path().join("large.toml"));
    // Hundreds of terabytes, which no system promises.
    let sizes = "width = 65536\nheads = 4\nblocks = 1000\nhidden_scale = 1.0\ndevice = \"cpu\"";
    let text_of =
        format!("index = \"{}\"\nout = \"{}\"\n{sizes}\n", index.display(), folder.path().join("out").display());
    fs::write(&file, text_of).unwrap();
    // Who asks for a backtrace has all of it.
    let refused = ferrotype().arg("train").arg(&file).env("RUST_BACKTRACE", "0").output().unwrap();
    let words = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{words}");
    assert!(words.contains("error: there is too little memory") && words.contains("lower batch_size"), "{words}");
    assert!(words.contains("you tried to allocate") && !words.contains("frame #"), "{words}");
    assert!(!words.contains("panicked"), "{words}");
}

/// Waits for the run's first checkpoint.
fn wait_for_checkpoint(folder: &Path, child: &mut Child) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !folder.join("latest").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before its first checkpoint");
        assert!(Instant::now() < deadline, "no checkpoint came");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn started(arguments: &[&str]) -> Child {
    let mut command = ferrotype();
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// The processes that a launcher started.
fn children(of: &Child) -> Vec<u32> {
    let listed = Command::new("ps").args(["-o", "pid=", "--ppid", &of.id().to_string()]).output().unwrap();
    text(&listed.stdout).split_whitespace().map(|id| id.parse().unwrap()).collect()
}

fn kill(process: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &process.to_string()]).status().unwrap().success());
}

#[test]
fn a_rank_that_is_killed_ends_all_and_the_same_command_goes_on() {
    let folder = folder();
    let index = index(folder.path());
    let config = config(&index, folder.path(), "killed", "steps = 400\nmodels_per_loader = 2");
    let arguments = ["launch", "-n", "3", "--", "train", &config];
    let mut launcher = started(&arguments);
    wait_for_checkpoint(&folder.path().join("killed"), &mut launcher);
    let ranks = children(&launcher);
    assert_eq!(ranks.len(), 3);
    kill(ranks[2], "-KILL");
    let since = Instant::now();
    let ended = launcher.wait_with_output().unwrap();
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    let words = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{words}");
    assert!(words.contains("rank 2 is lost") && words.contains("error: rank 2 was killed by SIGKILL"), "{words}");
    // Its checkpoint is whole.
    let mut again = started(&arguments);
    std::thread::sleep(Duration::from_secs(2));
    // As systemd and Slurm do: to all of them, and the launcher sends its own on.
    for rank in children(&again) {
        kill(rank, "-TERM");
    }
    kill(again.id(), "-TERM");
    let ended = again.wait().unwrap();
    assert!([Some(130), Some(0)].contains(&ended.code()), "{ended:?}");
    let latest = fs::read_to_string(folder.path().join("killed/latest")).unwrap();
    let last = records(folder.path(), "killed").last().unwrap()["step"].as_u64().unwrap();
    assert_eq!(latest.trim(), format!("step-{last:09}"), "nothing that was done is lost");
}

#[test]
fn a_checkpoint_that_does_not_fit_is_said_and_the_same_command_goes_on() {
    let folder = folder();
    let index = index(folder.path());
    let config = |name: &str| config(&index, folder.path(), name, "steps = 60");
    assert!(run(&["train", &config("whole"), "-q"]).status.success());
    let cramped = config("cramped");
    let run_folder = folder.path().join("cramped");
    let mut child = started(&["train", &cramped, "-q"]);
    wait_for_checkpoint(&run_folder, &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    let before = weights(folder.path(), "cramped");

    // No file may be longer than the weights: the optimiser's moments are, twice.
    let longest = before[0].len().div_ceil(1024) + 8;
    let script = format!("trap '' XFSZ; ulimit -f {longest}; exec \"$0\" train \"$1\" -q");
    let limited =
        Command::new("bash").args(["-c", &script, env!("CARGO_BIN_EXE_ferrotype"), &cramped]).output().unwrap();
    let words = text(&limited.stderr);
    assert_eq!(limited.status.code(), Some(1), "{words}");
    assert!(words.contains("optimizer.safetensors") && words.contains("File too large"), "{words}");
    assert!(weights(folder.path(), "cramped") == before, "the checkpoint before is as it was");
    let staged = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().starts_with('.');
    assert!(!fs::read_dir(&run_folder).unwrap().any(staged), "nothing takes up room in vain");

    assert!(run(&["train", &cramped, "-q"]).status.success());
    assert!(weights(folder.path(), "whole") == weights(folder.path(), "cramped"), "to the bit");
}

/// Kills a training so many times, each time a while after it began anew, and compares the end with one that was left alone.
fn killed(times: u64, steps: u64) {
    let folder = folder();
    let index = index(folder.path());
    let steps = format!("steps = {steps}");
    let config = |name: &str| config(&index, folder.path(), name, &steps);
    assert!(run(&["train", &config("whole"), "-q"]).status.success());
    let broken = config("broken");
    for time in 0..times {
        let mut child = started(&["train", &broken, "-q"]);
        // From before the first step to some way into the training.
        std::thread::sleep(Duration::from_millis(300 + 97 * (time * 7 % 13)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let ended = run(&["train", &broken, "-q"]);
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    assert!(weights(folder.path(), "whole") == weights(folder.path(), "broken"), "to the bit");
    let losses =
        |name| records(folder.path(), name).iter().map(|r| (r["step"].clone(), r["loss"].clone())).collect::<Vec<_>>();
    for ((step, loss), other) in losses("whole").into_iter().zip(losses("broken")) {
        let difference = (loss.as_f64().unwrap() - other.1.as_f64().unwrap()).abs();
        assert!(step == other.0 && difference < 1e-12, "{step} {loss} {other:?}");
    }
}

#[test]
fn a_training_that_is_killed_comes_to_the_same_bits() {
    killed(3, 120);
}

#[test]
#[ignore = "slow: `make soak`"]
fn soak_a_training_that_is_killed_twenty_times_comes_to_the_same_bits() {
    killed(20, 600);
}

#[test]
fn a_committed_model_that_is_damaged_is_made_good_and_one_that_is_whole_made_again_by_force() {
    let (folder, checkpoint) = trained();
    let manifest = folder.path().join("work.toml").to_string_lossy().into_owned();
    let weights = Path::new(&checkpoint).join("step-000000002/ema.safetensors");
    let before = fs::read(&weights).unwrap();
    fs::write(&weights, &before[..before.len() / 2]).unwrap();
    let found = run(&["verify", &manifest]);
    assert_eq!(found.status.code(), Some(1), "{}", text(&found.stdout));
    assert!(text(&found.stdout).contains("Delete the damaged files and run again"), "{}", text(&found.stdout));

    // As it says.
    fs::remove_file(&weights).unwrap();
    let made = run(&["run", &manifest, "-q"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(fs::read(&weights).unwrap() == before, "to the bit");
    assert!(run(&["verify", &manifest]).status.success());

    // Other bytes in their place are neither gone on from nor committed.
    fs::write(&weights, &before[..before.len() / 2]).unwrap();
    let record = record_in(&folder.path().join("work/stages/train"));
    let before_force = fs::read(&record).unwrap();
    let begins_anew = || {
        let made = run(&["run", &manifest, "--stage", "train", "--force", "--json"]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        let events = text(&made.stdout);
        let events: Vec<Value> = events.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        events.iter().any(|event| event["event"] == "progress" && event["done"] == 0)
    };
    assert!(begins_anew());
    assert!(fs::read(&weights).unwrap() == before, "to the bit");
    assert!(run(&["verify", &manifest]).status.success());
    // As if it had ended before its commit.
    let committed = fs::read(&record).unwrap();
    assert!(committed != before_force);
    fs::write(&record, before_force).unwrap();
    assert!(!begins_anew(), "what is finished is committed");
    assert!(begins_anew(), "and is made again when that is asked for after its commit");
}

/// The record of a stage of one partition.
fn record_in(folder: &Path) -> PathBuf {
    let mut files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_record = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("part-") && name.ends_with(".json")
    };
    files.find(is_record).unwrap()
}

#[test]
fn a_fine_tuning_begins_from_the_training_before_it_and_follows_it() {
    let folder = folder();
    let train = |name: &str, from: &str, more: &str| {
        format!(
            "[stage.{name}]\nuses = \"train\"\nfrom = {from}\nsteps = 3\nwidth = 32\nheads = 2\nblocks = 1\nbatch_size = 4\n\
             warmup_steps = 0\nzero_gates = false\ndevice = \"cpu\"\n{more}\n"
        )
    };
    let stages = [
        "[stage.index]\nuses = \"index\"\nfrom = \"bucket\"\n".to_owned(),
        train("train", "\"index\"", ""),
        train("fine", "[\"index\", \"train\"]", "start = { average = true }"),
    ];
    let manifest = bucketed(folder.path(), &[(32, 32); 8], &stages.concat());
    let made = run(&["run", &manifest, "--json"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let notes: Vec<Value> = text(&made.stdout).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let begun = notes.iter().find(|note| note["stage"] == "fine" && note["event"] == "note");
    let begun = begun.and_then(|note| note["text"].as_str()).unwrap_or_default();
    assert!(begun.starts_with("beginning from") && begun.contains("step-000000003"), "{begun:?} {notes:?}");
    let plan = |set: &str| {
        let output = run(&["plan", &manifest, "--set", set]);
        text(&output.stdout).lines().find(|line| line.trim_start().starts_with("fine")).unwrap_or_default().to_owned()
    };
    assert!(plan("stage.fine.log_every=2").contains("up to date"), "{}", plan("stage.fine.log_every=2"));
    assert!(!plan("stage.train.seed=9").contains("up to date"), "{}", plan("stage.train.seed=9"));
    let runs = fs::read_dir(folder.path().join("work/stages/train")).unwrap().map(|entry| entry.unwrap().path());
    let trained = runs.into_iter().find(|path| path.join("latest").exists()).unwrap();
    let start = format!("stage.fine.start={{ folder = \"{}\" }}", trained.display());
    let twice = run(&["plan", &manifest, "--set", &start]);
    let (status, words) = (twice.status.code(), text(&twice.stderr));
    assert!(status == Some(2) && words.contains("`from` a train stage as well: keep one"), "{words}");
}
