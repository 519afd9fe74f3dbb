//! The eyes: shows a run's events as progress lines, as plain lines when piped, or as JSON lines.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use shards::event::{Event, EventSink, RunOutcome};

use crate::words;

/// How a run is shown.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Watch {
    /// Print events as JSON lines on standard output.
    #[arg(long)]
    json: bool,
    /// Only errors and the end.
    #[arg(short, long)]
    quiet: bool,
    /// Every partition.
    #[arg(short, long)]
    verbose: bool,
}

impl Watch {
    /// Whether a summary in words has its place on standard output.
    pub(crate) fn is_for_people(self) -> bool {
        !self.json
    }

    pub(crate) fn style(self) -> Style {
        if self.json { Style::Json } else { Style::Lines { quiet: self.quiet, verbose: self.verbose } }
    }
}

/// What a [`Watch`] comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Progress lines on a terminal, plain lines elsewhere.
    Lines {
        quiet: bool,
        verbose: bool,
    },
    Json,
}

/// A sink that shows events in `style`.
pub(crate) fn sink(style: Style) -> EventSink {
    match style {
        Style::Json => EventSink::new(|event| {
            if let Ok(line) = serde_json::to_string(&event) {
                // A reader that went away is no reason to stop the work.
                let _ = writeln!(std::io::stdout(), "{line}");
            }
        }),
        Style::Lines { quiet, verbose } => {
            let lines = Mutex::new(Lines::new(quiet, verbose));
            EventSink::new(move |event| lines.lock().unwrap_or_else(PoisonError::into_inner).show(event))
        }
    }
}

/// A sink for a rank of several that is not the first: only what a person should read, with the rank's number.
pub(crate) fn notes_of(rank: usize) -> EventSink {
    EventSink::new(move |event| {
        if let Event::Note { stage, text } = event {
            aside(format_args!("  {stage:<10} rank {rank}: {text}"));
        }
    })
}

/// Prints a line about work that goes on, or that is done: a reader that went away, as `head` does when it has seen enough, neither
/// ends the one nor changes the exit code of the other.
pub(crate) fn say(line: impl Display) -> std::io::Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Prints a line beside the output: on standard error, where nobody may listen and the disk under a log may be full. Neither is a
/// reason to end the work (`eprintln!` would).
pub(crate) fn aside(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Between two plain lines of progress of one stage.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

struct Lines {
    quiet: bool,
    verbose: bool,
    bars: Option<MultiProgress>,
    by_stage: BTreeMap<String, Line>,
}

struct Line {
    bar: Option<ProgressBar>,
    first: Option<(Instant, u64)>,
    last: Instant,
}

impl Lines {
    fn new(quiet: bool, verbose: bool) -> Self {
        let bars = (std::io::stderr().is_terminal() && !quiet).then(MultiProgress::new);
        Self { quiet, verbose, bars, by_stage: BTreeMap::new() }
    }

    fn say(&self, text: &str) {
        match &self.bars {
            Some(bars) => drop(bars.println(text)),
            None => aside(text),
        }
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::RunStarted { pipeline, workdir, .. } if !self.quiet => self.say(&format!("{pipeline}: {workdir}")),
            Event::StagePlanned { stage, why, to_run, .. } if !self.quiet && (to_run > 0 || self.verbose) => {
                self.say(&format!("  {stage:<10} {why}"));
            }
            Event::PartitionStarted { stage, partition } if self.verbose => {
                self.say(&format!("  {stage:<10} {partition} started"));
            }
            Event::PartitionCommitted { stage, partition, rows_in, rows_out, seconds, .. } if self.verbose => {
                self.say(&format!("  {stage:<10} {partition} committed: {rows_in} in, {rows_out} out, {seconds:.1} s"));
            }
            Event::Progress { stage, unit, done, total, outcomes, note } if !self.quiet => {
                self.progress(&stage, unit, done, total, &outcomes, &note);
            }
            Event::PartitionFailed { stage, partition, error } => {
                self.say(&format!("✗ {stage:<10} {partition}: {error}"));
            }
            Event::StageFinished { stage, up_to_date, law, dropped, observed, seconds } => {
                if let Some(bar) = self.by_stage.remove(&stage).and_then(|line| line.bar) {
                    bar.finish_and_clear();
                }
                if !self.quiet {
                    let time = if up_to_date { "up to date".to_owned() } else { format!("{seconds:.1} s") };
                    self.say(&format!("✓ {stage:<10} {law} ({time})"));
                    if !up_to_date || self.verbose {
                        self.counts("dropped", &dropped);
                        self.counts("observed", &observed);
                    }
                }
            }
            Event::Note { stage, text } if !self.quiet => self.say(&format!("  {stage:<10} {text}")),
            Event::RunFinished { outcome, seconds } => {
                let text = match outcome {
                    RunOutcome::UpToDate => "Nothing to do: everything is up to date.".to_owned(),
                    RunOutcome::Done => format!("Done in {seconds:.1} s."),
                    RunOutcome::DoneWithLosses => {
                        format!("Done in {seconds:.1} s, but more rows were refused than warn_above allows.")
                    }
                    RunOutcome::Failed => return,
                    RunOutcome::Interrupted => {
                        "Interrupted. Everything committed is kept; the same command goes on from here.".to_owned()
                    }
                };
                if !self.quiet || outcome != RunOutcome::UpToDate {
                    self.say(&text);
                }
            }
            _ => {}
        }
    }

    fn counts(&self, title: &str, counts: &BTreeMap<String, u64>) {
        if !counts.is_empty() {
            self.say(&format!("      {title}: {}", words::counts(counts)));
        }
    }

    fn progress(
        &mut self,
        stage: &str,
        unit: &str,
        done: u64,
        total: Option<u64>,
        outcomes: &BTreeMap<String, u64>,
        note: &str,
    ) {
        let bars = self.bars.clone();
        let line = self.by_stage.entry(stage.to_owned()).or_insert_with(|| {
            let bar =
                bars.map(|bars| bars.add(ProgressBar::new(total.unwrap_or(0)).with_style(style(total.is_some()))));
            Line { bar, first: None, last: Instant::now() }
        });
        // Rates and times left are judged from the first sign of progress, so that a resumed stage is not flattered.
        let (since, at) = *line.first.get_or_insert((Instant::now(), done));
        let extra = [words::counts(outcomes), note.to_owned()].into_iter().filter(|part| !part.is_empty());
        let extra = extra.collect::<Vec<_>>().join(", ");
        let rate = (done - at.min(done)) as f64 / since.elapsed().as_secs_f64().max(1e-3);
        let left = total.filter(|_| rate > 0.0).map(|total| total.saturating_sub(done) as f64 / rate);
        let left = left.map(|seconds| format!(", {} left", words::duration(seconds))).unwrap_or_default();
        let tail = format!("{rate:.1} {unit}/s{left}  {extra}");
        if let Some(bar) = &line.bar {
            bar.set_prefix(stage.to_owned());
            bar.set_position(done);
            bar.set_message(tail);
        } else if line.last.elapsed() >= PLAIN_EVERY {
            line.last = Instant::now();
            let of = total.map(|total| format!(" of {total}")).unwrap_or_default();
            aside(format_args!("  {stage:<10} {done}{of} {unit}, {tail}"));
        }
    }
}

fn style(bounded: bool) -> ProgressStyle {
    let template = if bounded {
        "  {prefix:<10} {bar:24} {pos}/{len} {wide_msg}"
    } else {
        "  {prefix:<10} {spinner} {pos} {wide_msg}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_fixed_template| ProgressStyle::default_bar())
}
