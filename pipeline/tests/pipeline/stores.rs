//! A workdir on an object store: how many requests it takes, which copies stay here, and what happens when answers are lost.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use pipeline::explain::{Verdict, explain};
use pipeline::manifest::Manifest;
use pipeline::plan::{Plan, Selection};
use pipeline::run::{Options, run};
use pipeline::stage::Cancel;
use pipeline::verify::verify;
use shards::event::{Event, EventSink, RunOutcome};
use shards::lease::{Claim, Claimed, Runner};
use shards::storage::Workdir;

use crate::synthetic::{Dag, Kind, contents, drive, registry};

/// Counts requests; may lose the answer of every `n`th conditional put, as a network does, and asks again as clients do; may
/// refuse data; and may have a clock of its own.
#[derive(Debug, Default)]
pub(crate) struct Counting {
    inner: InMemory,
    requests: AtomicU64,
    puts: AtomicU64,
    lose_every: u64,
    refuses_data: AtomicBool,
    /// By how much its clock is behind this machine's.
    is_behind: Duration,
}

impl Counting {
    /// One whose clock is behind by so much.
    pub(crate) fn behind(is_behind: Duration) -> Self {
        Self { is_behind, ..Self::default() }
    }

    fn count(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Its requests since it was asked last.
    fn requests_now(&self) -> u64 {
        self.requests.swap(0, Ordering::Relaxed)
    }
}

/// An entry as a store shows it whose clock is behind by so much.
fn aged(entry: ObjectMeta, is_behind: Duration) -> ObjectMeta {
    ObjectMeta { last_modified: entry.last_modified - is_behind, ..entry }
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("counting")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Counting {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.count();
        if self.refuses_data.load(Ordering::Relaxed) && location.extension() == Some("parquet") {
            return Err(Error::Generic { store: "counting", source: "no room".into() });
        }
        let lost = options.mode == PutMode::Create
            && self.lose_every > 0
            && self.puts.fetch_add(1, Ordering::Relaxed).is_multiple_of(self.lose_every);
        if lost {
            let _ = self.inner.put_opts(location, payload.clone(), options.clone()).await;
        }
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.count();
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.count();
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<bytes::Bytes>> {
        self.count();
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.count();
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.count();
        let is_behind = self.is_behind;
        self.inner.list(prefix).map(move |entry| entry.map(|entry| aged(entry, is_behind))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.count();
        let mut listed = self.inner.list_with_delimiter(prefix).await?;
        listed.objects = listed.objects.into_iter().map(|entry| aged(entry, self.is_behind)).collect();
        Ok(listed)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.count();
        self.inner.copy_opts(from, to, options).await
    }
}

fn dag(partitions: u64) -> Dag {
    Dag(vec![
        Kind::Numbers { partitions, rows: 2, start: 0 },
        Kind::Map { from: vec![0], add: 1, drop: 0 },
        Kind::Sum { from: vec![1] },
    ])
}

pub(crate) fn workdir(store: &Arc<Counting>, scratch: &std::path::Path) -> Workdir {
    Workdir::on_store(Arc::clone(store) as Arc<dyn ObjectStore>, "work", "memory://work", scratch).unwrap()
}

#[test]
fn requests_follow_what_is_made_and_not_what_is_there() {
    let scratch = tempfile::tempdir().unwrap();
    let mut per_partition = Vec::new();
    for partitions in [10, 40] {
        let store = Arc::new(Counting::default());
        let workdir = workdir(&store, &scratch.path().join(partitions.to_string()));
        drive(&mut dag(partitions).plan_in(&workdir, 0));
        per_partition.push(store.requests.swap(0, Ordering::Relaxed) as f64 / (2 * partitions + 1) as f64);
        let mut plan = dag(partitions).plan_in(&workdir, 0);
        assert!(plan.is_up_to_date());
        let to_plan = store.requests.swap(0, Ordering::Relaxed);
        assert!(to_plan <= 10, "{to_plan} requests to see that {partitions} partitions are there");
        drive(&mut plan);
        let to_do_nothing = store.requests.load(Ordering::Relaxed);
        assert!(to_do_nothing <= 24, "{to_do_nothing} requests to do nothing");
    }
    println!("requests a partition: {per_partition:?}");
    assert!(per_partition[1] <= per_partition[0] && per_partition[1] < 8.0, "{per_partition:?}");
}

#[test]
fn a_commit_whose_answer_was_lost_is_still_a_commit() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Arc::new(Counting { lose_every: 3, ..Counting::default() });
    let workdir = workdir(&store, scratch.path());
    drive(&mut dag(8).plan_in(&workdir, 0));
    // Copies of this machine are only copies.
    std::fs::remove_dir_all(scratch.path().join("stages")).unwrap();
    let plan = dag(8).plan_in(&workdir, 0);
    assert!(plan.is_up_to_date());
    assert_eq!(contents(&plan), dag(8).expected());
}

#[test]
fn what_is_made_again_is_there_until_its_new_data_is() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Arc::new(Counting::default());
    let workdir = workdir(&store, scratch.path());
    drive(&mut dag(4).plan_in(&workdir, 0));
    let forced = || {
        let force = Selection { stages: vec!["s1".to_owned()], force: true, ..Selection::default() };
        let manifest = dag(4).manifest(std::path::Path::new("unused"), 0);
        Plan::in_workdir(&manifest, &registry(), &force, workdir.clone()).unwrap()
    };
    let files = || -> Vec<String> {
        let plan = dag(4).plan_in(&workdir, 0);
        assert!(plan.is_up_to_date());
        assert_eq!(contents(&plan), dag(4).expected());
        plan.stage("s1").unwrap().committed().map(|sidecar| sidecar.data[0].file.clone()).collect()
    };
    let before = files();

    store.refuses_data.store(true, Ordering::Relaxed);
    let options = Options { cores: 2, keep_going: true, ..Options::default() };
    run(&mut forced(), &options, &EventSink::silent(), &Cancel::default()).unwrap_err();
    store.refuses_data.store(false, Ordering::Relaxed);
    let shards = std::fs::read_dir(scratch.path().join("stages/s1")).unwrap();
    let shards = shards.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|e| e == "parquet"));
    assert_eq!(shards.count(), 0, "what could not be taken there does not stay here, nor copies of what is made again");
    // As another machine sees it.
    std::fs::remove_dir_all(scratch.path().join("stages")).unwrap();
    assert_eq!(files(), before);

    drive(&mut forced());
    std::fs::remove_dir_all(scratch.path().join("stages")).unwrap();
    assert!(files().iter().all(|file| !before.contains(file)));
}

