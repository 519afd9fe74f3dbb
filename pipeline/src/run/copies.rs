//! Copies of a workdir on a store: which of them nobody here will read any more.

use super::scheduler::Scheduler;
use crate::stage::Partitioning;

impl Scheduler<'_> {
    /// Of a workdir on a store, removes this machine's copies that nobody here will read any more: of the partition itself,
    /// and of what it was made from. What is wanted again can be had again.
    pub(super) fn let_go_of_copies(&self, stage: usize, number: usize) {
        let Some(planned) = self.plan.stages.get(stage) else { return };
        let mut first = 0;
        for &input in &planned.inputs {
            let count = self.plan.stages.get(input).map_or(0, |s| s.partitions.len());
            let read = match planned.stage.partitioning() {
                Partitioning::Whole => 0..count,
                _ if (first..first + count).contains(&number) => number - first..number - first + 1,
                _ => 0..0,
            };
            first += count;
            read.filter(|&n| !self.is_wanted(input, n)).for_each(|n| self.remove_copies(input, n));
        }
        if !self.is_wanted(stage, number) {
            self.remove_copies(stage, number);
        }
    }

    /// The same, of what only a survey reads.
    pub(super) fn let_go_after_survey(&self, stage: usize) {
        let Some(planned) = self.plan.stages.get(stage) else { return };
        for &input in &planned.inputs {
            let count = self.plan.stages.get(input).map_or(0, |s| s.partitions.len());
            (0..count).filter(|&n| !self.is_wanted(input, n)).for_each(|n| self.remove_copies(input, n));
        }
    }

    /// Whether a partition that is not there yet reads this one, itself or through its own input.
    fn is_wanted(&self, stage: usize, number: usize) -> bool {
        let is_missing = |stage: usize, number: usize| {
            let planned = self.plan.stages.get(stage);
            planned.is_some_and(|s| {
                s.is_wanted(Some(number)) && s.partitions.get(number).is_some_and(|p| p.sidecar().is_none())
            })
        };
        self.readers.get(stage).into_iter().flatten().any(|&(reader, first)| {
            let Some(planned) = self.plan.stages.get(reader) else { return false };
            let partitioning = planned.stage.partitioning();
            let read = if partitioning == Partitioning::Whole { 0 } else { first + number };
            let through = self.readers.get(reader).into_iter().flatten().any(|&(further, _)| {
                let planned = self.plan.stages.get(further);
                planned.is_some_and(|s| s.stage.reads_through() && s.selected && s.missing() > 0)
            });
            let survey = planned.survey.as_ref().is_some_and(|survey| survey.sidecar().is_none());
            through || is_missing(reader, read) || (partitioning == Partitioning::Joined && survey && planned.selected)
        })
    }

    fn remove_copies(&self, stage: usize, number: usize) {
        let Some(planned) = self.plan.stages.get(stage) else { return };
        let Some(sidecar) = planned.partitions.get(number).and_then(|p| p.sidecar()) else { return };
        let files = sidecar.data.iter().chain(&sidecar.quarantine);
        let names: Vec<String> = files.map(|file| planned.folder.name_of(&file.file)).collect();
        self.plan.workdir.let_go(&names);
    }
}
