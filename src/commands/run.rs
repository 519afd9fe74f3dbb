//! `run` and `retry`: making what a manifest asks for.

use std::io::Write;

use anyhow::{Result, bail};
use clap::Args;
use pipeline::plan::{self, PlannedStage};
use pipeline::retry;
use serde_json::{Value, json};

use super::manifest::{Budget, Selected, Source, make};
use crate::errors::{INTERRUPTED, OK, Usage};
use crate::settings::cancelled_by_interrupt;
use crate::stages;
use crate::watch::{self, Watch, say};
use crate::words::{count, counts, duration, size};

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    selected: Selected,
    #[command(flatten)]
    budget: Budget,
    #[command(flatten)]
    watch: Watch,
    /// Instead of the whole: every stage (or those up to --until) on about so many rows, in a folder of its own below the
    /// workdir; then say what the whole would take.
    #[arg(long, value_name = "ROWS", conflicts_with_all = ["stage", "from", "only_missing", "force"])]
    rehearse: Option<u64>,
    /// What an hour of this machine costs, for the cost of the whole.
    #[arg(long, value_name = "PRICE", requires = "rehearse")]
    price: Option<f64>,
    /// Have the partitions made by the executors of a Ballista cluster, which see the same workdir; it is given up to --cores of them
    /// at a time [256].
    #[cfg(feature = "cluster")]
    #[arg(long, value_name = "ballista://HOST:PORT", conflicts_with_all = ["rehearse", "memory"])]
    executor: Option<cluster::ballista::Address>,
}

impl Run {
    pub(crate) fn run(&self) -> Result<u8> {
        let cancel = cancelled_by_interrupt()?;
        let manifest = self.source.read()?;
        let options = self.budget.options();
        let Some(rows) = self.rehearse else {
            let mut plan = plan::Plan::select(&manifest, &stages::registry(), &self.selected.selection())?;
            #[cfg(feature = "cluster")]
            if let Some(address) = &self.executor {
                let cluster = self.budget.cluster(address, &self.source, &manifest)?;
                return make(Some(&cluster), &mut plan, manifest.notify.as_ref(), &options, self.watch, &cancel);
            }
            return make(None, &mut plan, manifest.notify.as_ref(), &options, self.watch, &cancel);
        };
        if rows == 0 {
            return Err(Usage("--rehearse 0: expected 1 row or more".to_owned()).into());
        }
        let selection = self.selected.selection();
        let mut rehearsal = plan::Plan::rehearsal(&manifest, &stages::registry(), &selection, rows)?;
        let code = make(None, &mut rehearsal, None, &options, self.watch, &cancel)?;
        if rehearsal.is_up_to_date() {
            let whole = plan::Plan::select(&manifest, &stages::registry(), &selection)?;
            if self.watch.is_for_people() {
                extrapolate(&rehearsal, &whole, options.cores, self.price)?;
            } else {
                say(in_json(&rehearsal, &whole, options.cores, self.price))?;
            }
        }
        Ok(code)
    }
}

/// What the whole would take, judged by the rehearsal, as one more event. What is not known is null.
fn in_json(rehearsal: &plan::Plan, whole: &plan::Plan, cores: usize, price: Option<f64>) -> Value {
    let estimates = whole.estimates(cores, Some(rehearsal));
    let selected = || whole.stages.iter().zip(&estimates).filter(|(stage, _)| stage.selected);
    let stages: Vec<Value> = selected()
        .map(|(stage, estimate)| {
            json!({
                "stage": stage.name, "reads_rows": estimate.reads.rows, "writes_rows": estimate.writes.rows,
                "writes_bytes": estimate.writes.bytes, "seconds": estimate.seconds,
            })
        })
        .collect();
    let seconds: f64 = selected().filter_map(|(_, estimate)| estimate.seconds).sum();
    let bytes: f64 = selected().filter_map(|(_, estimate)| estimate.writes.bytes).sum();
    json!({
        "event": "estimate", "cores": cores, "stages": stages, "seconds": seconds, "bytes": bytes,
        "cost": price.map(|price| seconds / 3600.0 * price), "rehearsal": rehearsal.workdir.to_string(),
    })
}

