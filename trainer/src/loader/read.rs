//! Samples of the index by number: read, checked and decoded.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use models::random::Stream;
use shards::bucket::BucketSize;
use shards::columns;
use shards::index::BucketIndex;
use shards::range_cache::RangeCache;
use shards::rows::RowReader;

use super::{BadImage, Content, LoaderOptions, OnBadImage, Sample};
use crate::encoded::EncodedSample;
use crate::order::DataOrder;

/// What the threads of all loaders over it share.
pub(super) struct Reader {
    pub(super) path: PathBuf,
    pub(super) index: BucketIndex,
    pub(super) order: DataOrder,
    pub(super) on_bad_image: OnBadImage,
    seed: u64,
    captions: Vec<(String, f64)>,
    /// The column that holds images, or what was encoded of them.
    payload: &'static str,
    /// Bytes of the largest sample so far that was encoded ahead.
    largest_encoded: AtomicU64,
    /// Opened when first needed.
    shards: Vec<Opened>,
    reopen_after: Duration,
    cache: Option<Arc<RangeCache>>,
    bytes_read: AtomicU64,
    /// Nanoseconds.
    reading: AtomicU64,
    decoding: AtomicU64,
}

/// A shard, once it is open.
#[derive(Default)]
struct Opened {
    reader: OnceLock<RowReader>,
    /// When it last could not be opened, and why.
    failed: Mutex<Option<(Instant, String)>>,
}

/// Where a sample of a step lies, and which it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) row: u64,
    pub(super) step: u64,
    /// Position in the step's batch of all loaders.
    pub(super) position: u64,
}

impl Reader {
    pub(super) fn new(path: &Path, index: BucketIndex, order: DataOrder, options: &LoaderOptions) -> Self {
        Self {
            path: path.to_owned(),
            shards: index.shards().iter().map(|_| Opened::default()).collect(),
            reopen_after: options.reopen_after,
            cache: index.range_cache(options.cache_bytes, options.processes),
            index,
            order,
            on_bad_image: options.on_bad_image,
            seed: options.seed,
            captions: options.captions.clone(),
            payload: if options.encoded { columns::ENCODED } else { columns::IMAGE },
            largest_encoded: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            reading: AtomicU64::new(0),
            decoding: AtomicU64::new(0),
        }
    }

    pub(super) fn largest_encoded(&self) -> u64 {
        self.largest_encoded.load(Ordering::Relaxed)
    }

    /// Bytes read, and the time of all threads for reading and for decoding.
    pub(super) fn spent(&self) -> (u64, Duration, Duration) {
        let of = |time: &AtomicU64| Duration::from_nanos(time.load(Ordering::Relaxed));
        (self.bytes_read.load(Ordering::Relaxed), of(&self.reading), of(&self.decoding))
    }

    /// The samples at some rows (ascending, without repeats) of one shard, all of one bucket.
    pub(super) fn samples(&self, shard: usize, size: BucketSize, wanted: &[Wanted]) -> Vec<Result<Sample, BadImage>> {
        // What is damaged may be so in a way that its decoder has not thought of.
        let found = catch_unwind(AssertUnwindSafe(|| self.try_samples(shard, size, wanted)))
            .unwrap_or_else(|_| Err("its decoder failed; it is damaged".to_owned()));
        let path = self.index.shards().get(shard).cloned().unwrap_or_default();
        let bad = |row, reason| BadImage { shard: path.clone(), row, reason };
        match found {
            Ok(samples) => {
                samples.into_iter().zip(wanted).map(|(sample, of)| sample.map_err(|why| bad(of.row, why))).collect()
            }
            // One bad page must not take the others along.
            Err(_) if wanted.len() > 1 => {
                wanted.iter().flat_map(|of| self.samples(shard, size, std::slice::from_ref(of))).collect()
            }
            Err(why) => wanted.iter().map(|of| Err(bad(of.row, why.clone()))).collect(),
        }
    }

