//! The training loop.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use models::checkpoint::{self, Checkpoint, CheckpointState};
use models::mmdit::{Mmdit, MmditConfig};
use models::parameters::ParameterSet;
use shards::bucket::BucketSize;
use shards::event::{Event, EventSink};
use shards::index::BucketIndex;
use shards::storage::Workdir;
use tch::{Device, Kind};

use crate::TrainError;
use crate::config::{TrainConfig, TrainOperations};
use crate::encode::{EncodedBatch, Encoder};
use crate::loader::{BadImage, Loader, LoaderOptions};
use crate::metrics::{MetricsFile, Record};
use crate::objective::{self, Draws};
use crate::optimizer::{self, Optimizer};
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

/// Model, average and moments: everything an update changes.
struct Learner {
    parameters: ParameterSet,
    ema: ParameterSet,
    optimizer: Optimizer,
    model: Mmdit,
    device: Device,
}

/// Trains until the last step or until cancelled.
pub fn train(job: &Job) -> Result<Finished, TrainError> {
    let Job { config, operations, .. } = *job;
    config.validate()?;
    shards::disk::create_folder(job.folder)?;
    let (mut learner, start) = Learner::start_or_resume(job)?;
    let mut metrics = MetricsFile::open(&job.folder.join("metrics.jsonl"), start)?;
    let mut loader = load(job, start..config.steps)?;
    let encoder = Encoder::new(config)?;
    let mut meter = Meter::new(job, start);
    let mut max_side = 0;
    let (mut step, mut replaced) = (start, 0);
    let mut saved = (start > 0).then_some(start);
    let mut interrupted = false;

    while step < config.steps {
        let waiting = Instant::now();
        let batch = loader.next_batch().ok_or(TrainError::LoaderGone)??;
        meter.waited(waiting);
        max_side = max_side.max(longest_side(batch.bucket));
        tell(job, &batch.replaced, replaced);
        replaced += batch.replaced.len() as u64;
        let batch = encoder.encode(&batch)?;
        let (loss, gradient_norm) = learner.update(config, &batch)?;
        step += 1;
        meter.updated(loss, gradient_norm);
        interrupted = step < config.steps && (job.cancelled)();
        if step % operations.log_every.max(1) == 0 || step == config.steps || interrupted {
            metrics.append(meter.record(step, batch.epoch, learning_rate(config, step - 1)))?;
            meter.report(&metrics, replaced);
        }
        if step % operations.checkpoint_every.max(1) == 0 || step == config.steps || interrupted {
            learner.save(job, step, max_side)?;
            saved = Some(step);
            prune(job.folder, operations.keep_last)?;
        }
        if interrupted {
            break;
        }
    }
    // A finished training that is asked again has its last checkpoint already.
    let checkpoint = match saved {
        Some(step) => Checkpoint::open(&job.folder.join(checkpoint::folder_name(step)))?,
        None => learner.save(job, step, max_side)?,
    };
    let samples = (step - start) * config.batch_size;
    Ok(Finished { checkpoint, interrupted, samples, replaced, records: metrics.records().to_vec() })
}

