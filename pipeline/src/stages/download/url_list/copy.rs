//! A copy of a text list as parquet, which can be addressed by row.
//!
//! The copy of a file is cut into pieces, each of which begins with a partition and has few row groups: a footer is small
//! however long the list is, and a partition costs one footer and its own row groups.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field as ArrowField, Schema, SchemaRef};
use arrow::json::ReaderBuilder;
use arrow::json::reader::infer_json_schema_from_iterator;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use serde_json::{Map, Value};
use shards::ShardError;
use shards::digest::{Digest, DigestBuilder};

use super::ListError;
use super::json::{self, Seen};
use super::listing::Piece;
use super::location::Format;
use super::text::{self, Field, Place, Separator, Sink};
use super::types;
use super::wanted::{Extra, HASH, PHASH, Wanted};

/// Rows, and bytes, that are turned into arrays together.
const ROWS_AT_A_TIME: usize = 8192;
const BYTES_AT_A_TIME: usize = 8 << 20;
/// A row group ends with a partition, once it has this many rows; and anywhere, once it takes this much memory.
const ROW_GROUP_ROWS: u64 = 8192;
const ROW_GROUP_BYTES: usize = 64 << 20;
/// Row groups in a piece, unless a single partition has more.
const PIECE_ROW_GROUPS: usize = 64;

/// A text list as the converter reads it.
pub(super) struct TextList<'a> {
    pub(super) path: &'a Path,
    /// For messages.
    pub(super) name: &'a str,
    pub(super) format: Format,
    pub(super) wanted: &'a Wanted,
    /// Where temporary files may lie.
    pub(super) folder: &'a Path,
}

