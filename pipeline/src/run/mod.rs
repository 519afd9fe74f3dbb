//! Runs a plan: partitions in parallel, each committed by itself, each started as soon as its own inputs are committed.
//!
//! Any number of runs, on one machine or many, may work on one workdir: each claims the partitions it makes (see
//! [`shards::lease`]) and takes over what others have committed.

mod copies;
mod executor;
mod pool;
mod scheduler;
mod stage_run;
mod tables;
mod work;
mod workshop;

use std::sync::Arc;
use std::time::Instant;

use shards::event::{Event, EventSink, RunOutcome};
use shards::lease::Runner;

use crate::plan::{Plan, Share};
use crate::stage::{Cancel, Law, StageError};
pub use executor::{Executor, NotMade, Order, Record};
use scheduler::Scheduler;
pub use workshop::{Made, OrderError, Workshop};

/// Why a run stopped short.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{stage}, {partition}")]
    Stage { stage: String, partition: String, source: Box<StageError> },
    #[error(transparent)]
    Shard(#[from] shards::ShardError),
    /// What makes partitions elsewhere failed itself; what is committed is kept.
    #[error("the cluster")]
    Cluster(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(
        "this process was silent for so long that others may have taken over its work on {workdir}; what was committed is kept"
    )]
    LeaseLost { workdir: String },
    /// The selected stages cannot be made.
    #[error("{}", .0.join("\n"))]
    Obstructed(Vec<String>),
    /// Another run is at work, and must not be.
    #[error("{workdir} is in use by {holders}; wait, or stop it first")]
    Busy { workdir: String, holders: String },
}

/// How to run. None of it changes what comes out.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Cores to keep busy.
    pub cores: usize,
    /// Bytes of memory for partitions whose stage says how much they take.
    pub memory: u64,
    /// Go on with what does not depend on a partition that failed.
    pub keep_going: bool,
    /// Of the partitions that can be made, these come first: workers with shares of their own seldom want the same one.
    pub prefer: Option<Share>,
    /// Whether other processes make each partition together with this one: see [`assist`].
    pub together: bool,
}

impl Default for Options {
    /// All cores, and four fifths of the memory.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = memory().map_or(u64::MAX, |bytes| bytes / 5 * 4);
        Self { cores, memory, keep_going: false, prefer: None, together: false }
    }
}

/// Bytes of memory that this process may have: the machine's, or its container's; where the system says so.
fn memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = limits.into_iter().find_map(|path| read(path)?.trim().parse::<u64>().ok());
    let text = read("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let machine = line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024;
    Some(limit.map_or(machine, |limit| limit.min(machine)))
}

/// Makes whatever `plan` says is missing. Watches `cancel`: then what is under way is ended cleanly and the outcome is
/// [`RunOutcome::Interrupted`], as it is where another process that makes a partition too was told to stop.
pub fn run(plan: &mut Plan, options: &Options, events: &EventSink, cancel: &Cancel) -> Result<RunOutcome, RunError> {
    run_with(None, plan, options, events, cancel)
}

/// [`run`], with partitions made by `executor` where there is one.
pub fn run_with(
    executor: Option<&dyn Executor>,
    plan: &mut Plan,
    options: &Options,
    events: &EventSink,
    cancel: &Cancel,
) -> Result<RunOutcome, RunError> {
    let started = Instant::now();
    if !plan.obstacles.is_empty() {
        return Err(RunError::Obstructed(plan.obstacles.clone()));
    }
    let runner = Arc::new(Runner::join(&plan.workdir)?);
    events.send(Event::RunStarted {
        pipeline: plan.name.clone(),
        workdir: plan.workdir.to_string(),
        process: std::process::id(),
    });
    for stage in plan.stages.iter_mut().filter(|stage| stage.selected) {
        // Others may have committed, and ended, since the plan was made: what they left is not to be swept.
        stage.ledger.refresh()?;
        // Clear away what dead attempts left, and records whose data is gone.
        stage.ledger.retract_incomplete()?;
        if stage.force {
            stage.ledger.forget()?;
        }
        stage.ledger.compact()?;
        stage.folder.sweep(stage.ledger.sidecars(), || runner.living())?;
    }
    for stage in plan.stages.iter().filter(|stage| stage.selected) {
        for sidecar in stage.committed().take_while(|_| !cancel.is_cancelled()) {
            stage.stage.committed(&stage.folder, sidecar, events).map_err(|source| RunError::Stage {
                stage: stage.name.clone(),
                partition: sidecar.partition.clone(),
                source: Box::new(source),
            })?;
        }
    }
    for stage in &plan.stages {
        events.send(Event::StagePlanned {
            stage: stage.name.clone(),
            kind: stage.kind.clone(),
            partitions: stage.partitions.len(),
            to_run: stage.to_run(),
            why: stage.summary(),
        });
    }
    let mut scheduler = Scheduler::new(plan, options, &runner, events, cancel);
    scheduler.let_go_of_left_copies();
    let result = scheduler.drive(executor);
    let (worked, interrupted) = (scheduler.worked, scheduler.interrupted);
    for stage in &mut plan.stages {
        stage.ledger.save()?;
    }
    let losses = plan.heavy_losses();
    let outcome = match &result {
        Err(_) => RunOutcome::Failed,
        Ok(()) if (interrupted || cancel.is_cancelled()) && !plan.is_up_to_date() => RunOutcome::Interrupted,
        Ok(()) if !losses.is_empty() => RunOutcome::DoneWithLosses,
        Ok(()) if worked => RunOutcome::Done,
        Ok(()) => RunOutcome::UpToDate,
    };
    if outcome == RunOutcome::DoneWithLosses {
        for note in losses {
            events.send(note);
        }
    }
    events.send(Event::RunFinished { outcome, seconds: started.elapsed().as_secs_f64() });
    result.map(|()| outcome)
}

/// Takes part in what another process of the same plan makes, which is the leader ([`crate::stage::Stage::leader`]) and calls
/// [`run`] with [`Options::together`]: a rank of a training beside the one that commits. Nothing is claimed and nothing committed here.
pub fn assist(plan: &mut Plan, options: &Options, events: &EventSink, cancel: &Cancel) -> Result<(), RunError> {
    if !plan.obstacles.is_empty() {
        return Err(RunError::Obstructed(plan.obstacles.clone()));
    }
    let runner = Arc::new(Runner::join(&plan.workdir)?);
    let mut scheduler = Scheduler::new(plan, options, &runner, events, cancel);
    scheduler.assist()
}

impl Plan {
    /// Notes about the selected row-wise stages that lost a larger share of their rows than the manifest's threshold. Rows that
    /// were only not chosen are no loss.
    fn heavy_losses(&self) -> Vec<Event> {
        let judged = self.stages.iter().filter(|stage| stage.selected && stage.stage.law() != Law::Chooses);
        let heavy = judged.filter_map(|stage| {
            let totals = stage.totals();
            let share = totals.rows_dropped() as f64 / totals.rows_in.max(1) as f64;
            (share > self.warn_above).then(|| {
                let [share, limit] = [share, self.warn_above].map(|share| 100.0 * share);
                let text = format!("refused {share:.1} % of its rows; warn_above is {limit:.1} %");
                Event::Note { stage: stage.name.clone(), text }
            })
        });
        heavy.collect()
    }
}
