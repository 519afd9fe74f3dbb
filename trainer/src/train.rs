//! The training loop.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;

use models::ModelError;
use models::checkpoint::{self, Checkpoint, CheckpointState};
use models::device;
use models::mmdit::{Mmdit, MmditConfig};
use serde_json::Value;
use shards::digest::Digest;
use shards::event::{Event, EventSink};
use shards::storage::Workdir;
use tch::Device;

use crate::TrainError;
use crate::collective::{Alone, Collective};
use crate::config::{TrainConfig, TrainOperations};
use crate::feed::{Feed, OwnFeed};
use crate::grids::Grids;
use crate::learner::Learner;
use crate::loader::{BadImage, Share};
use crate::meter::Meter;
use crate::metrics::{Metrics, Record};
use crate::objective::{Draws, Task};
use crate::saver::{self, Origin, Saver};
use crate::schedule::learning_rate;
use crate::split::Phase;
use crate::stored::Stored;
use crate::validation::Validation;

/// One training: what to learn from, where to keep it, how.
pub struct Job<'a> {
    pub config: &'a TrainConfig,
    pub operations: &'a TrainOperations,
    /// The bucket index.
    pub index: &'a Path,
    /// Where its shards lie, if the index is a copy of one on a store; where `folder` is a copy of one there, checkpoints go there, too.
    pub workdir: Option<&'a Workdir>,
    /// Checkpoints and metrics go here. A run that finds its own earlier checkpoint goes on from it.
    pub folder: &'a Path,
    /// The name under which events are sent.
    pub stage: &'a str,
    pub events: &'a EventSink,
    /// Asked after every update; true ends the run with a checkpoint.
    pub cancelled: &'a dyn Fn() -> bool,
    /// Whether a training that is finished is made again, from its beginning. One that is not goes on in any case.
    pub again: bool,
}

/// How a training ended.
#[derive(Debug)]
pub struct Finished {
    pub checkpoint: Checkpoint,
    /// Whether it stopped because it was cancelled; it goes on from here when run again.
    pub interrupted: bool,
    /// Samples drawn since it was started or gone on with, by all ranks, repeats included.
    pub samples: u64,
    /// Images that could not be used and were replaced, by all ranks, from the first step on.
    pub replaced: u64,
    pub records: Vec<Record>,
}

/// Trains until the last step or until cancelled.
pub fn train(job: &Job) -> Result<Finished, TrainError> {
    attempt(|| train_alone(job))
}

/// Makes errors of libtorch's panics. Of too little memory, with what takes less.
pub(crate) fn attempt<T>(work: impl FnOnce() -> Result<T, TrainError>) -> Result<T, TrainError> {
    match ModelError::attempt("training", || Ok(work())) {
        Ok(Err(TrainError::Model(source))) | Err(source) if source.is_out_of_memory() => {
            Err(TrainError::OutOfMemory { source })
        }
        Ok(done) => done,
        Err(error) => Err(error.into()),
    }
}

fn train_alone(job: &Job) -> Result<Finished, TrainError> {
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
    let begun = begin(job, device, &mut Alone)?;
    let mut feed = OwnFeed::open(job, begun.updates, Share::default(), device, 1)?;
    let finished = run(job, begun, &mut feed, &mut Alone)?;
    finished.ok_or(TrainError::LoaderGone)
}

/// Where a training begins.
pub(crate) struct Begun {
    learner: Learner,
    /// Updates that were made already.
    pub(crate) updates: u64,
    /// Longest side, in pixels, of the images of those updates; known to the first rank.
    longest_side: u32,
    /// Known to the first rank.
    origin: Origin,
}

/// Model and moments as all ranks begin with them: from a seed, or from the folder's latest checkpoint, which the first rank reads.
pub(crate) fn begin(job: &Job, device: Device, ranks: &mut dyn Collective) -> Result<Begun, TrainError> {
    let config = job.config;
    job.operations.validate(config)?;
    let mut begun = if ranks.rank() == 0 {
        shards::disk::create_folder(job.folder)?;
        start_or_resume(job, device)?
    } else {
        let model = config.model()?;
        let learner = Learner::new(config, &model, Mmdit::allocate(&model, device), None)?;
        Begun { learner, updates: 0, longest_side: 0, origin: Origin::default() }
    };
    begun.updates = begun.learner.share(begun.updates, ranks)?;
    Ok(begun)
}

