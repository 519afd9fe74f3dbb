//! Rows of text: JSON, one object a line or an array of objects, and lines of fields with a header.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Cursor, Read};
use std::sync::Arc;

use arrow::array::{AsArray, StringArray};
use arrow::datatypes::DataType;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::error::TableError;
use super::parameters::{Column, Shape};
use super::path::{dead_end, json_kind};
use super::{Block, Format, Sink, Table};
use crate::stage::StageError;
use crate::stages::fields::{FieldType, Fields};
use crate::stages::text::{
    Allowance, Allowed, LONGEST_ROW, Line, Lines, QUOTED, Separator, Shape as Form, first, is_quoted, open,
};
use crate::stages::types::unify;

/// Rows that are turned into arrays together: no more, and about so many bytes.
const ROWS: usize = 4096;
const BYTES: usize = 16 << 20;
/// Where [`Fields`] hold the key; no column that is wanted is called so.
const KEY: &str = "";

type Row = Map<String, Value>;
/// Takes each row, or why it cannot be read.
type Each<'a> = dyn FnMut(Result<Row, String>) -> Result<(), StageError> + 'a;

/// See [`Table::types`]. What JSON holds is known only when all of it was read.
pub(super) fn types(table: &Table, shape: &Shape, most: u64) -> Result<Vec<DataType>, StageError> {
    if shape.image.is_some() {
        return Err(TableError::Text { table: table.name.clone() }.into());
    }
    let is_json = matches!(table.format, Format::Json | Format::Jsonl);
    let unsaid = if is_json { DataType::Null } else { DataType::Utf8 };
    let said = shape.columns.iter().map(|column| column.kind.map_or_else(|| unsaid.clone(), FieldType::data_type));
    let mut types: Vec<DataType> = said.collect();
    if !is_json || shape.columns.iter().all(|column| column.kind.is_some()) {
        return Ok(types);
    }
    rows(table, shape, most, &mut |row| {
        let Ok(row) = row else { return Ok(()) };
        for (known, column) in types.iter_mut().zip(&shape.columns).filter(|(_, column)| column.kind.is_none()) {
            if let Ok(Some(value)) = column.path.in_row(&row)
                && let Some(both) = unify(known, &type_of(value), true)
            {
                *known = both;
            }
        }
        Ok(())
    })?;
    Ok(types)
}

fn type_of(value: &Value) -> DataType {
    match value {
        Value::Null => DataType::Null,
        Value::Bool(_) => DataType::Boolean,
        Value::Number(number) if number.is_i64() => DataType::Int64,
        Value::Number(number) if number.is_f64() => DataType::Float64,
        _ => DataType::Utf8,
    }
}

/// As what values of such a column are gathered.
fn field_type(kind: &DataType) -> FieldType {
    match kind {
        DataType::Boolean => FieldType::Boolean,
        kind if kind.is_integer() => FieldType::Integer,
        kind if kind.is_floating() => FieldType::Number,
        _ => FieldType::Text,
    }
}

/// See [`Table::read`].
pub(super) fn read(
    table: &Table,
    shape: &Shape,
    types: &[DataType],
    most: u64,
    sink: &mut Sink,
) -> Result<(), StageError> {
    let mut gathered = Gathered::new(table, shape, types);
    rows(table, shape, most, &mut |row| {
        gathered.push(row);
        if gathered.rows >= ROWS || gathered.bytes >= BYTES { sink(gathered.take()?) } else { Ok(()) }
    })?;
    if gathered.rows > 0 {
        sink(gathered.take()?)?;
    }
    gathered.seen.check(table, shape)
}

/// Rows that wait for others.
struct Gathered<'a> {
    table: &'a Table,
    shape: &'a Shape,
    fields: Fields,
    /// Rows that were taken before.
    first: u64,
    rows: usize,
    bytes: usize,
    malformed: Vec<(usize, String)>,
    unfit: Vec<String>,
    seen: Seen,
}

impl<'a> Gathered<'a> {
    fn new(table: &'a Table, shape: &'a Shape, types: &[DataType]) -> Self {
        let of_column = |(column, kind): (&Column, &DataType)| {
            (column.name.clone(), column.kind.unwrap_or_else(|| field_type(kind)))
        };
        let mut wanted: BTreeMap<String, FieldType> = shape.columns.iter().zip(types).map(of_column).collect();
        if shape.key.is_some() {
            wanted.insert(KEY.to_owned(), FieldType::Text);
        }
        Self {
            table,
            shape,
            fields: Fields::new(&wanted),
            first: 0,
            rows: 0,
            bytes: 0,
            malformed: Vec::new(),
            unfit: Vec::new(),
            seen: Seen { is_header: matches!(table.format, Format::Csv | Format::Tsv), ..Seen::default() },
        }
    }

