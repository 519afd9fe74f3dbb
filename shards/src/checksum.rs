//! A checksum for each row with an image, or with what was encoded of one, so that a reader of single rows knows damage when it meets it.
//!
//! The digest of a whole shard says the same, but only to whoever reads all of it. The checksum is a CRC-32 over what a trainer
//! takes from the row: its key, its image, its captions and what was encoded of them, each with its length. [`crate::writer::ShardWriter`] writes it; so
//! it holds whatever stage wrote the row last.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch, UInt32Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, UInt32Type};
use arrow::error::ArrowError;

use crate::columns::{CAPTION, CHECKSUM, ENCODED, IMAGE, KEY, PAYLOADS, RECAPTION, RECAPTION_SHORT};

/// The columns that a checksum covers, where a table has them.
pub const COVERED: [&str; 6] = [KEY, IMAGE, CAPTION, RECAPTION, RECAPTION_SHORT, ENCODED];

/// `schema` with the column of checksums, if it has images, or what was encoded of them: as a shard of it is written.
pub fn with_column(schema: &Schema) -> Schema {
    let has_payload = PAYLOADS.iter().any(|name| schema.index_of(name).is_ok());
    if !has_payload || schema.index_of(CHECKSUM).is_ok() {
        return schema.clone();
    }
    let fields = schema.fields().iter().cloned().chain([Arc::new(field())]).collect::<Vec<_>>();
    Schema::new_with_metadata(fields, schema.metadata().clone())
}

/// The column's name and type.
pub fn field() -> Field {
    Field::new(CHECKSUM, DataType::UInt32, false)
}

/// The checksum of each row of `batch`.
pub(crate) fn of_rows(batch: &RecordBatch) -> Result<UInt32Array, ArrowError> {
    let columns = COVERED.iter().filter_map(|name| batch.column_by_name(name));
    let columns: Vec<BinaryArray> = columns.map(as_binary).collect::<Result<_, _>>()?;
    let checksum = |row: usize| {
        let mut hasher = crc32fast::Hasher::new();
        for column in &columns {
            let value = column.is_valid(row).then(|| column.value(row));
            // No value is not the same as an empty one.
            hasher.update(&value.map_or(u64::MAX, |value| value.len() as u64).to_le_bytes());
            hasher.update(value.unwrap_or_default());
        }
        hasher.finalize()
    };
    Ok((0..batch.num_rows()).map(checksum).collect::<Vec<_>>().into())
}

fn as_binary(column: &ArrayRef) -> Result<BinaryArray, ArrowError> {
    Ok(cast(column, &DataType::Binary)?.as_binary().clone())
}

/// For each row of `batch`, whether it is what was written. `batch` must have all covered columns of its shard; without a
/// column of checksums nothing is known against any row.
pub fn are_whole(batch: &RecordBatch) -> Result<Vec<bool>, ArrowError> {
    let Some(said) = batch.column_by_name(CHECKSUM) else { return Ok(vec![true; batch.num_rows()]) };
    let said = cast(said, &DataType::UInt32)?;
    let found = of_rows(batch)?;
    Ok(said.as_primitive::<UInt32Type>().iter().zip(&found).map(|(said, found)| said == found).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::StringArray;

    #[test]
    fn a_change_of_any_covered_value_is_seen_and_of_others_is_not() {
        let batch = |image: &[u8], caption: Option<&str>, url: &str| {
            let columns: [(&str, ArrayRef); 3] = [
                (IMAGE, Arc::new(BinaryArray::from_iter_values([image]))),
                (CAPTION, Arc::new(StringArray::from(vec![caption]))),
                (crate::columns::URL, Arc::new(StringArray::from(vec![url]))),
            ];
            RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
        };
        let of = |batch: RecordBatch| of_rows(&batch).unwrap().value(0);
        let first = of(batch(b"ab", Some("c"), "u"));
        assert_eq!(first, of(batch(b"ab", Some("c"), "v")));
        for other in [batch(b"ab", Some("d"), "u"), batch(b"a", Some("bc"), "u"), batch(b"ac", Some("c"), "u")] {
            assert_ne!(first, of(other));
        }
        assert_ne!(of(batch(b"ab", None, "u")), of(batch(b"ab", Some(""), "u")));
    }
}
