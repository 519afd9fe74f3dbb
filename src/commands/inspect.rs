//! `graph`, `explain`, `verify`, `gc`, `query`: looking into a workdir.

use std::cell::Cell;
use std::io::Write;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use pipeline::explain::{self, Verdict};
use pipeline::graph;
use pipeline::plan::PlannedStage;
use pipeline::{garbage, verify};
use serde_json::json;
use shards::event::Event;

use super::manifest::Source;
use crate::errors::{FAILED, INTERRUPTED, OK};
use crate::settings::cancelled_by_interrupt;
use crate::watch::{self, Style, say};
use crate::words::size;

#[derive(Debug, Args)]
pub(crate) struct Graph {
    #[command(flatten)]
    source: Source,
    #[arg(long, value_enum, default_value_t = GraphFormat::Text)]
    format: GraphFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum GraphFormat {
    /// Lines for a terminal.
    Text,
    /// For Markdown pages that render it.
    Mermaid,
    /// For Graphviz.
    Dot,
    /// A picture.
    Svg,
}

impl Graph {
    pub(crate) fn run(&self) -> Result<u8> {
        let format = match self.format {
            GraphFormat::Text => graph::Format::Text,
            GraphFormat::Mermaid => graph::Format::Mermaid,
            GraphFormat::Dot => graph::Format::Dot,
            GraphFormat::Svg => graph::Format::Svg,
        };
        write!(std::io::stdout(), "{}", graph::draw(&self.source.plan()?, format))?;
        Ok(OK)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    #[command(flatten)]
    source: Source,
    /// The row's key, as in the column `key`.
    #[arg(required_unless_present = "dropped", conflicts_with = "dropped")]
    key: Option<String>,
    /// Instead of a row: some of the rows that this stage refused, by reason.
    #[arg(long, value_name = "STAGE")]
    dropped: Option<String>,
    /// How many rows of each reason.
    #[arg(long, default_value_t = 3, requires = "dropped")]
    limit: usize,
}

impl Explain {
    pub(crate) fn run(&self) -> Result<u8> {
        let plan = self.source.plan()?;
        let mut out = std::io::stdout().lock();
        if let Some(name) = &self.dropped {
            return self.dropped(plan.stage(name)?, &mut out);
        }
        let key = self.key.clone().unwrap_or_default();
        let story = explain::explain(&plan, &key, &cancelled_by_interrupt()?)?;
        if !story.iter().any(|chapter| matches!(chapter.verdict, Verdict::Kept { .. } | Verdict::Refused { .. })) {
            bail!(
                "no stage has a row with the key {key:?} (keys are in the column `key`: try `ferrotype query M \"SELECT key FROM …\"`)"
            );
        }
        writeln!(out, "{key}")?;
        let mut known: Vec<(String, String)> = Vec::new();
        for chapter in story {
            let heading = format!("  {:<10} {:<12}", chapter.stage, chapter.kind);
            match chapter.verdict {
                Verdict::NotRows => {}
                Verdict::NotMade => writeln!(out, "{heading} not made yet")?,
                Verdict::Absent => writeln!(out, "{heading} not there")?,
                Verdict::Refused { reason, detail } => writeln!(out, "{heading} refused: {reason} ({detail})")?,
                Verdict::Kept { file, row, values, origin } => {
                    writeln!(out, "{heading} kept: {file}, row {row}")?;
                    // What an earlier stage said already is not said again.
                    for (name, value) in values {
                        if !known.contains(&(name.clone(), value.clone())) {
                            writeln!(out, "      {name:<16} {value}")?;
                            known.retain(|(known, _)| *known != name);
                            known.push((name, value));
                        }
                    }
                    for (what, how) in origin {
                        writeln!(out, "      {what:<16} {how}")?;
                    }
                }
            }
        }
        Ok(OK)
    }

