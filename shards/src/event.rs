//! What a run tells its watchers. Progress bars, plain logs, `--json` and the report are subscribers; no stage prints.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// One thing that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    RunStarted {
        pipeline: String,
        workdir: String,
        process: u32,
    },
    /// A stage is about to be looked at. `why` says in words why something in it will run, or that nothing will.
    StagePlanned {
        stage: String,
        kind: String,
        partitions: usize,
        to_run: usize,
        why: String,
    },
    PartitionStarted {
        stage: String,
        partition: String,
    },
    /// How far a stage is, in its own unit ("rows", "steps", "images").
    Progress {
        stage: String,
        unit: &'static str,
        done: u64,
        total: Option<u64>,
        outcomes: BTreeMap<String, u64>,
        note: String,
    },
    PartitionCommitted {
        stage: String,
        partition: String,
        rows_in: u64,
        rows_out: u64,
        dropped: BTreeMap<String, u64>,
        seconds: f64,
    },
    PartitionFailed {
        stage: String,
        partition: String,
        error: String,
    },
    /// A stage is complete. `law` is its conservation law with the numbers filled in.
    StageFinished {
        stage: String,
        up_to_date: bool,
        law: String,
        dropped: BTreeMap<String, u64>,
        observed: BTreeMap<String, u64>,
        seconds: f64,
    },
    /// Something a person should read, once.
    Note {
        stage: String,
        text: String,
    },
    RunFinished {
        outcome: RunOutcome,
        seconds: f64,
    },
}

/// How a run ended; maps to the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunOutcome {
    UpToDate,
    Done,
    /// Done, with more rows refused than the warning threshold.
    DoneWithLosses,
    Failed,
    Interrupted,
}

/// Where events go. Cheap to clone; may be called from any thread.
#[derive(Clone)]
pub struct EventSink(Arc<dyn Fn(Event) + Send + Sync>);

impl EventSink {
    pub fn new(receive: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(receive))
    }

    /// For callers that nobody watches.
    pub fn silent() -> Self {
        Self::new(|_| ())
    }

    pub fn send(&self, event: Event) {
        (self.0)(event);
    }
}

impl std::fmt::Debug for EventSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EventSink")
    }
}
