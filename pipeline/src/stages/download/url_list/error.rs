//! What can be wrong with a list of URLs. Messages never hold a URL's query or a token.

use std::io;

use shards::ShardError;

use crate::remote::RemoteError;

/// What is wrong with a list.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum ListError {
    #[error("the list {name} cannot be read: {source}")]
    Read { name: String, source: io::Error },
    #[error(
        "line {line} of the list {name} has {found} fields instead of {expected}; does a text hold the separator? In a .csv \
         file quotation marks protect it, and with quotes = true in a .tsv file"
    )]
    Ragged { name: String, line: u64, found: u64, expected: u64 },
    #[error("{place} of the list {name} is longer than {} MB; is a quotation mark or a bracket left open?", super::LONGEST_ROW >> 20)]
    TooLong { name: String, place: String },
    #[error("{place} of the list {name} cannot be read: {detail}")]
    Malformed { name: String, place: String, detail: String },
    #[error("the list {name} has no column `{column}`; {hint}")]
    Column { name: String, column: String, hint: String },
    #[error("the column `{column}` of the list {name} holds {found}; expected {expected}")]
    Type { name: String, column: String, found: String, expected: &'static str },
    #[error(
        "the column `{column}` holds {found} in the list {name} and {expected} in the files before it; make them alike, or leave \
         the column out"
    )]
    Mixed { name: String, column: String, found: String, expected: String },
    #[error("the list {name} is not readable parquet: {source}")]
    Parquet { name: String, source: parquet::errors::ParquetError },
    #[error("the list {name} holds values that cannot be kept: {source}")]
    Values { name: String, source: arrow::error::ArrowError },
    #[error(
        "the folder {location} holds lists of several formats ({}); set input_format to one of them", .found.join(", ")
    )]
    SeveralFormats { location: String, found: Vec<&'static str> },
    #[error("{location} holds no list; expected files that end in {expected}")]
    NoFiles { location: String, expected: String },
    #[error(
        "the ending of {location} names no format of a list; set input_format to txt, csv, tsv, json, jsonl or parquet"
    )]
    UnknownFormat { location: String },
    #[error("{location} is not where a list can be: {reason}")]
    Location { location: String, reason: String },
    #[error(
        "the lists {first} and {second} would give their rows the same keys; rename one, or name the folder that holds both"
    )]
    SameKeys { first: String, second: String },
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error("the list {name} has changed since it was planned; plan again")]
    Changed { name: String },
    #[error("{rows} of the list {name} hold more than {} MB of text; make rows_per_shard smaller", super::LARGEST_PARTITION >> 20)]
    TooLarge { name: String, rows: String },
    #[error("the list has {partitions} partitions, and number {number} was asked for; plan again")]
    NoSuchPartition { number: usize, partitions: usize },
    #[error("the partition has {rows} rows, and one behind them was asked for; plan again")]
    NoSuchRow { rows: usize },
    #[error(transparent)]
    Disk(#[from] ShardError),
}

impl ListError {
    /// For `map_err` on reading a list.
    pub(super) fn read(name: &str) -> impl FnOnce(io::Error) -> Self {
        let name = name.to_owned();
        move |source| Self::Read { name, source }
    }

    /// For a location that is none.
    pub(super) fn location(shown: &str, reason: &str) -> Self {
        Self::Location { location: shown.to_owned(), reason: reason.to_owned() }
    }

    /// For `map_err` on parquet operations.
    pub(super) fn parquet(name: &str) -> impl FnOnce(parquet::errors::ParquetError) -> Self {
        let name = name.to_owned();
        move |source| Self::Parquet { name, source }
    }

    /// For `map_err` on arrow operations.
    pub(super) fn values(name: &str) -> impl FnOnce(arrow::error::ArrowError) -> Self {
        let name = name.to_owned();
        move |source| Self::Values { name, source }
    }

    /// Whether the list is there and has other columns, or other types in them.
    pub(in super::super) fn is_about_columns(&self) -> bool {
        matches!(self, Self::Column { .. } | Self::Type { .. } | Self::Mixed { .. })
    }

    /// Whether there is no such file or folder.
    pub(in super::super) fn is_absent(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether only the network stood in the way.
    #[cfg(test)]
    pub(super) fn is_about_network(&self) -> bool {
        matches!(self, Self::Remote(RemoteError::Unreachable { .. }))
    }
}
