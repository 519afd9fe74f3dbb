//! What would run, and why. Only a manifest without faults yields a plan, and only a plan can be run.

mod build;
mod estimate;
mod order;
mod reasons;
mod share;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde_json::Value;
use shards::commit::StageFolder;
use shards::digest::{Digest, DigestBuilder};
use shards::sidecar::{DataFile, InputDigest, Sidecar};
use shards::storage::Workdir;

use crate::ledger::Ledger;
use crate::manifest::{Diagnostic, Diagnostics, FailIf, Manifest, OnBadRow, Place, Slurm, StageTable, with_variant};
use crate::retry::{self, RetryList};
use crate::stage::{Facts, Input, Partitioning, Registry, Source, Stage, StageError};
pub use estimate::{Estimate, Volume};
pub use order::Selection;
pub use share::{Part, Share};

/// The partition of a survey, beside those of rows.
pub const SURVEY: &str = "part-survey";

/// A checked manifest with the state of its workdir.
pub struct Plan {
    pub name: String,
    pub workdir: Workdir,
    pub warn_above: f64,
    /// Inputs come before the stages that read them; otherwise in the manifest's order.
    pub stages: Vec<PlannedStage>,
    /// What keeps the selected stages from being made, in words.
    pub obstacles: Vec<String>,
}

/// One stage of a plan.
pub struct PlannedStage {
    pub name: String,
    /// `bucket@1`
    pub kind: String,
    pub stage: Arc<dyn Stage>,
    pub semantics: Arc<Value>,
    /// The semantics in canonical form, as they enter fingerprints.
    canonical: String,
    /// Positions of the stages it reads from.
    pub inputs: Vec<usize>,
    /// Of each of them, the variant that it reads.
    pub variants: Vec<Option<String>>,
    pub on_bad_row: OnBadRow,
    pub fail_if: Option<FailIf>,
    /// The most partitions to make at a time, where the manifest limits it.
    pub concurrency: Option<usize>,
    /// Bytes of memory that one partition takes, where the manifest says.
    pub memory: Option<u64>,
    pub sources: Vec<Source>,
    /// Rows to try again, as partitions after those of the sources.
    pub retries: Vec<RetryList>,
    /// Of each source's partition, the last number that a list of it has, whether or not that one still counts.
    pub(crate) last_retries: BTreeMap<String, usize>,
    pub folder: StageFolder,
    pub ledger: Ledger,
    pub partitions: Vec<PlannedPartition>,
    /// The survey that the partitions need, where they need one.
    pub survey: Option<PlannedPartition>,
    /// What its jobs ask of Slurm.
    pub slurm: Slurm,
    /// Whether a run may make its partitions.
    pub selected: bool,
    /// Which of them, where it is selected.
    pub part: Part,
    only_missing: bool,
    /// Whether partitions are made again although they are there.
    pub force: bool,
    /// Whether any partition was made by this configuration when one was first found missing.
    was_made_before: OnceLock<bool>,
    /// See [`PlannedStage::former`].
    former: OnceLock<Arc<[String]>>,
}

/// One partition of a plan.
#[derive(Clone, Debug)]
pub struct PlannedPartition {
    /// `part-00012`
    pub name: String,
    pub state: PartitionState,
    /// Whether its source divided its rows otherwise before.
    is_divided_anew: bool,
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

/// What became of a stage's rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub rows_in: u64,
    pub rows_out: u64,
    /// By reason.
    pub dropped: BTreeMap<String, u64>,
    pub observed: BTreeMap<String, u64>,
}

impl Totals {
    pub fn rows_dropped(&self) -> u64 {
        self.dropped.values().sum()
    }
}

/// Whether a partition has to be made.
#[derive(Clone, Debug)]
pub enum PartitionState {
    UpToDate(Arc<Sidecar>),
    /// It has to be made, for this reason.
    Run(Arc<str>),
}

/// What a partition is made from.
#[derive(Clone, Debug)]
pub struct Made {
    pub inputs: Vec<Input>,
    /// The part of the survey that concerns it.
    pub survey: Option<DataFile>,
    /// Everything that enters its fingerprint, in order.
    pub digests: Vec<InputDigest>,
}

