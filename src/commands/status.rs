//! `status`: what a workdir holds, and who is at work on it.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;
use cluster::slurm::{Submitted, Task};
use pipeline::plan::{Plan, PlannedStage};
use serde_json::{Map, Value, json};
use shards::lease::{self, Holder};

use super::manifest::Source;
use super::submit::JobsFolder;
use crate::errors::OK;
use crate::settings::cancelled_by_interrupt;
use crate::stages;
use crate::watch;
use crate::words::{self, duration};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    source: Source,
    /// Print the status as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    jobs: JobsFolder,
    /// Look again every two seconds, until Ctrl-C.
    #[arg(long, conflicts_with = "json")]
    watch: bool,
}

/// Slurm's jobs that are queued or running, with their tasks.
type Jobs = [(Submitted, Vec<Task>)];

/// A stage as it is.
struct Row<'a> {
    stage: &'a PlannedStage,
    committed: usize,
    law: String,
    refused: Vec<(String, u64)>,
}

impl Status {
    pub(crate) fn run(&self) -> Result<u8> {
        if !self.watch {
            self.show(&mut std::io::stdout().lock())?;
            return Ok(OK);
        }
        let cancel = cancelled_by_interrupt()?;
        let clear = std::io::stdout().is_terminal();
        while !cancel.is_cancelled() {
            let mut page = Vec::new();
            self.show(&mut page)?;
            let mut out = std::io::stdout().lock();
            if clear {
                // Home, and erase what the last page left below.
                out.write_all(b"\x1b[H\x1b[J")?;
            }
            out.write_all(&page)?;
            out.flush()?;
            drop(out);
            let next = std::time::Instant::now() + EVERY;
            while !cancel.is_cancelled() && std::time::Instant::now() < next {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(OK)
    }

    fn show(&self, out: &mut impl Write) -> Result<()> {
        let manifest = self.source.read()?;
        let plan = Plan::new(&manifest, &stages::registry())?;
        // Where Slurm does not answer, the workdir still does.
        let jobs = self.jobs.of(&manifest)?.alive().unwrap_or_else(|error| {
            watch::aside(format_args!("note: {error}"));
            Vec::new()
        });
        let mut rows = Vec::new();
        for stage in &plan.stages {
            let totals = stage.totals();
            let dropped = totals.rows_dropped();
            let law = stage.stage.law().in_words(totals.rows_in, totals.rows_out, dropped, &totals.observed);
            let mut refused: Vec<(String, u64)> = totals.dropped.into_iter().collect();
            refused.sort_by_key(|(_, rows)| std::cmp::Reverse(*rows));
            rows.push(Row { stage, committed: stage.committed().count(), law, refused });
        }
        let runners: Vec<Holder> = lease::runners(&plan.workdir)?.into_values().collect();
        if self.json {
            as_json(&plan, &rows, &runners, &jobs, out)
        } else {
            in_words(&plan, &rows, &runners, &jobs, out)
        }
    }
}

fn in_words(plan: &Plan, rows: &[Row], runners: &[Holder], jobs: &Jobs, out: &mut impl Write) -> Result<()> {
    writeln!(out, "{}: {}", plan.name, plan.workdir)?;
    for Row { stage, committed, law, refused } in rows {
        writeln!(out, "  {:<10} {committed} of {} partitions  {law}", stage.name, stage.partitions.len())?;
        for (reason, rows) in refused {
            writeln!(out, "      {reason:<20} {rows:>6}")?;
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    for runner in runners {
        let since = duration(now.saturating_sub(runner.since) as f64);
        let doing = runner.doing.as_object().map(|stages| {
            let stage = |(name, doing): (&String, &Value)| {
                let number = |key: &str| doing.get(key).and_then(Value::as_u64).unwrap_or(0);
                let partitions = words::of(number("partitions") as usize, "partition");
                format!("{name} ({partitions} under way, {} rows)", number("rows"))
            };
            stages.iter().map(stage).collect::<Vec<_>>().join(", ")
        });
        let doing = doing.filter(|text| !text.is_empty()).map(|text| format!(": {text}")).unwrap_or_default();
        writeln!(out, "At work for {since}: {runner}{doing}")?;
    }
    for (job, tasks) in jobs {
        let states = states(tasks).into_iter().map(|(state, tasks)| format!("{tasks} {state}"));
        writeln!(out, "Slurm job {}, {}: {}", job.id, job.title(), states.collect::<Vec<_>>().join(", "))?;
    }
    Ok(())
}

/// How many tasks of a job are in which state: `running`, `pending (Dependency)`.
fn states(tasks: &[Task]) -> BTreeMap<String, usize> {
    let mut states = BTreeMap::new();
    for Task { state, reason, .. } in tasks {
        let reason = reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        *states.entry(format!("{}{reason}", state.to_lowercase())).or_default() += 1;
    }
    states
}

fn as_json(plan: &Plan, rows: &[Row], runners: &[Holder], jobs: &Jobs, out: &mut impl Write) -> Result<()> {
    let stages = rows.iter().map(|Row { stage, committed, law, refused }| {
        let refused: Map<String, Value> =
            refused.iter().map(|(reason, rows)| (reason.clone(), (*rows).into())).collect();
        json!({ "stage": stage.name, "kind": stage.kind, "partitions": stage.partitions.len(),
                "committed": committed, "law": law, "refused": refused })
    });
    let jobs: Vec<Value> = jobs
        .iter()
        .map(|(job, tasks)| {
            json!({ "job": job.id, "stage": job.stage, "survey": job.is_survey, "states": states(tasks), "submitted": job.at })
        })
        .collect();
    let whole = json!({ "pipeline": plan.name, "workdir": plan.workdir.to_string(),
                        "stages": stages.collect::<Vec<_>>(), "runners": runners, "jobs": jobs });
    writeln!(out, "{whole:#}")?;
    Ok(())
}
