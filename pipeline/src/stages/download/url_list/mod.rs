//! The list of URLs, in any of the formats that img2dataset reads: rows by partition.
//!
//! A list is read once. What lies elsewhere is brought here, what cannot be addressed by row (everything but parquet) is
//! copied into parquet, and what is then known of it is written down (see [`listing`]). From then on a plan reads one small
//! file, and a partition costs a footer and its own row groups, however long the list is.
//!
//! - `location`: in which format lists are, and which files of a place they come to; of what lies elsewhere see [`crate::remote`]
//! - [`text`], [`json`]: readers, which stream; [`copy`]: what they read, as parquet
//! - [`make`]: the first reading; [`listing`]: what is known after it; [`rows`]: rows of a partition

mod copy;
mod error;
mod json;
mod listing;
mod location;
mod make;
mod rows;
#[cfg(test)]
mod tests;
mod text;
mod wanted;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{AsArray, RecordBatch, UInt64Array};
use arrow::compute::take_record_batch;
use shards::columns;
use shards::digest::{Digest, DigestBuilder};

pub(super) use error::ListError;
pub(super) use location::Format;
pub(super) use wanted::{ColumnNames, HASH, PHASH};

use crate::remote::{self, Access, Entries, Entry, Location, RemoteError, without_secrets};
use crate::stage::{Source, StageError};
use crate::stages::text::{LONGEST_ROW, QUOTED, is_quoted};
use crate::stages::types;
use listing::{Data, ListFile, Listing, Run, piece_of, row_name};
use make::{Maker, Resolved, local_path};
use rows::{Noted, Positions, RowFile};
use text::Separator;
use wanted::Wanted;

/// Bytes that the rows of a partition may have in memory.
const LARGEST_PARTITION: usize = 512 << 20;
/// Tries to reach a list that lies elsewhere, and what is known of it from before is not.
const TRIES: u32 = 4;

/// A list of URLs.
pub(super) struct UrlList {
    /// As they were written, and as they were understood.
    locations: Vec<(String, Location)>,
    format: Option<Format>,
    wanted: Wanted,
    source: String,
    rows_per_shard: u64,
    limit: u64,
    access: Access,
    /// As it was planned last, and for which folder: what partitions and keys mean.
    known: Mutex<Option<(PathBuf, Arc<Listing>)>>,
}

/// Rows of a partition.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    /// The number of the partition that they are of, and where they are in it.
    pub(super) partition: usize,
    pub(super) places: Vec<usize>,
    pub(super) keys: Vec<String>,
    /// url (text, never null), caption (the same), [`HASH`] and [`PHASH`] (text), if they were asked for; then the additional
    /// columns under their own names, or with `_original` where the download has a column of that name itself.
    pub(super) batch: RecordBatch,
    /// What to note of them: values that are not of their column's type, quotation marks that may mean something.
    pub(super) noted: Noted,
    /// How many columns come before the additional ones.
    first_additional: usize,
}

impl Rows {
    /// The additional columns.
    pub(super) fn additional(&self) -> Result<RecordBatch, StageError> {
        let columns: Vec<usize> = (self.first_additional..self.batch.num_columns()).collect();
        self.batch.project(&columns).map_err(StageError::failed)
    }

    /// The rows at these places, in their order. What there is to note of a partition was noted when it was made.
    pub(super) fn only(&self, places: impl Iterator<Item = usize>) -> Result<Self, ListError> {
        let places: Vec<usize> = places.collect();
        let lacks = || ListError::NoSuchRow { rows: self.keys.len() };
        let keys = places.iter().map(|&place| self.keys.get(place).cloned().ok_or_else(lacks));
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        let rows = UInt64Array::from_iter_values(places.iter().map(|&place| place as u64));
        let batch = take_record_batch(&self.batch, &rows).map_err(ListError::values("of a partition"))?;
        let (partition, first_additional) = (self.partition, self.first_additional);
        Ok(Self { partition, places, keys, batch, noted: Noted::new(), first_additional })
    }
}

impl UrlList {
    /// A list of the files and folders at `locations` (paths, `hf://…`, `s3://…`, `https://…`), of which only the first
    /// `limit` rows are taken. The format is that of the files' endings, where it is not given. `source` is the first part of
    /// every key. A location that is none is an error of [`UrlList::check`] and of all that follows.
    #[expect(clippy::needless_pass_by_value, reason = "made for it, and nobody needs it afterwards")]
    pub(super) fn new(
        locations: Vec<String>,
        format: Option<Format>,
        columns: ColumnNames,
        source: &str,
        rows_per_shard: u64,
        limit: u64,
    ) -> Self {
        let understood = |written: String| {
            let location = Location::parse(&written);
            (written, location)
        };
        Self {
            locations: locations.into_iter().map(understood).collect(),
            format,
            wanted: Wanted::new(&columns),
            source: source.to_owned(),
            rows_per_shard: rows_per_shard.max(1),
            limit,
            access: Access::from_environment(),
            known: Mutex::new(None),
        }
    }