/// A stage that another reads from, and which variant of its partitions.
type ReadStage<'a> = (&'a PlannedStage, Option<&'a str>);

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Manifest(#[from] Diagnostics),
    #[error("stage {stage}")]
    Stage { stage: String, source: StageError },
    #[error("{name} is no stage of this manifest; its stages: {}", known.join(", "))]
    UnknownStage { name: String, known: Vec<String> },
    #[error(transparent)]
    Shard(#[from] shards::ShardError),
}

/// The name of a partition.
pub fn partition_name(number: usize) -> String {
    format!("{PREFIX}{number:05}")
}

/// What every partition's name begins with.
const PREFIX: &str = "part-";

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
        Self::select(manifest, registry, &Selection::default())
    }

    /// A plan for some of the stages.
    pub fn select(manifest: &Manifest, registry: &Registry, selection: &Selection) -> Result<Self, PlanError> {
        let workdir = Workdir::open(&manifest.workdir.to_string_lossy(), manifest.scratch.as_deref());
        let workdir =
            workdir.map_err(|error| Diagnostic::new(manifest.workdir_place.clone(), format!("workdir: {error}")));
        Self::build(manifest, registry, selection, workdir)
    }

    /// A plan over a workdir that is open already, in place of the manifest's.
    pub fn in_workdir(
        manifest: &Manifest,
        registry: &Registry,
        selection: &Selection,
        workdir: Workdir,
    ) -> Result<Self, PlanError> {
        Self::build(manifest, registry, selection, Ok(workdir))
    }

    fn build(
        manifest: &Manifest,
        registry: &Registry,
        selection: &Selection,
        workdir: Result<Workdir, Diagnostic>,
    ) -> Result<Self, PlanError> {
        let order = order::sorted(&manifest.stages)?;
        let selected = selection.resolve(&manifest.stages)?;
        let mut faults = Vec::new();
        let workdir = workdir.map_err(|fault| faults.push(fault)).ok();
        let mut built: Vec<build::Checked> = Vec::new();
        let mut facts: Vec<Facts> = Vec::new();
        for index in order {
            let Some(table) = manifest.stages.get(index) else { continue };
            match build::build(table, registry, &built, &facts) {
                Ok((stage, kind, inputs, stage_facts)) => {
                    built.push((table, stage, kind, inputs));
                    facts.push(stage_facts);
                }
                Err(mut found) => faults.append(&mut found),
            }
        }
        let Some(workdir) = workdir.filter(|_| faults.is_empty()) else { return Err(Diagnostics(faults).into()) };
        let mut plan = Self {
            name: manifest.name.clone(),
            workdir,
            warn_above: manifest.warn_above,
            stages: Vec::new(),
            obstacles: Vec::new(),
        };
        for (table, stage, kind, inputs) in built {
            let planned = plan.look_at(table, stage.into(), kind, inputs, &selected, selection)?;
            plan.stages.push(planned);
        }
        plan.obstacles = plan.find_obstacles();
        Ok(plan)
    }

    /// The plan of a rehearsal: every stage on about `rows` rows, in a folder of its own below the workdir.
    pub fn rehearsal(
        manifest: &Manifest,
        registry: &Registry,
        selection: &Selection,
        rows: u64,
    ) -> Result<Self, PlanError> {
        let mut small = manifest.clone();
        small.workdir = format!("{}/rehearsal", manifest.workdir.to_string_lossy().trim_end_matches('/')).into();
        for table in &mut small.stages {
            if let Some(kind) = registry.get(&table.uses.0) {
                for (key, value) in (kind.rehearse)(&table.parameters, rows) {
                    table.parameters.replace(key, &value, &Place::Set(format!("--rehearse {rows}")));
                }
            }
        }
        Self::select(&small, registry, selection)
    }

    fn look_at(
        &self,
        table: &StageTable,
        stage: Arc<dyn Stage>,
        kind: String,
        inputs: Vec<usize>,
        selected: &BTreeSet<String>,
        selection: &Selection,
    ) -> Result<PlannedStage, PlanError> {
        let folder = StageFolder::new(&self.workdir, &table.name);
        let ledger = Ledger::read(folder.clone())?;
        let sources = stage.sources_after(&ledger);
        let sources = sources.map_err(|source| PlanError::Stage { stage: table.name.clone(), source })?;
        let semantics = stage.semantics();
        let selected = selected.contains(&table.name);
        let mut planned = PlannedStage {
            name: table.name.clone(),
            kind,
            canonical: canonical(&semantics).to_string(),
            semantics: Arc::new(semantics),
            stage,
            inputs,
            variants: table.from.iter().map(|from| from.variant.clone()).collect(),
            on_bad_row: table.on_bad_row,
            fail_if: table.fail_if,
            concurrency: table.concurrency,
            memory: table.memory,
            slurm: table.slurm.clone(),
            sources,
            retries: Vec::new(),
            last_retries: BTreeMap::new(),
            folder,
            ledger,
            partitions: Vec::new(),
            survey: None,
            selected,
            part: selection.part,
            only_missing: selection.only_missing,
            force: selection.force && selected,
            was_made_before: OnceLock::new(),
            former: OnceLock::new(),
        };
        if planned.stage.may_retry() {
            (planned.retries, planned.last_retries) = retry::lists(&planned)?;
        }
        if planned.stage.partitioning().is_surveyed() {
            planned.survey = Some(self.look_at_partition(&planned, SURVEY.to_owned(), None));
        }
        for (number, name) in self.partition_names(&planned).into_iter().enumerate() {
            let partition = self.look_at_partition(&planned, name, Some(number));
            planned.partitions.push(partition);
        }
        // Where no partition is missing, nobody will ask for a survey.
        if planned.only_missing && planned.missing() == 0 && planned.lacks_survey() {
            let earlier = planned.ledger.newest(SURVEY).cloned();
            if let (Some(survey), Some(earlier)) = (&mut planned.survey, earlier) {
                survey.state = PartitionState::UpToDate(earlier);
            }
        }
        Ok(planned)
    }

    /// A partition takes the name of the one it is made from, so that one more input partition renames no others; of several inputs,
    /// with the name of the one it comes from.
    fn partition_names(&self, stage: &PlannedStage) -> Vec<String> {
        match (stage.stage.partitioning(), stage.inputs.as_slice()) {
            (Partitioning::Source, _) => {
                let sources = (0..stage.sources.len()).map(partition_name);
                sources.chain(stage.retries.iter().map(|list| list.name.clone())).collect()
            }
            (Partitioning::Whole, _) => vec![partition_name(0)],
            (_, &[one]) | (Partitioning::Joined, &[one, ..]) => {
                self.stages.get(one).into_iter().flat_map(|s| &s.partitions).map(|p| p.name.clone()).collect()
            }
            (_, _) => {
                let named = |(input, variant): ReadStage, partition: &PlannedPartition| {
                    let rest = partition.name.strip_prefix(PREFIX).unwrap_or(&partition.name);
                    let variant = variant.map_or_else(String::new, |variant| format!("-{variant}"));
                    format!("{PREFIX}{}{variant}-{rest}", input.name)
                };
                self.read_by(stage).flat_map(|read| read.0.partitions.iter().map(move |p| named(read, p))).collect()
            }
        }
    }

    /// `number` is `None` for the survey.
    fn look_at_partition(&self, stage: &PlannedStage, name: String, number: Option<usize>) -> PlannedPartition {
        let made = self.made_from(stage, number);
        let is_divided_anew = match (stage.stage.partitioning(), number) {
            (Partitioning::Source, Some(_)) => {
                let digests = || made.iter().flat_map(|made| &made.digests).map(|input| input.digest);
                let of_others = |earlier: &Sidecar| earlier.inputs.iter().map(|input| input.digest).ne(digests());
                stage.ledger.newest_that(&name, of_others).is_some()
            }
            // All rows are in it, whatever they are.
            (Partitioning::Whole, _) | (_, None) => false,
            (_, Some(number)) => self.nth_input(stage, number).is_some_and(|(_, _, input)| input.is_divided_anew),
        };
        let state = match &made {
            None => stage.state_without_input(&name),
            Some(made) => stage.state(&name, &made.digests),
        };
        PlannedPartition { name, state, is_divided_anew }
    }

    /// What partition `number` of `stage` (`None`: its survey) is made from; `None` while some of it is missing.
    pub fn made_from(&self, stage: &PlannedStage, number: Option<usize>) -> Option<Made> {
        if let (Partitioning::Source, Some(number)) = (stage.stage.partitioning(), number) {
            let digest = match stage.sources.get(number) {
                Some(source) => InputDigest { name: source.name.clone(), digest: source.digest },
                None => stage.retries.get(number - stage.sources.len())?.digest(),
            };
            return Some(Made { inputs: Vec::new(), survey: None, digests: vec![digest] });
        }
        let one = number.filter(|_| stage.stage.partitioning() != Partitioning::Whole);
        let read: Vec<(usize, ReadStage, &PlannedPartition)> = if let Some(number) = one {
            vec![self.nth_input(stage, number)?]
        } else {
            let all = self.read_by(stage).enumerate();
            all.flat_map(|(position, read)| read.0.partitions.iter().map(move |p| (position, read, p))).collect()
        };
        let mut made = Made { inputs: Vec::new(), survey: None, digests: Vec::new() };
        for (position, (upstream, variant), partition) in read {
            let sidecar = partition.sidecar()?;
            let sidecar = variant.map_or_else(|| Arc::clone(sidecar), |name| Arc::new(sidecar.narrowed(name)));
            let name = format!("{}/{}", with_variant(&upstream.name, variant), partition.name);
            made.digests.push(InputDigest { name, digest: sidecar.output_digest() });
            let (stage, folder) = (upstream.name.clone(), upstream.folder.clone());
            made.inputs.push(Input { stage, position, folder, sidecar });
        }
        if let (Some(survey), Some(number)) = (&stage.survey, number) {
            let file = survey.sidecar()?.data.get(number)?.clone();
            made.digests.push(InputDigest { name: format!("survey/{number}"), digest: file.digest });
            made.survey = Some(file);
        }
        Some(made)
    }

    /// The stages that a stage reads from, and which variant of each.
    pub(crate) fn read_by<'a>(&'a self, stage: &'a PlannedStage) -> impl Iterator<Item = ReadStage<'a>> {
        let read = stage.inputs.iter().zip(&stage.variants);
        read.filter_map(|(&at, variant)| Some((self.stages.get(at)?, variant.as_deref())))
    }

    /// The input partition of this number, counted through all input stages, and the position of its stage among them.
    fn nth_input<'a>(
        &'a self,
        stage: &'a PlannedStage,
        mut number: usize,
    ) -> Option<(usize, ReadStage<'a>, &'a PlannedPartition)> {
        for (position, read) in self.read_by(stage).enumerate() {
            match read.0.partitions.get(number) {
                Some(partition) => return Some((position, read, partition)),
                None => number -= read.0.partitions.len(),
            }
        }
        None
    }

    /// Whether nothing that was selected has to be made.
    pub fn is_up_to_date(&self) -> bool {
        self.stages.iter().all(|s| s.to_run() == 0)
    }

    /// A stage by its name.
    pub fn stage(&self, name: &str) -> Result<&PlannedStage, PlanError> {
        self.stages.iter().find(|stage| stage.name == name).ok_or_else(|| PlanError::UnknownStage {
            name: name.to_owned(),
            known: self.stages.iter().map(|stage| stage.name.clone()).collect(),
        })
    }

    /// What keeps selected stages from being made: unselected ones whose partitions are not there, and what they say themselves.
    fn find_obstacles(&self) -> Vec<String> {
        let mut obstacles = Vec::new();
        for stage in self.stages.iter().filter(|stage| stage.selected) {
            let mut first = 0;
            for upstream in stage.inputs.iter().filter_map(|&i| self.stages.get(i)) {
                let missing = upstream.partitions.iter().enumerate().filter(|(_, p)| p.sidecar().is_none());
                let missing = missing.filter(|(number, _)| stage.needs(first, *number)).count();
                first += upstream.partitions.len();
                if missing > 0 && !upstream.selected {
                    obstacles.push(format!(
                        "{} reads from {}, {missing} of {} partitions of which are not made, and {} was not selected; run it \
                         too (--until), or without a selection",
                        stage.name,
                        upstream.name,
                        upstream.partitions.len(),
                        upstream.name
                    ));
                }
            }
            if stage.to_run() > 0
                && let Some(obstacle) = stage.stage.obstacle()
            {
                obstacles.push(format!("{} cannot run: {obstacle}", stage.name));
            }
        }
        obstacles
    }
}

