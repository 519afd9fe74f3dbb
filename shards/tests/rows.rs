//! Single rows: what a scan finds there, whoever wrote the file; and never a wrong one, whatever happened to the file since.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch, StringArray, StructArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use shards::columns::{CAPTION, IMAGE, KEY, schema_of_samples};
use shards::ranges::{LocalFile, Ranges};
use shards::reader::Shard;
use shards::rows::RowReader;
use shards::sidecar::DataFile;
use shards::writer::ShardWriter;

/// Bytes of which no two rows have the same.
fn image(row: usize) -> Vec<u8> {
    (0..40 + row % 7).map(|i| (row * 31 + i * 7) as u8).collect()
}

fn caption(row: usize) -> Option<String> {
    (row % 5 != 4).then(|| format!("picture {row}"))
}

fn batch(rows: std::ops::Range<usize>) -> RecordBatch {
    let schema = Arc::new(schema_of_samples(vec![
        Field::new(KEY, DataType::Utf8, false),
        Field::new(IMAGE, DataType::Binary, false),
        Field::new(CAPTION, DataType::Utf8, true),
    ]));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.clone().map(|row| format!("{row:06}")))),
        Arc::new(BinaryArray::from_iter_values(rows.clone().map(image))),
        Arc::new(rows.map(caption).collect::<StringArray>()),
    ];
    RecordBatch::try_new(schema, columns).unwrap()
}

/// As our stages write it: `rows` in row groups of 100.
fn ours(path: &Path, rows: usize) -> DataFile {
    let mut writer = ShardWriter::create(path, &batch(0..0).schema()).unwrap();
    for start in (0..rows).step_by(100) {
        writer.write(&batch(start..rows.min(start + 100))).unwrap();
        writer.end_row_group().unwrap();
    }
    writer.finish().unwrap()
}

fn open(path: &Path, record: Option<&DataFile>) -> Result<RowReader, shards::ShardError> {
    RowReader::open(Arc::new(LocalFile::open(path)?), &[IMAGE, CAPTION], record)
}

/// The image and caption of each row of what a reader gave.
fn values(batch: &RecordBatch) -> Vec<(Vec<u8>, Option<String>)> {
    let images = arrow::compute::cast(batch.column_by_name(IMAGE).unwrap(), &DataType::Binary).unwrap();
    let captions = arrow::compute::cast(batch.column_by_name(CAPTION).unwrap(), &DataType::Utf8).unwrap();
    let captions = captions.as_string::<i32>().clone();
    let images = images.as_binary::<i32>();
    (0..batch.num_rows())
        .map(|i| (images.value(i).to_vec(), captions.is_valid(i).then(|| captions.value(i).to_owned())))
        .collect()
}

fn expected(rows: &[u64]) -> Vec<(Vec<u8>, Option<String>)> {
    rows.iter().map(|&row| (image(row as usize), caption(row as usize))).collect()
}

#[test]
fn rows_are_those_that_a_scan_finds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part.parquet");
    let file = ours(&path, 250);
    let reader = open(&path, Some(&file)).unwrap();
    assert!(reader.has_page_index() && reader.rows() == 250);
    for rows in [vec![0], vec![249], vec![7, 8, 63, 64, 65, 99, 100, 101, 248], (0..250).collect()] {
        let found = reader.read(&rows).unwrap();
        assert_eq!(values(&found), expected(&rows));
        assert!(reader.are_whole(&found).unwrap().into_iter().all(|whole| whole));
        let scanned = Shard::open(&path).unwrap().rows_at(&rows, &[IMAGE, CAPTION]).unwrap();
        assert_eq!(values(&found), values(&scanned));
    }
    assert!(reader.read(&[250]).unwrap_err().to_string().contains("has 250 rows, but row 250 was asked for"));
}

