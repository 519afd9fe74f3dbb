//! Which of many hashes to keep, so that every other one is near to a kept one.
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

/// For each of `hashes`, which are distinct and in the order of preference: the first that is kept and differs from it in at
/// most `distance` bits; `None` for those that are kept themselves.
pub(super) fn greedy(hashes: &[u64], distance: u32, cancel: &Cancel) -> Result<Vec<Option<u32>>, StageError> {
    if u32::try_from(hashes.len()).is_err() {
        return Err(StageError::failed("there are more than four billion different hashes to compare"));
    }
    let mut kept = Kept::new(distance);
    let mut result: Vec<Option<u32>> = Vec::with_capacity(hashes.len());
    for block in hashes.chunks(BLOCK) {
        if cancel.is_cancelled() {
            return Err(StageError::Cancelled);
        }
        let known: Vec<Option<u32>> = block.par_iter().map(|hash| kept.first_near(*hash)).collect();
        let mut new: Vec<(u64, u32)> = Vec::new();
        for (hash, known) in block.iter().zip(known) {
            let position = result.len() as u32;
            // What was kept before the block comes before what is kept in it.
            let near = known.or_else(|| first_near(&new, *hash, distance));
            if near.is_none() {
                new.push((*hash, position));
            }
            result.push(near);
        }
        kept.add(&new);
    }
    Ok(result)
}

fn first_near(hashes: &[(u64, u32)], hash: u64, distance: u32) -> Option<u32> {
    hashes.iter().find(|(other, _)| (other ^ hash).count_ones() <= distance).map(|(_, position)| *position)
}

/// The hashes that are kept so far, with their positions, once in each band.
struct Kept {
    distance: u32,
    bands: Vec<Band>,
}

struct Band {
    shift: u32,
    mask: u64,
    /// By the bits of the band; positions ascend.
    buckets: Vec<Vec<(u64, u32)>>,
}

impl Kept {
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
            for &(hash, position) in hashes {
                let bucket = band.bucket(hash);
                if let Some(bucket) = band.buckets.get_mut(bucket) {
                    bucket.push((hash, position));
                }
            }
        });
    }

    fn first_near(&self, hash: u64) -> Option<u32> {
        let in_band = |band: &Band| first_near(band.buckets.get(band.bucket(hash))?, hash, self.distance);
        self.bands.iter().filter_map(in_band).min()
    }
}

impl Band {
    fn bucket(&self, hash: u64) -> usize {
        (hash >> self.shift & self.mask) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// One after the other, each with all before it.
    fn brute_force(hashes: &[u64], distance: u32) -> Vec<Option<u32>> {
        let mut result: Vec<Option<u32>> = Vec::new();
        for (i, hash) in hashes.iter().enumerate() {
            let near = (0..i).find(|&j| result[j].is_none() && (hashes[j] ^ hash).count_ones() <= distance);
            result.push(near.map(|j| j as u32));
        }
        result
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
            let hashes = distinct(near);
            prop_assert_eq!(greedy(&hashes, distance, &Cancel::default()).unwrap(), brute_force(&hashes, distance));
        }
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
        assert_eq!(greedy(&hashes, 1, &Cancel::default()).unwrap(), brute_force(&hashes, 1));
    }
}
