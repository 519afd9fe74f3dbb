//! Which partition is made when: the state of a run, kept by one thread.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use serde_json::json;
use shards::event::{Event, EventSink};
use shards::lease::{Holder, Runner};
use shards::sidecar::Sidecar;

use super::executor::Executor;
use super::pool::Pool;
use super::stage_run::{StageRun, is_preferred};
use super::tables::Tables;
use super::work::{Crew, Ended, Message, Work};
use super::{Options, RunError};
use crate::plan::{PartitionState, Plan, PlannedStage};
use crate::stage::{Cancel, Load, Partitioning, StageError};

/// How often watchers hear of rows in partitions that are under way.
const TICK: Duration = Duration::from_millis(200);
/// When they hear of a stage that has something to say, though none of its rows has ended.
const STILL: Duration = Duration::from_secs(2);
/// How often to look whether other runs have committed what this one waits for.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// How often ledgers are written, so that a run that is killed leaves little to read again.
const SAVE: Duration = Duration::from_secs(30);
/// Commits that may be under way beside each other: they wait for the disk, or the store, not for a core.
const COMMITS: usize = 32;

/// A partition of a stage, or (without a number) its survey.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Node {
    pub(super) stage: usize,
    pub(super) number: Option<usize>,
}

/// Who makes what is ready: threads of this process; with a cluster, only what asks that for the most of the work.
struct Hands<'scope, 'env> {
    threads: Pool<'scope, 'env>,
    cluster: Option<Tables<'scope, 'env>>,
}

pub(super) struct Scheduler<'a> {
    pub(super) plan: &'a mut Plan,
    pub(super) options: &'a Options,
    runner: &'a Arc<Runner>,
    events: &'a EventSink,
    cancel: &'a Cancel,
    pub(super) stages: Vec<StageRun>,
    /// For each stage: who reads from it, and the number that its first partition has there.
    pub(super) readers: Vec<Vec<(usize, usize)>>,
    /// What is being made here.
    pub(super) busy: BTreeSet<Node>,
    /// Stages and numbers of partitions whose copies stay here, of a workdir on a store, until they are read.
    pub(super) kept: BTreeSet<(usize, usize)>,
    /// Tells this run's own partitions to stop after an error, without claiming that the user asked for it.
    stop: Cancel,
    first_error: Option<RunError>,
    pub(super) worked: bool,
    /// A partition was given up, though nothing here asked for that: another process that made it too was told to stop.
    pub(super) interrupted: bool,
}

impl<'a> Scheduler<'a> {
    pub(super) fn new(
        plan: &'a mut Plan,
        options: &'a Options,
        runner: &'a Arc<Runner>,
        events: &'a EventSink,
        cancel: &'a Cancel,
    ) -> Self {
        let mut readers = vec![Vec::new(); plan.stages.len()];
        for (reader, stage) in plan.stages.iter().enumerate() {
            let mut first = 0;
            for &input in &stage.inputs {
                if let Some(readers) = readers.get_mut(input) {
                    readers.push((reader, first));
                }
                first += plan.stages.get(input).map_or(0, |s| s.partitions.len());
            }
        }
        let stages = (0..plan.stages.len()).map(|index| StageRun::new(plan, index, options.prefer)).collect();
        Self {
            plan,
            options,
            runner,
            events,
            cancel,
            stages,
            readers,
            busy: BTreeSet::new(),
            kept: BTreeSet::new(),
            stop: Cancel::default(),
            first_error: None,
            worked: false,
            interrupted: false,
        }
    }

    /// Starts and commits partitions until none is left. The first error is kept as nearest the cause; what runs beside it
    /// is asked to stop, unless the run is to keep going. An `executor` makes them in place of this process's threads.
    pub(super) fn drive(&mut self, executor: Option<&dyn Executor>) -> Result<(), RunError> {
        let (sender, done) = sync_channel(4 * COMMITS);
        std::thread::scope(|scope| {
            let tables = |executor| Tables::new(scope, executor, Arc::clone(self.runner), sender.clone());
            let cluster = executor.map(tables);
            let mut hands = Hands { threads: Pool::new(scope, sender), cluster };
            let (mut ticked, mut looked, mut saved) = (Instant::now(), Instant::now(), Instant::now());
            loop {
                if self.cancel.is_cancelled() {
                    self.stop.cancel();
                }
                if !self.stop.is_cancelled() {
                    self.start_ready(&mut hands);
                } else if let Some(tables) = &hands.cluster {
                    tables.give_up();
                }
                self.finish_stages();
                let waits = !self.stop.is_cancelled() && self.stages.iter().any(|s| !s.elsewhere.is_empty());
                let is_done = hands.cluster.as_ref().is_none_or(Tables::are_done);
                if is_done && !waits && self.stages.iter().all(|s| s.running == 0) {
                    break;
                }
                self.receive(&done, &mut hands);
                if ticked.elapsed() >= TICK {
                    ticked = Instant::now();
                    self.tick();
                }
                if waits && looked.elapsed() >= LOOK {
                    looked = Instant::now();
                    self.look_elsewhere();
                }
                if let Some(tables) = &mut hands.cluster {
                    self.look_at_tables(tables);
                }
                if saved.elapsed() >= SAVE {
                    saved = Instant::now();
                    // A ledger that cannot be written is no loss; a disk that is full will say so where it matters.
                    self.plan.stages.iter_mut().for_each(|stage| drop(stage.ledger.save()));
                }
                if self.runner.is_lost() {
                    self.abort(RunError::LeaseLost { workdir: self.plan.workdir.to_string() });
                }
            }
        });
        self.first_error.take().map_or(Ok(()), Err)
    }

