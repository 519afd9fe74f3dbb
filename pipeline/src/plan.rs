//! What would run, and why. Only a manifest without faults yields a plan, and only a plan can be run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use shards::commit::StageFolder;
use shards::digest::{Digest, DigestBuilder};
use shards::sidecar::{InputDigest, Sidecar};

use crate::ledger::Ledger;
use crate::manifest::{Diagnostic, Diagnostics, FailIf, Manifest, OnBadRow, StageTable};
use crate::stage::{Facts, Input, Partitioning, Registry, Source, Stage, StageError};

/// A checked manifest with the state of its workdir.
pub struct Plan {
    pub name: String,
    pub workdir: PathBuf,
    pub warn_above: f64,
    /// Inputs come before the stages that read them; otherwise in the manifest's order.
    pub stages: Vec<PlannedStage>,
}

/// One stage of a plan.
pub struct PlannedStage {
    pub name: String,
    /// `bucket@1`
    pub kind: String,
    pub stage: Arc<dyn Stage>,
    pub semantics: Value,
    /// Positions of the stages it reads from.
    pub inputs: Vec<usize>,
    pub on_bad_row: OnBadRow,
    pub fail_if: Option<FailIf>,
    pub sources: Vec<Source>,
    pub folder: StageFolder,
    pub ledger: Ledger,
    pub partitions: Vec<PlannedPartition>,
}

/// One partition of a plan.
#[derive(Clone, Debug)]
pub struct PlannedPartition {
    /// `part-00012`
    pub name: String,
    pub state: PartitionState,
}

impl PlannedPartition {
    /// Its committed record, unless it has to be made.
    pub fn sidecar(&self) -> Option<&Arc<Sidecar>> {
        match &self.state {
            PartitionState::UpToDate(sidecar) => Some(sidecar),
            PartitionState::Run(_) => None,
        }
    }
}

/// Whether a partition has to be made.
#[derive(Clone, Debug)]
pub enum PartitionState {
    UpToDate(Arc<Sidecar>),
    /// It has to be made, for this reason.
    Run(String),
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Manifest(#[from] Diagnostics),
    #[error("stage {stage}")]
    Stage { stage: String, source: StageError },
    #[error(transparent)]
    Shard(#[from] shards::ShardError),
}

/// The name of a partition.
pub fn partition_name(number: usize) -> String {
    format!("part-{number:05}")
}

/// The fingerprint of a partition: everything its content depends on.
pub fn fingerprint(kind: &str, semantics: &Value, inputs: &[InputDigest]) -> Digest {
    let mut builder = DigestBuilder::new().part(kind).part(canonical(semantics).to_string());
    for input in inputs {
        builder.add(input.digest.to_string());
    }
    builder.finish()
}

/// Objects with their keys sorted, at every depth.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, Value> = map.iter().map(|(k, v)| (k, canonical(v))).collect();
            sorted.into_iter().map(|(k, v)| (k.clone(), v)).collect()
        }
        Value::Array(items) => items.iter().map(canonical).collect(),
        other => other.clone(),
    }
}

impl Plan {
    /// Checks the manifest against the registry, builds its stages and looks at the workdir. All faults together.
    pub fn new(manifest: &Manifest, registry: &Registry) -> Result<Self, PlanError> {
        let order = sorted(&manifest.stages)?;
        let mut faults = Vec::new();
        if manifest.workdir.to_string_lossy().contains("://") {
            let table = crate::manifest::Place::file(&manifest.file);
            faults.push(
                Diagnostic::new(table, format!("workdir = \"{}\" is not a local folder", manifest.workdir.display()))
                    .hint("this version keeps its workdir on a local or mounted file system"),
            );
        }
        let mut built: Vec<Checked> = Vec::new();
        let mut facts: Vec<Facts> = Vec::new();
        for index in order {
            let Some(table) = manifest.stages.get(index) else { continue };
            match build(table, registry, &built, &facts) {
                Ok((stage, kind, inputs, stage_facts)) => {
                    built.push((table, stage, kind, inputs));
                    facts.push(stage_facts);
                }
                Err(mut found) => faults.append(&mut found),
            }
        }
        if !faults.is_empty() {
            return Err(Diagnostics(faults).into());
        }
        let mut plan = Self {
            name: manifest.name.clone(),
            workdir: manifest.workdir.clone(),
            warn_above: manifest.warn_above,
            stages: Vec::new(),
        };
        for (table, stage, kind, inputs) in built {
            let planned = plan.look_at(table, stage.into(), kind, inputs)?;
            plan.stages.push(planned);
        }
        Ok(plan)
    }