/// A loader of the job's steps, over buckets that fit its model.
fn load(job: &Job, steps: std::ops::Range<u64>) -> Result<Loader, TrainError> {
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
        prefetch_bytes: job.operations.prefetch_bytes,
        cache_bytes: job.operations.cache_bytes,
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

impl Learner {
    fn start_or_resume(job: &Job) -> Result<(Self, u64), TrainError> {
        let device = Device::Cpu;
        let config = job.config.model()?;
        let Some(checkpoint) = Checkpoint::latest(job.folder)? else {
            let parameters = Mmdit::initialise(&config, job.config.seed, device);
            let ema = parameters.duplicate();
            return Ok((Self::over(job.config, &config, parameters, ema, device), 0));
        };
        if let Some(difference) = difference(&checkpoint.state.training, job.config) {
            return Err(TrainError::OtherConfiguration { folder: job.folder.to_owned(), difference });
        }
        let parameters = checkpoint.parameters(checkpoint::MODEL, device)?;
        let ema = checkpoint.parameters(checkpoint::EMA, device)?;
        let mut learner = Self::over(job.config, &config, parameters, ema, device);
        learner.optimizer.load(&checkpoint.folder.join(checkpoint::OPTIMIZER), &learner.parameters)?;
        let text = format!("going on from step {}", checkpoint.state.step);
        job.events.send(Event::Note { stage: job.stage.to_owned(), text });
        Ok((learner, checkpoint.state.step))
    }

    /// Over parameters of `model`.
    fn over(
        config: &TrainConfig,
        model: &MmditConfig,
        parameters: ParameterSet,
        ema: ParameterSet,
        device: Device,
    ) -> Self {
        let model = Mmdit::over(model, &parameters);
        let optimizer = Optimizer::new(config, &parameters);
        Self { parameters, ema, optimizer, model, device }
    }

    /// One update. Returns the loss and the gradient's norm before clipping.
    fn update(&mut self, config: &TrainConfig, batch: &EncodedBatch) -> Result<(f64, f64), TrainError> {
        let latents = batch.latents.to_device(self.device);
        let draws = Draws::new(config, batch.step, &latents.size(), self.device);
        let condition = batch.condition.to_device(self.device).keep(&draws.keep_caption);
        let loss = objective::loss(&self.model, &latents, &condition, &draws.time, &draws.noise)?;
        let gradient = optimizer::gradient(&loss, &self.parameters);
        let rate = learning_rate(config, batch.step);
        let loss = loss.to_kind(Kind::Float).double_value(&[]);
        if !loss.is_finite() {
            return Err(TrainError::NotFinite { step: batch.step, loss });
        }
        let norm = self.optimizer.step(batch.step, rate, &gradient, &self.parameters, &self.ema);
        Ok((loss, norm))
    }

    fn save(&self, job: &Job, step: u64, max_side: u32) -> Result<Checkpoint, TrainError> {
        let state = CheckpointState {
            format: checkpoint::FORMAT,
            step,
            model: job.config.model()?,
            latents: job.config.latents.clone(),
            text: job.config.text.clone(),
            max_resolution: max_side,
            training: serde_json::to_value(job.config).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let files = [
            (checkpoint::MODEL, self.parameters.state_dict()),
            (checkpoint::EMA, self.ema.state_dict()),
            (checkpoint::OPTIMIZER, self.optimizer.state_dict(&self.parameters)),
        ];
        Ok(Checkpoint::write(job.folder, &state, &files)?)
    }
}

/// The settings in which a checkpoint's configuration differs from this run's, in words; `None` when there are none.
fn difference(saved: &serde_json::Value, config: &TrainConfig) -> Option<String> {
    let current = serde_json::to_value(config).unwrap_or_default();
    let (saved, current) = (saved.as_object()?, current.as_object()?);
    let changed: Vec<String> = current
        .iter()
        .filter(|(key, value)| saved.get(*key) != Some(value))
        .map(|(key, value)| format!("{key} {} → {value}", saved.get(key).unwrap_or(&serde_json::Value::Null)))
        .collect();
    (!changed.is_empty()).then(|| changed.join(", "))
}

/// Removes all but the newest `keep` checkpoints.
fn prune(folder: &Path, keep: u64) -> Result<(), TrainError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| TrainError::Io { action, path, source }
    };
    let mut checkpoints: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed("list", folder))? {
        let path = entry.map_err(failed("list", folder))?.path();
        if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("step-")) {
            checkpoints.push(path);
        }
    }
    checkpoints.sort();
    let surplus = checkpoints.len().saturating_sub(keep.max(1) as usize);
    for old in checkpoints.iter().take(surplus) {
        std::fs::remove_dir_all(old).map_err(failed("remove", old))?;
    }
    Ok(())
}

/// Times and sums between two lines of metrics.
struct Meter<'a> {
    job: &'a Job<'a>,
    since: Instant,
    waiting: f64,
    updates: u64,
    loss: f64,
    gradient_norm: f64,
}

impl<'a> Meter<'a> {
    fn new(job: &'a Job<'a>, start: u64) -> Self {
        let meter = Self { job, since: Instant::now(), waiting: 0.0, updates: 0, loss: 0.0, gradient_norm: 0.0 };
        meter.progress(start, String::new());
        meter
    }

    fn waited(&mut self, since: Instant) {
        self.waiting += since.elapsed().as_secs_f64();
    }

    fn updated(&mut self, loss: f64, gradient_norm: f64) {
        self.updates += 1;
        self.loss += loss;
        self.gradient_norm += gradient_norm;
    }

    fn record(&mut self, step: u64, epoch: u64, learning_rate: f64) -> Record {
        let seconds = self.since.elapsed().as_secs_f64().max(1e-9);
        let updates = self.updates.max(1) as f64;
        let record = Record {
            step,
            epoch,
            loss: self.loss / updates,
            gradient_norm: self.gradient_norm / updates,
            learning_rate,
            images_per_second: (self.updates * self.job.config.batch_size) as f64 / seconds,
            waiting: self.waiting / seconds,
        };
        *self = Self { job: self.job, since: Instant::now(), waiting: 0.0, updates: 0, loss: 0.0, gradient_norm: 0.0 };
        record
    }

    fn report(&self, metrics: &MetricsFile, replaced: u64) {
        if let Some(last) = metrics.records().last() {
            let mut note = format!("loss {:.4}, {:.0} images/s", last.loss, last.images_per_second);
            if replaced > 0 {
                let _ = write!(note, ", {replaced} bad images replaced");
            }
            self.progress(last.step, note);
        }
    }

    fn progress(&self, done: u64, note: String) {
        self.job.events.send(Event::Progress {
            stage: self.job.stage.to_owned(),
            unit: "steps",
            done,
            total: Some(self.job.config.steps),
            outcomes: BTreeMap::new(),
            note,
        });
    }
}
