//! Trainings: by several ranks, which come to what one would; stopped and gone on with; begun from checkpoints.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::collections::BTreeMap;
use std::io::Cursor;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field};
use models::checkpoint::{EMA, MODEL, OPTIMIZER, folder_name};
use models::weights;
use ranks::World;
use shards::bucket::BucketSize;
use shards::columns;
use shards::event::{Event, EventSink};
use shards::index::{Part, write};
use shards::writer::ShardWriter;
use tch::Tensor;
use trainer::config::{TrainConfig, TrainOperations};
use trainer::metrics::Record;
use trainer::start::Start;
use trainer::{Finished, Job, TrainError, train, train_together};

/// Twenty pictures in each of two buckets, each of a colour that its caption names, and their index.
fn dataset(folder: &Path) -> PathBuf {
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

fn config() -> TrainConfig {
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

fn operations() -> TrainOperations {
    TrainOperations { log_every: 1, checkpoint_every: 3, device: Some("cpu".to_owned()), ..TrainOperations::default() }
}

struct Case<'a> {
    config: &'a TrainConfig,
    operations: &'a TrainOperations,
    index: &'a Path,
    folder: PathBuf,
    /// The number of updates after which it is to stop.
    stop_after: u64,
}

impl Case<'_> {
    fn job<T>(&self, work: impl FnOnce(&Job) -> T) -> T {
        let asked = AtomicU64::new(0);
        work(&Job {
            config: self.config,
            operations: self.operations,
            index: self.index,
            workdir: None,
            folder: &self.folder,
            stage: "train",
            events: &EventSink::silent(),
            cancelled: &|| asked.fetch_add(1, Ordering::Relaxed) + 1 >= self.stop_after,
        })
    }

    fn alone(&self) -> Finished {
        self.job(train).unwrap()
    }

    /// With so many ranks, each on a thread of this process.
    fn by(&self, size: usize) -> Vec<Result<Option<Finished>, TrainError>> {
        let master_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        std::thread::scope(|scope| {
            let rank = |rank| {
                let world = World {
                    rank,
                    size,
                    local_rank: rank,
                    master_address: "127.0.0.1".to_owned(),
                    master_port,
                    secret: Some("of this test".to_owned()),
                };
                scope.spawn(move || self.job(|job| train_together(job, &world)))
            };
            let all: Vec<_> = (0..size).map(rank).collect();
            all.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    /// What the rank that tells it has to tell.
    fn told_by(&self, size: usize) -> Finished {
        let all: Result<Vec<_>, _> =
            self.by(size).into_iter().enumerate().map(|(rank, told)| told.map_err(|e| (rank, e))).collect();
        let mut told: Vec<Finished> = all.unwrap().into_iter().flatten().collect();
        assert_eq!(told.len(), 1, "one rank tells");
        told.remove(0)
    }
}

fn case<'a>(config: &'a TrainConfig, operations: &'a TrainOperations, index: &'a Path, name: &str) -> Case<'a> {
    Case { config, operations, index, folder: index.with_file_name(name), stop_after: u64::MAX }
}

/// Every tensor of a checkpoint, of all its files.
fn tensors(finished: &Finished) -> BTreeMap<String, Tensor> {
    let of_file = |file: &str| {
        let read = weights::read(&finished.checkpoint.folder.join(file)).unwrap();
        let file = file.to_owned();
        read.into_iter().map(move |(name, tensor)| (format!("{file} {name}"), tensor))
    };
    [MODEL, EMA, OPTIMIZER].into_iter().flat_map(of_file).collect()
}

/// The largest difference of weights, averages and moments.
fn difference(one: &Finished, other: &Finished) -> f64 {
    let (one, other) = (tensors(one), tensors(other));
    assert!(one.len() > 100 && one.keys().eq(other.keys()));
    let of = |(name, tensor): (&String, &Tensor)| (tensor - &other[name]).abs().max().double_value(&[]);
    one.iter().map(of).fold(0.0, f64::max)
}

fn losses(finished: &Finished) -> Vec<(u64, f64)> {
    finished.records.iter().map(|Record { step, loss, .. }| (*step, *loss)).collect()
}

fn assert_same(one: &Finished, other: &Finished, what: &str) {
    let difference = difference(one, other);
    assert!(difference < 1e-5, "{what}: {difference}");
    assert_same_losses(one, other, 1e-5, what);
}

fn assert_same_losses(one: &Finished, other: &Finished, tolerance: f64, what: &str) {
    let is_same = |(one, other): (&(u64, f64), &(u64, f64))| one.0 == other.0 && (one.1 - other.1).abs() < tolerance;
    let (one, other) = (losses(one), losses(other));
    assert!(one.len() == other.len() && one.iter().zip(&other).all(is_same), "{what}: {one:?} {other:?}");
}

#[test]
fn any_number_of_ranks_loaders_and_parts_of_a_batch_comes_to_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (index, config, operations) = (dataset(folder.path()), config(), operations());
    let alone = case(&config, &operations, &index, "alone").alone();
    assert_eq!(losses(&alone).len(), 8);
    for size in [1, 2, 4] {
        let told = case(&config, &operations, &index, &format!("{size} ranks")).told_by(size);
        assert_same(&alone, &told, &format!("{size} ranks"));
    }
    let loaders = TrainOperations { models_per_loader: Some(3), ..operations.clone() };
    assert_same(&alone, &case(&config, &loaders, &index, "1 loader").told_by(4), "1 loader, 3 models");
    let named = BTreeMap::from([(3, vec![0, 2]), (1, vec![4])]);
    let loaders = TrainOperations { loaders: Some(named), ..operations.clone() };
    assert_same(&alone, &case(&config, &loaders, &index, "2 loaders").told_by(5), "2 loaders, 3 models");
    // A batch in parts of one and of two samples; what is recomputed comes out the same to the bit.
    for (micro_batch, recompute_blocks) in [(Some(1), 0), (Some(2), 3), (None, 2)] {
        let parts = TrainOperations { micro_batch, recompute_blocks, ..operations.clone() };
        let name = format!("{micro_batch:?} {recompute_blocks}");
        assert_same(&alone, &case(&config, &parts, &index, &name).alone(), &name);
    }
}