    fn try_samples(
        &self,
        shard: usize,
        size: BucketSize,
        wanted: &[Wanted],
    ) -> Result<Vec<Result<Sample, String>>, String> {
        let since = Instant::now();
        let reader = self.shard(shard)?;
        let rows: Vec<u64> = wanted.iter().map(|of| of.row).collect();
        let (pages, ranges) = reader.wanted(&rows).map_err(in_words)?;
        let bytes = reader.fetch(&ranges).map_err(in_words)?;
        self.bytes_read.fetch_add(bytes.iter().map(|bytes| bytes.len() as u64).sum(), Ordering::Relaxed);
        let batch = reader.decode(&pages, bytes).map_err(in_words)?;
        let whole = reader.are_whole(&batch).map_err(in_words)?;
        let payloads = column(&batch, self.payload, &DataType::Binary)?;
        let payloads = payloads.as_binary::<i32>();
        let captions = self.captions.iter().map(|(name, _)| column(&batch, name, &DataType::Utf8));
        let captions = captions.collect::<Result<Vec<_>, _>>()?;
        let decoding = Instant::now();
        self.reading.fetch_add((decoding - since).as_nanos() as u64, Ordering::Relaxed);
        let samples = wanted.iter().enumerate().map(|(i, of)| {
            if !whole.get(i).is_some_and(|whole| *whole) {
                return Err("its checksum is not that of what was written; the shard is damaged".to_owned());
            }
            if payloads.is_null(i) {
                return Err(format!("it has no {}", self.payload));
            }
            let texts: Vec<Option<&str>> = captions
                .iter()
                .map(AsArray::as_string::<i32>)
                .map(|texts| texts.is_valid(i).then(|| texts.value(i)))
                .collect();
            let (column, caption) = self.choose(&texts, of);
            let content = self.content(payloads.value(i), column, size)?;
            Ok(Sample { content, caption: caption.to_owned() })
        });
        let samples = samples.collect();
        self.decoding.fetch_add(decoding.elapsed().as_nanos() as u64, Ordering::Relaxed);
        Ok(samples)
    }

    /// What a payload holds; `column` is that of the caption, `None` for an empty one.
    fn content(&self, payload: &[u8], column: Option<&str>, size: BucketSize) -> Result<Content, String> {
        if self.payload == columns::IMAGE {
            return decode(payload, size).map(Content::Picture);
        }
        let sample = EncodedSample::read(payload, column, (size.width, size.height))?;
        self.largest_encoded.fetch_max(sample.bytes(), Ordering::Relaxed);
        Ok(Content::Encoded(sample))
    }

    /// The caption that is drawn for a sample of a step, and its column; none where all are empty.
    fn choose<'a>(&self, texts: &[Option<&'a str>], of: &Wanted) -> (Option<&str>, &'a str) {
        let drawn = if texts.len() > 1 {
            let sum: f64 = self.captions.iter().map(|(_, weight)| weight).sum();
            // A purpose of its own: whether a caption is dropped must not depend on which column it is of.
            let mut left = Stream::new(self.seed, "caption column", &[of.step, of.position]).uniform() * sum;
            self.captions.iter().position(|(_, weight)| {
                left -= weight;
                left < 0.0
            })
        } else {
            None
        };
        let from = drawn.unwrap_or(0);
        let columns = self.captions.iter().map(|(column, _)| column.as_str());
        let all: Vec<(&str, &'a str)> = columns.zip(texts).map(|(column, text)| (column, text.unwrap_or(""))).collect();
        let mut in_turn = all.iter().skip(from).chain(all.iter().take(from));
        in_turn.find(|(_, text)| !text.is_empty()).map_or((None, ""), |(column, text)| (Some(column), text))
    }

    fn shard(&self, number: usize) -> Result<&RowReader, String> {
        let place = self.shards.get(number).ok_or("the index points past its shards")?;
        if let Some(reader) = place.reader.get() {
            return Ok(reader);
        }
        // One thread opens it, for all.
        let mut failed = place.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = place.reader.get() {
            return Ok(reader);
        }
        if let Some((when, why)) = failed.as_ref()
            && when.elapsed() < self.reopen_after
        {
            return Err(why.clone());
        }
        let mut columns = vec![self.payload];
        columns.extend(self.captions.iter().map(|(name, _)| name.as_str()));
        match self.index.open(number, &columns, self.cache.as_ref()) {
            Ok(reader) => Ok(place.reader.get_or_init(|| reader)),
            Err(error) => {
                let why = in_words(error);
                *failed = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }
}

/// An error and what it came from, in one line.
fn in_words(error: impl std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    words
}

fn column(batch: &RecordBatch, name: &str, as_type: &DataType) -> Result<arrow::array::ArrayRef, String> {
    let column = batch.column_by_name(name).ok_or_else(|| format!("it has no column {name}"))?;
    cast(column, as_type).map_err(|error| format!("column {name}: {error}"))
}

fn decode(bytes: &[u8], size: BucketSize) -> Result<image::RgbImage, String> {
    let image = picture::decode(bytes, u64::from(size.width) * u64::from(size.height));
    let image = image.map_err(|error| error.to_string())?;
    if image.dimensions() != (size.width, size.height) {
        return Err(format!("it is {}x{}, not {size}", image.width(), image.height()));
    }
    Ok(image)
}