#[test]
fn looking_into_what_is_committed_leaves_no_copies_of_it_here() {
    let scratch = tempfile::tempdir().unwrap();
    let workdir = workdir(&Arc::new(Counting::default()), scratch.path());
    drive(&mut dag(4).plan_in(&workdir, 0));
    let plan = dag(4).plan_in(&workdir, 0);
    let here = Workdir::local(scratch.path());
    let copies = || -> Vec<String> {
        let names = here.list("stages", true).unwrap().into_iter().map(|entry| entry.name);
        names.filter(|name| name.ends_with(".parquet")).collect()
    };
    assert_eq!(contents(&plan), dag(4).expected());
    assert_eq!(copies().len(), 9, "of each partition one, where they are fetched and not let go");

    let verified = verify(&plan, &Cancel::default(), |_| ()).unwrap();
    assert_eq!((verified.findings, verified.files), (Vec::new(), 9));
    assert_eq!(copies(), Vec::<String>::new());
    for (key, is_kept) in [("nobody", false), ("n/000003", true)] {
        let story = explain(&plan, key, &Cancel::default()).unwrap();
        assert_eq!(story.len(), 3);
        for chapter in &story[..2] {
            assert_eq!(matches!(chapter.verdict, Verdict::Kept { .. }), is_kept, "{key}: {chapter:?}");
        }
        assert_eq!(story[2].verdict, Verdict::Absent, "a sum has a key of its own");
        assert_eq!(copies(), Vec::<String>::new(), "{key}");
    }
}

/// The shards of a stage that lie in a scratch folder.
fn copies(scratch: &std::path::Path, stage: &str) -> usize {
    let entries = std::fs::read_dir(scratch.join("stages").join(stage)).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "parquet")).count()
}

