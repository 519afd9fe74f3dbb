//! Stages that need torch or ask models: adapters between the DAG engine and the rooms that do the work.

#[cfg(feature = "pipeline")]
mod encode;
pub(crate) mod evaluate;
#[cfg(feature = "pipeline")]
pub(crate) mod recaption;
#[cfg(feature = "pipeline")]
mod sample;
#[cfg(feature = "pipeline")]
mod train;

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