    fn push(&mut self, row: Result<Row, String>) {
        let values = row.and_then(|row| {
            self.seen.add(&row, self.shape);
            self.values(&row)
        });
        match values {
            Ok(values) => {
                let bytes = values.values().map(|value| value.as_str().map_or(16, str::len));
                self.bytes += bytes.sum::<usize>();
                self.unfit.extend(self.fields.push(&values));
                if self.table.format == Format::Tsv
                    && !self.table.quotes
                    && values.values().any(|value| value.as_str().is_some_and(is_quoted))
                {
                    self.unfit.push(QUOTED.to_owned());
                }
            }
            Err(why) => {
                self.malformed.push((self.rows, why));
                self.fields.push(&Map::new());
            }
        }
        self.rows += 1;
    }

    /// What is wanted of a row, by the names that it gets.
    fn values(&self, row: &Row) -> Result<Row, String> {
        let key = self.shape.key.iter().map(|path| (KEY, path));
        let columns = self.shape.columns.iter().map(|column| (column.name.as_str(), &column.path));
        let mut values = Map::new();
        for (name, path) in key.chain(columns) {
            if let Some(value) = path.in_row(row)? {
                values.insert(name.to_owned(), value.clone());
            }
        }
        Ok(values)
    }

    fn take(&mut self) -> Result<Block, StageError> {
        let batch = self.fields.take().map_err(TableError::values(&self.table.name))?;
        let keys: Option<StringArray> = batch.column_by_name(KEY).and_then(|keys| keys.as_string_opt::<i32>()).cloned();
        let columns = self.shape.columns.iter().filter_map(|column| batch.column_by_name(&column.name));
        let values = columns.map(Arc::clone).collect();
        let (first, rows) = (self.first, std::mem::take(&mut self.rows));
        self.first += rows as u64;
        self.bytes = 0;
        let (malformed, unfit) = (std::mem::take(&mut self.malformed), std::mem::take(&mut self.unfit));
        Ok(Block { first, rows, keys, images: None, values, malformed, unfit })
    }
}

/// Which columns rows of JSON had. Of their names only so many are kept: they are for an error message.
#[derive(Default)]
struct Seen {
    /// Columns were compared with a header already.
    is_header: bool,
    rows: u64,
    names: BTreeSet<String>,
    /// For each of [`Shape::paths`].
    wanted: Vec<bool>,
}

impl Seen {
    fn add(&mut self, row: &Row, shape: &Shape) {
        const KEPT: usize = 200;
        if self.is_header {
            return;
        }
        self.rows += 1;
        let mut all = true;
        self.wanted.resize(shape.paths().count(), false);
        for (seen, path) in self.wanted.iter_mut().zip(shape.paths()) {
            *seen = *seen || path.column_in(|name| row.contains_key(name)).is_some();
            all &= *seen;
        }
        if !all && self.names.len() < KEPT {
            self.names.extend(row.keys().cloned());
        }
    }

    fn check(&self, table: &Table, shape: &Shape) -> Result<(), StageError> {
        let missing = shape.paths().zip(&self.wanted).find(|(_, seen)| !**seen);
        match missing.filter(|_| self.rows > 0) {
            None => Ok(()),
            Some((path, _)) => {
                let names = self.names.iter().map(String::as_str);
                Err(TableError::column(&table.name, path.column(), names).into())
            }
        }
    }
}

/// The first `most` rows.
fn rows(table: &Table, shape: &Shape, most: u64, each: &mut Each) -> Result<(), StageError> {
    let text = open(&table.path).map_err(TableError::read(&table.name, "from its beginning"))?;
    match table.format {
        Format::Csv => separated(table, shape, Separator::Comma, text, most, each),
        Format::Tsv => separated(table, shape, Separator::tab(table.quotes), text, most, each),
        Format::Jsonl => lines(table, text, most, each),
        Format::Json => {
            let read = first(text, Form::LOOK_AHEAD);
            let (start, rest) = read.map_err(TableError::read(&table.name, "from its beginning"))?;
            let form = Form::of(&start);
            let text = Cursor::new(start).chain(rest);
            match form {
                Form::Empty => Ok(()),
                Form::Columns => Err(TableError::OfColumns(table.name.clone()).into()),
                Form::Lines => lines(table, text, most, each),
                Form::Array => array(table, text, most, each),
            }
        }
        Format::Parquet => Ok(()),
    }
}

/// Rows of one object a line. Empty lines are no rows.
fn lines(table: &Table, text: impl BufRead, most: u64, each: &mut Each) -> Result<(), StageError> {
    let mut lines = Lines::new(text);
    let (mut before, mut count) = (0, 0);
    while count < most {
        let next = lines.next_line().map_err(TableError::read(&table.name, format!("after line {before}")))?;
        let Some((number, line)) = next else { break };
        before = number;
        let row = match line {
            Line::Whole([]) => continue,
            Line::Whole(line) => serde_json::from_slice(line).map_err(|error| {
                // It counts the lines of a line.
                let words = error.to_string();
                let words = words.split(" at line ").next().unwrap_or_default();
                format!("line {number}, column {}: {words}", error.column())
            }),
            Line::TooLong => Err(format!("line {number} has more than {} MB", LONGEST_ROW >> 20)),
        };
        each(row)?;
        count += 1;
    }
    Ok(())
}

