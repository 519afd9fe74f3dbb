//! What a stage is, and what it is given to work with.
//!
//! A stage maps input partitions to output partitions. Processing one partition is a function of (semantic parameters, input
//! digests) alone, so any executor may run it. Stages are nodes of the DAG, shards are partitions, rows are never nodes.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use schemars::Schema;
use serde_json::Value;
use shards::ShardError;
use shards::commit::{Attempt, StageFolder};
use shards::digest::Digest;
use shards::event::EventSink;
pub use shards::sidecar::NAMES;
use shards::sidecar::{DataFile, Section, Sidecar};

use crate::ledger::Ledger;
use crate::manifest::{Diagnostic, FailIf, OnBadRow, Parameters, nearest};

/// Values that a stage states about its output, for checks further down (`patch_size`, `max_resolution`).
pub type Facts = BTreeMap<String, Value>;

/// The fact that a stage's output is no shards of samples: what it is (`webdataset`, [`FILES`], [`PUBLISHED`]). Only stages
/// that say so ([`Stage::reads`]) can read it.
pub const NOT_SHARDS: &str = "not_shards";

/// Output of the form in which files came from elsewhere: see [`Input::named_files`].
pub const FILES: &str = "files";

/// No output here: it is elsewhere, and nothing reads from it.
pub const PUBLISHED: &str = "published";

/// A stage with its parameters, ready to be planned and run.
pub trait Stage: Send + Sync {
    /// The parameters that determine the output, in canonical form. Operational settings are not in it.
    fn semantics(&self) -> Value;

    /// How output partitions follow from inputs.
    fn partitioning(&self) -> Partitioning;

    /// The conservation law that every commit is held to.
    fn law(&self) -> Law;

    /// What is known about the output before anything runs. Facts of the inputs are passed on by the engine.
    fn facts(&self) -> Facts {
        Facts::new()
    }

    /// Whether it can read output that is no shards of samples, by what [`NOT_SHARDS`] says it is.
    fn reads(&self, _format: &str) -> bool {
        false
    }

    /// The variants in which each partition comes, each a data file of its own with the same rows, and what is known about it;
    /// none where a partition is what it is. A reader names one: `from = "bucket@512"`.
    fn variants(&self) -> Vec<(String, Facts)> {
        Vec::new()
    }

    /// Faults in how this stage fits the facts of its inputs, each with the key it concerns.
    fn check(&self, _upstream: &Facts) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// How the processor is used by one partition.
    fn load(&self) -> Load {
        Load::OneCore
    }

    /// The partitions of an outside input. Asked only of [`Partitioning::Source`]. `folder` is the stage's own on this machine,
    /// for what it wants to remember of its input; it may not exist yet.
    fn sources(&self, _folder: &Path) -> Result<Vec<Source>, StageError> {
        Ok(Vec::new())
    }

    /// As [`Stage::sources`], for a stage that goes by what it has committed before: `ledger` holds its records, and its folder
    /// in the workdir. This is the one that is asked.
    fn sources_after(&self, ledger: &Ledger) -> Result<Vec<Source>, StageError> {
        self.sources(&ledger.folder().path())
    }

    /// Hears of every partition of the present configuration that is committed: after its commit, and again whenever a run
    /// starts and finds it committed, for a process may end in between. For what may be done only then, and as often as it is
    /// asked for.
    fn committed(&self, _folder: &StageFolder, _sidecar: &Sidecar, _events: &EventSink) -> Result<(), StageError> {
        Ok(())
    }

    /// Of a surveyed [`Partitioning`]: looks at all inputs once, at everything but images. Leaves one file for each partition, in
    /// their order ([`shards::commit::Attempt::numbered`]): what the partition made from it needs to know of the whole.
    fn survey(&self, task: &Task) -> Result<Outcome, StageError> {
        Err(StageError::failed(format!("{} has no survey; this is a fault in the program", task.stage)))
    }

    /// Whether its survey is a query that a cluster answers better than one machine ([`Task::queries`]).
    fn asks_a_cluster(&self) -> bool {
        false
    }

    /// Whether it also reads the partitions that its inputs were made from, as a training reads the shards behind its index: of
    /// a workdir on a store, this machine's copies of them then stay. It fetches what it needs of others by itself.
    fn reads_through(&self) -> bool {
        false
    }

    /// The rows it will read, where that does not follow from its input (a training's updates).
    fn rows_to_read(&self) -> Option<u64> {
        None
    }

    /// Whether what an earlier configuration made is good enough where a run makes only what is missing.
    fn accepts(&self, _earlier: &Sidecar) -> bool {
        true
    }

    /// What keeps it from being run here, though nothing is wrong with the manifest: a token that is not set. Asked only where
    /// there is something to make.
    fn obstacle(&self) -> Option<String> {
        None
    }

