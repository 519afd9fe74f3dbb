//! Where a workdir lies: in a local folder, or below a prefix of an S3-compatible store.
//!
//! ```text
//! data/cc12m-256 or s3://bucket/cc12m-256          the location
//!     lease/runner.<id>                           who works here, with a heartbeat
//!     report.html
//!     stages/bucket/…                             see [`crate::commit`]
//! ```
//!
//! Small records (sidecars, leases, ledgers) are read and written through [`Storage`]. Data files are always written, and
//! read by stages, as files of this machine: in the folder itself where the workdir is local, else in a scratch folder of
//! the same layout. [`Storage::publish`] takes a finished file into the storage, [`Storage::fetch`] brings one here. So a
//! stage knows nothing of object stores.

mod local;
mod remote;

use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use object_store::ObjectStore;

use crate::ShardError;
use crate::range_cache::RangeCache;
use crate::ranges::Ranges;
use crate::sidecar::DataFile;

/// A file in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the listed folder, with `/` between folders.
    pub name: String,
    pub bytes: u64,
    /// By the storage's own clock: compare only with others of the same storage.
    pub modified: SystemTime,
}

/// The operations of a place that holds a workdir. Names are relative to it, with `/` between folders. All of them block:
/// call them from threads, not from tasks of a runtime.
pub trait Storage: fmt::Debug + Send + Sync {
    /// As people write it: `data/demo`, `s3://bucket/demo`.
    fn location(&self) -> String;

    /// The folder of this machine where data files lie while they are worked on.
    fn folder(&self) -> &Path;

    /// Whether the folder is only a copy of what is stored elsewhere.
    fn is_remote(&self) -> bool;

    /// Creates `name` with `bytes` unless it exists. Durable, and all at once. Returns whether this call created it. This is
    /// the one primitive that commits stand on.
    fn create_if_absent(&self, name: &str, bytes: &[u8]) -> Result<bool, ShardError>;

    /// As [`Storage::create_if_absent`], but a power failure may undo it.
    fn claim(&self, name: &str, bytes: &[u8]) -> Result<bool, ShardError>;

    /// Replaces `name` in one step, durably.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), ShardError>;

    /// As [`Storage::replace`], but a power failure may undo it.
    fn replace_soon(&self, name: &str, bytes: &[u8]) -> Result<(), ShardError>;

    /// The content of `name`; `None` when it is not there.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, ShardError>;

    /// The contents of `names`, in their order.
    fn read_all(&self, names: &[String]) -> Result<Vec<Option<Vec<u8>>>, ShardError>;

    /// The files in `folder` and, if `deep`, in the folders below it; sorted by name. Empty when the folder is not there.
    /// One listing, however many files there are.
    fn list(&self, folder: &str, deep: bool) -> Result<Vec<Entry>, ShardError>;

    /// Whether `name` is there.
    fn exists(&self, name: &str) -> Result<bool, ShardError>;

    /// Removes `name`; one that is gone already is no error.
    fn remove(&self, name: &str) -> Result<(), ShardError>;

    /// Takes a finished, synced file of [`Storage::folder`] into the storage.
    fn publish(&self, name: &str) -> Result<(), ShardError>;

    /// Brings a committed file into [`Storage::folder`], unless it is there. What comes over a network is held to its digest.
    /// `folder` is that of its stage. Returns its path.
    fn fetch(&self, folder: &str, file: &DataFile) -> Result<PathBuf, ShardError>;

    /// A committed file for reading parts of it, wherever it lies; no more of it comes here than is asked for. Parts that come
    /// over a network are kept in `cache`.
    fn ranges(
        &self,
        name: &str,
        file: &DataFile,
        cache: Option<&Arc<RangeCache>>,
    ) -> Result<Arc<dyn Ranges>, ShardError>;

    /// Removes this machine's copies of files, unless another process may be using them. Nothing happens where the folder is
    /// the storage itself.
    fn let_go(&self, _names: &[String]) {}

    /// The store and the full path of `name` in it, for readers that can do ranged reads; `None` for local folders.
    fn object(&self, _name: &str) -> Option<(Arc<dyn ObjectStore>, String)> {
        None
    }
}

/// A workdir. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Workdir(Arc<dyn Storage>);

