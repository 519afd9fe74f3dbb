//! `bucket`: resizes images so that each side is a whole number of patches, and sorts them by size.
//!
//! - in: shards with an image column
//! - out: the same columns with image, width and height replaced, plus bucket_size; sorted by bucket, in the order of the
//!   input within a bucket; a row group never holds two buckets
//! - stale when: a size, the encoding or its input changed
//! - law: in = out + Σ dropped (`damaged_image`, `not_an_image`, `too_many_pixels`)

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BinaryArray, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field};
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use rayon::prelude::*;
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::bucket::BucketSize;
use shards::reader::Shard;
use shards::sidecar::DataFile;
use shards::writer::ShardWriter;
use shards::{ShardError, columns};

use crate::picture::{DecodeError, Format, decode_at_least, encode};
use crate::quarantine::{BadRow, Quarantine};
use crate::stage::{Facts, Law, Outcome, Partitioning, Stage, StageError, StageKind, Task, as_it_is};

/// The fact, and parameter, that later stages check: pixels of the longest side.
pub const MAX_RESOLUTION: &str = "max_resolution";
/// The fact, and parameter, that later stages check: sides are multiples of this many pixels.
pub const PATCH_SIZE: &str = "patch_size";

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Bucket {
    /// Longer sides are brought down to this many pixels; images are never enlarged.
    max_resolution: u32,
    /// Each side becomes the nearest multiple of this many pixels.
    patch_size: u32,
    /// Encoding of the result [png].
    #[serde(default)]
    format: Format,
    /// Quality of jpeg and webp, from 1 to 100 [95].
    #[serde(default = "default_quality")]
    quality: u8,
    /// Larger images are refused, in pixels [100 million].
    #[serde(default = "default_pixels")]
    max_pixels: u64,
}

fn default_quality() -> u8 {
    95
}
fn default_pixels() -> u64 {
    100_000_000
}

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "bucket",
        version: 2,
        about: "Resizes images to whole numbers of patches and sorts them by size.",
        inputs: (1, 1),
        schemas: || vec![schema_for!(Bucket)],
        rehearse: as_it_is,
        build: |parameters| {
            let bucket: Bucket = parameters.read()?;
            if bucket.patch_size == 0 || bucket.patch_size > bucket.max_resolution {
                let message = format!(
                    "patch_size = {}: expected 1 to max_resolution ({})",
                    bucket.patch_size, bucket.max_resolution
                );
                return Err(parameters.fault(PATCH_SIZE, message));
            }
            if !(1..=100).contains(&bucket.quality) {
                return Err(parameters.fault("quality", format!("quality = {}: expected 1 to 100", bucket.quality)));
            }
            Ok(Box::new(bucket))
        },
    }
}

/// A resized image and where it came from.
struct Resized {
    size: BucketSize,
    /// Position in the partition's input.
    row: u64,
    bytes: Vec<u8>,
}