    /// Of so many processes that make one partition together (the ranks of a training, see [`Task::together`]), the one that claims
    /// and commits it. `None` for stages that one process makes alone; an error where so many cannot.
    fn leader(&self, _processes: usize) -> Result<Option<usize>, StageError> {
        Ok(None)
    }

    /// How the values of a partition's rows came about, for the story of one: (what, how). What is the same for all rows of the stage's
    /// parameters need not be said.
    fn origin(&self, _partition: &Sidecar) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Whether rows that it refused may pass another time, so that `retry` makes sense.
    fn may_retry(&self) -> bool {
        false
    }

    /// Makes one partition. Writes to the attempt's files only.
    fn process(&self, task: &Task) -> Result<Outcome, StageError>;
}

/// How output partitions follow from inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partitioning {
    /// From outside: see [`Stage::sources`].
    Source,
    /// One for each input partition, of the same number.
    EachInput,
    /// One, from all input partitions.
    Whole,
    /// One for each input partition, each knowing what a survey of all of them left for it. A partition is stale only when its
    /// own input or its own part of the survey changed.
    Surveyed,
    /// As [`Partitioning::Surveyed`], for the partitions of the first input only; the survey sees those of all inputs.
    Joined,
}

impl Partitioning {
    /// Whether a survey comes before the partitions.
    pub fn is_surveyed(self) -> bool {
        matches!(self, Self::Surveyed | Self::Joined)
    }
}

/// How much of the machine one partition takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Waits more than it computes; at most this many at a time.
    Network(usize),
    OneCore,
    /// Keeps all cores busy by itself.
    AllCores,
}

/// What must hold between the rows that go in and those that come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Law {
    /// in = out + Σ dropped
    RowWise,
    /// in = out + not chosen: rows are left out because fewer are wanted, not because they are bad. They are counted, but
    /// neither kept in quarantine nor taken for losses.
    Chooses,
    /// out = Σ in: every row of every input.
    Union,
    /// in = matched + unmatched, as the outcome's `observed` counts them; in = out + Σ dropped.
    Joins,
    /// Rows are read, and not passed on.
    Reads,
}

/// What [`Law::Joins`] counts.
pub const MATCHED: &str = "matched";
pub const UNMATCHED: &str = "unmatched";

impl Law {
    /// Whether an outcome obeys.
    pub fn holds(self, rows_in: u64, rows_out: u64, dropped: u64, observed: &BTreeMap<String, u64>) -> bool {
        match self {
            Self::RowWise | Self::Chooses => rows_in == rows_out + dropped,
            Self::Union => rows_in == rows_out && dropped == 0,
            Self::Joins => rows_in == rows_out + dropped && rows_in == joined(observed).iter().sum::<u64>(),
            Self::Reads => true,
        }
    }

    /// Whether the rows that come out are the rows that went in, or some of them.
    pub fn passes_rows_on(self) -> bool {
        match self {
            Self::RowWise | Self::Chooses | Self::Union | Self::Joins => true,
            Self::Reads => false,
        }
    }

    /// The law with its numbers.
    pub fn in_words(self, rows_in: u64, rows_out: u64, dropped: u64, observed: &BTreeMap<String, u64>) -> String {
        match self {
            Self::Joins => {
                let [matched, unmatched] = joined(observed);
                let lost = if dropped == 0 { String::new() } else { format!(" = {rows_out} out + {dropped} dropped") };
                format!("{rows_in} in = {matched} matched + {unmatched} unmatched{lost}")
            }
            Self::Union => format!("{rows_in} in = {rows_out} out"),
            Self::RowWise | Self::Chooses if dropped == 0 => format!("{rows_in} in = {rows_out} out"),
            Self::RowWise => format!("{rows_in} in = {rows_out} out + {dropped} dropped"),
            Self::Chooses => format!("{rows_in} in = {rows_out} out + {dropped} not chosen"),
            Self::Reads => format!("{rows_in} read"),
        }
    }
}

/// The matched rows, and the others.
fn joined(observed: &BTreeMap<String, u64>) -> [u64; 2] {
    [MATCHED, UNMATCHED].map(|name| observed.get(name).copied().unwrap_or(0))
}

/// A partition that comes from outside.
#[derive(Clone, Debug)]
pub struct Source {
    /// What it is, for the sidecar: a file and its rows.
    pub name: String,
    pub digest: Digest,
    pub rows: u64,
}

/// What processing a partition gave.
#[derive(Debug, Default)]
pub struct Outcome {
    pub data: Vec<DataFile>,
    pub quarantine: Option<DataFile>,
    pub rows_in: u64,
    pub rows_out: u64,
    pub dropped: BTreeMap<String, u64>,
    pub observed: BTreeMap<String, u64>,
    pub sections: Vec<Section>,
    pub details: BTreeMap<String, Value>,
}

