//! One partition, from claimed to committed.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use shards::commit::{Attempt, Commit, StageFolder};
use shards::digest::Digest;
use shards::event::{Event, EventSink};
use shards::lease::{Claim, Holder, Runner};
use shards::sidecar::{FORMAT, Sidecar};

use super::executor::{NotMade, Order, Record};
use super::scheduler::Node;
use crate::manifest::OnBadRow;
use crate::plan::{Made, Plan};
use crate::retry::RetryList;
use crate::stage::{Cancel, Input, Law, Outcome, Queries, Stage, StageError, Tally, Task};

/// What a thread reports of its work.
pub(super) enum Message {
    /// Its share of the machine is free again; the commit goes on.
    Computed(Node),
    Done(Node, Result<Ended, StageError>),
    /// A cluster is done with the table of this number.
    Table(usize, Result<(), NotMade>),
}

/// How a partition ended that did not fail.
pub(super) enum Ended {
    Made(Arc<Sidecar>),
    /// Another run had committed it.
    Found(Arc<Sidecar>),
    /// Another run is making it.
    Elsewhere(Holder),
}

impl Ended {
    /// The record, where there is one.
    pub(super) fn sidecar(&self) -> Option<&Sidecar> {
        match self {
            Self::Made(sidecar) | Self::Found(sidecar) => Some(sidecar),
            Self::Elsewhere(_) => None,
        }
    }
}

/// What a thread needs to make a partition, independent of the plan.
pub(super) struct Work {
    pub(super) node: Node,
    pub(super) stage_name: String,
    pub(super) kind: String,
    pub(super) partition: String,
    pub(super) stage: Arc<dyn Stage>,
    pub(super) semantics: Arc<Value>,
    pub(super) folder: StageFolder,
    /// How many the stage has.
    pub(super) partitions: usize,
    pub(super) memory: Option<u64>,
    pub(super) on_bad_row: OnBadRow,
    pub(super) tally: Arc<Tally>,
    pub(super) made: Made,
    pub(super) retry: Option<RetryList>,
    pub(super) former: Arc<[String]>,
    pub(super) fingerprint: Digest,
    /// Whether to make it although it may be there.
    pub(super) force: bool,
    /// Whether other processes make it together with this one.
    pub(super) together: bool,
    /// Machines that answer its survey's queries.
    pub(super) queries: Option<Arc<dyn Queries>>,
    pub(super) runner: Arc<Runner>,
    pub(super) events: EventSink,
    pub(super) cancel: Cancel,
}

/// Who makes a partition, and who hears of it.
pub(super) struct Crew<'a> {
    pub(super) tally: Arc<Tally>,
    pub(super) together: bool,
    pub(super) queries: Option<Arc<dyn Queries>>,
    pub(super) runner: &'a Arc<Runner>,
    pub(super) events: &'a EventSink,
    pub(super) cancel: &'a Cancel,
}

impl Work {
    /// `None` where the plan has no such partition.
    pub(super) fn new(plan: &Plan, node: Node, made: Made, crew: Crew) -> Option<Self> {
        let stage = plan.stages.get(node.stage)?;
        let partition = stage.partition(node.number)?;
        let Crew { tally, together, queries, runner, events, cancel } = crew;
        let retry = node.number.and_then(|number| stage.retry_list(number)).cloned();
        Some(Self {
            node,
            stage_name: stage.name.clone(),
            kind: stage.kind.clone(),
            partition: partition.name.clone(),
            stage: Arc::clone(&stage.stage),
            semantics: Arc::clone(&stage.semantics),
            folder: stage.folder.clone(),
            partitions: stage.partitions.len(),
            memory: stage.memory,
            on_bad_row: stage.on_bad_row,
            tally: if retry.is_some() { Arc::new(tally.of_retries()) } else { tally },
            fingerprint: stage.fingerprint(&made.digests),
            made,
            retry,
            former: Arc::clone(stage.former()),
            force: stage.force,
            together,
            queries,
            runner: Arc::clone(runner),
            events: events.clone(),
            cancel: cancel.clone(),
        })
    }

    /// The same, as another process is told of it. `survey` is the record of the stage's survey.
    pub(super) fn order(&self, survey: Option<&Sidecar>) -> Order {
        let record = |input: &Input| Record { stage: input.stage.clone(), file: input.sidecar.file_name() };
        Order {
            stage: self.stage_name.clone(),
            partition: self.partition.clone(),
            fingerprint: self.fingerprint,
            inputs: self.made.inputs.iter().map(record).collect(),
            survey: survey.filter(|_| self.made.survey.is_some()).map(Sidecar::file_name),
            force: self.force,
        }
    }

    /// The files that it reads, within the workdir.
    pub(super) fn names_of_inputs(&self) -> Vec<String> {
        let of = |input: &Input| -> Vec<String> {
            input.sidecar.data.iter().map(|file| input.folder.name_of(&file.file)).collect()
        };
        self.made.inputs.iter().flat_map(of).collect()
    }

    pub(super) fn run(self, done: &SyncSender<Message>) {
        let node = self.node;
        let mut computing = true;
        let mut computed = || {
            if std::mem::take(&mut computing) {
                let _ = done.send(Message::Computed(node));
            }
        };
        let result = self.make_or_panic(&mut computed);
        computed();
        drop(self);
        let _ = done.send(Message::Done(node, result));
    }

