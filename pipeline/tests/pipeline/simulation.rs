//! Many workers on one stage of very many partitions, over a store in memory; some of them die in the middle, with whatever they hold.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use pipeline::manifest::Manifest;
use pipeline::plan::{Part, Plan, Selection, Share};
use pipeline::run::{Options, run};
use pipeline::stage::{
    Cancel, Law, Outcome, Partitioning, Registry, Source, Stage, StageError, StageKind, Task, as_it_is,
};
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::digest::Digest;
use shards::event::{EventSink, RunOutcome};
use shards::storage::Workdir;

/// Entries of one answer to a listing, as S3 gives them.
const PAGE: u64 = 1000;

/// What all workers share.
#[derive(Debug, Default)]
struct Cloud {
    store: InMemory,
    requests: AtomicU64,
    /// How often each record of a partition was created.
    commits: Mutex<BTreeMap<String, u64>>,
    /// Heartbeats of workers that are dead. They look a minute old, as they would be before long.
    silent: Mutex<HashSet<Path>>,
}

/// One worker's way to it. After so many requests the worker is dead, and nothing it asks for happens any more.
#[derive(Debug)]
struct Connection {
    cloud: Arc<Cloud>,
    left: AtomicI64,
    is_dead: AtomicBool,
    heartbeat: OnceLock<Path>,
}

impl Connection {
    fn ask(&self) -> Result<()> {
        if self.is_dead.load(Ordering::SeqCst) || self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            self.is_dead.store(true, Ordering::SeqCst);
            self.cloud.silent.lock().unwrap().extend(self.heartbeat.get().cloned());
            let source = "this worker is dead".into();
            return Err(object_store::Error::Generic { store: "simulation", source });
        }
        self.cloud.requests.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulation")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Connection {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.ask()?;
        if location.as_ref().contains("lease/runner.") {
            let _ = self.heartbeat.set(location.clone());
        }
        let creates = options.mode == PutMode::Create;
        let put = self.cloud.store.put_opts(location, payload, options).await?;
        if let Some(record) = location.filename().filter(|name| creates && name.ends_with(".json")) {
            *self.cloud.commits.lock().unwrap().entry(record.to_owned()).or_default() += 1;
        }
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.ask()?;
        self.cloud.store.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.ask()?;
        self.cloud.store.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.ask() {
            Ok(()) => self.cloud.store.delete_stream(locations),
            Err(error) => futures::stream::once(async { Err(error) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if let Err(error) = self.ask() {
            return futures::stream::once(async { Err(error) }).boxed();
        }
        let cloud = Arc::clone(&self.cloud);
        let listed = self.cloud.store.list(prefix).enumerate().map(move |(n, entry)| {
            cloud.requests.fetch_add(u64::from(n > 0 && (n as u64).is_multiple_of(PAGE)), Ordering::Relaxed);
            entry.map(|entry| cloud.aged(entry))
        });
        listed.boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.ask()?;
        let mut listed = self.cloud.store.list_with_delimiter(prefix).await?;
        self.cloud.requests.fetch_add(listed.objects.len() as u64 / PAGE, Ordering::Relaxed);
        listed.objects = listed.objects.into_iter().map(|entry| self.cloud.aged(entry)).collect();
        Ok(listed)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.ask()?;
        self.cloud.store.copy_opts(from, to, options).await
    }
}

impl Cloud {
    fn aged(&self, entry: ObjectMeta) -> ObjectMeta {
        let is_silent = self.silent.lock().unwrap().contains(&entry.location);
        let ago = if is_silent { Duration::from_mins(2) } else { Duration::ZERO };
        ObjectMeta { last_modified: entry.last_modified - ago, ..entry }
    }
}

/// Partitions of no work.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Nothing {
    partitions: u64,
}

/// How many were made, also in vain.
static MADE: AtomicU64 = AtomicU64::new(0);

impl Stage for Nothing {
    fn semantics(&self) -> Value {
        Value::Null
    }
    fn partitioning(&self) -> Partitioning {
        Partitioning::Source
    }
    fn law(&self) -> Law {
        Law::RowWise
    }
    fn sources(&self, _folder: &FilePath) -> Result<Vec<Source>, StageError> {
        let source = |n: u64| Source { name: n.to_string(), digest: Digest::of(&n.to_le_bytes()), rows: 1 };
        Ok((0..self.partitions).map(source).collect())
    }
    fn process(&self, _: &Task) -> Result<Outcome, StageError> {
        MADE.fetch_add(1, Ordering::Relaxed);
        Ok(Outcome { rows_in: 1, rows_out: 1, ..Outcome::default() })
    }
}

fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add(StageKind {
        name: "nothing",
        version: 1,
        about: "No work.",
        inputs: (0, 0),
        schemas: || vec![schema_for!(Nothing)],
        rehearse: as_it_is,
        build: |parameters| parameters.read::<Nothing>().map(|stage| Box::new(stage) as Box<dyn Stage>),
    });
    registry
}

