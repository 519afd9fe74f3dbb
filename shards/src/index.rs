//! The bucket index: one parquet table that says where each bucket's rows lie.
//!
//! One row for each bucket in each shard: `bucket_size`, `shard`, `digest`, `images`, and where they lie as two lists of the
//! same length, `first_row` and `rows`: runs of rows, numbered within their shard. A shard is named by its partition
//! (`../bucket/part-00012`, relative to the index's own folder, so that a workdir can be moved) and the digest of its content;
//! its file is found through the partition's sidecars. So the table depends on contents only, and a shard that was made again
//! under another file name is still the same shard. A file from outside is named by its path.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ListArray, PrimitiveBuilder, StringArray, UInt32Array, UInt64Array};
use arrow::array::{ListBuilder, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, UInt32Type};

use crate::bucket::{BucketSize, InvalidBucketSize};
use crate::commit::StageFolder;
use crate::digest::{Digest, InvalidDigest};
use crate::range_cache::RangeCache;
use crate::ranges::LocalFile;
use crate::reader::Shard;
use crate::rows::RowReader;
use crate::sidecar::{DataFile, Sidecar};
use crate::storage::Workdir;
use crate::writer::ShardWriter;
use crate::{ShardError, columns};

/// Column: partition of the shard, or the path of a file, relative to the index's folder.
pub const SHARD: &str = "shard";
/// Column: digest of the shard's content.
pub const DIGEST: &str = "digest";
/// Column: how many rows of the bucket the shard has.
pub const IMAGES: &str = "images";
/// Column: the first row of each run within the shard.
pub const FIRST_ROW: &str = "first_row";
/// Column: how many rows each run has.
pub const ROWS: &str = "rows";

/// Runs of rows, ascending. Rows of a shard are counted in 32 bits: one of more is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    first_row: Vec<u32>,
    rows: Vec<u32>,
}

impl Runs {
    /// Adds a row, which lies behind all others.
    pub fn push(&mut self, row: u32) {
        match (self.first_row.last(), self.rows.last_mut()) {
            (Some(first), Some(rows)) if first.checked_add(*rows) == Some(row) => *rows += 1,
            _ => {
                self.first_row.push(row);
                self.rows.push(1);
            }
        }
    }

    /// All rows.
    pub fn rows(&self) -> u64 {
        self.rows.iter().map(|rows| u64::from(*rows)).sum()
    }
}

impl FromIterator<u32> for Runs {
    fn from_iter<I: IntoIterator<Item = u32>>(rows: I) -> Self {
        let mut runs = Self::default();
        rows.into_iter().for_each(|row| runs.push(row));
        runs
    }
}

/// The rows of one bucket in one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub bucket: BucketSize,
    /// As written: relative to the index's folder.
    pub shard: String,
    pub digest: Digest,
    pub runs: Runs,
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
    /// Their paths, or addresses on a store.
    shards: Vec<PathBuf>,
    places: Vec<Place>,
    buckets: Vec<Bucket>,
}

/// Where a shard is.
#[derive(Clone, Debug)]
enum Place {
    /// From outside: nothing was written down about it.
    File,
    /// In a stage's folder, as its record says.
    Committed(StageFolder, DataFile),
}

/// One bucket of an index.
#[derive(Clone, Debug)]
pub struct Bucket {
    pub size: BucketSize,
    pub rows: u64,
    parts: Vec<Located>,
}

/// A part in its bucket: eight bytes for each run.
#[derive(Clone, Debug)]
struct Located {
    /// Rows of the bucket in the parts before this one.
    before: u64,
    shard: usize,
    rows: u64,
    first_row: Vec<u32>,
    /// Rows of the part before each run.
    within: Vec<u32>,
}

impl Bucket {
    /// Where the bucket's `n`th sample lies; `None` past its end.
    pub fn locate(&self, n: u64) -> Option<Locator> {
        if n >= self.rows {
            return None;
        }
        let part = self.parts.partition_point(|part| part.before <= n).checked_sub(1)?;
        let part = self.parts.get(part)?;
        let n = u32::try_from(n - part.before).ok()?;
        let run = part.within.partition_point(|&before| before <= n).checked_sub(1)?;
        let row = u64::from(*part.first_row.get(run)?) + u64::from(n - part.within.get(run)?);
        Some(Locator { shard: part.shard, row })
    }
}

impl BucketIndex {
    /// Reads the table at `path` and finds its shards, on this machine.
    pub fn read(path: &Path) -> Result<Self, ShardError> {
        Self::read_in(None, path)
    }

