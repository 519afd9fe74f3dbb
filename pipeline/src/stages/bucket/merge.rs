//! Small buckets join others: a survey counts the images of each, and says which bucket takes those of a small one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray, UInt32Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, UInt32Type};
use shards::bucket::{BucketRule, BucketSize, InvalidBucketSize};
use shards::reader::Shard;
use shards::sidecar::DataFile;
use shards::writer::ShardWriter;
use shards::{ShardError, columns};

use crate::stage::{Outcome, StageError, Task};
use crate::stages::rows;

/// In the survey's files: a resolution, a bucket of it that is given up, and the one that takes its images.
const RESOLUTION: &str = "resolution";
const GIVEN_UP: &str = "given_up";
const TAKEN_BY: &str = "taken_by";

/// How many images fall into each bucket.
pub(crate) type Counts = BTreeMap<BucketSize, u64>;

/// Which buckets of each resolution are given up, and what takes their images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Merges(BTreeMap<(u32, BucketSize), BucketSize>);

impl Merges {
    /// Gives up every bucket of fewer than `least` images for the one whose aspect ratio is nearest (of equally near ones, the
    /// larger), the smallest first, until none is left that small or has a bucket to join. Images are not enlarged to join a
    /// larger resolution, unless the rule enlarges them anyway.
    pub(crate) fn of(counts: &Counts, least: u64, rule: BucketRule) -> Self {
        let mut left = counts.clone();
        let mut stays: BTreeSet<BucketSize> = BTreeSet::new();
        let mut joined = BTreeMap::new();
        let smallest = |left: &Counts, stays: &BTreeSet<BucketSize>| {
            let small = left.iter().filter(|(size, count)| **count < least && !stays.contains(size));
            small.map(|(size, count)| (*count, *size)).min()
        };
        while let Some((count, size)) = smallest(&left, &stays) {
            let longest = |size: &BucketSize| size.width.max(size.height);
            let others = left.keys().filter(|other| **other != size);
            let fitting = others.filter(|other| rule.upscale || longest(other) <= longest(&size));
            match fitting.copied().min_by(|a, b| nearer(size, *a, *b)) {
                Some(other) => {
                    left.remove(&size);
                    *left.entry(other).or_default() += count;
                    joined.insert(size, other);
                }
                None => {
                    stays.insert(size);
                }
            }
        }
        // What was joined may have joined another in turn.
        let last = |mut size: BucketSize| {
            while let Some(next) = joined.get(&size) {
                size = *next;
            }
            size
        };
        Self(joined.keys().map(|size| ((rule.max_resolution, *size), last(*size))).collect())
    }

    /// The bucket at a resolution for images whose own would be `size`.
    pub(crate) fn bucket(&self, resolution: u32, size: BucketSize) -> BucketSize {
        self.0.get(&(resolution, size)).copied().unwrap_or(size)
    }

    /// As [`Merges::write`] left them.
    pub(super) fn read(file: &Shard) -> Result<Self, StageError> {
        let mut merges = BTreeMap::new();
        for batch in file.batches(None, 65_536)? {
            let batch = batch?;
            let (given_up, taken_by) = (file.text(&batch, GIVEN_UP)?, file.text(&batch, TAKEN_BY)?);
            let resolutions: &UInt32Array = file.typed(&batch, RESOLUTION, "uint32")?;
            let pairs = given_up.iter().flatten().zip(taken_by.iter().flatten());
            for (resolution, (from, to)) in resolutions.values().iter().zip(pairs) {
                let size = |text: &str| text.parse().map_err(|error: InvalidBucketSize| StageError::failed(error));
                merges.insert((*resolution, size(from)?), size(to)?);
            }
        }
        Ok(Self(merges))
    }