/// Rows of an array of objects.
fn array(table: &Table, text: impl Read, most: u64, each: &mut Each) -> Result<(), StageError> {
    let allowance = Allowance::new();
    let text = BufReader::new(Allowed { inner: text, allowance: allowance.clone() });
    let mut elements = Elements { each, allowance: &allowance, most, count: 0, end: None };
    let mut deserializer = serde_json::Deserializer::from_reader(text);
    let read = deserializer.deserialize_seq(&mut elements).and_then(|()| deserializer.end());
    let (count, end) = (elements.count, elements.end.take());
    if let Some(end) = end {
        return end;
    }
    let Err(error) = read else { return Ok(()) };
    let (table, place) = (table.name.clone(), format!("row {count}"));
    let error = if allowance.is_spent() {
        TableError::TooLong { table, place }
    } else if error.is_io() {
        TableError::Read { table, place: format!("from {place} on"), source: error.into() }
    } else {
        TableError::Malformed { table, place, detail: error.to_string() }
    };
    Err(error.into())
}

/// Hands the elements of an array on, one by one.
struct Elements<'a, 'e> {
    each: &'a mut Each<'e>,
    allowance: &'a Allowance,
    most: u64,
    count: u64,
    /// Set when the rest is not read: with what was said of the last row.
    end: Option<Result<(), StageError>>,
}

impl<'de> Visitor<'de> for &mut Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(element) = elements.next_element::<Value>()? {
            self.allowance.renew();
            let row = match element {
                Value::Object(row) => Ok(row),
                other => Err(format!("it is {}, and no object", json_kind(&other))),
            };
            let taken = (self.each)(row);
            self.count += 1;
            if taken.is_err() || self.count >= self.most {
                self.end = Some(taken);
                return Err(A::Error::custom("the rest is not wanted"));
            }
        }
        Ok(())
    }
}

/// Rows of fields, below a header.
fn separated(
    table: &Table,
    shape: &Shape,
    separator: Separator,
    text: impl Read,
    most: u64,
    each: &mut Each,
) -> Result<(), StageError> {
    let name = || table.name.clone();
    let allowance = Allowance::new();
    let mut reader = separator.reader(Allowed { inner: text, allowance: allowance.clone() }, true);
    let header = reader.byte_headers().map_err(|error| {
        let detail = if allowance.is_spent() { "it has no end".to_owned() } else { error.to_string() };
        TableError::Header { table: name(), detail }
    })?;
    let header: Vec<String> = header.iter().map(|f| String::from_utf8_lossy(f).trim().to_owned()).collect();
    let wanted = positions(table, shape, &header)?;
    let mut record = csv::ByteRecord::new();
    let mut count = 0;
    while count < most {
        allowance.renew();
        let line = reader.position().line();
        let row = match reader.read_byte_record(&mut record) {
            Ok(false) => break,
            Ok(true) => Ok(row_of(&record, &header, &wanted)),
            Err(_) if allowance.is_spent() => {
                return Err(TableError::TooLong { table: name(), place: format!("line {line}") }.into());
            }
            Err(error) => match error.into_kind() {
                csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
                    let line = pos.as_ref().map_or(line, csv::Position::line);
                    Err(format!("line {line}: it has {len} fields instead of {expected_len}"))
                }
                csv::ErrorKind::Io(source) => {
                    return Err(
                        TableError::Read { table: name(), place: format!("from line {line} on"), source }.into()
                    );
                }
                other => Err(format!("line {line}: {other:?}")),
            },
        };
        each(row)?;
        count += 1;
    }
    Ok(())
}

/// Where the wanted columns are in the header, which has all of them.
fn positions(table: &Table, shape: &Shape, header: &[String]) -> Result<Vec<usize>, TableError> {
    let mut positions = Vec::new();
    for path in shape.paths() {
        let column = path.column_in(|name| header.iter().any(|other| other == name));
        let column =
            column.ok_or_else(|| TableError::column(&table.name, path.column(), header.iter().map(String::as_str)))?;
        let written = path.to_string();
        if let Some(rest) = written.strip_prefix(column).filter(|rest| !rest.is_empty()) {
            return Err(TableError::Path { table: table.name.clone(), detail: dead_end(column, "text", rest) });
        }
        positions.extend(header.iter().position(|other| other == column));
    }
    Ok(positions)
}

/// An empty field is none.
fn row_of(record: &csv::ByteRecord, header: &[String], wanted: &[usize]) -> Row {
    let field = |&position: &usize| {
        let text = record.get(position).filter(|field| !field.is_empty())?;
        Some((header.get(position)?.clone(), Value::String(String::from_utf8_lossy(text).into_owned())))
    };
    wanted.iter().filter_map(field).collect()
}
