//! Parts of files on a store, kept on this machine's disk up to a limit.
//!
//! ```text
//! ranges/
//!     lock                    held by the one process that uses the folder
//!     00000007.log            records, one after the other: key, length, checksum, bytes
//! ```
//!
//! What is kept is known by the digest of its file and its place there, so it is never out of date. Files are written to their
//! end and then only read; when the limit is passed the oldest goes. A process that starts finds what the one before kept. What is
//! damaged there, or cut off by a power failure, is fetched again; a disk that is full only keeps no more.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::digest::{Digest, DigestBuilder};

/// Before the bytes of a record: 16 bytes of key, 4 of length, 4 of checksum.
const HEADER: usize = 24;
/// Files that share the limit.
const FILES: u64 = 8;

/// Held by the process that uses a folder.
const LOCK: &str = "lock";
/// After so long without anything new a cache is taken for one that nobody comes back to.
const LEFT_AFTER: Duration = Duration::from_hours(7 * 24);

type Key = [u8; 16];

/// The cache of one process.
#[derive(Debug)]
pub struct RangeCache {
    folder: PathBuf,
    limit: u64,
    /// Unlocked when closed.
    _lock: File,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first; the last one is written to.
    logs: VecDeque<Log>,
    places: HashMap<Key, Place>,
    /// Whether the disk refused: then nothing more is kept.
    is_full: bool,
}

#[derive(Debug)]
struct Log {
    number: u64,
    file: Arc<File>,
    end: u64,
    keys: Vec<Key>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    log: u64,
    at: u64,
    length: u32,
    checksum: u32,
}

/// What a part of a file is known by.
pub fn key(file: &Digest, start: u64, end: u64) -> Key {
    let digest = DigestBuilder::new().part(file.seed()).part(start.to_le_bytes()).part(end.to_le_bytes()).finish();
    let mut key = Key::default();
    key.iter_mut().zip(digest.seed()).for_each(|(to, from)| *to = from);
    key
}

impl RangeCache {
    /// The cache in `folder`, of at most `limit` bytes. `None` where another process uses it, or where the disk refuses: then
    /// there is none.
    pub fn open(folder: &Path, limit: u64) -> Option<Self> {
        if limit == 0 {
            return None;
        }
        fs::create_dir_all(folder).ok()?;
        let lock = File::create(folder.join(LOCK)).ok()?;
        lock.try_lock().ok()?;
        let mut numbers: Vec<u64> = fs::read_dir(folder)
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
            .collect();
        numbers.sort_unstable();
        let mut state = State::default();
        for number in numbers {
            let _ = state.take_up(folder, number);
        }
        let cache = Self { folder: folder.to_owned(), limit, _lock: lock, state: Mutex::new(state) };
        cache.make_room(&mut cache.state.lock().unwrap_or_else(PoisonError::into_inner), 0);
        Some(cache)
    }

    /// Removes the cache in `folder`, unless a process uses it, or has kept something in the last days: it may be one of a training that
    /// goes on soon.
    pub(crate) fn remove_if_left(folder: &Path) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        let times = entries.filter_map(|entry| entry.ok()?.metadata().ok()?.modified().ok());
        let is_left = |time: SystemTime| time.elapsed().is_ok_and(|age| age > LEFT_AFTER);
        if !times.max().is_some_and(is_left) {
            return;
        }
        let Ok(lock) = File::create(folder.join(LOCK)) else { return };
        if lock.try_lock().is_ok() {
            let _ = fs::remove_dir_all(folder);
        }
    }

    /// What is kept under a key.
    pub fn get(&self, key: &Key) -> Option<Bytes> {
        let (place, file) = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let place = *state.places.get(key)?;
            let log = state.logs.iter().find(|log| log.number == place.log)?;
            (place, Arc::clone(&log.file))
        };
        let mut bytes = vec![0; place.length as usize];
        file.read_exact_at(&mut bytes, place.at).ok()?;
        (crc32fast::hash(&bytes) == place.checksum).then(|| bytes.into())
    }

    /// Keeps `bytes`, if there is room.
    pub fn put(&self, key: &Key, bytes: &[u8]) {
        let Ok(length) = u32::try_from(bytes.len()) else { return };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let size = HEADER as u64 + u64::from(length);
        if state.is_full || state.places.contains_key(key) || size > self.limit / FILES {
            return;
        }
        self.make_room(&mut state, size);
        if self.append(&mut state, key, bytes, length).is_err() {
            state.is_full = true;
        }
    }

    fn append(&self, state: &mut State, key: &Key, bytes: &[u8], length: u32) -> io::Result<()> {
        let size = HEADER as u64 + u64::from(length);
        if state.logs.back().is_none_or(|log| log.end + size > self.limit / FILES) {
            let number = state.logs.back().map_or(0, |log| log.number + 1);
            let path = self.folder.join(format!("{number:08}.log"));
            let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
            state.logs.push_back(Log { number, file: Arc::new(file), end: 0, keys: Vec::new() });
        }
        let Some(log) = state.logs.back_mut() else { return Ok(()) };
        let checksum = crc32fast::hash(bytes);
        let mut record = Vec::with_capacity(HEADER + bytes.len());
        record.extend_from_slice(key);
        record.extend_from_slice(&length.to_le_bytes());
        record.extend_from_slice(&checksum.to_le_bytes());
        record.extend_from_slice(bytes);
        log.file.write_all_at(&record, log.end)?;
        let place = Place { log: log.number, at: log.end + HEADER as u64, length, checksum };
        log.end += size;
        log.keys.push(*key);
        state.places.insert(*key, place);
        Ok(())
    }

    /// Lets the oldest files go until `more` bytes fit.
    fn make_room(&self, state: &mut State, more: u64) {
        while state.logs.iter().map(|log| log.end).sum::<u64>() + more > self.limit {
            let Some(oldest) = state.logs.pop_front() else { return };
            for key in &oldest.keys {
                if state.places.get(key).is_some_and(|place| place.log == oldest.number) {
                    state.places.remove(key);
                }
            }
            let _ = fs::remove_file(self.folder.join(format!("{:08}.log", oldest.number)));
        }
    }
}

