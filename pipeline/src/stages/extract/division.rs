//! Which tars make which shard.
//!
//! ```text
//! stages/extract/tars/
//!     part-00012.json     the tars of a shard: created if absent when the shard is begun for the first time
//!     known.json          a cache of digests; may be deleted
//! ```
//!
//! Tars that are in no shard yet are divided in the order of their names, `tars_per_shard` at a time. Once a shard is begun its
//! tars are written down and stay its own: tars that come later make further shards, and neither they nor another
//! `tars_per_shard` move what is there. A shard's list is written after those of all shards before it, by a run that
//! sees them as they are; so no two runs can give a tar to two shards, whatever each of them found.
//!
//! A tar that is gone (`delete_inputs` removes tars) stays in its shard: its digest is known from the shard's record, or else
//! from this list. The lists may be deleted only while all tars are still there: then shards are divided anew.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use shards::ShardError;
use shards::commit::StageFolder;
use shards::digest::{Digest, DigestBuilder};
use shards::sidecar::Sidecar;

use super::error::ExtractError;
use crate::ledger::Ledger;
use crate::plan::partition_name;
use crate::stage::{Source, StageError};
use crate::stages::outside::{OutsideFile as Tar, Places, State, file_name};

/// In a record's details: the tars it was made of.
pub(super) const DETAIL: &str = "tars";
const FOLDER: &str = "tars";
const FORMAT: u32 = 1;

/// What is remembered of a tar.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TarRecord {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// Nanoseconds since 1970.
    pub(super) modified: u64,
    pub(super) digest: Digest,
    /// In a shard's record: whether all of it was read, so that nothing is lost with it.
    #[serde(default)]
    pub(super) whole: bool,
    /// In a shard's record: how many samples were met.
    #[serde(default)]
    pub(super) samples: u64,
}

impl TarRecord {
    pub(super) fn of(tar: &Tar) -> Self {
        let State { bytes, modified } = tar.state;
        Self { name: tar.name.clone(), bytes, modified, digest: tar.digest, whole: false, samples: 0 }
    }

    pub(super) fn state(&self) -> State {
        State { bytes: self.bytes, modified: self.modified }
    }
}

/// The tars that a shard was made of.
pub(super) fn records(sidecar: &Sidecar) -> Vec<TarRecord> {
    let tars = sidecar.details.get(DETAIL).and_then(|tars| serde_json::from_value(tars.clone()).ok());
    tars.unwrap_or_default()
}

/// A shard's list of tars.
#[derive(Serialize, Deserialize)]
struct List {
    format: u32,
    tars: Vec<TarRecord>,
}

/// The tars of every shard.
pub(super) struct Division {
    shards: Vec<Vec<Tar>>,
    /// Of those that are still there, by their names: `delete_inputs` asks for every tar of every shard whenever a run starts.
    paths: HashMap<String, PathBuf>,
    /// How many shards, from the first on, have their lists.
    listed: Mutex<usize>,
}

impl Division {
    /// Divides what is at `places`, going by what was divided before. With `limit`, only so many shards as it takes for so many
    /// tars.
    pub(super) fn make(
        places: &Places,
        ledger: &Ledger,
        tars_per_shard: usize,
        limit: Option<usize>,
    ) -> Result<Self, StageError> {
        let folder = ledger.folder();
        let lists = read_lists(folder)?;
        let remembered: Vec<&str> = lists.iter().flatten().map(|tar| tar.name.as_str()).collect();
        let mut there = places.files(&folder.path().join(FOLDER), &remembered)?;
        let mut shards: Vec<Vec<Tar>> = Vec::new();
        for (number, list) in lists.iter().enumerate() {
            let recorded = ledger.newest(&partition_name(number)).map(|sidecar| records(sidecar)).unwrap_or_default();
            let known = |tar: &TarRecord| -> Tar {
                let record = recorded.iter().find(|record| record.name == tar.name).unwrap_or(tar);
                Tar { name: tar.name.clone(), path: None, state: record.state(), digest: record.digest }
            };
            shards.push(list.iter().map(|tar| there.remove(&tar.name).unwrap_or_else(|| known(tar))).collect());
        }
        recognise_moved(&mut shards, &mut there);
        let listed = shards.len();
        let held: usize = shards.iter().map(Vec::len).sum();
        let new: Vec<Tar> =
            there.into_values().take(limit.map_or(usize::MAX, |most| most.saturating_sub(held))).collect();
        shards.extend(new.chunks(tars_per_shard).map(<[Tar]>::to_vec));
        if let Some(limit) = limit {
            let mut held = 0;
            let wanted = shards.iter().take_while(|tars| {
                let wanted = held < limit;
                held += tars.len();
                wanted
            });
            let wanted = wanted.count();
            shards.truncate(wanted);
        }
        let listed = listed.min(shards.len());
        Ok(Self::of(shards, listed))
    }

    /// The first `listed` of the shards have their lists.
    fn of(shards: Vec<Vec<Tar>>, listed: usize) -> Self {
        let there = shards.iter().flatten().filter_map(|tar| Some((tar.name.clone(), tar.path.clone()?)));
        Self { paths: there.collect(), shards, listed: Mutex::new(listed) }
    }

