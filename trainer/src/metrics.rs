//! What is written down about a run: `metrics.jsonl`, one object a line.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::TrainError;

/// One line: means over the updates since the line before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Updates done.
    pub step: u64,
    pub epoch: u64,
    pub loss: f64,
    pub gradient_norm: f64,
    pub learning_rate: f64,
    pub images_per_second: f64,
    /// Share of the time spent waiting for data.
    pub waiting: f64,
}

/// Appends records to a file.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
    records: Vec<Record>,
}

impl MetricsFile {
    /// Opens `path` for a run that continues after `step` updates: later records, written by a process that died before its
    /// next checkpoint, are taken back.
    pub fn open(path: &Path, step: u64) -> Result<Self, TrainError> {
        let failed = |action| move |source| TrainError::Io { action, path: path.to_owned(), source };
        let mut records = Vec::new();
        if path.exists() {
            for line in BufReader::new(File::open(path).map_err(failed("open"))?).lines() {
                // A torn last line is a record of a step that will be done again.
                let Ok(record) = serde_json::from_str::<Record>(&line.map_err(failed("read"))?) else { break };
                if record.step > step {
                    break;
                }
                records.push(record);
            }
        }
        let kept: String = records.iter().filter_map(|r| serde_json::to_string(r).ok()).map(|l| l + "\n").collect();
        fs::write(path, kept).map_err(failed("write"))?;
        let file = File::options().append(true).open(path).map_err(failed("open"))?;
        Ok(Self { path: path.to_owned(), file, records })
    }

    pub fn append(&mut self, record: Record) -> Result<(), TrainError> {
        let line = serde_json::to_string(&record).unwrap_or_default();
        writeln!(self.file, "{line}").map_err(|source| TrainError::Io {
            action: "write",
            path: self.path.clone(),
            source,
        })?;
        self.records.push(record);
        Ok(())
    }

    /// All records so far, those before a resume included.
    pub fn records(&self) -> &[Record] {
        &self.records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_takes_back_what_lies_after_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let record = |step| Record {
            step,
            epoch: 0,
            loss: 1.0,
            gradient_norm: 1.0,
            learning_rate: 0.1,
            images_per_second: 1.0,
            waiting: 0.0,
        };
        let mut file = MetricsFile::open(&path, 0).unwrap();
        for step in [10, 20, 30] {
            file.append(record(step)).unwrap();
        }
        fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"step\":4").unwrap();
        let steps = |file: &MetricsFile| file.records().iter().map(|r| r.step).collect::<Vec<_>>();
        assert_eq!(steps(&MetricsFile::open(&path, 30).unwrap()), [10, 20, 30]);
        assert_eq!(steps(&MetricsFile::open(&path, 20).unwrap()), [10, 20]);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    }
}
