//! Runs a plan: partitions in parallel, each committed by itself, each started as soon as its own inputs are committed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::Scope;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use shards::commit::Commit;
use shards::event::{Event, EventSink, RunOutcome};
use shards::lease::{Lease, LeaseError};
use shards::sidecar::{FORMAT, InputDigest, Sidecar};

use crate::manifest::{FailIf, OnBadRow};
use crate::plan::{PartitionState, Plan, PlannedStage, fingerprint};
use crate::stage::{Cancel, Input, Load, Outcome, Stage, StageError, Tally, Task};

/// How often watchers hear of rows in partitions that are under way.
const TICK: Duration = Duration::from_millis(200);

/// Why a run stopped short.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error("{stage}, {partition}")]
    Stage { stage: String, partition: String, source: Box<StageError> },
    #[error(transparent)]
    Shard(#[from] shards::ShardError),
    #[error("another process took {workdir} over while this one was silent; what was committed is kept")]
    LeaseLost { workdir: String },
}

/// Makes whatever `plan` says is missing. Watches `cancel`: then what is under way is ended cleanly and the outcome is
/// [`RunOutcome::Interrupted`].
pub fn run(plan: &mut Plan, events: &EventSink, cancel: &Cancel) -> Result<RunOutcome, RunError> {
    let started = Instant::now();
    let workdir = plan.workdir.display().to_string();
    shards::commit::create_folder(&plan.workdir)?;
    let lease = Lease::acquire(&plan.workdir, "run")?;
    events.send(Event::RunStarted {
        pipeline: plan.name.clone(),
        workdir: workdir.clone(),
        process: std::process::id(),
    });
    for stage in &mut plan.stages {
        // The plan was made before the lease was held: look again, and clear away what dead attempts left.
        stage.ledger = crate::ledger::Ledger::read(stage.folder.clone())?;
        stage.ledger.retract_incomplete()?;
        stage.folder.sweep(stage.ledger.sidecars())?;
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
    let mut scheduler = Scheduler::new(plan, events, cancel);
    let result = scheduler.drive(&lease);
    let worked = scheduler.worked;
    for stage in &mut plan.stages {
        stage.ledger.save()?;
    }
    let outcome = match &result {
        Err(_) => RunOutcome::Failed,
        Ok(()) if cancel.is_cancelled() && !plan.is_up_to_date() => RunOutcome::Interrupted,
        Ok(()) if plan.has_heavy_losses() => RunOutcome::DoneWithLosses,
        Ok(()) if worked => RunOutcome::Done,
        Ok(()) => RunOutcome::UpToDate,
    };
    events.send(Event::RunFinished { outcome, seconds: started.elapsed().as_secs_f64() });
    result.map(|()| outcome)
}

impl Plan {
    /// Whether some row-wise stage lost a larger share of its rows than the manifest's threshold.
    fn has_heavy_losses(&self) -> bool {
        self.stages.iter().any(|stage| {
            let (rows, dropped) =
                stage.committed().fold((0, 0), |(rows, dropped), s| (rows + s.rows_in, dropped + s.rows_dropped()));
            rows > 0 && dropped as f64 > self.warn_above * rows as f64
        })
    }
}

/// A partition that is being made, or was.
struct Job {
    stage: usize,
    number: usize,
    result: Result<Arc<Sidecar>, StageError>,
}

/// What a worker thread needs, independent of the plan.
struct Work {
    stage_name: String,
    kind: String,
    partition: String,
    number: usize,
    stage: Arc<dyn Stage>,
    semantics: serde_json::Value,
    folder: shards::commit::StageFolder,
    on_bad_row: OnBadRow,
    tally: Arc<Tally>,
    inputs: Vec<Input>,
    digests: Vec<InputDigest>,
    events: EventSink,
    cancel: Cancel,
}

#[derive(Default)]
struct StageProgress {
    running: usize,
    finished: bool,
    started: Option<Instant>,
    tally: Arc<Tally>,
    /// What watchers heard last.
    told: u64,
}

struct Scheduler<'a> {
    plan: &'a mut Plan,
    events: &'a EventSink,
    cancel: &'a Cancel,
    cores: usize,
    progress: Vec<StageProgress>,
    in_flight: Vec<Vec<bool>>,
    worked: bool,
}

impl<'a> Scheduler<'a> {
    fn new(plan: &'a mut Plan, events: &'a EventSink, cancel: &'a Cancel) -> Self {
        let tally = |fail_if: Option<FailIf>| Arc::new(Tally::new(fail_if));
        let progress =
            plan.stages.iter().map(|s| StageProgress { tally: tally(s.fail_if), ..StageProgress::default() }).collect();
        let in_flight = plan.stages.iter().map(|s| vec![false; s.partitions.len()]).collect();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { plan, events, cancel, cores, progress, in_flight, worked: false }
    }