    fn look_at(
        &self,
        table: &StageTable,
        stage: Arc<dyn Stage>,
        kind: String,
        inputs: Vec<usize>,
    ) -> Result<PlannedStage, PlanError> {
        let folder = StageFolder::new(&self.workdir, &table.name);
        let ledger = Ledger::read(folder.clone())?;
        let sources = stage.sources().map_err(|source| PlanError::Stage { stage: table.name.clone(), source })?;
        let upstream = inputs.iter().filter_map(|&i| self.stages.get(i));
        let count = match stage.partitioning() {
            Partitioning::Source => sources.len(),
            Partitioning::EachInput => upstream.map(|s| s.partitions.len()).sum(),
            Partitioning::Whole => 1,
        };
        let mut planned = PlannedStage {
            name: table.name.clone(),
            kind,
            semantics: stage.semantics(),
            stage,
            inputs,
            on_bad_row: table.on_bad_row,
            fail_if: table.fail_if,
            sources,
            folder,
            ledger,
            partitions: Vec::new(),
        };
        for number in 0..count {
            let name = partition_name(number);
            let state = match self.inputs_of(&planned, number) {
                None => PartitionState::Run(planned.why(&name, None)),
                Some((_, digests)) => planned.state(&name, &digests),
            };
            planned.partitions.push(PlannedPartition { name, state });
        }
        Ok(planned)
    }

    /// The committed partitions that partition `number` of `stage` reads, and their digests; `None` while one is missing.
    pub(crate) fn inputs_of(&self, stage: &PlannedStage, number: usize) -> Option<(Vec<Input>, Vec<InputDigest>)> {
        if stage.stage.partitioning() == Partitioning::Source {
            let source = stage.sources.get(number)?;
            return Some((Vec::new(), vec![InputDigest { name: source.name.clone(), digest: source.digest }]));
        }
        let upstream = stage.inputs.iter().filter_map(|&i| self.stages.get(i));
        let mut read = upstream.flat_map(|s| s.partitions.iter().map(move |p| (s, p)));
        let read: Vec<(&PlannedStage, &PlannedPartition)> = match stage.stage.partitioning() {
            Partitioning::EachInput => vec![read.nth(number)?],
            _ => read.collect(),
        };
        let mut inputs = Vec::new();
        let mut digests = Vec::new();
        for (upstream, partition) in read {
            let PartitionState::UpToDate(sidecar) = &partition.state else { return None };
            let name = format!("{}/{}", upstream.name, partition.name);
            digests.push(InputDigest { name, digest: sidecar.output_digest() });
            let (stage, folder) = (upstream.name.clone(), upstream.folder.clone());
            inputs.push(Input { stage, folder, sidecar: Arc::clone(sidecar) });
        }
        Some((inputs, digests))
    }

    /// Whether nothing has to be made.
    pub fn is_up_to_date(&self) -> bool {
        self.stages.iter().all(|s| s.to_run() == 0)
    }
}

impl PlannedStage {
    /// Partitions that have to be made.
    pub fn to_run(&self) -> usize {
        self.partitions.iter().filter(|p| matches!(p.state, PartitionState::Run(_))).count()
    }

    /// The stage's reasons in one line, with how many partitions each concerns.
    pub fn summary(&self) -> String {
        let total = self.partitions.len();
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for partition in &self.partitions {
            if let PartitionState::Run(why) = &partition.state {
                *reasons.entry(why).or_default() += 1;
            }
        }
        if reasons.is_empty() {
            return format!("up to date ({total} of {total} partitions)");
        }
        let parts: Vec<String> = reasons.iter().map(|(why, n)| format!("{why}; {n} of {total} partitions")).collect();
        parts.join(". ")
    }

    /// The committed records of its current partitions.
    pub fn committed(&self) -> impl Iterator<Item = &Arc<Sidecar>> {
        self.partitions.iter().filter_map(PlannedPartition::sidecar)
    }

    /// The state of a partition whose inputs are there.
    pub(crate) fn state(&self, partition: &str, inputs: &[InputDigest]) -> PartitionState {
        let fingerprint = fingerprint(&self.kind, &self.semantics, inputs);
        match self.ledger.find(partition, &fingerprint) {
            Some(sidecar) => PartitionState::UpToDate(Arc::clone(sidecar)),
            None => PartitionState::Run(self.why(partition, Some(inputs))),
        }
    }

