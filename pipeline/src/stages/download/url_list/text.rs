//! Lists that are text: one URL a line, comma-separated, tab-separated. Also how any text list is opened.

use std::borrow::Cow;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use serde_json::Value;

use super::wanted::Wanted;
use super::{LONGEST_ROW, ListError};

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

const BUFFER: usize = 1 << 16;

/// Opens a text list: gzip is undone, and a byte order mark left out.
pub(super) fn open(path: &Path, name: &str) -> Result<Box<dyn BufRead>, ListError> {
    let file = File::open(path).map_err(ListError::read(name))?;
    let (start, file) = first(BufReader::with_capacity(BUFFER, file), 2).map_err(ListError::read(name))?;
    let is_gzip = start == [0x1f, 0x8b];
    let whole = Cursor::new(start).chain(file);
    let text: Box<dyn Read> =
        if is_gzip { Box::new(MultiGzDecoder::new(BufReader::with_capacity(BUFFER, whole))) } else { Box::new(whole) };
    let (start, text) = first(text, 3).map_err(ListError::read(name))?;
    let start = if start == [0xef, 0xbb, 0xbf] { Vec::new() } else { start };
    Ok(Box::new(BufReader::with_capacity(BUFFER, Cursor::new(start).chain(text))))
}

/// The first `count` bytes, or as many as there are.
pub(super) fn first<R: Read>(mut reader: R, count: u64) -> io::Result<(Vec<u8>, R)> {
    let mut start = Vec::new();
    reader.by_ref().take(count).read_to_end(&mut start)?;
    Ok((start, reader))
}

/// How many bytes may be read until the next row must have ended, so that an open quotation mark does not swallow a list.
#[derive(Clone, Debug)]
pub(super) struct Allowance {
    left: Rc<Cell<u64>>,
    is_spent: Rc<Cell<bool>>,
}

impl Allowance {
    pub(super) fn new() -> Self {
        let allowance = Self { left: Rc::default(), is_spent: Rc::default() };
        allowance.renew();
        allowance
    }

    /// To be called after each row. Buffers may have read ahead.
    pub(super) fn renew(&self) {
        self.left.set(LONGEST_ROW + 2 * BUFFER as u64);
    }

    pub(super) fn is_spent(&self) -> bool {
        self.is_spent.get()
    }
}

/// A reader that an [`Allowance`] stops.
pub(super) struct Allowed<R> {
    pub(super) inner: R,
    pub(super) allowance: Allowance,
}

impl<R: Read> Read for Allowed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.allowance.left.get();
        if left == 0 {
            self.allowance.is_spent.set(true);
            return Err(io::Error::other("a row has no end"));
        }
        let most = buffer.len().min(left as usize);
        let read = self.inner.read(buffer.get_mut(..most).unwrap_or_default())?;
        self.allowance.left.set(left - read as u64);
        Ok(read)
    }
}

/// The lines of a text list, without their ends. `each` gets the line's number, from 1.
pub(super) fn lines(
    path: &Path,
    name: &str,
    mut each: impl FnMut(u64, &[u8]) -> Result<ControlFlow<()>, ListError>,
) -> Result<(), ListError> {
    let mut reader = open(path, name)?;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = reader.by_ref().take(LONGEST_ROW + 1).read_until(b'\n', &mut line).map_err(ListError::read(name))?;
        if read == 0 {
            break;
        }
        if read as u64 > LONGEST_ROW {
            return Err(ListError::TooLong { name: name.to_owned(), place: Place::Line(number).to_string() });
        }
        if each(number, line.trim_ascii())?.is_break() {
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

/// The rows of a list with a header. Empty lines are no rows.
pub(super) fn read_separated(
    path: &Path,
    name: &str,
    separator: Separator,
    wanted: &Wanted,
    sink: &mut Sink,
) -> Result<(), ListError> {
    let allowance = Allowance::new();
    let mut reader = separator.reader(Allowed { inner: open(path, name)?, allowance: allowance.clone() });
    let failed = |error: csv::Error, line: u64| {
        if allowance.is_spent() {
            return ListError::TooLong { name: name.to_owned(), place: Place::Line(line).to_string() };
        }
        csv_error(name, error)
    };
    let header = reader.byte_headers().map_err(|error| failed(error, 1))?;
    let header: Vec<String> = header.iter().map(|f| String::from_utf8_lossy(f).trim().to_owned()).collect();
    let positions = wanted.positions(name, header.iter().map(String::as_str))?;
    let mut record = csv::ByteRecord::new();
    loop {
        allowance.renew();
        let before = reader.position().line();
        if !reader.read_byte_record(&mut record).map_err(|error| failed(error, before))? {
            return Ok(());
        }
        let line = record.position().map_or(before, csv::Position::line);
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
    let mut reader = separator.reader(Allowed { inner: open(path, name)?, allowance: Allowance::new() });
    let header = reader.byte_headers().map_err(|error| csv_error(name, error))?;
    Ok(header.iter().map(|f| String::from_utf8_lossy(f).trim().to_owned()).collect())
}

/// What is between fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Separator {
    Comma,
    Tab,
}

impl Separator {
    fn reader<R: Read>(self, reader: R) -> csv::Reader<R> {
        let mut builder = csv::ReaderBuilder::new();
        builder.buffer_capacity(BUFFER);
        match self {
            Self::Comma => builder.delimiter(b','),
            // Tab-separated captions hold quotation marks that quote nothing.
            Self::Tab => builder.delimiter(b'\t').quoting(false),
        };
        builder.from_reader(reader)
    }
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
