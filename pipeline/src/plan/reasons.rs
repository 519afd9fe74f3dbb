//! Why partitions would run, in words.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use shards::sidecar::{InputDigest, Sidecar};

use super::{PartitionState, PlannedStage, SURVEY};

impl PlannedStage {
    /// The stage's reasons in one line, with how many partitions each concerns.
    pub fn summary(&self) -> String {
        let total = self.partitions.len();
        if !self.selected {
            return format!("not selected ({} of {total} partitions are there)", total - self.missing());
        }
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for partition in self.wanted().filter_map(|number| self.partitions.get(number)) {
            if let PartitionState::Run(why) = &partition.state {
                *reasons.entry(why).or_default() += 1;
            }
        }
        if reasons.is_empty() && self.to_run() > 0 {
            return "its survey is missing".to_owned();
        }
        if reasons.is_empty() {
            return format!("up to date ({total} of {total} partitions)");
        }
        let parts: Vec<String> = reasons.iter().map(|(why, n)| format!("{why}; {n} of {total} partitions")).collect();
        parts.join(". ")
    }

    /// The state of a partition whose inputs are there.
    pub(crate) fn state(&self, partition: &str, inputs: &[InputDigest]) -> PartitionState {
        if let Some(committed) = self.ledger.find(partition, &self.fingerprint(inputs)) {
            return if self.force {
                PartitionState::Run("asked for again".into())
            } else {
                PartitionState::UpToDate(Arc::clone(committed))
            };
        }
        self.state_of_earlier(partition).unwrap_or_else(|| PartitionState::Run(self.why(partition, Some(inputs))))
    }

    /// The state of a partition whose inputs will be made first.
    pub(super) fn state_without_input(&self, partition: &str) -> PartitionState {
        self.state_of_earlier(partition).unwrap_or_else(|| PartitionState::Run(self.why(partition, None)))
    }

    /// With `--only-missing`, whatever was made under an earlier configuration is good enough, if it comes in the variants that
    /// readers may ask for. An earlier survey is not: it knows nothing of partitions that came since.
    fn state_of_earlier(&self, partition: &str) -> Option<PartitionState> {
        if partition == SURVEY {
            return None;
        }
        let earlier = self.ledger.newest_that(partition, |s| self.stage.accepts(s));
        let earlier = earlier.filter(|s| self.only_missing && self.ledger.is_complete(s))?;
        let variants: BTreeSet<Option<&str>> = earlier.data.iter().map(|file| file.variant.as_deref()).collect();
        let names = self.variant_names();
        if !earlier.data.is_empty() && variants != names.iter().map(Option::as_deref).collect() {
            return None;
        }
        Some(PartitionState::UpToDate(Arc::clone(earlier)))
    }

    /// Why a partition has to be made, in words. `inputs` is `None` while they are not there.
    fn why(&self, partition: &str, inputs: Option<&[InputDigest]>) -> Arc<str> {
        let Some(last) = self.ledger.newest(partition) else {
            // A partition that is missing among others, of an input that is what it was, is no news about the stage.
            let of_this = |s: &Sidecar| s.kind == self.kind && *s.parameters == *self.semantics;
            let others = self.was_made_before.get_or_init(|| self.ledger.sidecars().any(of_this));
            return if *others { "input unchanged, missing".into() } else { "not made yet".into() };
        };
        let mut changes = Vec::new();
        if last.kind != self.kind {
            changes.push(format!("{} → {}", last.kind, self.kind));
        }
        changes.extend(differences(&last.parameters, &self.semantics, ""));
        changes.extend(input_changes(last, inputs));
        if changes.is_empty() { "its data file is gone".into() } else { changes.join(", ").into() }
    }
}

fn input_changes(last: &Sidecar, inputs: Option<&[InputDigest]>) -> Option<String> {
    let Some(inputs) = inputs else { return Some("its input will be made first".to_owned()) };
    let same = last.inputs.iter().map(|i| i.digest).eq(inputs.iter().map(|i| i.digest));
    if same {
        return None;
    }
    Some(match (last.inputs.len(), inputs.len()) {
        (before, now) if before != now => format!("{before} → {now} inputs"),
        _ => "its input changed".to_owned(),
    })
}

/// `max_resolution 256 → 512`, for each value that differs.
fn differences(before: &Value, after: &Value, path: &str) -> Vec<String> {
    if let (Value::Object(old), Value::Object(new)) = (before, after) {
        let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let dot = if path.is_empty() { "" } else { "." };
        return keys
            .into_iter()
            .flat_map(|key| {
                let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                differences(&of(old), &of(new), &format!("{path}{dot}{key}"))
            })
            .collect();
    }
    if before == after { Vec::new() } else { vec![format!("{path} {} → {}", shown(before), shown(after))] }
}

/// A value as it is told; a list of prompts need not be told whole.
fn shown(value: &Value) -> String {
    let text = if value.is_null() { "unset".to_owned() } else { value.to_string() };
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
