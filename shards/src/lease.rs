//! Who works on what, without a coordinator.
//!
//! ```text
//! lease/runner.<id>                           a runner, written anew every few seconds while it lives
//! stages/bucket/lease/part-00012.5b0e7f31.2   the runner that makes this partition; 2 is the fencing number
//! ```
//!
//! A runner is one process at work on a workdir. Before it makes a partition it claims it, by creating a file that names it;
//! so runners share the work of a workdir, on one machine or many. A runner is dead when its process is gone (as those can
//! tell who see the same processes) or its heartbeat has been silent for a minute by the storage's own clock; its claims are then
//! taken over by creating the next number. Claims only keep work from being done twice: what counts is the commit, which only one
//! wins.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ShardError;
use crate::commit::StageFolder;
use crate::digest::Digest;
use crate::disk::unique;
use crate::storage::{Entry, Workdir};

/// How often a runner shows that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A heartbeat older than this is a dead runner's, on any machine.
pub(crate) const STALE: Duration = Duration::from_mins(1);
/// A runner that could not show for so long that it lives must take itself for dead before others do.
const SILENT: Duration = Duration::from_secs(40);
/// How long a look at the other runners is good for.
const FRESH: Duration = Duration::from_secs(1);

const FOLDER: &str = "lease";
const PREFIX: &str = "runner.";

/// A process at work on a workdir.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// By which claims name it; its record is named by it.
    #[serde(skip)]
    pub id: String,
    pub host: String,
    pub process: u32,
    /// Tells a process from a later one with the same number: its start, in clock ticks since boot (Linux), else 0.
    process_start: u64,
    /// Among whose processes the number counts; empty where that is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    processes: String,
    /// Seconds since 1970, UTC.
    pub since: u64,
    /// What it is at work on, in the words of whoever runs it.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub doing: Value,
}

impl Holder {
    fn here() -> Self {
        let process = std::process::id();
        Self {
            id: String::new(),
            host: host_name(),
            process,
            process_start: process_start(process).unwrap_or(0),
            processes: processes().to_owned(),
            since: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            doing: Value::Null,
        }
    }

    /// Known to be gone: a process among those that can be seen here, which no longer exists. The name of a host alone says
    /// nothing: containers may share one, and each has processes of its own.
    fn is_gone(&self) -> bool {
        self.host == host_name()
            && !self.processes.is_empty()
            && self.processes == processes()
            && process_start(self.process) != Some(self.process_start)
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} on {}", self.process, self.host)
    }
}

/// The runners of a workdir that are alive, by id, for people to see: where this machine's clock is a minute ahead of the storage's,
/// all of them seem dead. Whoever acts on it joins, and asks [`Runner::others`]. One listing, and a read for each.
pub fn runners(workdir: &Workdir) -> Result<BTreeMap<String, Holder>, ShardError> {
    let mut runners = BTreeMap::new();
    for (id, entry) in listed(workdir)? {
        // An onlooker has no heartbeat of its own to compare with, so this machine's clock must do.
        if let Some(holder) = read(workdir, &id)?
            && !holder.is_gone()
            && age(SystemTime::now(), entry.modified) < STALE
        {
            runners.insert(id, holder);
        }
    }
    Ok(runners)
}

/// Whether a runner has its record in this workdir: it has joined here, and has not left. No clock has a say in that.
pub fn has_joined(workdir: &Workdir, id: &str) -> Result<bool, ShardError> {
    Ok(listed(workdir)?.iter().any(|(known, _)| known == id))
}

fn listed(workdir: &Workdir) -> Result<Vec<(String, Entry)>, ShardError> {
    let entries = workdir.list(FOLDER, false)?;
    Ok(entries.into_iter().filter_map(|entry| Some((entry.name.strip_prefix(PREFIX)?.to_owned(), entry))).collect())
}

fn read(workdir: &Workdir, id: &str) -> Result<Option<Holder>, ShardError> {
    let record = workdir.read(&format!("{FOLDER}/{PREFIX}{id}"))?;
    let holder = record.and_then(|bytes| serde_json::from_slice::<Holder>(&bytes).ok());
    Ok(holder.map(|holder| Holder { id: id.to_owned(), ..holder }))
}

