//! Reads and decodes batches of a bucket index ahead of need: usable alone, without a model.
//!
//! ```text
//! order of data ─► steps ─► reads (a few rows of one shard each) ─► decoded samples ─► batches, in the order of their steps
//!                  bounded by bytes      on threads of its own
//! ```
//!
//! What a step holds depends on the index, the seed and the batch size, not on how many threads or loaders there are, nor on
//! where a run began: see [`crate::order`]. An image that is damaged, or a shard that cannot be read, is replaced by the next of
//! its bucket and named, or ends the run, as asked for.
//!
//! No thread of the loader touches tensors, so that libtorch's thread pool is used from one thread only: trainings on two cores
//! ran at about 76 images/s when one made tensors too, and at about 110 since (runs at different times; the cause was not
//! isolated).

mod read;
mod step;

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use image::RgbImage;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shards::ShardError;
use shards::bucket::BucketSize;
use shards::columns;
use shards::index::BucketIndex;

use crate::encoded::EncodedSample;
use crate::order::{DataOrder, Part};
use read::Reader;
use step::Step;

/// What a loader gives, and how it goes about it.
#[derive(Clone, Debug)]
pub struct LoaderOptions {
    pub seed: u64,
    /// Samples of a step, of all loaders together.
    pub batch_size: u64,
    pub steps: Range<u64>,
    pub share: Share,
    /// Images that are held out for validation: [`Part::Training`] goes without them.
    pub validation_images: u64,
    /// Of [`Part::Validation`] steps are batches of the images that are held out, each once; the last of a bucket may be small.
    pub part: Part,
    /// Whether what was encoded ahead is read in place of the images.
    pub encoded: bool,
    /// Columns to take captions from, each with its weight: drawn for each sample of each step. Where the one that was drawn
    /// has nothing the next is taken.
    pub captions: Vec<(String, f64)>,
    pub on_bad_image: OnBadImage,
    /// Decoded pixels, or what was encoded ahead, that may wait for the consumer, in bytes. One batch always may.
    pub prefetch_bytes: u64,
    /// Threads that read and decode. Of shards on a store there are [`WAITING`] times as many, for most of them wait for answers.
    pub threads: usize,
    /// Of shards on a store: bytes of them that are kept on this machine's disk, by all processes that load here.
    pub cache_bytes: u64,
    /// So many processes of this machine load.
    pub processes: usize,
    /// After how long a shard that could not be opened is tried again: its store may have been out of reach for a while.
    pub reopen_after: Duration,
}

/// Threads for each that decodes, where what is read comes from a store.
pub const WAITING: usize = 16;

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            batch_size: 256,
            steps: 0..u64::MAX,
            share: Share::default(),
            validation_images: 0,
            part: Part::Training,
            encoded: false,
            captions: vec![(columns::CAPTION.to_owned(), 1.0)],
            on_bad_image: OnBadImage::default(),
            prefetch_bytes: 512 << 20,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            cache_bytes: 16 << 30,
            processes: 1,
            reopen_after: Duration::from_mins(1),
        }
    }
}

/// The part of each batch that one of several loaders gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub rank: u64,
    pub ranks: u64,
}

impl Default for Share {
    fn default() -> Self {
        Self { rank: 0, ranks: 1 }
    }
}

impl Share {
    /// Its samples of a batch.
    fn of(self, batch_size: u64) -> Range<u64> {
        let until = |rank: u64| (u128::from(batch_size) * u128::from(rank) / u128::from(self.ranks.max(1))) as u64;
        until(self.rank)..until(self.rank + 1)
    }
}

/// What becomes of an image that cannot be used: damaged, of another size than its bucket, or in a shard that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBadImage {
    /// The next of its bucket takes its place; it is counted and named.
    #[default]
    Replace,
    /// The run ends with an error that names it.
    Stop,
}

/// One step's samples.
#[derive(Debug)]
pub struct Batch {
    pub step: u64,
    pub epoch: u64,
    pub bucket: BucketSize,
    /// Position of the first sample in the step's batch of all loaders.
    pub first: u64,
    pub samples: Vec<Sample>,
    /// Images that could not be used.
    pub replaced: Vec<BadImage>,
}

