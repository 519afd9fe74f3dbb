//! A small set of pictures, trainings on it, and what of two of them is the same.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field};
use models::checkpoint::{EMA, MODEL, OPTIMIZER};
use models::weights;
use ranks::World;
use shards::bucket::BucketSize;
use shards::columns;
use shards::event::{Event, EventSink};
use shards::index::{Part, write};
use shards::storage::Workdir;
use shards::writer::ShardWriter;
use tch::Tensor;
use trainer::config::{SampleGrids, TrainConfig, TrainOperations};
use trainer::metrics::Record;
use trainer::{Finished, Job, TrainError, train, train_together};

/// Twenty pictures in each of two buckets, each of a colour that its caption names, and their index.
pub(crate) fn dataset(folder: &Path) -> PathBuf {
    let schema = Arc::new(columns::schema_of_samples(vec![
        Field::new(columns::IMAGE, DataType::Binary, false),
        Field::new(columns::CAPTION, DataType::Utf8, false),
    ]));
    let mut parts = Vec::new();
    for (width, height) in [(16, 8), (8, 8)] {
        let picture = |number: u8| {
            let image = image::RgbImage::from_pixel(width, height, image::Rgb([number * 12, 90, 255 - number * 12]));
            let mut png = Cursor::new(Vec::new());
            image.write_to(&mut png, image::ImageFormat::Png).unwrap();
            png.into_inner()
        };
        let captions = (0..20u8).map(|number| format!("shade {number} in {width}"));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(BinaryArray::from_iter_values((0..20).map(picture))),
            Arc::new(StringArray::from_iter_values(captions)),
        ];
        let shard = format!("{width}.parquet");
        let mut writer = ShardWriter::create(&folder.join(&shard), &schema).unwrap();
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()).unwrap();
        let digest = writer.finish().unwrap().digest;
        parts.push(Part { bucket: BucketSize { width, height }, shard, digest, runs: (0..20).collect() });
    }
    let index = folder.join("index.parquet");
    write(&index, &parts).unwrap();
    index
}

pub(crate) fn config() -> TrainConfig {
    TrainConfig {
        steps: 8,
        batch_size: 8,
        width: 32,
        heads: 2,
        blocks: 3,
        warmup_steps: 2,
        learning_rate: 5e-4,
        ema_decay: 0.9,
        ema_every: 2,
        null_caption: 0.2,
        null_tokens: 0.3,
        null_pooled: 0.1,
        zero_gates: false,
        ..TrainConfig::default()
    }
}

pub(crate) fn operations() -> TrainOperations {
    TrainOperations { log_every: 1, checkpoint_every: 3, device: Some("cpu".to_owned()), ..TrainOperations::default() }
}

/// Sheets of two small pictures, every third update.
pub(crate) fn grids() -> SampleGrids {
    SampleGrids {
        prompts: (0..2).map(|n| format!("shade {n} in 8")).collect(),
        every: 3,
        size: Some("8x4".to_owned()),
        steps: 2,
        guidance: 2.0,
        sampler: sampler::solver::Solver::Euler,
        shift: 1.0,
        seed: 3,
    }
}

pub(crate) struct Case<'a> {
    pub(crate) config: &'a TrainConfig,
    pub(crate) operations: &'a TrainOperations,
    pub(crate) index: &'a Path,
    pub(crate) workdir: Option<&'a Workdir>,
    pub(crate) folder: PathBuf,
    /// The number of updates after which it is to stop.
    pub(crate) stop_after: u64,
    /// Whether it is made again where it is finished.
    pub(crate) again: bool,
}

