//! Workers of a scheduler: each makes a share of a stage's partitions, in any order and on any machine.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use pipeline::plan::{Part, Plan, SURVEY, Selection, Share};
use pipeline::run::{Options, run};
use pipeline::stage::Cancel;
use shards::event::RunOutcome;

use crate::synthetic::{Dag, Kind, Ran, digests, drive, registry};

/// Seven partitions, mapped; distinct ones of them; their sum.
fn four() -> Dag {
    Dag(vec![
        Kind::Numbers { partitions: 7, rows: 5, start: 0 },
        Kind::Map { from: vec![0], add: 3, drop: 4 },
        Kind::Distinct { from: 1, modulus: 11 },
        Kind::Sum { from: vec![2] },
    ])
}

fn part_of(dag: &Dag, workdir: &Path, stage: &str, part: Part) -> Plan {
    let selection = Selection { stages: vec![stage.to_owned()], part, ..Selection::default() };
    Plan::select(&dag.manifest(workdir, 0), &registry(), &selection).unwrap()
}

fn share(text: &str) -> Part {
    Part::Share(text.parse().unwrap())
}

fn started(ran: Ran) -> Vec<String> {
    let mut names: Vec<String> = ran.started.into_iter().map(|(_, partition)| partition).collect();
    names.sort();
    names
}

#[test]
fn shares_are_made_by_their_workers_and_give_what_one_run_gives() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (alone, shared) = (folders[0].path(), folders[1].path());
    let dag = four();
    drive(&mut dag.plan(alone));

    // A share needs its own inputs only.
    assert_eq!(started(drive(&mut part_of(&dag, shared, "s0", share("1/3")))), ["part-00001", "part-00004"]);
    let early = part_of(&dag, shared, "s1", share("0/3"));
    assert!(early.obstacles[0].contains("s1 reads from s0, 3 of 7 partitions"), "{:?}", early.obstacles);
    assert_eq!(started(drive(&mut part_of(&dag, shared, "s1", share("1/3")))), ["part-00001", "part-00004"]);
    assert_eq!(drive(&mut part_of(&dag, shared, "s1", share("1/3"))).outcome, RunOutcome::UpToDate);

    // A survey needs all of them, and is made by itself.
    let early = part_of(&dag, shared, "s2", Part::Survey);
    assert!(early.obstacles[0].contains("s2 reads from s1, 5 of 7 partitions"), "{:?}", early.obstacles);
    for stage in ["s0", "s1"] {
        for rest in ["0/3", "2/3"] {
            drive(&mut part_of(&dag, shared, stage, share(rest)));
        }
    }
    assert_eq!(part_of(&dag, shared, "s2", Part::Survey).stage("s2").unwrap().to_run(), 1);
    assert_eq!(started(drive(&mut part_of(&dag, shared, "s2", Part::Survey))), [SURVEY]);
    assert_eq!(drive(&mut part_of(&dag, shared, "s2", Part::Survey)).outcome, RunOutcome::UpToDate);
    for n in 0..3 {
        let mut plan = part_of(&dag, shared, "s2", share(&format!("{n}/3")));
        assert_eq!(plan.stage("s2").unwrap().to_run(), [3, 2, 2][n]);
        assert_eq!(drive(&mut plan).outcome, RunOutcome::Done);
        assert!(plan.is_up_to_date(), "its share is there");
    }
    assert_eq!(started(drive(&mut part_of(&dag, shared, "s3", Part::Whole))), ["part-00000"]);
    assert_eq!(digests(&dag.plan(shared)), digests(&dag.plan(alone)));
}

#[test]
fn a_worker_that_lacks_its_survey_makes_it() {
    let folder = tempfile::tempdir().unwrap();
    let dag = four();
    let until = Selection { until: Some("s1".to_owned()), ..Selection::default() };
    drive(&mut Plan::select(&dag.manifest(folder.path(), 0), &registry(), &until).unwrap());
    assert_eq!(started(drive(&mut part_of(&dag, folder.path(), "s2", share("6/7")))), ["part-00006", SURVEY]);
}

#[test]
fn a_worker_begins_with_what_it_prefers_and_ends_with_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut plan = four().plan(folder.path());
    let (sink, heard) = crate::samples::starts();
    let prefer: Option<Share> = Some("2/3".parse().unwrap());
    let options = Options { cores: 1, prefer, ..Options::default() };
    assert_eq!(run(&mut plan, &options, &sink, &Cancel::default()).unwrap(), RunOutcome::Done);
    let heard = heard.lock().unwrap();
    let sources: Vec<&str> = heard.iter().filter(|(stage, _)| stage == "s0").map(|(_, name)| name.as_str()).collect();
    assert_eq!(sources[..2], ["part-00002", "part-00005"]);
    assert_eq!(sources.len(), 7);
}

#[test]
fn what_only_is_missing_is_made_although_the_survey_is_an_earlier_one() {
    let folder = tempfile::tempdir().unwrap();
    let dag = |partitions, modulus| {
        Dag(vec![Kind::Numbers { partitions, rows: 5, start: 0 }, Kind::Distinct { from: 0, modulus }])
    };
    let only_missing = Selection { only_missing: true, ..Selection::default() };
    let select = |dag: &Dag| Plan::select(&dag.manifest(folder.path(), 0), &registry(), &only_missing).unwrap();
    drive(&mut dag(2, 100).plan(folder.path()));
    // Nothing is missing: nobody asks for another survey.
    assert_eq!(started(drive(&mut select(&dag(2, 7)))), [""; 0]);
    assert_eq!(started(drive(&mut select(&dag(3, 7)))), ["part-00002", "part-00002", SURVEY]);
    assert!(select(&dag(3, 7)).is_up_to_date());
}
