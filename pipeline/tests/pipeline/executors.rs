//! Partitions that are made elsewhere: by executors that repeat orders, leave some out, fail, or see something else than the run.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use pipeline::plan::{Plan, Selection};
use pipeline::run::{Executor, Made, NotMade, Options, Order, OrderError, RunError, Workshop, run_with};
use pipeline::stage::Cancel;
use shards::event::{EventSink, RunOutcome};

use crate::synthetic::{Dag, Kind, digests, drive, registry};

fn dag() -> Dag {
    Dag(vec![
        Kind::Numbers { partitions: 7, rows: 5, start: 0 },
        Kind::Map { from: vec![0], add: 3, drop: 4 },
        Kind::Distinct { from: 1, modulus: 11 },
        Kind::Sum { from: vec![2] },
    ])
}

/// What becomes of an order, by how many there were before it.
type Fates = fn(usize) -> Fate;

/// Two other processes, as far as the run can tell: each has a plan of its own, made before anything was there.
struct Two {
    workshops: [Workshop; 2],
    orders: Mutex<Vec<Order>>,
    tables: AtomicUsize,
    at_a_time: usize,
    fate: Fates,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Made,
    /// By both, at the same time.
    MadeTwice,
    /// Nobody makes it, and nobody says so.
    Forgotten,
    Fails,
}

impl Two {
    fn new(dag: &Dag, workdir: &Path, fate: Fates) -> Self {
        let workshop = |cores| {
            let options = Options { cores, ..Options::default() };
            Workshop::new(dag.plan(workdir), &options, EventSink::silent())
        };
        let (orders, tables) = (Mutex::default(), AtomicUsize::new(0));
        Self { workshops: [workshop(1), workshop(2)], orders, tables, at_a_time: 5, fate }
    }

    fn orders(&self) -> Vec<Order> {
        self.orders.lock().unwrap().clone()
    }
}

impl Executor for Two {
    fn at_a_time(&self) -> usize {
        self.at_a_time
    }

    fn make(&self, runner: &str, orders: &[Order], enough: &Cancel) -> Result<(), NotMade> {
        self.tables.fetch_add(1, Ordering::Relaxed);
        assert!(orders.iter().all(|order| order.stage == orders[0].stage), "a table is of one stage");
        assert!(orders.len() <= self.at_a_time);
        for order in orders {
            let before = {
                let mut all = self.orders.lock().unwrap();
                all.push(order.clone());
                all.len() - 1
            };
            // As it travels.
            let order: Order = serde_json::from_str(&serde_json::to_string(order).unwrap()).unwrap();
            let [first, second] = &self.workshops;
            match (self.fate)(before) {
                Fate::Made => drop(self.workshops[before % 2].make(runner, &order, enough).unwrap()),
                Fate::MadeTwice => std::thread::scope(|scope| {
                    for workshop in [first, second, first] {
                        let order = &order;
                        scope.spawn(move || workshop.make(runner, order, enough).unwrap());
                    }
                }),
                Fate::Forgotten => {}
                Fate::Fails => {
                    let error = "made to fail".to_owned();
                    return Err(NotMade::Partition { partition: order.partition, error });
                }
            }
        }
        Ok(())
    }
}

fn on(executor: &Two, plan: &mut Plan, keep_going: bool) -> Result<RunOutcome, RunError> {
    let options = Options { cores: 2, keep_going, ..Options::default() };
    run_with(Some(executor), plan, &options, &EventSink::silent(), &Cancel::default())
}

#[test]
fn what_others_make_is_what_one_run_makes() {
    let alone = tempfile::tempdir().unwrap();
    drive(&mut dag().plan(alone.path()));
    let expected = digests(&dag().plan(alone.path()));
    let fates: [(Fates, usize); 3] = [
        (|_| Fate::Made, 23),
        (|n| if n % 3 == 1 { Fate::MadeTwice } else { Fate::Made }, 23),
        // Four of the first twenty are asked for again.
        (|n| if n < 20 && n % 5 == 2 { Fate::Forgotten } else { Fate::Made }, 27),
    ];
    for (fate, orders) in fates {
        let folder = tempfile::tempdir().unwrap();
        let executor = Two::new(&dag(), folder.path(), fate);
        let mut plan = dag().plan(folder.path());
        assert_eq!(on(&executor, &mut plan, false).unwrap(), RunOutcome::Done);
        assert!(plan.is_up_to_date());
        // Seven of each of three stages, a survey, a sum.
        assert_eq!(executor.orders().len(), orders);
        assert_eq!(digests(&dag().plan(folder.path())), expected);
        assert_eq!(on(&executor, &mut dag().plan(folder.path()), false).unwrap(), RunOutcome::UpToDate);
    }
}

#[test]
fn what_is_asked_for_again_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    drive(&mut dag().plan(folder.path()));
    let before = digests(&dag().plan(folder.path()));
    let files = || -> Vec<String> {
        let plan = dag().plan(folder.path());
        plan.stage("s1").unwrap().committed().map(|sidecar| sidecar.data[0].file.clone()).collect()
    };
    let were = files();
    let force = Selection { stages: vec!["s1".to_owned()], force: true, ..Selection::default() };
    let mut plan = Plan::select(&dag().manifest(folder.path(), 0), &registry(), &force).unwrap();
    let executor = Two::new(&dag(), folder.path(), |_| Fate::Made);
    assert_eq!(on(&executor, &mut plan, false).unwrap(), RunOutcome::Done);
    assert_eq!(executor.orders().len(), 7);
    assert!(files().iter().all(|file| !were.contains(file)), "{were:?} {:?}", files());
    assert_eq!(digests(&dag().plan(folder.path())), before);
}

