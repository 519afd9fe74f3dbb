//! One step: its samples planned, read in parts, and put together when the last part is there.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use shards::bucket::BucketSize;
use shards::index::Locator;

use super::read::{Reader, Wanted};
use super::{BadImage, Batch, LoadError, OnBadImage, Sample, Share};
use crate::order::{Part, StepSamples};

/// Samples that one thread reads and decodes in one go: few, so that all threads work on the batch that is due.
const ROWS_PER_READ: usize = 8;
/// As many bad images in a row are no bad luck: a disk is gone, or a stage went wrong.
const MOST_BAD_IN_A_ROW: u64 = 1000;

/// A step before it is started.
pub(super) struct Step {
    number: u64,
    plan: StepSamples,
    bucket: BucketSize,
    /// Its own samples of the batch.
    share: Range<u64>,
}

/// A step that is being loaded.
struct Pending {
    step: Step,
    samples: Mutex<Vec<Option<Result<Sample, BadImage>>>>,
    /// Reads that have not ended.
    left: AtomicUsize,
    /// Whether its loader was dropped.
    stopped: Arc<AtomicBool>,
    done: SyncSender<Result<Batch, LoadError>>,
}

impl Step {
    /// Step `number` of the training, or batch `number` of what is held out.
    pub(super) fn plan(reader: &Reader, part: Part, number: u64, share: Share) -> Self {
        let plan = match part {
            Part::Training => Some(reader.order.samples(number)),
            Part::Validation => reader.order.validation(number),
        };
        let nothing = || StepSamples { part, epoch: 0, bucket: usize::MAX, samples: Vec::new(), place: 0 };
        let plan = plan.unwrap_or_else(nothing);
        let share = share.of(plan.samples.len() as u64);
        let bucket = reader.index.buckets().get(plan.bucket).map(|bucket| bucket.size);
        let bucket = bucket.unwrap_or(BucketSize { width: 0, height: 0 });
        Self { number, plan, bucket, share }
    }

    /// Bytes that its samples will take: of decoded pixels; or of as many as the largest sample so far that was encoded ahead.
    pub(super) fn bytes(&self, reader: &Reader) -> u64 {
        let pixels = u64::from(self.bucket.width) * u64::from(self.bucket.height);
        (3 * pixels).max(reader.largest_encoded()) * (self.share.end - self.share.start)
    }

    /// Has it loaded by `pool`.
    pub(super) fn start(
        self,
        reader: &Arc<Reader>,
        pool: &rayon::ThreadPool,
        stopped: &Arc<AtomicBool>,
    ) -> Receiver<Result<Batch, LoadError>> {
        let (done, batch) = sync_channel(1);
        let numbers = self.plan.samples.get(self.share.start as usize..self.share.end as usize).unwrap_or_default();
        let mut by_shard: BTreeMap<usize, Vec<(u64, usize)>> = BTreeMap::new();
        for (slot, &number) in numbers.iter().enumerate() {
            if let Some(Locator { shard, row }) = self.locate(reader, number) {
                by_shard.entry(shard).or_default().push((row, slot));
            }
        }
        let mut reads: Vec<(usize, Vec<(u64, usize)>)> = Vec::new();
        for (shard, mut rows) in by_shard {
            rows.sort_unstable();
            reads.extend(rows.chunks(ROWS_PER_READ).map(|rows| (shard, rows.to_vec())));
        }
        let samples = Mutex::new(numbers.iter().map(|_| None).collect());
        let (left, stopped) = (AtomicUsize::new(reads.len()), Arc::clone(stopped));
        let pending = Arc::new(Pending { samples, left, stopped, step: self, done });
        // A small batch of what is held out may have nothing for this rank.
        if reads.is_empty() {
            let _ = pending.done.send(pending.complete(reader));
        }
        for (shard, rows) in reads {
            let (reader, pending) = (Arc::clone(reader), Arc::clone(&pending));
            pool.spawn_fifo(move || pending.read(&reader, shard, &rows));
        }
        batch
    }

