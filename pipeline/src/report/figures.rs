//! Everything on the page that is a number. The page embeds it as JSON, so that a program can compare it with the sidecars.

use std::collections::{BTreeMap, BTreeSet};

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
    /// Rows that came in from outside, of those that were to reach the last stages: not what these only take columns from.
    pub(super) rows_in: u64,
    /// Rows that the last stages which pass rows on have passed on.
    pub(super) rows_out: u64,
    /// Whether those stages have partitions yet to be made.
    pub(super) is_partial: bool,
    /// Rows refused by all stages. Those that were only not chosen are none of them.
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
    /// Whether what it drops was only not chosen.
    #[serde(skip)]
    pub(super) chooses: bool,
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
            chooses: stage.stage.law() == Law::Chooses,
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
        rows_in: beginnings(stages).into_iter().filter_map(|i| stages.get(i)).map(|s| s.rows_in).sum(),
        rows_out: at_end.iter().map(|s| s.rows_out).sum(),
        is_partial: at_end.iter().any(|s| s.committed < s.partitions),
        dropped: stages.iter().filter(|s| !s.chooses).map(StageFigures::rows_dropped).sum(),
        seconds: stages.iter().map(|s| s.seconds).sum(),
        bytes: stages.iter().map(|s| s.bytes).sum(),
    }
}

/// Positions of the stages that pass rows on, but to no other stage that does.
pub(super) fn ends(stages: &[StageFigures]) -> impl Iterator<Item = usize> + '_ {
    let passed_on = |i: usize| stages.iter().any(|reader| reader.passes_on && reader.inputs.contains(&i));
    stages.iter().enumerate().filter(move |(i, stage)| stage.passes_on && !passed_on(*i)).map(|(i, _)| i)
}

/// Positions of the stages by which the rows at the ends came in: of those on the rows' way there, the ones that take them from no
/// stage that passes rows on. So a stage that reads fetched files is one, and one that only gives others its columns is none.
fn beginnings(stages: &[StageFigures]) -> BTreeSet<usize> {
    let mut beginnings = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut way: Vec<usize> = ends(stages).collect();
    while let Some(at) = way.pop() {
        let Some(stage) = stages.get(at).filter(|_| seen.insert(at)) else { continue };
        let known = way.len();
        way.extend(stage.rows_from.iter().copied().filter(|&i| stages.get(i).is_some_and(|s| s.passes_on)));
        if way.len() == known {
            beginnings.insert(at);
        }
    }
    beginnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(name: &str, inputs: &[usize], passes_on: bool, rows: [u64; 2]) -> StageFigures {
        StageFigures {
            name: name.to_owned(),
            inputs: inputs.to_vec(),
            rows_from: inputs.to_vec(),
            passes_on,
            rows_in: rows[0],
            rows_out: rows[1],
            dropped: BTreeMap::from([("x".to_owned(), rows[0].saturating_sub(rows[1]))]),
            finished_at: Some(rows[0]),
            bytes: 10,
            ..StageFigures::default()
        }
    }

    /// Rows in, out and refused.
    fn rows(stages: &[StageFigures]) -> [u64; 3] {
        let totals = totals(stages);
        [totals.rows_in, totals.rows_out, totals.dropped]
    }

    #[test]
    fn totals_count_rows_once() {
        let stages = [
            stage("a", &[], true, [100, 90]),
            stage("b", &[], true, [50, 50]),
            stage("all", &[0, 1], true, [140, 130]),
            stage("index", &[2], false, [130, 130]),
            stage("train", &[3], false, [9000, 9000]),
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

    #[test]
    fn rows_come_in_behind_what_fetches_files_and_not_by_what_gives_columns() {
        let mut stages = vec![
            stage("files", &[], false, [0, 0]),
            stage("pictures", &[0], true, [1000, 990]),
            stage("caption_files", &[], false, [0, 0]),
            stage("captions", &[2], true, [1200, 1200]),
            // Its rows are those of its first input.
            StageFigures { rows_from: vec![1], ..stage("merge", &[1, 3], true, [990, 980]) },
            stage("bucket", &[4], true, [980, 970]),
            stage("index", &[5], false, [970, 970]),
        ];
        assert_eq!(rows(&stages), [1000, 970, 30]);
        // A second way from the same rows brings in no more of them.
        stages.push(stage("export", &[4], true, [980, 980]));
        assert_eq!(rows(&stages), [1000, 1950, 30]);
        assert_eq!(rows(&[stage("files", &[], false, [0, 0])]), [0, 0, 0]);
    }

    #[test]
    fn rows_that_were_not_chosen_are_not_refused() {
        let stages = [
            stage("import", &[], true, [1000, 900]),
            StageFigures { chooses: true, ..stage("subset", &[0], true, [900, 90]) },
            stage("bucket", &[1], true, [90, 89]),
        ];
        assert_eq!(rows(&stages), [1000, 89, 101]);
    }
}
