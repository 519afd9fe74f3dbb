//! Copies of a workdir on a store: which of them stay on this machine.

use std::collections::HashSet;

use shards::sidecar::Sidecar;

use super::scheduler::{Node, Scheduler};
use crate::plan::PlannedStage;
use crate::stage::Partitioning;

/// Of each stage the copies of so many partitions a core (of four cores at least) wait here for their readers. What a stage makes beyond
/// that comes from the store again when it is read: one that is faster than its readers would fill the disk otherwise.
const KEPT: usize = 2;

impl Scheduler<'_> {
    /// Of a workdir on a store, removes this machine's copies that nobody here will read any more, or not soon: of the partition itself,
    /// which nobody reads yet, and of what it was made from. What is wanted again can be had again.
    pub(super) fn let_go_of_copies(&mut self, stage: usize, number: usize) {
        let Some(planned) = self.plan.stages.get(stage) else { return };
        let mut read = Vec::new();
        let mut first = 0;
        for &input in &planned.inputs {
            let count = self.plan.stages.get(input).map_or(0, |s| s.partitions.len());
            let numbers = match planned.stage.partitioning() {
                Partitioning::Whole => 0..count,
                _ if (first..first + count).contains(&number) => number - first..number - first + 1,
                _ => 0..0,
            };
            first += count;
            read.extend(numbers.map(|n| (input, n)));
        }
        for (input, n) in read {
            let stay = self.is_wanted(input, n) && (self.is_read_at_once(input) || self.has_place(input, n));
            if !stay {
                self.remove_copies(input, n);
            }
        }
        let stay = self.is_wanted(stage, number) && self.has_place(stage, number);
        if !stay {
            self.remove_copies(stage, number);
        }
    }

    /// The same, of what only a survey reads.
    pub(super) fn let_go_after_survey(&mut self, stage: usize) {
        let inputs = self.plan.stages.get(stage).map(|planned| planned.inputs.clone()).unwrap_or_default();
        for input in inputs {
            let count = self.plan.stages.get(input).map_or(0, |s| s.partitions.len());
            for n in 0..count {
                if !self.is_wanted(input, n) {
                    self.remove_copies(input, n);
                }
            }
        }
    }

    /// Of a workdir on a store, removes the copies that earlier processes left here, but for those that might have stayed if this one had made
    /// them: a disk that they have filled would stay full.
    pub(super) fn let_go_of_left_copies(&mut self) {
        if !self.plan.workdir.is_remote() {
            return;
        }
        for stage in 0..self.plan.stages.len() {
            let Some(planned) = self.plan.stages.get(stage).filter(|planned| planned.folder.path().is_dir()) else {
                continue;
            };
            let survey = planned.survey.as_ref().and_then(|survey| survey.sidecar());
            let mut stay: HashSet<String> = survey.into_iter().flat_map(|survey| names(planned, survey)).collect();
            let is_read_at_once = self.is_read_at_once(stage);
            for number in 0..planned.partitions.len() {
                if self.is_wanted(stage, number) && (is_read_at_once || self.has_place(stage, number)) {
                    stay.extend(self.names_of(stage, number));
                }
            }
            let Some(planned) = self.plan.stages.get(stage) else { continue };
            // A training's folder is more than the files that its record names, and of use as a whole only.
            let training = planned.folder.name_of("run-");
            for name in planned.ledger.sidecars().flat_map(|sidecar| names(planned, sidecar)) {
                if !stay.contains(&name) && !name.starts_with(&training) && self.plan.workdir.path(&name).exists() {
                    // One by one: another process may begin to use the folder at any time.
                    self.plan.workdir.let_go(&[name]);
                }
            }
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
            let survey = planned.survey.as_ref().is_some_and(|survey| survey.sidecar().is_none());
            self.is_read_through(reader)
                || is_missing(reader, read)
                || (partitioning == Partitioning::Joined && survey && planned.selected)
        })
    }

    /// Whether a stage that is not there yet reads, behind this one, what it was made from.
    fn is_read_through(&self, stage: usize) -> bool {
        self.readers.get(stage).into_iter().flatten().any(|&(further, _)| {
            let planned = self.plan.stages.get(further);
            planned.is_some_and(|s| s.stage.reads_through() && s.selected && s.missing() > 0)
        })
    }

    /// Whether something that reads all partitions of a stage together is not there yet and has what it waits for, or something reads them
    /// behind its own input. What was brought here for one such reader need not be brought a second time for the next.
    fn is_read_at_once(&self, stage: usize) -> bool {
        self.readers.get(stage).into_iter().flatten().any(|&(reader, _)| {
            let Some((planned, run)) = self.plan.stages.get(reader).zip(self.stages.get(reader)) else { return false };
            let can_start = |number: Option<usize>| {
                let waits_for = run.waits_for.get(number.unwrap_or(planned.partitions.len()));
                let is_missing = planned.partition(number).is_some_and(|p| p.sidecar().is_none());
                waits_for == Some(&0) && is_missing && planned.is_wanted(number)
            };
            let whole = planned.stage.partitioning() == Partitioning::Whole && can_start(Some(0));
            whole || can_start(None) || self.is_read_through(reader)
        })
    }

    /// Whether the copies of a partition that is wanted may stay, which then take a place until they are removed.
    fn has_place(&mut self, stage: usize, number: usize) -> bool {
        let at = (stage, number);
        if self.kept.contains(&at) || self.is_being_read(stage, number) || !self.is_here(stage, number) {
            return true;
        }
        let taken = self.kept.range((stage, 0)..(stage + 1, 0)).count();
        let has_place = taken < KEPT * self.options.cores.max(4);
        if has_place {
            self.kept.insert(at);
        }
        has_place
    }

    /// Whether something that reads a partition is being made here.
    fn is_being_read(&self, stage: usize, number: usize) -> bool {
        self.readers.get(stage).into_iter().flatten().any(|&(reader, first)| {
            let partitioning = self.plan.stages.get(reader).map(|planned| planned.stage.partitioning());
            let read = if partitioning == Some(Partitioning::Whole) { 0 } else { first + number };
            [Some(read), None].into_iter().any(|number| self.busy.contains(&Node { stage: reader, number }))
        })
    }

    fn is_here(&self, stage: usize, number: usize) -> bool {
        self.names_of(stage, number).iter().any(|name| self.plan.workdir.path(name).exists())
    }

    fn remove_copies(&mut self, stage: usize, number: usize) {
        self.kept.remove(&(stage, number));
        self.plan.workdir.let_go(&self.names_of(stage, number));
    }

    /// The files of a partition that is there, within the workdir.
    fn names_of(&self, stage: usize, number: usize) -> Vec<String> {
        let planned = self.plan.stages.get(stage);
        let there = planned.and_then(|planned| Some((planned, planned.partitions.get(number)?.sidecar()?)));
        there.map(|(planned, sidecar)| names(planned, sidecar)).unwrap_or_default()
    }
}

/// What a record of a stage names, within the workdir.
fn names(planned: &PlannedStage, sidecar: &Sidecar) -> Vec<String> {
    sidecar.data.iter().chain(&sidecar.quarantine).map(|file| planned.folder.name_of(&file.file)).collect()
}