impl TextList<'_> {
    fn read(&self, seen: &mut Seen, sink: &mut Sink) -> Result<(), ListError> {
        let Self { path, name, wanted, .. } = self;
        match self.format {
            Format::Txt => text::read_txt(path, name, sink),
            Format::Csv => text::read_separated(path, name, Separator::Comma, wanted, sink),
            Format::Tsv => text::read_separated(path, name, Separator::tab(wanted.quotes), wanted, sink),
            Format::Jsonl => json::read_lines(path, name, wanted, seen, sink),
            Format::Json => json::read_value(path, name, self.folder, wanted, seen, sink),
            Format::Parquet => Ok(()),
        }
    }

    /// The types of the extra columns in the first `limit` rows: text, or what arrow makes of JSON where they are passed on as
    /// they are.
    fn extra_types(&self, limit: u64) -> Result<Vec<DataType>, ListError> {
        let extra = &self.wanted.extra;
        let is_json = matches!(self.format, Format::Json | Format::Jsonl);
        if !is_json || extra.iter().all(|extra| extra.kind.is_some()) {
            return Ok(vec![DataType::Utf8; extra.len()]);
        }
        let mut types = vec![DataType::Null; extra.len()];
        let mut block: Vec<Value> = Vec::new();
        let mut learn = |block: &mut Vec<Value>| {
            let schema =
                infer_json_schema_from_iterator(block.drain(..).map(Ok)).map_err(ListError::values(self.name))?;
            for (known, extra) in types.iter_mut().zip(extra) {
                let column = self.wanted.name(extra.column);
                let Ok(field) = schema.field_with_name(column) else { continue };
                *known = types::unify(known, field.data_type(), true).ok_or_else(|| ListError::Type {
                    name: self.name.to_owned(),
                    column: column.to_owned(),
                    found: "lists or objects in some rows and single values in others".to_owned(),
                    expected: "one or the other",
                })?;
            }
            Ok::<_, ListError>(())
        };
        let mut left = limit;
        self.read(&mut Seen::new(self.wanted), &mut |_, fields| {
            left -= 1;
            block.push(Value::Object(self.extra_values(&fields)));
            if block.len() >= 1024 {
                learn(&mut block)?;
            }
            Ok(if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        learn(&mut block)?;
        Ok(types)
    }

    fn extra_values(&self, fields: &[Field]) -> Map<String, Value> {
        let value = |extra: &Extra| match fields.get(extra.column) {
            None | Some(Field::Missing) => Value::Null,
            Some(Field::Text(text)) => Value::String(text.to_string()),
            // Of text it is made its type when it is read.
            Some(Field::Json(value)) if extra.kind.is_some() => Value::String(value.to_string()),
            Some(Field::Json(value)) => value.clone(),
        };
        self.wanted.extra.iter().map(|extra| (self.wanted.name(extra.column).to_owned(), value(extra))).collect()
    }
}

/// What a copy holds.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) rows: u64,
    pub(super) pieces: Vec<Piece>,
    /// Of each partition's rows.
    pub(super) digests: Vec<Digest>,
    pub(super) extra_types: Vec<DataType>,
    /// Whether the limit ended it.
    pub(super) is_cut: bool,
}

/// Copies the first `limit` rows of a list into `folder`, as files that begin with `stem`.
pub(super) fn copy(
    list: &TextList,
    folder: &Path,
    stem: &str,
    rows_per_shard: u64,
    limit: u64,
    seen: &mut Seen,
) -> Result<Copied, ListError> {
    let extra_types = list.extra_types(limit)?;
    let mut copier = Copier::new(list, folder, stem, rows_per_shard, &extra_types);
    let mut is_cut = false;
    list.read(seen, &mut |place, fields| {
        copier.push(place, &fields)?;
        // What comes after that may be anything.
        is_cut = copier.rows == limit;
        Ok(if is_cut { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    let (rows, pieces, digests) = copier.finish()?;
    Ok(Copied { rows, pieces, digests, extra_types, is_cut })
}

struct Copier<'a> {
    list: &'a TextList<'a>,
    folder: &'a Path,
    stem: &'a str,
    rows_per_shard: u64,
    schema: SchemaRef,
    /// The extra columns' part of it.
    extra_schema: SchemaRef,
    rows: u64,
    digest: DigestBuilder,
    digests: Vec<Digest>,
    pieces: Vec<Piece>,
    writer: Option<(PathBuf, ArrowWriter<File>)>,
    piece_rows: u64,
    text: Vec<StringBuilder>,
    extra: Vec<Map<String, Value>>,
    buffered_rows: usize,
    buffered_bytes: usize,
}

impl<'a> Copier<'a> {
    fn new(
        list: &'a TextList<'a>,
        folder: &'a Path,
        stem: &'a str,
        rows_per_shard: u64,
        extra_types: &[DataType],
    ) -> Self {
        let wanted = list.wanted;
        let extra = wanted.extra.iter().zip(extra_types);
        let extra: Vec<ArrowField> =
            extra.map(|(e, t)| ArrowField::new(wanted.name(e.column), t.clone(), true)).collect();
        let parts = wanted.texts().into_iter().zip([".url", ".caption", HASH, PHASH]);
        let mut fields: Vec<ArrowField> = parts
            .filter(|(column, _)| column.is_some())
            .map(|(_, name)| ArrowField::new(name, DataType::Utf8, true))
            .collect();
        let text = fields.iter().map(|_| StringBuilder::new()).collect();
        fields.extend(extra.iter().cloned());
        Self {
            list,
            folder,
            stem,
            rows_per_shard,
            schema: Arc::new(Schema::new(fields)),
            extra_schema: Arc::new(Schema::new(extra)),
            rows: 0,
            digest: DigestBuilder::new(),
            digests: Vec::new(),
            pieces: Vec::new(),
            writer: None,
            piece_rows: 0,
            text,
            extra: Vec::new(),
            buffered_rows: 0,
            buffered_bytes: 0,
        }
    }

    /// Takes a row in. Its digest is of what it says, not of how the list writes that.
    fn push(&mut self, place: Place, fields: &[Field]) -> Result<(), ListError> {
        let wanted = self.list.wanted;
        let mut builders = self.text.iter_mut();
        for column in wanted.texts() {
            let Some((column, builder)) = column.and_then(|column| Some((column, builders.next()?))) else {
                // A column that is not there says the same as one that says nothing.
                self.digest.add("");
                continue;
            };
            let text = match fields.get(column) {
                None | Some(Field::Missing) => None,
                Some(Field::Text(text)) => Some(text.as_ref()),
                Some(Field::Json(Value::Array(_) | Value::Object(_))) => {
                    return Err(ListError::Type {
                        name: self.list.name.to_owned(),
                        column: wanted.name(column).to_owned(),
                        found: format!("a list or an object at {place}"),
                        expected: "text",
                    });
                }
                Some(Field::Json(value)) => Some(&*value.to_string()),
            };
            let text = text.map(str::trim);
            self.digest.add(text.unwrap_or(""));
            self.buffered_bytes += text.map_or(0, str::len);
            builder.append_option(text);
        }
        if !wanted.extra.is_empty() {
            for extra in &wanted.extra {
                self.buffered_bytes += match fields.get(extra.column) {
                    None | Some(Field::Missing) => {
                        self.digest.add([0]);
                        1
                    }
                    Some(Field::Text(text)) => {
                        self.digest.add([1]);
                        self.digest.add(text.as_ref());
                        text.len()
                    }
                    Some(Field::Json(value)) => {
                        let text = value.to_string();
                        self.digest.add([2]);
                        self.digest.add(&text);
                        // Parsed values take far more memory than their text.
                        8 * text.len()
                    }
                };
            }
            self.extra.push(self.list.extra_values(fields));
        }
        self.rows += 1;
        self.buffered_rows += 1;
        if self.buffered_rows >= ROWS_AT_A_TIME || self.buffered_bytes >= BYTES_AT_A_TIME {
            self.write()?;
        }
        if self.rows.is_multiple_of(self.rows_per_shard) {
            self.end_partition()?;
        }
        Ok(())
    }

    fn end_partition(&mut self) -> Result<(), ListError> {
        self.digests.push(std::mem::take(&mut self.digest).finish());
        let group = self.writer.as_ref().map_or(0, |(_, writer)| writer.in_progress_rows());
        if (group + self.buffered_rows) as u64 + self.rows_per_shard <= ROW_GROUP_ROWS {
            return Ok(());
        }
        self.write()?;
        self.end_row_group()?;
        let groups = self.writer.as_ref().map_or(0, |(_, writer)| writer.flushed_row_groups().len());
        if groups >= PIECE_ROW_GROUPS { self.end_piece() } else { Ok(()) }
    }

    /// Writes what is buffered.
    fn write(&mut self) -> Result<(), ListError> {
        if self.buffered_rows == 0 {
            return Ok(());
        }
        let name = self.list.name;
        let mut arrays: Vec<ArrayRef> = self.text.iter_mut().map(|b| Arc::new(b.finish()) as ArrayRef).collect();
        if !self.list.wanted.extra.is_empty() {
            let decoder = ReaderBuilder::new(Arc::clone(&self.extra_schema))
                .with_coerce_primitive(true)
                .with_batch_size(self.extra.len())
                .build_decoder();
            let decoded = decoder.and_then(|mut decoder| {
                decoder.serialize(&self.extra)?;
                decoder.flush()
            });
            let decoded = decoded.map_err(ListError::values(name))?;
            arrays.extend(decoded.iter().flat_map(|batch| batch.columns().iter().cloned()));
            self.extra.clear();
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), arrays).map_err(ListError::values(name))?;
        self.piece_rows += batch.num_rows() as u64;
        self.buffered_rows = 0;
        self.buffered_bytes = 0;
        let (path, writer) = self.writer()?;
        writer.write(&batch).map_err(ShardError::parquet(path))?;
        if writer.memory_size().max(writer.in_progress_size()) >= ROW_GROUP_BYTES {
            writer.flush().map_err(ShardError::parquet(path))?;
        }
        Ok(())
    }

    fn writer(&mut self) -> Result<&mut (PathBuf, ArrowWriter<File>), ListError> {
        let open = if let Some(open) = self.writer.take() {
            open
        } else {
            let path = self.folder.join(self.piece_name());
            let file = File::create(&path).map_err(ShardError::io("create", &path))?;
            let properties = WriterProperties::builder()
                .set_compression(Compression::ZSTD(ZstdLevel::default()))
                .set_dictionary_enabled(false)
                .set_statistics_enabled(EnabledStatistics::None)
                // Small pages, since a partition may be a small part of a row group.
                .set_data_page_row_count_limit(4096)
                .build();
            let writer = ArrowWriter::try_new(file, Arc::clone(&self.schema), Some(properties))
                .map_err(ShardError::parquet(&path))?;
            (path, writer)
        };
        Ok(self.writer.insert(open))
    }

    fn piece_name(&self) -> String {
        format!("{}-{:05}.parquet", self.stem, self.pieces.len())
    }

    fn end_row_group(&mut self) -> Result<(), ListError> {
        let Some((path, writer)) = &mut self.writer else { return Ok(()) };
        Ok(writer.flush().map_err(ShardError::parquet(path))?)
    }

    fn end_piece(&mut self) -> Result<(), ListError> {
        let file = self.piece_name();
        let Some((path, writer)) = self.writer.take() else { return Ok(()) };
        let closed = writer.into_inner().map_err(ShardError::parquet(&path))?;
        closed.sync_all().map_err(ShardError::io("sync", &path))?;
        self.pieces.push(Piece { file, rows: std::mem::take(&mut self.piece_rows) });
        Ok(())
    }

    fn finish(mut self) -> Result<(u64, Vec<Piece>, Vec<Digest>), ListError> {
        if !self.rows.is_multiple_of(self.rows_per_shard) {
            self.digests.push(std::mem::take(&mut self.digest).finish());
        }
        self.write()?;
        self.end_piece()?;
        Ok((self.rows, self.pieces, self.digests))
    }
}
