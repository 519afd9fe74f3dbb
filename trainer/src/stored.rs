//! Checkpoints of a training whose folder is only a copy of one on a store: they go there as they are written, and come from there to whichever
//! machine goes on.
//!
//! ```text
//! run-1f0c…/                     on the store, as on this machine's disk
//!     latest                     the newest checkpoint that is there as a whole
//!     metrics.jsonl              as it was then
//!     step-000000950/…           its files
//!     step-000000950/files.json  those with their digests, to which what comes over a network is held
//! ```

use std::path::{Path, PathBuf};

use models::checkpoint::{self, EMA, MODEL, OPTIMIZER};
use shards::ShardError;
use shards::digest::Digest;
use shards::sidecar::DataFile;
use shards::storage::Workdir;

use crate::TrainError;
use crate::config::TrainOperations;
use crate::metrics;

const FILES: &str = "files.json";

/// The run's folder on the store.
#[derive(Clone, Debug)]
pub struct Stored {
    workdir: Workdir,
    /// The run's folder, as the store names it and on this machine.
    name: String,
    folder: PathBuf,
}

impl Stored {
    /// `None` where `run` is no copy.
    pub fn of(workdir: &Workdir, run: &Path) -> Option<Self> {
        let name = run.strip_prefix(workdir.folder()).ok().filter(|_| workdir.is_remote())?;
        let name: Vec<_> = name.components().map(|part| part.as_os_str().to_string_lossy()).collect();
        Some(Self { workdir: workdir.clone(), name: name.join("/"), folder: run.to_owned() })
    }

    fn name_of(&self, file: &str) -> String {
        format!("{}/{file}", self.name)
    }

    /// Takes the checkpoint of `step` to the store, and removes those there that need not be kept.
    pub(crate) fn save(&self, step: u64, operations: &TrainOperations) -> Result<(), TrainError> {
        let name = checkpoint::folder_name(step);
        let mut files = Vec::new();
        for file in [MODEL, EMA, OPTIMIZER, checkpoint::STATE] {
            let file = format!("{name}/{file}");
            let path = self.folder.join(&file);
            let bytes = std::fs::metadata(&path).map_err(ShardError::io("read", &path))?.len();
            let digest = Digest::of_file(&path)?;
            self.workdir.publish(&self.name_of(&file))?;
            files.push(DataFile { file, digest, bytes, rows: 0, footer: None, variant: None });
        }
        let list = serde_json::to_vec_pretty(&files).unwrap_or_default();
        self.workdir.replace(&self.name_of(&format!("{name}/{FILES}")), &list)?;
        let path = self.folder.join(metrics::FILE);
        let written = std::fs::read(&path).map_err(ShardError::io("read", &path))?;
        self.workdir.replace(&self.name_of(metrics::FILE), &written)?;
        self.workdir.replace(&self.name_of(checkpoint::LATEST), format!("{name}\n").as_bytes())?;
        self.prune(step, operations)
    }

    fn prune(&self, newest: u64, operations: &TrainOperations) -> Result<(), TrainError> {
        let entries = self.workdir.list(&self.name, true)?;
        let step_of = |name: &str| checkpoint::step_of_folder(name.split('/').next()?);
        let mut steps: Vec<u64> = entries.iter().filter_map(|entry| step_of(&entry.name)).collect();
        steps.dedup();
        let surplus = surplus(steps, newest, operations);
        for entry in entries.iter().filter(|entry| step_of(&entry.name).is_some_and(|step| surplus.contains(&step))) {
            self.workdir.remove(&self.name_of(&entry.name))?;
        }
        Ok(())
    }

    /// Brings the newest checkpoint here, with what is known of the way to it. Nothing happens where there is none.
    pub(crate) fn bring_latest(&self) -> Result<(), TrainError> {
        let latest = self.name_of(checkpoint::LATEST);
        let Some(name) = self.workdir.read(&latest)? else { return Ok(()) };
        let name = String::from_utf8_lossy(&name).trim().to_owned();
        let step = checkpoint::step_of_folder(&name);
        let step = step.ok_or_else(|| damaged(&latest, format!("it names `{name}`, no step-… folder beside it")))?;
        for file in [MODEL, EMA, OPTIMIZER, checkpoint::STATE] {
            self.bring(step, file)?;
        }
        let path = self.folder.join(metrics::FILE);
        let here = std::fs::metadata(&path).map_or(0, |found| found.len());
        // What is here may go further than the checkpoint; whoever opens it takes that back.
        if let Some(written) = self.workdir.read(&self.name_of(metrics::FILE))?.filter(|w| w.len() as u64 > here) {
            shards::disk::replace(&path, &written)?;
        }
        shards::disk::replace(&self.folder.join(checkpoint::LATEST), format!("{name}\n").as_bytes())?;
        Ok(())
    }

    /// Brings one file of the checkpoint of `step` here, unless it is; returns its path.
    pub fn bring(&self, step: u64, file: &str) -> Result<PathBuf, TrainError> {
        let name = checkpoint::folder_name(step);
        let list = self.name_of(&format!("{name}/{FILES}"));
        let bytes = self.workdir.read(&list)?;
        let bytes = bytes.ok_or_else(|| damaged(&list, "it is not there".to_owned()))?;
        let files: Vec<DataFile> = serde_json::from_slice(&bytes).map_err(|e| damaged(&list, e.to_string()))?;
        let wanted = format!("{name}/{file}");
        let found = files.iter().find(|found| found.file == wanted);
        let found = found.ok_or_else(|| damaged(&list, format!("it does not name {wanted}")))?;
        Ok(self.workdir.fetch(&self.name, found)?)
    }
}

fn damaged(name: &str, detail: String) -> ShardError {
    ShardError::Record { path: PathBuf::from(name), what: "record of a checkpoint", detail }
}

/// Of the checkpoints up to `newest`, the step of the one just written: those that are neither the newest few nor kept for good. Later ones are
/// those of a training that was set back: they stay until it has come so far again.
pub(crate) fn surplus(mut steps: Vec<u64>, newest: u64, operations: &TrainOperations) -> Vec<u64> {
    let is_kept = |step: u64| operations.keep_every > 0 && step.is_multiple_of(operations.keep_every);
    steps.retain(|step| *step <= newest && !is_kept(*step));
    steps.sort_unstable();
    steps.truncate(steps.len().saturating_sub(operations.keep_last.max(1) as usize));
    steps
}