impl PlannedStage {
    /// Partitions that a run would make; of the part that is a survey, that one.
    pub fn to_run(&self) -> usize {
        match self.part {
            Part::Survey if self.selected => usize::from(self.lacks_survey()),
            _ => self.wanted().count(),
        }
    }

    /// Partitions that are not there, selected or not.
    pub fn missing(&self) -> usize {
        self.partitions.iter().filter(|p| p.sidecar().is_none()).count()
    }

    /// The variants in which its partitions come; `[None]` where they come as they are.
    pub fn variant_names(&self) -> Vec<Option<String>> {
        let names: Vec<Option<String>> = self.stage.variants().into_iter().map(|(name, _)| Some(name)).collect();
        if names.is_empty() { vec![None] } else { names }
    }

    /// The committed data files of one variant of its current partitions; `None` is that of a stage without variants.
    pub fn data_of(&self, variant: Option<&str>) -> Vec<&DataFile> {
        let files = self.committed().flat_map(|sidecar| &sidecar.data);
        files.filter(|file| file.variant.as_deref() == variant).collect()
    }

    /// The committed records of its current partitions.
    pub fn committed(&self) -> impl Iterator<Item = &Arc<Sidecar>> {
        self.partitions.iter().filter_map(PlannedPartition::sidecar)
    }

