//! The manifest: TOML that says which stages there are and what they are told.
//!
//! Reading keeps the place of every key, so that each fault names its file and line. All faults are collected and reported
//! together; nothing is started before there are none.

mod diagnostic;
mod parameters;
mod tree;

pub use diagnostic::{Diagnostic, Diagnostics, Place};
pub use parameters::{Parameters, nearest, property_names};
pub use tree::{Node, Value};

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

/// A manifest as written, with `--set` applied and variables replaced.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub file: PathBuf,
    pub name: String,
    pub workdir: PathBuf,
    /// Share of a stage's rows that may be refused before the run ends with a warning.
    pub warn_above: f64,
    /// In the order of the file.
    pub stages: Vec<StageTable>,
}

/// One `[stage.NAME]` table.
#[derive(Clone, Debug)]
pub struct StageTable {
    pub name: String,
    pub place: Place,
    /// The stage's kind.
    pub uses: (String, Place),
    /// Names of the stages it reads from.
    pub from: Vec<(String, Place)>,
    pub on_bad_row: OnBadRow,
    pub fail_if: Option<FailIf>,
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

/// When a stage has failed as a whole.
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
    /// Folder of all results.
    workdir: String,
    /// Share of a stage's rows that may be refused before `run` ends with code 3 [0.2].
    #[serde(default = "default_warn_above")]
    warn_above: f64,
}

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
            Diagnostics::from(Diagnostic::new(Place::file(file), format!("cannot be read: {error}")))
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

        let pipeline = match root.get("pipeline") {
            None => {
                let fault = Diagnostic::new(Place::file(file), "has no [pipeline] table");
                faults.push(fault.hint("begin with [pipeline], name = \"…\" and workdir = \"…\""));
                None
            }
            Some(node) => {
                let parameters = Parameters::new("[pipeline]", node.clone());
                faults.extend(parameters.unknown(&[schemars::schema_for!(PipelineTable)], &[]));
                parameters.read::<PipelineTable>().map_err(|fault| faults.push(fault)).ok()
            }
        };
        let mut stages = Vec::new();
        match root.get("stage").map(|node| (node, &node.value)) {
            Some((_, Value::Table(tables))) if !tables.is_empty() => {
                for (name, node) in tables {
                    match stage_table(name, node) {
                        Ok(stage) => stages.push(stage),
                        Err(fault) => faults.push(fault),
                    }
                }
            }
            Some((node, Value::Table(_))) => faults.push(Diagnostic::new(node.place.clone(), "has no stages")),
            Some((node, _)) => {
                faults.push(Diagnostic::new(node.place.clone(), "`stage` must hold tables: [stage.NAME]"));
            }
            None => {
                let fault = Diagnostic::new(Place::file(file), "has no stages");
                faults.push(fault.hint("add one, such as [stage.download] with uses = \"download\""));
            }
        }
        stages.sort_by(|a, b| a.place.cmp(&b.place));
        match pipeline {
            Some(pipeline) if faults.is_empty() => Ok(Self {
                file: file.to_owned(),
                name: pipeline.name,
                workdir: PathBuf::from(pipeline.workdir),
                warn_above: pipeline.warn_above,
                stages,
            }),
            _ => Err(Diagnostics(faults)),
        }
    }
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
    let place = |key: &str| entries.get(key).map_or_else(|| node.place.clone(), |n| n.place.clone());
    let from = match common.from {
        None => Vec::new(),
        Some(serde_json::Value::String(one)) => vec![(one, place("from"))],
        Some(serde_json::Value::Array(many)) if many.iter().all(serde_json::Value::is_string) => {
            many.iter().filter_map(|v| v.as_str()).map(|one| (one.to_owned(), place("from"))).collect()
        }
        Some(other) => {
            let fault = Diagnostic::new(place("from"), format!("stage.{name}.from is {other}"));
            return Err(fault.hint("expected a stage's name, or a list of names"));
        }
    };
    let common_keys = property_names(&schemars::schema_for!(CommonKeys));
    let own =
        entries.iter().filter(|(key, _)| !common_keys.contains(key)).map(|(key, n)| (key.clone(), n.clone())).collect();
    let parameters =
        Parameters::new(format!("[stage.{name}]"), Node { place: node.place.clone(), value: Value::Table(own) });
    Ok(StageTable {
        name: name.to_owned(),
        place: node.place.clone(),
        uses: (common.uses, place("uses")),
        from,
        on_bad_row: common.on_bad_row,
        fail_if: common.fail_if,
        parameters,
    })
}

/// The JSON schemas of the tables that are the engine's own: `[pipeline]`, and the keys common to all stages.
pub fn schemas() -> (schemars::Schema, schemars::Schema) {
    (schemars::schema_for!(PipelineTable), schemars::schema_for!(CommonKeys))
}
