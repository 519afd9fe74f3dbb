//! `bucket`: resizes images so that each side is a whole number of patches, and sorts them by size.
//!
//! - in: shards with an image column; with merge_small, also with its width and height
//! - out: the same columns with image, width and height replaced, plus bucket_size; sorted by bucket, in the order of the
//!   input within a bucket; a row group never holds two buckets. Of several resolutions, each is a variant with the same rows
//! - stale when: a size, the encoding or its input changed; with merge_small, also when one of its own buckets joins another
//! - law: in = out + Σ dropped (`damaged_image`, `not_an_image`, `too_many_pixels`, `aspect_ratio_too_large`)
//!
//! Encoded images wait for their turn in a file without a name, so memory does not grow with a shard.

pub(crate) mod merge;
mod picture;
pub mod repack;
mod resolution;
mod spool;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::thread::ScopedJoinHandle;

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
use self::picture::{Picture, Refused, Wanted};
use self::resolution::MaxResolution;
use self::spool::{Spool, Spooled};
use super::{dataset_card, rows};
use crate::manifest::{Diagnostic, Parameters};
use crate::quarantine::{BadRow, Quarantine};
use crate::stage::{Facts, Law, Outcome, Partitioning, Stage, StageError, StageKind, Tally, Task, as_it_is};
use ::picture::Format;

/// The fact, and parameter, that later stages check: pixels of the longest side.
pub const MAX_RESOLUTION: &str = "max_resolution";
/// The fact, and parameter, that later stages check: sides are multiples of this many pixels.
pub const PATCH_SIZE: &str = "patch_size";

/// How a bucket stage places images.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// One for each resolution, the largest last; never empty.
    pub rules: Vec<BucketRule>,
    /// The largest aspect ratio that it lets through.
    pub max_aspect: Option<f64>,
}

/// The rules in the parameters of a stage; `None` where they are not those of a bucket stage.
pub fn rules(semantics: &Value) -> Option<Rules> {
    let bucket = Bucket::deserialize(semantics).ok()?;
    Some(Rules { rules: bucket.rules(), max_aspect: bucket.max_aspect })
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Bucket {
    /// Longer sides are brought down to this many pixels. A list makes each resolution in one pass, with every image decoded
    /// once: a stage then reads one of them, as in from = "bucket@512".
    max_resolution: MaxResolution,
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
    let Bucket { ref max_resolution, patch_size, quality, max_aspect, .. } = bucket;
    if patch_size == 0 || patch_size > max_resolution.least() {
        let message = format!("patch_size = {patch_size}: expected 1 to max_resolution ({})", max_resolution.least());
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
        let mut facts = Facts::from([(PATCH_SIZE.to_owned(), self.patch_size.into())]);
        if let MaxResolution::One(pixels) = self.max_resolution {
            facts.insert(MAX_RESOLUTION.to_owned(), pixels.into());
        }
        facts
    }

    fn variants(&self) -> Vec<(String, Facts)> {
        let known = |pixels: u32| Facts::from([(MAX_RESOLUTION.to_owned(), pixels.into())]);
        self.max_resolution.variants().into_iter().filter_map(|(name, pixels)| Some((name?, known(pixels)))).collect()
    }

    fn survey(&self, task: &Task) -> Result<Outcome, StageError> {
        merge::survey(self.merge_small, &self.rules(), task)
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let merges = match task.survey {
            Some(_) => Merges::read(&rows::survey(task)?)?,
            None => Merges::default(),
        };
        let outputs = self.max_resolution.variants();
        let wanted = &Wanted { bucket: self, rules: &self.rules(), merges: &merges };
        let spools = outputs.iter().map(|_| Spool::create(&task.folder.path()));
        let mut sorted = Sorted {
            tally: task.tally,
            quarantine: Quarantine::new(task.on_bad_row, task.stage, task.tally),
            observed: BTreeMap::new(),
            metadata: Vec::new(),
            spools: spools.collect::<Result<Vec<_>, _>>()?,
            rows: 0,
        };
        for file in task.files() {
            let shard = Shard::open(&file)?;
            // A shard without rows has a schema all the same, which a shard made from it needs.
            let none = (shard.rows() == 0).then(|| Ok(RecordBatch::new_empty(Arc::clone(shard.schema()))));
            // Batches are made two at a time, so that no thread waits for the last pictures of one, while the one before is put away
            // and the one after is read.
            std::thread::scope(|scope| {
                let mut making = VecDeque::new();
                let mut put_away = |(batch, made): (RecordBatch, ScopedJoinHandle<'_, Vec<Made>>)| {
                    let made = made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                    sorted.take(&shard, batch, made)
                };
                for batch in shard.batches(None, 64)?.chain(none) {
                    task.check_cancelled()?;
                    let batch = batch?;
                    let images = shard.binary(&batch, columns::IMAGE)?.clone();
                    let rows = 0..batch.num_rows();
                    let make = move || rows.into_par_iter().map(|row| wanted.make(images.value(row))).collect();
                    making.push_back((batch, scope.spawn(make)));
                    if making.len() > 2
                        && let Some(first) = making.pop_front()
                    {
                        put_away(first)?;
                    }
                }
                making.into_iter().try_for_each(put_away)
            })?;
        }
        let Sorted { quarantine, observed, metadata, mut spools, rows: rows_in, .. } = sorted;
        let mut outcome = Outcome { rows_in, observed, ..Outcome::default() };
        let names: Vec<&str> = outputs.iter().filter_map(|(name, _)| name.as_deref()).collect();
        for ((variant, _), spool) in outputs.iter().zip(&mut spools) {
            let path = variant.as_ref().map_or_else(|| task.attempt.data(), |name| task.attempt.variant(name));
            let data = write(spool, &metadata, &names, &path, task)?;
            outcome.rows_out = data.rows;
            outcome.data.push(DataFile { variant: variant.clone(), ..data });
        }
        (outcome.dropped, outcome.quarantine) = quarantine.finish(&task.attempt.quarantine())?;
        Ok(outcome)
    }
}

impl Bucket {
    fn rules(&self) -> Vec<BucketRule> {
        let Self { patch_size, upscale, .. } = *self;
        let rule = |max_resolution| BucketRule { max_resolution, patch_size, upscale };
        self.max_resolution.variants().into_iter().map(|(_, pixels)| rule(pixels)).collect()
    }
}

/// What became of an image: one picture for each resolution.
type Made = Result<Vec<Picture>, Refused>;

/// A partition's rows so far, images by bucket.
struct Sorted<'a> {
    tally: &'a Tally,
    quarantine: Quarantine<'a>,
    observed: BTreeMap<String, u64>,
    /// All columns but the image, of all rows.
    metadata: Vec<RecordBatch>,
    /// One for each resolution.
    spools: Vec<Spool>,
    rows: u64,
}