    /// Starts and commits partitions until none is left. The first error is kept as nearest the cause; what runs beside it
    /// is asked to stop.
    fn drive(&mut self, lease: &Lease) -> Result<(), RunError> {
        let (sender, done): (SyncSender<Job>, Receiver<Job>) = sync_channel(64);
        let mut first_error: Option<RunError> = None;
        // Tells this run's own partitions to stop after an error, without claiming that the user asked for it.
        let stop = Cancel::default();
        std::thread::scope(|scope| {
            loop {
                if self.cancel.is_cancelled() {
                    stop.cancel();
                }
                if !stop.is_cancelled() {
                    self.start_ready(scope, &sender, &stop);
                }
                self.finish_stages();
                if self.progress.iter().all(|p| p.running == 0) {
                    break;
                }
                match done.recv_timeout(TICK) {
                    Ok(job) => {
                        if let Some(error) = self.settle(job) {
                            first_error.get_or_insert(error);
                            stop.cancel();
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => self.tick(),
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                if lease.is_lost() {
                    let workdir = self.plan.workdir.display().to_string();
                    first_error.get_or_insert(RunError::LeaseLost { workdir });
                    stop.cancel();
                }
            }
        });
        first_error.map_or(Ok(()), Err)
    }

    /// Starts every partition whose inputs are committed and for which there is room. Later stages come first, so that
    /// partitions flow through instead of piling up.
    fn start_ready<'scope>(&mut self, scope: &'scope Scope<'scope, '_>, sender: &SyncSender<Job>, stop: &Cancel) {
        for index in (0..self.plan.stages.len()).rev() {
            let count = self.plan.stages.get(index).map_or(0, |s| s.partitions.len());
            for number in 0..count {
                if !self.has_room(index) {
                    break;
                }
                if self.in_flight.get(index).and_then(|s| s.get(number)).copied().unwrap_or(true) {
                    continue;
                }
                if let Some(work) = self.work(index, number, stop) {
                    self.note_start(index, number);
                    let sender = sender.clone();
                    scope.spawn(move || {
                        let (stage, number) = (index, number);
                        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work.process()))
                            .unwrap_or_else(|_panic| {
                                Err(StageError::failed("the stage panicked; this is a fault in the program"))
                            });
                        let _ = sender.send(Job { stage, number, result });
                    });
                }
            }
        }
    }

    fn has_room(&self, index: usize) -> bool {
        let Some(stage) = self.plan.stages.get(index) else { return false };
        let running = self.progress.get(index).map_or(0, |p| p.running);
        let used: usize = self
            .plan
            .stages
            .iter()
            .zip(&self.progress)
            .map(|(s, p)| match s.stage.load() {
                Load::Network(_) => 0,
                Load::OneCore => p.running,
                Load::AllCores => p.running * self.cores,
            })
            .sum();
        match stage.stage.load() {
            Load::Network(most) => running < most.max(1),
            Load::OneCore => used < self.cores,
            Load::AllCores => used == 0,
        }
    }

    /// What it takes to make a partition; `None` when it is up to date or its inputs are not there yet.
    fn work(&mut self, index: usize, number: usize, stop: &Cancel) -> Option<Work> {
        let stage = self.plan.stages.get(index)?;
        let partition = stage.partitions.get(number)?;
        if matches!(partition.state, PartitionState::UpToDate(_)) {
            return None;
        }
        let (inputs, digests) = self.plan.inputs_of(stage, number)?;
        // Its inputs may have come out as they were before: then it is up to date after all.
        let state = stage.state(&partition.name, &digests);
        if let PartitionState::UpToDate(_) = state {
            self.set_state(index, number, state);
            return None;
        }
        Some(Work {
            stage_name: stage.name.clone(),
            kind: stage.kind.clone(),
            partition: partition.name.clone(),
            number,
            stage: Arc::clone(&stage.stage),
            semantics: stage.semantics.clone(),
            folder: stage.folder.clone(),
            on_bad_row: stage.on_bad_row,
            tally: Arc::clone(&self.progress.get(index)?.tally),
            inputs,
            digests,
            events: self.events.clone(),
            cancel: stop.clone(),
        })
    }

    fn set_state(&mut self, index: usize, number: usize, state: PartitionState) {
        if let Some(partition) = self.plan.stages.get_mut(index).and_then(|s| s.partitions.get_mut(number)) {
            partition.state = state;
        }
    }

    fn note_start(&mut self, index: usize, number: usize) {
        self.worked = true;
        if let Some(flag) = self.in_flight.get_mut(index).and_then(|s| s.get_mut(number)) {
            *flag = true;
        }
        if let Some(progress) = self.progress.get_mut(index) {
            progress.running += 1;
            progress.started.get_or_insert_with(Instant::now);
        }
        if let Some(stage) = self.plan.stages.get(index)
            && let Some(partition) = stage.partitions.get(number)
        {
            let (stage, partition) = (stage.name.clone(), partition.name.clone());
            self.events.send(Event::PartitionStarted { stage, partition });
        }
    }

