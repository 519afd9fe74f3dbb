//! The training loop.

use std::ops::Range;
use std::path::Path;

use models::checkpoint::{self, Checkpoint};
use models::device;
use models::mmdit::Mmdit;
use shards::bucket::BucketSize;
use shards::event::{Event, EventSink};
use shards::index::BucketIndex;
use shards::storage::Workdir;
use tch::Device;

use crate::TrainError;
use crate::collective::{Alone, Collective};
use crate::config::{TrainConfig, TrainOperations};
use crate::encode::Encoder;
use crate::feed::{Feed, OwnFeed};
use crate::learner::Learner;
use crate::loader::{BadImage, Loader, LoaderOptions, Share};
use crate::meter::Meter;
use crate::metrics::{Metrics, Record};
use crate::objective::{Draws, Task};
use crate::saver::Saver;
use crate::schedule::learning_rate;

/// One training: what to learn from, where to keep it, how.
pub struct Job<'a> {
    pub config: &'a TrainConfig,
    pub operations: &'a TrainOperations,
    /// The bucket index.
    pub index: &'a Path,
    /// Where its shards lie, if the index is a copy of one on a store.
    pub workdir: Option<&'a Workdir>,
    /// Checkpoints and metrics go here. A run that finds its own earlier checkpoint goes on from it.
    pub folder: &'a Path,
    /// The name under which events are sent.
    pub stage: &'a str,
    pub events: &'a EventSink,
    /// Asked after every update; true ends the run with a checkpoint.
    pub cancelled: &'a dyn Fn() -> bool,
}

/// How a training ended.
#[derive(Debug)]
pub struct Finished {
    pub checkpoint: Checkpoint,
    /// Whether it stopped because it was cancelled; it goes on from here when run again.
    pub interrupted: bool,
    /// Samples drawn by this process, repeats included.
    pub samples: u64,
    /// Images that could not be decoded and were replaced, by this process.
    pub replaced: u64,
    pub records: Vec<Record>,
}

/// Trains until the last step or until cancelled.
pub fn train(job: &Job) -> Result<Finished, TrainError> {
    let Job { config, operations, .. } = *job;
    config.validate()?;
    if operations.loaders.is_some() || operations.models_per_loader.is_some() {
        return Err(TrainError::Configuration {
            what: "loaders",
            value: "set".to_owned(),
            expected: "several ranks: start them with `ferrotype launch`, torchrun or srun, or leave it out".to_owned(),
        });
    }
    let device = device::named(operations.device.as_deref(), 0).map_err(|message| TrainError::Device { message })?;
    let (mut learner, start) = begin(job, device, &mut Alone)?;
    let loader = load(job, start..config.steps, Share::default(), 1)?;
    let mut feed = OwnFeed::new(loader, Encoder::new(config, device)?);
    let finished = run(job, &mut learner, start, &mut feed, &mut Alone)?;
    finished.ok_or(TrainError::LoaderGone)
}

/// Model and moments as all ranks begin with them: from a seed, or from the folder's latest checkpoint, which the first rank reads. Returns
/// them with the updates that were made already.
pub(crate) fn begin(job: &Job, device: Device, ranks: &mut dyn Collective) -> Result<(Learner, u64), TrainError> {
    let config = job.config;
    let model = config.model()?;
    if ranks.rank() > 0 {
        let mut learner = Learner::new(config, &model, Mmdit::allocate(&model, device), None)?;
        let start = learner.share(0, ranks)?;
        return Ok((learner, start));
    }
    shards::disk::create_folder(job.folder)?;
    let (mut learner, start) = start_or_resume(job, device)?;
    learner.share(start, ranks)?;
    Ok((learner, start))
}

/// The loop of a rank that holds the model. The first one writes metrics and checkpoints, and tells what came of it.
pub(crate) fn run(
    job: &Job,
    learner: &mut Learner,
    start: u64,
    feed: &mut dyn Feed,
    ranks: &mut dyn Collective,
) -> Result<Option<Finished>, TrainError> {
    let Job { config, operations, .. } = *job;
    let is_first = ranks.rank() == 0;
    let mut metrics = is_first.then(|| Metrics::open(job.folder, start)).transpose()?;
    let model = config.model()?;
    let multiple = config.pixel_multiple()?;
    let mut meter = Meter::new(job, start, is_first);
    let mut max_side = 0;
    let (mut step, mut replaced) = (start, 0);
    let mut saver = Saver::default();
    let mut saved = job.folder.join(checkpoint::folder_name(start)).exists().then_some(start);
    let mut interrupted = false;

    while step < config.steps {
        let fed = feed.next()?;
        meter.waited(fed.waited);
        let batch = &fed.batch;
        max_side = max_side.max(longest_side(batch.bucket));
        tell(job, &fed.replaced, replaced);
        replaced += fed.replaced.len() as u64;
        let task = Task::new(config, batch, &Draws::new(config, batch), learner.device());
        let update = learner.update(config, operations, step, &task, ranks)?;
        let side = |pixels: u32| i64::from(pixels) / multiple;
        let text = batch.condition.tokens.iter().filter_map(|tokens| tokens.size().get(1).copied()).sum();
        let flops = model.forward_flops(side(batch.bucket.height), side(batch.bucket.width), text);
        meter.updated(step, update, 3.0 * flops * task.samples() as f64);
        meter.check()?;
        step += 1;
        interrupted = step < config.steps && is_cancelled(job, ranks)?;
        let is_due = |every: u64| step % every.max(1) == 0 || step == config.steps || interrupted;
        if is_due(operations.log_every) || is_due(operations.checkpoint_every) {
            let record = meter.record(step, batch.epoch, learning_rate(config, step - 1), ranks)?;
            if let Some(metrics) = &mut metrics {
                meter.report(&record, replaced);
                metrics.append(record)?;
                if operations.gradient_histograms {
                    metrics.histograms(step, learner.gradients())?;
                }
            }
        }
        if is_due(operations.checkpoint_every) && is_first {
            saver.save(job, learner, step, max_side)?;
            saved = Some(step);
        }
        if interrupted {
            break;
        }
    }
    let Some(metrics) = metrics else { return Ok(None) };
    if saved != Some(step) {
        saver.save(job, learner, step, max_side)?;
    }
    // A finished training that is asked again has its last checkpoint already.
    let checkpoint = match saver.finish()? {
        Some(checkpoint) => checkpoint,
        None => Checkpoint::open(&job.folder.join(checkpoint::folder_name(step)))?,
    };
    let samples = (step - start) * config.batch_size;
    Ok(Some(Finished { checkpoint, interrupted, samples, replaced, records: metrics.records().to_vec() }))
}

