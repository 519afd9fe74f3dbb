//! What is written down about a run: `metrics.jsonl`, one object a line, and the same for TensorBoard.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::backward::Gradients;
use crate::collective;
use crate::split::TimeSplit;
use crate::tensorboard::{EventFile, Histogram};

/// The file of records in a run's folder.
pub const FILE: &str = "metrics.jsonl";
/// Bins of times in which losses are told apart.
pub const TIME_BINS: usize = 8;

/// Bars of a histogram.
const HISTOGRAM_BUCKETS: usize = 60;

/// One line: means over the updates since the line before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Updates done.
    pub step: u64,
    pub epoch: u64,
    pub loss: f64,
    /// The same by noise, from none (t = 0) to all (t = 1), in equal bins; none where no time fell into one.
    #[serde(default)]
    pub loss_by_time: Vec<Option<f64>>,
    pub gradient_norm: f64,
    pub learning_rate: f64,
    pub images_per_second: f64,
    /// Share of the time spent waiting for data.
    pub waiting: f64,
    /// FLOPs of the model a second, in units of 10¹², of one rank: three times those of the forward pass, whether or not parts of it were
    /// made again.
    #[serde(default)]
    pub teraflops: f64,
    /// Their share of `peak_teraflops`, where that is given.
    #[serde(default)]
    pub utilisation: Option<f64>,
    /// Where the rest of the first rank's time went.
    #[serde(default)]
    pub time: TimeSplit,
    /// Bytes in use at this moment: of the first rank's GPU, or of its process.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Images that could not be used and were replaced, of all ranks.
    #[serde(default)]
    pub replaced: u64,
    /// After this update, of the images that are held out.
    #[serde(default)]
    pub validation: Option<Validated>,
}

/// The loss of the images that are held out, by the weights as trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validated {
    /// The mean over all times.
    pub loss: f64,
    /// At the times 0, ⅛, …, ⅞.
    pub at: Vec<f64>,
}

/// Appends records to a run's files.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
    events: EventFile,
    records: Vec<Record>,
}

impl Metrics {
    /// Opens the files in `folder` for a run that continues after `step` updates: later records, written by a process that died before its
    /// next checkpoint, are taken back.
    pub fn open(folder: &Path, step: u64) -> Result<Self, TrainError> {
        let path = &folder.join(FILE);
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
        // In one step: all that is known of weeks is not to be lost with the machine that rewrites it.
        shards::disk::replace(path, kept.as_bytes())?;
        let file = File::options().append(true).open(path).map_err(failed("open"))?;
        Ok(Self { path: path.to_owned(), file, events: EventFile::create(folder, step)?, records })
    }

    pub fn append(&mut self, record: Record) -> Result<(), TrainError> {
        let line = serde_json::to_string(&record).unwrap_or_default();
        writeln!(self.file, "{line}").map_err(|source| TrainError::Io {
            action: "write",
            path: self.path.clone(),
            source,
        })?;
        let step = record.step;
        let bins = record.loss_by_time.iter().enumerate().filter_map(|(bin, loss)| Some((bin, (*loss)?)));
        for (bin, loss) in bins {
            let start = bin as f64 / TIME_BINS as f64;
            self.events.scalar(step, &format!("loss by time/from {start:.3}"), loss as f32)?;
        }
        for (n, loss) in record.validation.iter().flat_map(|validated| validated.at.iter().enumerate()) {
            let time = n as f64 / TIME_BINS as f64;
            self.events.scalar(step, &format!("validation loss by time/at {time:.3}"), *loss as f32)?;
        }
        for (tag, value) in [
            ("loss/train", Some(record.loss)),
            ("gradient norm", Some(record.gradient_norm)),
            ("learning rate", Some(record.learning_rate)),
            ("speed/images per second", Some(record.images_per_second)),
            ("speed/share of time spent waiting for data", Some(record.waiting)),
            ("speed/teraflops", Some(record.teraflops)),
            ("speed/utilisation", record.utilisation),
            ("time/prepare", Some(record.time.prepare)),
            ("time/forward", Some(record.time.forward)),
            ("time/backward", Some(record.time.backward)),
            ("time/reduce", Some(record.time.reduce)),
            ("time/update", Some(record.time.update)),
            ("memory/gigabytes", record.memory.map(|bytes| bytes as f64 / 1e9)),
            ("loss/validation", record.validation.as_ref().map(|validated| validated.loss)),
        ] {
            if let Some(value) = value {
                self.events.scalar(step, tag, value as f32)?;
            }
        }
        self.events.flush()?;
        self.records.push(record);
        Ok(())
    }

    /// Shows the gradients of each part of the model as a histogram in TensorBoard.
    pub fn histograms(&mut self, step: u64, gradients: &Gradients) -> Result<(), TrainError> {
        let last = gradients.parts().saturating_sub(1);
        for part in 0..=last {
            let name = match part {
                0 => "embedding".to_owned(),
                part if part == last => "output".to_owned(),
                part => format!("block {:03}", part - 1),
            };
            let values = collective::values(&gradients.part(part))?;
            self.events.histogram(step, &format!("gradients/{name}"), &Histogram::of(&values, HISTOGRAM_BUCKETS))?;
        }
        self.events.flush()
    }

    /// Shows a sheet of pictures in TensorBoard: the bytes of a PNG, and its size in pixels.
    pub fn picture(&mut self, step: u64, (width, height): (u32, u32), png: &[u8]) -> Result<(), TrainError> {
        self.events.image(step, "samples", width, height, png)?;
        self.events.flush()
    }

    /// Images that were replaced so far, as the records say.
    pub fn replaced(&self) -> u64 {
        self.records.iter().map(|record| record.replaced).sum()
    }

    /// All records so far, those before a resume included.
    pub fn records(&self) -> &[Record] {
        &self.records
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_resumed_run_takes_back_what_lies_after_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let record = |step| Record {
            step,
            epoch: 0,
            loss: 1.0,
            loss_by_time: vec![None; TIME_BINS],
            gradient_norm: 1.0,
            learning_rate: 0.1,
            images_per_second: 1.0,
            waiting: 0.0,
            teraflops: 0.0,
            utilisation: None,
            time: TimeSplit::default(),
            memory: None,
            replaced: 0,
            validation: None,
        };
        let mut file = Metrics::open(folder.path(), 0).unwrap();
        for step in [10, 20, 30] {
            file.append(record(step)).unwrap();
        }
        fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"step\":4").unwrap();
        let steps = |file: &Metrics| file.records().iter().map(|r| r.step).collect::<Vec<_>>();
        assert_eq!(steps(&Metrics::open(folder.path(), 30).unwrap()), [10, 20, 30]);
        assert_eq!(steps(&Metrics::open(folder.path(), 20).unwrap()), [10, 20]);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    }
}