/// Why a partition was not made.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error("interrupted")]
    Cancelled,
    #[error(transparent)]
    Shard(#[from] ShardError),
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("row {key} was refused ({reason}: {detail}), and on_bad_row is \"fail\"")]
    BadRow { key: String, reason: String, detail: String },
    #[error(
        "only {good} of the first {done} rows are good, below success_below = {success_below} (most often: {worst}); \
         nothing of this partition is kept"
    )]
    TooManyBadRows { good: u64, done: u64, success_below: f64, worst: String },
    /// A file from outside, whose content the fingerprint names.
    #[error("{path} changed after the run was planned; is it still being written? Run again when it is complete")]
    Changed { path: PathBuf },
    #[error("{partition} was not planned; this is a fault in the program")]
    NotPlanned { partition: String },
    #[error("{0}; this is a fault in the program: the numbers must add up")]
    LawBroken(String),
    /// SQL that cannot be one, or names what is not there; the text says what.
    #[error("{0}")]
    Sql(String),
    /// A fault of the stage's own kind; the source says what.
    #[error("{0}")]
    Failed(Box<dyn Error + Send + Sync>),
}

impl StageError {
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(error.into())
    }

    /// For `map_err` on file operations.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// One partition to be made.
pub struct Task<'a> {
    pub stage: &'a str,
    /// `part-00012`
    pub partition: &'a str,
    /// 12
    pub number: usize,
    pub fingerprint: Digest,
    pub folder: &'a StageFolder,
    pub attempt: &'a Attempt,
    /// The committed partitions it is made from.
    pub inputs: &'a [Input],
    /// What the survey left for this partition.
    pub survey: Option<&'a Path>,
    /// The rows to try again, in place of a source's own: columns key, url and caption.
    pub retry: Option<&'a Path>,
    /// See [`crate::plan::PlannedStage::former`]: for stages that keep something by partition that another partition may need.
    pub former: &'a [String],
    /// Bytes of memory that it may take, where the manifest says.
    pub memory: Option<u64>,
    pub on_bad_row: OnBadRow,
    /// Whether it is made although it may be there.
    pub force: bool,
    /// Whether this process is one of several that make this partition together. Which one its environment says.
    pub together: bool,
    /// Machines that answer a survey's queries, where there are some.
    pub queries: Option<&'a dyn Queries>,
    pub tally: &'a Tally,
    pub events: &'a EventSink,
    pub cancel: &'a Cancel,
}

/// Machines that answer queries over files which all of them see, at the same paths.
pub trait Queries: Send + Sync {
    /// A context whose queries they answer. A file is read by one of them, from its beginning.
    fn context(&self) -> Result<SessionContext, DataFusionError>;
}

/// A committed partition of an input stage.
#[derive(Clone, Debug)]
pub struct Input {
    pub stage: String,
    /// Which of the stages that are read from it is, from 0.
    pub position: usize,
    pub folder: StageFolder,
    pub sidecar: Arc<Sidecar>,
}

impl Input {
    /// `bucket/part-00012`
    pub fn name(&self) -> String {
        format!("{}/{}", self.stage, self.sidecar.partition)
    }

    /// Paths of its data files on this machine.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let folder = self.folder.path();
        self.sidecar.data.iter().map(move |file| folder.join(&file.file))
    }

    /// Its data files with the names by which they are known where they came from (`data/train-00000.parquet`); of other
    /// partitions than those of [`FILES`], their names here.
    pub fn named_files(&self) -> impl Iterator<Item = (String, PathBuf)> + '_ {
        let names = self.sidecar.details.get(NAMES).and_then(Value::as_array);
        self.sidecar.data.iter().zip(self.files()).enumerate().map(move |(n, (file, path))| {
            let name = names.and_then(|names| names.get(n)?.as_str());
            (name.unwrap_or(&file.file).to_owned(), path)
        })
    }
}

impl Task<'_> {
    /// The inputs' data files, all together.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.inputs.iter().flat_map(Input::files)
    }

    /// An error once the run was asked to stop.
    pub fn check_cancelled(&self) -> Result<(), StageError> {
        self.cancel.check()
    }
}

/// Asks everything to stop.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error once everything was asked to stop.
    pub(crate) fn check(&self) -> Result<(), StageError> {
        if self.is_cancelled() { Err(StageError::Cancelled) } else { Ok(()) }
    }
}

/// Live counts of a stage's rows in this run, shared by its partitions.
#[derive(Debug, Default)]
pub struct Tally {
    shown: Arc<Shown>,
    /// What is judged, and by what; nothing of rows that are tried again.
    judged: Option<(FailIf, Counts)>,
}

/// What watchers see of a stage.
#[derive(Debug, Default)]
struct Shown {
    counts: Counts,
    /// Rows to be made in this run, where that is known.
    total: Option<u64>,
    note: Mutex<String>,
}

