//! Partitions that a cluster makes: given to it in tables of one stage each. What is committed is seen in the workdir, by whomever it
//! was made; a table's end only says that nothing more will come of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::Scope;
use std::time::{Duration, Instant};

use shards::lease::Runner;
use shards::sidecar::Sidecar;

use super::RunError;
use super::executor::{Executor, NotMade, Order};
use super::scheduler::{Node, Scheduler};
use super::work::{Ended, Message};
use crate::ledger::is_same;
use crate::stage::{Cancel, Queries, StageError};

/// How often to look for what has been committed.
const LOOK: Duration = Duration::from_secs(1);
/// Looks take at most this part of the time, however long the listings.
const PART: u32 = 10;
/// Partitions of a table. A failure ends the whole table, so it is also what may have to be asked for again.
const ROWS: usize = 1024;

pub(super) struct Tables<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    executor: &'env dyn Executor,
    runner: Arc<Runner>,
    done: SyncSender<Message>,
    /// Ready, and not sent yet.
    waiting: BTreeMap<usize, Vec<(Node, Order)>>,
    /// By their numbers.
    sent: BTreeMap<usize, Table>,
    /// How many tables have been sent.
    count: usize,
    looked: Instant,
    /// How long the last look took.
    took: Duration,
}

/// What the cluster was asked for at once, without what has been seen to be there.
struct Table {
    given: BTreeMap<Node, Order>,
    /// Ends it.
    enough: Cancel,
}

impl<'scope, 'env> Tables<'scope, 'env> {
    /// `done` hears of each table's end.
    pub(super) fn new(
        scope: &'scope Scope<'scope, 'env>,
        executor: &'env dyn Executor,
        runner: Arc<Runner>,
        done: SyncSender<Message>,
    ) -> Self {
        let (waiting, sent, looked) = (BTreeMap::new(), BTreeMap::new(), Instant::now());
        Self { scope, executor, runner, done, waiting, sent, count: 0, looked, took: Duration::ZERO }
    }

    /// The cluster as one that answers queries.
    pub(super) fn queries(&self) -> Option<Arc<dyn Queries>> {
        self.executor.queries()
    }

    pub(super) fn have_room(&self) -> bool {
        let given = self.sent.values().map(|table| table.given.len()).sum::<usize>();
        given + self.waiting.values().map(Vec::len).sum::<usize>() < self.executor.at_a_time()
    }

    pub(super) fn add(&mut self, node: Node, order: Order) {
        self.waiting.entry(node.stage).or_default().push((node, order));
    }

    /// Sends what waits, a table or more for each stage. With `alone`, each partition is a table, so that it fails alone.
    pub(super) fn send(&mut self, alone: bool) {
        for (_, waiting) in std::mem::take(&mut self.waiting) {
            for rows in waiting.chunks(if alone { 1 } else { ROWS }) {
                let table = Table { given: rows.iter().cloned().collect(), enough: Cancel::default() };
                let orders: Vec<Order> = table.given.values().cloned().collect();
                let (executor, enough, done) = (self.executor, table.enough.clone(), self.done.clone());
                let (number, runner) = (self.count, Arc::clone(&self.runner));
                self.count += 1;
                self.sent.insert(number, table);
                self.scope.spawn(move || {
                    let result = executor.make(runner.id(), &orders, &enough);
                    // The run waits for it as long as it holds the table.
                    let _ = done.send(Message::Table(number, result));
                });
            }
        }
    }

    /// Whether the end of every table has been heard of.
    pub(super) fn are_done(&self) -> bool {
        self.sent.is_empty()
    }

    /// Asks for the end of all.
    pub(super) fn give_up(&self) {
        self.sent.values().for_each(|table| table.enough.cancel());
    }
}

