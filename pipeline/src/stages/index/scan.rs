//! One file's rows by bucket.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;

use polars::prelude::{DataType, LazyFrame, PlRefPath, PolarsResult, ScanArgsParquet, col};
use shards::bucket::BucketSize;
use shards::columns;
use shards::index::{Part, Runs};

use super::Indexed;
use crate::stage::StageError;

/// The file's part of each bucket.
pub(super) fn parts(file: &Indexed) -> Result<Vec<Part>, StageError> {
    let failed =
        |error: &dyn Display| StageError::failed(format!("{} cannot be indexed: {error}", file.path.display()));
    let sizes = scan(&file.path).map_err(|error| failed(&error))?;
    let sizes = sizes.column(columns::BUCKET_SIZE).and_then(|column| column.str().cloned());
    let sizes = sizes.map_err(|error| failed(&error))?;
    if u32::try_from(sizes.len()).is_err() {
        return Err(failed(&format!("it has {} rows; at most {} are possible", sizes.len(), u32::MAX)));
    }
    let mut buckets: Vec<(BucketSize, Runs)> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    let mut last: Option<(&str, usize)> = None;
    for (row, size) in (0u32..).zip(sizes.iter()) {
        let size = size.ok_or_else(|| failed(&format!("row {row} has no {}", columns::BUCKET_SIZE)))?;
        let before = last.filter(|(text, _)| *text == size).map(|(_, number)| number);
        let number = if let Some(number) = before.or_else(|| known.get(size).copied()) {
            number
        } else {
            let bucket = size.parse().map_err(|error| failed(&format!("row {row}: {error}")))?;
            buckets.push((bucket, Runs::default()));
            known.insert(size.to_owned(), buckets.len() - 1);
            buckets.len() - 1
        };
        last = Some((size, number));
        if let Some((_, runs)) = buckets.get_mut(number) {
            runs.push(row);
        }
    }
    let part = |(bucket, runs)| Part { bucket, shard: file.shard.clone(), digest: file.digest, runs };
    Ok(buckets.into_iter().map(part).collect())
}

fn scan(path: &Path) -> PolarsResult<polars::prelude::DataFrame> {
    let path = PlRefPath::try_from_path(path)?;
    // Published datasets may have it as a dictionary.
    let sizes = col(columns::BUCKET_SIZE).cast(DataType::String);
    LazyFrame::scan_parquet(path, ScanArgsParquet::default())?.select([sizes]).collect()
}