    /// Reads the table at `path`, an index stage's own or a copy of it, whose shards lie in `workdir`.
    pub fn read_in(workdir: Option<&Workdir>, path: &Path) -> Result<Self, ShardError> {
        let table = Shard::open(path)?;
        let damaged = |detail: String| ShardError::Record { path: path.to_owned(), what: "bucket index", detail };
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut parts: Vec<(BucketSize, (String, Digest), Located)> = Vec::new();
        for batch in table.batches(None, 1024)? {
            let batch = batch?;
            let sizes = table.text(&batch, columns::BUCKET_SIZE)?;
            let shards = table.text(&batch, SHARD)?;
            let digests = table.text(&batch, DIGEST)?;
            let images: &UInt64Array = table.typed(&batch, IMAGES, "uint64")?;
            let (first_rows, rows): (&ListArray, &ListArray) =
                (table.typed(&batch, FIRST_ROW, "list of uint32")?, table.typed(&batch, ROWS, "list of uint32")?);
            for i in 0..batch.num_rows() {
                let bucket = sizes.value(i).parse().map_err(|e: InvalidBucketSize| damaged(e.to_string()))?;
                let digest = digests.value(i).parse().map_err(|e: InvalidDigest| damaged(e.to_string()))?;
                let numbers = |lists: &ListArray| -> Option<Vec<u32>> {
                    let list = lists.value(i);
                    list.as_any().downcast_ref::<UInt32Array>().map(|numbers| numbers.values().to_vec())
                };
                let (first_row, rows) = numbers(first_rows).zip(numbers(rows)).unwrap_or_default();
                let sum: u64 = rows.iter().map(|rows| u64::from(*rows)).sum();
                if first_row.len() != rows.len() || sum != images.value(i) || u32::try_from(sum).is_err() {
                    return Err(damaged(format!("the runs of {bucket} in {} do not add up", shards.value(i))));
                }
                let mut before = 0;
                let mut within = Vec::with_capacity(rows.len());
                for rows in rows {
                    within.push(before);
                    before += rows;
                }
                // Its place among the others is known only when all are.
                let located = Located { before: 0, shard: 0, rows: sum, first_row, within };
                parts.push((bucket, (shards.value(i).to_owned(), digest), located));
            }
        }
        // Numbered in the order of their names, so that every process numbers them alike.
        let mut names: BTreeMap<(String, Digest), usize> =
            parts.iter().map(|(_, name, ..)| (name.clone(), 0)).collect();
        names.values_mut().enumerate().for_each(|(n, number)| *number = n);
        let mut finder = Finder { folder, workdir, stages: BTreeMap::new() };
        let found = names.keys().map(|(shard, digest)| finder.find(shard, *digest));
        let (shards, places) = found.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let mut buckets: BTreeMap<BucketSize, Bucket> = BTreeMap::new();
        for (size, name, located) in parts {
            let shard = names.get(&name).copied().unwrap_or_default();
            let bucket = buckets.entry(size).or_insert_with(|| Bucket { size, rows: 0, parts: Vec::new() });
            let before = bucket.rows;
            bucket.rows += located.rows;
            bucket.parts.push(Located { before, shard, ..located });
        }
        Ok(Self { shards, places, buckets: buckets.into_values().collect() })
    }

    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    pub fn shards(&self) -> &[PathBuf] {
        &self.shards
    }

    /// Whether any shard lies on a store.
    pub fn is_remote(&self) -> bool {
        self.places.iter().any(|place| matches!(place, Place::Committed(stage, _) if stage.workdir().is_remote()))
    }

    /// A cache for parts of shards that lie on a store, for one of so many `processes` of this machine: of at most `limit` bytes together.
    pub fn range_cache(&self, limit: u64, processes: usize) -> Option<Arc<RangeCache>> {
        self.places.iter().find_map(|place| match place {
            Place::Committed(stage, _) => stage.workdir().range_cache(limit, processes),
            Place::File => None,
        })
    }

    /// Opens a shard for single rows of `columns`. One that is not what was indexed is refused.
    pub fn open(
        &self,
        shard: usize,
        columns: &[&str],
        cache: Option<&Arc<RangeCache>>,
    ) -> Result<RowReader, ShardError> {
        let path = self.shards.get(shard).map_or(Path::new(""), PathBuf::as_path);
        match self.places.get(shard) {
            Some(Place::Committed(stage, file)) => RowReader::open(stage.ranges(file, cache)?, columns, Some(file)),
            _ => RowReader::open(Arc::new(LocalFile::open(path)?), columns, None),
        }
    }

