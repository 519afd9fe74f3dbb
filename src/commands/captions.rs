//! `captions`: a recaption stage's questions and answers as files, for `vllm run-batch`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use pipeline::manifest::Manifest;
use pipeline::plan::Plan;
use pipeline::stage::StageError;
use recaption::checks::Kind;
use shards::event::Event;
use shards::lease::Runner;

use super::manifest::Source;
use crate::errors::{FAILED, INTERRUPTED, OK, Usage};
use crate::settings::cancelled_by_interrupt;
use crate::stages;
use crate::stages::recaption::batch::{Batches, Exported, Imported};
use crate::stages::recaption::{self as stage, Recaption};
use crate::watch::{self, Style};

/// Lines of results that are none and are shown.
const SHOWN: u64 = 10;
/// Rows between two reports.
const ROWS: u64 = 256;

#[derive(Debug, Args)]
pub(crate) struct Captions {
    #[command(subcommand)]
    command: Direction,
}

#[derive(Debug, Subcommand)]
enum Direction {
    /// Write a request for every row whose next answer is not there yet.
    Export(Export),
    /// Take results into the stage's journals: the next `run` asks only what is left.
    Import(Import),
}

#[derive(Debug, Args)]
struct Export {
    #[command(flatten)]
    source: Source,
    /// Which recaption stage, where the manifest has several.
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// Only the questions for this caption [both, where one model answers them].
    #[arg(long, value_enum)]
    step: Option<StepName>,
    /// The file to write; one that is there is replaced.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// At most so many requests: `vllm run-batch` reads a whole file into memory, images and all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StepName {
    Long,
    Short,
}

#[derive(Debug, Args)]
struct Import {
    #[command(flatten)]
    source: Source,
    /// Files of results.
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// Which recaption stage, where the manifest has several.
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
}

impl Captions {
    pub(crate) fn run(&self) -> Result<u8> {
        match &self.command {
            Direction::Export(export) => export.run(),
            Direction::Import(import) => import.run(),
        }
    }
}

/// A recaption stage with the state of its workdir.
struct Found {
    manifest: Manifest,
    plan: Plan,
    name: String,
    recaption: Recaption,
}

impl Found {
    fn of(source: &Source, stage: Option<&str>) -> Result<Self> {
        let manifest = source.read()?;
        let plan = Plan::new(&manifest, &stages::registry())?;
        let (table, recaption) = stage::find(&manifest, stage)?;
        Ok(Self { name: table.name.clone(), plan, recaption, manifest })
    }

    fn batches(&self) -> Result<Batches<'_>> {
        Ok(Batches { plan: &self.plan, stage: self.plan.stage(&self.name)?, recaption: &self.recaption })
    }
}

impl Export {
    fn run(&self) -> Result<u8> {
        let found = Found::of(&self.source, self.stage.as_deref())?;
        let batches = found.batches()?;
        let manifest = found.manifest.file.display();
        let (model, kinds) = batches.model(self.step.map(|step| match step {
            StepName::Long => Kind::Long,
            StepName::Short => Kind::Short,
        }))?;
        let exported = match self.write(&batches, &kinds) {
            Err(error) if matches!(error.downcast_ref(), Some(StageError::Cancelled)) => return Ok(INTERRUPTED),
            other => other?,
        };
        let mut out = std::io::stdout().lock();
        write!(out, "{}", in_words(&exported, &self.out))?;
        if exported.without_input > 0 {
            let inputs: Vec<&str> = found
                .manifest
                .stages
                .iter()
                .filter(|table| table.name == found.name)
                .flat_map(|table| &table.from)
                .map(|from| from.stage.as_str())
                .collect();
            writeln!(
                out,
                "The input of {} partitions is not made yet: `ferrotype run {manifest} --until {}` makes it.",
                exported.without_input,
                inputs.join(" --until ")
            )?;
        }
        if exported.written() > 0 {
            writeln!(
                out,
                "Next: vllm run-batch -i {} -o results.jsonl --model {model}\n      ferrotype captions import {manifest} results.jsonl",
                self.out.display()
            )?;
        }
        Ok(OK)
    }

