//! Which buckets images would fall into, before any of them is resized: what that gives a training, and what it costs the
//! pictures. Goes by the columns width and height, or by headers where there are none; no pixel is decoded.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, UInt32Type};
use rayon::prelude::*;
use serde::Serialize;
use shards::bucket::{BucketRule, BucketSize};
use shards::reader::Shard;
use shards::{ShardError, columns};

use crate::stages::bucket::merge::{Counts, Merges, overlap};
use picture::header;

/// Images of more pixels are not looked at.
const PIXELS: u64 = 1_000_000_000;
/// A change of shape is counted in millionths, so that sums do not depend on their order.
const WHOLE: u64 = 1_000_000;

/// What a forecast goes by.
#[derive(Clone, Copy, Debug)]
pub struct Assumptions {
    pub rule: BucketRule,
    /// Longer sides of more than this times the shorter are refused.
    pub max_aspect: Option<f64>,
    /// Images in a training's batch.
    pub batch_size: u64,
}

/// What would become of images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Images in buckets.
    pub images: u64,
    /// Refused for their aspect ratio.
    pub too_long: u64,
    /// Without a size that can be read.
    pub unreadable: u64,
    /// Images that are smaller than the resolution on their longer side.
    pub smaller: u64,
    /// Most images first.
    pub buckets: Vec<ForecastBucket>,
    /// Batches that an epoch has on average; what is left over is carried to the next.
    pub batches: f64,
    /// What would be if small buckets joined others.
    pub merged: MergedForecast,
}

/// One bucket of a forecast.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ForecastBucket {
    pub size: String,
    pub images: u64,
    /// How much of an image, on average, lies outside the shape of the bucket, or would be padding in it: 0 to 1. A bucket
    /// stage stretches by as much.
    pub change: f64,
}

/// Buckets of fewer images than a batch, and what joining others (`merge_small`) would do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MergedForecast {
    /// Buckets of fewer images than a batch, and the images in them: they come up only every few epochs.
    pub small_buckets: usize,
    pub small_images: u64,
    /// Buckets that would be left, and images that would change theirs.
    pub buckets: usize,
    pub moved: u64,
    /// How much of those images would be cut away on average (or be padding, if they were padded instead): 0 to 1.
    pub cut: f64,
}

/// Counts of some images.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Images of each bucket, and the sum of their changes.
    buckets: BTreeMap<(u32, u32), (u64, u64)>,
    too_long: u64,
    unreadable: u64,
    smaller: u64,
}

impl Tally {
    /// Counts the images of parquet files, several files at a time.
    pub fn of_shards(files: &[impl AsRef<Path> + Sync], assumptions: Assumptions) -> Result<Self, ShardError> {
        let tallies = files.par_iter().map(|file| Self::of_shard(file.as_ref(), assumptions));
        tallies.try_reduce(Self::default, |sum, more| Ok(sum.plus(more)))
    }

    /// Counts image files; what is none is unreadable.
    pub fn of_images(files: &[impl AsRef<Path> + Sync], assumptions: Assumptions) -> Self {
        let tally = |file: &Path| {
            let mut tally = Self::default();
            let size = std::fs::read(file).ok().and_then(|bytes| size(&bytes));
            tally.add(size, assumptions);
            tally
        };
        files.par_iter().map(|file| tally(file.as_ref())).reduce(Self::default, Self::plus)
    }

    fn of_shard(path: &Path, assumptions: Assumptions) -> Result<Self, ShardError> {
        let shard = Shard::open(path)?;
        let mut tally = Self::default();
        let sides = [columns::WIDTH, columns::HEIGHT];
        if sides.iter().all(|name| shard.schema().index_of(name).is_ok()) {
            for batch in shard.batches(Some(&sides), 65_536)? {
                let batch = batch?;
                let [widths, heights] = sides.map(|name| numbers(&batch, name, path));
                let (widths, heights) = (widths?, heights?);
                let pairs = widths.as_primitive::<UInt32Type>().iter().zip(heights.as_primitive::<UInt32Type>());
                pairs.for_each(|(width, height)| tally.add(width.zip(height), assumptions));
            }
            return Ok(tally);
        }
        for batch in shard.batches(Some(&[columns::IMAGE]), 64)? {
            let batch = batch?;
            let images = shard.binary(&batch, columns::IMAGE)?;
            images.iter().for_each(|bytes| tally.add(bytes.and_then(size), assumptions));
        }
        Ok(tally)
    }

    fn add(&mut self, size: Option<(u32, u32)>, assumptions: Assumptions) {
        let Some((width @ 1.., height @ 1..)) = size else {
            self.unreadable += 1;
            return;
        };
        let (shorter, longer) = (width.min(height), width.max(height));
        if assumptions.max_aspect.is_some_and(|most| f64::from(longer) > most * f64::from(shorter)) {
            self.too_long += 1;
            return;
        }
        self.smaller += u64::from(longer < assumptions.rule.max_resolution);
        let bucket = assumptions.rule.size(width, height);
        let bucket = (bucket.width, bucket.height);
        let (images, change) = self.buckets.entry(bucket).or_default();
        *images += 1;
        *change += changed((width, height), bucket);
    }