    /// All samples.
    pub fn rows(&self) -> u64 {
        self.buckets.iter().map(|b| b.rows).sum()
    }
}

/// The files of a stage by partition and digest.
type FilesOfStage = HashMap<(String, Digest), DataFile>;

/// Finds the files of shards by their names and digests.
struct Finder<'a> {
    /// The index's own.
    folder: &'a Path,
    workdir: Option<&'a Workdir>,
    /// By folder, each with all that its records name, by partition and digest: one listing, and one look at every record,
    /// however many shards there are.
    stages: BTreeMap<PathBuf, (StageFolder, FilesOfStage)>,
}

impl Finder<'_> {
    /// `name` itself where that is a file, else the data of the partition's sidecar that has this digest.
    fn find(&mut self, name: &str, digest: Digest) -> Result<(PathBuf, Place), ShardError> {
        let path = self.folder.join(name);
        if path.is_file() {
            return Ok((path, Place::File));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let partition = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !self.stages.contains_key(folder) {
            let stage = match self.workdir {
                Some(workdir) => StageFolder::new(workdir, &folder.file_name().unwrap_or_default().to_string_lossy()),
                None => StageFolder::at(folder),
            };
            let names = stage.listing()?.sidecars;
            let mut files = HashMap::new();
            for (_, Sidecar { partition, data, .. }) in stage.read_all(&names)? {
                for file in data {
                    // Of files with the same content, the first in the order of the records' names.
                    files.entry((partition.clone(), file.digest)).or_insert(file);
                }
            }
            self.stages.insert(folder.to_owned(), (stage, files));
        }
        let found = self.stages.get(folder);
        let found = found.and_then(|(stage, files)| Some((stage, files.get(&(partition, digest))?)));
        if let Some((stage, file)) = found {
            let path = if stage.workdir().is_remote() {
                format!("{}/{}", stage.workdir().location(), stage.name_of(&file.file)).into()
            } else {
                stage.path().join(&file.file)
            };
            return Ok((path, Place::Committed(stage.clone(), file.clone())));
        }
        let detail = format!("no shard {} with digest {digest} is there; run the pipeline again", path.display());
        Err(ShardError::Record { path, what: "shard of the bucket index", detail })
    }
}

