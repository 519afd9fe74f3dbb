//! Lists that are JSON: one object a line, an array of objects, or columns.
//!
//! Everything streams. Columns lie one behind the other in a file, so they are first written to a temporary file each, and
//! then read beside each other.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Cursor, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use shards::ShardError;
use shards::digest::{Digest, DigestBuilder};

use super::text::{Allowance, Allowed, Field, Place, Sink, first, lines, open};
use super::wanted::Wanted;
use super::{LONGEST_ROW, ListError};
use crate::stages::text::Shape;

/// Names of a list's columns, as far as they were seen. Only so many are kept: they are for error messages.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) names: BTreeSet<String>,
    /// For each wanted column, whether a row had it.
    pub(super) wanted: Vec<bool>,
}

impl Seen {
    pub(super) fn new(wanted: &Wanted) -> Self {
        Self { names: BTreeSet::new(), wanted: vec![false; wanted.names.len()] }
    }

    fn add(&mut self, name: &str, position: Option<usize>) {
        const KEPT: usize = 200;
        if let Some(seen) = position.and_then(|p| self.wanted.get_mut(p)) {
            *seen = true;
        }
        if self.names.len() < KEPT && !self.names.contains(name) {
            self.names.insert(name.to_owned());
        }
    }
}

/// The rows of a list with one object a line. Empty lines are no rows.
pub(super) fn read_lines(
    path: &Path,
    name: &str,
    wanted: &Wanted,
    seen: &mut Seen,
    sink: &mut Sink,
) -> Result<(), ListError> {
    lines(path, name, |number, line| {
        if line.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let text = String::from_utf8_lossy(line);
        let mut deserializer = serde_json::Deserializer::from_str(&text);
        let row = Row { wanted, seen }
            .deserialize(&mut deserializer)
            .and_then(|row| deserializer.end().map(|()| row))
            .map_err(|error| malformed(name, Place::Line(number), &error))?;
        sink(Place::Line(number), row)
    })
}

fn malformed(name: &str, place: Place, error: &serde_json::Error) -> ListError {
    ListError::Malformed { name: name.to_owned(), place: place.to_string(), detail: error.to_string() }
}

/// The rows of a list that is one JSON value: an array of objects, or an object of columns. Objects one behind the other are
/// read as well, since many such lists are called .json. `folder` is for temporary files.
pub(super) fn read_value(
    path: &Path,
    name: &str,
    folder: &Path,
    wanted: &Wanted,
    seen: &mut Seen,
    sink: &mut Sink,
) -> Result<(), ListError> {
    let (start, rest) = first(open(path, name)?, Shape::LOOK_AHEAD).map_err(ListError::read(name))?;
    let shape = Shape::of(&start);
    let reader = Cursor::new(start).chain(rest);
    match shape {
        Shape::Empty => Ok(()),
        Shape::Lines => read_lines(path, name, wanted, seen, sink),
        Shape::Array => {
            let allowance = Allowance::new();
            let reader = BufReader::new(Allowed { inner: reader, allowance: allowance.clone() });
            let mut rows = Rows { wanted, seen, sink, allowance: &allowance, row: 0, end: None };
            let mut deserializer = serde_json::Deserializer::from_reader(reader);
            let read = deserializer.deserialize_seq(&mut rows).and_then(|()| deserializer.end());
            let (row, end) = (rows.row, rows.end.take());
            finish(name, Place::Row(row + 1), read, end, &allowance)
        }
        Shape::Columns => {
            let allowance = Allowance::new();
            let reader = BufReader::new(Allowed { inner: reader, allowance: allowance.clone() });
            let files = wanted.names.iter().map(|_| tempfile::tempfile_in(folder).map(BufWriter::new));
            let files = files.collect::<Result<Vec<_>, _>>().map_err(ShardError::io("create a file in", folder))?;
            let known = vec![None; wanted.names.len()];
            let mut columns = Columns { wanted, seen, allowance: &allowance, files, known, failure: None };
            let mut deserializer = serde_json::Deserializer::from_reader(reader);
            let read = deserializer.deserialize_map(&mut columns).and_then(|()| deserializer.end());
            let Columns { files, known, failure, .. } = columns;
            let end = failure.map(|error| Err(ShardError::io("write a temporary file in", folder)(error).into()));
            finish(name, Place::Row(0), read, end, &allowance)?;
            beside_each_other(name, folder, files, &known, wanted, sink)
        }
    }
}

/// Turns how reading ended into what it means: `end` is the sink's own word.
fn finish(
    name: &str,
    place: Place,
    read: Result<(), serde_json::Error>,
    end: Option<Result<(), ListError>>,
    allowance: &Allowance,
) -> Result<(), ListError> {
    if let Some(end) = end {
        return end;
    }
    let Err(error) = read else { return Ok(()) };
    if allowance.is_spent() {
        let place = match place {
            Place::Row(0) => format!("a value at line {}", error.line()),
            other => other.to_string(),
        };
        return Err(ListError::TooLong { name: name.to_owned(), place });
    }
    if error.is_io() {
        return Err(ListError::Read { name: name.to_owned(), source: error.into() });
    }
    Err(malformed(name, Place::Line(error.line() as u64), &error))
}

/// One row: an object, of which the wanted fields are kept.
struct Row<'a> {
    wanted: &'a Wanted,
    seen: &'a mut Seen,
}

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = Vec<Field<'static>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = Vec<Field<'static>>;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an object with the row's columns")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut row = vec![Field::Missing; self.wanted.names.len()];
        while let Some(key) = map.next_key::<String>()? {
            let position = self.wanted.names.iter().position(|name| *name == key);
            self.seen.add(&key, position);
            match position.and_then(|p| row.get_mut(p)) {
                Some(field) => *field = map.next_value::<Value>()?.into(),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(row)
    }
}