    /// Writes those that concern the buckets of `counts`: what happens to others is no reason to make a partition again.
    fn write(&self, counts: &BTreeMap<u32, Counts>, path: &Path) -> Result<DataFile, StageError> {
        let is_concerned =
            |(resolution, from): &(u32, BucketSize)| counts.get(resolution).is_some_and(|c| c.contains_key(from));
        let concerned: Vec<_> = self.0.iter().filter(|(from, _)| is_concerned(from)).collect();
        let field = |name: &str, of: DataType| Field::new(name, of, false);
        let fields =
            [field(RESOLUTION, DataType::UInt32), field(GIVEN_UP, DataType::Utf8), field(TAKEN_BY, DataType::Utf8)];
        let schema = Arc::new(Schema::new(fields.to_vec()));
        let resolutions = UInt32Array::from_iter_values(concerned.iter().map(|((resolution, _), _)| *resolution));
        let given_up = StringArray::from_iter_values(concerned.iter().map(|((_, from), _)| from.to_string()));
        let taken_by = StringArray::from_iter_values(concerned.iter().map(|(_, to)| to.to_string()));
        let arrays: Vec<ArrayRef> = vec![Arc::new(resolutions), Arc::new(given_up), Arc::new(taken_by)];
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(ShardError::arrow(path))?;
        let mut writer = ShardWriter::create(path, &schema)?;
        writer.write(&batch)?;
        Ok(writer.finish()?)
    }
}

/// How much of a picture of one aspect ratio is left when it is cut to another: from 0 to 1, as a fraction.
pub(crate) fn overlap(a: (u32, u32), b: (u32, u32)) -> (u64, u64) {
    let (one, other) = (u64::from(a.0) * u64::from(b.1), u64::from(b.0) * u64::from(a.1));
    (one.min(other), one.max(other))
}

fn sides(size: BucketSize) -> (u32, u32) {
    (size.width, size.height)
}

/// The order of two buckets by how near they are to `size`: exact, so that every machine joins alike.
fn nearer(size: BucketSize, a: BucketSize, b: BucketSize) -> std::cmp::Ordering {
    let ((a_less, a_more), (b_less, b_more)) = (overlap(sides(size), sides(a)), overlap(sides(size), sides(b)));
    let area = |size: BucketSize| u64::from(size.width) * u64::from(size.height);
    let by_overlap = (u128::from(b_less) * u128::from(a_more)).cmp(&(u128::from(a_less) * u128::from(b_more)));
    by_overlap.then(area(b).cmp(&area(a))).then(a.cmp(&b))
}

/// What is cut away of pictures of the bucket `from` when `to` takes them: "256x144 taken by 256x160 (10 % cut away)".
pub(super) fn in_words(from: BucketSize, to: BucketSize) -> String {
    let (left, all) = overlap(sides(from), sides(to));
    format!("{from} taken by {to} ({:.0} % cut away)", 100.0 * (1.0 - left as f64 / all as f64))
}

/// Counts the images of all inputs by bucket, from their columns width and height, and leaves each input its [`Merges`].
pub(super) fn survey(least: u64, rules: &[BucketRule], task: &Task) -> Result<Outcome, StageError> {
    let mut of_inputs: Vec<BTreeMap<u32, Counts>> = Vec::new();
    let mut outcome = Outcome::default();
    for input in task.inputs {
        let mut counts: BTreeMap<u32, Counts> = BTreeMap::new();
        for shard in rows::open([input])? {
            outcome.rows_in += count(&shard, rules, &mut counts, task)?;
        }
        of_inputs.push(counts);
    }
    outcome.rows_out = outcome.rows_in;
    let mut merges = Merges::default();
    for rule in rules {
        let mut all = Counts::new();
        for (size, count) in of_inputs.iter().filter_map(|counts| counts.get(&rule.max_resolution)).flatten() {
            *all.entry(*size).or_default() += count;
        }
        merges.0.extend(Merges::of(&all, least, *rule).0);
    }
    for (n, counts) in of_inputs.iter().enumerate() {
        outcome.data.push(merges.write(counts, &task.attempt.numbered(n))?);
    }
    Ok(outcome)
}