    /// Takes in the end of a partition; returns the error that ends the run, if it is one.
    fn settle(&mut self, job: Job) -> Option<RunError> {
        let Job { stage: index, number, result } = job;
        if let Some(progress) = self.progress.get_mut(index) {
            progress.running -= 1;
        }
        let stage = self.plan.stages.get_mut(index)?;
        let name = stage.name.clone();
        let partition = stage.partitions.get(number).map(|p| p.name.clone()).unwrap_or_default();
        match result {
            Ok(sidecar) => {
                stage.ledger.add(Arc::clone(&sidecar));
                self.events.send(Event::PartitionCommitted {
                    stage: name,
                    partition,
                    rows_in: sidecar.rows_in,
                    rows_out: sidecar.rows_out,
                    dropped: sidecar.dropped.clone(),
                    seconds: sidecar.seconds,
                });
                self.set_state(index, number, PartitionState::UpToDate(sidecar));
                None
            }
            Err(StageError::Cancelled) => None,
            Err(source) => {
                let error = source.to_string();
                self.events.send(Event::PartitionFailed { stage: name.clone(), partition: partition.clone(), error });
                Some(RunError::Stage { stage: name, partition, source: Box::new(source) })
            }
        }
    }

    /// Says of each stage that has just become complete what it did.
    fn finish_stages(&mut self) {
        for (stage, progress) in self.plan.stages.iter().zip(&mut self.progress) {
            if progress.finished || stage.to_run() > 0 {
                continue;
            }
            progress.finished = true;
            let seconds = progress.started.map_or(0.0, |s| s.elapsed().as_secs_f64());
            self.events.send(stage.finished(progress.started.is_none(), seconds));
        }
    }

    fn tick(&mut self) {
        for (stage, progress) in self.plan.stages.iter().zip(&mut self.progress) {
            let (good, bad) = progress.tally.counts();
            let done = good + bad.values().sum::<u64>();
            if progress.running > 0 && done != progress.told {
                progress.told = done;
                self.events.send(Event::Progress {
                    stage: stage.name.clone(),
                    unit: "rows",
                    done,
                    total: stage.rows_to_run(),
                    outcomes: bad,
                    note: String::new(),
                });
            }
        }
    }
}

impl PlannedStage {
    /// Rows of the partitions that were not up to date when the run began, when that is known.
    fn rows_to_run(&self) -> Option<u64> {
        let rows: u64 = self.sources.iter().map(|s| s.rows).sum();
        (rows > 0).then_some(rows)
    }

    /// The event that sums up a complete stage.
    pub fn finished(&self, up_to_date: bool, seconds: f64) -> Event {
        let mut dropped: BTreeMap<String, u64> = BTreeMap::new();
        let mut observed: BTreeMap<String, u64> = BTreeMap::new();
        let (mut rows_in, mut rows_out) = (0, 0);
        for sidecar in self.committed() {
            rows_in += sidecar.rows_in;
            rows_out += sidecar.rows_out;
            sidecar.dropped.iter().for_each(|(k, n)| *dropped.entry(k.clone()).or_default() += n);
            sidecar.observed.iter().for_each(|(k, n)| *observed.entry(k.clone()).or_default() += n);
        }
        let law = self.stage.law().in_words(rows_in, rows_out, dropped.values().sum());
        Event::StageFinished { stage: self.name.clone(), up_to_date, law, dropped, observed, seconds }
    }
}

impl Work {
    /// Makes the partition and commits it.
    fn process(&self) -> Result<Arc<Sidecar>, StageError> {
        let started = Instant::now();
        let attempt = self.folder.attempt(&self.partition)?;
        let fingerprint = fingerprint(&self.kind, &self.semantics, &self.digests);
        let task = Task {
            stage: &self.stage_name,
            partition: &self.partition,
            number: self.number,
            fingerprint,
            folder: &self.folder,
            attempt: &attempt,
            inputs: &self.inputs,
            on_bad_row: self.on_bad_row,
            tally: &self.tally,
            events: &self.events,
            cancel: &self.cancel,
        };
        let made = self.stage.process(&task).and_then(|outcome| self.commit(outcome, fingerprint, started));
        if made.is_err() {
            attempt.abandon();
        }
        made
    }

    fn commit(
        &self,
        outcome: Outcome,
        fingerprint: shards::digest::Digest,
        started: Instant,
    ) -> Result<Arc<Sidecar>, StageError> {
        let Outcome { data, quarantine, rows_in, rows_out, dropped, observed, sections, details } = outcome;
        let lost = dropped.values().sum();
        let law = self.stage.law();
        if !law.holds(rows_in, rows_out, lost) {
            return Err(StageError::LawBroken(format!("{rows_in} rows in, but {rows_out} out and {lost} dropped")));
        }
        let sidecar = Sidecar {
            format: FORMAT,
            stage: self.stage_name.clone(),
            kind: self.kind.clone(),
            partition: self.partition.clone(),
            fingerprint,
            parameters: self.semantics.clone(),
            inputs: self.digests.clone(),
            data,
            quarantine,
            rows_in,
            rows_out,
            dropped,
            observed,
            sections,
            details,
            finished_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            seconds: started.elapsed().as_secs_f64(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok(match self.folder.commit(&sidecar)? {
            Commit::Won => Arc::new(sidecar),
            Commit::Lost(winner) => Arc::from(winner),
        })
    }
}