/// The loop of a rank that holds the model. The first one writes metrics and checkpoints, and tells what came of it.
pub(crate) fn run(
    job: &Job,
    begun: Begun,
    feed: &mut dyn Feed,
    ranks: &mut dyn Collective,
) -> Result<Option<Finished>, TrainError> {
    let Job { config, operations, .. } = *job;
    let Begun { mut learner, updates: start, mut longest_side, origin } = begun;
    let is_first = ranks.rank() == 0;
    let mut metrics = is_first.then(|| Metrics::open(job.folder, start)).transpose()?;
    let grids = if is_first { Grids::open(job, learner.device())? } else { None };
    let model = config.model()?;
    let multiple = config.pixel_multiple()?;
    let mut names = Names { job, named: 0 };
    let validation = if config.validation_images > 0 {
        let batches = feed.validation()?;
        for fed in &batches {
            names.tell(&fed.replaced);
        }
        Some(Validation::of(batches))
    } else {
        None
    };
    let mut meter = Meter::new(job, start, is_first);
    let mut step = start;
    let mut saver = Saver::new(origin);
    let mut saved = job.folder.join(checkpoint::folder_name(start)).exists().then_some(start);
    let mut interrupted = false;
    learner.split.begin();

    while step < config.steps {
        learner.split.enter(Phase::Prepare);
        let fed = feed.next()?;
        meter.fed(&fed);
        names.tell(&fed.replaced);
        let batch = &fed.batch;
        longest_side = longest_side.max(batch.bucket.width).max(batch.bucket.height);
        let task = Task::new(config, batch, &Draws::new(config, batch), learner.device());
        let update = learner.update(config, operations, step, &task, ranks)?;
        learner.split.enter(Phase::Other);
        let side = |pixels: u32| i64::from(pixels) / multiple;
        let text = batch.condition.tokens.iter().filter_map(|tokens| tokens.size().get(1).copied()).sum();
        let flops = model.forward_flops(side(batch.bucket.height), side(batch.bucket.width), text);
        meter.updated(step, update, 3.0 * flops * task.samples() as f64);
        meter.check()?;
        saver.check()?;
        step += 1;
        interrupted = step < config.steps && is_cancelled(job, ranks)?;
        let is_due = |every: u64| (every > 0 && step % every == 0) || step == config.steps;
        let validates = validation.as_ref().filter(|_| is_due(operations.validate_every));
        let saves = is_due(operations.checkpoint_every) || interrupted;
        if is_due(operations.log_every) || saves || validates.is_some() {
            let rate = learning_rate(config, step - 1);
            let mut record = meter.record(step, batch.epoch, rate, &mut learner, ranks)?;
            if let Some(validation) = validates {
                let validated = meter.leave_out(|| validation.run(config, operations, step, &learner, ranks));
                record.validation = Some(validated?);
            }
            if let Some(metrics) = &mut metrics {
                meter.report(&record, metrics.replaced() + record.replaced);
                metrics.append(record)?;
                if operations.gradient_histograms {
                    metrics.histograms(step, learner.gradients())?;
                }
            }
        }
        if saves && is_first {
            saver.save(job, &learner, step, longest_side)?;
            saved = Some(step);
        }
        if let (Some(grids), Some(metrics)) = (&grids, &mut metrics)
            && is_due(grids.every())
        {
            meter.leave_out(|| grids.draw(&learner, step, longest_side, metrics))?;
        }
        if interrupted {
            break;
        }
    }
    let Some(metrics) = metrics else { return Ok(None) };
    if saved != Some(step) {
        saver.save(job, &learner, step, longest_side)?;
    }
    // A finished training that is asked again has its last checkpoint already.
    let checkpoint = match saver.finish()? {
        Some(checkpoint) => checkpoint,
        None => Checkpoint::open(&job.folder.join(checkpoint::folder_name(step)))?,
    };
    saver::save_shown(job);
    let samples = (step - start) * config.batch_size;
    let (replaced, records) = (metrics.replaced(), metrics.records().to_vec());
    Ok(Some(Finished { checkpoint, interrupted, samples, replaced, records }))
}

/// Whether any rank was asked to stop: all of them stop after the same update.
fn is_cancelled(job: &Job, ranks: &mut dyn Collective) -> Result<bool, TrainError> {
    let mut cancelled = [f64::from(u8::from((job.cancelled)()))];
    ranks.sum_numbers(&mut cancelled)?;
    Ok(cancelled[0] > 0.0)
}

/// Bad images that are named one by one; of more, only the number is told.
const NAMED: u64 = 20;

/// Names the bad images of this rank.
struct Names<'a> {
    job: &'a Job<'a>,
    named: u64,
}

