//! `bucket`: resizes images so that each side is a whole number of patches, and sorts them by size.
//!
//! - in: shards with an image column; with merge_small, also with its width and height
//! - out: the same columns with image, width and height replaced, plus bucket_size; sorted by bucket, in the order of the
//!   input within a bucket; a row group never holds two buckets
//! - stale when: a size, the encoding or its input changed; with merge_small, also when one of its own buckets joins another
//! - law: in = out + Σ dropped (`damaged_image`, `not_an_image`, `too_many_pixels`, `aspect_ratio_too_large`)
//!
//! Encoded images wait for their turn in a file without a name, so memory does not grow with a shard.

pub(crate) mod merge;
mod picture;
pub mod repack;
mod spool;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryBuilder, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field};
use rayon::prelude::*;
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::bucket::BucketRule;
use shards::reader::Shard;
use shards::sidecar::DataFile;
use shards::writer::ShardWriter;
use shards::{ShardError, checksum, columns};

use self::merge::Merges;
use self::picture::Refused;
use self::spool::{Spool, Spooled};
use super::{dataset_card, rows};
use crate::manifest::{Diagnostic, Parameters};
use crate::quarantine::{BadRow, Quarantine};
use crate::stage::{Facts, Law, Outcome, Partitioning, Stage, StageError, StageKind, Task, as_it_is};
use ::picture::Format;

/// The fact, and parameter, that later stages check: pixels of the longest side.
pub const MAX_RESOLUTION: &str = "max_resolution";
/// The fact, and parameter, that later stages check: sides are multiples of this many pixels.
pub const PATCH_SIZE: &str = "patch_size";

/// The rule in the parameters of a bucket stage, and the largest aspect ratio that it lets through; `None` where they are not
/// those of a bucket stage.
pub fn rule(semantics: &Value) -> Option<(BucketRule, Option<f64>)> {
    let bucket = Bucket::deserialize(semantics).ok()?;
    Some((bucket.rule(), bucket.max_aspect))
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Bucket {
    /// Longer sides are brought down to this many pixels.
    max_resolution: u32,
    /// Each side becomes the nearest multiple of this many pixels.
    patch_size: u32,
    /// Smaller images are brought up to max_resolution [false].
    #[serde(default)]
    upscale: bool,
    /// Images whose longer side is more than this times the shorter are refused [no limit].
    #[serde(default)]
    max_aspect: Option<f64>,
    /// A bucket of fewer images than this, over all partitions, joins the one with the nearest aspect ratio; its images are
    /// made to cover that, and cut about their middle. A batch size is a good number [0: buckets stay as they are].
    #[serde(default)]
    merge_small: u64,
    /// Encoding of the result [png].
    #[serde(default)]
    format: Format,
    /// Quality of jpeg and webp, from 1 to 100 [95].
    #[serde(default = "default_quality")]
    quality: u8,
    /// An upright JPEG, PNG or WebP that has the size of its bucket already keeps its bytes, whatever format says [false].
    #[serde(default)]
    keep: bool,
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
        version: 3,
        about: "Resizes images to whole numbers of patches and sorts them by size.",
        inputs: (1, 1),
        schemas: || vec![schema_for!(Bucket)],
        rehearse: as_it_is,
        build: |parameters| build(parameters).map(|bucket| Box::new(bucket) as Box<dyn Stage>),
    }
}

fn build(parameters: &Parameters) -> Result<Bucket, Diagnostic> {
    let bucket: Bucket = parameters.read()?;
    let Bucket { max_resolution, patch_size, quality, max_aspect, .. } = bucket;
    if patch_size == 0 || patch_size > max_resolution {
        let message = format!("patch_size = {patch_size}: expected 1 to max_resolution ({max_resolution})");
        return Err(parameters.fault(PATCH_SIZE, message));
    }
    if !(1..=100).contains(&quality) {
        return Err(parameters.fault("quality", format!("quality = {quality}: expected 1 to 100")));
    }
    if let Some(most) = max_aspect.filter(|most| !(*most >= 1.0 && most.is_finite())) {
        return Err(parameters.fault("max_aspect", format!("max_aspect = {most}: expected 1 or more, such as 2.5")));
    }
    Ok(bucket)
}

