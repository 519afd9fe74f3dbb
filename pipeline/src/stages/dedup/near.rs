//! Which of many hashes are near to each other, and which to keep, so that every other one is near to a kept one.
//!
//! Multi-index hashing: two hashes that differ in at most `d` bits agree in at least one of `d + 1` bands of bits, so only
//! those that share a band need be compared. Hashes are looked up a block at a time, in parallel; within a block each is
//! compared with the new ones before it. The result is that of looking at one after the other.

use rayon::prelude::*;

use crate::stage::{Cancel, StageError};

/// Hashes that are looked up together.
const BLOCK: usize = 4096;
/// Bits of a band that tell its buckets apart: more would make empty buckets.
const MOST_BITS: u32 = 18;

/// Those of `hashes`, which ascend, that are there more than once, or differ from another in at most `distance` bits; each
/// once, and in their order.
pub(super) fn crowded(hashes: &[u64], distance: u32, cancel: &Cancel) -> Result<Vec<u64>, StageError> {
    let with_times = |same: &[u64]| Some((*same.first()?, same.len() as u32));
    let distinct: Vec<(u64, u32)> = hashes.chunk_by(|a, b| a == b).filter_map(with_times).collect();
    let mut bands = Bands::new(distance);
    bands.add(&distinct);
    let is_near_another = |hash: u64| bands.near(hash).flatten().any(|(other, _)| other != hash);
    let if_crowded = |(hash, times): &(u64, u32)| -> Result<Option<u64>, StageError> {
        cancel.check()?;
        Ok((*times > 1 || is_near_another(*hash)).then_some(*hash))
    };
    let mut crowded = Vec::new();
    for block in distinct.chunks(BLOCK) {
        let found = block.par_iter().map(if_crowded).collect::<Result<Vec<_>, _>>()?;
        crowded.extend(found.into_iter().flatten());
    }
    Ok(crowded)
}

/// For each of `hashes`, which are in the order of preference: the first that is kept, differs from it in at most `distance`
/// bits, and is like it, as `is_like` says of two by their places; `None` for those that are kept themselves.
pub(super) fn greedy(
    hashes: &[u64],
    distance: u32,
    is_like: impl Fn(u32, u32) -> bool + Sync,
    cancel: &Cancel,
) -> Result<Vec<Option<u32>>, StageError> {
    if u32::try_from(hashes.len()).is_err() {
        return Err(StageError::failed("there are more than four billion hashes that are near to another"));
    }
    let mut kept = Bands::new(distance);
    let mut result: Vec<Option<u32>> = Vec::with_capacity(hashes.len());
    for block in hashes.chunks(BLOCK) {
        let start = result.len() as u32;
        // Where many are near and few alike, a block takes long.
        let known = block.par_iter().enumerate().map(|(at, hash)| -> Result<Option<u32>, StageError> {
            cancel.check()?;
            let position = start + at as u32;
            Ok(kept.first_near(*hash, |other| is_like(other, position)))
        });
        let known = known.collect::<Result<Vec<_>, _>>()?;
        let mut new: Vec<(u64, u32)> = Vec::new();
        for ((position, hash), known) in (start..).zip(block).zip(known) {
            cancel.check()?;
            // What was kept before the block comes before what is kept in it.
            let near = known.or_else(|| {
                let near = |(other, at): &&(u64, u32)| is_near(*other, *hash, distance) && is_like(*at, position);
                new.iter().find(near).map(|(_, at)| *at)
            });
            if near.is_none() {
                new.push((*hash, position));
            }
            result.push(near);
        }
        kept.add(&new);
    }
    Ok(result)
}

fn is_near(a: u64, b: u64, distance: u32) -> bool {
    (a ^ b).count_ones() <= distance
}

/// Hashes, each with a number, once in each band.
struct Bands {
    distance: u32,
    bands: Vec<Band>,
}

struct Band {
    shift: u32,
    mask: u64,
    /// By the bits of the band; in the order in which they came.
    buckets: Vec<Vec<(u64, u32)>>,
}

impl Bands {
    fn new(distance: u32) -> Self {
        let count = distance + 1;
        let mut shift = 0;
        let bands = (0..count).map(|band| {
            let width = 64 / count + u32::from(band < 64 % count);
            let bits = width.min(MOST_BITS);
            let band = Band { shift, mask: (1 << bits) - 1, buckets: vec![Vec::new(); 1 << bits] };
            shift += width;
            band
        });
        Self { distance, bands: bands.collect() }
    }