impl Names<'_> {
    fn tell(&mut self, replaced: &[BadImage]) {
        for image in replaced.iter().take((NAMED - self.named) as usize) {
            self.named += 1;
            let more = if self.named == NAMED { "; further ones are only counted" } else { "" };
            let text = format!("replaced a bad image, {image}{more}");
            self.job.events.send(Event::Note { stage: self.job.stage.to_owned(), text });
        }
    }
}

fn start_or_resume(job: &Job, device: Device) -> Result<Begun, TrainError> {
    let config = job.config;
    let model = config.model()?;
    let note = |text| job.events.send(Event::Note { stage: job.stage.to_owned(), text });
    let origin = Origin { index: index_of(job)?, encoders: Some(config.encoders()?) };
    let stored = job.workdir.and_then(|workdir| Stored::of(workdir, job.folder));
    if job.again {
        set_back_if_finished(job, stored.as_ref())?;
    }
    let lost: Cell<Option<u64>> = Cell::new(None);
    let passed_over = |step: u64, error: &TrainError| {
        lost.set(lost.get().max(Some(step)));
        saver::note(job.events, job.stage, &format!("the checkpoint of step {step} is passed over"), error);
    };
    if let Some(stored) = stored {
        stored.bring_latest(&passed_over)?;
    }
    if let Some(begun) = resume(job, &model, device, &origin, &passed_over)? {
        note(format!("going on from step {}", begun.updates));
        return Ok(begun);
    }
    match lost.get() {
        // Its files may be on their way, or in a backup: what days of it came to is not thrown away unasked.
        Some(step) if step < config.steps => {
            return Err(TrainError::LostCheckpoint { folder: job.folder.to_owned(), step });
        }
        // Of one that was finished, whose files were found damaged and deleted.
        Some(_) => note("there is no other checkpoint before that: it begins anew".to_owned()),
        None => {}
    }
    if let Some(start) = &config.start {
        let (learner, updates, text) = start.begin(config, device)?;
        note(text);
        return Ok(Begun { learner, updates, longest_side: 0, origin });
    }
    let parameters = Mmdit::initialise(&model, config.seed, device);
    let ema = parameters.duplicate();
    let learner = Learner::new(config, &model, parameters, Some(ema))?;
    Ok(Begun { learner, updates: 0, longest_side: 0, origin })
}

/// The digest of the index, where there is one: only ranks that load need it, and others may be on a machine that has none.
pub(crate) fn index_of(job: &Job) -> Result<Option<Digest>, TrainError> {
    Ok(job.index.is_file().then(|| Digest::of_file(job.index)).transpose()?)
}

/// Has a finished training begin anew, here and on the store. Its checkpoints stay until new ones take their places: a record may name them.
fn set_back_if_finished(job: &Job, stored: Option<&Stored>) -> Result<(), TrainError> {
    let latest = job.folder.join(checkpoint::LATEST);
    let here = std::fs::read_to_string(&latest).ok().and_then(|name| checkpoint::step_of_folder(name.trim()));
    let there = stored.map(Stored::latest).transpose()?.flatten();
    if here.max(there) >= Some(job.config.steps) {
        shards::disk::remove(&latest)?;
        stored.map(Stored::forget_latest).transpose()?;
    }
    Ok(())
}