#[test]
fn a_training_that_was_stopped_goes_on_to_the_same_bits_alone_and_together() {
    let folder = tempfile::tempdir().unwrap();
    let (index, config, operations) = (dataset(folder.path()), config(), operations());
    let loaders = TrainOperations { models_per_loader: Some(2), ..operations.clone() };
    for (operations, size) in [(&operations, 0), (&operations, 2), (&loaders, 3)] {
        let run = |case: &Case| if size == 0 { case.alone() } else { case.told_by(size) };
        let whole = run(&case(&config, operations, &index, &format!("whole {size}")));
        let mut stopped = case(&config, operations, &index, &format!("stopped {size}"));
        stopped.stop_after = 2;
        let first = run(&stopped);
        assert!(first.interrupted && first.checkpoint.state.step == 2, "{first:?}");
        // Not at a step that has a checkpoint anyway.
        stopped.stop_after = 3;
        assert_eq!(run(&stopped).checkpoint.state.step, 5);
        stopped.stop_after = u64::MAX;
        let last = run(&stopped);
        assert_eq!(difference(&whole, &last), 0.0, "{size} ranks");
        // Those from before the stop were written in decimals.
        assert_same_losses(&whole, &last, 1e-12, "records");
    }
}

#[test]
fn a_training_begins_from_a_checkpoint_with_or_without_its_moments() {
    let folder = tempfile::tempdir().unwrap();
    let (index, config) = (dataset(folder.path()), config());
    let operations = TrainOperations { keep_last: 1, keep_every: 3, gradient_histograms: true, ..operations() };
    let whole = case(&config, &operations, &index, "whole").alone();
    let left: Vec<bool> =
        [3, 6, 8].iter().map(|step| index.with_file_name("whole").join(folder_name(*step)).exists()).collect();
    assert_eq!(left, [true, true, true], "every third, and the last");

    let from = index.with_file_name("whole").join(folder_name(3));
    let start = |optimizer| Some(Start { folder: from.clone(), average: false, optimizer });
    let going_on = TrainConfig { start: start(true), ..config.clone() };
    assert_eq!(difference(&whole, &case(&going_on, &operations, &index, "going on").alone()), 0.0);

    // A fine-tuning begins its schedule, moments and data anew, with positions for larger pictures.
    let fine = TrainConfig { start: start(false), position_scale: 0.5, steps: 2, ..config.clone() };
    let fine_case = case(&fine, &operations, &index, "fine");
    let notes = Arc::new(Mutex::new(String::new()));
    let said = Arc::clone(&notes);
    let events = EventSink::new(move |event| {
        if let Event::Note { text, .. } = event {
            *said.lock().unwrap() += &text;
        }
    });
    let tuned = fine_case.job(|job| train(&Job { events: &events, ..*job })).unwrap();
    assert_eq!(losses(&tuned).iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1, 2]);
    let words = notes.lock().unwrap();
    assert!(words.contains("position_scale 1.0 → 0.5") && words.contains("steps 8 → 2"), "{words}");
    // Once begun, it goes on from its own checkpoints.
    assert_eq!(difference(&tuned, &fine_case.alone()), 0.0);

    let wider = TrainConfig { start: start(false), width: 64, ..config };
    let error = case(&wider, &operations, &index, "wider").job(train).unwrap_err().to_string();
    assert!(error.contains("width 32 → 64"), "{error}");
}

