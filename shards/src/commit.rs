//! The one commit protocol.
//!
//! ```text
//! stages/bucket/
//!     part-00012.<runner>-1.parquet       data of one attempt: written, synced, closed
//!     part-00012.5b0e7f31.json            the sidecar: created only if absent; it alone commits
//!     quarantine/part-00012.<runner>-1.parquet
//!     lease/part-00012.5b0e7f31.1         who is making it: see [`crate::lease`]
//! ```
//!
//! A reader follows sidecars, so it never sees half a shard. Data that no sidecar names is a loser's or a dead process's
//! and is swept when the next run starts. What is made again although it is there has a record of the same name, which takes
//! the old one's place in one step: see [`StageFolder::replace`].

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::{create_folder, remove, sync_parent};
use crate::range_cache::RangeCache;
use crate::ranges::Ranges;
use crate::sidecar::{DataFile, Sidecar};
use crate::storage::{Entry, Workdir};
use crate::{ShardError, disk};

/// The folder of one stage in a workdir.
#[derive(Clone, Debug)]
pub struct StageFolder {
    workdir: Workdir,
    /// Relative to the workdir.
    name: String,
}

/// One try at producing a partition: names its files so that no two tries collide.
#[derive(Clone, Debug)]
pub struct Attempt {
    folder: PathBuf,
    partition: String,
    id: String,
}

/// How a commit ended.
#[derive(Debug)]
pub enum Commit {
    /// This attempt's sidecar is the partition's.
    Won,
    /// Another process committed the same fingerprint first; its record stands and this attempt's data was removed.
    Lost(Box<Sidecar>),
}

/// What a stage's folder holds, as of one listing.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Names of sidecars, sorted.
    pub sidecars: Vec<String>,
    /// Every other file of the folder itself, with its size.
    pub files: HashMap<String, u64>,
}

impl StageFolder {
    pub fn new(workdir: &Workdir, stage: &str) -> Self {
        Self { workdir: workdir.clone(), name: format!("stages/{stage}") }
    }

    /// The stage folder at the local path `path` itself.
    pub fn at(path: &Path) -> Self {
        let workdir = Workdir::local(path.parent().unwrap_or(Path::new("")));
        Self { workdir, name: path.file_name().unwrap_or_default().to_string_lossy().into_owned() }
    }

    pub fn workdir(&self) -> &Workdir {
        &self.workdir
    }

    /// Where it lies on this machine.
    pub fn path(&self) -> PathBuf {
        self.workdir.path(&self.name)
    }

    /// The name of a file of this folder within the workdir.
    pub fn name_of(&self, file: &str) -> String {
        format!("{}/{file}", self.name)
    }

    /// Brings a committed file to this machine, unless it is there; returns its path.
    pub fn fetch(&self, file: &DataFile) -> Result<PathBuf, ShardError> {
        self.workdir.fetch(&self.name, file)
    }

    /// A committed file for reading parts of it: see [`crate::storage::Storage::ranges`].
    pub fn ranges(&self, file: &DataFile, cache: Option<&Arc<RangeCache>>) -> Result<Arc<dyn Ranges>, ShardError> {
        self.workdir.ranges(&self.name_of(&file.file), file, cache)
    }

    /// Brings a partition's data and record to this machine, for readers that follow sidecars by themselves.
    pub fn fetch_partition(&self, sidecar: &Sidecar) -> Result<(), ShardError> {
        for file in &sidecar.data {
            self.fetch(file)?;
        }
        let record = self.path().join(sidecar.file_name());
        if self.workdir.is_remote() && !record.exists() {
            disk::replace(&record, &serialized(sidecar, &record)?)?;
        }
        Ok(())
    }

