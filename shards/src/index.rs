//! The bucket index: one parquet table that says where each bucket's rows lie.
//!
//! One row for each run of rows of a bucket: `bucket_size`, `shard`, `digest`, `first_row`, `rows`. Rows are numbered within
//! their shard. A shard is named by its partition (`../bucket/part-00012`, relative to the index's own folder, so that a
//! workdir can be moved) and the digest of its content; its file is found through the partition's sidecars. So the table
//! depends on contents only, and a shard that was made again under another file name is still the same shard.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;

use crate::bucket::{BucketSize, InvalidBucketSize};
use crate::commit::StageFolder;
use crate::digest::{Digest, InvalidDigest};
use crate::reader::Shard;
use crate::sidecar::DataFile;
use crate::writer::ShardWriter;
use crate::{ShardError, columns};

/// Column: partition of the shard, or the path of a file, relative to the index's folder.
pub const SHARD: &str = "shard";
/// Column: digest of the shard's content.
pub const DIGEST: &str = "digest";
/// Column: the run's first row within its shard.
pub const FIRST_ROW: &str = "first_row";
/// Column: how many rows the run has.
pub const ROWS: &str = "rows";

/// A run of rows of one bucket in one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub bucket: BucketSize,
    /// As written: relative to the index's folder.
    pub shard: String,
    pub digest: Digest,
    pub first_row: u64,
    pub rows: u64,
}

/// Where one sample lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Locator {
    /// Position in [`BucketIndex::shards`].
    pub shard: usize,
    pub row: u64,
}

/// A loaded index. Buckets are in the order of their size, so every process numbers them alike.
#[derive(Clone, Debug)]
pub struct BucketIndex {
    shards: Vec<PathBuf>,
    buckets: Vec<Bucket>,
}

/// One bucket of an index.
#[derive(Clone, Debug)]
pub struct Bucket {
    pub size: BucketSize,
    pub rows: u64,
    /// (number of rows in the bucket before this run, shard, first row in the shard)
    runs: Vec<(u64, usize, u64)>,
}

impl Bucket {
    /// Where the bucket's `n`th sample lies; `None` past its end.
    pub fn locate(&self, n: u64) -> Option<Locator> {
        if n >= self.rows {
            return None;
        }
        let run = self.runs.partition_point(|&(before, ..)| before <= n).checked_sub(1)?;
        let &(before, shard, first_row) = self.runs.get(run)?;
        Some(Locator { shard, row: first_row + (n - before) })
    }
}

