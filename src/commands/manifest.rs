//! What commands on a manifest share; `report` and `schema`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use pipeline::manifest::{ByteSize, Manifest, schemas};
use pipeline::notify::{Endpoint, Message};
use pipeline::plan::{self, PlannedStage};
use pipeline::run::{Executor, Options};
use pipeline::stage::Cancel;
use serde_json::{Map, Value, json};
use shards::event::{EventSink, RunOutcome};

use crate::errors::{FAILED, INTERRUPTED, LOSSES, OK, in_words};
use crate::stages;
use crate::watch::{self, Watch};

/// Which manifest, with which changes.
#[derive(Debug, Args)]
pub(crate) struct Source {
    /// The manifest, a TOML file.
    manifest: PathBuf,
    /// Overrides a key: --set stage.bucket.max_resolution=512
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Source {
    pub(crate) fn new(manifest: PathBuf, set: Vec<String>) -> Self {
        Self { manifest, set }
    }

    pub(crate) fn read(&self) -> Result<Manifest> {
        Ok(Manifest::read(&self.manifest, &self.set)?)
    }

    /// The manifest's file.
    pub(crate) fn manifest(&self) -> &Path {
        &self.manifest
    }

    /// The overrides.
    pub(crate) fn sets(&self) -> &[String] {
        &self.set
    }

    pub(crate) fn plan(&self) -> Result<plan::Plan> {
        Ok(plan::Plan::new(&self.read()?, &stages::registry())?)
    }
}

/// Whether a stage trains a model.
pub(super) fn is_training(stage: &PlannedStage) -> bool {
    stage.kind.starts_with("train@")
}

/// The batch size of the first training that reads a stage, of which `variant`, by itself or through others.
pub(super) fn batch_size(plan: &plan::Plan, stage: &str, variant: Option<&str>) -> Option<u64> {
    let read = plan.stages.iter().position(|planned| planned.name == stage)?;
    plan.stages.iter().find_map(|reader| {
        let mut reads = reader.inputs.iter().zip(&reader.variants);
        if !reads.any(|(&input, of)| input == read && of.as_deref() == variant) {
            return None;
        }
        if is_training(reader) {
            return reader.semantics.get("batch_size")?.as_u64();
        }
        batch_size(plan, &reader.name, None)
    })
}

/// Which stages, and which of their partitions.
#[derive(Debug, Args)]
pub(crate) struct Selected {
    /// Only this stage; may be given more than once.
    #[arg(long, value_name = "STAGE", conflicts_with_all = ["from", "until"])]
    stage: Vec<String>,
    /// Only this stage and whatever is made from it.
    #[arg(long, value_name = "STAGE")]
    from: Option<String>,
    /// Only this stage and whatever it is made from.
    #[arg(long, value_name = "STAGE")]
    until: Option<String>,
    /// Leave alone what an earlier configuration made; make only what was never made.
    #[arg(long)]
    only_missing: bool,
    /// Make partitions again also where they are up to date.
    #[arg(long, conflicts_with = "only_missing")]
    force: bool,
}

impl Selected {
    pub(crate) fn selection(&self) -> plan::Selection {
        plan::Selection {
            stages: self.stage.clone(),
            from: self.from.clone(),
            until: self.until.clone(),
            only_missing: self.only_missing,
            force: self.force,
            ..plan::Selection::default()
        }
    }
}

/// How much of the machine.
#[derive(Debug, Args)]
pub(crate) struct Budget {
    /// Cores to keep busy [all].
    #[arg(long)]
    cores: Option<usize>,
    /// Memory for partitions whose stage says how much they take, such as 8GB [four fifths of the machine's].
    #[arg(long)]
    memory: Option<ByteSize>,
    /// Go on with what does not depend on a partition that failed.
    #[arg(long)]
    keep_going: bool,
}

impl Budget {
    /// As many as were asked for.
    #[cfg(feature = "cluster")]
    pub(super) fn cores(&self) -> Option<usize> {
        self.cores
    }