/// An image and its caption.
#[derive(Clone, Debug)]
pub struct Sample {
    pub content: Content,
    pub caption: String,
}

/// An image, decoded, or as it was encoded ahead.
#[derive(Clone, Debug)]
pub enum Content {
    Picture(RgbImage),
    Encoded(EncodedSample),
}

impl Content {
    pub fn picture(&self) -> Option<&RgbImage> {
        match self {
            Self::Picture(picture) => Some(picture),
            Self::Encoded(_) => None,
        }
    }

    pub fn encoded(&self) -> Option<&EncodedSample> {
        match self {
            Self::Encoded(sample) => Some(sample),
            Self::Picture(_) => None,
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Picture(picture) => picture.as_raw().len() as u64,
            Self::Encoded(sample) => sample.bytes(),
        }
    }
}

/// An image that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadImage {
    pub shard: PathBuf,
    pub row: u64,
    pub reason: String,
}

impl std::fmt::Display for BadImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "row {} of {}: {}", self.row, self.shard.display(), self.reason)
    }
}

/// Why a loader cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Shard(#[from] ShardError),
    #[error("{index} holds no samples")]
    NoSamples { index: PathBuf },
    #[error("validation_images = {held_out} leaves nothing to train on: {index} holds {images} images")]
    AllHeldOut { index: PathBuf, held_out: u64, images: u64 },
    #[error("the loader has rank {rank} of {ranks}, and batches of {batch_size} samples; each rank needs at least one")]
    Share { rank: u64, ranks: u64, batch_size: u64 },
    #[error("{0} (on_bad_image = \"replace\" would take the next one)")]
    BadImage(BadImage),
    #[error(
        "bucket {bucket} of {index}: {tried} images in a row cannot be used (the last: {last}); look at the stage that made them"
    )]
    NoUsableImage { index: PathBuf, bucket: String, tried: u64, last: BadImage },
    #[error("step {step} ended without a reason; this is a fault in the program")]
    Panicked { step: u64 },
    #[error("the loader's threads cannot be started")]
    Threads(#[source] rayon::ThreadPoolBuildError),
}

/// What a loader has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoaderStatistics {
    pub batches: u64,
    pub images: u64,
    pub replaced: u64,
    /// Bytes asked of files or stores.
    pub bytes_read: u64,
    /// Of all threads together.
    pub reading: Duration,
    pub decoding: Duration,
    /// The consumer's wait for batches.
    pub waiting: Duration,
}

/// What loaders of one process share: the index, the shards that are open, the cache of what lies on a store, and threads.
#[derive(Clone)]
pub struct Source {
    reader: Arc<Reader>,
    pool: Arc<rayon::ThreadPool>,
    options: LoaderOptions,
}

impl Source {
    /// Over an index that was read from `path`. Of `options`, each loader may have its own part, share, steps and bytes to prefetch.
    pub fn over(path: &Path, index: BucketIndex, options: LoaderOptions) -> Result<Self, LoadError> {
        let LoaderOptions { batch_size, validation_images: held_out, .. } = options;
        let rows: Vec<u64> = index.buckets().iter().map(|bucket| bucket.rows).collect();
        let (images, index_path) = (rows.iter().sum(), path.to_owned());
        let order = DataOrder::new(options.seed, rows, held_out, batch_size).ok_or(match images {
            0 => LoadError::NoSamples { index: index_path },
            images => LoadError::AllHeldOut { index: index_path, held_out, images },
        })?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads.max(1) * if index.is_remote() { WAITING } else { 1 })
            .thread_name(|n| format!("loader {n}"))
            // The step's channel closes, and that is reported.
            .panic_handler(|_| {})
            .build()
            .map_err(LoadError::Threads)?;
        Ok(Self { reader: Arc::new(Reader::new(path, index, order, &options)), pool: Arc::new(pool), options })
    }

    pub fn index(&self) -> &BucketIndex {
        &self.reader.index
    }

    /// Begins to load steps for one consumer.
    pub fn load(&self, part: Part, share: Share, mut steps: Range<u64>) -> Result<Loader, LoadError> {
        let (Share { rank, ranks }, batch_size) = (share, self.options.batch_size);
        if rank >= ranks || ranks > batch_size {
            return Err(LoadError::Share { rank, ranks, batch_size });
        }
        if part == Part::Validation {
            steps.end = steps.end.min(self.reader.order.validation_batches());
        }
        let mut loader = Loader {
            source: self.clone(),
            part,
            share,
            next: steps.start,
            end: steps.end,
            stopped: Arc::default(),
            queue: VecDeque::new(),
            waiting_bytes: 0,
            statistics: LoaderStatistics::default(),
        };
        loader.load_ahead();
        Ok(loader)
    }
}

