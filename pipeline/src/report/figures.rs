//! Everything on the page that is a number. The page embeds it as JSON, so that a program can compare it with the sidecars.

use std::collections::BTreeMap;

use serde::Serialize;

use super::buckets::Buckets;
use super::captions::{self, CaptionFigures};
use super::flow::{Flow, flows};
use super::histogram::Histogram;
use super::pictures::Shown;
use crate::plan::{Plan, PlannedStage};
use crate::stage::{Law, Partitioning};

/// The format of the embedded JSON.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize)]
pub(super) struct Figures<'a> {
    pub(super) format: u32,
    pub(super) pipeline: &'a str,
    pub(super) workdir: String,
    pub(super) totals: Totals,
    pub(super) stages: Vec<StageFigures>,
    pub(super) flows: Vec<Flow>,
    pub(super) histograms: Vec<Histogram>,
    pub(super) buckets: Option<Buckets>,
    pub(super) captions: Vec<CaptionFigures>,
    /// The stage that the gallery's pictures are from, and which they are.
    pub(super) pictures: &'a [Shown],
}

/// What the header says.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Totals {
    /// When the newest partition was finished, in seconds since 1970.
    pub(super) finished_at: Option<u64>,
    /// Rows that came in from outside.
    pub(super) rows_in: u64,
    /// Rows that the last stages which pass rows on have passed on.
    pub(super) rows_out: u64,
    /// Whether those stages have partitions yet to be made.
    pub(super) is_partial: bool,
    /// Rows refused by all stages.
    pub(super) dropped: u64,
    /// Work of all partitions, one after the other.
    pub(super) seconds: f64,
    /// Everything the sidecars name, quarantine included.
    pub(super) bytes: u64,
}

/// The sum of a stage's sidecars.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct StageFigures {
    pub(super) name: String,
    pub(super) kind: String,
    /// Names of the stages it reads from.
    pub(super) from: Vec<String>,
    /// Their positions.
    #[serde(skip)]
    pub(super) inputs: Vec<usize>,
    /// Those of them whose rows it takes; from the others it takes columns.
    #[serde(skip)]
    pub(super) rows_from: Vec<usize>,
    /// Whether its rows go on to other stages; otherwise they are only read.
    pub(super) passes_on: bool,
    pub(super) partitions: usize,
    pub(super) committed: usize,
    pub(super) rows_in: u64,
    pub(super) rows_out: u64,
    pub(super) dropped: BTreeMap<String, u64>,
    pub(super) observed: BTreeMap<String, u64>,
    pub(super) seconds: f64,
    pub(super) bytes: u64,
    pub(super) finished_at: Option<u64>,
}

impl StageFigures {
    pub(super) fn new(plan: &Plan, stage: &PlannedStage) -> Self {
        let from = stage.inputs.iter().filter_map(|&i| plan.stages.get(i)).map(|input| input.name.clone());
        let mut figures = Self {
            name: stage.name.clone(),
            kind: stage.kind.clone(),
            from: from.collect(),
            inputs: stage.inputs.clone(),
            rows_from: match stage.stage.partitioning() {
                Partitioning::Joined => stage.inputs.iter().copied().take(1).collect(),
                _ => stage.inputs.clone(),
            },
            passes_on: stage.stage.law() != Law::Reads,
            partitions: stage.partitions.len(),
            ..Self::default()
        };
        let totals = stage.totals();
        (figures.rows_in, figures.rows_out) = (totals.rows_in, totals.rows_out);
        (figures.dropped, figures.observed) = (totals.dropped, totals.observed);
        for sidecar in stage.committed() {
            figures.committed += 1;
            figures.seconds += sidecar.seconds;
            figures.bytes += sidecar.data.iter().chain(&sidecar.quarantine).map(|file| file.bytes).sum::<u64>();
            figures.finished_at = figures.finished_at.max(Some(sidecar.finished_at));
        }
        figures
    }

    pub(super) fn rows_dropped(&self) -> u64 {
        self.dropped.values().sum()
    }
}

impl<'a> Figures<'a> {
    /// The figures that sidecars give; the rest is added by who measures it.
    pub(super) fn of_sidecars(plan: &'a Plan) -> Self {
        let stages: Vec<StageFigures> = plan.stages.iter().map(|stage| StageFigures::new(plan, stage)).collect();
        Self {
            format: FORMAT,
            pipeline: &plan.name,
            workdir: plan.workdir.to_string(),
            totals: totals(&stages),
            flows: flows(&stages),
            stages,
            histograms: Vec::new(),
            buckets: None,
            captions: plan.stages.iter().flat_map(captions::of).collect(),
            pictures: &[],
        }
    }
}

fn totals(stages: &[StageFigures]) -> Totals {
    let at_end: Vec<&StageFigures> = ends(stages).filter_map(|i| stages.get(i)).collect();
    Totals {
        finished_at: stages.iter().filter_map(|stage| stage.finished_at).max(),
        rows_in: stages.iter().filter(|s| s.passes_on && s.inputs.is_empty()).map(|s| s.rows_in).sum(),
        rows_out: at_end.iter().map(|s| s.rows_out).sum(),
        is_partial: at_end.iter().any(|s| s.committed < s.partitions),
        dropped: stages.iter().map(StageFigures::rows_dropped).sum(),
        seconds: stages.iter().map(|s| s.seconds).sum(),
        bytes: stages.iter().map(|s| s.bytes).sum(),
    }
}

/// Positions of the stages that pass rows on, but to no other stage that does.
pub(super) fn ends(stages: &[StageFigures]) -> impl Iterator<Item = usize> + '_ {
    let passed_on = |i: usize| stages.iter().any(|reader| reader.passes_on && reader.inputs.contains(&i));
    stages.iter().enumerate().filter(move |(i, stage)| stage.passes_on && !passed_on(*i)).map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_count_rows_once() {
        let stage = |name: &str, inputs: Vec<usize>, passes_on, rows_in, rows_out| StageFigures {
            name: name.to_owned(),
            inputs,
            passes_on,
            rows_in,
            rows_out,
            dropped: BTreeMap::from([("x".to_owned(), rows_in - rows_out)]),
            finished_at: Some(rows_in),
            bytes: 10,
            ..StageFigures::default()
        };
        let stages = [
            stage("a", vec![], true, 100, 90),
            stage("b", vec![], true, 50, 50),
            stage("all", vec![0, 1], true, 140, 130),
            stage("index", vec![2], false, 130, 130),
            stage("train", vec![3], false, 9000, 9000),
        ];
        let expected = Totals {
            finished_at: Some(9000),
            rows_in: 150,
            rows_out: 130,
            is_partial: false,
            dropped: 20,
            seconds: 0.0,
            bytes: 50,
        };
        assert_eq!(totals(&stages), expected);
        assert_eq!(ends(&stages).collect::<Vec<_>>(), [2]);
    }
}