    fn dropped(&self, stage: &PlannedStage, out: &mut impl Write) -> Result<u8> {
        let rows = explain::refused(stage, self.limit)?;
        for counted in pipeline::report::refused(stage)? {
            writeln!(out, "{} {}", counted.reason, counted.rows)?;
            let mut shown = 0;
            for [_, key, detail] in rows.iter().filter(|[reason, ..]| *reason == counted.reason) {
                writeln!(out, "    {key}  {detail}")?;
                shown += 1;
            }
            if shown == self.limit && counted.rows > shown as u64 {
                writeln!(out, "    … (--limit N shows more)")?;
            }
        }
        Ok(OK)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    source: Source,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(crate) fn run(&self) -> Result<u8> {
        let plan = self.source.plan()?;
        let cancel = cancelled_by_interrupt()?;
        let events = watch::sink(Style::Lines { quiet: self.json, verbose: false });
        let total = plan
            .stages
            .iter()
            .flat_map(PlannedStage::committed)
            .flat_map(|s| s.data.iter().chain(&s.quarantine))
            .map(|file| file.bytes >> 20)
            .sum();
        let progress = |bytes: u64| {
            events.send(Event::Progress {
                stage: "verify".to_owned(),
                unit: "MB",
                done: bytes >> 20,
                total: Some(total),
                outcomes: std::collections::BTreeMap::new(),
                note: String::new(),
            });
        };
        let verified = match verify::verify(&plan, &cancel, progress) {
            Err(pipeline::stage::StageError::Cancelled) => return Ok(INTERRUPTED),
            other => other?,
        };
        let code = if verified.findings.is_empty() { OK } else { FAILED };
        if self.json {
            let findings = verified.findings.iter().map(
                |finding| json!({ "stage": finding.stage, "partition": finding.partition, "problem": finding.problem }),
            );
            let report = json!({ "partitions": verified.partitions, "files": verified.files, "bytes": verified.bytes,
                "findings": findings.collect::<Vec<_>>() });
            say(format_args!("{report:#}"))?;
        } else {
            for finding in &verified.findings {
                say(format_args!("{}, {}: {}", finding.stage, finding.partition, finding.problem))?;
            }
            let (partitions, files, bytes) = (verified.partitions, verified.files, size(verified.bytes as f64));
            let verdict = match verified.findings.len() {
                0 => "all as recorded, and the rows add up".to_owned(),
                1 => "1 problem".to_owned(),
                many => format!("{many} problems"),
            };
            say(format_args!("{partitions} partitions, {files} files, {bytes}: {verdict}"))?;
            if code != OK {
                say("Delete the damaged files and run again: what is missing is made anew.")?;
            }
        }
        Ok(code)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Gc {
    #[command(flatten)]
    source: Source,
    /// Delete what is listed. Without it nothing is touched.
    #[arg(long)]
    delete: bool,
}

impl Gc {
    pub(crate) fn run(&self) -> Result<u8> {
        let mut plan = self.source.plan()?;
        let runner = self.delete.then(|| garbage::join_alone(&plan.workdir)).transpose()?;
        if runner.is_some() {
            // As things are now that nobody else changes them.
            plan = self.source.plan()?;
        }
        let mut found = garbage::find(&plan)?;
        // Before anything is printed, since that may fail.
        if let Some(runner) = runner.filter(|_| !found.is_empty()) {
            found = garbage::delete(&plan, found, &runner)?;
        }
        for garbage in &found {
            say(format_args!("{:>10}  {}  ({})", size(garbage.bytes as f64), garbage.name, garbage.why))?;
        }
        let total = size(found.iter().map(|garbage| garbage.bytes).sum::<u64>() as f64);
        if found.is_empty() {
            say("Nothing to delete: everything belongs to the manifest as it is.")?;
        } else if self.delete {
            say(format_args!("Deleted {total}."))?;
        } else {
            say(format_args!("{total} in all. Nothing was deleted: `gc --delete` does it."))?;
        }
        Ok(OK)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Query {
    #[command(flatten)]
    source: Source,
    /// A SELECT over the stages' rows (tables named like the stages), what they refused (STAGE_quarantine; without rows that passed when
    /// they were tried again) and `partitions`.
    sql: String,
    #[arg(long, value_enum, default_value_t = QueryFormat::Table)]
    format: QueryFormat,
    /// At most so many rows [a table: 100; otherwise all].
    #[arg(long)]
    limit: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum QueryFormat {
    Table,
    Csv,
    /// One JSON object a line.
    Json,
}

impl Query {
    pub(crate) fn run(&self) -> Result<u8> {
        let plan = self.source.plan()?;
        let limit = self.limit.unwrap_or(if self.format == QueryFormat::Table { 100 } else { usize::MAX });
        let mut printer = pipeline::query::Printer::new(match self.format {
            QueryFormat::Table => pipeline::query::Format::Table,
            QueryFormat::Csv => pipeline::query::Format::Csv,
            QueryFormat::Json => pipeline::query::Format::Json,
        });
        let (left, failed) = (Cell::new(limit), Cell::new(None));
        let mut more = false;
        let mut out = std::io::stdout().lock();
        let schema = pipeline::query::query(&plan, &self.sql, |batch| {
            let rows = batch.num_rows().min(left.get());
            more |= rows < batch.num_rows();
            left.set(left.get() - rows);
            if let Err(error) = printer.print(&batch.slice(0, rows), &mut out) {
                failed.set(Some(error));
                return false;
            }
            !more
        })?;
        if let Some(error) = failed.take() {
            return Err(error).context("cannot print the result");
        }
        printer.finish(&schema, &mut out).context("cannot print the result")?;
        if more {
            watch::aside(format_args!("(the first {limit} rows; --limit N shows more)"));
        }
        Ok(OK)
    }
}
