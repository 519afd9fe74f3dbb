//! The footer of a parquet file, held against what was written down about it.

use parquet::DecodeResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataPushDecoder};

use crate::ShardError;
use crate::digest::Digest;
use crate::ranges::Ranges;
use crate::sidecar::DataFile;

/// The end of a parquet file: the length of its footer, and "PAR1".
const TAIL: u64 = 8;
/// A footer of more is not believed: one of 10,000 rows has a few hundred kilobytes.
const MOST_FOOTER: u64 = 1 << 30;

/// Reads the footer and what is there of a page index.
pub(super) fn read_metadata(source: &dyn Ranges, record: Option<&DataFile>) -> Result<ParquetMetaData, ShardError> {
    let path = source.path();
    let parquet = || ShardError::parquet(path);
    let changed = |detail: String| ShardError::Changed { object: path.display().to_string(), detail };
    let length = source.length();
    if let Some(record) = record.filter(|record| record.bytes != length) {
        return Err(changed(format!("it has {length} bytes; its record says {}", record.bytes)));
    }
    let mut decoder = ParquetMetaDataPushDecoder::try_new(length)
        .map_err(parquet())?
        .with_column_index_policy(PageIndexPolicy::Skip)
        .with_offset_index_policy(PageIndexPolicy::Optional);
    let tail = source.read_one(length.saturating_sub(TAIL)..length)?;
    let footer = tail.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let start = length.checked_sub(TAIL + u64::from(footer)).filter(|start| length - start < MOST_FOOTER);
    let start = start.ok_or_else(|| {
        let source = ParquetError::EOF(format!("its footer is said to have {footer} bytes"));
        ShardError::Parquet { path: path.to_owned(), source }
    })?;
    let footer = source.read_one(start..length)?;
    if record.and_then(|record| record.footer).is_some_and(|expected| Digest::of(&footer) != expected) {
        return Err(changed("its footer is not the one that was written".to_owned()));
    }
    decoder.push_range(start..length, footer).map_err(parquet())?;
    loop {
        match decoder.try_decode().map_err(parquet())? {
            DecodeResult::NeedsData(ranges) => {
                let found = source.read(&ranges)?;
                decoder.push_ranges(ranges, found).map_err(parquet())?;
            }
            DecodeResult::Data(metadata) => return Ok(metadata),
            DecodeResult::Finished => return Err(changed("it ended before its footer".to_owned())),
        }
    }
}