/// Writes an index table.
pub fn write(path: &Path, parts: &[Part]) -> Result<DataFile, ShardError> {
    let list = || DataType::List(Arc::new(Field::new("item", DataType::UInt32, false)));
    let schema = Arc::new(Schema::new(vec![
        Field::new(columns::BUCKET_SIZE, DataType::Utf8, false),
        Field::new(SHARD, DataType::Utf8, false),
        Field::new(DIGEST, DataType::Utf8, false),
        Field::new(IMAGES, DataType::UInt64, false),
        Field::new(FIRST_ROW, list(), false),
        Field::new(ROWS, list(), false),
    ]));
    let mut writer = ShardWriter::create(path, &schema)?;
    // Of a dataset whose buckets are scattered, one part may have as many runs as rows.
    for parts in parts.chunks(256) {
        let lists = |of: fn(&Runs) -> &[u32]| {
            let mut lists = ListBuilder::new(PrimitiveBuilder::<UInt32Type>::new()).with_field(Field::new(
                "item",
                DataType::UInt32,
                false,
            ));
            for part in parts {
                lists.values().append_slice(of(&part.runs));
                lists.append(true);
            }
            Arc::new(lists.finish())
        };
        let batch = RecordBatch::try_new(
            Arc::clone(&schema),
            vec![
                Arc::new(StringArray::from_iter_values(parts.iter().map(|part| part.bucket.to_string()))),
                Arc::new(StringArray::from_iter_values(parts.iter().map(|part| &part.shard))),
                Arc::new(StringArray::from_iter_values(parts.iter().map(|part| part.digest.to_string()))),
                Arc::new(UInt64Array::from_iter_values(parts.iter().map(|part| part.runs.rows()))),
                lists(|runs| &runs.first_row),
                lists(|runs| &runs.rows),
            ],
        );
        writer.write(&batch.map_err(ShardError::arrow(path))?)?;
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn samples_are_found_across_runs_and_the_table_round_trips() {
        let folder = tempfile::tempdir().unwrap();
        let size = |width, height| BucketSize { width, height };
        let part = |bucket, shard: &str, rows: &[u32]| {
            std::fs::write(folder.path().join(shard), b"").unwrap();
            Part { bucket, shard: shard.into(), digest: Digest::of(b""), runs: rows.iter().copied().collect() }
        };
        let parts = [
            part(size(32, 16), "b.parquet", &[0, 1, 2]),
            part(size(16, 32), "b.parquet", &[3, 4]),
            part(size(32, 16), "a.parquet", &[7, 9, 10, 20]),
        ];
        assert_eq!(parts[2].runs, Runs { first_row: vec![7, 9, 20], rows: vec![1, 2, 1] });
        let path = folder.path().join("index.parquet");
        write(&path, &parts).unwrap();
        let index = BucketIndex::read(&path).unwrap();
        assert_eq!(index.rows(), 9);
        assert_eq!(index.shards(), [folder.path().join("a.parquet"), folder.path().join("b.parquet")]);
        assert_eq!(index.buckets()[0].size, size(16, 32));
        let wide = &index.buckets()[1];
        let found: Vec<_> = (0..8).map(|n| wide.locate(n).map(|l| (l.shard, l.row))).collect();
        let expected = [(1, 0), (1, 1), (1, 2), (0, 7), (0, 9), (0, 10), (0, 20)].map(Some);
        assert_eq!(found[..7], expected);
        assert_eq!(found[7], None);
    }

    #[test]
    fn a_shard_that_is_gone_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.parquet");
        let bucket = BucketSize { width: 8, height: 8 };
        let (shard, runs) = ("../bucket/part-00007".into(), Runs::from_iter([0]));
        write(&path, &[Part { bucket, shard, digest: Digest::of(b""), runs }]).unwrap();
        assert!(BucketIndex::read(&path).unwrap_err().to_string().contains("bucket/part-00007"));
    }

    #[test]
    fn each_shard_is_the_file_of_its_partition_and_digest() {
        let folder = tempfile::tempdir().unwrap();
        let bucket = folder.path().join("bucket");
        std::fs::create_dir(&bucket).unwrap();
        std::fs::create_dir(folder.path().join("index")).unwrap();
        let record = |partition: &str, fingerprint: &str, files: &[(String, Digest)]| {
            let file =
                |(file, digest): &(String, Digest)| json!({ "file": file, "digest": digest, "bytes": 4, "rows": 1 });
            let record = json!({
                "format": 1, "stage": "bucket", "kind": "bucket@1", "partition": partition,
                "fingerprint": Digest::of(fingerprint.as_bytes()), "parameters": {}, "inputs": [],
                "data": files.iter().map(file).collect::<Vec<_>>(),
                "rows_in": 2, "rows_out": 2, "dropped": {}, "finished_at": 0, "seconds": 0.0, "version": "test",
            });
            std::fs::write(bucket.join(format!("{partition}.{fingerprint}.json")), record.to_string()).unwrap();
        };
        // What every partition has too, and what only this one has.
        let (shared, own) = (Digest::of(b"shared"), |partition: &str| Digest::of(partition.as_bytes()));
        let partitions: Vec<String> = (0..50).map(|n| format!("part-{n:05}")).collect();
        for partition in &partitions {
            let files = |attempt: &str| {
                [("256", shared), ("512", own(partition))]
                    .map(|(variant, digest)| (format!("{partition}.{attempt}.{variant}.parquet"), digest))
            };
            record(partition, "00000001", &files("a-1"));
            // The same output of another configuration.
            record(partition, "00000002", &files("b-1"));
        }
        let path = folder.path().join("index/index.parquet");
        let read = |shards: Vec<(&String, Digest)>| {
            let bucket = BucketSize { width: 8, height: 8 };
            let part = |(partition, digest): (&String, Digest)| Part {
                bucket,
                shard: format!("../bucket/{partition}"),
                digest,
                runs: Runs::from_iter([0]),
            };
            // The writer makes no file that is there.
            let _ = std::fs::remove_file(&path);
            write(&path, &shards.into_iter().map(part).collect::<Vec<_>>()).unwrap();
            BucketIndex::read(&path)
        };
        let index = read(partitions.iter().flat_map(|name| [(name, shared), (name, own(name))]).collect()).unwrap();
        let names = index.shards().iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned());
        let found: BTreeSet<String> = names.collect();
        let expected = partitions.iter().flat_map(|name| ["256", "512"].map(|n| format!("{name}.a-1.{n}.parquet")));
        assert_eq!(found, expected.collect::<BTreeSet<String>>());
        // The digest of one partition is no other's.
        let error = read(vec![(&partitions[3], own(&partitions[4]))]).unwrap_err().to_string();
        assert!(error.contains("part-00003") && error.contains(&own(&partitions[4]).to_string()), "{error}");
    }
}