fn age(now: SystemTime, then: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_default()
}

/// This process, at work on a workdir. Dropping it says that it has left.
#[derive(Debug)]
pub struct Runner {
    id: String,
    workdir: Workdir,
    heart: Arc<Heart>,
    others: Mutex<Others>,
    stop: Option<mpsc::SyncSender<()>>,
    heartbeat: Option<JoinHandle<()>>,
}

/// Shared with the thread of the heartbeat.
#[derive(Debug)]
struct Heart {
    record: Mutex<Holder>,
    /// When others last could see that it lives: seconds since 1970 (also counts while a machine is suspended).
    seen: AtomicU64,
    lost: AtomicBool,
}

/// What is known of the other runners.
#[derive(Debug, Default)]
struct Others {
    looked: Option<Instant>,
    alive: BTreeMap<String, Holder>,
    records: BTreeMap<String, Holder>,
}

/// How a claim ended.
#[derive(Debug)]
pub enum Claim {
    Ours(Claimed),
    /// This runner is making the partition.
    Theirs(Holder),
}

/// A claimed partition; others leave it alone until it is released, by a call or by dropping it.
#[derive(Debug)]
pub struct Claimed {
    workdir: Workdir,
    /// Its name without the number.
    stem: String,
    /// Grows with every holder of this partition.
    pub fencing_number: u64,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        // The dead ones' first: while the last is there, it holds. What stays names a runner that will be gone.
        for number in 1..=self.fencing_number {
            let _ = self.workdir.remove(&format!("{}.{number}", self.stem));
        }
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl Runner {
    /// Begins to work on a workdir.
    pub fn join(workdir: &Workdir) -> Result<Self, ShardError> {
        let id = unique();
        let heart = Arc::new(Heart {
            record: Mutex::new(Holder { id: id.clone(), ..Holder::here() }),
            seen: AtomicU64::new(seconds_now()),
            lost: AtomicBool::new(false),
        });
        heart.beat(workdir, &id)?;
        let (stop, stopped) = mpsc::sync_channel(1);
        let heartbeat = std::thread::spawn({
            let (heart, workdir, id) = (Arc::clone(&heart), workdir.clone(), id.clone());
            move || {
                while stopped.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                    // After a long silence others may have taken over: then it is too late to go on as if nothing was.
                    if heart.is_lost() {
                        break;
                    }
                    // A beat that fails is made good by the next one, or not at all.
                    let _ = heart.beat(&workdir, &id);
                }
            }
        });
        let runner = Self {
            id,
            workdir: workdir.clone(),
            heart,
            others: Mutex::default(),
            stop: Some(stop),
            heartbeat: Some(heartbeat),
        };
        runner.clear_away_the_dead()?;
        Ok(runner)
    }

    /// Names this runner in claims and attempts.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether others may have taken this runner for dead (a long suspension, a storage out of reach). Then it must stop.
    pub fn is_lost(&self) -> bool {
        self.heart.is_lost()
    }

    /// What others are told that it is doing, with the next heartbeat.
    pub fn tell(&self, doing: Value) {
        self.heart.record.lock().unwrap_or_else(PoisonError::into_inner).doing = doing;
    }

    /// The other runners that are alive, by id.
    pub fn others(&self) -> Result<BTreeMap<String, Holder>, ShardError> {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if others.looked.is_none_or(|looked| looked.elapsed() >= FRESH) {
            let listed = listed(&self.workdir)?;
            // Both times are the storage's, so that no clock is compared with another.
            let now = listed.iter().find(|(id, _)| *id == self.id).map(|(_, entry)| entry.modified);
            let mut alive = BTreeMap::new();
            for (id, entry) in listed.into_iter().filter(|(id, _)| *id != self.id) {
                // A runner that is not seen here itself was taken for dead; `is_lost` will say so.
                if now.is_some_and(|now| age(now, entry.modified) >= STALE) {
                    continue;
                }
                let known = others.records.get(&id).cloned();
                let holder = if known.is_some() { known } else { read(&self.workdir, &id)? };
                if let Some(holder) = holder {
                    others.records.insert(id.clone(), holder.clone());
                    if !holder.is_gone() {
                        alive.insert(id, holder);
                    }
                }
            }
            others.alive = alive;
            others.looked = Some(Instant::now());
        }
        Ok(others.alive.clone())
    }

