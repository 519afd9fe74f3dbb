//! Checkpoints, written while the training goes on.

use std::path::Path;
use std::thread::{Builder, JoinHandle};

use models::checkpoint::{self, Checkpoint, CheckpointState};
use shards::digest::Digest;
use shards::event::{Event, EventSink};
use tch::Tensor;

use crate::TrainError;
use crate::config::TrainOperations;
use crate::learner::Learner;
use crate::stored::{Stored, surplus};
use crate::train::Job;

/// What a training is made from, by contents.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    /// Digest of the index, if it is where the first rank is.
    pub(crate) index: Option<Digest>,
    /// As in [`CheckpointState::encoders`].
    pub(crate) encoders: Option<serde_json::Value>,
}

/// Writes one checkpoint at a time, on a thread of its own.
pub(crate) struct Saver {
    origin: Origin,
    writing: Option<JoinHandle<Result<Checkpoint, TrainError>>>,
}

impl Saver {
    pub(crate) fn new(origin: Origin) -> Self {
        Self { origin, writing: None }
    }

    /// Begins to write what `learner` is after `step` updates, and to remove what need not be kept. The checkpoint before is waited for
    /// first. An error shows at the next call, of this or of [`Saver::check`].
    pub(crate) fn save(&mut self, job: &Job, learner: &Learner, step: u64, max_side: u32) -> Result<(), TrainError> {
        self.finish()?;
        let state = CheckpointState {
            format: checkpoint::FORMAT,
            step,
            model: job.config.model()?,
            latents: job.config.latents.clone(),
            text: job.config.text.clone(),
            max_resolution: max_side,
            training: serde_json::to_value(job.config).unwrap_or_default(),
            index: self.origin.index,
            encoders: self.origin.encoders.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let ema = learner.ema.as_ref().unwrap_or(&learner.parameters);
        let files = [
            (checkpoint::MODEL, copied(learner.parameters.state_dict())),
            (checkpoint::EMA, copied(ema.state_dict())),
            (checkpoint::OPTIMIZER, copied(learner.optimizer.state_dict(&learner.parameters))),
        ];
        let (folder, operations) = (job.folder.to_owned(), job.operations.clone());
        let (stage, events) = (job.stage.to_owned(), job.events.clone());
        let stored = job.workdir.and_then(|workdir| Stored::of(workdir, job.folder));
        let write = move || {
            let checkpoint = Checkpoint::write(&folder, &state, &files)?;
            // The new one is there, which is what counts; the next one tries again.
            let failed = |what: &str, error: &TrainError| note(&events, &stage, what, error);
            if let Some(Err(error)) = stored.map(|stored| stored.save(step, &operations)) {
                failed(&format!("the checkpoint of step {step} may be on this machine alone"), &error);
            }
            if let Err(error) = prune(&folder, step, &operations) {
                failed("an old checkpoint stays", &error);
            }
            Ok(checkpoint)
        };
        let thread = Builder::new().name("checkpoint".to_owned()).spawn(write);
        self.writing = Some(thread.map_err(|source| TrainError::Thread { source })?);
        Ok(())
    }

    /// The error of a checkpoint whose writing has ended meanwhile. What follows would be lost with it, so it is not to wait for the next one.
    pub(crate) fn check(&mut self) -> Result<(), TrainError> {
        if self.writing.as_ref().is_some_and(JoinHandle::is_finished) {
            self.finish()?;
        }
        Ok(())
    }

    /// Waits for the checkpoint that is being written, and returns it; `None` where there is none.
    pub(crate) fn finish(&mut self) -> Result<Option<Checkpoint>, TrainError> {
        let Some(writing) = self.writing.take() else { return Ok(None) };
        match writing.join() {
            Ok(written) => written.map(Some),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        if let Some(writing) = self.writing.take() {
            // The training ends with another error, which is the one to tell.
            let _written = writing.join();
        }
    }
}

/// Takes to the store what was made to be looked at since the last checkpoint.
pub(crate) fn save_shown(job: &Job) {
    let stored = job.workdir.and_then(|workdir| Stored::of(workdir, job.folder));
    if let Some(Err(error)) = stored.map(|stored| stored.save_shown()) {
        note(job.events, job.stage, "the last sheets and curves may be on this machine alone", &error);
    }
}

/// Says what went wrong without an end of the training.
pub(crate) fn note(events: &EventSink, stage: &str, what: &str, error: &TrainError) {
    let why = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
    events.send(Event::Note { stage: stage.to_owned(), text: format!("{what}: {error}{why}") });
}

/// In the CPU's memory, and of their own: the next update changes what they are copies of.
fn copied(tensors: Vec<(String, Tensor)>) -> Vec<(String, Tensor)> {
    let copy =
        |tensor: Tensor| if tensor.device().is_cuda() { tensor.to_device(tch::Device::Cpu) } else { tensor.copy() };
    tensors.into_iter().map(|(name, tensor)| (name, copy(tensor))).collect()
}

/// Removes the checkpoints that need not be kept once that of step `newest` is there, and what a killed process was writing.
fn prune(folder: &Path, newest: u64, operations: &TrainOperations) -> Result<(), TrainError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| TrainError::Io { action, path, source }
    };
    let mut steps = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed("list", folder))? {
        let path = entry.map_err(failed("list", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(".step-") {
            std::fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
        }
        steps.extend(checkpoint::step_of_folder(&name));
    }
    for step in surplus(steps, newest, operations) {
        let old = folder.join(checkpoint::folder_name(step));
        std::fs::remove_dir_all(&old).map_err(failed("remove", &old))?;
    }
    Ok(())
}
