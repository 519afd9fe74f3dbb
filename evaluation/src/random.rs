//! Random numbers by key: each draw has its own stream, so that no order of calls and no number of threads changes it.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// What a stream is for. Equal seeds must not draw equal samples from two sets.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    GeneratedSubset = 1,
    ReferenceSubset = 2,
    GeneratedResample = 3,
    ReferenceResample = 4,
}

pub(crate) struct Stream(ChaCha8Rng);

impl Stream {
    pub(crate) fn new(seed: u64, purpose: Purpose, draw: usize) -> Self {
        let mut key = [0; 32];
        for (bytes, part) in key.as_chunks_mut::<8>().0.iter_mut().zip([seed, purpose as u64, draw as u64]) {
            *bytes = part.to_le_bytes();
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in 0..`end`, without bias (Lemire's multiplication with rejection). `end` must not be 0.
    fn below(&mut self, end: u64) -> u64 {
        loop {
            let product = u128::from(self.0.next_u64()) * u128::from(end);
            if product as u64 >= end.wrapping_neg() % end {
                return (product >> 64) as u64;
            }
        }
    }

    /// `size` different samples out of `count`, which must not be fewer.
    pub(crate) fn choose(&mut self, size: usize, count: usize) -> Vec<usize> {
        let mut samples: Vec<usize> = (0..count).collect();
        for place in 0..size {
            let other = place + self.below((count - place) as u64) as usize;
            samples.swap(place, other);
        }
        samples.truncate(size);
        samples
    }

    /// How often each of `count` samples is drawn in `count` draws with replacement. `count` must be 2 at least, and so will be
    /// the different samples drawn: of one alone there is no scatter.
    pub(crate) fn resample(&mut self, count: usize) -> Vec<u32> {
        loop {
            let mut weights = vec![0; count];
            for _ in 0..count {
                weights[self.below(count as u64) as usize] += 1;
            }
            if weights.iter().all(|&weight| (weight as usize) < count) {
                return weights;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_depend_on_the_whole_key() {
        let draw = |seed, purpose, draw| Stream::new(seed, purpose, draw).choose(20, 1000);
        let first = draw(1, Purpose::GeneratedSubset, 0);
        assert_eq!(first, draw(1, Purpose::GeneratedSubset, 0));
        assert_ne!(first, draw(2, Purpose::GeneratedSubset, 0));
        assert_ne!(first, draw(1, Purpose::ReferenceSubset, 0));
        assert_ne!(first, draw(1, Purpose::GeneratedSubset, 1));
    }

    #[test]
    fn chosen_samples_differ_and_each_is_chosen_as_often() {
        let mut times = [0; 10];
        for draw in 0..10_000 {
            let mut chosen = Stream::new(0, Purpose::GeneratedSubset, draw).choose(3, 10);
            for &sample in &chosen {
                times[sample] += 1;
            }
            chosen.sort_unstable();
            chosen.dedup();
            assert_eq!(chosen.len(), 3);
        }
        // 3,000 each are expected; the standard deviation is 46.
        assert!(times.iter().all(|times| (2_770..3_230).contains(times)), "{times:?}");
    }

    #[test]
    fn resamples_have_as_many_samples_and_never_only_one() {
        for draw in 0..100 {
            let weights = Stream::new(0, Purpose::GeneratedResample, draw).resample(2);
            assert_eq!(weights, [1, 1]);
            let weights = Stream::new(0, Purpose::GeneratedResample, draw).resample(50);
            assert_eq!(weights.iter().sum::<u32>(), 50);
        }
    }
}