    /// A new attempt of `runner` at `partition`; creates the folders it may write to.
    pub fn attempt(&self, partition: &str, runner: &str) -> Result<Attempt, ShardError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let folder = self.path();
        create_folder(&folder.join("quarantine"))?;
        let id = format!("{runner}-{:x}", COUNTER.fetch_add(1, Ordering::Relaxed));
        Ok(Attempt { folder, partition: partition.to_owned(), id })
    }

    /// Commits: from here on the sidecar's data is the partition's output. All its files must be synced and closed.
    pub fn commit(&self, sidecar: &Sidecar) -> Result<Commit, ShardError> {
        let name = sidecar.file_name();
        let path = self.path().join(&name);
        let bytes = serialized(sidecar, &path)?;
        // Before anything goes where readers look for it: files that are named alike in every attempt would take the winner's place.
        if let Some(winner) = self.workdir.read(&self.name_of(&name))? {
            return Ok(self.lose_to(Sidecar::parse(&winner, &path)?, sidecar));
        }
        self.publish(sidecar)?;
        if self.workdir.create_if_absent(&self.name_of(&name), &bytes)? {
            return Ok(Commit::Won);
        }
        Ok(self.lose_to(self.read(&name)?, sidecar))
    }

    /// Clears away the data of `sidecar`, but for what `winner` names.
    fn lose_to(&self, winner: Sidecar, sidecar: &Sidecar) -> Commit {
        let kept: HashMap<&str, &DataFile> = described(&winner).map(|file| (file.file.as_str(), file)).collect();
        for file in described(sidecar) {
            match kept.get(file.file.as_str()) {
                None => {
                    let _ = self.workdir.remove(&self.name_of(&file.file));
                }
                Some(won) if self.workdir.is_remote() && won.digest != file.digest => {
                    // What lies here would be taken for a copy of what the winner stored under that name.
                    let _ = remove(&self.path().join(&file.file));
                }
                Some(_) => {}
            }
        }
        Commit::Lost(Box::new(winner))
    }

    /// As [`StageFolder::commit`], for a partition that is made again although it is there: in place of the record of the same name,
    /// if there is one. That record stands until the new data is where it is to be, and then gives way in one step, so that whoever
    /// ends on the way loses nothing.
    pub fn replace(&self, sidecar: &Sidecar) -> Result<(), ShardError> {
        let name = sidecar.file_name();
        let path = self.path().join(&name);
        let bytes = serialized(sidecar, &path)?;
        if let Some(old) = self.workdir.read(&self.name_of(&name))?
            && Sidecar::parse(&old, &path).map_or(true, |old| overwrites(sidecar, &old))
        {
            // A record must not name what it does not describe. (One that is damaged describes nothing.)
            self.retract(&name)?;
        }
        self.publish(sidecar)?;
        if self.workdir.is_remote() {
            // A copy that readers here may have would outlive what it is a copy of.
            remove(&path)?;
        }
        self.workdir.replace(&self.name_of(&name), &bytes)
    }

    /// Takes what the sidecar names to where readers look for it.
    fn publish(&self, sidecar: &Sidecar) -> Result<(), ShardError> {
        if self.workdir.is_remote() {
            return files(sidecar).try_for_each(|file| self.workdir.publish(&self.name_of(file)));
        }
        if let Some(refused) = &sidecar.quarantine {
            // It lies in a folder of its own.
            sync_parent(&self.path().join(&refused.file))?;
        }
        if files(sidecar).next().is_some() {
            sync_parent(&self.path().join(sidecar.file_name()))?;
        }
        Ok(())
    }

    /// Takes a record back: its partition counts as not made. The data stays until it is swept.
    pub fn retract(&self, name: &str) -> Result<(), ShardError> {
        self.workdir.remove(&self.name_of(name))
    }

    /// Takes back the records of `partition` that name any of `names`, relative to this folder: what is about to be written under
    /// those names is no longer theirs.
    pub fn retract_that_name(&self, partition: &str, names: &[String]) -> Result<(), ShardError> {
        let prefix = format!("{partition}.");
        let records = self.listing()?.sidecars.into_iter().filter(|name| name.starts_with(&prefix));
        for (name, sidecar) in self.read_all(&records.collect::<Vec<_>>())? {
            if files(&sidecar).any(|file| names.iter().any(|name| name == file)) {
                self.retract(&name)?;
            }
        }
        Ok(())
    }

    /// What is there. One listing, no reads.
    pub fn listing(&self) -> Result<Listing, ShardError> {
        let mut listing = Listing::default();
        for Entry { name, bytes, .. } in self.workdir.list(&self.name, false)? {
            if name.starts_with("part-") && name.ends_with(".json") {
                listing.sidecars.push(name);
            } else {
                listing.files.insert(name, bytes);
            }
        }
        Ok(listing)
    }

    /// Whether a committed file is there. The listing knows most; files in folders below, and those that came while it was
    /// made, need a look of their own.
    pub fn holds(&self, listing: &Listing, file: &str) -> bool {
        // What cannot be looked at will say so when it is read.
        listing.files.contains_key(file) || self.workdir.exists(&self.name_of(file)).unwrap_or(true)
    }

    /// Reads one sidecar by name.
    pub fn read(&self, name: &str) -> Result<Sidecar, ShardError> {
        let path = self.path().join(name);
        let found = self.workdir.read(&self.name_of(name))?;
        let bytes = found.ok_or_else(|| ShardError::io("read", &path)(std::io::ErrorKind::NotFound.into()))?;
        Sidecar::parse(&bytes, &path)
    }

    /// Reads sidecars by name; those that went away since they were listed are left out.
    pub fn read_all(&self, names: &[String]) -> Result<Vec<(String, Sidecar)>, ShardError> {
        let paths: Vec<String> = names.iter().map(|name| self.name_of(name)).collect();
        let contents = self.workdir.read_all(&paths)?;
        let found = names.iter().zip(contents).filter_map(|(name, bytes)| Some((name, bytes?)));
        found.map(|(name, bytes)| Ok((name.clone(), Sidecar::parse(&bytes, &self.path().join(name))?))).collect()
    }

    /// Removes what dead or losing attempts left: data files that none of `sidecars` names, and staging files, unless
    /// their runner still works here, as `living` says, or has committed them since. Returns how many files went.
    ///
    /// The order is what makes it safe beside other runs: a file that is listed, whose runner is then not alive, and that
    /// no record names after that, is nobody's.
    pub fn sweep<'a>(
        &self,
        sidecars: impl Iterator<Item = &'a Sidecar>,
        living: impl FnOnce() -> Result<HashSet<String>, ShardError>,
    ) -> Result<usize, ShardError> {
        let kept: HashSet<&str> = sidecars.flat_map(files).collect();
        let mut orphans = Vec::new();
        let mut staging = Vec::new();
        for folder in ["", "quarantine/"] {
            let at = format!("{}/{folder}", self.name);
            let listed = self.workdir.list(at.trim_end_matches('/'), false)?;
            // Files that never left this machine: attempts at a remote workdir, and staging files of records.
            let here = local_names(&self.path().join(folder))?;
            staging.extend(here.iter().filter(|name| name.starts_with(".part-")).map(|name| format!("{folder}{name}")));
            let here = if self.workdir.is_remote() { here } else { Vec::new() };
            let names: BTreeSet<String> = listed.into_iter().map(|entry| entry.name).chain(here).collect();
            let is_data = |name: &String| name.starts_with("part-") && !name.ends_with(".json");
            let names = names.into_iter().filter(is_data).map(|name| format!("{folder}{name}"));
            orphans.extend(names.filter(|name| !kept.contains(name.as_str())));
        }
        if !orphans.is_empty() {
            let living = living()?;
            orphans.retain(|name| runner_of(name).is_none_or(|runner| !living.contains(runner)));
        }
        if !orphans.is_empty() {
            let partitions: HashSet<&str> = orphans.iter().filter_map(|name| partition_of(name)).collect();
            let mut records = self.listing()?.sidecars;
            records.retain(|name| partition_of(name).is_some_and(|partition| partitions.contains(partition)));
            let records = self.read_all(&records)?;
            let kept: HashSet<&str> = records.iter().flat_map(|(_, sidecar)| files(sidecar)).collect();
            orphans.retain(|name| !kept.contains(name.as_str()));
        }
        let mut swept = 0;
        for name in &orphans {
            self.workdir.remove(&self.name_of(name))?;
            if self.workdir.is_remote() {
                remove(&self.path().join(name))?;
            }
            swept += 1;
        }
        for path in staging.iter().map(|name| self.path().join(name)).filter(|path| is_old(path)) {
            remove(&path)?;
            swept += 1;
        }
        Ok(swept)
    }
}

