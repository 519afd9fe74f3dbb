//! The ground floor: how samples lie on disk, how work is committed, and what is said while it happens.
//!
//! Knows no torch, no manifest and no network. Everything above speaks to the disk through this crate.
//!
//! - [`columns`], [`bucket`]: the names and types of a sample's columns, and the size that names a bucket.
//! - [`writer`], [`reader`]: parquet shards, laid out so that one image costs one read, with a [`checksum`] for each row;
//!   [`data_file`]: files of any format. [`rows`], [`ranges`], [`range_cache`]: single rows, by the
//!   pages that hold them, here or on a store.
//! - [`storage`], [`disk`]: where a workdir lies, and every change made to a local disk; [`fault`] lets tests break them.
//! - [`digest`], [`commit`], [`sidecar`], [`lease`]: content digests, the one commit protocol, and who works on what.
//! - [`event`]: what a run tells its watchers.
//! - [`index`]: the bucket index that the trainer reads.

pub mod bucket;
pub mod checksum;
pub mod columns;
pub mod commit;
pub mod data_file;
pub mod digest;
pub mod disk;
pub mod event;
pub mod fault;
pub mod index;
pub mod lease;
pub mod range_cache;
pub mod ranges;
pub mod reader;
pub mod rows;
mod shared_file;
pub mod sidecar;
pub mod storage;
pub mod writer;

use std::path::{Path, PathBuf};

/// What can go wrong between this process and its shards.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The operating system refused; the source says why.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried, as a verb: "read", "create", "rename".
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// A parquet file is damaged, or not parquet at all.
    #[error("{path} is not a readable parquet shard")]
    Parquet { path: PathBuf, source: parquet::errors::ParquetError },
    /// Columns could not be assembled or cast.
    #[error("cannot assemble rows for {path}")]
    Arrow { path: PathBuf, source: arrow::error::ArrowError },
    /// A shard lacks a column that its reader needs, or holds it with another type.
    #[error("{path} has no column `{column}` of type {expected}; it has: {found}")]
    Column { path: PathBuf, column: String, expected: &'static str, found: String },
    /// Rows were asked for that the shard does not have.
    #[error("{path} has {rows} rows, but row {row} was asked for; rebuild the index over this shard")]
    RowOutOfRange { path: PathBuf, row: u64, rows: u64 },
    /// A sidecar, ledger or lease is not what this version writes.
    #[error("{path} is not a readable {what}: {detail}")]
    Record { path: PathBuf, what: &'static str, detail: String },
    /// A workdir's location cannot be used.
    #[error("{location} cannot hold a workdir: {reason}")]
    Location { location: String, reason: String },
    /// An object store refused, or could not be reached.
    #[error("cannot {action} {object}; check the store's address, credentials (AWS_… variables) and network")]
    Store { action: &'static str, object: String, source: Box<object_store::Error> },
    /// What an object store gave is not what was committed.
    #[error("{object} is not what was committed: {detail}; `ferrotype verify` lists all such files")]
    Changed { object: String, detail: String },
}

impl ShardError {
    /// For `map_err` on file operations: names the action and the path.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// For `map_err` on parquet operations. An I/O error inside stays reachable through `source`.
    pub fn parquet(path: &Path) -> impl FnOnce(parquet::errors::ParquetError) -> Self {
        let path = path.to_owned();
        move |source| Self::Parquet { path, source }
    }

    /// Whether it says that a file is gone, or is not what was written. That one cannot be reached at present is no such thing.
    pub fn is_loss(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            Self::Store { source, .. } => matches!(**source, object_store::Error::NotFound { .. }),
            Self::Changed { .. } | Self::Record { .. } => true,
            _ => false,
        }
    }

    /// For `map_err` on arrow operations.
    pub fn arrow(path: &Path) -> impl FnOnce(arrow::error::ArrowError) -> Self {
        let path = path.to_owned();
        move |source| Self::Arrow { path, source }
    }
}
