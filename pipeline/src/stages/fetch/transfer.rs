//! Bringing one file.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use shards::digest::DigestBuilder;
use shards::{ShardError, disk};

use super::listing::{Found, Listed};
use super::partial_folder;
use crate::remote::{self, Access, FAILURES, Location, Watch, without_secrets};
use crate::stage::{Cancel, StageError, Task};
use crate::stages::outside::matches;

const TRIES_TO_LOCK: usize = 8;

/// Bytes that came in this run, of all files.
#[derive(Default)]
pub(super) struct Progress {
    bytes: AtomicU64,
    since: Mutex<Option<(Instant, u64)>>,
}

impl Progress {
    /// Says how fast it goes, once a second.
    pub(super) fn tell(&self, task: &Task) {
        let now = self.bytes.load(Ordering::Relaxed);
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, before) = since.get_or_insert_with(|| (Instant::now(), now));
        let seconds = start.elapsed().as_secs_f64();
        if seconds >= 1.0 {
            let rate = now.saturating_sub(*before) as f64 / seconds / 1e6;
            task.tally.set_note(format!("{rate:.1} MB/s, {:.2} GB in this run", now as f64 / 1e9));
            *since = Some((Instant::now(), now));
        }
    }
}

/// How a file is brought, and for which partition.
pub(super) struct Transfer<'a> {
    pub(super) access: &'a Access,
    pub(super) tries: u32,
    pub(super) progress: &'a Progress,
    pub(super) task: &'a Task<'a>,
}

impl Watch for Transfer<'_> {
    fn came(&self, bytes: u64) {
        self.progress.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.progress.tell(self.task);
    }

    fn is_cancelled(&self) -> bool {
        self.task.cancel.is_cancelled()
    }
}

/// A file that has come whole, and waits for its place. The lock on its name is held until then. One that does not get there
/// stays for the next run, unless it is removed.
pub(super) struct Partial {
    path: PathBuf,
    lock: Option<File>,
}

impl Partial {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is left of it is not needed any more.
    pub(super) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
        remote::settled(&self.path);
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // While it is still held.
        if self.lock.is_some() {
            let _ = fs::remove_file(self.path.with_extension("lock"));
        }
    }
}

impl Transfer<'_> {
    /// Brings a file, from where an earlier try came to.
    pub(super) fn bring(&self, file: &Listed) -> Result<Partial, StageError> {
        let folder = partial_folder(self.task.folder);
        disk::create_folder(&folder)?;
        // Two places may give one version to files of one name.
        let digest = DigestBuilder::new().part(file.digest().to_string()).part(&file.found.shown).finish().to_string();
        let partial = claim(&folder, digest.get(..16).unwrap_or(&digest), self.task.partition)?;
        let Found { shown, location, entries } = &*file.found;
        let watch = (self.tries, self as &dyn Watch);
        match remote::fetch(location, shown, entries, &file.entry, partial.path(), self.access, watch) {
            Ok(()) => Ok(partial),
            Err(error) => Err(error.into()),
        }
    }
}

/// The place of a part that one partition at a time works on. Where another one does, for a claim on a partition is only taken
/// over from a process that seems dead, and places that are shown alike share it, or where files cannot be locked, this one works
/// on a part of its own.
fn claim(folder: &Path, name: &str, partition: &str) -> Result<Partial, StageError> {
    let path = folder.join(name);
    let lock_path = path.with_extension("lock");
    for _ in 0..TRIES_TO_LOCK {
        let lock = File::create(&lock_path).map_err(ShardError::io("create", &lock_path))?;
        if lock.try_lock().is_err() {
            break;
        }
        // Whoever held it may have removed it in between; then it is another file's lock.
        let same = lock.metadata().ok().zip(fs::metadata(&lock_path).ok());
        if same.is_some_and(|(held, named)| held.ino() == named.ino()) {
            return Ok(Partial { path, lock: Some(lock) });
        }
    }
    Ok(Partial { path: folder.join(format!("{name}-{}-{partition}", std::process::id())), lock: None })
}

/// Hears of a transfer.
struct Told<'a> {
    tell: &'a (dyn Fn(u64, u64) + Sync),
    /// Bytes that are here, and that there are.
    here: AtomicU64,
    all: u64,
    cancel: &'a Cancel,
}

impl Watch for Told<'_> {
    fn came(&self, bytes: u64) {
        let before = self.here.fetch_add(bytes, Ordering::Relaxed);
        (self.tell)(before + bytes, self.all);
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

/// What [`fetch_into`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    pub files: usize,
    pub bytes: u64,
    /// Files that were there already, with the content that the place lists.
    pub there: usize,
}

/// Brings the files of `from` (see the key `url` of the stage) into `folder`, under the paths that they have there, as a model's
/// weights and settings are read. Files that are there, as the place lists them, stay. `tell` hears how many bytes are here, of how many.
pub fn fetch_into(
    from: &str,
    [include, exclude]: [&[String]; 2],
    folder: &Path,
    cancel: &Cancel,
    tell: &(dyn Fn(u64, u64) + Sync),
) -> Result<Fetched, StageError> {
    let (access, shown) = (Access::from_environment(), without_secrets(from));
    let location = Location::parse(from);
    if let Location::Local(_) = location {
        return Err(StageError::failed(format!("{shown} is a path of this machine; what is here needs no fetching")));
    }
    let location = remote::pinned(&location, &shown, &access, FAILURES).map_err(StageError::failed)?;
    let entries = remote::entries(&location, &shown, &access, FAILURES).map_err(StageError::failed)?;
    let any = |patterns: &[String], name: &str| patterns.iter().any(|pattern| matches(pattern, name));
    let is_meant = |name: &str| (include.is_empty() || any(include, name)) && !any(exclude, name);
    let mut fetched = Fetched::default();
    let meant: Vec<_> = entries.files.iter().filter(|entry| is_meant(&entry.name)).collect();
    let all = meant.iter().filter_map(|entry| entry.bytes).sum();
    let watch = Told { tell, here: AtomicU64::new(0), all, cancel };
    for entry in meant {
        let is_inside = entry.name.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        if !is_inside || entry.name.contains('\\') {
            return Err(StageError::failed(format!(
                "{shown} names a file {:?}, which is no path below a folder",
                entry.name
            )));
        }
        let path = folder.join(&entry.name);
        fetched.files += 1;
        fetched.bytes += entry.bytes.unwrap_or(0);
        if remote::is_whole(entry, &path) {
            fetched.there += 1;
            watch.came(entry.bytes.unwrap_or(0));
            continue;
        }
        if let Some(parent) = path.parent() {
            disk::create_folder(parent)?;
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        match remote::fetch(&location, &shown, &entries, entry, &partial, &access, (FAILURES, &watch)) {
            Ok(()) => disk::rename(&partial, &path)?,
            Err(error) => return Err(error.into()),
        }
        remote::settled(&partial);
        disk::sync_parent(&path)?;
    }
    if fetched.files == 0 {
        let all = entries.files.len();
        return Err(StageError::failed(format!("{shown} has {all} files, none of which was asked for")));
    }
    Ok(fetched)
}