/// Good rows, and refused rows by reason.
#[derive(Debug, Default)]
struct Counts {
    good: AtomicU64,
    bad: Mutex<BTreeMap<String, u64>>,
}

impl Counts {
    fn bad(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.bad.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tally {
    pub fn new(fail_if: Option<FailIf>, total: Option<u64>) -> Self {
        let shown = Shown { total, ..Shown::default() };
        Self { shown: Arc::new(shown), judged: fail_if.map(|fail_if| (fail_if, Counts::default())) }
    }

    /// One for rows of the stage that are tried again, which are shown with the others. All of them were refused before, so if most
    /// are again, that says nothing of the stage.
    #[must_use]
    pub fn of_retries(&self) -> Self {
        Self { shown: Arc::clone(&self.shown), judged: None }
    }

    /// Rows to be made in this run, where that is known.
    pub fn total(&self) -> Option<u64> {
        self.shown.total
    }

    /// Says how it goes, beside the counts: "12.3 MB/s".
    pub fn set_note(&self, note: String) {
        *self.shown.note.lock().unwrap_or_else(PoisonError::into_inner) = note;
    }

    pub fn note(&self) -> String {
        self.shown.note.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn good(&self, rows: u64) {
        self.shown.counts.good.fetch_add(rows, Ordering::Relaxed);
        if let Some((_, judged)) = &self.judged {
            judged.good.fetch_add(rows, Ordering::Relaxed);
        }
    }

    /// Counts a refused row; an error when the stage has failed as a whole.
    pub fn bad(&self, reason: &str) -> Result<(), StageError> {
        *self.shown.counts.bad().entry(reason.to_owned()).or_default() += 1;
        let Some((fail_if, judged)) = &self.judged else { return Ok(()) };
        let mut bad = judged.bad();
        *bad.entry(reason.to_owned()).or_default() += 1;
        let good = judged.good.load(Ordering::Relaxed);
        let done = good + bad.values().sum::<u64>();
        if done < fail_if.after_rows.max(1) || good as f64 >= fail_if.success_below * done as f64 {
            return Ok(());
        }
        let worst =
            bad.iter().max_by_key(|(_, n)| **n).map(|(reason, n)| format!("{reason}, {n} times")).unwrap_or_default();
        Err(StageError::TooManyBadRows { good, done, success_below: fail_if.success_below, worst })
    }

    /// Counts the rows of a partition that was made elsewhere, where they were judged.
    pub fn add(&self, good: u64, bad: &BTreeMap<String, u64>) {
        self.shown.counts.good.fetch_add(good, Ordering::Relaxed);
        let mut counts = self.shown.counts.bad();
        for (reason, rows) in bad {
            *counts.entry(reason.clone()).or_default() += rows;
        }
    }

    /// Good rows, and refused rows by reason.
    pub fn counts(&self) -> (u64, BTreeMap<String, u64>) {
        let counts = &self.shown.counts;
        (counts.good.load(Ordering::Relaxed), counts.bad().clone())
    }
}

/// A kind of stage that manifests can use.
pub struct StageKind {
    pub name: &'static str,
    /// Raised when the same parameters come to mean another output.
    pub version: u32,
    /// One sentence for the schema.
    pub about: &'static str,
    /// How many stages it reads from: least and most.
    pub inputs: (usize, usize),
    /// Schemas of its parameters (each a table; their keys together are the stage's).
    pub schemas: fn() -> Vec<Schema>,
    /// Builds a stage from its table.
    pub build: fn(&Parameters) -> Result<Box<dyn Stage>, Diagnostic>,
    /// Keys and values that make it work on about so many rows only, for a rehearsal.
    pub rehearse: fn(&Parameters, u64) -> Vec<(&'static str, Value)>,
}

/// For [`StageKind::rehearse`] of kinds whose work follows from their input.
pub fn as_it_is(_: &Parameters, _: u64) -> Vec<(&'static str, Value)> {
    Vec::new()
}

/// All kinds, by name.
#[derive(Default)]
pub struct Registry(BTreeMap<&'static str, StageKind>);

impl Registry {
    pub fn add(&mut self, kind: StageKind) {
        self.0.insert(kind.name, kind);
    }

    pub fn get(&self, name: &str) -> Option<&StageKind> {
        self.0.get(name)
    }

    pub fn kinds(&self) -> impl Iterator<Item = &StageKind> {
        self.0.values()
    }

    /// The kind whose name is most like `written`.
    pub fn nearest(&self, written: &str) -> Option<&'static str> {
        nearest(written, self.0.keys().copied()).and_then(|name| self.0.get(name)).map(|kind| kind.name)
    }
}

impl StageKind {
    /// `bucket@1`
    pub fn versioned_name(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }
}
