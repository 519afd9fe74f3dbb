//! How a download goes, while it goes: a note beside the progress line, and a log as JSON lines.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::network::{Network, Slow};
use crate::stage::Task;

/// Between two notes.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// Between two lines of the log.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// The log, in the stage's folder.
const LOG: &str = "progress.jsonl";
/// Hosts that the log names.
const SLOWEST: usize = 5;

/// What was said last, and when.
#[derive(Debug)]
pub(super) struct Live(Mutex<Said>);

#[derive(Debug)]
struct Said {
    noted: Mark,
    logged: Mark,
}

/// Counts at an instant.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    rows: u64,
    bytes: u64,
}

impl Mark {
    fn rates(self, now: Self) -> (f64, f64) {
        let seconds = (now.at - self.at).as_secs_f64().max(1e-3);
        let per_second = |a: u64, b: u64| b.saturating_sub(a) as f64 / seconds;
        (per_second(self.rows, now.rows), per_second(self.bytes, now.bytes) / 1e6)
    }
}

impl Live {
    pub(super) fn new() -> Self {
        let start = Mark { at: Instant::now(), rows: 0, bytes: 0 };
        Self(Mutex::new(Said { noted: start, logged: start }))
    }

    /// Says how it goes, if it is time to.
    pub(super) fn tell(&self, network: &Network, task: &Task) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.noted.at.elapsed() < NOTE_EVERY {
            return;
        }
        let (good, refused) = task.tally.counts();
        let rows = good + refused.values().sum::<u64>();
        let now = Mark { at: Instant::now(), rows, bytes: network.bytes() };
        let (_, megabytes) = said.noted.rates(now);
        let slowest = network.slowest(SLOWEST);
        task.tally.set_note(note(megabytes, &slowest));
        said.noted = now;
        if said.logged.at.elapsed() < LOG_EVERY {
            return;
        }
        let (images, megabytes) = said.logged.rates(now);
        said.logged = now;
        let left = task.tally.total().filter(|_| images > 0.0).map(|total| total.saturating_sub(rows) as f64 / images);
        let round = |x: f64| (x * 10.0).round() / 10.0;
        let line = json!({
            "time": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            "rows": rows,
            "total": task.tally.total(),
            "success": good,
            "refused": refused,
            "rows_per_second": round(images),
            "megabytes_per_second": round(megabytes),
            "seconds_left": left.map(round),
            "slowest_hosts": slowest.iter().map(|slow| json!({
                "host": slow.host, "requests": slow.requests, "milliseconds": slow.milliseconds,
            })).collect::<Vec<_>>(),
        });
        // The log is a convenience: a disk that is full says so when the rows are written.
        let _ = append(&task.folder.path().join(LOG), &line.to_string());
    }
}

fn note(megabytes: f64, slowest: &[Slow]) -> String {
    let slow = slowest.first().filter(|slow| slow.milliseconds >= 500);
    let slow = slow.map(|slow| format!(", slowest {} ({:.1} s)", slow.host, slow.milliseconds as f64 / 1e3));
    format!("{megabytes:.1} MB/s{}", slow.unwrap_or_default())
}

fn append(path: &Path, line: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(format!("{line}\n").as_bytes())
}