impl Workdir {
    /// Opens the workdir at `location`: a path, or `s3://bucket/prefix`, whose credentials and endpoint come from the AWS_…
    /// variables of the environment. `scratch` is the folder for copies of what lies elsewhere; without it, one below the
    /// user's cache.
    pub fn open(location: &str, scratch: Option<&Path>) -> Result<Self, ShardError> {
        if !location.contains("://") {
            return Ok(Self::local(Path::new(location)));
        }
        remote::Remote::open(location, scratch).map(|remote| Self(Arc::new(remote)))
    }

    /// A workdir in a local folder, which need not exist yet.
    pub fn local(folder: &Path) -> Self {
        Self(Arc::new(local::Local::new(folder)))
    }

    /// A workdir below `prefix` of an opened store; `location` is what people read.
    pub fn on_store(
        store: Arc<dyn ObjectStore>,
        prefix: &str,
        location: &str,
        scratch: &Path,
    ) -> Result<Self, ShardError> {
        remote::Remote::new(store, prefix, location, scratch).map(|remote| Self(Arc::new(remote)))
    }

    /// A cache beside the copies of what lies elsewhere, for one of so many `processes` of this machine, each of which has one of its own:
    /// all of them together keep at most `limit` bytes. Those that more processes have left go after a week. `None` where everything is here.
    pub fn range_cache(&self, limit: u64, processes: usize) -> Option<Arc<RangeCache>> {
        /// More than there are ranks on one machine.
        const MOST: usize = 256;
        if !self.is_remote() || limit == 0 {
            return None;
        }
        let folder =
            |number: usize| self.path(&if number == 0 { "ranges".to_owned() } else { format!("ranges-{number}") });
        let processes = processes.clamp(1, MOST);
        for number in processes..MOST {
            RangeCache::remove_if_left(&folder(number));
        }
        let limit = limit / processes as u64;
        (0..MOST).find_map(|number| RangeCache::open(&folder(number), limit)).map(Arc::new)
    }

    /// Where `name` lies on this machine while it is worked on.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.folder().join(name)
    }
}