    fn plus(mut self, other: Self) -> Self {
        for (size, (images, change)) in other.buckets {
            let sum = self.buckets.entry(size).or_default();
            *sum = (sum.0 + images, sum.1 + change);
        }
        self.too_long += other.too_long;
        self.unreadable += other.unreadable;
        self.smaller += other.smaller;
        self
    }

    /// What the counts mean for a training.
    pub fn forecast(&self, assumptions: Assumptions) -> Forecast {
        let batch = assumptions.batch_size.max(1);
        let counts: Counts = self
            .buckets
            .iter()
            .map(|(&(width, height), &(images, _))| (BucketSize { width, height }, images))
            .collect();
        let images: u64 = counts.values().sum();
        let mut buckets: Vec<ForecastBucket> = self
            .buckets
            .iter()
            .map(|(&(width, height), &(images, change))| ForecastBucket {
                size: BucketSize { width, height }.to_string(),
                images,
                change: change as f64 / (images * WHOLE) as f64,
            })
            .collect();
        buckets.sort_by(|a, b| (b.images, &a.size).cmp(&(a.images, &b.size)));
        let small = || counts.values().filter(|count| **count < batch);
        let merges = Merges::of(&counts, batch, assumptions.rule);
        let (mut moved, mut cut, mut left) = (0, 0, std::collections::BTreeSet::new());
        for (own, count) in &counts {
            let bucket = merges.bucket(assumptions.rule.max_resolution, *own);
            left.insert(bucket);
            if bucket != *own {
                moved += count;
                cut += count * changed((own.width, own.height), (bucket.width, bucket.height));
            }
        }
        let merged = MergedForecast {
            small_buckets: small().count(),
            small_images: small().sum(),
            buckets: left.len(),
            moved,
            cut: if moved == 0 { 0.0 } else { cut as f64 / (moved * WHOLE) as f64 },
        };
        Forecast {
            images,
            too_long: self.too_long,
            unreadable: self.unreadable,
            smaller: self.smaller,
            buckets,
            batches: images as f64 / batch as f64,
            merged,
        }
    }
}

impl Forecast {
    /// How much of an image, on average, does not fit the shape of its bucket: 0 to 1.
    pub fn change(&self) -> f64 {
        let sum: f64 = self.buckets.iter().map(|bucket| bucket.change * bucket.images as f64).sum();
        if self.images == 0 { 0.0 } else { sum / self.images as f64 }
    }
}

/// How much lies outside, in millionths.
fn changed(image: (u32, u32), bucket: (u32, u32)) -> u64 {
    let (left, all) = overlap(image, bucket);
    WHOLE - (u128::from(left) * u128::from(WHOLE) / u128::from(all.max(1))) as u64
}

/// Width and height, upright.
fn size(bytes: &[u8]) -> Option<(u32, u32)> {
    header(bytes, PIXELS).ok().map(|header| (header.width, header.height))
}

fn numbers(batch: &RecordBatch, name: &str, path: &Path) -> Result<ArrayRef, ShardError> {
    let index = batch.schema_ref().index_of(name).map_err(ShardError::arrow(path))?;
    cast(batch.column(index), &DataType::UInt32).map_err(ShardError::arrow(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: BucketRule = BucketRule { max_resolution: 256, patch_size: 16, upscale: false };

    #[test]
    fn a_training_sees_what_it_would_get() {
        let assumptions = Assumptions { rule: RULE, max_aspect: Some(3.0), batch_size: 10 };
        let mut tally = Tally::default();
        // 256x192 exactly, 256x171 goes to 256x176, and an image too long, one without a size, one that is small.
        (0..24).for_each(|_| tally.add(Some((1024, 768)), assumptions));
        (0..4).for_each(|_| tally.add(Some((1536, 1026)), assumptions));
        for size in [Some((1000, 300)), None, Some((0, 5)), Some((64, 48))] {
            tally.add(size, assumptions);
        }
        let forecast = tally.clone().plus(Tally::default()).forecast(assumptions);
        assert_eq!((forecast.images, forecast.too_long, forecast.unreadable, forecast.smaller), (29, 1, 2, 1));
        let names: Vec<(&str, u64)> = forecast.buckets.iter().map(|b| (b.size.as_str(), b.images)).collect();
        assert_eq!(names, [("256x192", 24), ("256x176", 4), ("64x48", 1)]);
        assert_eq!(forecast.buckets[0].change, 0.0);
        assert!((0.025..0.03).contains(&forecast.buckets[1].change), "{}", forecast.buckets[1].change);
        assert!((0.003..0.005).contains(&forecast.change()));
        assert_eq!(forecast.batches, 2.9);
        let MergedForecast { small_buckets, small_images, buckets, moved, cut } = forecast.merged;
        assert_eq!((small_buckets, small_images, buckets, moved), (2, 5, 2, 4), "64x48 has no bucket to join");
        assert!((0.08..0.09).contains(&cut), "{cut}");
    }
}
