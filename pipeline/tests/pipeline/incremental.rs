//! A partition runs if and only if its fingerprint changed, whatever the DAG and whatever was edited.

use std::collections::BTreeSet;

use pipeline::plan::{Plan, Selection};
use proptest::prelude::*;
use proptest::sample::Index;
use shards::event::RunOutcome;

use crate::synthetic::{Dag, Kind, Row, contents, drive, registry};

/// Everything that a partition depends on: kind and parameters, and the contents of its inputs.
type Identity = (usize, String, String, Vec<Vec<Row>>);

/// What must run: every partition (and survey) whose identity was never committed.
fn identities(dag: &Dag) -> Vec<Identity> {
    let stages = dag.expected();
    let mut found = Vec::new();
    for (i, kind) in dag.0.iter().enumerate() {
        let inputs = |from: &[usize]| from.iter().flat_map(|&i| stages[i].clone()).collect::<Vec<_>>();
        let own = names(dag, i);
        let name = |n: usize| own[n].clone();
        match kind {
            Kind::Numbers { rows, .. } => {
                for (n, partition) in stages[i].iter().enumerate() {
                    found.push((i, name(n), format!("numbers {rows}"), vec![partition.clone()]));
                }
            }
            Kind::Map { from, add, drop } => {
                for (n, input) in inputs(from).into_iter().enumerate() {
                    found.push((i, name(n), format!("map {add} {drop}"), vec![input]));
                }
            }
            Kind::Sum { from } => found.push((i, name(0), "sum".to_owned(), inputs(from))),
            Kind::Distinct { from, modulus } => {
                found.push((i, "part-survey".to_owned(), format!("distinct {modulus}"), inputs(&[*from])));
                // A partition knows its own input and what the survey left for it, which is what it will hold.
                for (n, input) in stages[*from].iter().enumerate() {
                    found.push((i, name(n), format!("distinct {modulus}"), vec![input.clone(), stages[i][n].clone()]));
                }
            }
        }
    }
    found
}

/// The partitions of a stage: numbered, or as those that they are made from, of several stages with theirs.
fn names(dag: &Dag, stage: usize) -> Vec<String> {
    match &dag.0[stage] {
        Kind::Numbers { partitions, .. } => (0..*partitions).map(|n| format!("part-{n:05}")).collect(),
        Kind::Sum { .. } => vec!["part-00000".to_owned()],
        Kind::Distinct { from, .. } => names(dag, *from),
        Kind::Map { from, .. } if from.len() == 1 => names(dag, from[0]),
        Kind::Map { from, .. } => {
            let of = |from: &usize| {
                names(dag, *from)
                    .into_iter()
                    .map(move |name| name.replacen("part-", &format!("part-s{from}-"), 1))
                    .collect::<Vec<_>>()
            };
            from.iter().flat_map(of).collect()
        }
    }
}

fn dags() -> impl Strategy<Value = Dag> {
    let stage = (0..5u8, any::<Index>(), any::<Index>(), 0..4u64, 0..4u64, 1..5u64);
    (1..4u64, 1..6u64, prop::collection::vec(stage, 1..6)).prop_map(|(partitions, rows, stages)| {
        let mut dag = vec![Kind::Numbers { partitions, rows, start: 0 }];
        for (kind, a, b, add, drop, n) in stages {
            let (a, b) = (a.index(dag.len()), b.index(dag.len()));
            let from = if a == b { vec![a] } else { vec![a, b] };
            dag.push(match kind {
                0 => Kind::Numbers { partitions: n, rows, start: add * 100 },
                1 => Kind::Sum { from },
                2 => Kind::Distinct { from: a, modulus: n },
                _ => Kind::Map { from, add, drop },
            });
        }
        Dag(dag)
    })
}

/// Changes one number of one stage.
fn edit(dag: &Dag, at: Index, by: u64) -> Dag {
    let mut edited = dag.clone();
    let at = at.index(edited.0.len());
    match &mut edited.0[at] {
        Kind::Numbers { partitions, start, .. } if by.is_multiple_of(2) => (*partitions, *start) = (1 + by % 4, *start),
        Kind::Numbers { start, .. } => *start += by,
        Kind::Map { add, .. } if by.is_multiple_of(2) => *add = by % 5,
        Kind::Map { drop, .. } => *drop = by % 5,
        Kind::Distinct { modulus, .. } => *modulus = 1 + by % 5,
        Kind::Sum { .. } => {}
    }
    edited
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn exactly_what_changed_runs_and_rows_are_conserved(
        dag in dags(),
        edits in prop::collection::vec((any::<Index>(), 0..20u64), 0..4),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut known: BTreeSet<Identity> = BTreeSet::new();
        let mut dag = dag;
        for step in 0..=edits.len() {
            let mut expected: Vec<(String, String)> = Vec::new();
            for identity in identities(&dag) {
                if known.insert(identity.clone()) {
                    expected.push((format!("s{}", identity.0), identity.1));
                }
            }
            let mut plan = dag.plan(folder.path());
            let ran = drive(&mut plan);
            let mut started = ran.started;
            started.sort();
            expected.sort();
            prop_assert_eq!(&started, &expected, "step {} of {:?}", step, dag);
            prop_assert_eq!(ran.outcome == RunOutcome::UpToDate, started.is_empty());
            prop_assert_eq!(contents(&plan), dag.expected());
            for sidecar in plan.stages.iter().flat_map(|stage| stage.committed().map(move |s| (stage, s))) {
                let (stage, sidecar) = sidecar;
                prop_assert!(stage.stage.law().holds(
                    sidecar.rows_in,
                    sidecar.rows_out,
                    sidecar.rows_dropped(),
                    &sidecar.observed
                ));
            }
            prop_assert_eq!(drive(&mut dag.plan(folder.path())).started, Vec::new());
            if let Some((at, by)) = edits.get(step) {
                dag = edit(&dag, *at, *by);
            }
        }
    }
}