#[test]
fn a_stage_that_is_ahead_of_its_readers_does_not_fill_the_disk() {
    let scratch = tempfile::tempdir().unwrap();
    let workdir = workdir(&Arc::new(Counting::default()), scratch.path());
    let whole = |add| {
        Dag(vec![
            Kind::Numbers { partitions: 200, rows: 2, start: 0 },
            Kind::Map { from: vec![0], add, drop: 0 },
            Kind::Sum { from: vec![1] },
        ])
    };
    // The first stage makes eight partitions at a time; the second is slow. Returns the most copies of either, before the sum reads all.
    let made = |add, wait| {
        let text = whole(add).toml(std::path::Path::new("unused"), wait);
        let fast = ["stage.s0.at_once=8".to_owned()];
        let manifest = Manifest::parse(&text, std::path::Path::new("test.toml"), &fast).unwrap();
        let mut plan = Plan::in_workdir(&manifest, &registry(), &Selection::default(), workdir.clone()).unwrap();
        let (most, folder) = (Arc::new(AtomicUsize::new(0)), scratch.path().to_owned());
        let sink = EventSink::new({
            let most = Arc::clone(&most);
            move |event| {
                if matches!(&event, Event::PartitionCommitted { stage, .. } if stage != "s2") {
                    most.fetch_max(copies(&folder, "s0").max(copies(&folder, "s1")), Ordering::Relaxed);
                }
            }
        });
        let options = Options { cores: 1, ..Options::default() };
        assert_eq!(run(&mut plan, &options, &sink, &Cancel::default()).unwrap(), RunOutcome::Done);
        most.load(Ordering::Relaxed)
    };
    let none = || ["s0", "s1", "s2"].iter().all(|stage| copies(scratch.path(), stage) == 0);
    // Two for each of four cores wait; the others are under way, most of them at their commits.
    let most = made(1, 10);
    assert!(most <= 8 + 8 + 32 + 4, "{most} copies at a time");
    assert!(none(), "nobody reads them any more");

    // What an earlier process left here goes when a run starts, but for what it would have kept itself.
    let plan = whole(1).plan_in(&workdir, 0);
    assert_eq!(contents(&plan), whole(1).expected());
    assert_eq!(copies(scratch.path(), "s0"), 200);
    let most = made(2, 0);
    assert!(most <= 8 + 32 + 4, "{most} copies at a time");
    assert!(none(), "nor those of an earlier configuration");
    let plan = whole(2).plan_in(&workdir, 0);
    assert_eq!(contents(&plan), whole(2).expected());
    drive(&mut whole(2).plan_in(&workdir, 0));
    assert!(none());
}

#[test]
fn what_another_run_holds_is_not_asked_for_at_every_look() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Arc::new(Counting::default());
    let workdir = workdir(&store, scratch.path());
    let dag = Dag(vec![Kind::Numbers { partitions: 50, rows: 2, start: 0 }]);
    let plan = dag.plan_in(&workdir, 0);
    let stage = plan.stage("s0").unwrap();
    let holder = Runner::join(&workdir).unwrap();
    let claim = |number: usize| -> Claimed {
        let made = plan.made_from(stage, Some(number)).unwrap();
        let fingerprint = stage.fingerprint(&made.digests);
        match holder.claim(&stage.folder, &stage.partitions[number].name, &fingerprint).unwrap() {
            Claim::Ours(claimed) => claimed,
            Claim::Theirs(other) => panic!("{other} holds it"),
        }
    };
    let claims: Vec<Claimed> = (0..50).map(claim).collect();
    let (requests, ran) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| drive(&mut dag.plan_in(&workdir, 0)));
        std::thread::sleep(Duration::from_millis(500));
        store.requests_now();
        // A little longer than the time between two looks.
        let count = |_| {
            std::thread::sleep(Duration::from_millis(1300));
            store.requests_now()
        };
        let requests: Vec<u64> = (0..5).map(count).collect();
        // Those that it holds are had at once when it has left, whenever they were to be tried again.
        drop(claims);
        drop(holder);
        (requests, waiting.join().unwrap())
    });
    // A look itself is two listings. A try takes four requests a partition.
    let quiet = requests.iter().filter(|requests| **requests < 20).count();
    assert!(quiet >= 2, "requests in every 1.3 s: {requests:?}");
    assert_eq!(ran.started.len(), 50);
    assert!(dag.plan_in(&workdir, 0).is_up_to_date());
}
