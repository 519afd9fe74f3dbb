//! A damaged image in a bucket: replaced by the next and counted; a bucket of nothing else is an error that names it.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{BinaryArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field};
use shards::bucket::BucketSize;
use shards::columns;
use shards::event::EventSink;
use shards::index::{Part, write};
use shards::writer::ShardWriter;
use trainer::config::{TrainConfig, TrainOperations};
use trainer::{Finished, Job, TrainError};

/// A bucket of `good` images and as many damaged ones as `bad`, and its index.
fn dataset(folder: &Path, good: usize, bad: usize) -> PathBuf {
    let picture = image::RgbImage::from_pixel(16, 8, image::Rgb([200, 30, 40]));
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let png = png.into_inner();
    let damaged = png[..png.len() / 2].to_vec();
    let images: Vec<Vec<u8>> = (0..good + bad).map(|i| if i < good { png.clone() } else { damaged.clone() }).collect();

    let schema = Arc::new(columns::schema_of_samples(vec![
        Field::new(columns::IMAGE, DataType::Binary, false),
        Field::new(columns::CAPTION, DataType::Utf8, false),
    ]));
    let captions = StringArray::from_iter_values(images.iter().map(|_| "red"));
    let arrays: Vec<arrow::array::ArrayRef> =
        vec![Arc::new(BinaryArray::from_iter_values(&images)), Arc::new(captions)];
    let path = folder.join("shard.parquet");
    let mut writer = ShardWriter::create(&path, &schema).unwrap();
    writer.write(&RecordBatch::try_new(Arc::clone(&schema), arrays).unwrap()).unwrap();
    let file = writer.finish().unwrap();
    let index = folder.join("index.parquet");
    let bucket = BucketSize { width: 16, height: 8 };
    let runs = (0..file.rows as u32).collect();
    write(&index, &[Part { bucket, shard: "shard.parquet".into(), digest: file.digest, runs }]).unwrap();
    index
}

fn config() -> TrainConfig {
    TrainConfig { steps: 6, batch_size: 4, width: 16, heads: 2, blocks: 1, warmup_steps: 1, ..TrainConfig::default() }
}

fn train(config: &TrainConfig, index: &Path) -> Result<Finished, TrainError> {
    trainer::train(&Job {
        config,
        operations: &TrainOperations { log_every: 1, ..TrainOperations::default() },
        index,
        workdir: None,
        folder: &index.with_file_name("run"),
        stage: "train",
        events: &EventSink::silent(),
        cancelled: &|| false,
        again: false,
    })
}

#[test]
fn damaged_images_are_replaced_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let finished = train(&config(), &dataset(folder.path(), 6, 2)).unwrap();
    // 24 samples are drawn: three passes over eight images, of which two are damaged.
    assert_eq!((finished.samples, finished.replaced), (24, 6));
    assert_eq!(finished.records.len(), 6);
}

#[test]
fn a_bucket_without_a_usable_image_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = train(&config(), &dataset(folder.path(), 0, 3)).unwrap_err();
    let words = error.to_string();
    assert!(words.contains("bucket 16x8") && words.contains("3 images in a row cannot be used"), "{words}");
    assert!(words.contains("row ") && words.contains("shard.parquet: damaged"), "{words}");
}

#[test]
fn buckets_that_do_not_fit_the_model_and_other_configurations_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let index = dataset(folder.path(), 4, 0);
    let error = train(&TrainConfig { patch_size: 3, ..config() }, &index).unwrap_err();
    assert!(matches!(error, TrainError::BucketSize { multiple: 6, .. }), "{error}");

    train(&config(), &index).unwrap();
    let error = train(&TrainConfig { learning_rate: 0.5, ..config() }, &index).unwrap_err().to_string();
    assert!(error.contains("learning_rate 0.0001 → 0.5"), "{error}");
}
