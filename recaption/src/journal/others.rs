//! What the journals of other partitions hold.
//!
//! There is no telling where a row was before, so all that they hold is looked through, once a process, at the first question
//! that a partition's own journal does not answer; of it only keys and places stay in memory. That takes as long as reading those
//! journals, so whoever opens them names only partitions that have lost rows: in a job whose rows are where they always were there are
//! none, and nothing is listed or read, however many workers come and go.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use shards::storage::{self, Workdir};
use tokio::sync::Mutex;

use super::JournalError;
use super::entry::{CacheKey, Entry, LONGEST_LINE, key_of, parse};
use super::segment::ENDING;
use crate::lines::Lines;

/// Journals of more partitions than these are found by one listing of all there are.
const FEW: usize = 64;
/// Bytes of segments on a store that are read beside each other, and of those that stay in memory: the next row's answer is mostly
/// beside the last one's.
const HELD: u64 = 64 << 20;

/// The journals of partitions that may hold answers for rows of other ones. Clones share what they know.
#[derive(Clone)]
pub struct Others(Arc<Mutex<Reading>>);

impl Others {
    /// The journals of `partitions`, in the folder `journals` of the workdir. None of them is looked at before it is needed.
    pub fn new(workdir: &Workdir, journals: String, partitions: Vec<String>) -> Self {
        let workdir = workdir.clone();
        let reading = Reading { workdir, journals, partitions, index: None, held: VecDeque::new() };
        Self(Arc::new(Mutex::new(reading)))
    }

    /// The answer that one of them has to the question of this key. Within a tokio runtime.
    pub async fn find(&self, key: &CacheKey) -> Result<Option<Entry>, JournalError> {
        let mut reading = Arc::clone(&self.0).lock_owned().await;
        let (key, path) = (*key, reading.workdir.path(&reading.journals));
        // It goes when nobody waits for this any more, as when the run is interrupted.
        let waiting = Arc::new(());
        let is_awaited = Arc::downgrade(&waiting);
        let found = tokio::task::spawn_blocking(move || reading.find(&key, || is_awaited.strong_count() > 0)).await;
        drop(waiting);
        found.unwrap_or_else(|_died| Err(JournalError::Closed { path }))
    }
}

struct Reading {
    workdir: Workdir,
    journals: String,
    partitions: Vec<String>,
    /// There from the first question on.
    index: Option<Index>,
    /// Segments on a store that were read last, by their numbers; the last one at the end.
    held: VecDeque<(u32, Vec<u8>)>,
}

/// Where answers lie.
struct Index {
    /// Within the workdir.
    segments: Vec<String>,
    /// Sorted. 16 bytes an answer: 32 MB for a million rows with two captions each.
    places: Vec<Place>,
}

/// Where an answer lies. Of a segment that is larger than 4 GiB, which would be that of a partition of millions of rows, only the beginning
/// is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// See [`CacheKey::prefix`]. Whether it is the key says the line.
    key: u64,
    segment: u32,
    /// The line's first byte.
    at: u32,
}

impl Reading {
    fn find(&mut self, key: &CacheKey, is_awaited: impl Fn() -> bool) -> Result<Option<Entry>, JournalError> {
        let index = match self.index.take() {
            Some(index) => index,
            None => self.look_through(is_awaited)?,
        };
        let found = self.look_up(key, &index);
        self.index = Some(index);
        found
    }

    /// Of several answers, that which a partition's own journal would give: see [`super::Cache::entries`].
    fn look_up(&mut self, key: &CacheKey, index: &Index) -> Result<Option<Entry>, JournalError> {
        let prefix = key.prefix();
        let first = index.places.partition_point(|place| place.key < prefix);
        let mut best: Option<Entry> = None;
        for place in index.places.iter().skip(first).take_while(|place| place.key == prefix) {
            let Some(segment) = index.segments.get(place.segment as usize) else { continue };
            match self.read(*place, segment)?.filter(|(of, _)| of == key) {
                Some((_, Entry::Completion(completion))) => return Ok(Some(Entry::Completion(completion))),
                Some((_, refused)) => best = best.or(Some(refused)),
                // It has gone meanwhile, is damaged, or is another question's.
                None => {}
            }
        }
        Ok(best)
    }

    /// The answer at a place, if it is still there and whole.
    fn read(&mut self, place: Place, segment: &str) -> Result<Option<(CacheKey, Entry)>, JournalError> {
        let path = self.workdir.path(segment);
        if self.workdir.is_remote() {
            let line = self.stored(place.segment, segment)?.and_then(|bytes| bytes.get(place.at as usize..));
            return line.map_or(Ok(None), |line| first_answer(line, &path));
        }
        let Some(mut file) = open(&path)? else { return Ok(None) };
        file.seek(SeekFrom::Start(place.at.into())).map_err(JournalError::io("read", &path))?;
        first_answer(file, &path)
    }

