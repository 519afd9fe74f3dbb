//! The ledger of a stage: a cache of its sidecars in a few files, so that looking at a stage costs one listing and a few reads,
//! not a request a partition. It can be rebuilt from the sidecars at any time.
//!
//! Each process that commits writes what it has added as files of its own, `ledger.<unique>.json`, so that many of them on one stage
//! never write what another has written, nor over it. A run that finds many such files puts them together.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::ShardError;
use shards::commit::{Listing, StageFolder};
use shards::digest::Digest;
use shards::disk::unique;
use shards::sidecar::{FORMAT, Sidecar};

const PREFIX: &str = "ledger.";
/// So many files of its own a process puts together to one.
const OWN: usize = 16;
/// So many files of all a run puts together when it starts.
const ALL: usize = 64;

/// All committed partitions of one stage, of this and earlier configurations.
#[derive(Debug)]
pub struct Ledger {
    folder: StageFolder,
    /// By file name.
    sidecars: BTreeMap<String, Arc<Sidecar>>,
    listing: Listing,
    /// The cache's files that were read or written here.
    files: BTreeSet<String>,
    /// Those of them that were written here, and what they hold.
    own: BTreeSet<String>,
    saved: BTreeSet<String>,
    /// Records that no file of the cache holds.
    unsaved: BTreeSet<String>,
}

#[derive(Deserialize)]
struct File {
    format: u32,
    sidecars: BTreeMap<String, Arc<Sidecar>>,
}

#[derive(Serialize)]
struct FileRef<'a> {
    format: u32,
    sidecars: BTreeMap<&'a String, &'a Arc<Sidecar>>,
}

impl Ledger {
    /// Reads the ledger and brings it up to date with the folder's listing.
    pub fn read(folder: StageFolder) -> Result<Self, ShardError> {
        let mut ledger = Self {
            folder,
            sidecars: BTreeMap::new(),
            listing: Listing::default(),
            files: BTreeSet::new(),
            own: BTreeSet::new(),
            saved: BTreeSet::new(),
            unsaved: BTreeSet::new(),
        };
        ledger.refresh()?;
        ledger.share_parameters();
        Ok(ledger)
    }

    /// Looks at the folder again; returns the records that are new.
    pub fn refresh(&mut self) -> Result<Vec<Arc<Sidecar>>, ShardError> {
        self.listing = self.folder.listing()?;
        let listed: HashSet<String> = self.listing.sidecars.iter().cloned().collect();
        self.sidecars.retain(|name, _| listed.contains(name));
        let mut new = Vec::new();
        if self.unknown().next().is_some() {
            new.extend(self.read_cache(&listed));
        }
        let unknown: Vec<String> = self.unknown().cloned().collect();
        for (name, sidecar) in self.folder.read_all(&unknown)? {
            let sidecar = Arc::new(sidecar);
            new.push(Arc::clone(&sidecar));
            self.unsaved.insert(name.clone());
            self.sidecars.insert(name, sidecar);
        }
        Ok(new)
    }

    /// Names of records that are there, but not known here.
    fn unknown(&self) -> impl Iterator<Item = &String> {
        self.listing.sidecars.iter().filter(|name| !self.sidecars.contains_key(*name))
    }

    /// Reads the cache's files that have come since it was read last; returns the records that are new.
    fn read_cache(&mut self, listed: &HashSet<String>) -> Vec<Arc<Sidecar>> {
        let is_new =
            |name: &&String| name.starts_with(PREFIX) && name.ends_with(".json") && !self.files.contains(*name);
        let names: Vec<String> = self.listing.files.keys().filter(is_new).cloned().collect();
        let paths: Vec<String> = names.iter().map(|name| self.folder.name_of(name)).collect();
        // What is damaged, of another version or gone is no loss: the sidecars say the same.
        let contents = self.folder.workdir().read_all(&paths).unwrap_or_default();
        let mut new: BTreeMap<String, Option<Arc<Sidecar>>> = BTreeMap::new();
        for (name, bytes) in names.into_iter().zip(contents) {
            self.files.insert(name);
            let file =
                bytes.and_then(|bytes| serde_json::from_slice::<File>(&bytes).ok()).filter(|f| f.format == FORMAT);
            let found = file.into_iter().flat_map(|file| file.sidecars);
            for (name, sidecar) in found.filter(|(name, _)| listed.contains(name)) {
                match new.entry(name) {
                    Entry::Vacant(entry) => {
                        entry.insert(Some(sidecar));
                    }
                    // Of two that differ one was taken back: the record itself says which.
                    Entry::Occupied(mut entry) => {
                        if entry.get().as_ref().is_some_and(|known| !is_same(known, &sidecar)) {
                            entry.insert(None);
                        }
                    }
                }
            }
        }
        new.retain(|name, _| !self.sidecars.contains_key(name));
        let new = new.into_iter().filter_map(|(name, sidecar)| Some((name, sidecar?)));
        let new: Vec<(String, Arc<Sidecar>)> = new.collect();
        self.sidecars.extend(new.iter().cloned());
        new.into_iter().map(|(_, sidecar)| sidecar).collect()
    }

