//! Which jobs were submitted: `jobs.json`.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use shards::ShardError;

use super::SlurmError;
use super::jobs::{Job, Work, title};

const FILE: &str = "jobs.json";

/// A job that was submitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    pub id: u64,
    pub stage: String,
    /// Whether it makes the stage's survey, not its partitions.
    pub is_survey: bool,
    /// Tasks that the stage's partitions are dealt to; 0 where it is no array.
    pub tasks: usize,
    /// Of the manifest with its overrides.
    pub version: String,
    /// Seconds since 1970, UTC.
    pub at: u64,
}

impl Submitted {
    pub(super) fn new(job: &Job, id: u64, version: String) -> Self {
        Self {
            id,
            stage: job.stage.clone(),
            is_survey: job.work == Work::Survey,
            tasks: if let Work::Shares { tasks, .. } = job.work { tasks } else { 0 },
            version,
            at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        }
    }

    /// `bucket`, or `dedup-survey`.
    pub fn title(&self) -> String {
        title(&self.stage, self.is_survey)
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) jobs: Vec<Submitted>,
}

impl Record {
    /// Empty where nothing was submitted.
    pub(super) fn read(folder: &Path) -> Result<Self, SlurmError> {
        let path = folder.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(ShardError::Io { action: "read", path, source }.into()),
        };
        serde_json::from_slice(&bytes).map_err(|source| SlurmError::Record { path, source })
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), SlurmError> {
        let path = folder.join(FILE);
        let bytes = serde_json::to_vec_pretty(self);
        let bytes = bytes.map_err(|source| SlurmError::Record { path: path.clone(), source })?;
        Ok(shards::disk::replace(&path, &bytes)?)
    }
}