/// Hands the rows of an array on, one by one.
struct Rows<'a, 's> {
    wanted: &'a Wanted,
    seen: &'a mut Seen,
    sink: &'a mut Sink<'s>,
    allowance: &'a Allowance,
    row: u64,
    end: Option<Result<(), ListError>>,
}

impl<'de> Visitor<'de> for &mut Rows<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        while let Some(row) = rows.next_element_seed(Row { wanted: self.wanted, seen: self.seen })? {
            self.row += 1;
            self.allowance.renew();
            let end = match (self.sink)(Place::Row(self.row), row) {
                Ok(ControlFlow::Continue(())) => continue,
                Ok(ControlFlow::Break(())) => Ok(()),
                Err(error) => Err(error),
            };
            self.end = Some(end);
            return Err(A::Error::custom("the rest is not wanted"));
        }
        Ok(())
    }
}

/// Writes the values of wanted columns to a file each.
struct Columns<'a> {
    wanted: &'a Wanted,
    seen: &'a mut Seen,
    allowance: &'a Allowance,
    files: Vec<BufWriter<File>>,
    /// Of each wanted column that was there: how many values it has, and the digest of what they are indexed by.
    known: Vec<Option<(u64, Digest)>>,
    failure: Option<std::io::Error>,
}

impl<'de> Visitor<'de> for &mut Columns<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an object of columns")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            let position = self.wanted.names.iter().position(|n| *n == name);
            self.seen.add(&name, position);
            let file = position.and_then(|p| self.files.get_mut(p));
            let again = position.and_then(|p| self.known.get(p)).is_some_and(Option::is_some);
            if again {
                return Err(A::Error::custom(format!("the column `{name}` is there twice")));
            }
            let column = Column { file, allowance: self.allowance, failure: &mut self.failure };
            let known = map.next_value_seed(column)?;
            if let Some(place) = position.and_then(|p| self.known.get_mut(p)) {
                *place = Some(known);
            }
        }
        Ok(())
    }
}

/// The values of one column, which may be indexed by name or in order.
struct Column<'a> {
    file: Option<&'a mut BufWriter<File>>,
    allowance: &'a Allowance,
    failure: &'a mut Option<std::io::Error>,
}

impl Column<'_> {
    fn write<E: serde::de::Error>(&mut self, value: &Value) -> Result<(), E> {
        self.allowance.renew();
        let Some(file) = &mut self.file else { return Ok(()) };
        let written = serde_json::to_writer(&mut *file, value).map_err(std::io::Error::from);
        written.and_then(|()| file.write_all(b"\n")).map_err(|error| {
            *self.failure = Some(error);
            E::custom("a temporary file cannot be written")
        })
    }
}

impl<'de> DeserializeSeed<'de> for Column<'_> {
    type Value = (u64, Digest);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Column<'_> {
    type Value = (u64, Digest);

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("the values of a column")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut count, mut index) = (0, DigestBuilder::new());
        while let Some(key) = map.next_key::<String>()? {
            index.add(&key);
            self.write(&map.next_value()?)?;
            count += 1;
        }
        Ok((count, index.finish()))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut values: A) -> Result<Self::Value, A::Error> {
        let mut count = 0;
        while let Some(value) = values.next_element()? {
            self.write(&value)?;
            count += 1;
        }
        Ok((count, DigestBuilder::new().finish()))
    }
}

/// Reads the columns' files beside each other, as rows.
fn beside_each_other(
    name: &str,
    folder: &Path,
    files: Vec<BufWriter<File>>,
    known: &[Option<(u64, Digest)>],
    wanted: &Wanted,
    sink: &mut Sink,
) -> Result<(), ListError> {
    let present: Vec<(&String, &(u64, Digest))> =
        wanted.names.iter().zip(known).filter_map(|(name, known)| Some((name, known.as_ref()?))).collect();
    let Some((first, expected)) = present.first() else { return Ok(()) };
    if let Some((other, _)) = present.iter().find(|(_, known)| known != expected) {
        let detail = format!("the columns `{first}` and `{other}` have different rows");
        return Err(ListError::Malformed { name: name.to_owned(), place: "the whole".to_owned(), detail });
    }
    let failed = || ShardError::io("read a temporary file in", folder);
    let mut readers = Vec::new();
    for file in files {
        let mut file = file.into_inner().map_err(|error| failed()(error.into_error()))?;
        std::io::Seek::rewind(&mut file).map_err(failed())?;
        readers.push(BufReader::new(file));
    }
    let mut line = Vec::new();
    for row in 1..=expected.0 {
        let mut fields = Vec::with_capacity(readers.len());
        for reader in &mut readers {
            line.clear();
            // A column that is not there has an empty file.
            reader.by_ref().take(2 * LONGEST_ROW).read_until(b'\n', &mut line).map_err(failed())?;
            let value = if line.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&line) };
            fields.push(value.map_err(|error| malformed(name, Place::Row(row), &error))?.into());
        }
        if sink(Place::Row(row), fields)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// Whether the first rows of a list with one object a line have a URL column.
pub(super) fn check_first_rows(path: &Path, name: &str, wanted: &Wanted) -> Result<(), ListError> {
    const ROWS: u64 = 100;
    let mut seen = Seen::new(wanted);
    let mut rows = 0;
    read_lines(path, name, wanted, &mut seen, &mut |_, _| {
        rows += 1;
        Ok(if rows < ROWS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    if rows > 0 && !seen.wanted.get(wanted.url).copied().unwrap_or(false) {
        return Err(Wanted::missing(name, wanted.name(wanted.url), seen.names.iter().map(String::as_str)));
    }
    Ok(())
}
