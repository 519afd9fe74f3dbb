//! Reading a list for the first time: what lies elsewhere is brought here, what cannot be addressed by row is copied, and
//! the result is put in its place at once.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use arrow::datatypes::DataType;
use shards::digest::{Digest, DigestBuilder};
use shards::{ShardError, disk};

use super::copy::{TextList, copy};
use super::json::Seen;
use super::listing::{Data, ListFile, Listing};
use super::location::{Format, is_just_written, stem};
use super::rows::{Positions, RowFile};
use super::types;
use super::wanted::{Extra, Wanted};
use super::{ListError, UrlList};
use crate::remote::{self, Access, Entries, Entry, FAILURES, Location, Unwatched, without_secrets};
use crate::stages::fields::FieldType;

/// The files at a location.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    pub(super) format: Format,
    pub(super) entries: Entries,
}

/// Everything that is needed to read a list for the first time.
pub(super) struct Maker<'a> {
    pub(super) list: &'a UrlList,
    pub(super) access: &'a Access,
    /// `stages/download/list`
    pub(super) home: &'a Path,
    pub(super) request: Digest,
    pub(super) identity: Digest,
    pub(super) resolved: &'a [Resolved],
}

/// What is known of a file before partitions of all are named.
struct Read {
    rows: u64,
    data: Data,
    /// Of each partition's content.
    digests: Vec<Digest>,
    extra_types: Vec<DataType>,
}

/// What all lists of objects together have.
struct Objects {
    seen: Seen,
    rows: u64,
    /// The first of them.
    shown: String,
}

impl Objects {
    fn new(wanted: &Wanted, shown: &str) -> Self {
        Self { seen: Seen::new(wanted), rows: 0, shown: shown.to_owned() }
    }

    /// Refuses objects none of which has a wanted column. Where the limit cut them short, it may come further down.
    fn check(&self, wanted: &Wanted, is_cut: bool) -> Result<(), ListError> {
        for (column, (name, was_seen)) in wanted.names.iter().zip(&self.seen.wanted).enumerate() {
            if self.rows > 0 && !was_seen && (!is_cut || column == wanted.url) {
                return Err(Wanted::missing(&self.shown, name, self.seen.names.iter().map(String::as_str)));
            }
        }
        Ok(())
    }
}