/// Adds a shard's images to the counts of each resolution; returns how many. A row without a size counts nowhere.
fn count(
    shard: &Shard,
    rules: &[BucketRule],
    counts: &mut BTreeMap<u32, Counts>,
    task: &Task,
) -> Result<u64, StageError> {
    let mut counted = 0;
    let sides = [columns::WIDTH, columns::HEIGHT];
    for batch in shard.batches(Some(&sides), 65_536)? {
        task.check_cancelled()?;
        let batch = batch?;
        let side = |name: &str| {
            let index = batch.schema_ref().index_of(name)?;
            cast(batch.column(index), &DataType::UInt32)
        };
        let [widths, heights] = sides.map(side);
        let arrow = || ShardError::arrow(shard.path());
        let (widths, heights) = (widths.map_err(arrow())?, heights.map_err(arrow())?);
        let pairs = widths.as_primitive::<UInt32Type>().iter().zip(heights.as_primitive::<UInt32Type>());
        for (width, height) in pairs {
            if let (Some(width @ 1..), Some(height @ 1..)) = (width, height) {
                counted += 1;
                for rule in rules {
                    let of_rule = counts.entry(rule.max_resolution).or_default();
                    *of_rule.entry(rule.size(width, height)).or_default() += 1;
                }
            }
        }
    }
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULE: BucketRule = BucketRule { max_resolution: 256, patch_size: 16, upscale: false };

    fn counts(of: &[(&str, u64)]) -> Counts {
        of.iter().map(|(size, count)| (size.parse().unwrap(), *count)).collect()
    }

    fn merges(of: &[(&str, u64)], least: u64) -> Vec<(String, String)> {
        Merges::of(&counts(of), least, RULE)
            .0
            .iter()
            .map(|((_, from), to)| (from.to_string(), to.to_string()))
            .collect()
    }

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect()
    }

    #[test]
    fn a_small_bucket_joins_the_nearest_ratio() {
        let found = merges(&[("256x256", 90), ("256x144", 3), ("256x160", 40), ("256x112", 40)], 10);
        assert_eq!(found, pairs(&[("256x144", "256x160")]));
        let size = |text: &str| text.parse().unwrap();
        assert_eq!(in_words(size("256x144"), size("256x160")), "256x144 taken by 256x160 (10 % cut away)");
    }

    #[test]
    fn small_images_are_not_enlarged_to_join() {
        let images = [("256x192", 90), ("64x48", 2), ("48x48", 30)];
        assert_eq!(merges(&images, 10), pairs(&[("64x48", "48x48")]));
        let upscaled = Merges::of(&counts(&images), 10, BucketRule { upscale: true, ..RULE });
        assert_eq!(upscaled.bucket(RULE.max_resolution, "64x48".parse().unwrap()).to_string(), "256x192");
        assert_eq!(merges(&[("256x192", 90), ("64x48", 2)], 10), []);
    }

    #[test]
    fn small_buckets_become_one_that_is_large_enough() {
        let images = [("256x144", 4), ("256x160", 5), ("256x176", 6), ("256x256", 3)];
        assert_eq!(merges(&images, 9), pairs(&[("256x144", "256x160"), ("256x256", "256x176")]));
        let all = pairs(&[("256x144", "256x176"), ("256x160", "256x176"), ("256x256", "256x176")]);
        assert_eq!(merges(&images, 10), all);
    }

    proptest! {
        /// No image is lost, what takes images stays, and nothing small is left that could have joined.
        #[test]
        fn every_small_bucket_finds_one(of in prop::collection::btree_map((1u32..17, 1u32..17), 1u64..40, 1..30), least in 1u64..50) {
            let counts: Counts = of.iter().map(|(&(w, h), &n)| (BucketSize { width: 16 * w, height: 16 * h }, n)).collect();
            let merges = Merges::of(&counts, least, BucketRule { upscale: true, ..RULE });
            let mut after = Counts::new();
            for (size, count) in &counts {
                let bucket = merges.bucket(RULE.max_resolution, *size);
                prop_assert_eq!(merges.bucket(RULE.max_resolution, bucket), bucket);
                *after.entry(bucket).or_default() += count;
            }
            prop_assert_eq!(after.values().sum::<u64>(), counts.values().sum::<u64>());
            prop_assert!(after.len() == 1 || after.values().all(|count| *count >= least));
        }
    }
}
