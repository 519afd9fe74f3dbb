//! Several runs on one workdir share its partitions; one that dies does not stop the others.

use std::process::Command;
use std::sync::Arc;

use object_store::memory::InMemory;
use pipeline::run::{Options, run};
use pipeline::stage::Cancel;
use shards::event::{EventSink, RunOutcome};
use shards::storage::Workdir;

use crate::faults;
use crate::synthetic::{Dag, Kind, Ran, contents, digests, drive};

fn dag() -> Dag {
    Dag(vec![
        Kind::Numbers { partitions: 12, rows: 3, start: 0 },
        Kind::Map { from: vec![0], add: 1, drop: 3 },
        Kind::Distinct { from: 1, modulus: 17 },
        Kind::Sum { from: vec![2] },
    ])
}

/// Runs at once: as many plans of one workdir as asked for, each of which opens it for itself. Returns what each started.
fn together(open: &(dyn Fn() -> Workdir + Sync), runs: usize, wait: u64) -> Vec<Ran> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..runs).map(|_| scope.spawn(|| drive(&mut dag().plan_in(&open(), wait)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn share(open: &(dyn Fn() -> Workdir + Sync)) {
    let ran = together(open, 3, 10);
    let workdir = &open();
    let mut started: Vec<_> = ran.iter().flat_map(|ran| ran.started.clone()).collect();
    started.sort();
    let all = started.len();
    started.dedup();
    assert_eq!(all, started.len(), "nothing was made twice");
    assert_eq!(started.len(), 12 + 12 + 13 + 1);
    assert!(ran.iter().filter(|ran| !ran.started.is_empty()).count() > 1, "the work is shared");
    let plan = dag().plan_in(workdir, 0);
    assert!(plan.is_up_to_date());
    assert_eq!(contents(&plan), dag().expected());
    let alone = tempfile::tempdir().unwrap();
    let mut undisturbed = dag().plan(alone.path());
    drive(&mut undisturbed);
    assert_eq!(digests(&plan), digests(&undisturbed));
    assert_eq!(workdir.list("lease", true).unwrap(), [], "everyone has left");
    for stage in 0..4 {
        assert_eq!(workdir.list(&format!("stages/s{stage}/lease"), true).unwrap(), [], "no claim is left");
    }
}

#[test]
fn runs_share_a_local_workdir() {
    let folder = tempfile::tempdir().unwrap();
    share(&|| Workdir::local(folder.path()));
}

#[test]
fn runs_share_an_object_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(InMemory::new());
    share(&|| Workdir::on_store(Arc::clone(&store) as _, "a/b", "memory://a/b", folder.path()).unwrap());
}

#[test]
fn a_run_goes_on_with_what_a_dying_one_held() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("work");
    // The other one dies at its 60th change of the disk, in the middle of things.
    let mut dying = faults::child(&dag(), &path, Some("end"), 60);
    let workdir = Workdir::local(&path);
    while workdir.list("stages/s0", false).unwrap().is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let ran = drive(&mut dag().plan_in(&workdir, 20));
    let status = dying.wait().unwrap();
    assert!(!status.success(), "it was to die");
    assert!(matches!(ran.outcome, RunOutcome::Done | RunOutcome::UpToDate));
    let plan = dag().plan(&path);
    assert!(plan.is_up_to_date());
    assert_eq!(contents(&plan), dag().expected());
}

#[test]
fn an_interrupted_run_keeps_what_is_committed_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let workdir = Workdir::local(folder.path());
    let mut plan = dag().plan_in(&workdir, 20);
    let cancel = Cancel::default();
    let sink = EventSink::new({
        let cancel = cancel.clone();
        move |event| {
            if matches!(&event, shards::event::Event::PartitionCommitted { stage, .. } if stage == "s1") {
                cancel.cancel();
            }
        }
    });
    assert_eq!(run(&mut plan, &Options::default(), &sink, &cancel).unwrap(), RunOutcome::Interrupted);
    let after = dag().plan(folder.path());
    assert!(!after.is_up_to_date() && after.stages[1].committed().count() > 0);
    drive(&mut dag().plan(folder.path()));
    assert_eq!(contents(&dag().plan(folder.path())), dag().expected());
}

/// `flock`-like tools are not needed for this: the child is this very test binary.
pub(crate) fn this_binary() -> Command {
    Command::new(std::env::current_exe().unwrap())
}