/// The newest checkpoint of the folder that can be gone on from; `passed_over` hears of those of which a file is gone, or is not what was
/// written.
fn resume(
    job: &Job,
    model: &MmditConfig,
    device: Device,
    origin: &Origin,
    passed_over: &dyn Fn(u64, &TrainError),
) -> Result<Option<Begun>, TrainError> {
    let Some(latest) = Checkpoint::latest_step(job.folder)? else { return Ok(None) };
    let list = std::fs::read_dir(job.folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = list.map_err(|source| TrainError::Io { action: "list", path: job.folder.to_owned(), source })?;
    let steps = entries.iter().filter_map(|entry| checkpoint::step_of_folder(&entry.file_name().to_string_lossy()));
    let mut steps: BTreeSet<u64> = steps.filter(|step| *step < latest).collect();
    steps.insert(latest);
    for step in steps.into_iter().rev() {
        match resume_from(job, step, model, device, origin) {
            Ok(begun) => return Ok(Some(begun)),
            Err(error) if error.is_loss() => passed_over(step, &error),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn resume_from(
    job: &Job,
    step: u64,
    model: &MmditConfig,
    device: Device,
    origin: &Origin,
) -> Result<Begun, TrainError> {
    let config = job.config;
    let checkpoint = Checkpoint::open(&job.folder.join(checkpoint::folder_name(step)))?;
    if let Some(difference) = difference(&checkpoint.state, config, origin.encoders.as_ref()) {
        return Err(TrainError::OtherConfiguration { folder: job.folder.to_owned(), difference });
    }
    // A position in the data says nothing of other data.
    if let Some((saved, index)) = checkpoint.state.index.zip(origin.index)
        && saved != index
    {
        return Err(TrainError::OtherIndex { folder: job.folder.to_owned(), index: job.index.to_owned() });
    }
    let parameters = checkpoint.parameters(checkpoint::MODEL, device)?;
    let ema = checkpoint.parameters(checkpoint::EMA, device)?;
    let mut learner = Learner::new(config, model, parameters, Some(ema))?;
    learner.optimizer.load(&checkpoint.folder.join(checkpoint::OPTIMIZER), &learner.parameters)?;
    let CheckpointState { step, max_resolution, .. } = checkpoint.state;
    Ok(Begun { learner, updates: step, longest_side: max_resolution, origin: origin.clone() })
}

/// The settings in which a checkpoint's configuration differs from this run's, in words; `None` when there are none. `encoders` are this
/// run's, as in [`CheckpointState::encoders`].
pub(crate) fn difference(saved: &CheckpointState, config: &TrainConfig, encoders: Option<&Value>) -> Option<String> {
    // Settings that it does not know yet had their defaults.
    let known = serde_json::from_value::<TrainConfig>(saved.training.clone()).and_then(serde_json::to_value);
    let (trained, current) = (known.unwrap_or_default(), serde_json::to_value(config).unwrap_or_default());
    let (trained, current) = (trained.as_object()?, current.as_object()?);
    // Where models lie does not matter, if what they are is known.
    let is_same = |key: &str, value: &Value| match saved.encoders.as_ref().zip(encoders) {
        Some((saved, current)) if saved.get(key).is_some() => saved.get(key) == current.get(key),
        _ => trained.get(key) == Some(value),
    };
    let changed: Vec<String> = current
        .iter()
        // Where a training began is past.
        .filter(|(key, value)| *key != "start" && !is_same(key, value))
        .map(|(key, value)| match trained.get(key) {
            Some(trained) if trained == value => format!("{key} {value} (its files are others now)"),
            trained => format!("{key} {} → {value}", trained.unwrap_or(&Value::Null)),
        })
        .collect();
    (!changed.is_empty()).then(|| changed.join(", "))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use models::autoencoder::Affine;
    use models::latents::{AutoencoderLatents, Latents};

    use super::*;

    /// A configuration on the latents of a small autoencoder, a copy of which lies in `folder`.
    fn on_latents(folder: &Path) -> TrainConfig {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/hf/autoencoder_kl");
        fs::create_dir(folder).unwrap();
        for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
            fs::copy(fixture.join(file), folder.join(file)).unwrap();
        }
        let latents = AutoencoderLatents { folder: folder.to_owned(), affine: Affine::default() };
        TrainConfig { latents: Latents::Autoencoder(latents), ..TrainConfig::default() }
    }

    #[test]
    fn models_that_lie_elsewhere_are_the_same_and_others_are_not() {
        let root = tempfile::tempdir().unwrap();
        let (before, moved) = (on_latents(&root.path().join("before")), on_latents(&root.path().join("moved")));
        let state = |encoders: Option<Value>| CheckpointState {
            format: checkpoint::FORMAT,
            step: 2,
            model: before.model().unwrap(),
            latents: before.latents.clone(),
            text: before.text.clone(),
            max_resolution: 64,
            training: serde_json::to_value(&before).unwrap(),
            index: None,
            encoders,
            version: String::new(),
        };
        let known = state(Some(before.encoders().unwrap()));
        let now = moved.encoders().unwrap();
        assert_eq!(difference(&known, &moved, Some(&now)), None);
        // A checkpoint that does not say what it was trained with goes by the name.
        assert!(difference(&state(None), &moved, Some(&now)).unwrap().starts_with("latents "));
        assert_eq!(difference(&state(None), &before, Some(&now)), None);

        let path = root.path().join("before/config.json");
        let config = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{config}\n")).unwrap();
        let words = difference(&known, &before, Some(&before.encoders().unwrap())).unwrap();
        assert!(words.contains("its files are others now"), "{words}");
        let slower = TrainConfig { learning_rate: 1e-5, ..moved };
        assert!(difference(&known, &slower, Some(&now)).unwrap().starts_with("learning_rate "));
    }
}
