//! One stage's part of a run: what waits, what is ready, what is under way.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shards::event::Event;

use super::scheduler::LOOK;
use crate::plan::{Plan, PlannedStage, Share, Totals};
use crate::stage::{Partitioning, Tally};

/// What another run holds is tried again after a while, and after twice as long each time, up to this: that run may live and have given it up.
const PAUSE: Duration = Duration::from_secs(30);

/// One stage's part of a run.
pub(super) struct StageRun {
    pub(super) tally: Arc<Tally>,
    /// For each partition, and last for the survey: inputs that are not there yet.
    pub(super) waits_for: Vec<usize>,
    /// Partitions whose inputs are there.
    pub(super) ready: VecDeque<Option<usize>>,
    /// Partitions that another run is making.
    pub(super) elsewhere: BTreeMap<Option<usize>, Held>,
    /// How long each of them was left alone last.
    pauses: BTreeMap<Option<usize>, Duration>,
    /// Partitions that are not there yet.
    pub(super) left: usize,
    /// Partitions under way, their commits included.
    pub(super) running: usize,
    /// Partitions that take up a share of the machine.
    pub(super) computing: usize,
    /// Rows of what is to be made, when known.
    pub(super) total_rows: Option<u64>,
    pub(super) started: Option<Instant>,
    pub(super) finished: bool,
    /// What watchers heard last: rows that have ended, when, and the stage's note.
    pub(super) told: (u64, Instant, String),
    pub(super) told_elsewhere: bool,
}

/// A partition that another run is making.
pub(super) struct Held {
    /// The runner that holds it, where that is known.
    holder: Option<String>,
    /// When to try it again, whatever is heard of that one.
    next: Instant,
}

impl StageRun {
    /// Of what is ready, the partitions of `prefer` come first.
    pub(super) fn new(plan: &Plan, index: usize, prefer: Option<Share>) -> Self {
        let mut run = Self {
            tally: Arc::default(),
            waits_for: Vec::new(),
            ready: VecDeque::new(),
            elsewhere: BTreeMap::new(),
            pauses: BTreeMap::new(),
            left: 0,
            running: 0,
            computing: 0,
            total_rows: None,
            started: None,
            finished: false,
            told: (0, Instant::now(), String::new()),
            told_elsewhere: false,
        };
        let Some(stage) = plan.stages.get(index) else { return run };
        run.left = if stage.selected { stage.wanted().count() } else { stage.missing() };
        run.finished = !stage.selected;
        run.total_rows = rows_to_make(plan, stage);
        run.tally = Arc::new(Tally::new(stage.fail_if, run.total_rows));
        let upstream = || stage.inputs.iter().filter_map(|&i| plan.stages.get(i));
        let absent: Vec<bool> = upstream().flat_map(|s| &s.partitions).map(|p| p.sidecar().is_none()).collect();
        let all = absent.iter().filter(|absent| **absent).count();
        let survey = usize::from(stage.survey.as_ref().is_some_and(|survey| survey.sidecar().is_none()));
        let of = |number: usize| match stage.stage.partitioning() {
            Partitioning::Source => 0,
            Partitioning::EachInput | Partitioning::Surveyed | Partitioning::Joined => {
                usize::from(absent.get(number) == Some(&true)) + survey
            }
            Partitioning::Whole => all,
        };
        run.waits_for = (0..stage.partitions.len()).map(of).chain([all]).collect();
        let numbers = (0..stage.partitions.len()).map(Some).chain(stage.survey.as_ref().map(|_| None));
        let is_ready = |number: &Option<usize>| {
            let waits_for = run.waits_for.get(number.unwrap_or(stage.partitions.len()));
            let is_missing = stage.partition(*number).is_some_and(|p| p.sidecar().is_none());
            waits_for == Some(&0) && is_missing && stage.is_wanted(*number)
        };
        let (first, rest): (Vec<_>, Vec<_>) =
            numbers.filter(is_ready).partition(|number| is_preferred(prefer, *number));
        run.ready = first.into_iter().chain(rest).collect();
        run
    }

    /// Leaves a partition to whoever holds it, for a while.
    pub(super) fn leave(&mut self, number: Option<usize>, holder: Option<String>) {
        let pause = self.pauses.get(&number).map_or(LOOK, |last| (*last * 2).min(PAUSE));
        self.pauses.insert(number, pause);
        self.elsewhere.insert(number, Held { holder, next: Instant::now() + pause });
    }

    /// Of what was left to others, that is ready which is there by now, whose holder is not alive, or which was left alone for long enough.
    /// A try takes several requests to the storage, and many runs may wait for the same: so the rest stays where it is.
    pub(super) fn try_again(&mut self, is_alive: impl Fn(&str) -> bool, is_there: impl Fn(Option<usize>) -> bool) {
        let now = Instant::now();
        let waits = |number: Option<usize>, held: &Held| {
            now < held.next && held.holder.as_deref().is_none_or(&is_alive) && !is_there(number)
        };
        let elsewhere = std::mem::take(&mut self.elsewhere);
        let (waiting, due): (BTreeMap<_, _>, BTreeMap<_, _>) =
            elsewhere.into_iter().partition(|(number, held)| waits(*number, held));
        self.elsewhere = waiting;
        self.ready.extend(due.into_keys());
    }
}

/// Whether a partition comes before those that are not of `prefer`; the survey does.
pub(super) fn is_preferred(prefer: Option<Share>, number: Option<usize>) -> bool {
    prefer.zip(number).is_none_or(|(prefer, number)| prefer.has(number))
}

/// Rows of the partitions that are to be made, where all of them are known.
fn rows_to_make(plan: &Plan, stage: &PlannedStage) -> Option<u64> {
    if let Some(rows) = stage.stage.rows_to_read() {
        return Some(rows);
    }
    let rows = stage.wanted().map(|number| match stage.stage.partitioning() {
        Partitioning::Source => match stage.sources.get(number) {
            Some(source) => Some(source.rows),
            None => stage.retry_list(number).map(crate::retry::RetryList::rows),
        },
        _ => plan.made_from(stage, Some(number)).map(|made| made.inputs.iter().map(|i| i.sidecar.rows_out).sum()),
    });
    rows.sum::<Option<u64>>().filter(|rows| *rows > 0)
}

impl PlannedStage {
    /// The event that sums up a complete stage.
    pub fn finished(&self, up_to_date: bool, seconds: f64) -> Event {
        let totals = self.totals();
        let dropped = totals.rows_dropped();
        let law = self.stage.law().in_words(totals.rows_in, totals.rows_out, dropped, &totals.observed);
        let Totals { dropped, observed, .. } = totals;
        Event::StageFinished { stage: self.name.clone(), up_to_date, law, dropped, observed, seconds }
    }
}
