//! What is deleted, and what is not: nothing that somebody is at work on, or has committed meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pipeline::garbage::{delete, find, join_alone};
use pipeline::plan::{Plan, Selection};
use pipeline::run::RunError;
use shards::lease::Runner;

use crate::stores::{Counting, workdir};
use crate::synthetic::{Dag, Kind, contents, drive, registry};

fn dag() -> Dag {
    Dag(vec![Kind::Numbers { partitions: 3, rows: 2, start: 0 }, Kind::Map { from: vec![0], add: 1, drop: 0 }])
}

#[test]
fn nothing_is_deleted_beside_others_whatever_this_machines_clock_says() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Arc::new(Counting::behind(Duration::from_mins(2)));
    let workdir = workdir(&store, scratch.path());
    let is_busy = |ended: Result<(), RunError>| match ended {
        Err(RunError::Busy { holders, .. }) => holders.contains(&format!("process {}", std::process::id())),
        other => panic!("{other:?}"),
    };
    let left = "stages/s0/part-00001.dead-0.parquet";
    workdir.replace(left, b"left").unwrap();

    let at_work = Runner::join(&workdir).unwrap();
    assert!(is_busy(join_alone(&workdir).map(drop)));
    drop(at_work);
    let runner = join_alone(&workdir).unwrap();
    let plan = dag().plan_in(&workdir, 0);
    let found = find(&plan).unwrap();
    assert_eq!(found.len(), 1);
    // One that came meanwhile.
    let at_work = Runner::join(&workdir).unwrap();
    assert!(is_busy(delete(&plan, found.clone(), &runner).map(drop)));
    assert!(workdir.exists(left).unwrap());
    drop(at_work);
    assert_eq!(delete(&plan, found.clone(), &runner).unwrap(), found);
    assert!(!workdir.exists(left).unwrap());
}

#[test]
fn what_was_committed_after_the_plan_was_made_stays() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join("work");
    // Runs that begin after the plan was made, and have left before anything is deleted.
    let committed_since = |plan: &Plan, make: &dyn Fn()| {
        make();
        let left = work.join("stages/s0/part-00001.dead-0.parquet");
        std::fs::write(&left, b"left").unwrap();
        let found = find(plan).unwrap();
        assert!(found.len() > 3, "the data of all of them was found: {found:?}");
        let gone = delete(plan, found, &join_alone(&plan.workdir).unwrap()).unwrap();
        assert!(gone.iter().all(|gone| gone.name == "stages/s0/part-00001.dead-0.parquet"), "{gone:?}");
        assert!(gone.len() == 1 && !left.exists());
        assert_eq!(contents(&dag().plan(&work)), dag().expected());
    };
    committed_since(&dag().plan(&work), &|| drop(drive(&mut dag().plan(&work))));
    // Made again, under the names of records that the plan knows.
    committed_since(&dag().plan(&work), &|| drop(drive(&mut forced(&work))));
}

fn forced(workdir: &Path) -> Plan {
    let force = Selection { force: true, ..Selection::default() };
    Plan::select(&dag().manifest(workdir, 0), &registry(), &force).unwrap()
}
