//! The manifest: TOML that says which stages there are and what they are told.
//!
//! Reading keeps the place of every key, so that each fault names its file and line. All faults are collected and reported
//! together; nothing is started before there are none.

mod byte_size;
mod diagnostic;
mod parameters;
mod slurm;
mod tree;

pub use byte_size::ByteSize;
pub use diagnostic::{Diagnostic, Diagnostics, Place};
pub use parameters::{OneOrMore, Parameters, nearest, property_names};
pub use slurm::{Slurm, Time};
pub use tree::{Node, Value};

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::notify::Endpoint;

/// A manifest as written, with `--set` applied and variables replaced.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub file: PathBuf,
    /// As it was read, without what `--set` changed: a file may be another by the time that somebody else is to have it, and a pipe
    /// cannot be read twice.
    pub text: String,
    pub name: String,
    /// A folder, or `s3://bucket/prefix`.
    pub workdir: PathBuf,
    pub workdir_place: Place,
    /// Where copies of a workdir on an object store lie on this machine.
    pub scratch: Option<PathBuf>,
    /// Share of a stage's rows that may be refused before the run ends with a warning.
    pub warn_above: f64,
    /// Who is told how a run ended. No part of any fingerprint.
    pub notify: Option<Endpoint>,
    /// In the order of the file.
    pub stages: Vec<StageTable>,
}

/// A stage that another reads from: `bucket`, or one variant of it, `bucket@512`.
#[derive(Clone, Debug)]
pub struct Read {
    pub stage: String,
    pub variant: Option<String>,
    pub place: Place,
}

impl Read {
    fn parse(text: &str, place: Place) -> Self {
        let (stage, variant) = match text.split_once('@') {
            Some((stage, variant)) => (stage, Some(variant.to_owned())),
            None => (text, None),
        };
        Self { stage: stage.to_owned(), variant, place }
    }
}

impl std::fmt::Display for Read {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&with_variant(&self.stage, self.variant.as_deref()))
    }
}

/// `bucket@512`, or `bucket`: a stage as its readers name it.
pub fn with_variant(stage: &str, variant: Option<&str>) -> String {
    match variant {
        Some(variant) => format!("{stage}@{variant}"),
        None => stage.to_owned(),
    }
}

/// One `[stage.NAME]` table.
#[derive(Clone, Debug)]
pub struct StageTable {
    pub name: String,
    pub place: Place,
    /// The stage's kind.
    pub uses: (String, Place),
    /// The stages it reads from.
    pub from: Vec<Read>,
    pub on_bad_row: OnBadRow,
    pub fail_if: Option<FailIf>,
    /// The most partitions to make at a time.
    pub concurrency: Option<usize>,
    /// Bytes of memory that one partition takes.
    pub memory: Option<u64>,
    /// What its jobs ask of Slurm.
    pub slurm: Slurm,
    /// The keys that belong to the kind.
    pub parameters: Parameters,
}

/// What to do with a row that cannot be processed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBadRow {
    /// Count it.
    Drop,
    /// Count it and keep its key and reason.
    #[default]
    Quarantine,
    /// Stop the stage.
    Fail,
}

/// When a stage has failed as a whole. Rows that `retry` tries again do not count.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, JsonSchema)]
pub struct FailIf {
    /// The share of good rows below which the stage fails.
    pub success_below: f64,
    /// Rows to wait for before judging.
    #[serde(default)]
    pub after_rows: u64,
}

#[derive(Deserialize, JsonSchema)]
struct PipelineTable {
    /// Names the pipeline in reports.
    name: String,
    /// Folder of all results: a path, or s3://BUCKET/PREFIX on an S3-compatible store (AWS_… variables say how to reach it).
    workdir: String,
    /// Folder of this machine for copies of a workdir on a store [below ~/.cache/ferrotype].
    #[serde(default)]
    scratch: Option<PathBuf>,
    /// Share of a stage's rows that may be refused before `run` ends with code 3 [0.2].
    #[serde(default = "default_warn_above")]
    warn_above: f64,
    /// An http or https address that is told, in one POST of JSON, how each run ended [none].
    #[serde(default)]
    notify: Option<String>,
    /// What all stages' jobs ask of Slurm, where a stage says nothing else (`ferrotype submit`).
    #[serde(default)]
    slurm: Slurm,
}