    /// A segment on a store.
    fn stored(&mut self, number: u32, segment: &str) -> Result<Option<&[u8]>, JournalError> {
        if !self.held.iter().any(|(held, _)| *held == number) {
            let Some(bytes) = self.workdir.read(segment)? else { return Ok(None) };
            let room = HELD.saturating_sub(bytes.len() as u64);
            while self.held.iter().map(|(_, held)| held.len() as u64).sum::<u64>() > room {
                self.held.pop_front();
            }
            self.held.push_back((number, bytes));
        }
        Ok(self.held.iter().find(|(held, _)| *held == number).map(|(_, bytes)| bytes.as_slice()))
    }

    fn look_through(&self, is_awaited: impl Fn() -> bool) -> Result<Index, JournalError> {
        let is_remote = self.workdir.is_remote();
        let mut index = Index { segments: Vec::new(), places: Vec::new() };
        let segments = self.segments()?;
        let mut rest = segments.as_slice();
        while !rest.is_empty() {
            if !is_awaited() {
                let path = self.workdir.path(&self.journals);
                return Err(JournalError::io("look through", &path)(io::ErrorKind::Interrupted.into()));
            }
            // Of a store, reading one after the other would take hours.
            let mut bytes = 0;
            let fits = |segment: &&storage::Entry| {
                bytes += segment.bytes;
                bytes <= HELD
            };
            let count = if is_remote { rest.iter().take_while(fits).count().max(1) } else { 1 };
            let (now, later) = rest.split_at(count);
            rest = later;
            let names: Vec<String> = now.iter().map(|segment| segment.name.clone()).collect();
            if is_remote {
                for (name, stored) in names.iter().zip(self.workdir.read_all(&names)?) {
                    let path = self.workdir.path(name);
                    index.add(name, stored.unwrap_or_default().as_slice()).map_err(JournalError::io("read", &path))?;
                }
            } else {
                for name in &names {
                    let path = self.workdir.path(name);
                    if let Some(file) = open(&path)? {
                        index.add(name, file).map_err(JournalError::io("read", &path))?;
                    }
                }
            }
        }
        index.places.sort_unstable();
        Ok(index)
    }

    /// The segments of the journals, by partition and attempt; names are within the workdir.
    fn segments(&self) -> Result<Vec<storage::Entry>, JournalError> {
        let mut segments = Vec::new();
        let mut add = |folder: &str, entry: storage::Entry| {
            let file = entry.name.rsplit('/').next().unwrap_or_default();
            // What begins with a dot is being written.
            if file.ends_with(ENDING) && !file.starts_with('.') {
                segments.push(storage::Entry { name: format!("{folder}/{}", entry.name), ..entry });
            }
        };
        if self.partitions.len() <= FEW {
            for partition in &self.partitions {
                let folder = format!("{}/{partition}", self.journals);
                self.workdir.list(&folder, false)?.into_iter().for_each(|entry| add(&folder, entry));
            }
        } else {
            let wanted: HashSet<&str> = self.partitions.iter().map(String::as_str).collect();
            let is_wanted =
                |entry: &storage::Entry| entry.name.split_once('/').is_some_and(|(of, _)| wanted.contains(of));
            let all = self.workdir.list(&self.journals, true)?;
            all.into_iter().filter(is_wanted).for_each(|entry| add(&self.journals, entry));
        }
        Ok(segments)
    }
}

impl Index {
    /// Takes up the answers of a segment, damaged ones too: those are found out when they are read.
    fn add(&mut self, name: &str, bytes: impl Read) -> io::Result<()> {
        let segment = self.segments.len() as u32;
        self.segments.push(name.to_owned());
        let mut lines = Lines::new(bytes, LONGEST_LINE);
        while let Some(line) = lines.next()? {
            if let (Some(key), Ok(at)) = (line.bytes.and_then(key_of), u32::try_from(line.at)) {
                self.places.push(Place { key: key.prefix(), segment, at });
            }
        }
        Ok(())
    }
}

/// A segment on this machine; nothing where it is not there any more.
fn open(path: &Path) -> Result<Option<File>, JournalError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(JournalError::io("open", path)(error)),
    }
}

/// The answer in the first line, if that is whole.
fn first_answer(lines: impl Read, path: &Path) -> Result<Option<(CacheKey, Entry)>, JournalError> {
    let mut lines = Lines::new(lines, LONGEST_LINE);
    let line = lines.next().map_err(JournalError::io("read", path))?;
    Ok(line.and_then(|line| line.bytes).and_then(parse))
}