    /// The ids of all that work here as of now, this one included.
    pub fn living(&self) -> Result<HashSet<String>, ShardError> {
        let others = self.others_now()?;
        Ok(others.into_keys().chain([self.id.clone()]).collect())
    }

    /// [`Self::others`] as of now.
    pub fn others_now(&self) -> Result<BTreeMap<String, Holder>, ShardError> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner).looked = None;
        self.others()
    }

    /// Claims a partition, at once or not at all.
    pub fn claim(&self, folder: &StageFolder, partition: &str, fingerprint: &Digest) -> Result<Claim, ShardError> {
        let stem = folder.name_of(&format!("{FOLDER}/{partition}.{}", fingerprint.short()));
        let mut fencing_number = 1;
        loop {
            let name = format!("{stem}.{fencing_number}");
            if self.workdir.claim(&name, self.id.as_bytes())? {
                return Ok(Claim::Ours(Claimed { workdir: self.workdir.clone(), stem, fencing_number }));
            }
            let Some(record) = self.workdir.read(&name)? else { continue };
            let id = String::from_utf8_lossy(&record).into_owned();
            if id == self.id {
                return Ok(Claim::Theirs(self.heart.record.lock().unwrap_or_else(PoisonError::into_inner).clone()));
            }
            if let Some(holder) = self.others()?.get(&id) {
                return Ok(Claim::Theirs(holder.clone()));
            }
            // Not known: it may have joined since the last look.
            if let Some(holder) = self.others_now()?.get(&id) {
                return Ok(Claim::Theirs(holder.clone()));
            }
            fencing_number += 1;
        }
    }

    /// Removes the records of runners that are dead for good.
    fn clear_away_the_dead(&self) -> Result<(), ShardError> {
        // In this order: one that joins in between is not listed.
        let listed = listed(&self.workdir)?;
        let alive = self.living()?;
        for (id, _) in listed {
            if !alive.contains(&id) {
                self.workdir.remove(&format!("{FOLDER}/{PREFIX}{id}"))?;
            }
        }
        Ok(())
    }
}

impl Heart {
    fn beat(&self, workdir: &Workdir, id: &str) -> Result<(), ShardError> {
        let record = serde_json::to_vec(&*self.record.lock().unwrap_or_else(PoisonError::into_inner));
        workdir.replace_soon(&format!("{FOLDER}/{PREFIX}{id}"), &record.unwrap_or_default())?;
        self.seen.store(seconds_now(), Ordering::Relaxed);
        Ok(())
    }

    fn is_lost(&self) -> bool {
        if seconds_now().saturating_sub(self.seen.load(Ordering::Relaxed)) > SILENT.as_secs() {
            self.lost.store(true, Ordering::Relaxed);
        }
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(heartbeat) = self.heartbeat.take() {
            let _ = heartbeat.join();
        }
        let _ = self.workdir.remove(&format!("{FOLDER}/{PREFIX}{}", self.id));
    }
}

/// What this machine calls itself.
pub fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|n| n.trim().to_owned())
        .or_else(|_no_proc| std::env::var("HOSTNAME"))
        .unwrap_or_else(|_unset| "localhost".to_owned())
}