/// Loads the steps that it was asked for, ahead of the consumer. Ends its work when dropped.
pub struct Loader {
    source: Source,
    part: Part,
    share: Share,
    /// Tells its reads that have not begun that nobody waits for them.
    stopped: Arc<AtomicBool>,
    queue: VecDeque<Queued>,
    next: u64,
    end: u64,
    /// Bytes of the samples of the steps in the queue.
    waiting_bytes: u64,
    statistics: LoaderStatistics,
}

/// A step that is being loaded.
struct Queued {
    step: u64,
    bytes: u64,
    batch: Receiver<Result<Batch, LoadError>>,
}

impl Loader {
    /// Begins to load from the bucket index at `path`.
    pub fn start(path: &Path, options: LoaderOptions) -> Result<Self, LoadError> {
        Self::over(path, BucketIndex::read(path)?, options)
    }

    /// Begins to load from an index that was read from `path`.
    pub fn over(path: &Path, index: BucketIndex, options: LoaderOptions) -> Result<Self, LoadError> {
        let (part, share, steps) = (options.part, options.share, options.steps.clone());
        Source::over(path, index, options)?.load(part, share, steps)
    }

    pub fn index(&self) -> &BucketIndex {
        self.source.index()
    }

    /// The next step's batch, or `None` after the last. After an error there are no more.
    pub fn next_batch(&mut self) -> Option<Result<Batch, LoadError>> {
        let queued = self.queue.pop_front()?;
        let since = Instant::now();
        let result = queued.batch.recv().unwrap_or(Err(LoadError::Panicked { step: queued.step }));
        self.statistics.waiting += since.elapsed();
        self.waiting_bytes -= queued.bytes;
        if let Ok(batch) = &result {
            self.statistics.batches += 1;
            self.statistics.images += batch.samples.len() as u64;
            self.statistics.replaced += batch.replaced.len() as u64;
            self.load_ahead();
        } else {
            self.queue.clear();
            self.next = self.end;
        }
        Some(result)
    }

    /// Bytes and times of threads are those of all loaders over the same source.
    pub fn statistics(&self) -> LoaderStatistics {
        let (bytes_read, reading, decoding) = self.source.reader.spent();
        LoaderStatistics { bytes_read, reading, decoding, ..self.statistics }
    }

    /// Bytes of samples that are being loaded or wait.
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// Starts steps for as long as there is room.
    fn load_ahead(&mut self) {
        let Source { reader, pool, options } = &self.source;
        while self.next < self.end {
            // How large a sample is that was encoded ahead shows with the first one.
            let is_unknown = options.encoded && reader.largest_encoded() == 0;
            if is_unknown && !self.queue.is_empty() {
                return;
            }
            let step = Step::plan(reader, self.part, self.next, self.share);
            let bytes = step.bytes(reader);
            if !self.queue.is_empty() && self.waiting_bytes + bytes > options.prefetch_bytes {
                return;
            }
            let batch = step.start(reader, pool, &self.stopped);
            self.queue.push_back(Queued { step: self.next, bytes, batch });
            self.waiting_bytes += bytes;
            self.next += 1;
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}
