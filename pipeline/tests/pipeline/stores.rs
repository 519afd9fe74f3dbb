//! A workdir on an object store: how many requests it takes, and what happens when answers are lost.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use pipeline::plan::{Plan, Selection};
use pipeline::run::{Options, run};
use pipeline::stage::Cancel;
use shards::event::EventSink;
use shards::storage::Workdir;

use crate::synthetic::{Dag, Kind, contents, drive, registry};

/// Counts requests; may lose the answer of every `n`th conditional put, as a network does, and asks again as clients do; may
/// refuse data.
#[derive(Debug, Default)]
struct Counting {
    inner: InMemory,
    requests: AtomicU64,
    puts: AtomicU64,
    lose_every: u64,
    refuses_data: AtomicBool,
}

impl Counting {
    fn count(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }
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
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.count();
        self.inner.list_with_delimiter(prefix).await
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

fn workdir(store: &Arc<Counting>, scratch: &std::path::Path) -> Workdir {
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
    assert_eq!(shards.count(), 4, "what could not be taken there does not stay here");
    // As another machine sees it.
    std::fs::remove_dir_all(scratch.path().join("stages")).unwrap();
    assert_eq!(files(), before);

    drive(&mut forced());
    std::fs::remove_dir_all(scratch.path().join("stages")).unwrap();
    assert!(files().iter().all(|file| !before.contains(file)));
}