impl Sorted<'_> {
    /// Puts the next rows away.
    fn take(&mut self, shard: &Shard, mut batch: RecordBatch, made: Vec<Made>) -> Result<(), StageError> {
        for (i, made) in made.into_iter().enumerate() {
            let row = self.rows + i as u64;
            match made {
                Ok(pictures) => {
                    self.tally.good(1);
                    for (picture, spool) in pictures.iter().zip(&mut self.spools) {
                        if picture.own != picture.size {
                            *self.observed.entry(merge::in_words(picture.own, picture.size)).or_default() += 1;
                        }
                        spool.push(picture.size, row, &picture.bytes)?;
                    }
                }
                Err(refused) => self.quarantine.refuse(bad_row(shard, &batch, i, &refused)?)?,
            }
        }
        self.rows += batch.num_rows() as u64;
        let position = shard.schema().index_of(columns::IMAGE).map_err(ShardError::arrow(shard.path()))?;
        batch.remove_column(position);
        self.metadata.push(batch);
        Ok(())
    }
}

fn bad_row(shard: &Shard, batch: &RecordBatch, row: usize, refused: &Refused) -> Result<BadRow, ShardError> {
    let key = shard.text(batch, columns::KEY)?.value(row).to_owned();
    let text = |column| rows::text(shard, batch, column, row);
    let (url, caption) = (text(columns::URL), text(columns::CAPTION));
    let (reason, detail) = (refused.reason(), refused.to_string());
    Ok(BadRow { key, url, caption, reason, status: "failed_to_resize", detail })
}

/// Writes the images by bucket, with their other columns; `variants` are those of the stage.
fn write(
    spool: &mut Spool,
    metadata: &[RecordBatch],
    variants: &[&str],
    path: &Path,
    task: &Task,
) -> Result<DataFile, StageError> {
    let arrow = || ShardError::arrow(path);
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

    let mut writer = ShardWriter::create(path, &schema)?;
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
    dataset_card::write(task.folder, task.stage, variants, &checksum::with_column(&schema))?;
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
