//! What a survey remembers of every row: its key, its size, and the mark by which pictures are compared.
//!
//! The perceptual mark is [`perceptual_hash`]: that of the column phash, as a download recorded it (`compute_phash`), where the row
//! has one; else that of the image. The recorded one is of the picture as it was served, as the recorded digest is of the bytes
//! as served. What was scaled since has the same hash; of what was cut, it is that of the whole.

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
use picture::{Look, NOTHING, decode, perceptual_hash};

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

/// What a row is compared by, and the column of text in which it may be recorded. The default stands for nothing to compare.
struct Mark<M> {
    column: &'static str,
    of_text: fn(&str) -> Option<M>,
    of_image: fn(&[u8]) -> Option<M>,
}

/// Every row with half of its image's SHA-256: 128 bits, of which no two images agree by chance. 0 where there is no image:
/// what is not there is not the same as anything.
pub(super) fn digests(inputs: &[Input], cancel: &Cancel) -> Result<Pictures<u128>, StageError> {
    let mark = Mark { column: columns::SHA256, of_text: half_of, of_image: |image| Some(digest(image)) };
    Pictures::read(inputs, &mark, cancel)
}

/// The first half of 64 hexadecimal digits; `None` where the text is something else.
fn half_of(text: &str) -> Option<u128> {
    let is_digest = text.len() == 64 && is_hexadecimal(text);
    is_digest.then(|| u128::from_str_radix(text.get(..32)?, 16).ok()).flatten()
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn digest(image: &[u8]) -> u128 {
    Sha256::digest(image).iter().take(16).fold(0, |half, byte| half << 8 | u128::from(*byte))
}

/// Every row with its perceptual hash, and how many have [`NOTHING`].
pub(super) fn hashes(inputs: &[Input], cancel: &Cancel) -> Result<(Pictures<u64>, u64), StageError> {
    let of_image = |image: &[u8]| picture_of(image).map(|picture| perceptual_hash(&picture));
    let pictures = Pictures::read(inputs, &Mark { column: columns::PHASH, of_text: hash_of, of_image }, cancel)?;
    let nothing = |part: &Part<u64>| part.marks.iter().filter(|mark| **mark == NOTHING).count() as u64;
    let not_compared = pictures.parts.iter().map(nothing).sum();
    Ok((pictures, not_compared))
}

/// The hash that 16 hexadecimal digits are.
fn hash_of(text: &str) -> Option<u64> {
    let is_hash = text.len() == 16 && is_hexadecimal(text);
    is_hash.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// `None` where it cannot be decoded.
fn picture_of(image: &[u8]) -> Option<image::RgbImage> {
    decode(image, MOST_PIXELS).ok()
}

/// The looks of the rows at these places, which ascend; `None` of what cannot be decoded.
pub(super) fn looks(inputs: &[Input], places: &[Place], cancel: &Cancel) -> Result<Vec<Option<Box<Look>>>, StageError> {
    let parts: Vec<&[Place]> = places.chunk_by(|a, b| a.part == b.part).collect();
    let looks = parts.into_par_iter().map(|places| {
        let input = places.first().and_then(|place| inputs.get(place.part as usize));
        let (mut looks, mut left, mut start) = (Vec::with_capacity(places.len()), places, 0);
        for shard in rows::open(input)? {
            let end = start + shard.rows();
            let (here, after) = left.split_at(left.partition_point(|place| u64::from(place.row) < end));
            let here: Vec<u64> = here.iter().map(|place| u64::from(place.row) - start).collect();
            let look = |image: &[u8]| picture_of(image).map(|picture| Box::new(Look::of(&picture)));
            looks.extend(of_images(&shard, &here, cancel, look)?);
            (left, start) = (after, end);
        }
        Ok(looks)
    });
    let looks = looks.collect::<Result<Vec<_>, StageError>>()?;
    Ok(looks.into_iter().flatten().collect())
}

/// What `of_image` makes of the images of some rows, which ascend.
fn of_images<T: Send>(
    shard: &Shard,
    rows: &[u64],
    cancel: &Cancel,
    of_image: impl Fn(&[u8]) -> Option<T> + Sync,
) -> Result<Vec<Option<T>>, StageError> {
    let mut found = Vec::with_capacity(rows.len());
    for rows in rows.chunks(BATCH) {
        cancel.check()?;
        let batch = shard.rows_at(rows, &[columns::IMAGE])?;
        let images = shard.binary(&batch, columns::IMAGE)?;
        found.par_extend((0..images.len()).into_par_iter().map(|row| of_image(bytes(images, row)?)));
    }
    Ok(found)
}

/// `None` where there is no image.
fn bytes(images: &BinaryArray, row: usize) -> Option<&[u8]> {
    images.is_valid(row).then(|| images.value(row))
}

impl<M: Copy + Default + Send> Pictures<M> {
    fn read(inputs: &[Input], mark: &Mark<M>, cancel: &Cancel) -> Result<Self, StageError> {
        let parts = inputs.par_iter().map(|input| {
            let mut part = Part::default();
            for shard in rows::open([input])? {
                part.read(&shard, mark, cancel)?;
            }
            Ok(part)
        });
        Ok(Self { parts: parts.collect::<Result<_, StageError>>()? })
    }
}

impl<M: Copy + Default + Send> Part<M> {
    /// Takes in the rows of a shard. Images are read only of rows without a record.
    fn read(&mut self, shard: &Shard, mark: &Mark<M>, cancel: &Cancel) -> Result<(), StageError> {
        let field = shard.schema().field_with_name(mark.column);
        let is_recorded = field.is_ok_and(|field| *field.data_type() == DataType::Utf8);
        let (column, size) = if is_recorded { (mark.column, 8192) } else { (columns::IMAGE, BATCH) };
        let mut start = 0;
        for batch in shard.batches(Some(&[columns::KEY, columns::WIDTH, columns::HEIGHT, column]), size)? {
            cancel.check()?;
            let batch = batch?;
            self.add(shard, &batch)?;
            if is_recorded {
                self.marks.extend(recorded(shard, shard.text(&batch, column)?, start, mark, cancel)?);
            } else {
                let images = shard.binary(&batch, columns::IMAGE)?;
                let of_row = |row| bytes(images, row).and_then(mark.of_image).unwrap_or_default();
                self.marks.par_extend((0..images.len()).into_par_iter().map(of_row));
            }
            start += batch.num_rows() as u64;
        }
        Ok(())
    }
}

/// The recorded marks; of rows without one (rows from `start` on), those of their images.
fn recorded<M: Copy + Default + Send>(
    shard: &Shard,
    texts: &StringArray,
    start: u64,
    mark: &Mark<M>,
    cancel: &Cancel,
) -> Result<Vec<M>, StageError> {
    let mut marks: Vec<Option<M>> = texts.iter().map(|text| text.and_then(mark.of_text)).collect();
    let missing: Vec<u64> = (start..).zip(&marks).filter(|(_, mark)| mark.is_none()).map(|(row, _)| row).collect();
    let found = of_images(shard, &missing, cancel, mark.of_image)?;
    for (place, found) in marks.iter_mut().filter(|mark| mark.is_none()).zip(found) {
        *place = found;
    }
    Ok(marks.into_iter().map(Option::unwrap_or_default).collect())
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
        assert_eq!(hash_of("00112233445566fF"), Some(0x0011_2233_4455_66ff));
        for bad in ["", "ff", "+0112233445566ff", digest.as_str()] {
            assert_eq!(hash_of(bad), None, "{bad}");
        }
    }
}