impl Stage for Bucket {
    fn semantics(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn partitioning(&self) -> Partitioning {
        if self.merge_small > 0 { Partitioning::Surveyed } else { Partitioning::EachInput }
    }

    fn law(&self) -> Law {
        Law::RowWise
    }

    fn facts(&self) -> Facts {
        [(MAX_RESOLUTION, self.max_resolution), (PATCH_SIZE, self.patch_size)]
            .map(|(name, value)| (name.to_owned(), value.into()))
            .into()
    }

    fn survey(&self, task: &Task) -> Result<Outcome, StageError> {
        merge::survey(self.merge_small, self.rule(), task)
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let merges = match task.survey {
            Some(_) => Merges::read(&rows::survey(task)?)?,
            None => Merges::default(),
        };
        let mut quarantine = Quarantine::new(task.on_bad_row, task.stage, task.tally);
        let mut observed: BTreeMap<String, u64> = BTreeMap::new();
        let mut metadata: Vec<RecordBatch> = Vec::new();
        let mut spool = Spool::create(&task.folder.path())?;
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
                    (0..batch.num_rows()).into_par_iter().map(|i| self.make(images.value(i), &merges)).collect();
                for (i, result) in results.into_iter().enumerate() {
                    let row = rows_in + i as u64;
                    match result {
                        Ok(picture) => {
                            task.tally.good(1);
                            if picture.own != picture.size {
                                *observed.entry(merge::in_words(picture.own, picture.size)).or_default() += 1;
                            }
                            spool.push(picture.size, row, &picture.bytes)?;
                        }
                        Err(refused) => quarantine.refuse(bad_row(&shard, &batch, i, &refused)?)?,
                    }
                }
                rows_in += batch.num_rows() as u64;
                let position = shard.schema().index_of(columns::IMAGE).map_err(ShardError::arrow(&file))?;
                let mut without_image = batch;
                without_image.remove_column(position);
                metadata.push(without_image);
            }
        }
        let mut outcome = Outcome { rows_in, observed, ..Outcome::default() };
        let data = write(&mut spool, &metadata, task)?;
        outcome.rows_out = data.rows;
        outcome.data.push(data);
        (outcome.dropped, outcome.quarantine) = quarantine.finish(&task.attempt.quarantine())?;
        Ok(outcome)
    }
}

impl Bucket {
    fn rule(&self) -> BucketRule {
        BucketRule { max_resolution: self.max_resolution, patch_size: self.patch_size, upscale: self.upscale }
    }
}

fn bad_row(shard: &Shard, batch: &RecordBatch, row: usize, refused: &Refused) -> Result<BadRow, ShardError> {
    let key = shard.text(batch, columns::KEY)?.value(row).to_owned();
    let text = |column| rows::text(shard, batch, column, row);
    let (url, caption) = (text(columns::URL), text(columns::CAPTION));
    let (reason, detail) = (refused.reason(), refused.to_string());
    Ok(BadRow { key, url, caption, reason, status: "failed_to_resize", detail })
}

/// Writes the images by bucket, with their other columns.
fn write(spool: &mut Spool, metadata: &[RecordBatch], task: &Task) -> Result<DataFile, StageError> {
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
    let sorted = spool.sorted();
    for group in sorted.chunk_by(|a, b| a.size == b.size) {
        let Some(size) = group.first().map(|spooled| spooled.size) else { continue };
        for rows in in_batches(group) {
            task.check_cancelled()?;
            let numbers = UInt64Array::from_iter_values(rows.iter().map(|spooled| spooled.row));
            let mut arrays = Vec::with_capacity(passed.len() + 4);
            for (_, column) in &passed {
                arrays.push(arrow::compute::take(column, &numbers, None).map_err(arrow())?);
            }
            let mut images = BinaryBuilder::with_capacity(rows.len(), rows.iter().map(|spooled| spooled.length).sum());
            for spooled in rows {
                images.append_value(spool.read(spooled)?);
            }
            arrays.insert(arrays.len().min(1), Arc::new(images.finish()));
            let side = |side: u32| -> ArrayRef { Arc::new(UInt32Array::from_value(side, rows.len())) };
            arrays.push(side(size.width));
            arrays.push(side(size.height));
            arrays.push(Arc::new(StringArray::from_iter_values(rows.iter().map(|_| size.to_string()))));
            writer.write(&RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(arrow())?)?;
        }
        writer.end_row_group()?;
    }
    let data = writer.finish()?;
    dataset_card::write(task.folder, task.stage, &checksum::with_column(&schema))?;
    Ok(data)
}

/// Pieces of at most 1024 rows and about a megabyte.
fn in_batches(group: &[Spooled]) -> impl Iterator<Item = &[Spooled]> {
    let mut rest = group;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |spooled: &&Spooled| {
            bytes += spooled.length;
            bytes <= 1 << 20
        };
        let rows = rest.iter().take(1024).take_while(fits).count().max(1);
        let (batch, others) = rest.split_at_checked(rows)?;
        rest = others;
        Some(batch)
    })
}
