//! What a survey remembers of every row: its key, its size, and the mark by which pictures are compared.
//!
//! The perceptual mark is the gradient hash (Krawetz's dHash, 8×8): the picture is made grey and scaled to 9×8, and each bit
//! says whether a pixel is brighter than its left neighbour. Of the well-known hashes of 64 bits it was chosen because
//! brightness, contrast, size and encoding leave neighbours in their order, which a comparison with the mean (aHash) does not
//! survive as well; and because it compares whole numbers, where pHash compares floating-point sums with their median, which
//! rounding on another processor could turn. A flat picture has no gradient and gives no bit at all; see [`NOTHING`].

use std::cmp::Ordering;

use arrow::array::{Array, BinaryArray, RecordBatch, StringArray, UInt64Array};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use image::RgbImage;
use image_hasher::{FilterType, HashAlg, Hasher, HasherConfig};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use shards::reader::Shard;
use shards::{ShardError, columns};

use crate::decode::decode;
use crate::stage::{Cancel, Input, StageError};
use crate::stages::rows;

/// The hash of what cannot be compared: a picture that cannot be decoded, or has no gradient from left to right, or nothing
/// but one. Of those two hashes (no bit, and all of them) pictures that have nothing in common but their emptiness share one.
pub(super) const NOTHING: u64 = 0;

/// Larger images are not decoded, as in `bucket`.
const MOST_PIXELS: u64 = 100_000_000;
/// Rows whose images are in memory together.
const BATCH: usize = 64;

/// Where a row lies: in which input, and in which of its rows, numbered through the input's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) part: u32,
    pub(super) row: u32,
}

/// All rows of all inputs.
pub(super) struct Pictures<M> {
    parts: Vec<Part<M>>,
}

/// The rows of one input.
struct Part<M> {
    /// One after the other.
    keys: String,
    /// Where each key ends.
    ends: Vec<u64>,
    /// Width × height.
    areas: Vec<u64>,
    marks: Vec<M>,
}

impl<M> Default for Part<M> {
    fn default() -> Self {
        Self { keys: String::new(), ends: Vec::new(), areas: Vec::new(), marks: Vec::new() }
    }
}

impl<M> Pictures<M> {
    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(|part| part.marks.len()).sum()
    }

    /// All rows, in order.
    pub(super) fn places(&self) -> Vec<Place> {
        let of = |(part, rows): (u32, &Part<M>)| (0..rows.marks.len() as u32).map(move |row| Place { part, row });
        (0..).zip(&self.parts).flat_map(of).collect()
    }

    fn part(&self, place: Place) -> Option<&Part<M>> {
        self.parts.get(place.part as usize)
    }

    pub(super) fn key(&self, place: Place) -> &str {
        let row = place.row as usize;
        self.part(place)
            .and_then(|part| {
                let start = row.checked_sub(1).map_or(Some(0), |before| part.ends.get(before).copied())?;
                part.keys.get(start as usize..*part.ends.get(row)? as usize)
            })
            .unwrap_or_default()
    }

    fn area(&self, place: Place) -> u64 {
        self.part(place).and_then(|part| part.areas.get(place.row as usize)).copied().unwrap_or_default()
    }

    /// Which of two is rather kept: the larger, then the one with the smaller key, then the earlier one.
    pub(super) fn preference(&self, a: Place, b: Place) -> Ordering {
        self.area(b).cmp(&self.area(a)).then_with(|| self.key(a).cmp(self.key(b))).then_with(|| a.cmp(&b))
    }
}

impl<M: Copy + Default> Pictures<M> {
    pub(super) fn mark(&self, place: Place) -> M {
        self.part(place).and_then(|part| part.marks.get(place.row as usize)).copied().unwrap_or_default()
    }
}

/// Every row with half of its image's SHA-256: 128 bits, of which no two images agree by chance.
pub(super) fn digests(inputs: &[Input], cancel: &Cancel) -> Result<Pictures<u128>, StageError> {
    let parts = inputs.par_iter().map(|input| {
        let mut part = Part::default();
        for shard in rows::open([input])? {
            let known = shard.schema().field_with_name(columns::SHA256).is_ok_and(|f| *f.data_type() == DataType::Utf8);
            let (column, size) = if known { (columns::SHA256, 8192) } else { (columns::IMAGE, BATCH) };
            let mut start = 0;
            for batch in shard.batches(Some(&[columns::KEY, columns::WIDTH, columns::HEIGHT, column]), size)? {
                check(cancel)?;
                let batch = batch?;
                part.add(&shard, &batch)?;
                if known {
                    part.marks.extend(recorded(&shard, shard.text(&batch, columns::SHA256)?, start)?);
                } else {
                    let images = shard.binary(&batch, columns::IMAGE)?;
                    part.marks.par_extend((0..images.len()).into_par_iter().map(|i| digest(images, i)));
                }
                start += batch.num_rows() as u64;
            }
        }
        Ok(part)
    });
    Ok(Pictures { parts: parts.collect::<Result<_, StageError>>()? })
}

