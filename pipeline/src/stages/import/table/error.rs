//! What can be wrong with a table as a whole. What is wrong with a row is counted, and kept in quarantine.

use std::io;

use arrow::error::ArrowError;

use crate::manifest::nearest;
use crate::stage::StageError;
use crate::stages::text::LONGEST_ROW;

#[derive(Debug, thiserror::Error)]
pub(super) enum TableError {
    #[error("the table {table} has no column `{column}`; {hint}")]
    Column { table: String, column: String, hint: String },
    /// A part of a path does not lead on.
    #[error("in the table {table}, {detail}")]
    Path { table: String, detail: String },
    #[error("`{path}` of the table {table} is {found}; expected images: bytes, or a structure with a field bytes")]
    NoImages { table: String, path: String, found: String },
    #[error("the table {table} is text, which holds no images; images come from parquet, tars or a folder of pictures")]
    Text { table: String },
    #[error("`{column}` of the table {table} is {found}, which is no {expected}; in keep, write {column} = \"text\"")]
    Type { table: String, column: String, found: String, expected: &'static str },
    #[error("the table {table} cannot be read on {place}: {source}")]
    Read { table: String, place: String, source: io::Error },
    #[error("{place} of the table {table} has more than {} MB; is a quotation mark or a bracket left open?", LONGEST_ROW >> 20)]
    TooLong { table: String, place: String },
    #[error("the table {table} is no JSON from {place} on: {detail}")]
    Malformed { table: String, place: String, detail: String },
    #[error(
        "the table {0} begins with an object or a list within an object, and so seems to be an object of columns; make it an array \
         of objects, or, if it has one object a line, call it .jsonl"
    )]
    OfColumns(String),
    #[error("the first line of the table {table}, which names its columns, cannot be read: {detail}")]
    Header { table: String, detail: String },
    #[error("values of the table {table} cannot be taken over: {source}")]
    Values { table: String, source: ArrowError },
    #[error("the name of {0} says of no table what it is; this is a fault in the program")]
    NoTable(String),
}

impl TableError {
    /// For a column that is not among those found.
    pub(super) fn column<'a>(table: &str, column: &str, found: impl Iterator<Item = &'a str> + Clone) -> Self {
        const SHOWN: usize = 40;
        let names: Vec<&str> = found.clone().take(SHOWN).collect();
        let more = if found.clone().nth(SHOWN).is_some() { ", …" } else { "" };
        let has = format!("it has: {}{more}", names.join(", "));
        let hint = match nearest(column, found) {
            Some(near) => format!("did you mean `{near}`? {has}"),
            None if names.is_empty() => "it has no columns".to_owned(),
            None => has,
        };
        Self::Column { table: table.to_owned(), column: column.to_owned(), hint }
    }

    /// For `map_err` on reading a text.
    pub(super) fn read(table: &str, place: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let (table, place) = (table.to_owned(), place.into());
        move |source| Self::Read { table, place, source }
    }

    /// For `map_err` on arrow operations.
    pub(super) fn values(table: &str) -> impl FnOnce(ArrowError) -> Self {
        let table = table.to_owned();
        move |source| Self::Values { table, source }
    }
}

impl From<TableError> for StageError {
    fn from(error: TableError) -> Self {
        Self::failed(error)
    }
}
