//! What is published: the input's shards, under the names that they get.

use std::collections::BTreeMap;
use std::path::PathBuf;

use arrow::array::Array;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use rayon::prelude::*;
use shards::columns;
use shards::digest::Digest;
use shards::reader::Shard;

use super::PublishError;
use super::dataset_card::Size;
use crate::plan::is_shard;
use crate::stage::{StageError, Task};

/// The folder of all files but the card.
pub(super) const FOLDER: &str = "data";

/// A shard, and its name in the publication.
#[derive(Clone, Debug)]
pub(super) struct PublishedFile {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) rows: u64,
    pub(super) digest: Digest,
}

/// Shards with the same columns: of one resolution, where there are several.
pub(super) struct Configuration {
    pub(super) name: String,
    pub(super) files: Vec<PublishedFile>,
    /// The names of its files and of no others, an earlier publication's among them.
    pub(super) pattern: String,
    pub(super) schema: SchemaRef,
    pub(super) size: Size,
    /// Rows of each bucket, where there are buckets.
    pub(super) buckets: BTreeMap<String, u64>,
}

/// What is known of a shard after a look at its footer. Not the open shard: there may be more of them than files may be open, and
/// each has an index of all its images.
struct Looked {
    schema: SchemaRef,
    file: PublishedFile,
    bytes: u64,
    buckets: BTreeMap<String, u64>,
}

/// The configurations of what `task` publishes, in the order of its inputs. Shards without rows are left out.
pub(super) fn configurations(task: &Task) -> Result<Vec<Configuration>, StageError> {
    let mut found: Vec<(Option<String>, Vec<PublishedFile>)> = Vec::new();
    let mut are_shards = false;
    for input in task.inputs {
        for (data, path) in input.sidecar.data.iter().zip(input.files()).filter(|(data, _)| is_shard(&data.file)) {
            are_shards = true;
            let (bytes, rows, digest) = (data.bytes, data.rows, data.digest);
            let file = PublishedFile { name: String::new(), path, bytes, rows, digest };
            match found.iter_mut().find(|(variant, _)| *variant == data.variant) {
                _ if rows == 0 => {}
                Some((_, files)) => files.push(file),
                None => found.push((data.variant.clone(), vec![file])),
            }
        }
    }
    if found.is_empty() {
        let reason = if are_shards { PublishError::NoRows } else { PublishError::NoShards };
        return Err(reason.into());
    }
    let is_one = found.len() == 1;
    let of = |(variant, files): (Option<String>, Vec<PublishedFile>)| {
        let folder = match &variant {
            Some(name) if !is_one => format!("{FOLDER}/{name}"),
            _ => FOLDER.to_owned(),
        };
        let name = variant.filter(|_| !is_one).unwrap_or_else(|| "default".to_owned());
        configuration(name, &folder, files, task)
    };
    found.into_iter().map(of).collect()
}

fn configuration(
    name: String,
    folder: &str,
    files: Vec<PublishedFile>,
    task: &Task,
) -> Result<Configuration, StageError> {
    let count = files.len();
    let looked = files.into_par_iter().enumerate().map(|(n, file)| {
        task.check_cancelled()?;
        look(PublishedFile { name: format!("{folder}/{}", file_name(n, count)), ..file })
    });
    let looked = looked.collect::<Result<Vec<_>, StageError>>()?;
    let (mut size, mut buckets) = (Size::default(), BTreeMap::new());
    for Looked { file, bytes, buckets: of_file, .. } in &looked {
        size =
            Size { rows: size.rows + file.rows, bytes: size.bytes + bytes, file_bytes: size.file_bytes + file.bytes };
        for (bucket, rows) in of_file {
            *buckets.entry(bucket.clone()).or_default() += rows;
        }
    }
    let Some(first) = looked.first() else { return Err(PublishError::NoRows.into()) };
    let expected = in_words(&first.schema);
    if let Some(other) = looked.iter().find(|other| in_words(&other.schema) != expected) {
        let shown = |looked: &Looked| looked.file.path.display().to_string();
        let (first, other, found) = (shown(first), shown(other), in_words(&other.schema));
        return Err(PublishError::OtherColumns { first, expected, other, found }.into());
    }
    let schema = SchemaRef::clone(&first.schema);
    let pattern = format!("{folder}/train-*-of-{count:05}.parquet");
    let files = looked.into_iter().map(|looked| looked.file).collect();
    Ok(Configuration { name, files, pattern, schema, size, buckets })
}