impl BucketIndex {
    /// Reads the table at `path` and finds its shards.
    pub fn read(path: &Path) -> Result<Self, ShardError> {
        let table = Shard::open(path)?;
        let damaged = |detail: String| ShardError::Record { path: path.to_owned(), what: "bucket index", detail };
        let mut runs = Vec::new();
        for batch in table.batches(None, 65_536)? {
            let batch = batch?;
            let sizes = table.text(&batch, columns::BUCKET_SIZE)?;
            let shards = table.text(&batch, SHARD)?;
            let digests = table.text(&batch, DIGEST)?;
            let first_rows: &UInt64Array = table.typed(&batch, FIRST_ROW, "uint64")?;
            let rows: &UInt64Array = table.typed(&batch, ROWS, "uint64")?;
            for i in 0..batch.num_rows() {
                let bucket = sizes.value(i).parse().map_err(|e: InvalidBucketSize| damaged(e.to_string()))?;
                let digest = digests.value(i).parse().map_err(|e: InvalidDigest| damaged(e.to_string()))?;
                let shard = shards.value(i).to_owned();
                runs.push(Run { bucket, shard, digest, first_row: first_rows.value(i), rows: rows.value(i) });
            }
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        // Numbered in the order of their names, so that every process numbers them alike.
        let names: BTreeMap<(&str, Digest), usize> = runs.iter().map(|r| ((r.shard.as_str(), r.digest), 0)).collect();
        let names: BTreeMap<(&str, Digest), usize> = names.into_keys().enumerate().map(|(i, name)| (name, i)).collect();
        let shards =
            names.keys().map(|(shard, digest)| find_shard(folder, shard, *digest)).collect::<Result<_, _>>()?;
        let mut buckets: BTreeMap<BucketSize, Bucket> = BTreeMap::new();
        for run in &runs {
            let bucket =
                buckets.entry(run.bucket).or_insert_with(|| Bucket { size: run.bucket, rows: 0, runs: Vec::new() });
            bucket.runs.push((bucket.rows, names[&(run.shard.as_str(), run.digest)], run.first_row));
            bucket.rows += run.rows;
        }
        Ok(Self { shards, buckets: buckets.into_values().collect() })
    }

    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    pub fn shards(&self) -> &[PathBuf] {
        &self.shards
    }

    /// All samples.
    pub fn rows(&self) -> u64 {
        self.buckets.iter().map(|b| b.rows).sum()
    }
}

/// The file of a shard: `name` itself where that is a file, else the data of the partition's sidecar that has this digest.
fn find_shard(folder: &Path, name: &str, digest: Digest) -> Result<PathBuf, ShardError> {
    let path = folder.join(name);
    if path.is_file() {
        return Ok(path);
    }
    let stage = StageFolder::at(path.parent().unwrap_or(Path::new("")));
    let prefix = format!("{}.", path.file_name().unwrap_or_default().to_string_lossy());
    for sidecar in stage.listing()?.sidecars.iter().filter(|n| n.starts_with(&prefix)) {
        if let Some(file) = stage.read(sidecar)?.data.iter().find(|file| file.digest == digest) {
            return Ok(stage.path().join(&file.file));
        }
    }
    let detail = format!("no shard {} with digest {digest} is there; run the pipeline again", path.display());
    Err(ShardError::Record { path, what: "shard of the bucket index", detail })
}

/// Writes an index table.
pub fn write(path: &Path, runs: &[Run]) -> Result<DataFile, ShardError> {
    let schema = Arc::new(Schema::new(vec![
        Field::new(columns::BUCKET_SIZE, DataType::Utf8, false),
        Field::new(SHARD, DataType::Utf8, false),
        Field::new(DIGEST, DataType::Utf8, false),
        Field::new(FIRST_ROW, DataType::UInt64, false),
        Field::new(ROWS, DataType::UInt64, false),
    ]));
    let batch = RecordBatch::try_new(
        Arc::clone(&schema),
        vec![
            Arc::new(StringArray::from_iter_values(runs.iter().map(|r| r.bucket.to_string()))),
            Arc::new(StringArray::from_iter_values(runs.iter().map(|r| &r.shard))),
            Arc::new(StringArray::from_iter_values(runs.iter().map(|r| r.digest.to_string()))),
            Arc::new(UInt64Array::from_iter_values(runs.iter().map(|r| r.first_row))),
            Arc::new(UInt64Array::from_iter_values(runs.iter().map(|r| r.rows))),
        ],
    )
    .map_err(ShardError::arrow(path))?;
    let mut writer = ShardWriter::create(path, &schema)?;
    writer.write(&batch)?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_across_runs_and_the_table_round_trips() {
        let folder = tempfile::tempdir().unwrap();
        let size = |width, height| BucketSize { width, height };
        let run = |bucket, shard: &str, first_row, rows| {
            std::fs::write(folder.path().join(shard), b"").unwrap();
            Run { bucket, shard: shard.into(), digest: Digest::of(b""), first_row, rows }
        };
        let runs = [
            run(size(32, 16), "b.parquet", 0, 3),
            run(size(16, 32), "b.parquet", 3, 2),
            run(size(32, 16), "a.parquet", 7, 4),
        ];
        let path = folder.path().join("index.parquet");
        write(&path, &runs).unwrap();
        let index = BucketIndex::read(&path).unwrap();
        assert_eq!(index.rows(), 9);
        assert_eq!(index.shards(), [folder.path().join("a.parquet"), folder.path().join("b.parquet")]);
        assert_eq!(index.buckets()[0].size, size(16, 32));
        let wide = &index.buckets()[1];
        let found: Vec<_> = (0..8).map(|n| wide.locate(n).map(|l| (l.shard, l.row))).collect();
        let expected = [(1, 0), (1, 1), (1, 2), (0, 7), (0, 8), (0, 9), (0, 10)].map(Some);
        assert_eq!(found[..7], expected);
        assert_eq!(found[7], None);
    }

    #[test]
    fn a_shard_that_is_gone_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.parquet");
        let bucket = BucketSize { width: 8, height: 8 };
        write(
            &path,
            &[Run { bucket, shard: "../bucket/part-00007".into(), digest: Digest::of(b""), first_row: 0, rows: 1 }],
        )
        .unwrap();
        assert!(BucketIndex::read(&path).unwrap_err().to_string().contains("bucket/part-00007"));
    }
}