    /// [`Self::make`], of which a panic is a failure.
    pub(super) fn make_or_panic(&self, computed: &mut impl FnMut()) -> Result<Ended, StageError> {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.make(computed)))
            .unwrap_or_else(|_panic| Err(StageError::failed("the stage panicked; this is a fault in the program")))
    }

    /// `computed` hears when its share of the machine is free again.
    fn make(&self, computed: &mut impl FnMut()) -> Result<Ended, StageError> {
        let started = Instant::now();
        if let Some(sidecar) = self.already_there()? {
            return Ok(Ended::Found(Arc::new(sidecar)));
        }
        // Held until the partition is committed.
        let _claimed = match self.runner.claim(&self.folder, &self.partition, &self.fingerprint)? {
            Claim::Ours(claimed) => claimed,
            Claim::Theirs(holder) => return Ok(Ended::Elsewhere(holder)),
        };
        // Whoever held the claim before may have committed in between.
        if let Some(sidecar) = self.already_there()? {
            return Ok(Ended::Found(Arc::new(sidecar)));
        }
        let (stage, partition) = (self.stage_name.clone(), self.partition.clone());
        self.events.send(Event::PartitionStarted { stage, partition });
        let attempt = self.folder.attempt(&self.partition, self.runner.id())?;
        let outcome = self.process(&attempt);
        computed();
        let made = outcome.and_then(|outcome| self.commit(outcome, started));
        // A record that could be neither made durable nor taken back keeps its data.
        if made.is_err() && !self.is_named(&attempt) {
            attempt.abandon();
        }
        let made = made?;
        self.stage.committed(&self.folder, &made, &self.events)?;
        Ok(Ended::Made(made))
    }

    /// Takes part in making it, beside the process that claims and commits it.
    pub(super) fn assist(&self) -> Result<(), StageError> {
        let attempt = self.folder.attempt(&self.partition, self.runner.id())?;
        self.process(&attempt)?;
        attempt.abandon();
        Ok(())
    }

    /// Has the stage make it; what was written of one that failed is removed.
    fn process(&self, attempt: &Attempt) -> Result<Outcome, StageError> {
        for input in &self.made.inputs {
            input.folder.fetch_partition(&input.sidecar)?;
        }
        let survey = self.made.survey.as_ref().map(|file| self.folder.fetch(file)).transpose()?;
        let retry = self.retry.as_ref().map(|list| self.folder.fetch(list.file())).transpose()?;
        let task = Task {
            stage: &self.stage_name,
            partition: &self.partition,
            number: self.node.number.unwrap_or(0),
            fingerprint: self.fingerprint,
            folder: &self.folder,
            attempt,
            inputs: &self.made.inputs,
            survey: survey.as_deref(),
            retry: retry.as_deref(),
            former: &self.former,
            memory: self.memory,
            on_bad_row: self.on_bad_row,
            force: self.force,
            together: self.together,
            queries: self.queries.as_deref(),
            tally: &self.tally,
            events: &self.events,
            cancel: &self.cancel,
        };
        let outcome = match self.node.number {
            Some(_) => self.stage.process(&task),
            None => self.stage.survey(&task),
        };
        // No record can name what it left.
        outcome.inspect_err(|_| attempt.abandon())
    }

    /// The name of its sidecar.
    fn record(&self) -> String {
        format!("{}.{}.json", self.partition, self.fingerprint.short())
    }

    /// Whether the record that lies on this machine is this attempt's, and not that of what it is made in place of.
    fn is_named(&self, attempt: &Attempt) -> bool {
        let record = std::fs::read_to_string(self.folder.path().join(self.record()));
        record.is_ok_and(|record| record.contains(attempt.id()))
    }

    /// What another run has committed since this one last looked.
    fn already_there(&self) -> Result<Option<Sidecar>, StageError> {
        if self.force {
            return Ok(None);
        }
        let name = self.record();
        let Some(bytes) = self.folder.workdir().read(&self.folder.name_of(&name))? else { return Ok(None) };
        let sidecar = Sidecar::parse(&bytes, &self.folder.path().join(name))?;
        Ok(Some(sidecar).filter(|s| s.fingerprint == self.fingerprint))
    }

    fn commit(&self, outcome: Outcome, started: Instant) -> Result<Arc<Sidecar>, StageError> {
        let Outcome { data, quarantine, rows_in, rows_out, dropped, observed, sections, details } = outcome;
        let lost = dropped.values().sum();
        let law = if self.node.number.is_some() { self.stage.law() } else { Law::Reads };
        if !law.holds(rows_in, rows_out, lost, &observed) {
            return Err(StageError::LawBroken(format!("{rows_in} rows in, but {rows_out} out and {lost} dropped")));
        }
        if self.node.number.is_none() && data.len() != self.partitions {
            let (files, partitions) = (data.len(), self.partitions);
            return Err(StageError::LawBroken(format!("a survey for {partitions} partitions left {files} files")));
        }
        let sidecar = Sidecar {
            format: FORMAT,
            stage: self.stage_name.clone(),
            kind: self.kind.clone(),
            partition: self.partition.clone(),
            fingerprint: self.fingerprint,
            parameters: Arc::clone(&self.semantics),
            inputs: self.made.digests.clone(),
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
        if self.force {
            // The old record stands until there is a new one: its input, or the way to the store, may be gone.
            self.folder.replace(&sidecar)?;
            return Ok(Arc::new(sidecar));
        }
        Ok(match self.folder.commit(&sidecar)? {
            Commit::Won => Arc::new(sidecar),
            Commit::Lost(winner) => Arc::from(winner),
        })
    }
}
