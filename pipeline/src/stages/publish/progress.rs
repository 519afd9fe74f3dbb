//! How far a publication is, for whoever watches the run.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::remote::Watch;
use crate::stage::Task;

/// How often watchers hear of the rate.
const TICK: Duration = Duration::from_secs(1);

pub(super) struct Progress<'a> {
    task: &'a Task<'a>,
    files: usize,
    done: AtomicUsize,
    sent: AtomicU64,
    /// When the rate was last told, and what was sent by then.
    told: Mutex<(Instant, u64)>,
}

impl<'a> Progress<'a> {
    pub(super) fn new(task: &'a Task<'a>, files: usize) -> Self {
        let told = Mutex::new((Instant::now(), 0));
        Self { task, files, done: AtomicUsize::new(0), sent: AtomicU64::new(0), told }
    }

    /// So many more files, with so many rows, are there for good.
    pub(super) fn there(&self, files: usize, rows: u64) {
        self.done.fetch_add(files, Ordering::Relaxed);
        self.task.tally.good(rows);
    }

    fn tell(&self, sent: u64) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, before) = *told;
        if at.elapsed() < TICK {
            return;
        }
        let rate = sent.saturating_sub(before) as f64 / at.elapsed().as_secs_f64() / 1e6;
        *told = (Instant::now(), sent);
        let done = self.done.load(Ordering::Relaxed);
        self.task.tally.set_note(format!("{rate:.1} MB/s, {done} of {} files", self.files));
    }
}

impl Watch for Progress<'_> {
    fn came(&self, bytes: u64) {
        let sent = self.sent.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.tell(sent);
    }

    fn is_cancelled(&self) -> bool {
        self.task.cancel.is_cancelled()
    }
}