    /// Why a partition has to be made, in words. `inputs` is `None` while they are not there.
    fn why(&self, partition: &str, inputs: Option<&[InputDigest]>) -> String {
        let Some(last) = self.ledger.newest(partition) else {
            return "not made yet".to_owned();
        };
        let mut changes = Vec::new();
        if last.kind != self.kind {
            changes.push(format!("{} → {}", last.kind, self.kind));
        }
        changes.extend(differences(&last.parameters, &self.semantics, ""));
        match inputs {
            None => changes.push("its input will be made first".to_owned()),
            Some(inputs) if last.inputs.iter().map(|i| i.digest).ne(inputs.iter().map(|i| i.digest)) => {
                changes.push("its input changed".to_owned());
            }
            Some(_) => {}
        }
        if changes.is_empty() { "its data file is gone".to_owned() } else { changes.join(", ") }
    }
}

/// `max_resolution 256 → 512`, for each value that differs.
fn differences(before: &Value, after: &Value, path: &str) -> Vec<String> {
    if let (Value::Object(old), Value::Object(new)) = (before, after) {
        let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let dot = if path.is_empty() { "" } else { "." };
        return keys
            .into_iter()
            .flat_map(|key| {
                let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                differences(&of(old), &of(new), &format!("{path}{dot}{key}"))
            })
            .collect();
    }
    if before == after { Vec::new() } else { vec![format!("{path} {before} → {after}")] }
}

/// A stage without faults: its table, itself, its kind with version, and the positions of its inputs.
type Checked<'a> = (&'a StageTable, Box<dyn Stage>, String, Vec<usize>);
type Built = (Box<dyn Stage>, String, Vec<usize>, Facts);

fn build(
    table: &StageTable,
    registry: &Registry,
    built: &[Checked],
    facts: &[Facts],
) -> Result<Built, Vec<Diagnostic>> {
    let (uses, place) = &table.uses;
    let Some(kind) = registry.get(uses) else {
        let fault =
            Diagnostic::new(place.clone(), format!("stage.{} uses `{uses}`, which is no stage kind", table.name));
        let known: Vec<&str> = registry.kinds().map(|k| k.name).collect();
        return Err(vec![match registry.nearest(uses) {
            Some(name) => fault.hint(format!("did you mean `{name}`?")),
            None => fault.hint(format!("known kinds: {}", known.join(", "))),
        }]);
    };
    let mut faults = Vec::new();
    let (least, most) = kind.inputs;
    if table.from.len() < least || table.from.len() > most {
        let fault = Diagnostic::new(
            table.from.first().map_or(&table.place, |(_, place)| place).clone(),
            format!("stage.{} ({uses}) reads from {} stages", table.name, table.from.len()),
        );
        faults.push(fault.hint(match (least, most) {
            (0, 0) => "it reads from outside: remove `from`".to_owned(),
            (1, 1) => "write from = \"STAGE\"".to_owned(),
            _ => format!("it needs {least} to {most}: write from = [\"STAGE\", …]"),
        }));
    }
    let (_, common) = crate::manifest::schemas();
    faults.extend(table.parameters.unknown(&(kind.schemas)(), &crate::manifest::property_names(&common)));
    let stage = match (kind.build)(&table.parameters) {
        Ok(stage) => stage,
        Err(fault) => {
            faults.push(fault);
            return Err(faults);
        }
    };
    // A stage whose input could not be built is not checked further: the input's own faults come first.
    let inputs: Vec<usize> =
        table.from.iter().filter_map(|(name, _)| built.iter().position(|(t, ..)| t.name == *name)).collect();
    let mut upstream = Facts::new();
    for known in inputs.iter().filter_map(|&i| facts.get(i)) {
        upstream.extend(known.clone());
    }
    faults.extend(stage.check(&upstream).into_iter().map(|(key, message)| table.parameters.fault(key, message)));
    upstream.extend(stage.facts());
    if faults.is_empty() { Ok((stage, kind.versioned_name(), inputs, upstream)) } else { Err(faults) }
}

/// Positions of the stages such that inputs come first. Unknown names and cycles are faults.
fn sorted(stages: &[StageTable]) -> Result<Vec<usize>, Diagnostics> {
    let mut faults = Vec::new();
    let position = |name: &str| stages.iter().position(|s| s.name == name);
    for stage in stages {
        for (name, place) in &stage.from {
            if position(name).is_none() {
                let message = format!("stage.{} reads from `{name}`, which is no stage of this manifest", stage.name);
                let fault = Diagnostic::new(place.clone(), message);
                let names: Vec<&str> = stages.iter().map(|s| s.name.as_str()).collect();
                faults.push(match crate::manifest::nearest(name, names.iter().copied()) {
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
                let place = stage.from.first().map_or(&stage.place, |(_, place)| place).clone();
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
    for (name, _) in stages.get(index).map_or(&[][..], |s| &s.from) {
        if let Some(cycle) = position(name).and_then(|next| visit(next, stages, position, order, path)) {
            return Some(cycle);
        }
    }
    path.pop();
    order.push(index);
    None
}
