//! What sizes and captions a stage's rows have. Reads metadata columns batch by batch, never the image.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::{can_cast_types, cast};
use arrow::datatypes::{DataType, Schema, UInt32Type};
use rayon::prelude::*;
use shards::bucket::BucketRule;
use shards::reader::Shard;
use shards::sidecar::DataFile;
use shards::{ShardError, columns};

use crate::plan::{PlannedStage, is_shard};
use crate::stages::bucket;

/// The captions that a page shows and measures, where the columns exist.
pub(super) const CAPTIONS: [&str; 3] = [columns::CAPTION, "recaption", "recaption_short"];
/// Sizes before a download resized them, in img2dataset's words.
const ORIGINAL: [&str; 2] = ["original_width", "original_height"];
const SIZE: [&str; 2] = [columns::WIDTH, columns::HEIGHT];
/// Aspect ratios are counted in fifths of an octave: 4:3, 3:2, 16:9 and 2:1 fall on whole ones.
pub(super) const RATIO_STEPS: f64 = 5.0;
/// The widest and the tallest that are told apart: 8:1 and 1:8.
const RATIO_MOST: f64 = 15.0;
const BATCH: usize = 8192;

/// How many rows have a value.
pub(super) type Counts<T> = BTreeMap<T, u64>;

/// What was counted of a stage's rows. The values are few, however many rows there are.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Measured {
    /// Pixels of the longest side.
    pub(super) longest: Counts<u32>,
    /// Width over height, as [`ratio_step`].
    pub(super) ratios: Counts<i32>,
    /// The buckets that the sizes belong to, under a rule.
    pub(super) natural: Counts<String>,
    /// The buckets that the rows name.
    pub(super) buckets: Counts<String>,
    /// Letters, by column.
    pub(super) letters: BTreeMap<&'static str, Counts<u32>>,
}

impl Measured {
    fn merged(mut self, other: Self) -> Self {
        fn add<T: Ord>(sum: &mut Counts<T>, more: Counts<T>) {
            for (value, n) in more {
                *sum.entry(value).or_default() += n;
            }
        }
        add(&mut self.longest, other.longest);
        add(&mut self.ratios, other.ratios);
        add(&mut self.natural, other.natural);
        add(&mut self.buckets, other.buckets);
        for (column, counts) in other.letters {
            add(self.letters.entry(column).or_default(), counts);
        }
        self
    }
}

/// The rule in the parameters of a committed partition, if they are a bucket stage's. Of several resolutions the largest is
/// looked at, as everywhere here.
pub(super) fn bucket_rule(stage: &PlannedStage) -> Option<BucketRule> {
    bucket::rules(&stage.committed().next()?.parameters)?.rules.last().copied()
}

/// Which columns to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Columns {
    /// Sizes, and their buckets under a rule.
    Sizes(Option<BucketRule>),
    /// Bucket names and captions.
    Texts,
}

/// Files that are read of a workdir on a store: each has to come here whole.
const FROM_A_STORE: usize = 16;

/// The stage's committed files of rows; of a workdir on a store, some of them, evenly spread.
pub(super) fn row_files(stage: &PlannedStage) -> Vec<&DataFile> {
    let files = all_row_files(stage);
    let (every, most) = (files.len(), FROM_A_STORE);
    if !stage.folder.workdir().is_remote() || every <= most {
        return files;
    }
    files.into_iter().enumerate().filter(|(i, _)| i * most / every != (i + 1) * most / every).map(|(_, f)| f).collect()
}

/// Of a stage whose partitions come in variants, those of the last: the rows are the same in all.
fn all_row_files(stage: &PlannedStage) -> Vec<&DataFile> {
    let variants = stage.variant_names();
    let variant = variants.last().and_then(|variant| variant.as_deref());
    stage.data_of(variant).into_iter().filter(|file| is_shard(&file.file)).collect()
}

/// How many of the stage's files are read, of how many, when it is not all of them.
pub(super) fn only_some(stage: &PlannedStage) -> Option<(usize, usize)> {
    let (read, all) = (row_files(stage).len(), all_row_files(stage).len());
    (read < all).then_some((read, all))
}

/// The columns of the stage's first file of rows; `None` where the stage has none, or they have no keys.
pub(super) fn schema(stage: &PlannedStage) -> Result<Option<Shard>, ShardError> {
    let Some(file) = row_files(stage).into_iter().next() else { return Ok(None) };
    let shard = Shard::open(&stage.fetch(file)?)?;
    Ok(shard.schema().index_of(columns::KEY).is_ok().then_some(shard))
}

/// Whether rows have a size.
pub(super) fn has_sizes(schema: &Schema) -> bool {
    SIZE.iter().all(|column| schema.index_of(column).is_ok())
}

/// Measures all of a stage's committed rows, several files at a time.
pub(super) fn measure(stage: &PlannedStage, columns: Columns) -> Result<Measured, ShardError> {
    row_files(stage)
        .par_iter()
        .map(|file| measure_file(&stage.fetch(file)?, columns))
        .try_reduce(Measured::default, |sum, more| Ok(sum.merged(more)))
}