    /// What can be said without the network and without reading everything: local files are there, and the first of each
    /// location has the columns. Objects may lack any column but the URL in a first look.
    pub(super) fn check(&self) -> Result<(), ListError> {
        for (written, location) in &self.locations {
            let path = match location {
                Location::Local(path) => path,
                Location::Invalid(reason) => {
                    return Err(ListError::location(&without_secrets(written), reason));
                }
                _ => continue,
            };
            let (format, entries) = location::local_entries(path, self.format)?;
            let Some(entry) = entries.files.first() else { continue };
            let path = local_path(path, &entries, entry);
            let name = if entries.is_folder { format!("{written}/{}", entry.name) } else { written.clone() };
            self.check_columns(&path, &name, format)?;
        }
        Ok(())
    }

    fn check_columns(&self, path: &Path, name: &str, format: Format) -> Result<(), ListError> {
        let separated = |separator| {
            let own = &self.wanted.header;
            let header = if own.is_empty() { text::header(path, name, separator)? } else { own.clone() };
            self.wanted.positions(name, header.iter().map(String::as_str)).map(drop)
        };
        match format {
            Format::Txt => {
                text::open(path, name)?;
                self.wanted.of_bare_urls(name).map(drop)
            }
            Format::Csv => separated(Separator::Comma),
            Format::Tsv => separated(Separator::tab(self.wanted.quotes)),
            Format::Parquet => {
                let file = RowFile::open(path, name)?;
                Positions::by_name(&self.wanted, name, file.schema()).map(drop)
            }
            Format::Jsonl => json::check_first_rows(path, name, &self.wanted),
            // Where columns lie one behind the other, the URLs may be the last.
            Format::Json => text::open(path, name).map(drop),
        }
    }

    /// All partitions. The first time, and when a file has changed, the list is brought and copied, which takes as long as
    /// reading it does; `folder` is the stage's, on this machine.
    pub(super) fn partitions(&self, folder: &Path) -> Result<Vec<Source>, ListError> {
        let listing = self.plan(folder)?;
        let mut sources = Vec::with_capacity(listing.partitions());
        for file in &listing.files {
            for (number, digest) in file.digests.iter().enumerate() {
                let run = file.run(number, self.rows_per_shard);
                sources.push(Source { name: format!("{} {run}", file.name), digest: *digest, rows: run.rows });
            }
        }
        Ok(sources)
    }

    /// The rows of a partition, as it was planned.
    pub(super) fn rows(&self, folder: &Path, number: usize) -> Result<Rows, ListError> {
        let listing = self.known(folder)?;
        match self.rows_of(folder, &listing, number) {
            // Another process has read another list in the same place since, and removed the copy of this one; or the list itself
            // is going away.
            Err(error) if error.is_absent() => self.rows_of(folder, &self.made_anew(folder, &listing, number)?, number),
            other => other,
        }
    }

    /// The partition that holds the row of a key, and where in it the row is. Reads no rows.
    pub(super) fn locate(&self, folder: &Path, key: &str) -> Result<Option<(usize, usize)>, ListError> {
        Ok(self.known(folder)?.locate(&self.source, self.rows_per_shard, key))
    }

    fn rows_of(&self, folder: &Path, listing: &Listing, number: usize) -> Result<Rows, ListError> {
        let Some((file, run)) = listing.partition(number, self.rows_per_shard) else {
            return Err(ListError::NoSuchPartition { number, partitions: listing.partitions() });
        };
        let (batch, mut noted) = self.batch(folder, listing, file, run)?;
        if self.format.or_else(|| Format::of(&file.name)) == Some(Format::Tsv) && !self.wanted.quotes {
            let captions = batch.column_by_name(columns::CAPTION).and_then(|captions| captions.as_string_opt::<i32>());
            let quoted = captions.into_iter().flatten().flatten().filter(|caption| is_quoted(caption)).count();
            if quoted > 0 {
                noted.insert(QUOTED.to_owned(), quoted as u64);
            }
        }
        let start = file.key_start(&self.source);
        let keys = (run.first..run.first + run.rows).map(|row| format!("{start}{}", row_name(row))).collect();
        let places = (0..batch.num_rows()).collect();
        let first_additional = batch.num_columns() - self.wanted.extra.len();
        Ok(Rows { partition: number, places, keys, batch, noted, first_additional })
    }

