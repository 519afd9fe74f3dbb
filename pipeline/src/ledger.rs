//! The ledger of a stage: a cache of its sidecars in one file, so that looking at a stage costs one listing and one read,
//! not a request a partition. It can be rebuilt from the sidecars at any time.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shards::ShardError;
use shards::commit::{StageFolder, replace};
use shards::sidecar::{FORMAT, Sidecar};

const FILE: &str = "ledger.json";

/// All committed partitions of one stage, of this and earlier configurations.
#[derive(Debug)]
pub struct Ledger {
    folder: StageFolder,
    /// By file name.
    sidecars: BTreeMap<String, Arc<Sidecar>>,
    changed: bool,
}

#[derive(Serialize, Deserialize)]
struct File {
    format: u32,
    sidecars: BTreeMap<String, Arc<Sidecar>>,
}

impl Ledger {
    /// Reads the ledger and brings it up to date with the folder's listing.
    pub fn read(folder: StageFolder) -> Result<Self, ShardError> {
        // A ledger that is damaged, or of another version, is no loss: the sidecars say the same.
        let cached = fs::read(folder.path().join(FILE)).ok();
        let cached =
            cached.and_then(|bytes| serde_json::from_slice::<File>(&bytes).ok()).filter(|f| f.format == FORMAT);
        let mut cached = cached.map(|file| file.sidecars).unwrap_or_default();
        let names = folder.sidecar_names()?;
        let listed: HashSet<&String> = names.iter().collect();
        let before = cached.len();
        cached.retain(|name, _| listed.contains(name));
        let mut ledger = Self { changed: cached.len() != before, sidecars: cached, folder };
        for name in names {
            if !ledger.sidecars.contains_key(&name) {
                let sidecar = ledger.folder.read(&name)?;
                ledger.sidecars.insert(name, Arc::new(sidecar));
                ledger.changed = true;
            }
        }
        Ok(ledger)
    }

    pub fn folder(&self) -> &StageFolder {
        &self.folder
    }

    /// The record of `partition` with exactly this fingerprint, if its data is still there.
    pub fn find(&self, partition: &str, fingerprint: &shards::digest::Digest) -> Option<&Arc<Sidecar>> {
        let name = format!("{partition}.{}.json", fingerprint.short());
        let sidecar = self.sidecars.get(&name).filter(|s| s.fingerprint == *fingerprint)?;
        let complete = sidecar.data.iter().all(|file| self.folder.path().join(&file.file).exists());
        complete.then_some(sidecar)
    }

    /// The most recent record of `partition`, of whatever configuration.
    pub fn newest(&self, partition: &str) -> Option<&Arc<Sidecar>> {
        self.sidecars.values().filter(|s| s.partition == partition).max_by_key(|s| s.finished_at)
    }

    pub fn sidecars(&self) -> impl Iterator<Item = &Sidecar> {
        self.sidecars.values().map(AsRef::as_ref)
    }

    /// Adds a record that was just committed.
    pub fn add(&mut self, sidecar: Arc<Sidecar>) {
        self.sidecars.insert(sidecar.file_name(), sidecar);
        self.changed = true;
    }

    /// Removes records whose data is gone, so that their partitions can be made again. Only under the workdir's lease.
    pub fn retract_incomplete(&mut self) -> Result<usize, ShardError> {
        let path = self.folder.path().to_owned();
        let incomplete: Vec<String> = self
            .sidecars
            .iter()
            .filter(|(_, s)| s.data.iter().any(|file| !path.join(&file.file).exists()))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &incomplete {
            let sidecar = path.join(name);
            fs::remove_file(&sidecar).map_err(ShardError::io("remove", &sidecar))?;
            self.sidecars.remove(name);
            self.changed = true;
        }
        Ok(incomplete.len())
    }

    /// Writes the ledger, if it changed and there is a folder to hold it.
    pub fn save(&mut self) -> Result<(), ShardError> {
        if self.changed && self.folder.path().exists() {
            let path = self.folder.path().join(FILE);
            let file = File { format: FORMAT, sidecars: self.sidecars.clone() };
            let bytes = serde_json::to_vec(&file).map_err(|e| ShardError::Record {
                path: path.clone(),
                what: "ledger",
                detail: e.to_string(),
            })?;
            replace(&path, &bytes)?;
            self.changed = false;
        }
        Ok(())
    }
}
