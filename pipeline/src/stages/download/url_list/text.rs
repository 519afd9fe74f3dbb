//! Lists that are text: one URL a line, comma-separated, tab-separated.

use std::borrow::Cow;
use std::io::BufRead;
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::Value;

use super::ListError;
use super::wanted::Wanted;
use crate::stages::text::{self, Line, Lines};
pub(super) use crate::stages::text::{Allowance, Allowed, Separator, first};

/// A value of a row that has just been read.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Field<'a> {
    Missing,
    Text(Cow<'a, str>),
    /// Anything but null and text.
    Json(Value),
}

impl From<Value> for Field<'_> {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Missing,
            Value::String(text) => Self::Text(text.into()),
            other => Self::Json(other),
        }
    }
}

/// Takes the wanted fields of each row, in the order of [`Wanted::names`], with where the row is, and says whether to go on.
pub(super) type Sink<'a> = dyn FnMut(Place, Vec<Field>) -> Result<ControlFlow<()>, ListError> + 'a;

/// Where a row is, for people.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Line(u64),
    /// Counted from 1.
    Row(u64),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Row(row) => write!(f, "row {row}"),
        }
    }
}

/// Opens a text list: compression is undone, and a byte order mark left out.
pub(super) fn open(path: &Path, name: &str) -> Result<Box<dyn BufRead>, ListError> {
    text::open(path).map_err(ListError::read(name))
}

/// The lines of a text list, without their ends. `each` gets the line's number, from 1.
pub(super) fn lines(
    path: &Path,
    name: &str,
    mut each: impl FnMut(u64, &[u8]) -> Result<ControlFlow<()>, ListError>,
) -> Result<(), ListError> {
    let mut lines = Lines::new(open(path, name)?);
    while let Some((number, line)) = lines.next_line().map_err(ListError::read(name))? {
        let Line::Whole(line) = line else {
            return Err(ListError::TooLong { name: name.to_owned(), place: Place::Line(number).to_string() });
        };
        if each(number, line)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// The rows of a list of bare URLs. Empty lines are no rows.
pub(super) fn read_txt(path: &Path, name: &str, sink: &mut Sink) -> Result<(), ListError> {
    lines(path, name, |number, line| {
        if line.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        sink(Place::Line(number), vec![Field::Text(String::from_utf8_lossy(line))])
    })
}

/// The rows of a list with a header, its own or a given one. Empty lines are no rows.
pub(super) fn read_separated(
    path: &Path,
    name: &str,
    separator: Separator,
    wanted: &Wanted,
    sink: &mut Sink,
) -> Result<(), ListError> {
    let allowance = Allowance::new();
    let text = Allowed { inner: open(path, name)?, allowance: allowance.clone() };
    let mut reader = separator.reader(text, wanted.header.is_empty());
    let failed = |error: csv::Error, line: u64| {
        if allowance.is_spent() {
            return ListError::TooLong { name: name.to_owned(), place: Place::Line(line).to_string() };
        }
        csv_error(name, error)
    };
    let header = if wanted.header.is_empty() {
        let header = reader.byte_headers().map_err(|error| failed(error, 1))?;
        header.iter().map(|f| String::from_utf8_lossy(f).trim().to_owned()).collect()
    } else {
        wanted.header.clone()
    };
    let positions = wanted.positions(name, header.iter().map(String::as_str))?;
    let mut record = csv::ByteRecord::new();
    loop {
        allowance.renew();
        let before = reader.position().line();
        if !reader.read_byte_record(&mut record).map_err(|error| failed(error, before))? {
            return Ok(());
        }
        let line = record.position().map_or(before, csv::Position::line);
        if record.len() != header.len() {
            let (found, expected) = (record.len() as u64, header.len() as u64);
            return Err(ListError::Ragged { name: name.to_owned(), line, found, expected });
        }
        let fields = positions
            .iter()
            .map(|&p| record.get(p).map_or(Field::Missing, |field| Field::Text(String::from_utf8_lossy(field))));
        if sink(Place::Line(line), fields.collect())?.is_break() {
            return Ok(());
        }
    }
}

/// The names in a list's header.
pub(super) fn header(path: &Path, name: &str, separator: Separator) -> Result<Vec<String>, ListError> {
    let mut reader = separator.reader(Allowed { inner: open(path, name)?, allowance: Allowance::new() }, true);
    let header = reader.byte_headers().map_err(|error| csv_error(name, error))?;
    Ok(header.iter().map(|f| String::from_utf8_lossy(f).trim().to_owned()).collect())
}

fn csv_error(name: &str, error: csv::Error) -> ListError {
    let name = name.to_owned();
    match error.into_kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.as_ref().map_or(0, csv::Position::line);
            ListError::Ragged { name, line, found: len, expected: expected_len }
        }
        csv::ErrorKind::Io(source) => ListError::Read { name, source },
        other => ListError::Malformed { name, place: "a line".to_owned(), detail: format!("{other:?}") },
    }
}