impl Case<'_> {
    pub(crate) fn job<T>(&self, work: impl FnOnce(&Job) -> T) -> T {
        let asked = AtomicU64::new(0);
        work(&Job {
            config: self.config,
            operations: self.operations,
            index: self.index,
            workdir: self.workdir,
            folder: &self.folder,
            stage: "train",
            events: &EventSink::silent(),
            cancelled: &|| asked.fetch_add(1, Ordering::Relaxed) + 1 >= self.stop_after,
            again: self.again,
        })
    }

    pub(crate) fn alone(&self) -> Finished {
        self.job(train).unwrap()
    }

    /// With so many ranks, each on a thread of this process.
    pub(crate) fn by(&self, size: usize) -> Vec<Result<Option<Finished>, TrainError>> {
        together(&vec![self; size])
    }

    /// Alone, with what is noted on the way.
    pub(crate) fn noted(&self) -> (Finished, String) {
        let notes = Arc::new(Mutex::new(String::new()));
        let said = Arc::clone(&notes);
        let events = EventSink::new(move |event| {
            if let Event::Note { text, .. } = event {
                *said.lock().unwrap() += &(text + "\n");
            }
        });
        let finished = self.job(|job| train(&Job { events: &events, ..*job })).unwrap();
        let notes = notes.lock().unwrap().clone();
        (finished, notes)
    }

    /// What the rank that tells it has to tell.
    pub(crate) fn told_by(&self, size: usize) -> Finished {
        let all: Result<Vec<_>, _> =
            self.by(size).into_iter().enumerate().map(|(rank, told)| told.map_err(|e| (rank, e))).collect();
        let mut told: Vec<Finished> = all.unwrap().into_iter().flatten().collect();
        assert_eq!(told.len(), 1, "one rank tells");
        told.remove(0)
    }
}

/// Ranks on threads of this process, each of which was told what its case says.
pub(crate) fn together(ranks: &[&Case]) -> Vec<Result<Option<Finished>, TrainError>> {
    let master_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let size = ranks.len();
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks
            .iter()
            .enumerate()
            .map(|(rank, case)| {
                let world = World {
                    rank,
                    size,
                    local_rank: rank,
                    local_size: size,
                    master_address: "127.0.0.1".to_owned(),
                    master_port,
                    secret: Some("of this test".to_owned()),
                };
                scope.spawn(move || case.job(|job| train_together(job, &world)))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

pub(crate) fn case<'a>(
    config: &'a TrainConfig,
    operations: &'a TrainOperations,
    index: &'a Path,
    name: &str,
) -> Case<'a> {
    let folder = index.with_file_name(name);
    Case { config, operations, index, workdir: None, folder, stop_after: u64::MAX, again: false }
}

/// Every tensor of a checkpoint, of all its files.
pub(crate) fn tensors(finished: &Finished) -> BTreeMap<String, Tensor> {
    let of_file = |file: &str| {
        let read = weights::read(&finished.checkpoint.folder.join(file)).unwrap();
        let file = file.to_owned();
        read.into_iter().map(move |(name, tensor)| (format!("{file} {name}"), tensor))
    };
    [MODEL, EMA, OPTIMIZER].into_iter().flat_map(of_file).collect()
}

/// The largest difference of weights, averages and moments.
pub(crate) fn difference(one: &Finished, other: &Finished) -> f64 {
    let (one, other) = (tensors(one), tensors(other));
    assert!(one.len() > 100 && one.keys().eq(other.keys()));
    let of = |(name, tensor): (&String, &Tensor)| (tensor - &other[name]).abs().max().double_value(&[]);
    one.iter().map(of).fold(0.0, f64::max)
}

pub(crate) fn losses(finished: &Finished) -> Vec<(u64, f64)> {
    finished.records.iter().map(|Record { step, loss, .. }| (*step, *loss)).collect()
}

pub(crate) fn assert_same(one: &Finished, other: &Finished, what: &str) {
    let difference = difference(one, other);
    assert!(difference < 1e-5, "{what}: {difference}");
    assert_same_losses(one, other, 1e-5, what);
}

pub(crate) fn assert_same_losses(one: &Finished, other: &Finished, tolerance: f64, what: &str) {
    let is_same = |(one, other): (&(u64, f64), &(u64, f64))| one.0 == other.0 && (one.1 - other.1).abs() < tolerance;
    let (one, other) = (losses(one), losses(other));
    assert!(one.len() == other.len() && one.iter().zip(&other).all(is_same), "{what}: {one:?} {other:?}");
}