impl Stage for Bucket {
    fn semantics(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn partitioning(&self) -> Partitioning {
        Partitioning::EachInput
    }

    fn law(&self) -> Law {
        Law::RowWise
    }

    fn facts(&self) -> Facts {
        [(MAX_RESOLUTION, self.max_resolution), (PATCH_SIZE, self.patch_size)]
            .map(|(name, value)| (name.to_owned(), value.into()))
            .into()
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let mut quarantine = Quarantine::new(task.on_bad_row, task.stage, task.tally);
        let mut metadata: Vec<RecordBatch> = Vec::new();
        let mut resized: Vec<Resized> = Vec::new();
        let mut rows_in = 0;
        for file in task.files() {
            let shard = Shard::open(&file)?;
            // A shard without rows has a schema all the same, which a shard made from it needs.
            let none = (shard.rows() == 0).then(|| Ok(RecordBatch::new_empty(Arc::clone(shard.schema()))));
            for batch in shard.batches(None, 64)?.chain(none) {
                task.check_cancelled()?;
                let batch = batch?;
                let images = shard.binary(&batch, columns::IMAGE)?;
                let results: Vec<_> =
                    (0..batch.num_rows()).into_par_iter().map(|i| self.resize(images.value(i))).collect();
                for (i, result) in results.into_iter().enumerate() {
                    let row = rows_in + i as u64;
                    match result {
                        Ok((size, bytes)) => {
                            task.tally.good(1);
                            resized.push(Resized { size, row, bytes });
                        }
                        Err(error) => quarantine.refuse(bad_row(&shard, &batch, i, &error)?)?,
                    }
                }
                rows_in += batch.num_rows() as u64;
                let position = shard.schema().index_of(columns::IMAGE).map_err(ShardError::arrow(&file))?;
                let mut without_image = batch;
                without_image.remove_column(position);
                metadata.push(without_image);
            }
        }
        resized.sort_by_key(|r| (r.size, r.row));
        let mut outcome = Outcome { rows_in, ..Outcome::default() };
        let data = write(&resized, &metadata, task)?;
        outcome.rows_out = data.rows;
        outcome.data.push(data);
        (outcome.dropped, outcome.quarantine) = quarantine.finish(&task.attempt.quarantine())?;
        Ok(outcome)
    }
}

impl Bucket {
    fn resize(&self, bytes: &[u8]) -> Result<(BucketSize, Vec<u8>), DecodeError> {
        let wanted = |width, height| BucketSize::for_image(width, height, self.max_resolution, self.patch_size);
        let (image, (width, height)) = decode_at_least(bytes, self.max_pixels, |width, height| {
            // Lanczos looks further than the pixels that it is given.
            let size = wanted(width, height);
            (2 * size.width, 2 * size.height)
        })?;
        let size = wanted(width, height);
        let image = scale(image, size).map_err(|error| DecodeError::Damaged(error.clone()))?;
        encode(&image, self.format, self.quality).map(|bytes| (size, bytes)).map_err(DecodeError::Damaged)
    }
}

/// Lanczos with three lobes, as the reference.
fn scale(image: RgbImage, size: BucketSize) -> Result<RgbImage, String> {
    if image.dimensions() == (size.width, size.height) {
        return Ok(image);
    }
    let source =
        ImageRef::new(image.width(), image.height(), image.as_raw(), PixelType::U8x3).map_err(|e| e.to_string())?;
    let mut target = Image::new(size.width, size.height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
    Resizer::new().resize(&source, &mut target, &options).map_err(|e| e.to_string())?;
    RgbImage::from_raw(size.width, size.height, target.into_vec())
        .ok_or_else(|| "the resizer gave too few bytes".to_owned())
}

fn bad_row(shard: &Shard, batch: &RecordBatch, row: usize, error: &DecodeError) -> Result<BadRow, ShardError> {
    let text = |column| -> String {
        shard.text(batch, column).ok().filter(|a| a.is_valid(row)).map(|a| a.value(row).to_owned()).unwrap_or_default()
    };
    let reason = error.reason();
    let key = shard.text(batch, columns::KEY)?.value(row).to_owned();
    let (url, caption) = (text(columns::URL), text(columns::CAPTION));
    Ok(BadRow { key, url, caption, reason, status: "failed_to_resize", detail: error.to_string() })
}

/// Writes the sorted images with their other columns.
fn write(resized: &[Resized], metadata: &[RecordBatch], task: &Task) -> Result<DataFile, StageError> {
    let path = task.attempt.data();
    let arrow = || ShardError::arrow(&path);
    let Some(first) = metadata.first() else {
        return Err(StageError::failed("its input has no shard; make the input again"));
    };
    let all = arrow::compute::concat_batches(&first.schema(), metadata).map_err(arrow())?;
    let replaced = [columns::WIDTH, columns::HEIGHT, columns::BUCKET_SIZE];
    let passed: Vec<(Arc<Field>, &ArrayRef)> = all
        .schema()
        .fields()
        .iter()
        .cloned()
        .zip(all.columns())
        .filter(|(field, _)| !replaced.contains(&field.name().as_str()))
        .collect();
    let mut fields: Vec<Field> = passed.iter().map(|(field, _)| field.as_ref().clone()).collect();
    fields.insert(fields.len().min(1), Field::new(columns::IMAGE, DataType::Binary, false));
    fields.push(Field::new(columns::WIDTH, DataType::UInt32, false));
    fields.push(Field::new(columns::HEIGHT, DataType::UInt32, false));
    fields.push(Field::new(columns::BUCKET_SIZE, DataType::Utf8, false));
    let schema = Arc::new(columns::schema_of_samples(fields));

    let mut writer = ShardWriter::create(&path, &schema)?;
    for group in resized.chunk_by(|a, b| a.size == b.size) {
        let Some(size) = group.first().map(|r| r.size) else { continue };
        for rows in group.chunks(1024) {
            let numbers = UInt64Array::from_iter_values(rows.iter().map(|r| r.row));
            let mut arrays = Vec::with_capacity(passed.len() + 4);
            for (_, column) in &passed {
                arrays.push(arrow::compute::take(column, &numbers, None).map_err(arrow())?);
            }
            arrays.insert(arrays.len().min(1), Arc::new(BinaryArray::from_iter_values(rows.iter().map(|r| &r.bytes))));
            let side = |side: u32| -> ArrayRef { Arc::new(UInt32Array::from_value(side, rows.len())) };
            arrays.push(side(size.width));
            arrays.push(side(size.height));
            arrays.push(Arc::new(StringArray::from_iter_values(rows.iter().map(|_| size.to_string()))));
            writer.write(&RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(arrow())?)?;
        }
        writer.end_row_group()?;
    }
    Ok(writer.finish()?)
}