    /// Under another name until it is whole.
    fn write(&self, batches: &Batches, kinds: &[Kind]) -> Result<Exported> {
        let Some(name) = self.out.file_name() else { bail!(Usage(format!("{} names no file", self.out.display()))) };
        let part = self.out.with_file_name(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
        let written = self.write_to(&part, batches, kinds);
        let is_wanted = written.as_ref().is_ok_and(|exported| exported.written() > 0);
        let moved = if is_wanted { std::fs::rename(&part, &self.out) } else { std::fs::remove_file(&part) };
        // Where it could not even be begun, that is said.
        let exported = written?;
        moved.with_context(|| format!("cannot write {}", self.out.display()))?;
        Ok(exported)
    }

    fn write_to(&self, part: &Path, batches: &Batches, kinds: &[Kind]) -> Result<Exported> {
        let file = File::create(part).with_context(|| format!("cannot write {}", self.out.display()))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let cancel = cancelled_by_interrupt()?;
        let events = watch::sink(Style::Lines { quiet: false, verbose: false });
        let exported = batches.export(kinds, self.limit.unwrap_or(u64::MAX), &mut file, |so_far| {
            if cancel.is_cancelled() {
                bail!(StageError::Cancelled);
            }
            if so_far.rows % ROWS == 0 && so_far.rows > 0 {
                events.send(Event::Progress {
                    stage: "export".to_owned(),
                    unit: "rows",
                    done: so_far.rows,
                    total: None,
                    outcomes: std::collections::BTreeMap::new(),
                    note: String::new(),
                });
            }
            Ok(())
        })?;
        let file = file.into_inner().map_err(std::io::IntoInnerError::into_error);
        file.and_then(|file| file.sync_all()).with_context(|| format!("cannot write {}", self.out.display()))?;
        Ok(exported)
    }
}

fn in_words(exported: &Exported, file: &Path) -> String {
    use std::fmt::Write as _;
    let Exported { rows, long, short, answered, .. } = exported;
    let mut text = match exported.written() {
        0 => format!("{rows} rows: nothing to ask, {answered} answered already; no file was written.\n"),
        written => format!(
            "{rows} rows: {written} questions written to {} ({long} long, {short} short), {answered} answered already.\n",
            file.display()
        ),
    };
    for (count, words) in [
        (exported.not_of_step, "have a question for the other step next: export again, with --step, after the import"),
        (exported.repeated, "ask what another row asks"),
        (exported.bad_images, "have no image that a server reads; `run` sets them aside"),
    ] {
        if count > 0 {
            let _ = writeln!(text, "{count} {words}.");
        }
    }
    if exported.is_full {
        text += "There may be more: export again after the import.\n";
    }
    text
}

impl Import {
    fn run(&self) -> Result<u8> {
        // All or none: a name that is mistyped is found before anything is taken.
        let open = |path: &PathBuf| match File::open(path) {
            Ok(file) => Ok((path.display().to_string(), file)),
            Err(error) => Err(Usage(format!("{} cannot be read: {error}", path.display()))),
        };
        let files: Vec<(String, File)> = self.results.iter().map(open).collect::<Result<_, _>>()?;
        let found = Found::of(&self.source, self.stage.as_deref())?;
        let batches = found.batches()?;
        let runner = Runner::join(&found.plan.workdir)?;
        let mut imported = Imported::default();
        for (name, file) in files {
            let mut shown = 0;
            let taken = batches.import(file, &name, &runner, &mut imported, |error| {
                shown += 1;
                if shown <= SHOWN {
                    watch::aside(format_args!("note: {error}"));
                }
            });
            if shown > SHOWN {
                watch::aside(format_args!("note: and {} more of {name}", shown - SHOWN));
            }
            taken.with_context(|| format!("{} answers of it were taken before", imported.taken))?;
        }
        let Imported { lines, taken, known, failed, partitions } = &imported;
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "{lines} lines: {taken} answers taken, for {partitions} partitions; {known} were known already."
        )?;
        for (reason, n) in failed {
            let what =
                if reason == "unknown_id" { "of no request of this stage" } else { "no answer, to be asked again" };
            writeln!(out, "{n} {reason}: {what}")?;
        }
        Ok(if taken + known == 0 && *lines > 0 { FAILED } else { OK })
    }
}
