//! The order of stages: inputs first, and which stages a selection means.

use std::collections::BTreeSet;

use super::{Part, PlanError};
use crate::manifest::{Diagnostic, Diagnostics, Read, StageTable, nearest};

/// Which stages, and which of their partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// These stages; empty for all.
    pub stages: Vec<String>,
    /// This stage and whatever is made from it.
    pub from: Option<String>,
    /// This stage and whatever it is made from.
    pub until: Option<String>,
    /// Leave alone what an earlier configuration made; make only what was never made.
    pub only_missing: bool,
    /// Make the selected stages' partitions again, also where they are up to date.
    pub force: bool,
    /// Which part of them, for one of several workers.
    pub part: Part,
}

impl Selection {
    /// The names of the stages that are meant.
    pub(super) fn resolve(&self, stages: &[StageTable]) -> Result<BTreeSet<String>, PlanError> {
        let all: BTreeSet<String> = stages.iter().map(|stage| stage.name.clone()).collect();
        let named = self.stages.iter().chain(&self.from).chain(&self.until);
        if let Some(name) = named.into_iter().find(|name| !all.contains(*name)) {
            let known = stages.iter().map(|stage| stage.name.clone()).collect();
            return Err(PlanError::UnknownStage { name: name.clone(), known });
        }
        let mut selected = if self.stages.is_empty() { all } else { self.stages.iter().cloned().collect() };
        let reads = |reader: &StageTable, read: &str| reader.from.iter().any(|from| from.stage == read);
        if let Some(from) = &self.from {
            let downstream = reached(from, |name| stages.iter().filter(|s| reads(s, name)).map(|s| &s.name).collect());
            selected.retain(|name| downstream.contains(name));
        }
        if let Some(until) = &self.until {
            let upstream = reached(until, |name| {
                stages.iter().filter(|s| s.name == name).flat_map(|s| s.from.iter().map(|from| &from.stage)).collect()
            });
            selected.retain(|name| upstream.contains(name));
        }
        Ok(selected)
    }
}

/// `start` and everything that `next` leads to from there.
fn reached<'a>(start: &str, next: impl Fn(&str) -> Vec<&'a String>) -> BTreeSet<String> {
    let mut found = BTreeSet::from([start.to_owned()]);
    let mut open = vec![start.to_owned()];
    while let Some(name) = open.pop() {
        for name in next(&name) {
            if found.insert(name.clone()) {
                open.push(name.clone());
            }
        }
    }
    found
}

/// Positions of the stages such that inputs come first. Unknown names and cycles are faults.
pub(super) fn sorted(stages: &[StageTable]) -> Result<Vec<usize>, Diagnostics> {
    let mut faults = Vec::new();
    let position = |name: &str| stages.iter().position(|s| s.name == name);
    for stage in stages {
        for Read { stage: name, place, .. } in &stage.from {
            if position(name).is_none() {
                let message = format!("stage.{} reads from `{name}`, which is no stage of this manifest", stage.name);
                let fault = Diagnostic::new(place.clone(), message);
                let names: Vec<&str> = stages.iter().map(|s| s.name.as_str()).collect();
                faults.push(match nearest(name, names.iter().copied()) {
                    Some(near) => fault.hint(format!("did you mean `{near}`?")),
                    None => fault.hint(format!("its stages: {}", names.join(", "))),
                });
            }
        }
    }
    let mut order: Vec<usize> = Vec::new();
    let mut path: Vec<usize> = Vec::new();
    for index in 0..stages.len() {
        if let Some(cycle) = visit(index, stages, &position, &mut order, &mut path) {
            let names: Vec<&str> = cycle.iter().filter_map(|&i| stages.get(i)).map(|s| s.name.as_str()).collect();
            if let Some(stage) = cycle.first().and_then(|&i| stages.get(i)) {
                let place = stage.from.first().map_or(&stage.place, |from| &from.place).clone();
                let fault = Diagnostic::new(place, format!("stages form a cycle: {}", names.join(" → ")));
                faults.push(fault.hint("an arrow means `reads from`; remove one of them"));
            }
            break;
        }
    }
    if faults.is_empty() { Ok(order) } else { Err(Diagnostics(faults)) }
}

/// Depth first; returns a cycle as the positions along it, its first repeated at the end.
fn visit(
    index: usize,
    stages: &[StageTable],
    position: &impl Fn(&str) -> Option<usize>,
    order: &mut Vec<usize>,
    path: &mut Vec<usize>,
) -> Option<Vec<usize>> {
    if order.contains(&index) {
        return None;
    }
    if let Some(start) = path.iter().position(|&i| i == index) {
        let mut cycle: Vec<usize> = path.iter().skip(start).copied().collect();
        cycle.push(index);
        return Some(cycle);
    }
    path.push(index);
    for from in stages.get(index).map_or(&[][..], |s| &s.from) {
        if let Some(cycle) = position(&from.stage).and_then(|next| visit(next, stages, position, order, path)) {
            return Some(cycle);
        }
    }
    path.pop();
    order.push(index);
    None
}