fn three() -> Dag {
    Dag(vec![
        Kind::Numbers { partitions: 3, rows: 4, start: 0 },
        Kind::Map { from: vec![0], add: 1, drop: 0 },
        Kind::Sum { from: vec![1] },
    ])
}

#[test]
fn partitions_whose_rows_may_be_in_others_now_are_those_that_their_source_divides_anew() {
    let folder = tempfile::tempdir().unwrap();
    let names = |numbers: std::ops::Range<usize>| -> Vec<String> { numbers.map(|n| format!("part-{n:05}")).collect() };
    let former = |dag: &Dag| -> Vec<Vec<String>> {
        dag.plan(folder.path()).stages.iter().map(|stage| stage.former().to_vec()).collect()
    };
    let none = vec![Vec::<String>::new(); 3];
    let mut dag = three();
    assert_eq!(former(&dag), none);
    drive(&mut dag.plan(folder.path()));
    assert_eq!(former(&dag), none);
    // Other parameters move no row, nor do more partitions behind those that are there.
    dag.0[1] = Kind::Map { from: vec![0], add: 2, drop: 0 };
    dag.0[0] = Kind::Numbers { partitions: 4, rows: 4, start: 0 };
    assert_eq!(former(&dag), none);
    drive(&mut dag.plan(folder.path()));
    assert_eq!(former(&dag), none);
    dag.0[0] = Kind::Numbers { partitions: 3, rows: 4, start: 0 };
    assert_eq!(former(&dag), [names(3..4), names(3..4), Vec::new()]);
    // Rows that come first move all others: whoever begins when that is half done, or done, knows it too.
    dag.0[0] = Kind::Numbers { partitions: 3, rows: 4, start: 2 };
    let moved = [names(0..4), names(0..4), Vec::new()];
    assert_eq!(former(&dag), moved);
    drive(&mut select(&dag, folder.path(), &Selection { stages: vec!["s0".to_owned()], ..Selection::default() }));
    assert_eq!(former(&dag), moved);
    drive(&mut dag.plan(folder.path()));
    assert_eq!(former(&dag), moved);
}

fn select(dag: &Dag, workdir: &std::path::Path, selection: &Selection) -> Plan {
    Plan::select(&dag.manifest(workdir, 0), &registry(), selection).unwrap()
}

#[test]
fn selections_run_what_they_name() {
    let folder = tempfile::tempdir().unwrap();
    let dag = three();
    let stages =
        |plan: &mut Plan| -> BTreeSet<String> { drive(plan).started.into_iter().map(|(stage, _)| stage).collect() };
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();

    let stage = |name: &str| Selection { stages: vec![name.to_owned()], ..Selection::default() };
    let blocked = select(&dag, folder.path(), &stage("s2"));
    assert!(blocked.obstacles[0].contains("3 of 3 partitions of which are not made"), "{:?}", blocked.obstacles);

    let until = Selection { until: Some("s1".to_owned()), ..Selection::default() };
    assert_eq!(stages(&mut select(&dag, folder.path(), &until)), named(&["s0", "s1"]));
    assert_eq!(stages(&mut select(&dag, folder.path(), &stage("s2"))), named(&["s2"]));

    let force = Selection { force: true, from: Some("s1".to_owned()), ..Selection::default() };
    let before = crate::synthetic::digests(&dag.plan(folder.path()));
    assert_eq!(stages(&mut select(&dag, folder.path(), &force)), named(&["s1", "s2"]));
    assert_eq!(crate::synthetic::digests(&dag.plan(folder.path())), before, "made again, the same again");

    // An edit, and one more partition: only what was never made is made.
    let mut edited = dag.clone();
    edited.0[0] = Kind::Numbers { partitions: 4, rows: 4, start: 0 };
    edited.0[1] = Kind::Map { from: vec![0], add: 9, drop: 0 };
    let missing = Selection { only_missing: true, ..Selection::default() };
    let ran = drive(&mut select(&edited, folder.path(), &missing));
    let pair = |stage: &str, partition: &str| (stage.to_owned(), partition.to_owned());
    assert_eq!(ran.started, [pair("s0", "part-00003"), pair("s1", "part-00003")]);
    let error = Plan::select(&dag.manifest(folder.path(), 0), &registry(), &stage("s9")).err().unwrap();
    assert!(error.to_string().contains("s0, s1, s2"), "{error}");
}

#[test]
fn reasons_and_estimates_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let dag = three();
    let fresh = dag.plan(folder.path());
    assert_eq!(fresh.stages[0].summary(), "not made yet; 3 of 3 partitions");
    assert_eq!(fresh.estimates(2, None)[1].seconds, None, "nothing is known yet");
    drive(&mut dag.plan(folder.path()));
    let mut edited = dag.clone();
    edited.0[0] = Kind::Numbers { partitions: 5, rows: 4, start: 0 };
    edited.0[1] = Kind::Map { from: vec![0], add: 2, drop: 0 };
    let plan = edited.plan(folder.path());
    assert_eq!(plan.stages[0].summary(), "input unchanged, missing; 2 of 5 partitions");
    assert!(plan.stages[1].summary().contains("add 1 → 2; 3 of 5 partitions"), "{}", plan.stages[1].summary());
    let estimates = plan.estimates(2, None);
    assert_eq!(estimates[0].reads.rows, Some(8.0));
    assert_eq!(estimates[1].reads.rows, Some(20.0), "what is there and what will be");
    assert_eq!(estimates[1].writes.rows, Some(20.0));
    assert!(estimates.iter().all(|e| e.seconds.is_some_and(|s| s >= 0.0)));
}