#[test]
fn a_failure_ends_the_run_or_its_own_partition() {
    let fails: Fates = |n| if n == 3 { Fate::Fails } else { Fate::Made };
    let folder = tempfile::tempdir().unwrap();
    let executor = Two::new(&dag(), folder.path(), fails);
    let ended = on(&executor, &mut dag().plan(folder.path()), false).unwrap_err();
    assert_eq!(ended.to_string(), "s0, part-00003");
    let mut error: &dyn std::error::Error = &ended;
    while let Some(source) = error.source() {
        error = source;
    }
    assert_eq!(error.to_string(), "made to fail");
    assert_eq!(executor.tables.load(Ordering::Relaxed), 1, "it asks for no more");
    // What had been made by then counts.
    assert_eq!(dag().plan(folder.path()).stage("s0").unwrap().missing(), 4);

    let folder = tempfile::tempdir().unwrap();
    let executor = Two::new(&dag(), folder.path(), fails);
    on(&executor, &mut dag().plan(folder.path()), true).unwrap_err();
    let plan = dag().plan(folder.path());
    let missing = |stage| plan.stage(stage).unwrap().missing();
    assert_eq!([missing("s0"), missing("s1"), missing("s2"), missing("s3")], [1, 1, 7, 1]);
    assert_eq!(executor.orders().len(), executor.tables.load(Ordering::Relaxed), "each by itself");
}

struct Gone;
impl Executor for Gone {
    fn at_a_time(&self) -> usize {
        3
    }

    fn make(&self, _: &str, _: &[Order], _: &Cancel) -> Result<(), NotMade> {
        Err(NotMade::Cluster("nobody is there".into()))
    }
}

/// Waits until it is told to stop.
struct Slow(Cancel);
impl Executor for Slow {
    fn at_a_time(&self) -> usize {
        3
    }

    fn make(&self, _: &str, _: &[Order], enough: &Cancel) -> Result<(), NotMade> {
        self.0.cancel();
        while !enough.is_cancelled() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Err(NotMade::Interrupted)
    }
}

#[test]
fn a_cluster_that_fails_or_a_run_that_is_interrupted_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut plan = dag().plan(folder.path());
    let options = Options { keep_going: true, ..Options::default() };
    let ended = run_with(Some(&Gone), &mut plan, &options, &EventSink::silent(), &Cancel::default()).unwrap_err();
    assert!(matches!(&ended, RunError::Cluster(error) if error.to_string() == "nobody is there"), "{ended:?}");

    let slow = Slow(Cancel::default());
    let interrupt = slow.0.clone();
    let mut plan = dag().plan(folder.path());
    let ended = run_with(Some(&slow), &mut plan, &options, &EventSink::silent(), &interrupt).unwrap();
    assert_eq!(ended, RunOutcome::Interrupted);
}

/// Stops by itself, as a training does when another of its ranks is told to.
struct Stops;
impl Executor for Stops {
    fn at_a_time(&self) -> usize {
        3
    }

    fn make(&self, _: &str, _: &[Order], _: &Cancel) -> Result<(), NotMade> {
        Err(NotMade::Interrupted)
    }
}

#[test]
fn a_run_whose_work_is_stopped_from_elsewhere_says_that_it_was_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let mut plan = dag().plan(folder.path());
    let options = Options::default();
    let ended = run_with(Some(&Stops), &mut plan, &options, &EventSink::silent(), &Cancel::default()).unwrap();
    assert_eq!(ended, RunOutcome::Interrupted);
}

#[test]
fn a_workshop_makes_what_it_sees_itself_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let workshop = |dag: &Dag, at: &Path| Workshop::new(dag.plan(at), &Options::default(), EventSink::silent());
    let makes = workshop(&dag(), folder.path());
    let runner = shards::lease::Runner::join(&dag().plan(folder.path()).workdir).unwrap();
    // Orders of a run that goes on.
    let executor = Two::new(&dag(), folder.path(), |_| Fate::Made);
    on(&executor, &mut dag().plan(folder.path()), false).unwrap();
    let orders = executor.orders();
    let of = |stage: &str| orders.iter().find(|order| order.stage == stage).unwrap().clone();
    let idle = Cancel::default();
    assert_eq!(makes.make(runner.id(), &of("s3"), &idle).unwrap(), Made::Committed);

    // It is at work here until it rests.
    let others = || shards::lease::runners(&dag().plan(folder.path()).workdir).unwrap().len();
    makes.rest(std::time::Duration::from_mins(1));
    drop(executor);
    assert_eq!(others(), 2);
    makes.rest(std::time::Duration::ZERO);
    assert_eq!(others(), 1);

    let unknown = |order: Order| match makes.make(runner.id(), &order, &idle) {
        Err(OrderError::Unknown { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    let of_another_version = Order { fingerprint: of("s0").fingerprint, ..of("s1") };
    assert!(unknown(of_another_version).contains("version"));
    assert!(unknown(Order { stage: "s9".to_owned(), ..of("s1") }).contains("no stage"));
    assert!(unknown(Order { partition: "part-00099".to_owned(), ..of("s1") }).contains("no partition"));
    let elsewhere = tempfile::tempdir().unwrap();
    let other = workshop(&dag(), elsewhere.path());
    match other.make(runner.id(), &of("s0"), &idle) {
        Err(error @ OrderError::OtherWorkdir { .. }) => {
            assert!(error.to_string().contains("one folder that all machines share"));
        }
        other => panic!("{other:?}"),
    }
}