    /// Takes part in each partition, one after the other.
    pub(super) fn assist(&mut self) -> Result<(), RunError> {
        self.stop = self.cancel.clone();
        for index in 0..self.plan.stages.len() {
            let wanted: Vec<usize> =
                self.plan.stages.get(index).map(|stage| stage.wanted().collect()).unwrap_or_default();
            for number in wanted {
                let node = Node { stage: index, number: Some(number) };
                let Some(work) = self.work(node) else { continue };
                match work.assist() {
                    Ok(()) => {}
                    Err(StageError::Cancelled) => return Ok(()),
                    Err(source) => {
                        let (stage, partition) = self.names(node).unwrap_or_default();
                        return Err(RunError::Stage { stage, partition, source: Box::new(source) });
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes in what threads report: waits a little for the first, then takes what is there.
    fn receive(&mut self, done: &Receiver<Message>, hands: &mut Hands) {
        let mut next = done.recv_timeout(TICK).ok();
        while let Some(message) = next {
            match message {
                Message::Computed(node) => {
                    if let Some(stage) = self.stages.get_mut(node.stage) {
                        stage.computing -= 1;
                    }
                }
                Message::Done(node, result) => self.settle(node, result),
                Message::Table(number, result) => {
                    if let Some(tables) = &mut hands.cluster {
                        self.end_table(tables, number, result);
                    }
                }
            }
            next = done.try_recv().ok();
        }
    }

    pub(super) fn fail(&mut self, error: RunError) {
        self.first_error.get_or_insert(error);
    }

    /// Starts every partition whose inputs are committed and for which there is room. Later stages come first, so that
    /// partitions flow through instead of piling up.
    fn start_ready(&mut self, hands: &mut Hands) {
        let mut look_again = true;
        while std::mem::take(&mut look_again) {
            for index in (0..self.plan.stages.len()).rev() {
                while self.has_room(index, hands)
                    && let Some(number) = self.stages.get_mut(index).and_then(|s| s.ready.pop_front())
                {
                    let node = Node { stage: index, number };
                    if let Some(mut work) = self.work(node) {
                        self.note_start(node);
                        match &mut hands.cluster {
                            Some(tables) if self.is_for_one(node) => {
                                let survey = self.plan.stages.get(index).and_then(|s| s.survey.as_ref()?.sidecar());
                                tables.add(node, work.order(survey.map(AsRef::as_ref)));
                            }
                            Some(tables) => {
                                work.queries = tables.queries();
                                hands.threads.start(work);
                            }
                            None => hands.threads.start(work),
                        }
                    } else {
                        // It was there, so what reads it may be ready now.
                        look_again = true;
                    }
                }
            }
        }
        if let Some(tables) = &mut hands.cluster {
            tables.send(self.options.keep_going);
        }
    }

    /// Whether one machine of a cluster makes it, and not all of them together by answering this one's queries. Those read files, at
    /// paths that are the same everywhere.
    fn is_for_one(&self, node: Node) -> bool {
        let asks = self.plan.stages.get(node.stage).is_some_and(|stage| stage.stage.asks_a_cluster());
        node.number.is_some() || !asks || self.plan.workdir.is_remote()
    }

    fn has_room(&self, index: usize, hands: &Hands) -> bool {
        let (Some(stage), Some(run)) = (self.plan.stages.get(index), self.stages.get(index)) else { return false };
        if run.ready.is_empty() || stage.concurrency.is_some_and(|most| run.running >= most) {
            return false;
        }
        if let Some(tables) = &hands.cluster {
            return tables.have_room();
        }
        let (mut cores, mut committing, mut memory) = (0, 0, 0);
        for (stage, run) in self.plan.stages.iter().zip(&self.stages) {
            committing += run.running - run.computing;
            memory += run.computing as u64 * stage.memory.unwrap_or(0);
            cores += match stage.stage.load() {
                Load::Network(_) => 0,
                Load::OneCore => run.computing,
                Load::AllCores => run.computing * self.options.cores,
            };
        }
        let takes = stage.memory.unwrap_or(0);
        // A partition that is larger than the budget is made alone rather than never.
        if committing >= COMMITS || (memory > 0 && memory + takes > self.options.memory) {
            return false;
        }
        match stage.stage.load() {
            Load::Network(most) => run.computing < most.max(1),
            Load::OneCore => cores < self.options.cores.max(1),
            Load::AllCores => cores == 0,
        }
    }

    /// What it takes to make a partition; `None` when it turned out to be up to date.
    pub(super) fn work(&mut self, node: Node) -> Option<Work> {
        let stage = self.plan.stages.get(node.stage)?;
        let partition = stage.partition(node.number)?;
        let made = self.plan.made_from(stage, node.number)?;
        // Its inputs may have come out as they were before: then it is up to date after all.
        if let PartitionState::UpToDate(sidecar) = stage.state(&partition.name, &made.digests) {
            self.there(node, sidecar);
            return None;
        }
        let tally = self.stages.get(node.stage).map(|run| Arc::clone(&run.tally)).unwrap_or_default();
        let together = self.options.together;
        let crew =
            Crew { tally, together, queries: None, runner: self.runner, events: self.events, cancel: &self.stop };
        Work::new(self.plan, node, made, crew)
    }

    fn note_start(&mut self, node: Node) {
        self.busy.insert(node);
        if let Some(run) = self.stages.get_mut(node.stage) {
            run.running += 1;
            run.computing += 1;
            run.started.get_or_insert_with(Instant::now);
        }
    }

    pub(super) fn names(&self, node: Node) -> Option<(String, String)> {
        let stage = self.plan.stages.get(node.stage)?;
        Some((stage.name.clone(), stage.partition(node.number)?.name.clone()))
    }

    /// Takes in the end of a partition.
    pub(super) fn settle(&mut self, node: Node, result: Result<Ended, StageError>) {
        self.busy.remove(&node);
        if let Some(run) = self.stages.get_mut(node.stage) {
            run.running -= 1;
        }
        let Some((stage, partition)) = self.names(node) else { return };
        match result {
            Ok(Ended::Found(sidecar)) => self.there(node, sidecar),
            Ok(Ended::Elsewhere(holder)) => self.is_elsewhere(node, &holder),
            Ok(Ended::Made(sidecar)) => {
                self.worked = true;
                self.events.send(Event::PartitionCommitted {
                    stage,
                    partition,
                    rows_in: sidecar.rows_in,
                    rows_out: sidecar.rows_out,
                    dropped: sidecar.dropped.clone(),
                    seconds: sidecar.seconds,
                });
                self.there(node, sidecar);
            }
            Err(StageError::Cancelled) => self.interrupted |= !self.stop.is_cancelled(),
            Err(source) => {
                let error = source.to_string();
                self.events.send(Event::PartitionFailed { stage: stage.clone(), partition: partition.clone(), error });
                self.fail(RunError::Stage { stage, partition, source: Box::new(source) });
                if !self.options.keep_going {
                    self.stop.cancel();
                }
            }
        }
    }

    /// Ends the run, whatever it was told to go on with.
    pub(super) fn abort(&mut self, error: RunError) {
        self.fail(error);
        self.stop.cancel();
    }

    /// A partition is there now, whoever made it: whoever waits for it has one reason less to.
    fn there(&mut self, node: Node, sidecar: Arc<Sidecar>) {
        let Some(stage) = self.plan.stages.get_mut(node.stage) else { return };
        stage.ledger.add(Arc::clone(&sidecar));
        let partitions = stage.partitions.len();
        if let Some(partition) = stage.partition_mut(node.number) {
            partition.state = PartitionState::UpToDate(sidecar);
        }
        let Some(number) = node.number else {
            (0..partitions).for_each(|number| self.one_less(node.stage, Some(number)));
            if self.plan.workdir.is_remote() {
                self.let_go_after_survey(node.stage);
            }
            return;
        };
        if self.plan.workdir.is_remote() {
            self.let_go_of_copies(node.stage, number);
        }
        if let Some(run) = self.stages.get_mut(node.stage) {
            run.left = run.left.saturating_sub(1);
        }
        for (reader, first) in self.readers.get(node.stage).cloned().unwrap_or_default() {
            match self.plan.stages.get(reader).map(|s| s.stage.partitioning()) {
                Some(Partitioning::EachInput) => self.one_less(reader, Some(first + number)),
                Some(Partitioning::Whole) => self.one_less(reader, Some(0)),
                Some(Partitioning::Surveyed) => {
                    self.one_less(reader, Some(first + number));
                    self.one_less(reader, None);
                }
                // Those of the first input have the same numbers there.
                Some(Partitioning::Joined) => {
                    if first == 0 && self.plan.stages.get(reader).is_some_and(|s| number < s.partitions.len()) {
                        self.one_less(reader, Some(number));
                    }
                    self.one_less(reader, None);
                }
                Some(Partitioning::Source) | None => {}
            }
        }
    }

    fn one_less(&mut self, stage: usize, number: Option<usize>) {
        let Some((planned, run)) = self.plan.stages.get(stage).zip(self.stages.get_mut(stage)) else { return };
        let Some(waits_for) = run.waits_for.get_mut(number.unwrap_or(planned.partitions.len())) else { return };
        *waits_for = waits_for.saturating_sub(1);
        let is_missing = planned.partition(number).is_some_and(|p| p.sidecar().is_none());
        if *waits_for == 0 && is_missing && planned.is_wanted(number) {
            if self.options.prefer.is_some() && is_preferred(self.options.prefer, number) {
                run.ready.push_front(number);
            } else {
                run.ready.push_back(number);
            }
        }
    }

    fn is_elsewhere(&mut self, node: Node, holder: &Holder) {
        let Some(run) = self.stages.get_mut(node.stage) else { return };
        run.leave(node.number, Some(holder.id.clone()));
        if !std::mem::replace(&mut run.told_elsewhere, true)
            && let Some((stage, partition)) = self.names(node)
        {
            self.events.send(Event::Note { stage, text: format!("{partition} is being made by {holder}") });
        }
    }

    /// Looks for what other runs have committed. What they hold is tried again where they have died, and now and then besides.
    fn look_elsewhere(&mut self) {
        // A look that failed is made good by the next one; a store that stays away ends the run as lost.
        let others = self.runner.others().ok();
        let own = self.runner.id();
        let is_alive = |id: &str| id == own || others.as_ref().is_none_or(|others| others.contains_key(id));
        for index in 0..self.stages.len() {
            if self.stages.get(index).is_none_or(|run| run.elsewhere.is_empty()) {
                continue;
            }
            let Some(Ok(_)) = self.plan.stages.get_mut(index).map(|stage| stage.ledger.refresh()) else { continue };
            let (Some(run), Some(stage)) = (self.stages.get_mut(index), self.plan.stages.get(index)) else { continue };
            let plan = &*self.plan;
            run.try_again(is_alive, |number| is_there(plan, stage, number));
        }
    }

    /// Says of each stage that has just become complete what it did.
    fn finish_stages(&mut self) {
        for (stage, run) in self.plan.stages.iter().zip(&mut self.stages) {
            if run.finished || run.left > 0 || run.running > 0 {
                continue;
            }
            run.finished = true;
            let seconds = run.started.map_or(0.0, |s| s.elapsed().as_secs_f64());
            self.events.send(stage.finished(run.started.is_none(), seconds));
        }
    }

    fn tick(&mut self) {
        let mut doing = serde_json::Map::new();
        for (stage, run) in self.plan.stages.iter().zip(&mut self.stages) {
            let (good, bad) = run.tally.counts();
            let done = good + bad.values().sum::<u64>();
            if run.running > 0 {
                doing.insert(stage.name.clone(), json!({ "partitions": run.running, "rows": done }));
            }
            let note = run.tally.note();
            let (told, at, said) = &run.told;
            let is_news = done != *told || (note != *said && at.elapsed() >= STILL);
            if run.running > 0 && is_news {
                run.told = (done, Instant::now(), note.clone());
                self.events.send(Event::Progress {
                    stage: stage.name.clone(),
                    unit: "rows",
                    done,
                    total: run.total_rows,
                    outcomes: bad,
                    note,
                });
            }
        }
        self.runner.tell(doing.into());
    }
}

/// Whether a partition is there now, by what its stage's ledger says.
fn is_there(plan: &Plan, stage: &PlannedStage, number: Option<usize>) -> bool {
    let made = stage.partition(number).zip(plan.made_from(stage, number));
    made.is_some_and(|(partition, made)| {
        matches!(stage.state(&partition.name, &made.digests), PartitionState::UpToDate(_))
    })
}
