//! Checkpoints of a training whose folder is only a copy of one on a store: they go there as they are written, and come from there to whichever
//! machine goes on.
//!
//! ```text
//! run-1f0c…/                     on the store, as on this machine's disk
//!     latest                     the newest checkpoint that is there as a whole
//!     metrics.jsonl              as it was then
//!     events.out.tfevents.…      what TensorBoard shows, up to then
//!     samples/                   sheets of pictures
//!     step-000000950/…           its files
//!     step-000000950/files.json  those with their digests, to which what comes over a network is held
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use models::checkpoint::{self, EMA, MODEL, OPTIMIZER};
use shards::ShardError;
use shards::digest::Digest;
use shards::sidecar::DataFile;
use shards::storage::{Entry, Workdir};

use crate::TrainError;
use crate::config::TrainOperations;
use crate::{grids, metrics, tensorboard};

const FILES: &str = "files.json";
/// Files that come from the store at a time.
const AT_A_TIME: usize = 32;

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
        let entries = self.workdir.list(&self.name, true)?;
        self.save_shown_unless(&entries)?;
        self.prune(&entries, step, operations)
    }

    /// Takes there what is only looked at: sheets of pictures and the files of TensorBoard, as they are by now.
    pub(crate) fn save_shown(&self) -> Result<(), TrainError> {
        self.save_shown_unless(&self.workdir.list(&self.name, true)?)
    }

    /// All but what is `there` already. Sheets do not change, and the files of TensorBoard only grow.
    fn save_shown_unless(&self, there: &[Entry]) -> Result<(), TrainError> {
        let there: BTreeMap<&str, u64> = there.iter().map(|entry| (entry.name.as_str(), entry.bytes)).collect();
        for (folder, prefix) in
            [(self.folder.clone(), String::new()), (self.folder.join(grids::FOLDER), format!("{}/", grids::FOLDER))]
        {
            if !folder.exists() {
                continue;
            }
            let failed = ShardError::io("list", &folder);
            let listed = std::fs::read_dir(&folder).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(failed)?;
            for entry in listed {
                let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                let bytes = entry.metadata().map_err(ShardError::io("read", &entry.path()))?.len();
                if is_shown(&name) && there.get(name.as_str()) != Some(&bytes) {
                    self.workdir.publish(&self.name_of(&name))?;
                }
            }
        }
        Ok(())
    }

    /// Brings here what other machines made of that.
    fn bring_shown(&self, entries: Vec<Entry>) -> Result<(), TrainError> {
        let names = entries.into_iter().map(|entry| entry.name);
        let missing: Vec<String> = names.filter(|name| is_shown(name) && !self.folder.join(name).exists()).collect();
        for names in missing.chunks(AT_A_TIME) {
            let stored: Vec<String> = names.iter().map(|name| self.name_of(name)).collect();
            for (name, bytes) in names.iter().zip(self.workdir.read_all(&stored)?) {
                let path = self.folder.join(name);
                if let (Some(bytes), Some(parent)) = (bytes, path.parent()) {
                    shards::disk::create_folder(parent)?;
                    shards::disk::replace(&path, &bytes)?;
                }
            }
        }
        Ok(())
    }

    fn prune(&self, entries: &[Entry], newest: u64, operations: &TrainOperations) -> Result<(), TrainError> {
        let steps: BTreeSet<u64> = entries.iter().filter_map(step_of).collect();
        let surplus = surplus(steps.into_iter().collect(), newest, operations);
        for entry in entries.iter().filter(|entry| step_of(entry).is_some_and(|step| surplus.contains(&step))) {
            self.workdir.remove(&self.name_of(&entry.name))?;
        }
        Ok(())
    }

    /// The step of the newest checkpoint that is there as a whole.
    pub(crate) fn latest(&self) -> Result<Option<u64>, TrainError> {
        let latest = self.name_of(checkpoint::LATEST);
        let Some(name) = self.workdir.read(&latest)? else { return Ok(None) };
        let name = String::from_utf8_lossy(&name).trim().to_owned();
        let step = checkpoint::step_of_folder(&name);
        let step = step.ok_or_else(|| damaged(&latest, format!("it names `{name}`, no step-… folder beside it")))?;
        Ok(Some(step))
    }

    /// Has no checkpoint be the newest, there and here.
    pub(crate) fn forget_latest(&self) -> Result<(), TrainError> {
        Ok(self.workdir.remove(&self.name_of(checkpoint::LATEST))?)
    }

    /// Brings the newest checkpoint here, with what is known of the way to it. Where a file of it is gone, or is not what was written, the
    /// one before it comes, and `passed_over` hears why. Nothing happens where there is none.
    pub(crate) fn bring_latest(&self, passed_over: &dyn Fn(u64, &TrainError)) -> Result<(), TrainError> {
        let Some(latest) = self.latest()? else { return Ok(()) };
        let entries = self.workdir.list(&self.name, true)?;
        if self.is_ahead(&entries) {
            return Ok(());
        }
        let mut steps: BTreeSet<u64> = entries.iter().filter_map(step_of).filter(|step| *step < latest).collect();
        steps.insert(latest);
        for step in steps.into_iter().rev() {
            match self.bring_checkpoint(step) {
                Ok(()) => return self.bring_with(step, entries),
                Err(error) if error.is_loss() => passed_over(step, &error),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn bring_checkpoint(&self, step: u64) -> Result<(), TrainError> {
        [MODEL, EMA, OPTIMIZER, checkpoint::STATE].into_iter().try_for_each(|file| self.bring(step, file).map(drop))
    }

    /// Brings what is known of the way to the checkpoint of `step`, which is here, and has it be the newest.
    fn bring_with(&self, step: u64, entries: Vec<Entry>) -> Result<(), TrainError> {
        let path = self.folder.join(metrics::FILE);
        let here = std::fs::metadata(&path).map_or(0, |found| found.len());
        // What is here may go further than the checkpoint; whoever opens it takes that back.
        if let Some(written) = self.workdir.read(&self.name_of(metrics::FILE))?.filter(|w| w.len() as u64 > here) {
            shards::disk::replace(&path, &written)?;
        }
        self.bring_shown(entries)?;
        let name = checkpoint::folder_name(step);
        shards::disk::replace(&self.folder.join(checkpoint::LATEST), format!("{name}\n").as_bytes())?;
        Ok(())
    }

    /// Whether this machine is further than any checkpoint of the store: its last could not be taken there.
    fn is_ahead(&self, there: &[Entry]) -> bool {
        let there = there.iter().filter_map(|entry| entry.name.split_once('/').filter(|(_, file)| *file == FILES));
        let newest = there.filter_map(|(folder, _)| checkpoint::step_of_folder(folder)).max();
        let here = std::fs::read_to_string(self.folder.join(checkpoint::LATEST)).ok();
        here.and_then(|name| checkpoint::step_of_folder(name.trim())) > newest
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
        // All of a model's files are equally long: one that lies here may be of a training that was set back since.
        let path = self.folder.join(&wanted);
        if path.exists() && Digest::of_file(&path)? != found.digest {
            shards::disk::remove(&path)?;
        }
        Ok(self.workdir.fetch(&self.name, found)?)
    }
}

/// The step of the checkpoint that a file of a run belongs to.
fn step_of(entry: &Entry) -> Option<u64> {
    checkpoint::step_of_folder(entry.name.split('/').next()?)
}

/// Whether a file of a run is one that is only looked at.
fn is_shown(name: &str) -> bool {
    match name.split_once('/') {
        Some((folder, sheet)) => folder == grids::FOLDER && sheet.ends_with(".png") && !sheet.contains('/'),
        None => name.starts_with(tensorboard::PREFIX),
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