/// The recorded digests; of rows without one (rows from `start` on), that of the image.
fn recorded(shard: &Shard, texts: &StringArray, start: u64) -> Result<Vec<u128>, StageError> {
    let mut marks: Vec<Option<u128>> = texts.iter().map(|text| text.and_then(half_of)).collect();
    let missing: Vec<usize> = marks.iter().enumerate().filter(|(_, mark)| mark.is_none()).map(|(i, _)| i).collect();
    for missing in missing.chunks(BATCH) {
        let numbers: Vec<u64> = missing.iter().map(|i| start + *i as u64).collect();
        let batch = shard.rows_at(&numbers, &[columns::IMAGE])?;
        let images = shard.binary(&batch, columns::IMAGE)?;
        for (at, i) in missing.iter().enumerate() {
            if let Some(mark) = marks.get_mut(*i) {
                *mark = Some(digest(images, at));
            }
        }
    }
    Ok(marks.into_iter().map(Option::unwrap_or_default).collect())
}

/// The first half of 64 hexadecimal digits; `None` where the text is something else.
fn half_of(text: &str) -> Option<u128> {
    let is_digest = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest.then(|| u128::from_str_radix(text.get(..32)?, 16).ok()).flatten()
}

/// 0 where there is no image: what is not there is not the same as anything.
fn digest(images: &BinaryArray, row: usize) -> u128 {
    if images.is_null(row) {
        return 0;
    }
    Sha256::digest(images.value(row)).iter().take(16).fold(0, |half, byte| half << 8 | u128::from(*byte))
}

/// Every row with its perceptual hash, and how many have [`NOTHING`].
pub(super) fn hashes(inputs: &[Input], cancel: &Cancel) -> Result<(Pictures<u64>, u64), StageError> {
    let parts = inputs.par_iter().map(|input| {
        let mut part = Part::default();
        for shard in rows::open([input])? {
            let names = [columns::KEY, columns::WIDTH, columns::HEIGHT, columns::IMAGE];
            for batch in shard.batches(Some(&names), BATCH)? {
                check(cancel)?;
                let batch = batch?;
                part.add(&shard, &batch)?;
                let images = shard.binary(&batch, columns::IMAGE)?;
                let look = |hasher: &mut Hasher<[u8; 8]>, i| match decode(images.value(i), MOST_PIXELS) {
                    Ok(picture) => hash(hasher, &picture),
                    Err(_not_comparable) => NOTHING,
                };
                part.marks.par_extend((0..images.len()).into_par_iter().map_init(hasher, look));
            }
        }
        Ok(part)
    });
    let pictures = Pictures { parts: parts.collect::<Result<Vec<_>, StageError>>()? };
    let nothing = |part: &Part<u64>| part.marks.iter().filter(|mark| **mark == NOTHING).count() as u64;
    let not_compared = pictures.parts.iter().map(nothing).sum();
    Ok((pictures, not_compared))
}

/// A triangle is enough to shrink with, and three times as fast as Lanczos.
fn hasher() -> Hasher<[u8; 8]> {
    let config = HasherConfig::with_bytes_type::<[u8; 8]>().hash_size(8, 8);
    config.hash_alg(HashAlg::Gradient).resize_filter(FilterType::Triangle).to_hasher()
}

fn hash(hasher: &Hasher<[u8; 8]>, picture: &RgbImage) -> u64 {
    let bits = u64::from_le_bytes(hasher.hash_image(picture).into_inner());
    if bits == u64::MAX { NOTHING } else { bits }
}

fn check(cancel: &Cancel) -> Result<(), StageError> {
    if cancel.is_cancelled() { Err(StageError::Cancelled) } else { Ok(()) }
}

