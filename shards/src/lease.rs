//! Leases: who may work on something, without a coordinator.
//!
//! `lease/<name>.<n>` is created if absent and touched while its holder lives. A holder that died (its process is gone, or
//! its heartbeat is old) is taken over by creating `<name>.<n+1>`; n is the fencing number.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::ShardError;
use crate::commit::{create_folder, create_if_absent, replace};

/// How often a holder shows that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A heartbeat older than this is a dead holder's, on any machine.
const STALE: Duration = Duration::from_mins(1);

/// Who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub host: String,
    pub process: u32,
    /// Tells a process from a later one with the same number: its start, in clock ticks since boot (Linux), else 0.
    process_start: u64,
    /// Seconds since 1970, UTC.
    pub since: u64,
    released: bool,
}

impl Holder {
    fn here() -> Self {
        let process = std::process::id();
        Self {
            host: host_name(),
            process,
            process_start: process_start(process).unwrap_or(0),
            since: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            released: false,
        }
    }

    /// Known to be gone: released, or a process of this machine that no longer exists.
    fn is_gone(&self) -> bool {
        self.released
            || (self.host == host_name()
                && Path::new("/proc/self").exists()
                && process_start(self.process) != Some(self.process_start))
    }
}

/// Why a lease was not had.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error(
        "{folder} is in use by process {} on {}, which has held it for {held_for_seconds} s; wait for it, stop it (kill {}), or use another workdir",
        holder.process, holder.host, holder.process
    )]
    Held { folder: PathBuf, holder: Holder, held_for_seconds: u64 },
    #[error(transparent)]
    Shard(#[from] ShardError),
}

/// A held lease. Dropping it releases it.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    /// Grows with every holder of this name; a later holder has a larger one.
    pub fencing_number: u64,
    lost: Arc<AtomicBool>,
    stop: Option<mpsc::SyncSender<()>>,
    heartbeat: Option<JoinHandle<()>>,
}

impl Lease {
    /// Takes the lease `name` of `folder`, at once or not at all.
    pub fn acquire(folder: &Path, name: &str) -> Result<Self, LeaseError> {
        let leases = folder.join("lease");
        create_folder(&leases)?;
        loop {
            let newest = numbers(&leases, name)?.into_iter().max();
            if let Some(n) = newest
                && let Some((holder, age)) = read(&leases.join(format!("{name}.{n}")))?
                && !holder.is_gone()
                && age < STALE
            {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
                let held_for_seconds = now.saturating_sub(holder.since);
                return Err(LeaseError::Held { folder: folder.to_owned(), holder, held_for_seconds });
            }
            let fencing_number = newest.map_or(1, |n| n + 1);
            let path = leases.join(format!("{name}.{fencing_number}"));
            let record = serde_json::to_vec(&Holder::here()).unwrap_or_default();
            if create_if_absent(&path, &record)? {
                for old in numbers(&leases, name)?.into_iter().filter(|&n| n + 1 < fencing_number) {
                    let _ = fs::remove_file(leases.join(format!("{name}.{old}")));
                }
                return Ok(Self::held(path, fencing_number));
            }
        }
    }

    fn held(path: PathBuf, fencing_number: u64) -> Self {
        let lost = Arc::new(AtomicBool::new(false));
        let (stop, stopped) = mpsc::sync_channel(1);
        let heartbeat = std::thread::spawn({
            let (path, lost) = (path.clone(), Arc::clone(&lost));
            let successor = path.with_extension((fencing_number + 1).to_string());
            move || {
                while stopped.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                    let touched =
                        File::options().append(true).open(&path).and_then(|f| f.set_modified(SystemTime::now()));
                    if touched.is_err() || successor.exists() {
                        lost.store(true, Ordering::Relaxed);
                    }
                }
            }
        });
        Self { path, fencing_number, lost, stop: Some(stop), heartbeat: Some(heartbeat) }
    }

    /// Whether someone else took over, because this process looked dead (a long suspension, say). Its holder must stop.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(heartbeat) = self.heartbeat.take() {
            let _ = heartbeat.join();
        }
        if !self.is_lost() {
            let released = Holder { released: true, ..Holder::here() };
            let _ = replace(&self.path, &serde_json::to_vec(&released).unwrap_or_default());
        }
    }
}

fn numbers(leases: &Path, name: &str) -> Result<Vec<u64>, ShardError> {
    let prefix = format!("{name}.");
    let mut numbers = Vec::new();
    for entry in fs::read_dir(leases).map_err(ShardError::io("list", leases))? {
        let entry = entry.map_err(ShardError::io("list", leases))?;
        numbers.extend(
            entry.file_name().to_str().and_then(|f| f.strip_prefix(&prefix)).and_then(|n| n.parse::<u64>().ok()),
        );
    }
    Ok(numbers)
}

/// The holder and the age of its heartbeat; `None` when the file is gone or was never a lease.
fn read(path: &Path) -> Result<Option<(Holder, Duration)>, ShardError> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(ShardError::io("read", path)(e)),
    };
    let modified = fs::metadata(path).and_then(|m| m.modified()).map_err(ShardError::io("read", path))?;
    let age = SystemTime::now().duration_since(modified).unwrap_or_default();
    Ok(serde_json::from_slice(&content).ok().map(|holder| (holder, age)))
}

fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|n| n.trim().to_owned())
        .or_else(|_no_proc| std::env::var("HOSTNAME"))
        .unwrap_or_else(|_unset| "localhost".to_owned())
}

/// When a process of this machine started, in clock ticks since boot: field 22 of /proc/PID/stat. A zombie counts as gone.
fn process_start(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The command in parentheses may hold spaces; the fields after the last parenthesis begin with the third.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_holder_keeps_others_out_and_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lease::acquire(folder.path(), "run").unwrap();
        let refused = Lease::acquire(folder.path(), "run").unwrap_err();
        assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
        assert!(Lease::acquire(folder.path(), "other").is_ok());
        drop(first);
        assert_eq!(Lease::acquire(folder.path(), "run").unwrap().fencing_number, 2);
    }

    #[test]
    fn a_dead_process_is_taken_over_at_once_and_a_silent_host_after_a_minute() {
        let folder = tempfile::tempdir().unwrap();
        let leases = folder.path().join("lease");
        fs::create_dir(&leases).unwrap();
        let write =
            |n: u64, holder: &Holder| fs::write(leases.join(format!("run.{n}")), serde_json::to_vec(holder).unwrap());
        // The same process number, started at another time: the number was used again.
        write(1, &Holder { process_start: 1, ..Holder::here() }).unwrap();
        assert_eq!(Lease::acquire(folder.path(), "run").unwrap().fencing_number, 2);

        let elsewhere = Holder { host: "elsewhere".into(), ..Holder::here() };
        write(3, &elsewhere).unwrap();
        assert!(matches!(Lease::acquire(folder.path(), "run"), Err(LeaseError::Held { .. })));
        let old = SystemTime::now() - STALE - Duration::from_secs(1);
        File::options().append(true).open(leases.join("run.3")).unwrap().set_modified(old).unwrap();
        assert_eq!(Lease::acquire(folder.path(), "run").unwrap().fencing_number, 4);
    }
}
