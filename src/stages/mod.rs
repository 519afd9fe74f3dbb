//! Stages that need torch or ask models: adapters between the DAG engine and the rooms that do the work.

#[cfg(feature = "pipeline")]
mod encode;
pub(crate) mod evaluate;
pub(crate) mod quality;
#[cfg(feature = "pipeline")]
pub(crate) mod recaption;
#[cfg(feature = "pipeline")]
mod sample;
#[cfg(feature = "pipeline")]
mod train;

#[cfg(feature = "pipeline")]
use std::io::ErrorKind;
#[cfg(feature = "pipeline")]
use std::ops::ControlFlow;

#[cfg(feature = "pipeline")]
use sampler::SampleError;
#[cfg(feature = "pipeline")]
use sampler::opened::{Opened, Parameters};
#[cfg(feature = "pipeline")]
use sampler::text_to_image::{Loading, Progress, TextToImage};

/// The average of a checkpoint's weights, on the first GPU where there is one.
#[cfg(feature = "pipeline")]
fn load(checkpoint: &std::path::Path) -> Result<TextToImage, SampleError> {
    let device = models::device::named(None, 0).unwrap_or(tch::Device::Cpu);
    TextToImage::load(Opened::checkpoint(checkpoint, Parameters::Average)?, Loading::on(device))
}

/// Goes on until the run is to end.
#[cfg(feature = "pipeline")]
fn until_cancelled<'a>(task: &'a pipeline::stage::Task) -> impl FnMut(&Progress) -> ControlFlow<()> + 'a {
    |_: &Progress| if task.cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

#[cfg(feature = "pipeline")]
fn of_sampling(error: SampleError) -> pipeline::stage::StageError {
    match error {
        SampleError::Stopped => pipeline::stage::StageError::Cancelled,
        error => pipeline::stage::StageError::failed(error),
    }
}

/// What changes nothing about pictures but their last bits.
#[cfg(feature = "pipeline")]
#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
struct Operations {
    /// Pictures that are made at once: fewer take less memory, and more time [64].
    #[serde(default = "usual_batch")]
    batch: usize,
}

#[cfg(feature = "pipeline")]
fn usual_batch() -> usize {
    quality::sources::BATCH
}

/// How many pictures are made at once, as a stage's table says.
#[cfg(feature = "pipeline")]
fn batch_of(parameters: &pipeline::manifest::Parameters) -> Result<usize, pipeline::manifest::Diagnostic> {
    let Operations { batch } = parameters.read()?;
    if batch == 0 {
        return Err(parameters.fault("batch", "batch = 0: expected at least 1"));
    }
    Ok(batch)
}

/// Every stage kind that a manifest can use.
#[cfg(feature = "pipeline")]
pub(crate) fn registry() -> pipeline::stage::Registry {
    let mut registry = pipeline::stages::registry();
    registry.add(recaption::kind());
    registry.add(encode::kind());
    registry.add(train::kind());
    registry.add(sample::kind());
    registry.add(evaluate::kind());
    registry
}

/// The error and its causes.
#[cfg(feature = "pipeline")]
fn in_a_line(error: impl Into<anyhow::Error>) -> String {
    let mut causes: Vec<String> = error.into().chain().map(ToString::to_string).collect();
    // A transparent error repeats its source.
    causes.dedup();
    causes.join(": ")
}

/// The fault of a key by which models are named that cannot be read; where there are none, with how they come.
#[cfg(feature = "pipeline")]
fn fault_of_models(
    parameters: &pipeline::manifest::Parameters,
    key: &str,
    error: models::ModelError,
) -> pipeline::manifest::Diagnostic {
    let is_absent = matches!(&error, models::ModelError::Io { source, .. } if source.kind() == ErrorKind::NotFound);
    let fault = parameters.fault(key, in_a_line(error));
    if !is_absent {
        return fault;
    }
    fault.hint("`ferrotype fetch hf://OWNER/MODEL --to FOLDER` brings a model's files, which are read to plan")
}

/// A file below a stage's folder as committed data.
#[cfg(feature = "pipeline")]
fn data_file(
    folder: &shards::commit::StageFolder,
    path: &std::path::Path,
    rows: u64,
) -> Result<shards::sidecar::DataFile, pipeline::stage::StageError> {
    let digest = shards::digest::Digest::of_file(path)?;
    let bytes = std::fs::metadata(path).map_err(pipeline::stage::StageError::io("read", path))?.len();
    let file = path.strip_prefix(folder.path()).unwrap_or(path).to_string_lossy().into_owned();
    Ok(shards::sidecar::DataFile { file, digest, bytes, rows, footer: None, variant: None })
}

/// The checkpoint that an input `train` stage committed.
#[cfg(feature = "pipeline")]
fn checkpoint_of(task: &pipeline::stage::Task) -> Result<std::path::PathBuf, pipeline::stage::StageError> {
    let checkpoint = task.inputs.iter().find_map(|input| {
        let folder = input.sidecar.details.get(train::CHECKPOINT)?.as_str()?;
        Some(input.folder.path().join(folder))
    });
    checkpoint.ok_or_else(|| {
        pipeline::stage::StageError::failed("its input has no checkpoint: `from` must name a train stage")
    })
}