fn measure_file(path: &Path, columns: Columns) -> Result<Measured, ShardError> {
    let shard = Shard::open(path)?;
    let has = |names: &[&str], as_type: &DataType| {
        let castable = |name: &&str| {
            shard.schema().field_with_name(name).is_ok_and(|field| can_cast_types(field.data_type(), as_type))
        };
        names.iter().all(castable)
    };
    let mut measured = Measured::default();
    match columns {
        Columns::Sizes(rule) => {
            let Some(pair) = [ORIGINAL, SIZE].into_iter().find(|pair| has(pair, &DataType::UInt32)) else {
                return Ok(measured);
            };
            for batch in shard.batches(Some(&pair), BATCH)? {
                let batch = batch?;
                let [widths, heights] = pair.map(|name| column(&batch, name, &DataType::UInt32, path));
                let (widths, heights) = (widths?, heights?);
                let sides = widths.as_primitive::<UInt32Type>().iter().zip(heights.as_primitive::<UInt32Type>());
                sides.for_each(|sides| measured.add_size(sides, rule));
            }
        }
        Columns::Texts => {
            let names: Vec<&str> = CAPTIONS
                .into_iter()
                .chain([columns::BUCKET_SIZE])
                .filter(|name| has(&[*name], &DataType::Utf8))
                .collect();
            if names.is_empty() {
                return Ok(measured);
            }
            for batch in shard.batches(Some(&names), BATCH)? {
                let batch = batch?;
                for name in &names {
                    let texts = column(&batch, name, &DataType::Utf8, path)?;
                    texts.as_string::<i32>().iter().flatten().for_each(|text| measured.add_text(name, text));
                }
            }
        }
    }
    Ok(measured)
}

/// A column as another type; what does not fit is null. `as_type` must be one that it can be cast to.
fn column(batch: &RecordBatch, name: &str, as_type: &DataType, path: &Path) -> Result<ArrayRef, ShardError> {
    let index = batch.schema_ref().index_of(name).map_err(ShardError::arrow(path))?;
    cast(batch.column(index), as_type).map_err(ShardError::arrow(path))
}

impl Measured {
    /// A row without a size counts nowhere.
    fn add_size(&mut self, sides: (Option<u32>, Option<u32>), rule: Option<BucketRule>) {
        let (Some(width @ 1..), Some(height @ 1..)) = sides else { return };
        *self.longest.entry(width.max(height)).or_default() += 1;
        *self.ratios.entry(ratio_step(width, height)).or_default() += 1;
        if let Some(rule) = rule {
            let bucket = rule.size(width, height);
            *self.natural.entry(bucket.to_string()).or_default() += 1;
        }
    }

    fn add_text(&mut self, column: &str, text: &str) {
        match CAPTIONS.into_iter().find(|caption| *caption == column) {
            Some(caption) => {
                let letters = u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
                *self.letters.entry(caption).or_default().entry(letters).or_default() += 1;
            }
            None => match self.buckets.get_mut(text) {
                Some(count) => *count += 1,
                None => {
                    self.buckets.insert(text.to_owned(), 1);
                }
            },
        }
    }
}

/// The aspect ratio in fifths of an octave, wide ones positive.
fn ratio_step(width: u32, height: u32) -> i32 {
    let octaves = (f64::from(width) / f64::from(height)).log2();
    (octaves * RATIO_STEPS).round().clamp(-RATIO_MOST, RATIO_MOST) as i32
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BinaryArray, Int64Array, StringArray};
    use arrow::datatypes::Field;
    use shards::writer::ShardWriter;

    use super::*;

    #[test]
    fn ratios_fall_on_the_names_people_use() {
        let steps = [(4, 3), (3, 2), (16, 9), (2, 1), (1, 1), (3, 4), (1, 100)].map(|(w, h)| ratio_step(w, h));
        assert_eq!(steps, [2, 3, 4, 5, 0, -2, -15]);
    }

    #[test]
    fn sizes_and_letters_are_counted_whatever_their_type_and_nulls_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part.parquet");
        let schema = Arc::new(Schema::new(vec![
            Field::new(columns::KEY, DataType::Utf8, false),
            Field::new(columns::IMAGE, DataType::Binary, false),
            Field::new(columns::WIDTH, DataType::Int64, true),
            Field::new(columns::HEIGHT, DataType::Int64, true),
            Field::new(columns::CAPTION, DataType::Utf8, true),
            Field::new(columns::BUCKET_SIZE, DataType::Utf8, true),
        ]));
        let batch = RecordBatch::try_new(
            Arc::clone(&schema),
            vec![
                Arc::new(StringArray::from(vec!["a", "b", "c", "d"])),
                Arc::new(BinaryArray::from_iter_values([b"x"; 4])),
                Arc::new(Int64Array::from(vec![Some(640), Some(640), None, Some(-1)])),
                Arc::new(Int64Array::from(vec![Some(480), Some(480), Some(1), Some(1)])),
                Arc::new(StringArray::from(vec![Some("Füchse"), Some(""), None, Some("a fox!")])),
                Arc::new(StringArray::from(vec![Some("32x24"), Some("32x24"), Some("32x32"), None])),
            ],
        )
        .unwrap();
        let mut writer = ShardWriter::create(&path, &schema).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();

        let rule = BucketRule { max_resolution: 64, patch_size: 16, upscale: false };
        let sizes = measure_file(&path, Columns::Sizes(Some(rule))).unwrap();
        assert_eq!(sizes.longest, Counts::from([(640, 2)]));
        assert_eq!(sizes.ratios, Counts::from([(2, 2)]));
        assert_eq!(sizes.natural, Counts::from([("64x48".to_owned(), 2)]));
        let texts = measure_file(&path, Columns::Texts).unwrap();
        assert_eq!(texts.letters, BTreeMap::from([(columns::CAPTION, Counts::from([(0, 1), (6, 2)]))]));
        assert_eq!(texts.buckets, Counts::from([("32x24".to_owned(), 2), ("32x32".to_owned(), 1)]));

        let both = texts.merged(measure_file(&path, Columns::Texts).unwrap());
        assert_eq!(both.letters[columns::CAPTION][&6], 4);
        assert_eq!(both.buckets["32x32"], 2);
    }
}