fn serialized(sidecar: &Sidecar, path: &Path) -> Result<Vec<u8>, ShardError> {
    serde_json::to_vec_pretty(sidecar).map_err(|e| ShardError::Record {
        path: path.to_owned(),
        what: "sidecar",
        detail: e.to_string(),
    })
}

/// The partition in `quarantine/part-00012.<runner>-<count>.parquet` or `part-00012.5b0e7f31.json`.
fn partition_of(file: &str) -> Option<&str> {
    file.strip_prefix("quarantine/").unwrap_or(file).split('.').next()
}

/// The runner in `part-00012.<runner>-<count>.parquet`.
fn runner_of(file: &str) -> Option<&str> {
    file.split('.').nth(1)?.split_once('-').map(|(runner, _)| runner)
}

fn local_names(folder: &Path) -> Result<Vec<String>, ShardError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ShardError::io("list", folder)(error)),
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    names.collect::<Result<_, _>>().map_err(ShardError::io("list", folder))
}

/// A staging file lives for milliseconds; one of a minute is a dead process's.
fn is_old(path: &Path) -> bool {
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > crate::lease::STALE))
}

fn described(sidecar: &Sidecar) -> impl Iterator<Item = &DataFile> {
    sidecar.data.iter().chain(&sidecar.quarantine)
}

