//! `plan`: what `run` would do, why, and about how long it would take.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use clap::Args;
use cluster::slurm::quoted;
use pipeline::plan::{self, Estimate, PlannedStage, Volume};
use serde_json::{Value, json};

use super::manifest::{Budget, Selected, Source, is_training};
use crate::errors::OK;
use crate::stages;
use crate::words::{count, duration, size};

#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    selected: Selected,
    #[command(flatten)]
    budget: Budget,
    /// Print the plan as JSON.
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub(crate) fn run(&self) -> Result<u8> {
        let (manifest, registry) = (self.source.read()?, stages::registry());
        let selection = self.selected.selection();
        let plan = plan::Plan::select(&manifest, &registry, &selection)?;
        let cores = self.budget.options().cores;
        let mut estimates = plan.estimates(cores, None);
        if estimates.iter().any(|estimate| estimate.seconds.is_none()) {
            // What no run has shown yet, a rehearsal may have; how many rows it had is no matter.
            let rehearsal = plan::Plan::rehearsal(&manifest, &registry, &plan::Selection::default(), 1).ok();
            estimates = plan.estimates(cores, rehearsal.as_ref());
        }
        let stages = || plan.stages.iter().zip(&estimates);
        let mut out = std::io::stdout().lock();
        if self.json {
            let stages: Vec<Value> = stages().map(|(stage, estimate)| as_json(stage, estimate)).collect();
            let whole = json!({ "pipeline": plan.name, "workdir": plan.workdir.to_string(), "cores": cores,
                                "stages": stages, "obstacles": plan.obstacles });
            writeln!(out, "{whole:#}")?;
            return Ok(OK);
        }
        writeln!(out, "{}: {}", plan.name, plan.workdir)?;
        for (stage, estimate) in stages() {
            writeln!(out, "  {:<10} {:<12} {}", stage.name, stage.kind, stage.summary())?;
            if stage.to_run() > 0 {
                writeln!(out, "  {:<23} {}", "", in_words(estimate))?;
            }
        }
        for obstacle in &plan.obstacles {
            writeln!(out, "Cannot run: {obstacle}.")?;
        }
        if plan.is_up_to_date() {
            writeln!(out, "Nothing to do: everything is up to date.")?;
            return Ok(OK);
        }
        let unknown: Vec<&str> =
            stages().filter(|(_, e)| e.partitions > 0 && e.seconds.is_none()).map(|(s, _)| s.name.as_str()).collect();
        let known: f64 = estimates.iter().filter_map(|estimate| estimate.seconds).sum();
        if unknown.is_empty() {
            writeln!(out, "About {} in all, on {cores} cores.", duration(known))?;
        } else {
            // A training takes longer than all before it, on few rows too.
            let until = unknown.first().and_then(|first| before_training(&plan, first)).or(selection.until.as_deref());
            // A rehearsal knows no --stage: it goes up to the last of them.
            let until = until.or_else(|| unknown.last().copied().filter(|_| !selection.stages.is_empty()));
            let (unknown, rehearsal) = (unknown.join(", "), rehearsal(&self.source, until));
            writeln!(out, "No earlier run says how long {unknown} would take: `{rehearsal}` measures it.")?;
        }
        Ok(OK)
    }
}

/// The command that rehearses the same configuration.
fn rehearsal(source: &Source, until: Option<&str>) -> String {
    let mut words = vec!["ferrotype run".to_owned(), quoted(source.manifest())];
    // A rehearsal notifies nobody, and the address may be a secret.
    for set in source.sets().iter().filter(|set| !set.trim_start().starts_with("pipeline.notify")) {
        words.extend(["--set".to_owned(), quoted(Path::new(set))]);
    }
    words.push("--rehearse 1000".to_owned());
    words.extend(until.map(|stage| format!("--until {stage}")));
    words.join(" ")
}

/// What the first training reads, if that is selected and comes after `stage`.
fn before_training<'a>(plan: &'a plan::Plan, stage: &str) -> Option<&'a str> {
    let training = plan.stages.iter().position(is_training)?;
    let (before, from_there) = plan.stages.split_at_checked(training)?;
    let is_before = before.iter().any(|planned| planned.name == stage);
    let read = from_there.first()?.inputs.first().and_then(|&input| before.get(input)).filter(|read| read.selected)?;
    is_before.then_some(read.name.as_str())
}

/// `reads 187 rows, 3.2 MB; writes 187 rows, 1.1 MB; about 12 s`
fn in_words(estimate: &Estimate) -> String {
    let volume = |verb: &str, volume: Volume| {
        let rows = volume.rows.map(|rows| format!("{} rows", count(rows)));
        let parts: Vec<String> = rows.into_iter().chain(volume.bytes.map(size)).collect();
        (!parts.is_empty()).then(|| format!("{verb} {}", parts.join(", ")))
    };
    let time = match estimate.seconds {
        Some(seconds) => format!("about {}", duration(seconds)),
        None => "time unknown".to_owned(),
    };
    let parts = [volume("reads", estimate.reads), volume("writes", estimate.writes), Some(time)];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn as_json(stage: &PlannedStage, estimate: &Estimate) -> Value {
    let volume = |v: Volume| json!({ "rows": v.rows.map(f64::round), "bytes": v.bytes.map(f64::round) });
    json!({
        "stage": stage.name, "kind": stage.kind, "partitions": stage.partitions.len(), "selected": stage.selected,
        "to_run": stage.to_run(), "why": stage.summary(), "reads": volume(estimate.reads),
        "writes": volume(estimate.writes), "work_seconds": estimate.work, "seconds": estimate.seconds,
    })
}
