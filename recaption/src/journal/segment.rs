//! Reading a journal's segments, and merging them.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use shards::disk;

use super::JournalError;
use super::entry::{CacheKey, Entry, LONGEST_LINE, line, parse};
use crate::lines::Lines;

/// What the names of segments end with.
pub(super) const ENDING: &str = ".jsonl";

/// What a journal's segments hold.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    /// Of several answers to a question a caption counts before a refusal, and else the first, in the order of attempts' names.
    pub entries: HashMap<CacheKey, Entry>,
    /// Lines that were torn or damaged. One a segment is what a worker leaves that was killed.
    pub damaged: u64,
    pub segments: usize,
}

impl Cache {
    pub fn insert(&mut self, key: CacheKey, entry: Entry) {
        match self.entries.get_mut(&key) {
            None => drop(self.entries.insert(key, entry)),
            Some(known) if entry.is_better_than(known) => *known = entry,
            Some(_) => {}
        }
    }
}

/// Reads one segment, wherever it lies, and gives each whole line to `each`, in order. Returns how many lines were damaged.
/// Only one line is in memory at a time.
pub fn read_segment(segment: impl Read, mut each: impl FnMut(CacheKey, Entry)) -> io::Result<u64> {
    let mut lines = Lines::new(segment, LONGEST_LINE);
    let mut damaged = 0;
    while let Some(line) = lines.next()? {
        match line.bytes.and_then(parse) {
            Some((key, entry)) => each(key, entry),
            None => damaged += 1,
        }
    }
    Ok(damaged)
}

/// Reads all segments of a folder; one that does not exist has none.
pub fn read_folder(folder: &Path) -> Result<Cache, JournalError> {
    /// Segments go away only when they are merged, and then what they held is in another one, which a new listing has.
    const TRIES: usize = 10;
    for _ in 1..TRIES {
        if let Some(cache) = read_once(folder)? {
            return Ok(cache);
        }
    }
    let gone = io::Error::new(io::ErrorKind::NotFound, "its files go away while they are read");
    Err(JournalError::io("read the journal", folder)(gone))
}

/// Nothing, if a segment has gone away since they were listed.
fn read_once(folder: &Path) -> Result<Option<Cache>, JournalError> {
    let mut cache = Cache::default();
    for attempt in attempts(folder)? {
        let path = folder.join(format!("{attempt}{ENDING}"));
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(JournalError::io("open", &path)(error)),
        };
        cache.damaged +=
            read_segment(file, |key, entry| cache.insert(key, entry)).map_err(JournalError::io("read", &path))?;
        cache.segments += 1;
    }
    Ok(Some(cache))
}

/// The attempts that have a segment, sorted.
fn attempts(folder: &Path) -> Result<Vec<String>, JournalError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(JournalError::io("list", folder)(error)),
    };
    let mut attempts = Vec::new();
    for entry in entries {
        let name = entry.map_err(JournalError::io("list", folder))?.file_name();
        let attempt = name.to_str().and_then(|name| name.strip_suffix(ENDING));
        // What begins with a dot is being written.
        attempts.extend(attempt.filter(|attempt| !attempt.starts_with('.')).map(str::to_owned));
    }
    attempts.sort_unstable();
    Ok(attempts)
}

/// Answers as a segment, for whoever has many of them at once: whole or not at all, so it may be stored by one call. Those that
/// are too long to be read back are left out, and counted.
pub fn segment_of<'a>(answers: impl IntoIterator<Item = (&'a CacheKey, &'a Entry)>) -> (Vec<u8>, u64) {
    let (mut segment, mut too_long) = (Vec::new(), 0);
    for (key, entry) in answers {
        let line = line(key, entry);
        if line.len() > LONGEST_LINE {
            too_long += 1;
        } else {
            segment.extend(line);
        }
    }
    (segment, too_long)
}

/// What [`compact`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Segments that were merged into one, and are gone.
    pub segments: usize,
    pub kept: usize,
    /// Answers that nobody wanted.
    pub dropped: usize,
    /// Damaged lines, which are gone too.
    pub damaged: u64,
}

/// Merges a folder's segments into the segment of `attempt`, with those answers that `keep` wants, sorted by key.
///
/// Segments of attempts that are `at_work` stay as they are, since more may come there. The merged segment is there, whole and
/// durable, before any other goes; what ends this halfway leaves answers twice, never fewer.
pub fn compact(
    folder: &Path,
    attempt: &str,
    at_work: impl Fn(&str) -> bool,
    keep: impl Fn(&CacheKey) -> bool,
) -> Result<Compacted, JournalError> {
    let merged = segment_path(folder, attempt)?;
    let mut cache = Cache::default();
    let mut old = Vec::new();
    for name in attempts(folder)?.into_iter().filter(|name| name == attempt || !at_work(name)) {
        let path = folder.join(format!("{name}{ENDING}"));
        let file = File::open(&path).map_err(JournalError::io("open", &path))?;
        cache.damaged +=
            read_segment(file, |key, entry| cache.insert(key, entry)).map_err(JournalError::io("read", &path))?;
        old.push(path);
    }
    let all = cache.entries.len();
    let kept: BTreeMap<_, _> = cache.entries.iter().filter(|(key, _)| keep(key)).collect();
    if !kept.is_empty() {
        let bytes: Vec<u8> = kept.iter().flat_map(|(key, entry)| line(key, entry)).collect();
        disk::replace(&merged, &bytes)?;
    }
    for path in old.iter().filter(|path| **path != merged || kept.is_empty()) {
        disk::remove(path)?;
    }
    Ok(Compacted { segments: old.len(), kept: kept.len(), dropped: all - kept.len(), damaged: cache.damaged })
}

/// Where the segment of `attempt` lies.
pub(super) fn segment_path(folder: &Path, attempt: &str) -> Result<std::path::PathBuf, JournalError> {
    let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if attempt.is_empty() || attempt.starts_with('.') || !is_name(attempt) {
        return Err(JournalError::Attempt(attempt.to_owned()));
    }
    Ok(folder.join(format!("{attempt}{ENDING}")))
}