fn look(file: PublishedFile) -> Result<Looked, StageError> {
    let shard = Shard::open(&file.path)?;
    let groups = shard.metadata().row_groups().iter();
    let bytes = groups.map(|group| u64::try_from(group.total_byte_size()).unwrap_or(0)).sum();
    let mut buckets: BTreeMap<String, u64> = BTreeMap::new();
    let is_text = |schema: &Schema| {
        schema.field_with_name(columns::BUCKET_SIZE).is_ok_and(|field| *field.data_type() == DataType::Utf8)
    };
    if is_text(shard.schema()) {
        for batch in shard.batches(Some(&[columns::BUCKET_SIZE]), 8192)? {
            let batch = batch?;
            let sizes = shard.text(&batch, columns::BUCKET_SIZE)?;
            for size in (0..sizes.len()).filter(|row| sizes.is_valid(*row)).map(|row| sizes.value(row)) {
                match buckets.get_mut(size) {
                    Some(rows) => *rows += 1,
                    None => {
                        buckets.insert(size.to_owned(), 1);
                    }
                }
            }
        }
    }
    Ok(Looked { schema: SchemaRef::clone(shard.schema()), file, bytes, buckets })
}

/// Names and types, as two schemas are compared.
fn in_words(schema: &Schema) -> String {
    let fields = schema.fields().iter().map(|field| format!("{} ({})", field.name(), field.data_type()));
    fields.collect::<Vec<_>>().join(", ")
}

fn file_name(n: usize, count: usize) -> String {
    format!("train-{n:05}-of-{count:05}.parquet")
}

/// Whether a file in a publication is one that we, and Hugging Face's own programs, name so.
pub(super) fn is_ours(name: &str) -> bool {
    let mut parts: Vec<&str> = name.split('/').collect();
    let file = parts.pop().unwrap_or_default();
    let numbers = file.strip_prefix("train-").and_then(|rest| rest.strip_suffix(".parquet")?.split_once("-of-"));
    let is_number = |text: &str| text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    parts.first() == Some(&FOLDER)
        && parts.len() <= 2
        && numbers.is_some_and(|(n, count)| is_number(n) && is_number(count))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{RecordBatch, StringArray};
    use arrow::datatypes::Field;
    use shards::writer::ShardWriter;

    use super::*;

    #[test]
    fn a_shard_that_was_looked_at_is_not_held_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("part-00000.parquet");
        let schema = Arc::new(Schema::new(vec![Field::new(columns::BUCKET_SIZE, DataType::Utf8, false)]));
        let sizes = StringArray::from_iter_values(["256x256", "512x128", "256x256"]);
        let mut writer = ShardWriter::create(&path, &schema).unwrap();
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(sizes)]).unwrap()).unwrap();
        let written = writer.finish().unwrap();
        let (bytes, rows, digest) = (written.bytes, written.rows, written.digest);
        let looked = look(PublishedFile { name: String::new(), path: path.clone(), bytes, rows, digest }).unwrap();
        // What this process has open, where the system says so.
        let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let held = open.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to == path));
        assert_eq!(held.count(), 0);
        assert_eq!((looked.buckets["256x256"], in_words(&looked.schema)), (2, in_words(&schema)));
    }

    #[test]
    fn only_files_named_as_ours_are_ours() {
        assert_eq!(file_name(7, 123_456), "train-00007-of-123456.parquet");
        for name in ["data/train-00000-of-00001.parquet", "data/512/train-00007-of-123456.parquet"] {
            assert!(is_ours(name), "{name}");
        }
        for name in [
            "README.md",
            "data/test-00000-of-00001.parquet",
            "data/train.parquet",
            "data/train-1-of-2.parquet",
            "data/train-0000a-of-00001.parquet",
            "train-00000-of-00001.parquet",
            "other/train-00000-of-00001.parquet",
            "data/a/b/train-00000-of-00001.parquet",
            "data/train-00000-of-00001.parquet.bak",
        ] {
            assert!(!is_ours(name), "{name}");
        }
    }
}
