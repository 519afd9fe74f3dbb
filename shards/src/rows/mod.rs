//! Single rows of a parquet file, wherever they lie: each costs the pages that hold it.
//!
//! A general reader of parquet is made for scans: for one row of one column it walks all row groups and copies the page index
//! of a whole column chunk. This one keeps where each page of a few columns lies (16 bytes a page), finds the page of a row by
//! bisection, and hands parquet's decoder that page alone. Files without a page index, as others write them, are looked
//! through once for the places of their pages, which reads their headers only.

mod footer;
mod pages;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use parquet::arrow::{FieldLevels, ProjectionMask, parquet_to_arrow_field_levels, parquet_to_arrow_schema};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::schema::types::ColumnDescPtr;

use crate::columns::CHECKSUM;
use crate::ranges::Ranges;
use crate::sidecar::DataFile;
use crate::{ShardError, checksum};
use pages::{Chunk, OnePage};

/// The member of an image that is a structure, as the Hugging Face hub has them.
const BYTES: &str = "bytes";
/// Rows of a page that are decoded at once.
const ROWS_AT_ONCE: usize = 64;

/// A parquet file opened for single rows of some columns.
#[derive(Debug)]
pub struct RowReader {
    source: Arc<dyn Ranges>,
    columns: Vec<Column>,
    groups: Vec<Group>,
    /// The file's metadata without its row groups, which parquet's decoder wants to see.
    metadata: ParquetMetaData,
    rows: u64,
    has_page_index: bool,
}

/// One leaf of the schema.
#[derive(Debug)]
struct Column {
    leaf: usize,
    field: Field,
    levels: FieldLevels,
    descriptor: ColumnDescPtr,
}

#[derive(Debug)]
struct Group {
    first_row: u64,
    rows: u64,
    /// One for each of the columns.
    chunks: Vec<Chunk>,
}

/// What is to be read for some rows.
#[derive(Debug)]
pub struct Wanted {
    pages: Vec<WantedPage>,
    rows: usize,
}

#[derive(Debug)]
struct WantedPage {
    column: usize,
    group: usize,
    page: usize,
    /// Within the page, ascending.
    rows: Vec<u32>,
    ranges: usize,
}

