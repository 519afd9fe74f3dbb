//! Killed, or refused by the disk, at every single change that a run makes to the disk: nothing committed is lost, and the
//! same command goes on to the same bytes.
//!
//! Faults are armed in a child process: this test binary, told by its environment to be one.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Stdio};

use pipeline::run::{Options, run};
use pipeline::stage::Cancel;
use shards::event::EventSink;
use shards::fault::{self, Fault};

use crate::sharing::this_binary;
use crate::synthetic::{Dag, Kind, contents, digests, drive};

const SMALL: &str = "FERROTYPE_TEST_DAG";
const WORKDIR: &str = "FERROTYPE_TEST_WORKDIR";
const FAULT: &str = "FERROTYPE_TEST_FAULT";
const AT: &str = "FERROTYPE_TEST_FAULT_AT";

fn small() -> Dag {
    Dag(vec![
        Kind::Numbers { partitions: 2, rows: 3, start: 0 },
        Kind::Map { from: vec![0], add: 1, drop: 2 },
        Kind::Distinct { from: 1, modulus: 4 },
        Kind::Sum { from: vec![2] },
    ])
}

/// Starts a run of `dag` in a process of its own, with a fault at its `at`th change of the disk.
pub(crate) fn child(dag: &Dag, workdir: &Path, fault: Option<&str>, at: u64) -> Child {
    let is_small = if *dag == small() { "small" } else { "large" };
    let mut command = this_binary();
    command.args(["faults::run_as_told", "--exact", "--ignored", "--nocapture"]);
    command.env(SMALL, is_small).env(WORKDIR, workdir).env(FAULT, fault.unwrap_or("none")).env(AT, at.to_string());
    std::fs::write(workdir.with_extension("toml"), dag.toml(workdir, 5)).unwrap();
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// The child's side: not a test of its own.
#[test]
#[ignore = "started by other tests"]
fn run_as_told() {
    let Some(workdir) = std::env::var_os(WORKDIR) else { return };
    let workdir = Path::new(&workdir);
    let fault = match std::env::var(FAULT).unwrap().as_str() {
        "end" => Some(Fault::End),
        "full" => Some(Fault::Full),
        "read-only" => Some(Fault::ReadOnly),
        "once" => Some(Fault::Once),
        _ => None,
    };
    let text = std::fs::read_to_string(workdir.with_extension("toml")).unwrap();
    let manifest = pipeline::manifest::Manifest::parse(&text, Path::new("child.toml"), &[]).unwrap();
    let mut plan = pipeline::plan::Plan::new(&manifest, &crate::synthetic::registry()).unwrap();
    fault::arm(fault.map(|fault| (fault, std::env::var(AT).unwrap().parse().unwrap())));
    let result = run(&mut plan, &Options { cores: 2, ..Options::default() }, &EventSink::silent(), &Cancel::default());
    let points = fault::points();
    fault::arm(None);
    match result {
        Ok(_) => println!("\nRESULT ok {points}"),
        Err(error) => {
            let mut words = Vec::new();
            let mut next: Option<&dyn std::error::Error> = Some(&error);
            while let Some(error) = next {
                words.push(error.to_string());
                next = error.source();
            }
            println!("\nRESULT {}", words.join(": "));
        }
    }
}

/// What the child printed: `ok N`, the error in words, or nothing when it was ended.
fn ended(child: Child) -> Option<String> {
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, result) = said.split_once("RESULT ")?;
    result.lines().next().map(str::to_owned)
}

fn committed(workdir: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for stage in 0..4 {
        let folder = workdir.join(format!("stages/s{stage}"));
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let files = entries.map(|e| e.file_name().to_string_lossy().into_owned());
        names.extend(files.filter(|n| n.starts_with("part-") && n.ends_with(".json")).map(|n| format!("s{stage}/{n}")));
    }
    names
}

/// Breaks a run of the small DAG in every way at every `step`th point; returns how many points there are and were struck.
fn break_everywhere(step: usize) -> (u64, usize) {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let said = ended(child(&small(), &whole, None, 0)).unwrap();
    let points: u64 = said.strip_prefix("ok ").unwrap().parse().unwrap();
    let expected = digests(&small().plan(&whole));
    let mut struck = 0;
    let ways = ["end", "full", "read-only", "once"];
    for (i, at) in (0..points).enumerate() {
        for (j, fault) in ways.into_iter().enumerate() {
            // Every point is struck in some way, and every way strikes all over.
            if (i + j) % step != 0 {
                continue;
            }
            let workdir = folder.path().join(format!("{fault}-{at}"));
            let result = ended(child(&small(), &workdir, Some(fault), at));
            let kept = committed(&workdir);
            match result.as_deref() {
                // Threads run as they like: the last points may not be reached, and one sweep more or less is no failure.
                Some(text) if text.starts_with("ok ") => {}
                Some(words) => {
                    struck += 1;
                    let expected = match fault {
                        "full" => "No space left on device",
                        "read-only" => "Read-only file system",
                        _ => "Input/output error",
                    };
                    assert!(words.contains(expected), "{fault} at {at}: {words}");
                    assert!(words.contains(&*workdir.to_string_lossy()), "{fault} at {at} names no path: {words}");
                }
                None => {
                    struck += 1;
                    assert_eq!(fault, "end", "at {at}: the child ended without a word");
                }
            }
            let mut plan = small().plan(&workdir);
            let made: BTreeSet<String> =
                drive(&mut plan).started.into_iter().map(|(s, p)| format!("{s}/{p}")).collect();
            for name in &kept {
                let partition = name.split('.').next().unwrap();
                assert!(!made.contains(partition), "{fault} at {at}: {partition} was committed and made again");
            }
            let plan = small().plan(&workdir);
            assert_eq!(digests(&plan), expected, "{fault} at {at}");
            assert_eq!(contents(&plan), small().expected(), "{fault} at {at}");
            std::fs::remove_dir_all(&workdir).unwrap();
        }
    }
    (points, struck)
}

#[test]
fn nothing_committed_is_lost_wherever_a_run_breaks() {
    let (points, struck) = break_everywhere(8);
    println!("a run changes the disk {points} times; it was broken {struck} times, every way");
    assert!(points > 80 && struck > 40, "{points} points, {struck} struck");
}

/// The same, at every point in every way; `make soak`.
#[test]
#[ignore = "slow: make soak"]
fn soak_break_at_every_point_in_every_way() {
    let (points, struck) = break_everywhere(1);
    println!("a run changes the disk {points} times; it was broken {struck} times, at each of them in four ways");
    assert!(struck as u64 > 3 * points, "{points} points, {struck} struck");
}

/// SIGKILL at random times, a few times in a row on one workdir.
#[test]
fn sigkill_at_random_times_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let workdir = folder.path().join("work");
    let mut before = BTreeSet::new();
    for round in 0..8u64 {
        let mut run = child(&small(), &workdir, None, 0);
        std::thread::sleep(std::time::Duration::from_millis(5 + 7 * round));
        let _ = run.kill();
        run.wait().unwrap();
        let now = committed(&workdir);
        assert!(before.is_subset(&now), "round {round}: {before:?} then {now:?}");
        before = now;
    }
    drive(&mut small().plan(&workdir));
    let plan = small().plan(&workdir);
    assert_eq!(contents(&plan), small().expected());
}