impl<M> Part<M> {
    /// Takes in the keys and sizes of a batch.
    fn add(&mut self, shard: &Shard, batch: &RecordBatch) -> Result<(), StageError> {
        for key in shard.text(batch, columns::KEY)? {
            self.keys.push_str(key.unwrap_or_default());
            self.ends.push(self.keys.len() as u64);
        }
        if u32::try_from(self.ends.len()).is_err() {
            return Err(StageError::failed(format!("{} has more rows than can be compared", shard.path().display())));
        }
        let (widths, heights) = (sides(shard, batch, columns::WIDTH)?, sides(shard, batch, columns::HEIGHT)?);
        let area = |(width, height): (Option<u64>, Option<u64>)| width.unwrap_or(0).saturating_mul(height.unwrap_or(0));
        self.areas.extend(widths.iter().zip(&heights).map(area));
        Ok(())
    }
}

/// A column of whole numbers, of whatever type; unknown where it is null or negative.
fn sides(shard: &Shard, batch: &RecordBatch, column: &str) -> Result<UInt64Array, StageError> {
    let sides = batch.column_by_name(column).filter(|sides| sides.data_type().is_integer());
    let sides =
        sides.map(|sides| cast(sides, &DataType::UInt64)).transpose().map_err(ShardError::arrow(shard.path()))?;
    match sides.as_ref().and_then(|sides| sides.as_any().downcast_ref::<UInt64Array>()) {
        Some(sides) => Ok(sides.clone()),
        // Says what the shard has instead.
        None => Ok(shard.typed::<UInt64Array>(batch, column, "whole numbers")?.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::imageops;

    /// Waves across each other, of lengths that follow from `seed`.
    fn picture(seed: u32) -> RgbImage {
        let length = |n: u32| 14.0 + (seed * 37 + n * 29) as f32 % 31.0;
        RgbImage::from_fn(160, 120, |x, y| {
            let (x, y) = (x as f32, y as f32);
            let light = ((x + y / 3.0) / length(0)).sin() + ((y - x / 2.0) / length(1)).cos() + (x / length(2)).cos();
            let value = (128.0 + 40.0 * light) as u8;
            image::Rgb([value, value / 2, 255 - value / 3])
        })
    }

    fn apart(a: &RgbImage, b: &RgbImage) -> u32 {
        let hasher = hasher();
        (hash(&hasher, a) ^ hash(&hasher, b)).count_ones()
    }

    #[test]
    fn sizes_and_brightness_leave_the_hash_alone_and_other_pictures_do_not() {
        for seed in 0..8 {
            let original = picture(seed);
            let half = imageops::resize(&original, 80, 60, imageops::FilterType::Lanczos3);
            let squeezed = imageops::resize(&original, 200, 90, imageops::FilterType::CatmullRom);
            let bright = imageops::brighten(&original, 12);
            for (what, copy) in [("half", &half), ("squeezed", &squeezed), ("bright", &bright)] {
                assert!(apart(&original, copy) <= 4, "{seed} {what}: {}", apart(&original, copy));
            }
            assert!(apart(&original, &picture(seed + 1)) > 6, "{seed}: {}", apart(&original, &picture(seed + 1)));
        }
    }

    #[test]
    fn each_bit_compares_a_pixel_with_its_left_neighbour() {
        let value = |x: u32, y: u32| (x * 67 + y * 178 + x * y * 17) as u8;
        let bit = |n: u32| u64::from(value(n % 8, n / 8) < value(n % 8 + 1, n / 8)) << n;
        let expected: u64 = (0..64).map(bit).sum();
        for size in [1, 10] {
            let picture = RgbImage::from_fn(9 * size, 8 * size, |x, y| image::Rgb([value(x / size, y / size); 3]));
            assert_eq!(hash(&hasher(), &picture), expected, "{size}");
        }
        // Another hash would drop other rows under an unchanged fingerprint.
        assert_eq!(expected, 0x4849_4a2a_adad_7677);
    }

    #[test]
    fn a_blank_page_has_no_hash() {
        for grey in [0, 128, 255] {
            assert_eq!(hash(&hasher(), &RgbImage::from_pixel(40, 30, image::Rgb([grey; 3]))), NOTHING);
        }
        let ramp = RgbImage::from_fn(90, 80, |x, _| image::Rgb([x as u8 * 2; 3]));
        assert_eq!(hash(&hasher(), &ramp), NOTHING);
    }

    #[test]
    fn only_digests_are_taken_for_digests() {
        let digest = "00112233445566778899AABBccddeeff".repeat(2);
        assert_eq!(half_of(&digest), Some(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff));
        for bad in ["", "abc", &"+".repeat(64), &digest[1..]] {
            assert_eq!(half_of(bad), None, "{bad}");
        }
    }
}