/// Whether any rank was asked to stop: all of them stop after the same update.
fn is_cancelled(job: &Job, ranks: &mut dyn Collective) -> Result<bool, TrainError> {
    let mut cancelled = [f64::from(u8::from((job.cancelled)()))];
    ranks.sum_numbers(&mut cancelled)?;
    Ok(cancelled[0] > 0.0)
}

/// A loader of a part of the job's steps, one of `loaders` in this process, over buckets that fit its model.
pub(crate) fn load(job: &Job, steps: Range<u64>, share: Share, loaders: usize) -> Result<Loader, TrainError> {
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
        steps,
        captions: config.captions.iter().map(|(column, weight)| (column.clone(), *weight)).collect(),
        on_bad_image: job.operations.on_bad_image,
        prefetch_bytes: job.operations.prefetch_bytes / loaders.max(1) as u64,
        cache_bytes: job.operations.cache_bytes / loaders.max(1) as u64,
        share,
        ..LoaderOptions::default()
    };
    Ok(Loader::over(job.index, index, options)?)
}

/// Bad images that are named one by one; of more, only the number is told.
const NAMED: u64 = 20;

fn tell(job: &Job, replaced: &[BadImage], before: u64) {
    for (image, number) in replaced.iter().zip(before..NAMED) {
        let more = if number + 1 == NAMED { "; further ones are only counted" } else { "" };
        job.events
            .send(Event::Note { stage: job.stage.to_owned(), text: format!("replaced a bad image, {image}{more}") });
    }
}

fn longest_side(bucket: BucketSize) -> u32 {
    bucket.width.max(bucket.height)
}

fn start_or_resume(job: &Job, device: Device) -> Result<(Learner, u64), TrainError> {
    let config = job.config;
    let model = config.model()?;
    let note = |text| job.events.send(Event::Note { stage: job.stage.to_owned(), text });
    let Some(checkpoint) = Checkpoint::latest(job.folder)? else {
        if let Some(start) = &config.start {
            let (learner, updates, text) = start.begin(config, device)?;
            note(text);
            return Ok((learner, updates));
        }
        let parameters = Mmdit::initialise(&model, config.seed, device);
        let ema = parameters.duplicate();
        return Ok((Learner::new(config, &model, parameters, Some(ema))?, 0));
    };
    if let Some(difference) = difference(&checkpoint.state.training, config) {
        return Err(TrainError::OtherConfiguration { folder: job.folder.to_owned(), difference });
    }
    let parameters = checkpoint.parameters(checkpoint::MODEL, device)?;
    let ema = checkpoint.parameters(checkpoint::EMA, device)?;
    let mut learner = Learner::new(config, &model, parameters, Some(ema))?;
    learner.optimizer.load(&checkpoint.folder.join(checkpoint::OPTIMIZER), &learner.parameters)?;
    note(format!("going on from step {}", checkpoint.state.step));
    Ok((learner, checkpoint.state.step))
}

/// The settings in which a checkpoint's configuration differs from this run's, in words; `None` when there are none.
pub(crate) fn difference(saved: &serde_json::Value, config: &TrainConfig) -> Option<String> {
    // Settings that it does not know yet had their defaults.
    let known = serde_json::from_value::<TrainConfig>(saved.clone()).and_then(serde_json::to_value);
    let (saved, current) = (known.unwrap_or_default(), serde_json::to_value(config).unwrap_or_default());
    let (saved, current) = (saved.as_object()?, current.as_object()?);
    let changed: Vec<String> = current
        .iter()
        .filter(|(key, value)| saved.get(*key) != Some(value))
        .map(|(key, value)| format!("{key} {} → {value}", saved.get(key).unwrap_or(&serde_json::Value::Null)))
        .collect();
    (!changed.is_empty()).then(|| changed.join(", "))
}
