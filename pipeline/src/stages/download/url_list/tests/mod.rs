//! Tests of the list of URLs.

mod cache;
mod faults;
mod formats;
mod remote;
mod scale;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use tempfile::TempDir;

use super::*;

/// The usual columns.
fn columns() -> ColumnNames {
    ColumnNames { url: "url".into(), caption: Some("caption".into()), ..ColumnNames::default() }
}

fn list(location: impl AsRef<Path>, columns: ColumnNames, rows_per_shard: u64) -> UrlList {
    let location = location.as_ref().to_str().unwrap().to_owned();
    UrlList::new(vec![location], None, columns, "src", rows_per_shard, u64::MAX)
}

/// Writes a list that is old enough for its time to tell versions apart.
fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    settle(path, 100);
}

fn settle(path: &Path, seconds: u64) {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 - seconds);
    File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Rows as people see them: key, URL, caption, and the rest with null as "-".
fn shown(rows: &Rows) -> Vec<Vec<String>> {
    let text = |column: &ArrayRef, row: usize| {
        if column.is_null(row) {
            return "-".to_owned();
        }
        arrow::util::display::array_value_to_string(column, row).unwrap()
    };
    let row = |row: usize| {
        let values = rows.batch.columns().iter().map(|column| text(column, row));
        std::iter::once(rows.keys[row].clone()).chain(values).collect()
    };
    (0..rows.keys.len()).map(row).collect()
}

/// All rows of all partitions, and the partitions.
fn all(list: &UrlList, folder: &Path) -> (Vec<Vec<String>>, Vec<Source>) {
    let partitions = list.partitions(folder).unwrap();
    let mut found = Vec::new();
    for (number, partition) in partitions.iter().enumerate() {
        let rows = list.rows(folder, number).unwrap();
        assert_eq!(rows.keys.len() as u64, partition.rows);
        assert_eq!(rows.batch.num_rows() as u64, partition.rows);
        found.extend(shown(&rows));
    }
    (found, partitions)
}

fn urls(found: &[Vec<String>]) -> Vec<&str> {
    found.iter().map(|row| row[1].as_str()).collect()
}

fn digests(partitions: &[Source]) -> Vec<Digest> {
    partitions.iter().map(|partition| partition.digest).collect()
}

/// A parquet file of text columns.
fn parquet(path: &Path, columns: &[(&str, Vec<Option<&str>>)]) {
    let arrays = columns.iter().map(|(_, values)| Arc::new(StringArray::from(values.clone())) as ArrayRef);
    let fields: Vec<Field> = columns.iter().map(|(name, _)| Field::new(*name, DataType::Utf8, true)).collect();
    write_parquet(path, &RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays.collect()).unwrap());
}

fn write_parquet(path: &Path, batch: &RecordBatch) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    settle(path, 100);
}

/// What lies in `stages/download/list`.
fn names_in(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// A folder for lists and one for the stage.
fn folders() -> (TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (lists, stage) = (folder.path().join("lists"), folder.path().join("stage"));
    fs::create_dir_all(&lists).unwrap();
    (folder, lists, stage)
}