/// Prints what the whole would take, judged by the rehearsal.
fn extrapolate(rehearsal: &plan::Plan, whole: &plan::Plan, cores: usize, price: Option<f64>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\nThe whole, judged by this rehearsal, on {cores} cores:")?;
    writeln!(
        out,
        "  {:<10} {:>10} {:>10} {:>12} {:>11} {:>12}",
        "stage", "rehearsed", "rows", "writes", "rows", "time"
    )?;
    let estimates = whole.estimates(cores, Some(rehearsal));
    let (mut seconds, mut bytes) = (0.0, 0.0);
    for ((stage, rehearsed), estimate) in whole.stages.iter().zip(&rehearsal.stages).zip(&estimates) {
        if !stage.selected {
            continue;
        }
        seconds += estimate.seconds.unwrap_or(0.0);
        bytes += estimate.writes.bytes.unwrap_or(0.0);
        let or_unknown = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
        writeln!(
            out,
            "  {:<10} {:>10} {:>10} {:>12} {:>11} {:>12}",
            stage.name,
            duration(rehearsed.committed().map(|s| s.seconds).sum()),
            or_unknown(estimate.reads.rows.map(count)),
            or_unknown(estimate.writes.bytes.map(size)),
            or_unknown(estimate.writes.rows.map(count)),
            or_unknown(estimate.seconds.map(duration)),
        )?;
    }
    write!(out, "In all about {} and {} of disk", duration(seconds), size(bytes))?;
    match price {
        Some(price) => writeln!(out, "; {:.2} at {price} an hour.", seconds / 3600.0 * price)?,
        None => writeln!(out, ".")?,
    }
    writeln!(out, "The rehearsal lies in {}; it may be deleted.", rehearsal.workdir)?;
    Ok(())
}

#[derive(Debug, Args)]
pub(crate) struct Retry {
    #[command(flatten)]
    source: Source,
    /// Which of the refused rows: an SQL condition over key, url, caption, reason, status and error_message.
    #[arg(long = "where", value_name = "SQL", default_value = "true")]
    condition: String,
    /// The stage that refused them [the only one whose rows may pass another time].
    #[arg(long)]
    stage: Option<String>,
    /// What passes flows on up to this stage [to the end: a training on it begins anew].
    #[arg(long, value_name = "STAGE")]
    until: Option<String>,
    /// Only say how many rows would be tried again.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    budget: Budget,
    #[command(flatten)]
    watch: Watch,
}

impl Retry {
    pub(crate) fn run(&self) -> Result<u8> {
        let cancel = cancelled_by_interrupt()?;
        retry::check_condition(&self.condition)
            .map_err(|fault| Usage(format!("--where {:?}: {fault}", self.condition)))?;
        let manifest = self.source.read()?;
        let selection = plan::Selection { until: self.until.clone(), ..plan::Selection::default() };
        let plan = plan::Plan::select(&manifest, &stages::registry(), &selection)?;
        let stage = self.stage(&plan)?;
        let prepared = match retry::prepare(stage, &self.condition, self.dry_run, &cancel) {
            Err(pipeline::stage::StageError::Cancelled) => return Ok(INTERRUPTED),
            other => other?,
        };
        if self.watch.is_for_people() {
            let (rows, refused) = (prepared.rows, prepared.refused);
            watch::aside(format_args!("{}: {rows} of {refused} refused rows to try again", stage.name));
            if rows == 0 && refused > 0 {
                watch::aside(format_args!("  they were refused for: {}", counts(&stage.totals().dropped)));
            }
        }
        // Lists of an earlier retry that was cut short.
        let waits = stage.partitions.iter().skip(stage.sources.len()).any(|partition| partition.sidecar().is_none());
        // Without a row to try again, all that is missing downstream would be made, which is what `run` is for.
        if self.dry_run || (prepared.rows == 0 && !waits) {
            return Ok(OK);
        }
        let mut plan = plan::Plan::select(&manifest, &stages::registry(), &selection)?;
        make(None, &mut plan, manifest.notify.as_ref(), &self.budget.options(), self.watch, &cancel)
    }

    /// The stage whose rows are tried again. It is among those that are to be made.
    fn stage<'a>(&self, plan: &'a plan::Plan) -> Result<&'a PlannedStage> {
        let stage = self.able_stage(plan)?;
        if let (false, Some(until)) = (stage.selected, &self.until) {
            let text = format!("--until {until}: it is not made from {}, whose rows are tried again", stage.name);
            return Err(Usage(text).into());
        }
        Ok(stage)
    }

    fn able_stage<'a>(&self, plan: &'a plan::Plan) -> Result<&'a PlannedStage> {
        let able: Vec<&PlannedStage> = plan.stages.iter().filter(|stage| stage.stage.may_retry()).collect();
        let names: Vec<&str> = able.iter().map(|stage| stage.name.as_str()).collect();
        match (&self.stage, able.as_slice()) {
            (Some(name), _) => {
                let stage = plan.stage(name)?;
                if !stage.stage.may_retry() {
                    let others = match names.as_slice() {
                        [] => "no stage of this manifest has a second chance".to_owned(),
                        names => format!("stages with a second chance: {}", names.join(", ")),
                    };
                    return Err(Usage(format!("what {name} refused once it refuses again; {others}")).into());
                }
                Ok(stage)
            }
            (None, [only]) => Ok(only),
            (None, []) => bail!("no stage of this manifest refuses rows that may pass another time"),
            (None, _) => {
                Err(Usage(format!("several stages may try again: choose with --stage ({})", names.join(", "))).into())
            }
        }
    }
}