impl Deref for Workdir {
    type Target = dyn Storage;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl fmt::Display for Workdir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.location())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use object_store::memory::InMemory;

    use super::*;
    use crate::digest::Digest;
    use crate::range_cache::key;

    /// Both kinds keep the same contract.
    fn both(check: impl Fn(&Workdir)) {
        let folder = tempfile::tempdir().unwrap();
        check(&Workdir::local(&folder.path().join("work")));
        let scratch = folder.path().join("scratch");
        check(&Workdir::on_store(Arc::new(InMemory::new()), "a/b", "memory://a/b", &scratch).unwrap());
    }

    #[test]
    fn records_are_created_once_replaced_listed_and_removed() {
        both(|workdir| {
            assert_eq!(workdir.read("stages/x/one").unwrap(), None);
            assert_eq!(workdir.list("stages/x", true).unwrap(), []);
            assert!(workdir.create_if_absent("stages/x/one", b"1").unwrap());
            assert!(!workdir.create_if_absent("stages/x/one", b"2").unwrap());
            assert!(workdir.claim("stages/x/lease/two", b"22").unwrap());
            assert!(!workdir.claim("stages/x/lease/two", b"3").unwrap());
            assert_eq!(workdir.read("stages/x/one").unwrap().unwrap(), b"1");
            workdir.replace("stages/x/one", b"333").unwrap();
            workdir.replace_soon("stages/y/other", b"").unwrap();
            let names = |deep| -> Vec<(String, u64)> {
                workdir.list("stages/x", deep).unwrap().into_iter().map(|e| (e.name, e.bytes)).collect()
            };
            assert_eq!(names(false), [("one".to_owned(), 3)]);
            assert_eq!(names(true), [("lease/two".to_owned(), 2), ("one".to_owned(), 3)]);
            let many = workdir.read_all(&["stages/x/none".to_owned(), "stages/x/one".to_owned()]).unwrap();
            assert_eq!(many, [None, Some(b"333".to_vec())]);
            assert!(workdir.exists("stages/x/one").unwrap());
            workdir.remove("stages/x/one").unwrap();
            workdir.remove("stages/x/one").unwrap();
            assert!(!workdir.exists("stages/x/one").unwrap());
        });
    }

    #[test]
    fn published_files_come_back_and_damaged_ones_do_not() {
        both(|workdir| {
            let path = workdir.path("stages/x/part.parquet");
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, b"data").unwrap();
            workdir.publish("stages/x/part.parquet").unwrap();
            let file = |digest| DataFile {
                file: "part.parquet".into(),
                digest,
                bytes: 4,
                rows: 1,
                footer: None,
                variant: None,
            };
            if workdir.is_remote() {
                std::fs::remove_file(&path).unwrap();
                let error = workdir.fetch("stages/x", &file(Digest::of(b"other"))).unwrap_err();
                assert!(error.to_string().contains("part.parquet"), "{error}");
            }
            let fetched = workdir.fetch("stages/x", &file(Digest::of(b"data"))).unwrap();
            assert_eq!(fetched, path);
            assert_eq!(std::fs::read(fetched).unwrap(), b"data");
        });
    }

    #[test]
    fn copies_stay_while_anybody_uses_the_scratch_folder_and_what_a_dead_process_left_holds_none() {
        let scratch = tempfile::tempdir().unwrap();
        let workdir = Workdir::on_store(Arc::new(InMemory::new()), "a/b", "memory://a/b", scratch.path()).unwrap();
        let names = ["stages/x/part.parquet".to_owned()];
        let path = workdir.path(&names[0]);
        let write = || {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, b"data").unwrap();
        };
        write();
        workdir.publish(&names[0]).unwrap();
        // As of a container, none of whose processes can be seen from here.
        let mark = scratch.path().join(".in-use.4294967295.1");
        let held = std::fs::File::create(&mark).unwrap();
        held.lock().unwrap();
        workdir.let_go(&names);
        assert!(path.exists() && mark.exists());
        drop(held);
        workdir.let_go(&names);
        assert!(!path.exists() && !mark.exists());

        write();
        let other = Workdir::on_store(Arc::new(InMemory::new()), "a/b", "memory://a/b", scratch.path()).unwrap();
        other.publish(&names[0]).unwrap();
        workdir.let_go(&names);
        assert!(path.exists());
        drop(other);
        workdir.let_go(&names);
        assert!(!path.exists());
    }

    #[test]
    fn processes_of_one_machine_share_the_limit_of_what_is_kept_and_what_more_of_them_kept_goes_in_time() {
        let scratch = tempfile::tempdir().unwrap();
        let workdir = Workdir::on_store(Arc::new(InMemory::new()), "a/b", "memory://a/b", scratch.path()).unwrap();
        let limit = 80_000;
        let opened = |processes: usize| -> Vec<Arc<RangeCache>> {
            (0..processes).map(|_| workdir.range_cache(limit, processes).unwrap()).collect()
        };
        // How much each folder holds.
        let held = || -> BTreeMap<String, u64> {
            let folders = std::fs::read_dir(scratch.path()).unwrap().map(Result::unwrap);
            let of = |folder: &Path| -> u64 {
                std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum()
            };
            folders.map(|folder| (folder.file_name().into_string().unwrap(), of(&folder.path()))).collect()
        };
        for cache in opened(4) {
            (0..200).for_each(|n| cache.put(&key(&Digest::of(b"file"), n, n + 1), &[n as u8; 1000]));
        }
        let names = ["ranges", "ranges-1", "ranges-2", "ranges-3"];
        let full = held();
        assert!(full.keys().eq(names) && (limit / 2..=limit).contains(&full.values().sum::<u64>()), "{full:?}");
        // Others leave them to those who come back, and work that has nothing to do with theirs has a cache too.
        let both = [opened(1), opened(1)];
        assert_eq!(held(), full);
        drop(both);
        // Nobody has come back to the last two for long; the last is in use.
        let used = RangeCache::open(&workdir.path("ranges-3"), limit).unwrap();
        let long_ago = SystemTime::now() - std::time::Duration::from_hours(8 * 24);
        for name in ["ranges-2", "ranges-3"] {
            for file in std::fs::read_dir(workdir.path(name)).unwrap() {
                let file = std::fs::File::options().append(true).open(file.unwrap().path()).unwrap();
                file.set_modified(long_ago).unwrap();
            }
        }
        drop(opened(1));
        assert!(held().keys().eq(["ranges", "ranges-1", "ranges-3"]), "{:?}", held());
        drop(used);
    }

    #[test]
    fn other_schemes_are_refused_by_name() {
        let error = Workdir::open("ftp://host/x", None).unwrap_err().to_string();
        assert!(error.contains("ftp://host/x") && error.contains("s3://"), "{error}");
    }
}
