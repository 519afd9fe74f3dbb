//! What is known of a list once it was read: its files, their rows, the digests of its partitions.
//!
//! ```text
//! stages/download/list/
//!     lock                         held by the process that brings or copies a list
//!     files/<hash16>               files from elsewhere: parquet stays, text goes once it is copied
//!     files/<hash16>.partial       and as much as has come so far
//!     5b0e7f31/                    a complete list; the hash is of everything that it depends on
//!         list.json
//!         types.parquet            no rows: the types of the extra columns
//!         00000-00000.parquet      copies of text lists, in pieces
//!     .5b0e7f31.<unique>/          one that is being made, or was when its process was killed
//! ```

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use serde::{Deserialize, Serialize};
use shards::digest::Digest;
use shards::{ShardError, disk};

use super::ListError;
use crate::remote::Entries;

pub(super) const LIST: &str = "list.json";
const TYPES: &str = "types.parquet";
const FORMAT: u32 = 1;

/// A list that was read.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Listing {
    format: u32,
    /// Of what was asked for: locations, columns, rows in a partition.
    pub(super) request: Digest,
    /// Of that and of the files' versions.
    pub(super) identity: Digest,
    /// Whether all local files were old enough for their times of modification to tell versions apart.
    pub(super) is_settled: bool,
    /// The files at each location when it was made.
    pub(super) entries: Vec<Entries>,
    /// In their order; those behind the limit are not among them.
    pub(super) files: Vec<ListFile>,
    /// Of the extra columns; kept beside it.
    #[serde(skip)]
    pub(super) extra_types: Vec<DataType>,
}

/// One file of a list.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ListFile {
    /// For names of partitions.
    pub(super) name: String,
    /// For messages: where it lies.
    pub(super) shown: String,
    /// Between the source and the row's number in keys; none where the list is one file.
    pub(super) stem: Option<String>,
    pub(super) rows: u64,
    pub(super) data: Data,
    /// Of each partition.
    pub(super) digests: Vec<Digest>,
}

/// Where a file's rows are read from.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Data {
    /// A local parquet file, where it lies: which location's, and which of its files.
    InPlace { location: usize, file: usize },
    /// A parquet file from elsewhere, by its name in the folder `files`.
    Fetched(String),
    /// A text list's copy.
    Copied(Vec<Piece>),
}

/// A part of a copy.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    pub(super) file: String,
    pub(super) rows: u64,
}

/// A run of rows of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) rows: u64,
}

impl Listing {
    pub(super) fn new(
        request: Digest,
        identity: Digest,
        is_settled: bool,
        entries: Vec<Entries>,
        files: Vec<ListFile>,
        extra_types: Vec<DataType>,
    ) -> Self {
        Self { format: FORMAT, request, identity, is_settled, entries, files, extra_types }
    }

    /// The listing in `folder`; none when there is no complete one that this version can read.
    pub(super) fn load(folder: &Path) -> Result<Option<Self>, ListError> {
        let path = folder.join(LIST);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ShardError::io("read", &path)(error).into()),
        };
        // It is a cache: one that another version wrote, or that is damaged, is made anew.
        let Ok(mut listing) = serde_json::from_slice::<Self>(&bytes) else { return Ok(None) };
        let Ok(file) = File::open(folder.join(TYPES)) else { return Ok(None) };
        let Ok(types) = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()) else { return Ok(None) };
        // The first column is there because parquet has no files without columns.
        listing.extra_types = types.schema().fields().iter().skip(1).map(|field| field.data_type().clone()).collect();
        Ok((listing.format == FORMAT).then_some(listing))
    }

    /// Writes it into `folder`, durably.
    pub(super) fn save(&self, folder: &Path) -> Result<(), ListError> {
        let path = folder.join(TYPES);
        let fields = std::iter::once(Field::new("none", DataType::Boolean, true))
            .chain(self.extra_types.iter().enumerate().map(|(i, t)| Field::new(format!("extra {i}"), t.clone(), true)));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let file = File::create(&path).map_err(ShardError::io("create", &path))?;
        let writer = ArrowWriter::try_new(file, schema, None).and_then(ArrowWriter::into_inner);
        let file = writer.map_err(ShardError::parquet(&path))?;
        file.sync_all().map_err(ShardError::io("sync", &path))?;
        let path = folder.join(LIST);
        let bytes = serde_json::to_vec(self).map_err(|error| ShardError::Record {
            path: path.clone(),
            what: "list",
            detail: error.to_string(),
        })?;
        Ok(disk::replace(&path, &bytes)?)
    }

    /// How many partitions there are.
    pub(super) fn partitions(&self) -> usize {
        self.files.iter().map(|file| file.digests.len()).sum()
    }

    /// The file that partition `number` is of, and its rows there.
    pub(super) fn partition(&self, number: usize, rows_per_shard: u64) -> Option<(&ListFile, Run)> {
        let mut before = 0;
        for file in &self.files {
            let inside = number - before;
            if inside < file.digests.len() {
                return Some((file, file.run(inside, rows_per_shard)));
            }
            before += file.digests.len();
        }
        None
    }

    /// The digest of partition `number`.
    pub(super) fn digest(&self, number: usize) -> Option<Digest> {
        self.files.iter().flat_map(|file| &file.digests).nth(number).copied()
    }

    /// The partition that holds the row of a key, and where in it the row is. `source` is the first part of keys.
    pub(super) fn locate(&self, source: &str, rows_per_shard: u64, key: &str) -> Option<(usize, usize)> {
        let rest = key.strip_prefix(source)?.strip_prefix('/')?;
        let (stem, digits) = match rest.rsplit_once('/') {
            Some((stem, digits)) => (Some(stem), digits),
            None => (None, rest),
        };
        let row: u64 = digits.parse().ok().filter(|row| row_name(*row) == digits)?;
        let mut before = 0;
        for file in &self.files {
            if file.stem.as_deref() == stem && row < file.rows {
                let inside = usize::try_from(row / rows_per_shard).ok()?;
                return Some((before + inside, usize::try_from(row % rows_per_shard).ok()?));
            }
            before += file.digests.len();
        }
        None
    }
}

impl ListFile {
    /// The rows of its partition `number`, counted in this file.
    pub(super) fn run(&self, number: usize, rows_per_shard: u64) -> Run {
        let first = (number as u64).saturating_mul(rows_per_shard);
        Run { first, rows: self.rows.saturating_sub(first).min(rows_per_shard) }
    }

    /// The start of its rows' keys, with a slash at its end.
    pub(super) fn key_start(&self, source: &str) -> String {
        self.stem.as_ref().map_or_else(|| format!("{source}/"), |stem| format!("{source}/{stem}/"))
    }
}

/// The last part of a key.
pub(super) fn row_name(row: u64) -> String {
    format!("{row:09}")
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rows {}..{}", self.first, self.first + self.rows)
    }
}

/// The piece that holds a run of a file's rows, and the run in it.
pub(super) fn piece_of(pieces: &[Piece], run: Run) -> Option<(&Piece, Run)> {
    let mut before = 0;
    for piece in pieces {
        if run.first < before + piece.rows {
            let inside = Run { first: run.first - before, rows: run.rows };
            return Some((piece, inside));
        }
        before += piece.rows;
    }
    None
}
