//! What a survey remembers of every row: its key, its size, and the mark by which pictures are compared.
//!
//! The perceptual mark is [`perceptual_hash`].

use std::cmp::Ordering;

use arrow::array::{Array, BinaryArray, RecordBatch, StringArray, UInt64Array};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use shards::reader::Shard;
use shards::{ShardError, columns};

use crate::stage::{Cancel, Input, StageError};
use crate::stages::rows;
use picture::{NOTHING, decode, perceptual_hash};

/// Larger images are not decoded, as in `bucket`.
const MOST_PIXELS: u64 = 100_000_000;
/// Sides that are said to be longer count as this, so that an area is a number of 64 bits.
pub(super) const LONGEST_SIDE: u64 = u32::MAX as u64;
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
                let look = |i| match decode(images.value(i), MOST_PIXELS) {
                    Ok(picture) => perceptual_hash(&picture),
                    Err(_not_comparable) => NOTHING,
                };
                part.marks.par_extend((0..images.len()).into_par_iter().map(look));
            }
        }
        Ok(part)
    });
    let pictures = Pictures { parts: parts.collect::<Result<Vec<_>, StageError>>()? };
    let nothing = |part: &Part<u64>| part.marks.iter().filter(|mark| **mark == NOTHING).count() as u64;
    let not_compared = pictures.parts.iter().map(nothing).sum();
    Ok((pictures, not_compared))
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
        let side = |side: Option<u64>| side.unwrap_or(0).min(LONGEST_SIDE);
        let area = |(width, height)| side(width) * side(height);
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
    #[test]
    fn only_digests_are_taken_for_digests() {
        let digest = "00112233445566778899AABBccddeeff".repeat(2);
        assert_eq!(half_of(&digest), Some(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff));
        for bad in ["", "abc", &"+".repeat(64), &digest[1..]] {
            assert_eq!(half_of(bad), None, "{bad}");
        }
    }
}