const STAGES_HINT: &str = "add one, such as [stage.download] with uses = \"download\"";
const NOTIFY_HINT: &str =
    "such as notify = \"https://hooks.example.com/…\", or notify = \"{env:NAME}\" for a secret one";

fn default_warn_above() -> f64 {
    0.2
}

/// The keys that every stage table may have.
#[derive(Deserialize, JsonSchema)]
struct CommonKeys {
    /// The stage's kind.
    uses: String,
    /// The stage, or list of stages, that it reads from.
    #[serde(default)]
    #[schemars(with = "Option<OneOrMany>")]
    from: Option<serde_json::Value>,
    /// What to do with a row that cannot be processed [quarantine].
    #[serde(default)]
    on_bad_row: OnBadRow,
    /// When the stage has failed as a whole [never].
    #[serde(default)]
    fail_if: Option<FailIf>,
    /// The most partitions to make at a time [as many as there is room for].
    #[serde(default)]
    concurrency: Option<usize>,
    /// Memory that one partition takes, such as "2 GB": no more are made at a time than `run --memory` has room for.
    #[serde(default)]
    memory: Option<ByteSize>,
    /// What its jobs ask of Slurm (`ferrotype submit`).
    #[serde(default)]
    slurm: Slurm,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Manifest {
    /// Reads a manifest file. `sets` are `KEY=VALUE` overrides with dotted keys and TOML values.
    pub fn read(file: &Path, sets: &[String]) -> Result<Self, Diagnostics> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            let fault = Diagnostic::new(Place::file(file), format!("cannot be read: {error}"));
            Diagnostics::from(match error.kind() {
                std::io::ErrorKind::NotFound => fault.hint("`ferrotype init` writes one to start from"),
                _ => fault,
            })
        })?;
        Self::parse(&text, file, sets)
    }

    /// Reads a manifest from `text`; `file` is its name in messages.
    pub fn parse(text: &str, file: &Path, sets: &[String]) -> Result<Self, Diagnostics> {
        let mut root = tree::parse(text, file)?;
        let mut faults = Vec::new();
        for set in sets {
            if let Err(fault) = tree::set(&mut root, set) {
                faults.push(fault);
            }
        }
        faults.extend(tree::substitute(&mut root));
        let top = ["pipeline", "stage", "vars"];
        faults.extend(root.unknown_keys(&top.map(str::to_owned), "the manifest"));

        let mut notify = None;
        let pipeline = match root.get("pipeline") {
            None => {
                let fault = Diagnostic::new(Place::file(file), "has no [pipeline] table");
                faults.push(fault.hint("begin with [pipeline], name = \"…\" and workdir = \"…\""));
                None
            }
            Some(node) => {
                let parameters = Parameters::new("[pipeline]", node.clone());
                faults.extend(parameters.unknown(&[schemars::schema_for!(PipelineTable)], &[]));
                let table = parameters.read::<PipelineTable>().map_err(|fault| faults.push(fault)).ok();
                if let Some(address) = table.as_ref().and_then(|table| table.notify.as_deref()) {
                    match Endpoint::parse(address) {
                        Ok(endpoint) => notify = Some(endpoint),
                        Err(reason) => faults.push(parameters.fault("notify", reason).hint(NOTIFY_HINT)),
                    }
                }
                if let (Some(table), Some(below)) = (&table, parameters.below("slurm", "[pipeline.slurm]")) {
                    faults.extend(table.slurm.check(&below).err());
                }
                table
            }
        };
        let mut stages = Vec::new();
        match root.get("stage").map(|node| (node, &node.value)) {
            Some((_, Value::Table(tables))) if !tables.is_empty() => {
                for (name, node) in tables {
                    match stage_table(name, node) {
                        Ok(stage) => stages.push(stage),
                        // A --set for a stage that is not there makes a table with little in it.
                        Err(fault) if matches!(node.place, Place::Set(_)) && node.get("uses").is_none() => {
                            let others = tables.keys().map(String::as_str).filter(|other| other != name);
                            faults.push(match nearest(name, others) {
                                Some(near) => fault.hint(format!("did you mean stage.{near}?")),
                                None => fault,
                            });
                        }
                        Err(fault) => faults.push(fault),
                    }
                }
            }
            Some((node, Value::Table(_))) => {
                faults.push(Diagnostic::new(node.place.clone(), "has no stages").hint(STAGES_HINT));
            }
            Some((node, _)) => {
                let fault = Diagnostic::new(node.place.clone(), "`stage` must hold tables: [stage.NAME]");
                faults.push(fault.hint(STAGES_HINT));
            }
            None => faults.push(Diagnostic::new(Place::file(file), "has no stages").hint(STAGES_HINT)),
        }
        stages.sort_by(|a, b| a.place.cmp(&b.place));
        match pipeline {
            Some(pipeline) if faults.is_empty() => {
                for stage in &mut stages {
                    stage.slurm = std::mem::take(&mut stage.slurm).or(&pipeline.slurm);
                }
                Ok(Self {
                    file: file.to_owned(),
                    text: text.to_owned(),
                    name: pipeline.name,
                    workdir: PathBuf::from(pipeline.workdir),
                    workdir_place: place_of(&root, &["pipeline", "workdir"]),
                    scratch: pipeline.scratch,
                    warn_above: pipeline.warn_above,
                    notify,
                    stages,
                })
            }
            _ => Err(Diagnostics(faults)),
        }
    }
}

