//! Rows of tables to a shard: keys, images and constants, and what was refused.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BooleanArray, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema};
use rayon::prelude::*;
use shards::columns;
use shards::digest::Digest;
use shards::writer::ShardWriter;

use super::error::TableError;
use super::parameters::Wanted;
use super::{Block, Table};
use crate::quarantine::{BadRow, Quarantine};
use crate::stage::{Outcome, StageError, Task};
use crate::stages::samples::{Columns, Sample, SampleWriter, sha256, size};
use crate::stages::types::adapt;

const STATUS: &str = "failed_to_import";

/// A shard that is being made.
pub(super) struct Maker<'a> {
    wanted: &'a Wanted,
    types: &'a [DataType],
    task: &'a Task<'a>,
    /// Of the columns that come as they are: `columns` and `keep`, and constants.
    schema: Arc<Schema>,
    writer: Writer,
    quarantine: Quarantine<'a>,
    /// Of the rows so far.
    keys: HashSet<Digest>,
    rows_in: u64,
    observed: BTreeMap<String, u64>,
}

enum Writer {
    Samples(Box<SampleWriter>),
    /// Rows without images: their key before the other columns.
    Rows(Box<ShardWriter>, Arc<Schema>),
}

/// An image that passed: pixels across and down, and its digest.
type Passed = (u32, u32, String);
type Refused = (&'static str, String);

/// A caption and a URL are never null.
fn is_filled(name: &str) -> bool {
    [columns::CAPTION, columns::URL].contains(&name)
}

impl<'a> Maker<'a> {
    /// `types` are those of the wanted columns.
    pub(super) fn new(wanted: &'a Wanted, types: &'a [DataType], task: &'a Task<'a>) -> Result<Self, StageError> {
        let has_images = wanted.shape.image.is_some();
        let columns = wanted.shape.columns.iter().zip(types);
        // Samples have these by themselves.
        let columns = columns.filter(|(column, _)| !has_images || !is_filled(&column.name));
        let columns = columns.map(|(column, kind)| Field::new(&column.name, kind.clone(), !is_filled(&column.name)));
        let constants = wanted.semantics.constants.keys().map(|name| Field::new(name, DataType::Utf8, false));
        let fields: Vec<Field> = columns.chain(constants).collect();
        let path = task.attempt.data();
        let schema = Arc::new(Schema::new(fields.clone()));
        let writer = if has_images {
            let additional = (!fields.is_empty()).then(|| RecordBatch::new_empty(Arc::clone(&schema)));
            let columns = Columns { hash: Some(columns::SHA256), additional, ..Columns::default() };
            Writer::Samples(Box::new(SampleWriter::create(&path, columns)?))
        } else {
            let key = Field::new(columns::KEY, DataType::Utf8, false);
            let whole = Arc::new(columns::schema_of_samples(std::iter::once(key).chain(fields).collect()));
            Writer::Rows(Box::new(ShardWriter::create(&path, &whole)?), whole)
        };
        let quarantine = Quarantine::new(task.on_bad_row, task.stage, task.tally);
        let (keys, observed) = (HashSet::new(), BTreeMap::new());
        Ok(Self { wanted, types, task, schema, writer, quarantine, keys, rows_in: 0, observed })
    }

    pub(super) fn note(&mut self, what: &str) {
        *self.observed.entry(what.to_owned()).or_default() += 1;
    }

    /// Takes in the next rows of a table.
    pub(super) fn take(&mut self, table: &Table, block: Block) -> Result<(), StageError> {
        self.task.check_cancelled()?;
        for unfit in &block.unfit {
            self.note(unfit);
        }
        let rows = Rows::of(self.wanted, self.types, table, block)?;
        let images = self.check(&rows);
        let mut keep = vec![false; rows.count];
        let mut samples = Vec::new();
        for (row, keep) in keep.iter_mut().enumerate() {
            self.rows_in += 1;
            let passed = self.judge(&rows, row, images.as_ref().and_then(|images| images.get(row)));
            match passed {
                Ok((key, image)) => {
                    *keep = true;
                    self.task.tally.good(1);
                    if let Some((width, height, hash)) = image {
                        let (caption, url) = (rows.text(columns::CAPTION, row), rows.text(columns::URL, row));
                        let (hash, row) = (Some(hash), row as u32);
                        samples.push(Sample { key, caption, url, width, height, hash, row, ..Sample::default() });
                    }
                }
                Err((reason, detail)) => {
                    let key = rows.key(self.wanted, row).unwrap_or_else(|| rows.number(self.wanted, row));
                    let (caption, url) = (rows.text(columns::CAPTION, row), rows.text(columns::URL, row));
                    let detail = format!("{}, row {}: {detail}", table.name, rows.first + row as u64);
                    self.quarantine.refuse(BadRow { key, url, caption, reason, status: STATUS, detail })?;
                }
            }
        }
        self.write(table, &rows, &keep, samples)
    }

    /// The images of all rows, looked at side by side.
    fn check(&self, rows: &Rows) -> Option<Vec<Result<Passed, Refused>>> {
        let images = rows.images.as_ref()?;
        let wanted = self.wanted;
        let check = |row| {
            let bytes = if images.is_valid(row) { images.value(row) } else { &[] };
            if bytes.is_empty() {
                return Err(("no_image", "it has no image, or one without bytes".to_owned()));
            }
            let most = wanted.semantics.max_bytes;
            if bytes.len() as u64 > most {
                return Err(("too_large", format!("its image has {} bytes, {most} are allowed", bytes.len())));
            }
            let size = size(bytes, wanted.semantics.check, wanted.max_pixels);
            let (width, height) = size.map_err(|error| (error.reason(), error.to_string()))?;
            Ok((width, height, sha256(bytes)))
        };
        Some((0..rows.count).into_par_iter().map(check).collect())
    }

    /// A row's key and image, unless it is refused.
    fn judge(
        &mut self,
        rows: &Rows,
        row: usize,
        image: Option<&Result<Passed, Refused>>,
    ) -> Result<(String, Option<Passed>), Refused> {
        let malformed = rows.malformed.binary_search_by_key(&row, |(malformed, _)| *malformed);
        if let Some((_, why)) = malformed.ok().and_then(|at| rows.malformed.get(at)) {
            return Err(("malformed_row", why.clone()));
        }
        let key = rows.key(self.wanted, row).ok_or_else(|| ("no_key", "it has no key".to_owned()))?;
        if !self.keys.insert(Digest::of(key.as_bytes())) {
            return Err(("duplicate_key", "a row before it in this partition has the same key".to_owned()));
        }
        Ok((key, image.cloned().transpose()?))
    }

    fn write(&mut self, table: &Table, rows: &Rows, keep: &[bool], samples: Vec<Sample>) -> Result<(), StageError> {
        let values = || TableError::values(&table.name);
        let constants = self.wanted.semantics.constants.values();
        let constants = constants
            .map(|text| -> ArrayRef { Arc::new(StringArray::from_iter_values(std::iter::repeat_n(text, rows.count))) });
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len() + 1);
        for (column, array) in self.wanted.shape.columns.iter().zip(&rows.values) {
            if !is_filled(&column.name) {
                arrays.push(Arc::clone(array));
            } else if matches!(self.writer, Writer::Rows(..)) {
                let texts = (0..rows.count).map(|row| rows.text(&column.name, row));
                arrays.push(Arc::new(StringArray::from_iter_values(texts)));
            }
        }
        arrays.extend(constants);
        match &mut self.writer {
            Writer::Samples(writer) => {
                if !arrays.is_empty() {
                    let additional = RecordBatch::try_new(Arc::clone(&self.schema), arrays).map_err(values())?;
                    writer.begin_additional(additional)?;
                }
                for sample in samples {
                    let bytes = rows.images.as_ref().map(|images| images.value(sample.row as usize).to_owned());
                    writer.push(Sample { bytes: bytes.unwrap_or_default(), ..sample })?;
                }
            }
            Writer::Rows(writer, whole) => {
                let keys = (0..rows.count).map(|row| rows.key(self.wanted, row).unwrap_or_default());
                arrays.insert(0, Arc::new(StringArray::from_iter_values(keys)));
                let all = RecordBatch::try_new(Arc::clone(whole), arrays).map_err(values())?;
                let kept = filter_record_batch(&all, &BooleanArray::from(keep.to_vec())).map_err(values())?;
                writer.write(&kept)?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Outcome, StageError> {
        let data = match self.writer {
            Writer::Samples(writer) => writer.finish()?,
            Writer::Rows(writer, _) => writer.finish()?,
        };
        let (dropped, quarantine) = self.quarantine.finish(&self.task.attempt.quarantine())?;
        let (rows_in, rows_out, observed) = (self.rows_in, data.rows, self.observed);
        Ok(Outcome { data: vec![data], quarantine, rows_in, rows_out, dropped, observed, ..Outcome::default() })
    }
}

/// Rows that were read together, their values of the output's types.
struct Rows<'a> {
    stem: &'a str,
    first: u64,
    count: usize,
    keys: Option<StringArray>,
    images: Option<BinaryArray>,
    values: Vec<ArrayRef>,
    /// The captions and URLs among them.
    texts: BTreeMap<&'static str, StringArray>,
    malformed: Vec<(usize, String)>,
}

impl<'a> Rows<'a> {
    fn of(wanted: &Wanted, types: &[DataType], table: &'a Table, block: Block) -> Result<Self, TableError> {
        let Block { first, rows: count, keys, images, values, malformed, .. } = block;
        let values = values.iter().zip(types).map(|(array, to)| adapt(array, to)).collect::<Result<Vec<_>, _>>();
        let values = values.map_err(TableError::values(&table.name))?;
        let text_of = |name: &'static str| {
            let at = wanted.shape.columns.iter().position(|column| column.name == name)?;
            Some((name, values.get(at)?.as_string_opt::<i32>()?.clone()))
        };
        let texts = [columns::CAPTION, columns::URL].into_iter().filter_map(text_of).collect();
        Ok(Self { stem: &table.stem, first, count, keys, images, values, texts, malformed })
    }

    /// Of a row without a key of its own.
    fn number(&self, wanted: &Wanted, row: usize) -> String {
        format!("{}/{}/{:09}", wanted.source, self.stem, self.first + row as u64)
    }

    fn key(&self, wanted: &Wanted, row: usize) -> Option<String> {
        let Some(keys) = &self.keys else { return Some(self.number(wanted, row)) };
        let key = if keys.is_valid(row) { keys.value(row).trim() } else { "" };
        (!key.is_empty()).then(|| format!("{}/{key}", wanted.source))
    }

    /// A caption or a URL; empty where there is none.
    fn text(&self, name: &str, row: usize) -> String {
        let texts = self.texts.get(name).filter(|texts| texts.is_valid(row));
        texts.map(|texts| texts.value(row).trim().to_owned()).unwrap_or_default()
    }
}