fn files(sidecar: &Sidecar) -> impl Iterator<Item = &str> {
    described(sidecar).map(|f| f.file.as_str())
}

/// Whether files of `new` have names of files of `old`, and other content.
fn overwrites(new: &Sidecar, old: &Sidecar) -> bool {
    described(old).any(|was| described(new).any(|is| is.file == was.file && is.digest != was.digest))
}

impl Attempt {
    /// Its name, which no other attempt of any run has.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where this attempt's data goes: `part-00012.<attempt>.parquet`.
    pub fn data(&self) -> PathBuf {
        self.folder.join(format!("{}.{}.parquet", self.partition, self.id))
    }

    /// Where this attempt's tar goes: `part-00012.<attempt>.tar`.
    pub fn tar(&self) -> PathBuf {
        self.data().with_extension("tar")
    }

    /// Where this attempt's `n`th file of another kind goes: `part-00012.<attempt>.n.ENDING`. No ending may be that of records.
    pub fn with_ending(&self, n: usize, ending: &str) -> PathBuf {
        self.numbered(n).with_extension(ending)
    }

    /// Where this attempt's `n`th file goes, for partitions of several: `part-00012.<attempt>.n.parquet`.
    pub fn numbered(&self, n: usize) -> PathBuf {
        self.folder.join(format!("{}.{}.{n:05}.parquet", self.partition, self.id))
    }

    /// Where this attempt's data of one variant goes: `part-00012.<attempt>.512.parquet`.
    pub fn variant(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}.{}.{name}.parquet", self.partition, self.id))
    }

    /// Where this attempt's refused rows go.
    pub fn quarantine(&self) -> PathBuf {
        self.folder.join("quarantine").join(format!("{}.{}.parquet", self.partition, self.id))
    }

    /// Removes whatever this attempt wrote. For attempts that failed or were cancelled.
    pub fn abandon(&self) {
        let _ = remove(&self.data());
        let _ = remove(&self.quarantine());
        let prefix = format!("{}.{}.", self.partition, self.id);
        for name in local_names(&self.folder).unwrap_or_default().iter().filter(|name| name.starts_with(&prefix)) {
            let _ = remove(&self.folder.join(name));
        }
    }
}

#[cfg(test)]
mod tests;