/// One worker: as often as it dies it is started again. Returns how often it died. Odd ones have shares; even ones take what there is,
/// their own first, so that they meet others' claims.
fn work(
    cloud: &Arc<Cloud>,
    manifest: &Manifest,
    scratch: &FilePath,
    (number, of): (usize, usize),
    lives: &[i64],
) -> u64 {
    let share = Share::new(number, of).unwrap();
    let is_odd = number % 2 == 1;
    let part = if is_odd { Part::Share(share) } else { Part::Whole };
    let options = Options { cores: 1, prefer: (!is_odd).then_some(share), ..Options::default() };
    for (deaths, left) in lives.iter().copied().chain([i64::MAX]).enumerate() {
        let connection = Connection {
            cloud: Arc::clone(cloud),
            left: left.into(),
            is_dead: AtomicBool::new(false),
            heartbeat: OnceLock::new(),
        };
        let store = Arc::new(connection);
        let workdir =
            Workdir::on_store(Arc::clone(&store) as Arc<dyn ObjectStore>, "w", "memory://w", scratch).unwrap();
        let selection = Selection { part, ..Selection::default() };
        let ended = Plan::in_workdir(manifest, &registry(), &selection, workdir)
            .map_err(|error| error.to_string())
            .and_then(|mut plan| {
                run(&mut plan, &options, &EventSink::silent(), &Cancel::default()).map_err(|error| error.to_string())
            });
        match ended {
            Ok(outcome) => {
                assert!(matches!(outcome, RunOutcome::Done | RunOutcome::UpToDate), "{outcome:?}");
                return deaths as u64;
            }
            Err(error) => assert!(store.is_dead.load(Ordering::SeqCst), "{error}"),
        }
    }
    unreachable!("the last life has no end")
}

/// Runs the simulation; returns requests a partition.
fn simulate(partitions: usize, workers: usize) -> f64 {
    let cloud = Arc::new(Cloud::default());
    let scratch = tempfile::tempdir().unwrap();
    let text = format!(
        "[pipeline]\nname = \"s\"\nworkdir = \"unused\"\n[stage.s]\nuses = \"nothing\"\npartitions = {partitions}\n"
    );
    let manifest = Manifest::parse(&text, FilePath::new("simulation.toml"), &[]).unwrap();
    MADE.store(0, Ordering::Relaxed);
    let started = Instant::now();
    let deaths: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers)
            .map(|number| {
                let (cloud, manifest, scratch) = (&cloud, &manifest, scratch.path().join(number.to_string()));
                // A quarter of them die, at moments drawn once for all; a share takes about seven requests a partition.
                let whole = 7 * partitions / workers;
                let lives = [0, 1].map(|life| {
                    let drawn = Digest::of(format!("{number} {life}").as_bytes()).seed();
                    10 + (usize::from(drawn[0]) * whole / 512) as i64
                });
                let dies = number % 8 < 2;
                scope.spawn(move || work(cloud, manifest, &scratch, (number, workers), if dies { &lives } else { &[] }))
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    let seconds = started.elapsed().as_secs_f64();
    let commits = cloud.commits.lock().unwrap();
    assert_eq!(commits.len(), partitions, "every partition is committed");
    assert!(commits.values().all(|times| *times == 1), "and no record is created twice");
    let requests = cloud.requests.load(Ordering::Relaxed) as f64 / partitions as f64;
    let again = MADE.load(Ordering::Relaxed) - partitions as u64;
    eprintln!(
        "{partitions} partitions, {workers} workers, {deaths} deaths: {requests:.2} requests a partition, {again} made in vain, {seconds:.1} s"
    );
    assert!(deaths > 0);
    requests
}

#[test]
fn workers_that_die_lose_nothing_and_make_nothing_twice() {
    simulate(1_000, 8);
}

#[test]
#[ignore = "slow: 200,000 partitions; run by `make soak`"]
fn soak_requests_a_partition_do_not_grow_with_the_partitions() {
    let few = simulate(20_000, 64);
    let many = simulate(200_000, 64);
    assert!(many <= few * 1.05, "{few:.2} requests a partition of 20,000, and {many:.2} of 200,000");
}