    fn batch(
        &self,
        folder: &Path,
        listing: &Listing,
        file: &ListFile,
        run: Run,
    ) -> Result<(RecordBatch, Noted), ListError> {
        let home = folder.join(HOME);
        let types = &listing.extra_types;
        let (path, run) = match &file.data {
            Data::Copied(pieces) => {
                let Some((piece, run)) = piece_of(pieces, run) else {
                    return Err(ListError::Changed { name: file.shown.clone() });
                };
                let open = RowFile::open(&home.join(listing.identity.short()).join(&piece.file), &file.shown)?;
                let is_bare = open.schema().fields().len() == 1;
                let bare = is_bare.then(|| self.wanted.of_bare_urls(&file.shown)).transpose()?;
                let wanted = bare.as_ref().unwrap_or(&self.wanted);
                return open.read(run, &Positions::in_copy(wanted), wanted, types);
            }
            Data::Fetched(name) => (home.join("files").join(name), run),
            Data::InPlace { location, file: number } => (self.unchanged(listing, *location, *number, file)?, run),
        };
        let open = RowFile::open(&path, &file.shown)?;
        let positions = Positions::by_name(&self.wanted, &file.shown, open.schema())?;
        open.read(run, &positions, &self.wanted, types)
    }

    /// The path of a local file that is read in place, which must be what it was when the list was read.
    fn unchanged(&self, listing: &Listing, at: usize, number: usize, file: &ListFile) -> Result<PathBuf, ListError> {
        let changed = || ListError::Changed { name: file.shown.clone() };
        let Some((_, Location::Local(location))) = self.locations.get(at) else { return Err(changed()) };
        let entries = listing.entries.get(at).ok_or_else(changed)?;
        let entry = entries.files.get(number).ok_or_else(changed)?;
        let path = local_path(location, entries, entry);
        let metadata = fs::metadata(&path).map_err(ListError::read(&file.shown))?;
        if location::entry(entry.name.clone(), &metadata) == *entry { Ok(path) } else { Err(changed()) }
    }