    /// Where a sample of its bucket lies.
    fn locate(&self, reader: &Reader, number: u64) -> Option<Locator> {
        reader.index.buckets().get(self.plan.bucket)?.locate(number)
    }

    fn wanted(&self, row: u64, slot: usize) -> Wanted {
        Wanted { row, step: self.number, position: self.share.start + slot as u64 }
    }
}

impl Pending {
    /// Reads rows (ascending; a small bucket's may come twice) into their slots; the last read completes the batch.
    fn read(&self, reader: &Reader, shard: usize, rows: &[(u64, usize)]) {
        if self.stopped.load(Ordering::Relaxed) {
            return;
        }
        let mut wanted: Vec<Wanted> = Vec::with_capacity(rows.len());
        let mut repeats = Vec::new();
        for &(row, slot) in rows {
            if wanted.last().is_some_and(|last| last.row == row) {
                repeats.push((row, slot));
            } else {
                wanted.push(self.step.wanted(row, slot));
            }
        }
        let size = self.step.bucket;
        let mut found = reader.samples(shard, size, &wanted);
        for &(row, slot) in &repeats {
            wanted.push(self.step.wanted(row, slot));
            found.extend(reader.samples(shard, size, &[self.step.wanted(row, slot)]));
        }
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        for (of, sample) in wanted.into_iter().zip(found) {
            if let Some(place) = samples.get_mut((of.position - self.step.share.start) as usize) {
                *place = Some(sample);
            }
        }
        drop(samples);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Nobody waits any more when the loader was dropped.
            let _ = self.done.send(self.complete(reader));
        }
    }

    fn complete(&self, reader: &Reader) -> Result<Batch, LoadError> {
        let found = std::mem::take(&mut *self.samples.lock().unwrap_or_else(PoisonError::into_inner));
        let (mut samples, mut replaced) = (Vec::with_capacity(found.len()), Vec::new());
        for (slot, sample) in found.into_iter().enumerate() {
            match sample.ok_or(LoadError::Panicked { step: self.step.number })? {
                Ok(sample) => samples.push(sample),
                Err(bad) if reader.on_bad_image == OnBadImage::Stop => return Err(LoadError::BadImage(bad)),
                Err(bad) => {
                    samples.push(self.replacement(reader, slot, &bad)?);
                    replaced.push(bad);
                }
            }
        }
        let Step { number, plan, bucket, share } = &self.step;
        Ok(Batch { step: *number, epoch: plan.epoch, bucket: *bucket, first: share.start, samples, replaced })
    }

    /// The next of the bucket's stream that can be used. The next in the stream, not in the shard: a shard that is gone is one
    /// of many, and its images are not all replaced by one neighbour.
    fn replacement(&self, reader: &Reader, slot: usize, bad: &BadImage) -> Result<Sample, LoadError> {
        let Step { plan, bucket, share, .. } = &self.step;
        let place = plan.place + share.start + slot as u64;
        let rows = reader.order.rows_of(plan.part, plan.bucket);
        let mut last = bad.clone();
        // Twice the bucket holds a whole pass, wherever it begins.
        for further in 1..rows.saturating_mul(2).min(MOST_BAD_IN_A_ROW) {
            let number = reader.order.sample_at(plan.part, plan.bucket, place + further);
            let Some(Locator { shard, row }) = self.step.locate(reader, number) else { break };
            match reader.samples(shard, *bucket, &[self.step.wanted(row, slot)]).pop() {
                Some(Ok(sample)) => return Ok(sample),
                Some(Err(bad)) => last = bad,
                None => {}
            }
        }
        let (index, tried) = (reader.path.clone(), rows.min(MOST_BAD_IN_A_ROW));
        Err(LoadError::NoUsableImage { index, bucket: bucket.to_string(), tried, last })
    }
}