    pub(crate) fn options(&self) -> Options {
        let usual = Options::default();
        Options {
            cores: self.cores.map_or(usual.cores, |cores| cores.max(1)),
            memory: self.memory.map_or(usual.memory, |size| size.0),
            keep_going: self.keep_going,
            ..usual
        }
    }
}

/// Runs a plan, here or where `executor` makes it, writes its report and tells whom it may concern; returns the exit code.
pub(crate) fn make(
    executor: Option<&dyn Executor>,
    plan: &mut plan::Plan,
    notify: Option<&Endpoint>,
    options: &Options,
    watch: Watch,
    cancel: &Cancel,
) -> Result<u8> {
    let started = Instant::now();
    let ended = run_and_report(executor, plan, options, &watch::sink(watch.style()), cancel);
    if let Some(endpoint) = notify {
        let (outcome, error) = match &ended {
            Ok(outcome) => (*outcome, None),
            Err(error) => (RunOutcome::Failed, Some(in_words(error))),
        };
        // The run's own end stands, whoever hears of it.
        if let Err(error) = Message::new(plan, outcome, started.elapsed(), error).send(endpoint) {
            watch::aside(format_args!("note: {error}"));
        }
    }
    Ok(match ended? {
        RunOutcome::UpToDate | RunOutcome::Done => OK,
        RunOutcome::DoneWithLosses => LOSSES,
        RunOutcome::Interrupted => INTERRUPTED,
        RunOutcome::Failed => FAILED,
    })
}

fn run_and_report(
    executor: Option<&dyn Executor>,
    plan: &mut plan::Plan,
    options: &Options,
    events: &EventSink,
    cancel: &Cancel,
) -> Result<RunOutcome> {
    let outcome = pipeline::run::run_with(executor, plan, options, events, cancel)?;
    if outcome != RunOutcome::UpToDate || !pipeline::report::path(plan).exists() {
        pipeline::report::write(plan)?;
    }
    Ok(outcome)
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    #[command(flatten)]
    source: Source,
}

impl Report {
    pub(crate) fn run(&self) -> Result<u8> {
        let plan = self.source.plan()?;
        let path = pipeline::report::write(&plan)?;
        writeln!(std::io::stdout(), "{}", path.display())?;
        Ok(OK)
    }
}

/// The keys of one table of a manifest, which several types read together.
#[derive(Default)]
struct Table {
    properties: Map<String, Value>,
    required: Vec<Value>,
}

impl Table {
    /// Adds the keys of one type, by its schema. What that defines goes to `definitions`, under names that begin with `owner`: types
    /// of different stages are called alike.
    fn add(&mut self, mut schema: Value, owner: &str, definitions: &mut Map<String, Value>) {
        refer_to(owner, &mut schema);
        let mut take = |key: &str| schema.get_mut(key).map(Value::take);
        if let Some(Value::Object(own)) = take("$defs") {
            definitions.extend(own.into_iter().map(|(name, definition)| (format!("{owner}.{name}"), definition)));
        }
        if let Some(Value::Array(own)) = take("required") {
            for key in own {
                if !self.required.contains(&key) {
                    self.required.push(key);
                }
            }
        }
        if let Some(Value::Object(own)) = take("properties") {
            for (key, property) in own {
                // Forms of one kind may give a key another meaning, as `evaluate` does to `prompts`.
                let property = match self.properties.get_mut(&key).map(Value::take) {
                    Some(other) if other != property => either(&other, &property),
                    _ => property,
                };
                self.properties.insert(key, property);
            }
        }
    }

    /// The schema of the table, which has these keys and no others.
    fn describe(self, title: &str, about: &str) -> Value {
        let Self { properties, required } = self;
        json!({ "title": title, "description": about, "type": "object", "properties": properties, "required": required,
            "additionalProperties": false })
    }
}

/// The schema of a key that means `one` or `other`.
fn either(one: &Value, other: &Value) -> Value {
    let about = [one, other].into_iter().filter_map(|form| form.get("description")?.as_str());
    let about = about.collect::<Vec<_>>().join(" Or: ");
    let mut either = json!({ "anyOf": [one, other] });
    if !about.is_empty() {
        either["description"] = about.into();
    }
    either
}

/// Has every reference in `schema` name its definition as [`Table::add`] does.
fn refer_to(owner: &str, schema: &mut Value) {
    match schema {
        Value::Object(entries) => {
            for (key, value) in entries {
                match value {
                    Value::String(target) if key == "$ref" => {
                        if let Some(name) = target.strip_prefix("#/$defs/") {
                            *target = format!("#/$defs/{owner}.{name}");
                        }
                    }
                    below => refer_to(owner, below),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| refer_to(owner, item)),
        _ => {}
    }
}

/// `schema`: all kinds with their keys, for editors.
pub(crate) fn schema() -> Result<u8> {
    let (of_pipeline, common) = schemas();
    let registry = stages::registry();
    let mut definitions = Map::new();
    let mut pipeline = Table::default();
    pipeline.add(of_pipeline.to_value(), "pipeline", &mut definitions);
    let common = common.to_value();
    let mut kinds = Vec::new();
    for kind in registry.kinds() {
        let mut table = Table::default();
        for (number, schema) in (kind.schemas)().into_iter().enumerate() {
            table.add(schema.to_value(), &format!("{}.{number}", kind.name), &mut definitions);
        }
        table.add(common.clone(), "stage", &mut definitions);
        table.properties.insert("uses".to_owned(), json!({ "const": kind.name }));
        kinds.push(table.describe(kind.name, kind.about));
    }
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Ferrotype manifest",
        "type": "object",
        "required": ["pipeline", "stage"],
        "additionalProperties": false,
        "properties": {
            "pipeline": pipeline.describe("pipeline", "What concerns all stages."),
            "vars": { "description": "Values for names in braces in any text.", "type": "object",
                "additionalProperties": { "type": ["string", "integer"] } },
            "stage": { "description": "The stages, by their names.", "type": "object",
                "additionalProperties": { "oneOf": kinds } },
        },
        "$defs": definitions,
    });
    writeln!(std::io::stdout(), "{schema:#}")?;
    Ok(OK)
}
