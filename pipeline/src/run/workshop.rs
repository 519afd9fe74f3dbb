//! The other end of an [`Order`]: makes partitions that a run elsewhere asks for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use shards::ShardError;
use shards::digest::Digest;
use shards::event::{Event, EventSink};
use shards::lease::Runner;
use shards::sidecar::Sidecar;

use super::Options;
use super::executor::Order;
use super::scheduler::Node;
use super::work::{Crew, Ended, Work};
use crate::plan::{PartitionState, Plan, SURVEY};
use crate::stage::{Cancel, Load, StageError, Tally};

/// How an order ended that did not fail.
#[derive(Debug, PartialEq, Eq)]
pub enum Made {
    /// By this process, or it was there.
    Committed,
    /// Another process is making it: this one's.
    Elsewhere(String),
    Interrupted,
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error(
        "this process sees another workdir at {workdir} than the run that asks for partitions ({runner} is not at work here): it must be \
         one folder that all machines share, reached from the same place, or on a store"
    )]
    OtherWorkdir { workdir: String, runner: String },
    /// What this process plans is not what is asked for. A plan that was made anew may know it.
    #[error("{stage}, {partition}: {why}")]
    Unknown { stage: String, partition: String, why: &'static str },
    #[error(transparent)]
    Shard(#[from] ShardError),
    #[error(transparent)]
    Stage(#[from] StageError),
}

/// A plan whose partitions are made as they are asked for, by whoever asks.
pub struct Workshop {
    plan: Mutex<Plan>,
    /// For each stage, its partitions' numbers by name.
    numbers: Vec<HashMap<String, usize>>,
    /// This process at work on the workdir, while it is, and since when it is not needed.
    runner: Mutex<Option<(Arc<Runner>, Instant)>>,
    events: EventSink,
    room: Room,
    /// The runs that asked for something, and how each one's stages go.
    runs: Mutex<HashMap<String, Vec<Arc<Tally>>>>,
    /// What is being made here, of which files: the same order may come twice, when a cluster takes a machine for lost that was not.
    making: Mutex<HashMap<(usize, Digest), Vec<String>>>,
    made: Condvar,
}

impl Workshop {
    /// Takes what `options` say of cores and memory.
    pub fn new(plan: Plan, options: &Options, events: EventSink) -> Self {
        let names = |stage: &crate::plan::PlannedStage| {
            stage.partitions.iter().enumerate().map(|(number, partition)| (partition.name.clone(), number)).collect()
        };
        Self {
            numbers: plan.stages.iter().map(names).collect(),
            plan: Mutex::new(plan),
            runner: Mutex::default(),
            events,
            room: Room::new(options),
            runs: Mutex::default(),
            making: Mutex::default(),
            made: Condvar::new(),
        }
    }

    /// Leaves the workdir where nothing was asked for during the last `idle`; the next order joins again.
    pub fn rest(&self, idle: Duration) {
        let mut runner = lock(&self.runner);
        // Whoever makes something has it, too.
        if runner.as_ref().is_some_and(|(held, since)| Arc::strong_count(held) == 1 && since.elapsed() >= idle) {
            *runner = None;
        }
    }

    fn runner(&self) -> Result<Arc<Runner>, ShardError> {
        let mut runner = lock(&self.runner);
        // One that was silent for too long is dead to others.
        if let Some((held, since)) = runner.as_mut().filter(|(held, _)| !held.is_lost()) {
            *since = Instant::now();
            return Ok(Arc::clone(held));
        }
        let workdir = lock(&self.plan).workdir.clone();
        let held = Arc::new(Runner::join(&workdir)?);
        *runner = Some((Arc::clone(&held), Instant::now()));
        Ok(held)
    }

    /// Makes what the run `runner` asks for and commits it. Waits until the machine has room for it; may be called from many threads,
    /// also twice for the same.
    pub fn make(&self, runner: &str, order: &Order, cancel: &Cancel) -> Result<Made, OrderError> {
        let own = self.runner()?;
        let tallies = self.tallies(runner, &own)?;
        let (work, load) = self.work(order, &tallies, &own, cancel)?;
        let key = (work.node.stage, work.fingerprint);
        let mut making = lock(&self.making);
        while making.contains_key(&key) {
            making = self.made.wait(making).unwrap_or_else(PoisonError::into_inner);
        }
        making.insert(key, work.names_of_inputs());
        drop(making);
        let ended = self.in_turn(&work, load, &own, cancel);
        self.let_go(&key, ended.as_ref().ok().and_then(Ended::sidecar), &work);
        self.made.notify_all();
        self.tell(&own);
        if let Some((_, since)) = &mut *lock(&self.runner) {
            *since = Instant::now();
        }
        let (stage, partition) = (order.stage.clone(), order.partition.clone());
        match ended {
            Ok(Ended::Made(sidecar)) => {
                let Sidecar { rows_in, rows_out, dropped, seconds, .. } = &*sidecar;
                let (rows_in, rows_out, dropped, seconds) = (*rows_in, *rows_out, dropped.clone(), *seconds);
                self.events.send(Event::PartitionCommitted { stage, partition, rows_in, rows_out, dropped, seconds });
                Ok(Made::Committed)
            }
            Ok(Ended::Found(_)) => Ok(Made::Committed),
            Ok(Ended::Elsewhere(holder)) => Ok(Made::Elsewhere(holder.to_string())),
            Err(StageError::Cancelled) => Ok(Made::Interrupted),
            Err(error) => {
                self.events.send(Event::PartitionFailed { stage, partition, error: error.to_string() });
                Err(error.into())
            }
        }
    }

    fn in_turn(&self, work: &Work, load: Load, own: &Runner, cancel: &Cancel) -> Result<Ended, StageError> {
        let Some(taken) = self.room.take(load, work.memory.unwrap_or(0), cancel) else {
            return Err(StageError::Cancelled);
        };
        self.tell(own);
        let mut taken = Some(taken);
        work.make_or_panic(&mut || drop(taken.take()))
    }

    /// An order has ended. Of a workdir on a store, the copies of what it read and wrote go, but for what another one reads: which
    /// machine will want them next, nobody knows.
    fn let_go(&self, key: &(usize, Digest), written: Option<&Sidecar>, work: &Work) {
        let mut making = lock(&self.making);
        let mut names = making.remove(key).unwrap_or_default();
        if work.folder.workdir().is_remote() {
            let written = written.into_iter().flat_map(|sidecar| sidecar.data.iter().chain(&sidecar.quarantine));
            names.extend(written.map(|file| work.folder.name_of(&file.file)));
            let in_use: HashSet<&String> = making.values().flatten().collect();
            names.retain(|name| !in_use.contains(name));
            // While it is held: what is asked for next fetches its inputs anew.
            work.folder.workdir().let_go(&names);
        }
    }

    /// How the stages go for a run; one that is seen for the first time has to be at work in this very workdir.
    fn tallies(&self, runner: &str, own: &Runner) -> Result<Vec<Arc<Tally>>, OrderError> {
        let mut runs = lock(&self.runs);
        if let Some(tallies) = runs.get(runner) {
            return Ok(tallies.clone());
        }
        let living = own.living()?;
        let plan = lock(&self.plan);
        if !living.contains(runner) {
            let workdir = plan.workdir.to_string();
            return Err(OrderError::OtherWorkdir { workdir, runner: runner.to_owned() });
        }
        runs.retain(|known, _| living.contains(known));
        let tallies: Vec<Arc<Tally>> =
            plan.stages.iter().map(|stage| Arc::new(Tally::new(stage.fail_if, None))).collect();
        runs.insert(runner.to_owned(), tallies.clone());
        Ok(tallies)
    }

    fn work(
        &self,
        order: &Order,
        tallies: &[Arc<Tally>],
        own: &Arc<Runner>,
        cancel: &Cancel,
    ) -> Result<(Work, Load), OrderError> {
        let unknown = |why| OrderError::Unknown { stage: order.stage.clone(), partition: order.partition.clone(), why };
        let mut plan = lock(&self.plan);
        let position = |plan: &Plan, name: &str| plan.stages.iter().position(|stage| stage.name == name);
        let stage = position(&plan, &order.stage).ok_or_else(|| unknown("no stage of this manifest"))?;
        let number = match order.partition.as_str() {
            SURVEY => None,
            name => Some(self.number(stage, name).ok_or_else(|| unknown("no partition that is known here"))?),
        };
        // What it is made from, by stage.
        let mut records: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for record in &order.inputs {
            let at = position(&plan, &record.stage).ok_or_else(|| unknown("its input is no stage of this manifest"))?;
            records.entry(at).or_default().push(record.file.clone());
        }
        records.entry(stage).or_default().extend(order.survey.clone());
        for (at, files) in records {
            self.learn(&mut plan, at, files)?;
        }
        let Some(planned) = plan.stages.get(stage) else { return Err(unknown("no stage of this manifest")) };
        let made = plan.made_from(planned, number).ok_or_else(|| unknown("its input is not there"))?;
        if planned.fingerprint(&made.digests) != order.fingerprint {
            return Err(unknown("its input, or this program's version, is not that of the run that asks for it"));
        }
        let tally = tallies.get(stage).cloned().unwrap_or_default();
        let crew = Crew { tally, together: false, queries: None, runner: own, events: &self.events, cancel };
        let load = planned.stage.load();
        let mut work =
            Work::new(&plan, Node { stage, number }, made, crew).ok_or_else(|| unknown("no such partition"))?;
        work.force = order.force;
        Ok((work, load))
    }

    fn number(&self, stage: usize, partition: &str) -> Option<usize> {
        self.numbers.get(stage)?.get(partition).copied()
    }

    /// Takes committed records of a stage for its partitions' states, reading those that are not known yet.
    fn learn(&self, plan: &mut Plan, at: usize, files: Vec<String>) -> Result<(), ShardError> {
        let Some(stage) = plan.stages.get_mut(at) else { return Ok(()) };
        let number_of = |file: &str| {
            let name = file.split('.').next().unwrap_or_default();
            (name != SURVEY).then(|| self.number(at, name))
        };
        let is_known = |file: &String| {
            match number_of(file) {
                Some(number) => number.and_then(|number| stage.partition(Some(number))),
                None => stage.partition(None),
            }
            .and_then(|partition| partition.sidecar())
            .is_some_and(|sidecar| sidecar.file_name() == *file)
        };
        let unknown: Vec<String> = files.into_iter().filter(|file| !is_known(file)).collect();
        for (file, sidecar) in stage.folder.read_all(&unknown)? {
            let partition = match number_of(&file) {
                Some(Some(number)) => stage.partition_mut(Some(number)),
                Some(None) => None,
                None => stage.partition_mut(None),
            };
            if let Some(partition) = partition {
                partition.state = PartitionState::UpToDate(Arc::new(sidecar));
            }
        }
        Ok(())
    }

    /// Tells others what is being made here, with the next heartbeat.
    fn tell(&self, own: &Runner) {
        let mut by_stage: BTreeMap<usize, usize> = BTreeMap::new();
        for (stage, _) in lock(&self.making).keys() {
            *by_stage.entry(*stage).or_default() += 1;
        }
        let mut rows: BTreeMap<usize, u64> = BTreeMap::new();
        for (stage, tally) in lock(&self.runs).values().flat_map(|tallies| tallies.iter().enumerate()) {
            let (good, bad) = tally.counts();
            *rows.entry(stage).or_default() += good + bad.values().sum::<u64>();
        }
        let plan = lock(&self.plan);
        let doing = by_stage.into_iter().filter_map(|(stage, partitions)| {
            let rows = rows.get(&stage).copied().unwrap_or(0);
            Some((plan.stages.get(stage)?.name.clone(), json!({ "partitions": partitions, "rows": rows })))
        });
        own.tell(doing.collect::<serde_json::Map<_, _>>().into());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The machine's cores and memory, as partitions take them.
struct Room {
    cores: usize,
    memory: u64,
    taken: Mutex<(usize, u64)>,
    freed: Condvar,
}

/// A partition's part of them, until it is dropped.
struct Taken<'a> {
    room: &'a Room,
    cores: usize,
    memory: u64,
}

impl Room {
    fn new(options: &Options) -> Self {
        Self { cores: options.cores.max(1), memory: options.memory, taken: Mutex::default(), freed: Condvar::new() }
    }

    /// Waits for room; `None` once it is cancelled. What is larger than all there is has it alone.
    fn take(&self, load: Load, memory: u64, cancel: &Cancel) -> Option<Taken<'_>> {
        let cores = match load {
            Load::Network(_) => 0,
            Load::OneCore => 1,
            Load::AllCores => self.cores,
        };
        let mut taken = lock(&self.taken);
        while taken.0 + cores > self.cores || (taken.1 > 0 && taken.1 + memory > self.memory) {
            if cancel.is_cancelled() {
                return None;
            }
            // Nobody wakes who waits when it is cancelled.
            let waited = self.freed.wait_timeout(taken, Duration::from_millis(200));
            taken = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *taken = (taken.0 + cores, taken.1 + memory);
        Some(Taken { room: self, cores, memory })
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut taken = lock(&self.room.taken);
        *taken = (taken.0 - self.cores, taken.1 - self.memory);
        self.room.freed.notify_all();
    }
}