/// Where the value at a path of keys was written.
fn place_of(root: &Node, path: &[&str]) -> Place {
    root.follow(path.iter().copied()).place.clone()
}

fn stage_table(name: &str, node: &Node) -> Result<StageTable, Diagnostic> {
    let Value::Table(entries) = &node.value else {
        return Err(Diagnostic::new(node.place.clone(), format!("stage.{name} must be a table: [stage.{name}]")));
    };
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty() || !name.chars().all(safe) {
        let fault = Diagnostic::new(node.place.clone(), format!("`{name}` cannot name a stage"));
        return Err(fault.hint("a stage's name is its folder's name: letters, digits, - and _"));
    }
    let whole = Parameters::new(format!("[stage.{name}]"), node.clone());
    let common: CommonKeys = whole.read()?;
    // Its keys are judged together with its kind's own; here only what lies below the common ones is.
    let all: Vec<String> = entries.keys().cloned().collect();
    if let Some(fault) = whole.unknown(&[schemars::schema_for!(CommonKeys)], &all).into_iter().next() {
        return Err(fault);
    }
    if let Some(below) = whole.below("slurm", format!("[stage.{name}.slurm]")) {
        common.slurm.check(&below)?;
    }
    let place = |key: &str| entries.get(key).map_or_else(|| node.place.clone(), |n| n.place.clone());
    let from = match common.from {
        None => Vec::new(),
        Some(serde_json::Value::String(one)) => vec![Read::parse(&one, place("from"))],
        Some(serde_json::Value::Array(many)) if many.iter().all(serde_json::Value::is_string) => {
            many.iter().filter_map(|v| v.as_str()).map(|one| Read::parse(one, place("from"))).collect()
        }
        Some(other) => {
            let fault = Diagnostic::new(place("from"), format!("stage.{name}.from is {other}"));
            return Err(fault.hint("expected a stage's name, or a list of names"));
        }
    };
    if common.concurrency == Some(0) {
        let fault = Diagnostic::new(place("concurrency"), format!("stage.{name}.concurrency is 0"));
        return Err(fault.hint("expected 1 or more"));
    }
    let common_keys = property_names(&schemars::schema_for!(CommonKeys));
    let own =
        entries.iter().filter(|(key, _)| !common_keys.contains(key)).map(|(key, n)| (key.clone(), n.clone())).collect();
    let parameters =
        Parameters::new(format!("[stage.{name}]"), Node { place: node.place.clone(), value: Value::Table(own) })
            .reading_from(from.iter().map(|read| read.stage.clone()).collect());
    Ok(StageTable {
        name: name.to_owned(),
        place: node.place.clone(),
        uses: (common.uses, place("uses")),
        from,
        on_bad_row: common.on_bad_row,
        fail_if: common.fail_if,
        concurrency: common.concurrency,
        memory: common.memory.map(|size| size.0),
        slurm: common.slurm,
        parameters,
    })
}

/// The JSON schemas of the tables that are the engine's own: `[pipeline]`, and the keys common to all stages.
pub fn schemas() -> (schemars::Schema, schemars::Schema) {
    (schemars::schema_for!(PipelineTable), schemars::schema_for!(CommonKeys))
}