    /// What is known of the list: as it was planned; or as it is, where nobody has planned it.
    fn known(&self, folder: &Path) -> Result<Arc<Listing>, ListError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, listing)) = &*known
            && of == folder
        {
            return Ok(Arc::clone(listing));
        }
        let home = folder.join(HOME);
        let (identity, resolved) = self.look(&home)?;
        self.read(&home, identity, &resolved).map(Arc::new)
    }

    /// Reads the list, or finds it read and unchanged. From here on this is what is known of it.
    fn plan(&self, folder: &Path) -> Result<Arc<Listing>, ListError> {
        // Held throughout, so that threads that come at once read it once.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let home = folder.join(HOME);
        let (identity, resolved) = self.look(&home)?;
        if let Some((of, listing)) = &*known
            && of == folder
            && listing.identity == identity
            && listing.is_settled
            && home.join(identity.short()).join(listing::LIST).exists()
        {
            return Ok(Arc::clone(listing));
        }
        let listing = Arc::new(self.read(&home, identity, &resolved)?);
        *known = Some((folder.to_owned(), Arc::clone(&listing)));
        Ok(listing)
    }

    /// The list of a plan, made once more for a partition's rows. The fingerprint says which rows these are: an error where the
    /// list is another one by now.
    fn made_anew(&self, folder: &Path, planned: &Listing, number: usize) -> Result<Listing, ListError> {
        // One thread makes it, the others find it made.
        let _alone = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = || {
            let file = planned.partition(number, self.rows_per_shard).map(|(file, _)| file.shown.clone());
            ListError::Changed { name: file.unwrap_or_default() }
        };
        let home = folder.join(HOME);
        let (identity, resolved) = self.look(&home)?;
        if identity != planned.identity {
            return Err(changed());
        }
        let listing = self.read(&home, identity, &resolved)?;
        // Of a file that had just been written when it was planned, its time may not tell two versions apart.
        if listing.digest(number) == planned.digest(number) { Ok(listing) } else { Err(changed()) }
    }

    /// Which files the list is in now, and their digest.
    fn look(&self, home: &Path) -> Result<(Digest, Vec<Resolved>), ListError> {
        let request = self.request();
        let resolved = self.resolve(home, request)?;
        Ok((Self::identity(request, &resolved), resolved))
    }

    /// Reads the list in these files, or finds it read.
    fn read(&self, home: &Path, identity: Digest, resolved: &[Resolved]) -> Result<Listing, ListError> {
        let maker = Maker { list: self, access: &self.access, home, request: self.request(), identity, resolved };
        match maker.complete()? {
            Some(listing) => Ok(listing),
            None => maker.make(),
        }
    }

    /// The files of each location. A location that cannot be reached has those that it had when it was read last.
    fn resolve(&self, home: &Path, request: Digest) -> Result<Vec<Resolved>, ListError> {
        let mut before: Option<Option<Listing>> = None;
        let mut resolved = Vec::new();
        for (at, (written, location)) in self.locations.iter().enumerate() {
            if let Location::Local(path) = location {
                let (format, entries) = location::local_entries(path, self.format)?;
                resolved.push(Resolved { format, entries });
                continue;
            }
            let before = before.get_or_insert_with(|| last_complete(home, request)).as_ref();
            let before = before.and_then(|listing| listing.entries.get(at));
            let tries = if before.is_some() { 1 } else { TRIES };
            let shown = without_secrets(written);
            if let Location::Invalid(reason) = location {
                return Err(ListError::location(&shown, reason));
            }
            if let Location::Http(_) = location {
                // Its name says it already.
                location::format_of_file(&shown, &location.name(), self.format)?;
            }
            let entries = match remote::entries(location, &shown, &self.access, tries) {
                Err(RemoteError::Unreachable { location, reason }) => {
                    before.cloned().ok_or(RemoteError::Unreachable { location, reason })?
                }
                other => other?,
            };
            let (format, entries) = location::of_location(&shown, entries, self.format)?;
            resolved.push(Resolved { format, entries });
        }
        Ok(resolved)
    }

    /// How a file is called in messages.
    fn shown(&self, location: usize, entries: &Entries, entry: &Entry) -> String {
        let location = self.locations.get(location).map(|(written, _)| without_secrets(written)).unwrap_or_default();
        if entries.is_folder { format!("{}/{}", location.trim_end_matches('/'), entry.name) } else { location }
    }

    /// The digest of what is asked for.
    fn request(&self) -> Digest {
        let wanted = &self.wanted;
        let part = |column: Option<usize>| column.map_or("", |column| wanted.name(column));
        let mut digest = DigestBuilder::new()
            .part(self.format.map_or("", Format::ending))
            .part(self.rows_per_shard.to_le_bytes())
            .part(self.limit.to_le_bytes())
            .part(wanted.texts().map(|column| u8::from(column.is_some())));
        for column in wanted.texts() {
            digest.add(part(column));
        }
        for name in &wanted.header {
            digest.add("header");
            digest.add(name);
        }
        for extra in &wanted.extra {
            digest.add("extra");
            digest.add(wanted.name(extra.column));
            digest.add(&extra.name);
            if let Some(kind) = extra.kind {
                digest.add("type");
                digest.add(kind.in_words());
            }
        }
        if wanted.quotes {
            digest.add("quotes");
        }
        for (written, _) in &self.locations {
            digest.add("location");
            digest.add(written);
        }
        digest.finish()
    }

    /// The digest of what is asked for and of the files it was found in.
    fn identity(request: Digest, resolved: &[Resolved]) -> Digest {
        let mut digest = DigestBuilder::new().part(request.seed());
        for Resolved { format, entries } in resolved {
            digest.add([u8::from(entries.is_folder)]);
            digest.add(format.ending());
            for entry in &entries.files {
                digest.add(&entry.name);
                digest.add(entry.bytes.unwrap_or(u64::MAX).to_le_bytes());
                digest.add(&entry.version);
            }
            digest.add([]);
        }
        digest.finish()
    }
}

/// What the last part of a location is called.
pub(super) fn name_of(location: &str) -> String {
    Location::parse(location).name()
}

/// Below the stage's folder.
const HOME: &str = "list";

/// The complete list that was made last for the same request.
fn last_complete(home: &Path, request: Digest) -> Option<Listing> {
    let listings = fs::read_dir(home).into_iter().flatten().flatten().filter_map(|found| {
        let is_hidden = found.file_name().to_string_lossy().starts_with('.');
        let modified = found.metadata().and_then(|metadata| metadata.modified()).ok()?;
        let listing = if is_hidden { None } else { Listing::load(&found.path()).ok()? }?;
        (listing.request == request).then_some((modified, listing))
    });
    listings.max_by_key(|(modified, _)| *modified).map(|(_, listing)| listing)
}
