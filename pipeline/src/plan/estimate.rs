//! How much a run would read, write and take, judged by what earlier runs recorded.

use std::sync::Arc;

use shards::sidecar::Sidecar;

use super::{Plan, PlannedStage, SURVEY};
use crate::retry::RetryList;
use crate::stage::{Load, Partitioning};

/// Rows and bytes; a volume that cannot be known is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Volume {
    pub rows: Option<f64>,
    pub bytes: Option<f64>,
}

/// What a stage's missing partitions would come to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    pub partitions: usize,
    pub reads: Volume,
    pub writes: Volume,
    /// Seconds of work, added up over partitions.
    pub work: Option<f64>,
    /// Seconds from start to end, with as many partitions beside each other as this machine has room for.
    pub seconds: Option<f64>,
}

impl Plan {
    /// An estimate for each stage, in order. What a stage needs a row comes from its own records of whatever configuration,
    /// or else from those of the stage of the same name in `history` (a rehearsal).
    pub fn estimates(&self, cores: usize, history: Option<&Self>) -> Vec<Estimate> {
        // What each stage has, or will have, for those that read from it.
        let mut outputs: Vec<Volume> = Vec::new();
        let mut estimates = Vec::new();
        for stage in &self.stages {
            let mut recorded = Rates::of(stage.ledger.sidecars());
            let rehearsed = history.and_then(|plan| plan.stages.iter().find(|s| s.name == stage.name));
            if let Some(rehearsed) = rehearsed.filter(|_| recorded.seconds.is_none()) {
                recorded = Rates::of(rehearsed.ledger.sidecars());
            }
            let missing = stage.to_run();
            let reads = to_read(stage, missing, &outputs);
            let scaled = |per_row: Option<f64>| Some(per_row? * reads.rows?);
            let mut estimate = Estimate {
                partitions: missing,
                reads,
                writes: Volume { rows: scaled(recorded.rows_out), bytes: scaled(recorded.bytes_out) },
                work: scaled(recorded.seconds),
                seconds: None,
            };
            if missing == 0 {
                let nothing = Volume { rows: Some(0.0), bytes: Some(0.0) };
                estimate =
                    Estimate { partitions: 0, reads: nothing, writes: nothing, work: Some(0.0), seconds: Some(0.0) };
            }
            let beside = match stage.stage.load() {
                Load::Network(most) => most,
                Load::OneCore => cores,
                Load::AllCores => 1,
            };
            let beside = stage.concurrency.unwrap_or(beside).min(beside).clamp(1, missing.max(1));
            estimate.seconds = estimate.work.map(|work| work / beside as f64);
            let there = volume(stage.committed().map(Arc::as_ref));
            outputs.push(Volume {
                rows: there.rows.zip(estimate.writes.rows).map(|(a, b)| a + b),
                bytes: there.bytes.zip(estimate.writes.bytes).map(|(a, b)| a + b),
            });
            estimates.push(estimate);
        }
        estimates
    }
}

/// What the missing partitions read.
fn to_read(stage: &PlannedStage, missing: usize, outputs: &[Volume]) -> Volume {
    if stage.stage.partitioning() == Partitioning::Source {
        let unmade = stage.partitions.iter().enumerate().filter(|(_, p)| p.sidecar().is_none());
        let rows = unmade.map(|(i, _)| match stage.sources.get(i) {
            Some(source) => source.rows,
            None => stage.retry_list(i).map_or(0, RetryList::rows),
        });
        return Volume { rows: Some(rows.sum::<u64>() as f64), bytes: None };
    }
    let share = missing as f64 / stage.partitions.len().max(1) as f64;
    // A join is counted by the rows of its first input.
    let counted = if stage.stage.partitioning() == Partitioning::Joined { 1 } else { stage.inputs.len() };
    let inputs = || stage.inputs.iter().take(counted).map(|&i| outputs.get(i).copied().unwrap_or_default());
    let total = |of: fn(Volume) -> Option<f64>| inputs().map(of).sum::<Option<f64>>().map(|sum| sum * share);
    Volume {
        rows: stage.stage.rows_to_read().map(|rows| rows as f64).or_else(|| total(|v| v.rows)),
        bytes: total(|v| v.bytes),
    }
}

fn volume<'a>(sidecars: impl Iterator<Item = &'a Sidecar>) -> Volume {
    let (rows, bytes) = sidecars.fold((0, 0), |(rows, bytes), sidecar| {
        (rows + sidecar.rows_out, bytes + sidecar.data.iter().map(|file| file.bytes).sum::<u64>())
    });
    Volume { rows: Some(rows as f64), bytes: Some(bytes as f64) }
}

/// Per row that is read.
#[derive(Default)]
struct Rates {
    rows_out: Option<f64>,
    bytes_out: Option<f64>,
    seconds: Option<f64>,
}

impl Rates {
    fn of<'a>(sidecars: impl Iterator<Item = &'a Sidecar>) -> Self {
        let (mut rows_in, mut rows_out, mut bytes, mut seconds) = (0, 0, 0, 0.0);
        for sidecar in sidecars {
            seconds += sidecar.seconds;
            // A survey's rows are those of the partitions, and its files are not the stage's output.
            if sidecar.partition == SURVEY {
                continue;
            }
            rows_in += sidecar.rows_in;
            rows_out += sidecar.rows_out;
            bytes += sidecar.data.iter().map(|file| file.bytes).sum::<u64>();
        }
        if rows_in == 0 {
            return Self::default();
        }
        let per_row = |value: f64| Some(value / rows_in as f64);
        Self { rows_out: per_row(rows_out as f64), bytes_out: per_row(bytes as f64), seconds: per_row(seconds) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_recorded_means_nothing_known() {
        let rates = Rates::of([].into_iter());
        assert!(rates.seconds.is_none() && rates.rows_out.is_none() && rates.bytes_out.is_none());
        assert_eq!(volume([].into_iter()), Volume { rows: Some(0.0), bytes: Some(0.0) });
    }
}
