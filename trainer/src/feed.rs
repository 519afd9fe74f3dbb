//! Where a rank that holds the model gets its batches from.

use std::time::{Duration, Instant};

use shards::index::BucketIndex;
use tch::Device;

use crate::TrainError;
use crate::config::Encode;
use crate::encode::{EncodedBatch, Encoder};
use crate::loader::{BadImage, Batch, LoadError, Loader, LoaderOptions, Share, Source};
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
pub struct OwnFeed {
    source: Source,
    share: Share,
    loader: Loader,
    encoder: Encoder,
}

impl OwnFeed {
    /// One rank's share of the job's steps, from `start` on. `processes` of this machine load.
    pub(crate) fn open(
        job: &Job,
        start: u64,
        share: Share,
        device: Device,
        processes: usize,
    ) -> Result<Self, TrainError> {
        let source = source(job, 1, processes)?;
        let loader = source.load(Part::Training, share, start..job.config.steps)?;
        Ok(Self { source, share, loader, encoder: Encoder::new(job.config, device)? })
    }
}

impl Feed for OwnFeed {
    fn validation(&mut self) -> Result<Vec<Fed>, TrainError> {
        held_out(&self.source, self.share, &self.encoder)
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

/// A rank's share of the images that are held out: batches of one size, each with a sample at least.
pub(crate) fn held_out(source: &Source, share: Share, encoder: &Encoder) -> Result<Vec<Fed>, TrainError> {
    let mut loader = source.load(Part::Validation, share, 0..u64::MAX)?;
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

/// What `loaders` loaders of this process, one of `processes` of this machine that load, read from: the job's buckets, which must fit
/// its model.
pub(crate) fn source(job: &Job, loaders: usize, processes: usize) -> Result<Source, TrainError> {
    let (config, operations) = (job.config, job.operations);
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
        on_bad_image: operations.on_bad_image,
        prefetch_bytes: operations.prefetch_bytes / loaders.max(1) as u64,
        cache_bytes: operations.cache_bytes,
        processes,
        ..LoaderOptions::default()
    };
    Ok(Source::over(job.index, index, options)?)
}