    /// A stage's records mostly hold the same parameters: once in memory is enough.
    fn share_parameters(&mut self) {
        let mut known: Vec<Arc<Value>> = Vec::new();
        for sidecar in self.sidecars.values_mut() {
            match known.iter().find(|parameters| **parameters == sidecar.parameters) {
                Some(same) => {
                    if let Some(sidecar) = Arc::get_mut(sidecar) {
                        sidecar.parameters = Arc::clone(same);
                    }
                }
                None => known.push(Arc::clone(&sidecar.parameters)),
            }
        }
    }

    pub fn folder(&self) -> &StageFolder {
        &self.folder
    }

    /// The record of `partition` with exactly this fingerprint, if its data is still there.
    pub fn find(&self, partition: &str, fingerprint: &Digest) -> Option<&Arc<Sidecar>> {
        let name = format!("{partition}.{}.json", fingerprint.short());
        let sidecar = self.sidecars.get(&name).filter(|s| s.fingerprint == *fingerprint)?;
        self.is_complete(sidecar).then_some(sidecar)
    }

    /// The most recent record of `partition`, of whatever configuration.
    pub fn newest(&self, partition: &str) -> Option<&Arc<Sidecar>> {
        self.newest_that(partition, |_| true)
    }

    /// The most recent record of `partition` among those that are meant.
    pub fn newest_that(&self, partition: &str, is_meant: impl Fn(&Sidecar) -> bool) -> Option<&Arc<Sidecar>> {
        let prefix = format!("{partition}.");
        let of_partition = self.sidecars.range(prefix.clone()..).take_while(|(name, _)| name.starts_with(&prefix));
        of_partition.map(|(_, sidecar)| sidecar).filter(|s| is_meant(s)).max_by_key(|s| s.finished_at)
    }

    /// Whether a record's data is still there.
    pub fn is_complete(&self, sidecar: &Sidecar) -> bool {
        sidecar.data.iter().all(|file| self.folder.holds(&self.listing, &file.file))
    }

    pub fn sidecars(&self) -> impl Iterator<Item = &Sidecar> {
        self.sidecars.values().map(AsRef::as_ref)
    }

    /// Adds a record that was just committed.
    pub fn add(&mut self, sidecar: Arc<Sidecar>) {
        self.listing.files.extend(sidecar.data.iter().map(|file| (file.file.clone(), file.bytes)));
        // Whoever made it may have written it to a file of the cache by now; twice is no harm.
        self.unsaved.insert(sidecar.file_name());
        self.sidecars.insert(sidecar.file_name(), sidecar);
    }

    /// Removes records whose data is gone, so that their partitions can be made again.
    pub fn retract_incomplete(&mut self) -> Result<usize, ShardError> {
        let incomplete: Vec<String> =
            self.sidecars.iter().filter(|(_, s)| !self.is_complete(s)).map(|(name, _)| name.clone()).collect();
        if incomplete.is_empty() {
            return Ok(0);
        }
        // The cache may hold one that has been replaced since.
        for (name, sidecar) in self.folder.read_all(&incomplete)? {
            if self.is_complete(&sidecar) {
                self.sidecars.insert(name, Arc::new(sidecar));
            }
        }
        let mut retracted = 0;
        for name in &incomplete {
            if self.sidecars.get(name).is_some_and(|sidecar| !self.is_complete(sidecar)) {
                self.folder.retract(name)?;
                self.sidecars.remove(name);
                retracted += 1;
            }
        }
        self.forget()?;
        self.unsaved = self.sidecars.keys().cloned().collect();
        Ok(retracted)
    }

