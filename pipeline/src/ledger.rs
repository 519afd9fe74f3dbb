//! The ledger of a stage: a cache of its sidecars in one file, so that looking at a stage costs one listing and one read,
//! not a request a partition. It can be rebuilt from the sidecars at any time.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::ShardError;
use shards::commit::{Listing, StageFolder};
use shards::digest::Digest;
use shards::sidecar::{FORMAT, Sidecar};

const FILE: &str = "ledger.json";

/// All committed partitions of one stage, of this and earlier configurations.
#[derive(Debug)]
pub struct Ledger {
    folder: StageFolder,
    /// By file name.
    sidecars: BTreeMap<String, Arc<Sidecar>>,
    listing: Listing,
    changed: bool,
}

#[derive(Deserialize)]
struct File {
    format: u32,
    sidecars: BTreeMap<String, Arc<Sidecar>>,
}

#[derive(Serialize)]
struct FileRef<'a> {
    format: u32,
    sidecars: &'a BTreeMap<String, Arc<Sidecar>>,
}

impl Ledger {
    /// Reads the ledger and brings it up to date with the folder's listing.
    pub fn read(folder: StageFolder) -> Result<Self, ShardError> {
        // A ledger that is damaged, or of another version, is no loss: the sidecars say the same.
        let cached = folder.workdir().read(&folder.name_of(FILE)).ok().flatten();
        let cached =
            cached.and_then(|bytes| serde_json::from_slice::<File>(&bytes).ok()).filter(|f| f.format == FORMAT);
        let sidecars = cached.map(|file| file.sidecars).unwrap_or_default();
        let mut ledger = Self { folder, sidecars, listing: Listing::default(), changed: false };
        ledger.refresh()?;
        ledger.share_parameters();
        Ok(ledger)
    }

    /// Looks at the folder again; returns the records that are new.
    pub fn refresh(&mut self) -> Result<Vec<Arc<Sidecar>>, ShardError> {
        self.listing = self.folder.listing()?;
        let listed: HashSet<&String> = self.listing.sidecars.iter().collect();
        let before = self.sidecars.len();
        self.sidecars.retain(|name, _| listed.contains(name));
        self.changed |= self.sidecars.len() != before;
        let unknown: Vec<String> =
            self.listing.sidecars.iter().filter(|name| !self.sidecars.contains_key(*name)).cloned().collect();
        let mut new = Vec::new();
        for (name, sidecar) in self.folder.read_all(&unknown)? {
            let sidecar = Arc::new(sidecar);
            new.push(Arc::clone(&sidecar));
            self.sidecars.insert(name, sidecar);
            self.changed = true;
        }
        Ok(new)
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
        self.sidecars.insert(sidecar.file_name(), sidecar);
        self.changed = true;
    }

    /// Removes records whose data is gone, so that their partitions can be made again.
    pub fn retract_incomplete(&mut self) -> Result<usize, ShardError> {
        let incomplete: Vec<String> =
            self.sidecars.iter().filter(|(_, s)| !self.is_complete(s)).map(|(name, _)| name.clone()).collect();
        for name in &incomplete {
            self.retract(name)?;
        }
        Ok(incomplete.len())
    }

    /// Takes one record back.
    pub fn retract(&mut self, name: &str) -> Result<(), ShardError> {
        self.folder.retract(name)?;
        self.sidecars.remove(name);
        self.changed = true;
        Ok(())
    }

    /// Writes the ledger, if it changed and there is something to hold.
    pub fn save(&mut self) -> Result<(), ShardError> {
        if self.changed && !self.sidecars.is_empty() {
            let name = self.folder.name_of(FILE);
            let bytes = serde_json::to_vec(&FileRef { format: FORMAT, sidecars: &self.sidecars })
                .map_err(|e| ShardError::Record { path: name.clone().into(), what: "ledger", detail: e.to_string() })?;
            self.folder.workdir().replace(&name, &bytes)?;
            self.changed = false;
        }
        Ok(())
    }
}