/// Among whose processes this one has its number: the boot of the machine and the namespace (Linux), else empty.
fn processes() -> &'static str {
    static PROCESSES: OnceLock<String> = OnceLock::new();
    PROCESSES.get_or_init(|| {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        match fs::read_link("/proc/self/ns/pid") {
            Ok(namespace) if !boot.is_empty() => format!("{} {}", boot.trim(), namespace.display()),
            _ => String::new(),
        }
    })
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

    fn workdir() -> (tempfile::TempDir, Workdir, StageFolder) {
        let folder = tempfile::tempdir().unwrap();
        let workdir = Workdir::local(folder.path());
        let stage = StageFolder::new(&workdir, "bucket");
        (folder, workdir, stage)
    }

    fn claimed(runner: &Runner, stage: &StageFolder) -> Option<Claimed> {
        match runner.claim(stage, "part-00000", &Digest::of(b"x")).unwrap() {
            Claim::Ours(claimed) => Some(claimed),
            Claim::Theirs(_) => None,
        }
    }

    #[test]
    fn a_partition_is_made_by_one_runner_at_a_time() {
        let (_folder, workdir, stage) = workdir();
        let (first, second) = (Runner::join(&workdir).unwrap(), Runner::join(&workdir).unwrap());
        let held = claimed(&first, &stage).unwrap();
        assert!(claimed(&second, &stage).is_none());
        assert!(claimed(&first, &stage).is_none(), "nor twice by one");
        let tried = second.claim(&stage, "part-00000", &Digest::of(b"x")).unwrap();
        assert!(matches!(&tried, Claim::Theirs(holder) if holder.id == first.id()), "{tried:?}");
        assert!(second.living().unwrap().contains(first.id()) && runners(&workdir).unwrap().len() == 2);
        drop(held);
        assert_eq!(claimed(&second, &stage).unwrap().fencing_number, 1);
    }

    #[test]
    fn a_dead_process_is_taken_over_at_once_and_a_silent_host_after_a_minute() {
        let (folder, workdir, stage) = workdir();
        let write = |id: &str, holder: &Holder| {
            workdir.replace_soon(&format!("lease/runner.{id}"), &serde_json::to_vec(holder).unwrap()).unwrap();
        };
        let claim = |id: &str, n: u64| {
            let name = format!("lease/part-00000.{}.{n}", Digest::of(b"x").short());
            assert!(workdir.claim(&stage.name_of(&name), id.as_bytes()).unwrap());
        };
        // The same process number, started at another time: the number was used again.
        write("gone", &Holder { process_start: 1, ..Holder::here() });
        claim("gone", 1);
        let runner = Runner::join(&workdir).unwrap();
        let taken = claimed(&runner, &stage).unwrap();
        assert_eq!(taken.fencing_number, 2);
        drop(taken);

        // A container's that has this host's name: its number is no process here.
        let elsewhere = Holder { processes: "another boot pid:[1]".into(), process_start: 1, ..Holder::here() };
        write("elsewhere", &elsewhere);
        claim("elsewhere", 1);
        std::thread::sleep(FRESH);
        assert!(claimed(&runner, &stage).is_none());
        let old = SystemTime::now() - 2 * STALE;
        let record = folder.path().join("lease/runner.elsewhere");
        fs::File::options().append(true).open(record).unwrap().set_modified(old).unwrap();
        std::thread::sleep(FRESH);
        assert_eq!(claimed(&runner, &stage).unwrap().fencing_number, 2);
        assert_eq!(runner.living().unwrap(), HashSet::from([runner.id().to_owned()]));
    }

    #[test]
    fn only_what_can_be_seen_from_here_is_known_to_be_gone() {
        let ended = Holder { process_start: 1, ..Holder::here() };
        assert!(ended.is_gone() && !Holder::here().is_gone());
        for unknown in [
            Holder { host: "elsewhere".into(), ..ended.clone() },
            Holder { processes: "another boot pid:[1]".into(), ..ended.clone() },
            // As an older version wrote it.
            Holder { processes: String::new(), ..ended },
        ] {
            assert!(!unknown.is_gone(), "{unknown:?}");
        }
    }

    #[test]
    fn a_runner_that_left_is_forgotten_and_one_that_was_silent_knows_it() {
        let (_folder, workdir, _) = workdir();
        let runner = Runner::join(&workdir).unwrap();
        assert!(!runner.is_lost());
        runner.heart.seen.store(seconds_now() - SILENT.as_secs() - 1, Ordering::Relaxed);
        assert!(runner.is_lost());
        let id = runner.id().to_owned();
        assert!(has_joined(&workdir, &id).unwrap() && !has_joined(&workdir, "another").unwrap());
        drop(runner);
        assert!(runners(&workdir).unwrap().is_empty() && !has_joined(&workdir, &id).unwrap());
    }
}