    /// Takes one record back.
    pub fn retract(&mut self, name: &str) -> Result<(), ShardError> {
        self.folder.retract(name)?;
        self.sidecars.remove(name);
        self.forget()?;
        self.unsaved = self.sidecars.keys().cloned().collect();
        Ok(())
    }

    /// Removes the cache: before, or as soon as, a record is taken back, since another of its name may come. What is known here stays so,
    /// and is not saved again.
    pub fn forget(&mut self) -> Result<(), ShardError> {
        let listed = self.folder.listing()?.files.into_keys();
        let files = listed.filter(|name| name.starts_with(PREFIX) && name.ends_with(".json")).collect();
        self.saved.clear();
        self.unsaved.clear();
        self.remove(&files)
    }

    /// Writes what no file of the cache holds to one of this process; nothing where all is held.
    pub fn save(&mut self) -> Result<(), ShardError> {
        self.unsaved.retain(|name| self.sidecars.contains_key(name));
        if self.unsaved.is_empty() {
            return Ok(());
        }
        let mut names = std::mem::take(&mut self.unsaved);
        let replaced = if self.own.len() >= OWN { std::mem::take(&mut self.own) } else { BTreeSet::new() };
        if !replaced.is_empty() {
            names.append(&mut self.saved);
        }
        let written = self.write(names.iter());
        if written.is_err() {
            self.unsaved = names;
            self.own.extend(replaced);
            return written;
        }
        self.saved.append(&mut names);
        self.remove(&replaced)
    }

    /// Puts the cache's files together where they have become many. Done beside others, it costs no more than reads later.
    pub fn compact(&mut self) -> Result<(), ShardError> {
        if self.files.len() <= ALL {
            return Ok(());
        }
        let replaced = std::mem::take(&mut self.files);
        let all: Vec<String> = self.sidecars.keys().cloned().collect();
        self.write(all.iter())?;
        self.unsaved.clear();
        // It is a file of this process now, and what replaces that one day must hold as much.
        self.saved.extend(all);
        self.remove(&replaced)
    }

    fn write<'a>(&mut self, names: impl Iterator<Item = &'a String>) -> Result<(), ShardError> {
        let file = format!("{PREFIX}{}.json", unique());
        let sidecars = names.filter_map(|name| self.sidecars.get_key_value(name)).collect();
        let path = self.folder.name_of(&file);
        let bytes = serde_json::to_vec(&FileRef { format: FORMAT, sidecars }).map_err(|e| ShardError::Record {
            path: path.clone().into(),
            what: "ledger",
            detail: e.to_string(),
        })?;
        self.folder.workdir().replace(&path, &bytes)?;
        self.own.insert(file.clone());
        self.files.insert(file);
        Ok(())
    }

    fn remove(&mut self, files: &BTreeSet<String>) -> Result<(), ShardError> {
        for file in files {
            self.own.remove(file);
            self.files.remove(file);
            self.folder.workdir().remove(&self.folder.name_of(file))?;
        }
        Ok(())
    }
}

/// Whether two records of one name are of the same commit.
pub(crate) fn is_same(a: &Sidecar, b: &Sidecar) -> bool {
    let made = |sidecar: &Sidecar| (sidecar.finished_at, sidecar.output_digest());
    let files = |sidecar: &Sidecar| sidecar.data.iter().map(|file| file.file.clone()).collect::<Vec<_>>();
    made(a) == made(b) && files(a) == files(b)
}

#[cfg(test)]
mod tests {
    use shards::storage::Workdir;

    use super::*;

    fn sidecar(n: usize) -> Arc<Sidecar> {
        let text = serde_json::json!({
            "format": FORMAT, "stage": "s", "kind": "k@1", "partition": format!("part-{n:05}"),
            "fingerprint": Digest::of(&n.to_le_bytes()), "parameters": {}, "inputs": [], "data": [], "quarantine": null,
            "rows_in": n, "rows_out": n, "dropped": {}, "observed": {}, "sections": [], "details": {}, "finished_at": 0,
            "seconds": 0.0, "version": "0",
        });
        Arc::new(serde_json::from_value(text).unwrap())
    }