    fn add(&mut self, hashes: &[(u64, u32)]) {
        self.bands.par_iter_mut().for_each(|band| {
            for &(hash, number) in hashes {
                let bucket = band.bucket(hash);
                if let Some(bucket) = band.buckets.get_mut(bucket) {
                    bucket.push((hash, number));
                }
            }
        });
    }

    /// What is near to a hash, by bands: each once, in the first band that it shares.
    fn near(&self, hash: u64) -> impl Iterator<Item = impl Iterator<Item = (u64, u32)>> {
        self.bands.iter().enumerate().map(move |(number, band)| {
            let before = self.bands.get(..number).unwrap_or_default();
            let shares_one_before = move |other: u64| before.iter().any(|band| band.bucket(other ^ hash) == 0);
            let bucket = band.buckets.get(band.bucket(hash)).into_iter().flatten().copied();
            bucket.filter(move |(other, _)| is_near(*other, hash, self.distance) && !shares_one_before(*other))
        })
    }

    /// The smallest number of what is near to a hash and passes, where numbers were added in their order.
    fn first_near(&self, hash: u64, passes: impl Fn(u32) -> bool) -> Option<u32> {
        self.near(hash).filter_map(|band| band.map(|(_, number)| number).find(|number| passes(*number))).min()
    }
}

impl Band {
    /// Two hashes are in one bucket where that of the bits in which they differ is 0.
    fn bucket(&self, hash: u64) -> usize {
        (hash >> self.shift & self.mask) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// One after the other, each with all before it.
    fn brute_force(hashes: &[u64], distance: u32, is_like: fn(u32, u32) -> bool) -> Vec<Option<u32>> {
        let mut result: Vec<Option<u32>> = Vec::new();
        for (i, hash) in hashes.iter().enumerate() {
            let near = |j: usize| (hashes[j] ^ hash).count_ones() <= distance && is_like(j as u32, i as u32);
            let first = (0..i).find(|&j| result[j].is_none() && near(j));
            result.push(first.map(|j| j as u32));
        }
        result
    }

    /// Some are like each other, and others are not.
    fn some(a: u32, b: u32) -> bool {
        !(a ^ b).is_multiple_of(3)
    }

    fn all(_: u32, _: u32) -> bool {
        true
    }

    fn distinct(hashes: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut seen = HashSet::new();
        hashes.into_iter().filter(|hash| seen.insert(*hash)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn bands_find_what_comparing_all_finds(
            centres in prop::collection::vec(any::<u64>(), 1..6),
            steps in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(0..64u32, 0..7)), 1..300),
            distance in 0..=16u32,
        ) {
            let near = steps.iter().map(|(centre, flips)| flips.iter().fold(*centre.get(&centres), |h, bit| h ^ 1 << bit));
            let mut hashes: Vec<u64> = near.collect();
            for is_like in [all, some] {
                let found = greedy(&hashes, distance, is_like, &Cancel::default()).unwrap();
                prop_assert_eq!(found, brute_force(&hashes, distance, is_like));
            }
            hashes.sort_unstable();
            let others = |hash: &u64| hashes.iter().filter(|other| (*other ^ hash).count_ones() <= distance).count() - 1;
            let mut expected: Vec<u64> = hashes.iter().copied().filter(|hash| others(hash) > 0).collect();
            expected.dedup();
            prop_assert_eq!(crowded(&hashes, distance, &Cancel::default()).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_cancelled_ends_within_a_block() {
        let (cancel, compared) = (Cancel::default(), AtomicUsize::new(0));
        let is_like = |_, _| {
            compared.fetch_add(1, Ordering::Relaxed);
            cancel.cancel();
            false
        };
        assert!(matches!(greedy(&[7; 1000], 4, is_like, &cancel), Err(StageError::Cancelled)));
        assert_eq!(compared.into_inner(), 1, "and not each with each");
    }

    #[test]
    fn blocks_change_nothing() {
        // Few bits, so that many are near; more than two blocks.
        let mut state = 1_u64;
        let hashes = distinct(
            std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state ^ state >> 31) & 0x0303_0f03_0103_0307
            })
            .take(30_000),
        );
        assert!(hashes.len() > 2 * BLOCK, "{}", hashes.len());
        assert_eq!(greedy(&hashes, 1, all, &Cancel::default()).unwrap(), brute_force(&hashes, 1, all));
    }
}