impl RowReader {
    /// Opens a file for rows of `columns`; where it has checksums, they and what they cover are read too. `record` is what was
    /// written down about the file when it was committed: another one under its name is refused.
    pub fn open(source: Arc<dyn Ranges>, columns: &[&str], record: Option<&DataFile>) -> Result<Self, ShardError> {
        let path = source.path().to_owned();
        let parquet = || ShardError::parquet(&path);
        let metadata = footer::read_metadata(source.as_ref(), record)?;
        let file = metadata.file_metadata();
        let schema = parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata()).map_err(parquet())?;
        let has = |name: &&str| schema.index_of(name).is_ok();
        let checked: Vec<&str> = checksum::COVERED.into_iter().chain([CHECKSUM]).filter(has).collect();
        let checked = if checked.contains(&CHECKSUM) { checked } else { Vec::new() };
        let mut names = columns.to_vec();
        names.extend(checked.into_iter().filter(|name| !columns.contains(name)));
        let columns = names.iter().map(|name| Column::find(&path, &metadata, &schema, name));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let mut first_row = 0;
        let mut groups = Vec::with_capacity(metadata.num_row_groups());
        let mut has_page_index = true;
        for (number, group) in metadata.row_groups().iter().enumerate() {
            let rows = u32::try_from(group.num_rows()).ok().ok_or_else(|| too_large(&path, group))?;
            let chunks = columns.iter().map(|column| {
                let chunk = group.columns().get(column.leaf).ok_or_else(|| too_large(&path, group))?;
                let located = metadata.offset_index().and_then(|index| index.get(number)?.get(column.leaf));
                let located = located.filter(|located| rows == 0 || !located.page_locations().is_empty());
                let found = if let Some(index) = located {
                    Chunk::of_index(chunk, index.page_locations())
                } else {
                    has_page_index = false;
                    Chunk::look_through(chunk, &source, rows)
                };
                found.map_err(ShardError::parquet(&path))
            });
            let chunks = chunks.collect::<Result<Vec<_>, _>>()?;
            groups.push(Group { first_row, rows: u64::from(rows), chunks });
            first_row += u64::from(rows);
        }
        let metadata = ParquetMetaData::new(file.clone(), Vec::new());
        Ok(Self { source, columns, groups, metadata, rows: first_row, has_page_index })
    }

    pub fn path(&self) -> &Path {
        self.source.path()
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes of the file that are read for one row, in the mean over all rows.
    pub fn bytes_per_row(&self) -> u64 {
        let mut sum = 0_u128;
        for group in &self.groups {
            for chunk in &group.chunks {
                let dictionary = chunk.dictionary.as_ref().map_or(0, |range| range.end - range.start);
                sum += u128::from(dictionary) * u128::from(group.rows);
                for (n, page) in chunk.pages.iter().enumerate() {
                    sum += u128::from(page.bytes) * u128::from(chunk.rows_of(n, group.rows));
                }
            }
        }
        (sum / u128::from(self.rows.max(1))) as u64
    }

    /// Whether the file says itself where its pages lie.
    pub fn has_page_index(&self) -> bool {
        self.has_page_index
    }

    /// For each row of what [`Self::read`] gave, whether it is what was written. Where the file has no checksums nothing is
    /// known against any.
    pub fn are_whole(&self, rows: &RecordBatch) -> Result<Vec<bool>, ShardError> {
        checksum::are_whole(rows).map_err(ShardError::arrow(self.path()))
    }

    /// Rows (ascending, without repeats).
    pub fn read(&self, rows: &[u64]) -> Result<RecordBatch, ShardError> {
        let (wanted, ranges) = self.wanted(rows)?;
        self.decode(&wanted, self.fetch(&ranges)?)
    }

    /// The bytes that [`Self::wanted`] asks for.
    pub fn fetch(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, ShardError> {
        self.source.read(ranges)
    }

    /// Which bytes hold these rows (ascending, without repeats): for a caller that fetches them itself and has them decoded by
    /// [`Self::decode`].
    pub fn wanted(&self, rows: &[u64]) -> Result<(Wanted, Vec<Range<u64>>), ShardError> {
        let mut ranges = Vec::with_capacity(rows.len() * self.columns.len());
        let mut pages: Vec<WantedPage> = Vec::with_capacity(ranges.capacity());
        for column in 0..self.columns.len() {
            for &row in rows {
                let place = self.place(column, row);
                let (group, page, within) = place.ok_or_else(|| {
                    let path = self.path().to_owned();
                    ShardError::RowOutOfRange { path, row, rows: self.rows }
                })?;
                if let Some(last) = pages.last_mut()
                    && (last.column, last.group, last.page) == (column, group, page)
                {
                    last.rows.push(within);
                    continue;
                }
                let chunk = &self.groups[group].chunks[column];
                let before = ranges.len();
                ranges.extend(chunk.dictionary.clone());
                let page_of = chunk.pages[page];
                ranges.push(page_of.offset..page_of.offset + u64::from(page_of.bytes));
                pages.push(WantedPage { column, group, page, rows: vec![within], ranges: ranges.len() - before });
            }
        }
        Ok((Wanted { pages, rows: rows.len() }, ranges))
    }

    /// The row group, the page in it and the row in that, of a row.
    fn place(&self, column: usize, row: u64) -> Option<(usize, usize, u32)> {
        let number = self.groups.partition_point(|group| group.first_row <= row).checked_sub(1)?;
        let group = self.groups.get(number)?;
        let within = u32::try_from(row - group.first_row).ok().filter(|&within| u64::from(within) < group.rows)?;
        let chunk = group.chunks.get(column)?;
        let page = chunk.pages.partition_point(|page| page.first_row <= within).checked_sub(1)?;
        Some((number, page, within - chunk.pages.get(page)?.first_row))
    }

    /// Makes rows of the bytes of their ranges.
    pub fn decode(&self, wanted: &Wanted, bytes: Vec<Bytes>) -> Result<RecordBatch, ShardError> {
        let parquet = || ShardError::parquet(self.path());
        let arrow = || ShardError::arrow(self.path());
        let mut bytes = bytes.into_iter();
        let mut pieces: Vec<Vec<ArrayRef>> = vec![Vec::new(); self.columns.len()];
        for page in &wanted.pages {
            let parts: Vec<Bytes> = bytes.by_ref().take(page.ranges).collect();
            let found = self.decode_page(page, parts).map_err(parquet())?;
            pieces[page.column].extend(found);
        }
        let arrays = pieces.iter().map(|pieces| {
            let pieces: Vec<&dyn Array> = pieces.iter().map(AsRef::as_ref).collect();
            arrow::compute::concat(&pieces)
        });
        let arrays = arrays.collect::<Result<Vec<_>, _>>().map_err(arrow())?;
        let fields = self
            .columns
            .iter()
            .zip(&arrays)
            .map(|(column, array)| column.field.clone().with_data_type(array.data_type().clone()));
        let schema: SchemaRef = Arc::new(Schema::new(fields.collect::<Fields>()));
        let options = RecordBatchOptions::new().with_row_count(Some(wanted.rows));
        RecordBatch::try_new_with_options(schema, arrays, &options).map_err(arrow())
    }

    fn decode_page(&self, wanted: &WantedPage, parts: Vec<Bytes>) -> ParquetResult<Vec<ArrayRef>> {
        let (column, group) = (&self.columns[wanted.column], &self.groups[wanted.group]);
        let chunk = &group.chunks[wanted.column];
        let bytes = match <[Bytes; 1]>::try_from(parts) {
            Ok([page]) => page,
            Err(parts) => parts.concat().into(),
        };
        let rows = chunk.rows_of(wanted.page, group.rows) as usize;
        // As if the page were all there is of its column.
        let mut metadata = ColumnChunkMetaData::builder(Arc::clone(&column.descriptor))
            .set_compression(chunk.compression)
            .set_num_values(rows as i64)
            .set_data_page_offset(0)
            .set_total_compressed_size(bytes.len() as i64);
        if chunk.dictionary.is_some() {
            metadata = metadata.set_dictionary_page_offset(Some(0));
        }
        let one = OnePage { bytes, chunk: metadata.build()?, rows, metadata: &self.metadata };
        // parquet's way to skip rows trusts the lengths that it skips, and a damaged one ends the process; so all are read.
        let reader = ParquetRecordBatchReader::try_new_with_row_groups(&column.levels, &one, ROWS_AT_ONCE, None)?;
        let mut rows = wanted.rows.iter().peekable();
        let mut found = Vec::with_capacity(1);
        let mut first = 0;
        for batch in reader {
            let batch = batch?;
            let end = first + batch.num_rows() as u32;
            let within = std::iter::from_fn(|| rows.next_if(|&&row| row < end));
            let within: UInt32Array = within.map(|row| row - first).collect();
            if !within.is_empty() {
                let array = batch.column(0);
                // Of an image that is a structure, its bytes.
                let bytes = array.as_struct_opt().and_then(|members| members.columns().first());
                found.push(arrow::compute::take(bytes.unwrap_or(array), &within, None)?);
            }
            if rows.peek().is_none() {
                break;
            }
            first = end;
        }
        let rows: usize = found.iter().map(Array::len).sum();
        if rows != wanted.rows.len() {
            return Err(ParquetError::General(format!("a page has {rows} of {} rows", wanted.rows.len())));
        }
        Ok(found)
    }
}

fn too_large(path: &Path, group: &RowGroupMetaData) -> ShardError {
    let detail = format!("a row group of {} rows and {} columns", group.num_rows(), group.num_columns());
    ShardError::Record { path: path.to_owned(), what: "parquet footer", detail }
}

impl Column {
    fn find(path: &Path, metadata: &ParquetMetaData, schema: &Schema, name: &str) -> Result<Self, ShardError> {
        let lacks = |expected: &'static str| {
            let found: Vec<String> =
                schema.fields().iter().map(|f| format!("{} ({})", f.name(), f.data_type())).collect();
            ShardError::Column { path: path.to_owned(), column: name.to_owned(), expected, found: found.join(", ") }
        };
        let descriptor = metadata.file_metadata().schema_descr();
        let field = schema.field_with_name(name).ok().ok_or_else(|| lacks("any"))?;
        let leaf = (0..descriptor.num_columns()).find(|&leaf| {
            let parts = descriptor.column(leaf).path().parts().to_vec();
            parts.first().is_some_and(|first| first == name)
                && (parts.len() == 1 || (parts.len() == 2 && parts[1] == BYTES))
        });
        let leaf = leaf.ok_or_else(|| lacks("text, numbers or bytes"))?;
        let column = descriptor.column(leaf);
        if column.max_rep_level() > 0 {
            return Err(lacks("text, numbers or bytes"));
        }
        let mask = ProjectionMask::leaves(descriptor, [leaf]);
        let levels = parquet_to_arrow_field_levels(descriptor, mask, Some(schema.fields()));
        let field = match field.data_type() {
            DataType::Struct(members) => members
                .find(BYTES)
                .map_or(field.clone(), |(_, bytes)| bytes.as_ref().clone().with_name(name).with_nullable(true)),
            _ => field.clone(),
        };
        Ok(Self { leaf, field, levels: levels.map_err(ShardError::parquet(path))?, descriptor: column })
    }
}