impl State {
    /// Finds what a file of an earlier process holds, up to the first record that is not whole.
    fn take_up(&mut self, folder: &Path, number: u64) -> io::Result<()> {
        let file = File::options().read(true).write(true).open(folder.join(format!("{number:08}.log")))?;
        let length = file.metadata()?.len();
        let mut log = Log { number, file: Arc::new(file), end: 0, keys: Vec::new() };
        let mut header = [0; HEADER];
        while log.file.read_exact_at(&mut header, log.end).is_ok() {
            let (Some(key), Some(size), Some(checksum)) =
                (header.first_chunk::<16>(), header[16..].first_chunk::<4>(), header[20..].first_chunk::<4>())
            else {
                break;
            };
            let (size, checksum) = (u32::from_le_bytes(*size), u32::from_le_bytes(*checksum));
            let at = log.end + HEADER as u64;
            if at + u64::from(size) > length {
                break;
            }
            self.places.insert(*key, Place { log: number, at, length: size, checksum });
            log.keys.push(*key);
            log.end = at + u64::from(size);
        }
        log.file.set_len(log.end)?;
        self.logs.push_back(log);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: u64) -> Vec<u8> {
        vec![n as u8; 100 + n as usize % 7]
    }

    fn of(n: u64) -> Key {
        key(&Digest::of(b"file"), n, n + 1)
    }

    fn on_disk(folder: &Path) -> u64 {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    }

    #[test]
    fn the_newest_are_kept_up_to_the_limit_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let limit = 8000;
        let cache = RangeCache::open(folder.path(), limit).unwrap();
        assert!(RangeCache::open(folder.path(), limit).is_none(), "it is in use");
        for n in 0..200 {
            assert_eq!(cache.get(&of(n)), None);
            cache.put(&of(n), &bytes(n));
            assert_eq!(cache.get(&of(n)).unwrap(), bytes(n));
            assert!(on_disk(folder.path()) <= limit);
        }
        let kept = |cache: &RangeCache| -> Vec<u64> { (0..200).filter(|&n| cache.get(&of(n)).is_some()).collect() };
        let before = kept(&cache);
        assert!(before.len() > 50 && before[0] == 200 - before.len() as u64, "{before:?}");
        drop(cache);
        let cache = RangeCache::open(folder.path(), limit).unwrap();
        assert_eq!(kept(&cache), before);
        drop(cache);
        let smaller = RangeCache::open(folder.path(), limit / 2).unwrap();
        assert!(kept(&smaller).len() < before.len() && on_disk(folder.path()) <= limit / 2);
    }

    #[test]
    fn what_is_damaged_or_cut_off_is_not_given() {
        let folder = tempfile::tempdir().unwrap();
        let cache = RangeCache::open(folder.path(), 1 << 20).unwrap();
        (0..5).for_each(|n| cache.put(&of(n), &bytes(n)));
        drop(cache);
        let log = folder.path().join("00000000.log");
        let mut whole = fs::read(&log).unwrap();
        whole[HEADER + 3] ^= 1;
        fs::write(&log, &whole[..whole.len() - 10]).unwrap();
        let cache = RangeCache::open(folder.path(), 1 << 20).unwrap();
        let found: Vec<bool> = (0..5).map(|n| cache.get(&of(n)).is_some()).collect();
        assert_eq!(found, [false, true, true, true, false]);
        cache.put(&of(4), &bytes(4));
        assert_eq!(cache.get(&of(4)).unwrap(), bytes(4));
    }
}