impl Maker<'_> {
    /// The name of the folder that the complete list gets.
    fn folder(&self) -> PathBuf {
        self.home.join(self.identity.short())
    }

    /// The list, if it is there already and can be relied on.
    pub(super) fn complete(&self) -> Result<Option<Listing>, ListError> {
        let listing = Listing::load(&self.folder())?;
        Ok(listing.filter(|listing| listing.identity == self.identity && listing.is_settled))
    }

    /// Reads the list and leaves it complete. Only one process at a time does so.
    pub(super) fn make(&self) -> Result<Listing, ListError> {
        disk::create_folder(self.home)?;
        let lock_path = self.home.join("lock");
        let lock = File::create(&lock_path).map_err(ShardError::io("create", &lock_path))?;
        // Where files cannot be locked, each process works for itself, and the last one's result stays.
        let is_alone = lock.lock().is_ok();
        if let Some(listing) = self.complete()? {
            return Ok(listing);
        }
        let prefix = format!(".{}.", self.identity.short());
        let staged = tempfile::Builder::new().prefix(&prefix).tempdir_in(self.home);
        let staged = staged.map_err(ShardError::io("create a folder in", self.home))?;
        let listing = self.read(staged.path(), is_alone)?;
        listing.save(staged.path())?;
        let folder = self.folder();
        if folder.exists() {
            let old = tempfile::Builder::new().prefix(".old.").tempdir_in(self.home);
            let old = old.map_err(ShardError::io("create a folder in", self.home))?;
            disk::rename(&folder, &old.path().join("list"))?;
        }
        disk::rename(staged.path(), &folder)?;
        // The name it had is gone; there is nothing left to remove.
        let _ = staged.keep();
        disk::sync_parent(&folder)?;
        if is_alone {
            self.sweep(&listing);
        }
        drop(lock);
        Ok(listing)
    }

    fn read(&self, staged: &Path, is_alone: bool) -> Result<Listing, ListError> {
        let stems = self.stems()?;
        let mut left = self.list.limit;
        let mut is_settled = true;
        let mut objects: Option<Objects> = None;
        let mut is_cut = false;
        let mut files: Vec<(ListFile, Vec<DataType>)> = Vec::new();
        let all = self.resolved.iter().enumerate().flat_map(|(at, resolved)| {
            resolved.entries.files.iter().enumerate().map(move |(number, entry)| (at, number, resolved, entry))
        });
        for ((location, number, resolved, entry), stem) in all.zip(stems) {
            if left == 0 {
                is_cut = true;
                break;
            }
            let shown = self.list.shown(location, &resolved.entries, entry);
            let (path, fetched) = self.bring(location, resolved, entry, is_alone)?;
            is_settled &= fetched.is_some() || !is_just_written(entry);
            let read = if resolved.format == Format::Parquet {
                let data = fetched.map_or(Data::InPlace { location, file: number }, Data::Fetched);
                self.read_parquet(&path, &shown, data, left)?
            } else {
                let bare = match resolved.format {
                    Format::Txt => Some(self.list.wanted.of_bare_urls(&shown)?),
                    _ => None,
                };
                let wanted = bare.as_ref().unwrap_or(&self.list.wanted);
                let text = TextList { path: &path, name: &shown, format: resolved.format, wanted, folder: staged };
                let objects = match resolved.format {
                    Format::Json | Format::Jsonl => {
                        objects.get_or_insert_with(|| Objects::new(&self.list.wanted, &shown))
                    }
                    _ => &mut Objects::new(wanted, &shown),
                };
                let name = format!("{:05}", files.len());
                let copied = copy(&text, staged, &name, self.list.rows_per_shard, left, &mut objects.seen)?;
                objects.rows += copied.rows;
                is_cut |= copied.is_cut;
                let data = Data::Copied(copied.pieces);
                Read { rows: copied.rows, data, digests: copied.digests, extra_types: copied.extra_types }
            };
            left -= read.rows;
            let Read { rows, data, digests, extra_types } = read;
            files.push((ListFile { name: entry.name.clone(), shown, stem, rows, data, digests }, extra_types));
        }
        if let Some(objects) = objects {
            objects.check(&self.list.wanted, is_cut)?;
        }
        let extra_types = self.unify(&files)?;
        let mut files: Vec<ListFile> = files.into_iter().map(|(file, _)| file).collect();
        self.name_partitions(&mut files, &extra_types);
        let entries = self.resolved.iter().map(|resolved| resolved.entries.clone()).collect();
        Ok(Listing::new(self.request, self.identity, is_settled, entries, files, extra_types))
    }

    /// The middle of each file's keys, in the order of all files. No two may be the same.
    fn stems(&self) -> Result<Vec<Option<String>>, ListError> {
        if let [Resolved { entries, .. }] = self.resolved
            && !entries.is_folder
        {
            return Ok(vec![None]);
        }
        let mut known: HashMap<&str, String> = HashMap::new();
        let mut stems = Vec::new();
        for (location, Resolved { entries, .. }) in self.resolved.iter().enumerate() {
            for entry in &entries.files {
                let shown = self.list.shown(location, entries, entry);
                if let Some(first) = known.insert(stem(&entry.name), shown.clone()) {
                    return Err(ListError::SameKeys { first, second: shown });
                }
                stems.push(Some(stem(&entry.name).to_owned()));
            }
        }
        Ok(stems)
    }

    /// A file's path on this machine; what comes from elsewhere is brought into `files`, and its name there told as well.
    fn bring(
        &self,
        location: usize,
        resolved: &Resolved,
        entry: &Entry,
        is_alone: bool,
    ) -> Result<(PathBuf, Option<String>), ListError> {
        let Some((written, from)) = self.list.locations.get(location) else {
            return Err(ListError::Changed { name: entry.name.clone() });
        };
        if let Location::Local(path) = from {
            return Ok((local_path(path, &resolved.entries, entry), None));
        }
        let digest = DigestBuilder::new().part(written).part(&entry.name).part(&entry.version).finish().to_string();
        let name = digest.get(..16).unwrap_or(&digest).to_owned();
        let folder = self.home.join("files");
        disk::create_folder(&folder)?;
        let path = folder.join(&name);
        if !path.exists() {
            let unique = if is_alone { String::new() } else { format!(".{}", std::process::id()) };
            let partial = folder.join(format!("{name}.partial{unique}"));
            let shown = without_secrets(written);
            let patience = (FAILURES, &Unwatched as _);
            remote::fetch(from, &shown, &resolved.entries, entry, &partial, self.access, patience)?;
            disk::rename(&partial, &path)?;
            remote::settled(&partial);
            disk::sync_parent(&path)?;
        }
        Ok((path, Some(name)))
    }

    fn read_parquet(&self, path: &Path, shown: &str, data: Data, limit: u64) -> Result<Read, ListError> {
        let mut file = RowFile::open(path, shown)?;
        let positions = Positions::by_name(&self.list.wanted, shown, file.schema())?;
        let rows = file.rows().min(limit);
        let footer = file.footer_digest()?;
        let digests = vec![footer; rows.div_ceil(self.list.rows_per_shard) as usize];
        Ok(Read { rows, data, digests, extra_types: file.extra_types(&positions) })
    }

    /// One type for each extra column.
    fn unify(&self, files: &[(ListFile, Vec<DataType>)]) -> Result<Vec<DataType>, ListError> {
        let mut unified = vec![DataType::Null; self.list.wanted.extra.len()];
        for (file, found) in files {
            let untyped = unified.iter_mut().zip(found).zip(&self.list.wanted.extra);
            for ((known, found), extra) in untyped.filter(|(_, extra)| extra.kind.is_none()) {
                *known = types::unify(known, found, false).ok_or_else(|| ListError::Mixed {
                    name: file.shown.clone(),
                    column: self.list.wanted.name(extra.column).to_owned(),
                    found: found.to_string(),
                    expected: known.to_string(),
                })?;
            }
        }
        let settled =
            |(found, extra): (DataType, &Extra)| extra.kind.map_or_else(|| types::settled(found), FieldType::data_type);
        Ok(unified.into_iter().zip(&self.list.wanted.extra).map(settled).collect())
    }

    /// Makes digests of content into digests of partitions: the same content under other keys, or in other types, is another
    /// partition.
    fn name_partitions(&self, files: &mut [ListFile], extra_types: &[DataType]) {
        let extra: Vec<(&str, String)> =
            self.list.wanted.extra.iter().zip(extra_types).map(|(e, t)| (e.name.as_str(), types::name(t))).collect();
        for file in files {
            for number in 0..file.digests.len() {
                let run = file.run(number, self.list.rows_per_shard);
                let Some(content) = file.digests.get_mut(number) else { continue };
                let mut digest = DigestBuilder::new()
                    .part("list 1")
                    .part(file.stem.as_deref().unwrap_or(""))
                    .part(run.first.to_le_bytes())
                    .part(run.rows.to_le_bytes())
                    .part(content.seed());
                for (name, data_type) in &extra {
                    digest.add(name);
                    digest.add(data_type);
                }
                *content = digest.finish();
            }
        }
    }

    /// Removes what the complete list has made useless: other versions, what killed processes left, files that were copied.
    /// What cannot be removed now is removed another time.
    fn sweep(&self, listing: &Listing) {
        let kept = self.identity.short();
        for found in fs::read_dir(self.home).into_iter().flatten().flatten() {
            let name = found.file_name();
            if found.path().is_dir() && name != kept.as_str() && name != "files" {
                let _ = fs::remove_dir_all(found.path());
            }
        }
        for found in fs::read_dir(self.home.join("files")).into_iter().flatten().flatten() {
            let name = found.file_name();
            let is_kept = |file: &ListFile| matches!(&file.data, Data::Fetched(fetched) if name == fetched.as_str());
            if !listing.files.iter().any(is_kept) {
                let _ = fs::remove_file(found.path());
            }
        }
    }
}

/// Where a local location's file lies.
pub(super) fn local_path(location: &Path, entries: &Entries, entry: &Entry) -> PathBuf {
    if entries.is_folder { location.join(&entry.name) } else { location.to_owned() }
}