impl Scheduler<'_> {
    /// Takes in what has been committed of what was given away, now and then.
    pub(super) fn look_at_tables(&mut self, tables: &mut Tables) {
        if tables.sent.is_empty() || tables.looked.elapsed() < LOOK.max(tables.took * PART) {
            return;
        }
        let started = Instant::now();
        let stages = tables.sent.values().flat_map(|table| table.given.keys().map(|node| node.stage)).collect();
        self.look_at(tables, &stages);
        (tables.looked, tables.took) = (Instant::now(), started.elapsed());
    }

    fn look_at(&mut self, tables: &mut Tables, stages: &BTreeSet<usize>) {
        for &stage in stages {
            // A look that failed is made good by the next one.
            let Some(Ok(_)) = self.plan.stages.get_mut(stage).map(|stage| stage.ledger.refresh()) else { continue };
            let mut there: Vec<(Node, Arc<Sidecar>)> = Vec::new();
            for table in tables.sent.values_mut() {
                table.given.retain(|node, order| {
                    let found = (node.stage == stage && !order.force).then(|| self.committed(order, stage)).flatten();
                    let is_there = found.is_some();
                    there.extend(found.map(|sidecar| (*node, sidecar)));
                    !is_there
                });
                if table.given.is_empty() {
                    // A cluster may never hear of a partition that was made.
                    table.enough.cancel();
                }
            }
            for (node, sidecar) in there {
                self.came(node, Ok(Ended::Made(sidecar)));
            }
        }
    }

    /// The record that an order asks for.
    fn committed(&self, order: &Order, stage: usize) -> Option<Arc<Sidecar>> {
        self.plan.stages.get(stage)?.ledger.find(&order.partition, &order.fingerprint).cloned()
    }

    /// What was made again has the name of what was there before, so it has to be read.
    fn made_again(&self, order: &Order, stage: usize) -> Option<Arc<Sidecar>> {
        let planned = self.plan.stages.get(stage)?;
        let sidecar = planned.folder.read(&format!("{}.{}.json", order.partition, order.fingerprint.short())).ok()?;
        let before = planned.ledger.find(&order.partition, &order.fingerprint);
        before.is_none_or(|before| !is_same(before, &sidecar)).then(|| Arc::new(sidecar))
    }

    /// A partition that was given away is settled.
    fn came(&mut self, node: Node, result: Result<Ended, StageError>) {
        if let Some(run) = self.stages.get_mut(node.stage) {
            run.computing -= 1;
            if let Ok(Ended::Made(sidecar)) = &result {
                run.tally.add(sidecar.rows_out, &sidecar.dropped);
            }
        }
        self.settle(node, result);
    }

    /// Takes in the end of a table.
    pub(super) fn end_table(&mut self, tables: &mut Tables, number: usize, result: Result<(), NotMade>) {
        let stages = tables.sent.get(&number).map(|table| table.given.keys().map(|node| node.stage).collect());
        self.look_at(tables, &stages.unwrap_or_default());
        let Some(Table { mut given, .. }) = tables.sent.remove(&number) else { return };
        let again: Vec<(Node, Arc<Sidecar>)> = given
            .iter()
            .filter(|(_, order)| order.force)
            .filter_map(|(node, order)| Some((*node, self.made_again(order, node.stage)?)))
            .collect();
        for (node, sidecar) in again {
            given.remove(&node);
            self.came(node, Ok(Ended::Made(sidecar)));
        }
        let failed = match result {
            // Another process holds it, or one stopped in the middle: to be asked for again.
            Ok(()) => None,
            Err(NotMade::Interrupted) => return self.given_up(&given),
            Err(NotMade::Cluster(error)) => {
                self.abort(RunError::Cluster(error));
                return self.given_up(&given);
            }
            Err(NotMade::Partition { partition, error }) => Some((partition, error)),
        };
        for (node, order) in given {
            match &failed {
                Some((partition, error)) if *partition == order.partition => {
                    self.came(node, Err(StageError::failed(error.clone())));
                }
                _ => self.ask_again(node),
            }
        }
    }

    fn given_up(&mut self, given: &BTreeMap<Node, Order>) {
        for node in given.keys() {
            self.came(*node, Err(StageError::Cancelled));
        }
    }

    fn ask_again(&mut self, node: Node) {
        self.busy.remove(&node);
        if let Some(run) = self.stages.get_mut(node.stage) {
            run.computing -= 1;
            run.running -= 1;
            run.leave(node.number, None);
        }
    }
}
