//! Where a rank that holds the model gets its batches from.

use std::time::{Duration, Instant};

use shards::index::BucketIndex;
use tch::Device;

use crate::TrainError;
use crate::config::{Encode, TrainOperations};
use crate::encode::{EncodedBatch, Encoder};
use crate::loader::{BadImage, Batch, LoadError, Loader, LoaderOptions, Share};
use crate::order::Part;
use crate::train::Job;

/// A rank's part of a step.
#[derive(Debug)]
pub struct Fed {
    pub batch: EncodedBatch,
    /// Images that could not be used, and were replaced.
    pub replaced: Vec<BadImage>,
    /// How long it was waited for.
    pub waited: Duration,
}

/// Gives the parts of all steps, in order.
pub trait Feed {
    /// This rank's parts of the images that are held out, where there are any. Asked once, before the first step.
    fn validation(&mut self) -> Result<Vec<Fed>, TrainError>;

    fn next(&mut self) -> Result<Fed, TrainError>;
}

/// Loads and encodes in the process that trains.
pub struct OwnFeed<'a> {
    job: &'a Job<'a>,
    share: Share,
    loader: Loader,
    encoder: Encoder,
}

impl<'a> OwnFeed<'a> {
    /// One rank's share of the job's steps, from `start` on.
    pub(crate) fn open(job: &'a Job<'a>, start: u64, share: Share, device: Device) -> Result<Self, TrainError> {
        let loader = load(job, start, share, 1)?;
        Ok(Self { job, share, loader, encoder: Encoder::new(job.config, device)? })
    }
}

impl Feed for OwnFeed<'_> {
    fn validation(&mut self) -> Result<Vec<Fed>, TrainError> {
        held_out(self.job, self.share, &self.encoder)
    }

    fn next(&mut self) -> Result<Fed, TrainError> {
        let since = Instant::now();
        let batch = self.loader.next_batch().ok_or(TrainError::LoaderGone)?;
        fed(batch, &self.encoder, since.elapsed())
    }
}

/// A batch as it was loaded, encoded.
pub(crate) fn fed(batch: Result<Batch, LoadError>, encoder: &Encoder, waited: Duration) -> Result<Fed, TrainError> {
    let mut batch = batch?;
    let replaced = std::mem::take(&mut batch.replaced);
    Ok(Fed { batch: encoder.encode(&batch)?, replaced, waited })
}

/// A loader of a rank's share of the job's steps, one of `loaders` in this process.
pub(crate) fn load(job: &Job, start: u64, share: Share, loaders: usize) -> Result<Loader, TrainError> {
    let own = |bytes: u64| bytes / loaders.max(1) as u64;
    let TrainOperations { prefetch_bytes, cache_bytes, .. } = *job.operations;
    let (prefetch_bytes, cache_bytes) = (own(prefetch_bytes), own(cache_bytes));
    let steps = start..job.config.steps;
    over_buckets(job, LoaderOptions { steps, share, prefetch_bytes, cache_bytes, ..LoaderOptions::default() })
}

/// A rank's share of the images that are held out: batches of one size, each with a sample at least.
pub(crate) fn held_out(job: &Job, share: Share, encoder: &Encoder) -> Result<Vec<Fed>, TrainError> {
    let options = LoaderOptions { part: Part::Validation, share, ..LoaderOptions::default() };
    let mut loader = over_buckets(job, options)?;
    let mut batches = Vec::new();
    while let Some(batch) = loader.next_batch() {
        // A small one may have nothing for this rank.
        if batch.as_ref().is_ok_and(|batch| batch.samples.is_empty()) {
            continue;
        }
        batches.push(fed(batch, encoder, Duration::ZERO)?);
    }
    Ok(batches)
}

/// A loader over the job's buckets, which must fit its model.
fn over_buckets(job: &Job, options: LoaderOptions) -> Result<Loader, TrainError> {
    let config = job.config;
    let index = BucketIndex::read_in(job.workdir, job.index)?;
    let multiple = config.pixel_multiple()?;
    let fits = |side: u32| i64::from(side) % multiple == 0;
    if let Some(bucket) = index.buckets().iter().find(|bucket| !fits(bucket.size.width) || !fits(bucket.size.height)) {
        return Err(TrainError::BucketSize { bucket: bucket.size.to_string(), multiple });
    }
    let options = LoaderOptions {
        seed: config.seed,
        batch_size: config.batch_size,
        validation_images: config.validation_images,
        encoded: config.encode == Encode::Cached,
        captions: config.captions.iter().map(|(column, weight)| (column.clone(), *weight)).collect(),
        on_bad_image: job.operations.on_bad_image,
        ..options
    };
    Ok(Loader::over(job.index, index, options)?)
}