    /// The shards as partitions. How many samples they hold is judged by the records of others.
    pub(super) fn sources(&self, ledger: &Ledger) -> Vec<Source> {
        let (rows, bytes) = ledger.sidecars().fold((0, 0), |(rows, bytes), sidecar| {
            (rows + sidecar.rows_in, bytes + records(sidecar).iter().map(|tar| tar.bytes).sum::<u64>())
        });
        let source = |(number, tars): (usize, &Vec<Tar>)| {
            let first = tars.first().map_or("nothing", |tar| tar.name.as_str());
            let name = match tars.len() {
                0 | 1 => first.to_owned(),
                many => format!("{first} and {} more", many - 1),
            };
            let digest = tars.iter().fold(DigestBuilder::new(), |digest, tar| digest.part(tar.digest.to_string()));
            let guess = || {
                let here: u64 = tars.iter().map(|tar| tar.state.bytes).sum();
                if bytes == 0 { 0 } else { (rows as f64 * here as f64 / bytes as f64) as u64 }
            };
            let rows = ledger.newest(&partition_name(number)).map_or_else(guess, |sidecar| sidecar.rows_in);
            Source { name, digest: digest.finish(), rows }
        };
        self.shards.iter().enumerate().map(source).collect()
    }

    /// The tars of a shard that is about to be made, which are its own from now on.
    pub(super) fn begin(&self, folder: &StageFolder, number: usize) -> Result<&[Tar], StageError> {
        let tars =
            self.shards.get(number).ok_or_else(|| StageError::NotPlanned { partition: partition_name(number) })?;
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        while *listed <= number {
            if let Some(tars) = self.shards.get(*listed) {
                write_list(folder, *listed, tars)?;
            }
            *listed += 1;
        }
        Ok(tars.as_slice())
    }

    /// Where a tar lies that is still there.
    pub(super) fn path(&self, name: &str) -> Option<&Path> {
        self.paths.get(name).map(PathBuf::as_path)
    }

    /// What may be deleted to divide anew, in words.
    pub(super) fn memory(folder: &StageFolder) -> String {
        format!("{}/{}", folder.workdir(), folder.name_of(FOLDER))
    }
}

/// A tar that is gone, and a new one with its file name and digest, are one that was moved.
fn recognise_moved(shards: &mut [Vec<Tar>], there: &mut BTreeMap<String, Tar>) {
    if there.is_empty() || shards.iter().flatten().all(|tar| tar.path.is_some()) {
        return;
    }
    let mut new: HashMap<(String, Digest), String> = HashMap::new();
    for (name, tar) in there.iter().rev() {
        new.insert((file_name(name).to_owned(), tar.digest), name.clone());
    }
    for gone in shards.iter_mut().flatten().filter(|tar| tar.path.is_none()) {
        let moved = new.remove(&(gone.file_name().to_owned(), gone.digest)).and_then(|name| there.remove(&name));
        if let Some(moved) = moved {
            (gone.path, gone.state) = (moved.path, moved.state);
        }
    }
}

fn list_name(folder: &StageFolder, number: usize) -> String {
    folder.name_of(&format!("{FOLDER}/{}.json", partition_name(number)))
}

/// The lists of all shards that were begun, in order.
fn read_lists(folder: &StageFolder) -> Result<Vec<Vec<TarRecord>>, StageError> {
    let there = folder.workdir().list(&folder.name_of(FOLDER), false)?;
    let count = there.iter().filter(|entry| entry.name.starts_with("part-")).count();
    let names: Vec<String> = (0..count).map(|number| list_name(folder, number)).collect();
    let contents = folder.workdir().read_all(&names)?;
    let mut lists = Vec::new();
    for (name, bytes) in names.iter().zip(contents) {
        // Lists are written in order: what comes after a gap was left by somebody who deleted one.
        let Some(bytes) = bytes else { break };
        lists.push(parse(&bytes, name, folder)?);
    }
    Ok(lists)
}

fn parse(bytes: &[u8], name: &str, folder: &StageFolder) -> Result<Vec<TarRecord>, StageError> {
    let damaged =
        |detail: String| ShardError::Record { path: folder.workdir().path(name), what: "list of tars", detail };
    let list: List = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    if list.format > FORMAT {
        return Err(damaged(format!("it has format {}, this version knows up to {FORMAT}", list.format)).into());
    }
    Ok(list.tars)
}

fn write_list(folder: &StageFolder, number: usize, tars: &[Tar]) -> Result<(), StageError> {
    let name = list_name(folder, number);
    let list = List { format: FORMAT, tars: tars.iter().map(TarRecord::of).collect() };
    let bytes = serde_json::to_vec_pretty(&list).map_err(StageError::failed)?;
    if folder.workdir().create_if_absent(&name, &bytes)? {
        return Ok(());
    }
    let there = folder.workdir().read(&name)?.unwrap_or_default();
    let there = parse(&there, &name, folder)?;
    if there.iter().map(|tar| &tar.name).eq(tars.iter().map(|tar| &tar.name)) {
        return Ok(());
    }
    Err(ExtractError::DividedOtherwise(partition_name(number)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tar_that_is_gone_has_no_path() {
        let tar = |name: &str, path: Option<&str>| Tar {
            name: name.to_owned(),
            path: path.map(PathBuf::from),
            state: State { bytes: 1, modified: 1 },
            digest: Digest::of(name.as_bytes()),
        };
        let kept = Some("/elsewhere/d.tar");
        let shards = vec![
            vec![tar("laion/a.tar", None), tar("laion/b.tar", Some("/laion/b.tar"))],
            vec![tar("laion/c.tar", None), tar("laion/d.tar", kept)],
        ];
        let division = Division::of(shards, 2);
        assert_eq!(division.path("laion/b.tar"), Some(Path::new("/laion/b.tar")));
        assert_eq!(division.path("laion/d.tar"), kept.map(Path::new), "where it was moved to");
        for gone in ["laion/a.tar", "laion/c.tar", "laion/e.tar"] {
            assert_eq!(division.path(gone), None, "{gone}");
        }
    }
}