    fn commit(ledger: &mut Ledger, n: usize) {
        let sidecar = sidecar(n);
        ledger.folder().commit(&sidecar).unwrap();
        ledger.add(sidecar);
    }

    fn files(folder: &StageFolder) -> usize {
        folder.listing().unwrap().files.keys().filter(|name| name.starts_with(PREFIX)).count()
    }

    #[test]
    fn what_one_process_has_saved_another_does_not_read_one_by_one() {
        let place = tempfile::tempdir().unwrap();
        let folder = StageFolder::new(&Workdir::local(place.path()), "s");
        let [mut first, mut second] = [0, 1].map(|_| Ledger::read(folder.clone()).unwrap());
        for n in 0..10 {
            commit(if n % 2 == 0 { &mut first } else { &mut second }, n);
            first.save().unwrap();
            second.save().unwrap();
        }
        first.save().unwrap();
        assert_eq!(files(&folder), 10, "nothing new is not saved");
        // A record that is damaged is not looked at where the cache has it.
        std::fs::write(folder.path().join(sidecar(3).file_name()), b"damaged").unwrap();
        let read = Ledger::read(folder.clone()).unwrap();
        assert_eq!(read.sidecars().map(|s| s.rows_in).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        assert_eq!(first.refresh().unwrap().len(), 5);

        for n in 10..40 {
            commit(&mut first, n);
            first.save().unwrap();
        }
        assert!(files(&folder) <= 5 + OWN + 1, "{}", files(&folder));
        let mut read = Ledger::read(folder.clone()).unwrap();
        assert_eq!(read.sidecars().count(), 40);
        // What takes a record back takes the cache with it.
        std::fs::write(folder.path().join(sidecar(3).file_name()), serde_json::to_vec(&*sidecar(3)).unwrap()).unwrap();
        read.retract(&sidecar(7).file_name()).unwrap();
        assert_eq!(Ledger::read(folder.clone()).unwrap().sidecars().count(), 39);
    }

    #[test]
    fn of_a_record_that_was_made_again_the_cache_does_not_say_what_it_was() {
        let place = tempfile::tempdir().unwrap();
        let folder = StageFolder::new(&Workdir::local(place.path()), "s");
        let again = |at: u64| {
            let mut again = Sidecar::clone(&sidecar(3));
            again.finished_at = at;
            again
        };
        let seen = || Ledger::read(folder.clone()).unwrap().sidecars().next().unwrap().finished_at;
        let mut first = Ledger::read(folder.clone()).unwrap();
        commit(&mut first, 3);
        first.save().unwrap();
        // Another process makes it again, and saves that beside what the first has saved.
        for at in 1..20 {
            let mut other = Ledger::read(folder.clone()).unwrap();
            folder.retract(&sidecar(3).file_name()).unwrap();
            folder.commit(&again(at)).unwrap();
            other.add(Arc::new(again(at)));
            other.save().unwrap();
            assert_eq!(seen(), at);
        }
        // One that ends before it saves anything has forgotten what was there.
        let mut other = Ledger::read(folder.clone()).unwrap();
        other.forget().unwrap();
        folder.retract(&sidecar(3).file_name()).unwrap();
        folder.commit(&again(99)).unwrap();
        assert_eq!((seen(), files(&folder)), (99, 0));
    }

    #[test]
    fn many_files_are_put_together_and_damaged_ones_are_no_loss() {
        let place = tempfile::tempdir().unwrap();
        let folder = StageFolder::new(&Workdir::local(place.path()), "s");
        for n in 0..=ALL {
            let mut ledger = Ledger::read(folder.clone()).unwrap();
            commit(&mut ledger, n);
            ledger.save().unwrap();
        }
        assert_eq!(files(&folder), ALL + 1);
        std::fs::write(folder.path().join("ledger.x.json"), b"{").unwrap();
        let mut ledger = Ledger::read(folder.clone()).unwrap();
        ledger.compact().unwrap();
        assert_eq!(files(&folder), 1);
        assert_eq!(Ledger::read(folder.clone()).unwrap().sidecars().count(), ALL + 1);
        ledger.compact().unwrap();
        assert_eq!(files(&folder), 1);
    }
}