    /// Rows of its committed partitions. A row that was tried again counts once, as what became of it last.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        let add = |counts: &mut BTreeMap<String, u64>, more: &BTreeMap<String, u64>| {
            for (name, n) in more {
                *counts.entry(name.clone()).or_default() += n;
            }
        };
        for (number, partition) in self.partitions.iter().enumerate() {
            let Some(sidecar) = partition.sidecar() else { continue };
            totals.rows_in += sidecar.rows_in;
            totals.rows_out += sidecar.rows_out;
            add(&mut totals.dropped, &sidecar.dropped);
            add(&mut totals.observed, &sidecar.observed);
            if let Some(list) = self.retry_list(number) {
                totals.rows_in = totals.rows_in.saturating_sub(list.rows());
                for (reason, n) in list.reasons() {
                    if let Some(count) = totals.dropped.get_mut(reason) {
                        *count = count.saturating_sub(*n);
                    }
                }
            }
        }
        totals.dropped.retain(|_, n| *n > 0);
        totals
    }

    /// The fingerprint of a partition: everything its content depends on.
    pub fn fingerprint(&self, inputs: &[InputDigest]) -> Digest {
        let mut builder = DigestBuilder::new().part(&self.kind).part(&self.canonical);
        for input in inputs {
            builder.add(input.digest.to_string());
        }
        builder.finish()
    }

    /// Partitions that may have had rows which others have now, by name: those whose source divides its rows otherwise than it did, as
    /// when a file came in between, and those that are there no more. By the records, until those of the earlier division are deleted;
    /// a change of parameters alone moves no row.
    pub fn former(&self) -> &Arc<[String]> {
        self.former.get_or_init(|| {
            let names: HashSet<&str> = self.partitions.iter().map(|partition| partition.name.as_str()).collect();
            let recorded = self.ledger.sidecars().map(|sidecar| sidecar.partition.as_str());
            let gone = recorded.filter(|name| *name != SURVEY && !names.contains(name));
            let divided = self.partitions.iter().filter(|partition| partition.is_divided_anew);
            let former: BTreeSet<&str> = divided.map(|partition| partition.name.as_str()).chain(gone).collect();
            former.into_iter().map(str::to_owned).collect()
        })
    }

    /// Brings a committed file to this machine; returns its path.
    pub fn fetch(&self, file: &DataFile) -> Result<std::path::PathBuf, shards::ShardError> {
        self.folder.fetch(file)
    }

    /// The rows to try again that partition `number` is made of.
    pub fn retry_list(&self, number: usize) -> Option<&RetryList> {
        number.checked_sub(self.sources.len()).and_then(|n| self.retries.get(n))
    }

    pub(crate) fn partition_mut(&mut self, number: Option<usize>) -> Option<&mut PlannedPartition> {
        match number {
            Some(number) => self.partitions.get_mut(number),
            None => self.survey.as_mut(),
        }
    }

    pub(crate) fn partition(&self, number: Option<usize>) -> Option<&PlannedPartition> {
        match number {
            Some(number) => self.partitions.get(number),
            None => self.survey.as_ref(),
        }
    }
}

/// Whether a path ends like a table of rows.
pub(crate) fn is_rows(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "parquet")
}

/// Whether a data file of a stage is a shard of samples: what lies in a folder below the stage's own is for other programs.
pub(crate) fn is_shard(file: &str) -> bool {
    is_rows(Path::new(file)) && !file.contains('/')
}
