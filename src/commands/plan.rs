//! `plan`: what `run` would do, why, and about how long it would take.

use std::io::Write;

use anyhow::Result;
use clap::Args;
use pipeline::plan::{self, Estimate, PlannedStage, Volume};
use serde_json::{Value, json};

use super::manifest::{Budget, Selected, Source};
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
        let plan = plan::Plan::select(&manifest, &registry, &self.selected.selection())?;
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
            writeln!(
                out,
                "No earlier run says how long {} would take: `ferrotype run --rehearse 1000` measures it.",
                unknown.join(", ")
            )?;
        }
        Ok(OK)
    }
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
