//! `plan`, `run`, `status`, `report`, `schema`: what is done with a manifest.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use pipeline::manifest::{Manifest, schemas};
use pipeline::plan;
use pipeline::stage::Cancel;
use serde_json::{Map, Value, json};
use shards::event::RunOutcome;

use crate::errors::{FAILED, INTERRUPTED, LOSSES, OK};
use crate::settings::on_interrupt;
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

    pub(crate) fn plan(&self) -> Result<plan::Plan> {
        let manifest = Manifest::read(&self.manifest, &self.set)?;
        Ok(plan::Plan::new(&manifest, &stages::registry())?)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    source: Source,
    /// Print the plan as JSON.
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub(crate) fn run(&self) -> Result<u8> {
        let plan = self.source.plan()?;
        let mut out = std::io::stdout().lock();
        if self.json {
            let stages = plan.stages.iter().map(|s| {
                json!({ "stage": s.name, "kind": s.kind, "partitions": s.partitions.len(), "to_run": s.to_run(), "why": s.summary() })
            });
            writeln!(
                out,
                "{:#}",
                json!({ "pipeline": plan.name, "workdir": plan.workdir, "stages": stages.collect::<Vec<_>>() })
            )?;
            return Ok(OK);
        }
        writeln!(out, "{}: {}", plan.name, plan.workdir.display())?;
        for stage in &plan.stages {
            writeln!(out, "  {:<10} {:<12} {}", stage.name, stage.kind, stage.summary())?;
        }
        if plan.is_up_to_date() {
            writeln!(out, "Nothing to do: everything is up to date.")?;
        }
        Ok(OK)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    watch: Watch,
}

impl Run {
    pub(crate) fn run(&self) -> Result<u8> {
        let cancel = Cancel::default();
        let handler = cancel.clone();
        on_interrupt(move || handler.cancel())?;
        let mut plan = self.source.plan()?;
        make(&mut plan, self.watch, &cancel)
    }
}

/// Runs a plan and writes its report; returns the exit code.
pub(crate) fn make(plan: &mut plan::Plan, watch: Watch, cancel: &Cancel) -> Result<u8> {
    let events = watch::sink(watch.style());
    let outcome = pipeline::run::run(plan, &events, cancel)?;
    if outcome != RunOutcome::UpToDate || !pipeline::report::path(plan).exists() {
        pipeline::report::write(plan)?;
    }
    Ok(match outcome {
        RunOutcome::UpToDate | RunOutcome::Done => OK,
        RunOutcome::DoneWithLosses => LOSSES,
        RunOutcome::Interrupted => INTERRUPTED,
        RunOutcome::Failed => FAILED,
    })
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    source: Source,
    /// Print the status as JSON.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) fn run(&self) -> Result<u8> {
        let plan = self.source.plan()?;
        let mut stages = Vec::new();
        for stage in &plan.stages {
            let committed = stage.committed().count();
            let (rows_in, rows_out, dropped) =
                stage.committed().fold((0, 0, 0), |(i, o, d), s| (i + s.rows_in, o + s.rows_out, d + s.rows_dropped()));
            let law = stage.stage.law().in_words(rows_in, rows_out, dropped);
            stages.push((stage, committed, law, pipeline::report::refused(stage)?));
        }
        let mut out = std::io::stdout().lock();
        if self.json {
            let stages = stages.iter().map(|(stage, committed, law, refused)| {
                let refused: Map<String, Value> = refused.iter().map(|r| (r.reason.clone(), r.rows.into())).collect();
                json!({ "stage": stage.name, "kind": stage.kind, "partitions": stage.partitions.len(),
                        "committed": committed, "law": law, "refused": refused })
            });
            writeln!(
                out,
                "{:#}",
                json!({ "pipeline": plan.name, "workdir": plan.workdir, "stages": stages.collect::<Vec<_>>() })
            )?;
            return Ok(OK);
        }
        writeln!(out, "{}: {}", plan.name, plan.workdir.display())?;
        for (stage, committed, law, refused) in stages {
            writeln!(out, "  {:<10} {committed} of {} partitions  {law}", stage.name, stage.partitions.len())?;
            for r in refused {
                writeln!(out, "      {:<20} {:>6}", r.reason, r.rows)?;
            }
        }
        Ok(OK)
    }
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

/// `schema`: all kinds with their keys, for editors.
pub(crate) fn schema() -> Result<u8> {
    let (pipeline, common) = schemas();
    let registry = stages::registry();
    let kinds = registry.kinds().map(|kind| {
        let mut properties = Map::new();
        let mut required = vec![Value::from("uses")];
        let mut definitions = Map::new();
        for schema in (kind.schemas)().into_iter().chain([common.clone()]) {
            let mut table = schema.to_value();
            let mut take = |key: &str| table.get_mut(key).map(Value::take);
            if let Some(Value::Object(own)) = take("properties") {
                properties.extend(own);
            }
            if let Some(Value::Array(own)) = take("required") {
                required.extend(own);
            }
            if let Some(Value::Object(own)) = take("$defs") {
                definitions.extend(own);
            }
        }
        properties.insert("uses".to_owned(), json!({ "const": kind.name }));
        (
            json!({ "title": kind.name, "description": kind.about, "type": "object", "properties": properties,
                 "required": required, "additionalProperties": false }),
            definitions,
        )
    });
    let (kinds, definitions): (Vec<Value>, Vec<Map<String, Value>>) = kinds.unzip();
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Ferrotype manifest",
        "type": "object",
        "required": ["pipeline", "stage"],
        "additionalProperties": false,
        "properties": {
            "pipeline": pipeline,
            "vars": { "type": "object", "additionalProperties": { "type": ["string", "integer"] } },
            "stage": { "type": "object", "additionalProperties": { "oneOf": kinds } },
        },
        "$defs": definitions.into_iter().flatten().collect::<Map<String, Value>>(),
    });
    writeln!(std::io::stdout(), "{schema:#}")?;
    Ok(OK)
}