/// A file as other programs write it: images in a structure, dictionaries, no page index, pages of many rows.
fn foreign(path: &Path, rows: usize, with_index: bool) -> PathBuf {
    let members: Fields =
        vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)].into();
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::UInt32, false),
        Field::new(CAPTION, DataType::LargeUtf8, true),
        Field::new(IMAGE, DataType::Struct(members.clone()), true),
    ]));
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_offset_index_disabled(!with_index)
        .set_dictionary_page_size_limit(2000)
        .set_data_page_size_limit(3000)
        .set_write_batch_size(16)
        .set_max_row_group_row_count(Some(300));
    let file = std::fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties.build())).unwrap();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(0..rows as u32)),
        arrow::compute::cast(&(0..rows).map(caption).collect::<StringArray>(), &DataType::LargeUtf8).unwrap(),
        Arc::new(StructArray::new(
            members,
            vec![
                Arc::new(BinaryArray::from_iter_values((0..rows).map(image))),
                Arc::new((0..rows).map(|_| None::<String>).collect::<StringArray>()),
            ],
            None,
        )),
    ];
    writer.write(&RecordBatch::try_new(schema, columns).unwrap()).unwrap();
    writer.close().unwrap();
    path.to_owned()
}

#[test]
fn files_of_others_are_read_by_page_too() {
    let folder = tempfile::tempdir().unwrap();
    for with_index in [false, true] {
        let path = foreign(&folder.path().join(format!("{with_index}.parquet")), 1000, with_index);
        let reader = open(&path, None).unwrap();
        assert_eq!(reader.has_page_index(), with_index);
        for rows in [vec![0], vec![999], vec![1, 2, 90, 299, 300, 301, 640], (0..1000).step_by(3).collect()] {
            let found = reader.read(&rows).unwrap();
            assert_eq!(values(&found), expected(&rows));
            assert!(reader.are_whole(&found).unwrap().into_iter().all(|whole| whole), "nothing is known against them");
        }
        let file = LocalFile::open(&path).unwrap().length();
        assert!(reader.bytes_per_row() < file / 3, "{} of {file}", reader.bytes_per_row());
    }
}

#[test]
fn whatever_byte_is_wrong_no_row_is_taken_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part.parquet");
    let rows = 90;
    let record = ours(&path, rows);
    let whole = std::fs::read(&path).unwrap();
    let (mut noticed, mut harmless) = (0, 0);
    // Every 23rd byte, so that all parts of the file come up.
    for at in (0..whole.len()).step_by(23) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(&path, &damaged).unwrap();
        // parquet panics at some of what cannot be; a loader takes that for damage.
        let found = std::panic::catch_unwind(|| {
            let Ok(reader) = open(&path, Some(&record)) else { return true };
            let mut seen = false;
            for row in 0..rows as u64 {
                let Ok(found) = reader.read(&[row]) else {
                    seen = true;
                    continue;
                };
                if reader.are_whole(&found).unwrap() == [true] {
                    assert_eq!(values(&found), expected(&[row]), "byte {at}");
                } else {
                    seen = true;
                }
            }
            seen
        });
        match found {
            Ok(true) => noticed += 1,
            Ok(false) => harmless += 1,
            Err(panic) => {
                let words = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                assert!(!words.contains("assertion"), "{words}");
                noticed += 1;
            }
        }
    }
    // What is not read for a row, such as the statistics of pages and the definition levels' spare bits.
    assert!(noticed > harmless * 4, "{noticed} noticed, {harmless} harmless");
}

#[test]
fn another_file_under_the_name_and_a_cut_one_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part.parquet");
    let record = ours(&path, 120);
    std::fs::remove_file(&path).unwrap();
    // As long as the other, and as readable.
    let mut writer = ShardWriter::create(&path, &batch(0..0).schema()).unwrap();
    writer.write(&batch(0..120)).unwrap();
    let other = writer.finish().unwrap();
    let error = open(&path, Some(&DataFile { bytes: other.bytes, ..record.clone() })).unwrap_err().to_string();
    assert!(error.contains("part.parquet") && error.contains("its footer is not the one that was written"), "{error}");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
    let error = open(&path, Some(&other)).unwrap_err().to_string();
    assert!(error.contains("bytes; its record says"), "{error}");
    assert!(open(&path, None).unwrap_err().to_string().contains("part.parquet"));
}
