//! Rows of parquet, a few at a time, of the columns that are wanted.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch};
use arrow::compute::{CastOptions, can_cast_types, cast, cast_with_options};
use arrow::datatypes::{DataType, Schema};
use arrow::error::ArrowError;
use parquet::file::metadata::RowGroupMetaData;
use shards::reader::Shard;

use super::error::TableError;
use super::parameters::{Column, Shape};
use super::path::{Misfit, Path, field_of};
use super::{Block, Sink, Table};
use crate::stage::StageError;
use crate::stages::fields::FieldType;
use crate::stages::types;

/// Rows that are read together: as many as have about so many bytes, and no more than so many.
const BYTES: u64 = 16 << 20;
const ROWS: u64 = 4096;
/// The member of an image that is a structure, as the Hugging Face hub has them.
const MEMBER: &str = "bytes";

/// See [`Table::types`]. All that is wanted is there, and of types that can be taken over.
pub(super) fn types(table: &Table, shape: &Shape) -> Result<Vec<DataType>, StageError> {
    let shard = Shard::open(&table.path)?;
    let schema = shard.schema();
    let found = |path: &Path| path.in_schema(schema).map_err(|misfit| in_words(table, schema, misfit));
    if let Some(path) = &shape.key {
        found(path)?;
    }
    if let Some(path) = &shape.image {
        let kind = found(path)?;
        let is_image = match &kind {
            DataType::Struct(fields) => fields.find(MEMBER).is_some_and(|(_, field)| is_binary(field.data_type())),
            other => is_binary(other),
        };
        if !is_image {
            let (path, found) = (path.to_string(), kind.to_string());
            return Err(TableError::NoImages { table: table.name.clone(), path, found }.into());
        }
    }
    let of_column = |column: &Column| {
        let from = found(&column.path)?;
        let to = column.kind.map_or_else(|| plain(&from), FieldType::data_type);
        if to == DataType::Utf8 || can_cast_types(&from, &to) {
            return Ok(to);
        }
        let (column_name, expected) = (column.name.clone(), column.kind.map_or("text", FieldType::in_words));
        let (table, found) = (table.name.clone(), from.to_string());
        Err(TableError::Type { table, column: column_name, found, expected })
    };
    Ok(shape.columns.iter().map(of_column).collect::<Result<_, TableError>>()?)
}

fn in_words(table: &Table, schema: &Schema, misfit: Misfit) -> TableError {
    match misfit {
        Misfit::Column(column) => {
            let names = schema.fields().iter().map(|field| field.name().as_str());
            TableError::column(&table.name, &column, names)
        }
        Misfit::Part(detail) => TableError::Path { table: table.name.clone(), detail },
    }
}

fn is_binary(kind: &DataType) -> bool {
    matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

/// The type in which a column is passed on.
fn plain(kind: &DataType) -> DataType {
    match kind {
        DataType::Null | DataType::Boolean | DataType::Float32 | DataType::Float64 => kind.clone(),
        DataType::Float16 => DataType::Float32,
        kind if kind.is_integer() => kind.clone(),
        _ => DataType::Utf8,
    }
}

/// See [`Table::read`].
pub(super) fn read(table: &Table, shape: &Shape, most: u64, sink: &mut Sink) -> Result<(), StageError> {
    let shard = Shard::open(&table.path)?;
    let has = |name: &str| shard.schema().index_of(name).is_ok();
    let columns: BTreeSet<&str> = shape.paths().filter_map(|path| path.column_in(has)).collect();
    let columns: Vec<&str> = columns.into_iter().collect();
    // Of a name with a dot, parquet's reader would think it leads to a field.
    let has_dot = columns.iter().any(|name| name.contains('.'));
    let columns = (!has_dot).then_some(columns);
    let at_once = rows_at_once(&shard, columns.as_deref());
    let mut first = 0;
    for batch in shard.batches(columns.as_deref(), at_once)? {
        let batch = batch?;
        let rows = (batch.num_rows() as u64).min(most - first);
        let batch = batch.slice(0, rows as usize);
        let block = block(shape, &batch, first).map_err(TableError::values(&table.name))?;
        sink(block)?;
        first += rows;
        if first >= most {
            break;
        }
    }
    Ok(())
}

/// Follows from the file alone, so that the same file gives the same bytes.
fn rows_at_once(shard: &Shard, columns: Option<&[&str]>) -> usize {
    let of_group = |group: &RowGroupMetaData| {
        let is_read = |name: Option<&String>| match (columns, name) {
            (Some(columns), Some(name)) => columns.contains(&name.as_str()),
            _ => true,
        };
        let chunks = group.columns().iter().filter(|chunk| is_read(chunk.column_path().parts().first()));
        let bytes: u64 = chunks.map(|chunk| u64::try_from(chunk.uncompressed_size()).unwrap_or(0)).sum();
        bytes / u64::try_from(group.num_rows()).unwrap_or(1).max(1)
    };
    let bytes_of_row = shard.metadata().row_groups().iter().map(of_group).max().unwrap_or(1);
    (BYTES / bytes_of_row.max(1)).clamp(1, ROWS) as usize
}

fn block(shape: &Shape, batch: &RecordBatch, first: u64) -> Result<Block, ArrowError> {
    let keys = shape.key.as_ref().map(|path| types::text(&path.in_batch(batch)?)).transpose()?;
    let images = shape.image.as_ref().map(|path| images(&path.in_batch(batch)?)).transpose()?;
    let mut unfit = Vec::new();
    let mut values = Vec::with_capacity(shape.columns.len());
    for column in &shape.columns {
        let array = column.path.in_batch(batch)?;
        let to = column.kind.map_or_else(|| plain(array.data_type()), FieldType::data_type);
        let value: ArrayRef = if to == DataType::Utf8 {
            Arc::new(types::text(&array)?)
        } else {
            cast_with_options(&array, &to, &CastOptions { safe: column.kind.is_some(), ..CastOptions::default() })?
        };
        let lost = value.null_count().saturating_sub(array.logical_null_count());
        let expected = column.kind.map_or("value", FieldType::in_words);
        unfit.extend((0..lost).map(|_| format!("{} is no {expected}", column.name)));
        values.push(value);
    }
    Ok(Block { first, rows: batch.num_rows(), keys, images, values, malformed: Vec::new(), unfit })
}

/// Images as they are, or within structures.
fn images(array: &ArrayRef) -> Result<BinaryArray, ArrowError> {
    let bytes = match array.as_struct_opt() {
        None => ArrayRef::clone(array),
        Some(_) => field_of(array, MEMBER)?,
    };
    Ok(cast(&bytes, &DataType::Binary)?.as_binary::<i32>().clone())
}