#[test]
fn roles_that_do_not_fit_and_a_rank_that_fails_are_errors_on_all_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let (index, config, operations) = (dataset(folder.path()), config(), operations());
    let named = BTreeMap::from([(0, vec![1, 7])]);
    let loaders = TrainOperations { loaders: Some(named), ..operations.clone() };
    for error in case(&config, &loaders, &index, "roles").by(2) {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("rank 7") && error.contains("models_per_loader"), "{error}");
    }
    // The first rank finds a checkpoint of another configuration.
    case(&TrainConfig { seed: 9, ..config.clone() }, &operations, &index, "failing").alone();
    let errors: Vec<String> = case(&config, &operations, &index, "failing")
        .by(3)
        .into_iter()
        .map(|error| error.unwrap_err().to_string())
        .collect();
    assert!(errors[0].contains("seed 9 → 0"), "{errors:?}");
    for error in &errors[1..] {
        assert!(error.contains("rank 0 is lost: it failed") && error.contains("seed 9 → 0"), "{error}");
    }
}

#[test]
fn a_model_in_bfloat16_learns_and_keeps_its_weights_in_float32() {
    let folder = tempfile::tempdir().unwrap();
    let index = dataset(folder.path());
    let config = TrainConfig {
        precision: trainer::config::Precision::Bfloat16,
        text_loss_weight: 0.1,
        merge_keys: true,
        time_sampling: trainer::config::TimeSampling::Mode,
        time_shift_side: 16,
        ..config()
    };
    let operations = TrainOperations { recompute_blocks: 1, ..operations() };
    let half = case(&config, &operations, &index, "half").alone();
    let float = TrainConfig { precision: trainer::config::Precision::Float32, ..config.clone() };
    let whole = case(&float, &operations, &index, "float").alone();
    for (one, other) in losses(&half).iter().zip(losses(&whole)) {
        assert!((one.1 - other.1).abs() < 0.02 * other.1, "{one:?} {other:?}");
    }
    assert!(tensors(&half).values().all(|tensor| tensor.kind() == tch::Kind::Float));
    let moved = difference(&half, &whole);
    assert!(moved > 0.0 && moved < 0.05, "{moved}");
}
