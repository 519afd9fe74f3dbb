//! Features by the formula of `fixtures/generate.py`: exact in f64 and rounded once, so that both languages have the same bits.

use serde::Deserialize;

/// A set of samples that is made, not stored: seed, count, dimensions, factors, own noise, offset.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Made(pub u64, pub usize, pub usize, pub usize, pub f64, pub f64);

impl Made {
    /// Samples × dimensions.
    pub(crate) fn rows(&self) -> Vec<f32> {
        let &Self(seed, count, dimensions, factors, own, offset) = self;
        let mut rows = Vec::with_capacity(count * dimensions);
        for i in 0..count as u64 {
            let scores: Vec<f64> = (0..factors as u64).map(|factor| uniform(seed, i, 1000 + factor)).collect();
            for j in 0..dimensions as u64 {
                let factors = scores.iter().zip(0..);
                let loading: f64 =
                    factors.map(|(score, f): (_, u64)| score * (((j * (f + 3) + f) % 7) as f64 - 2.0)).sum();
                let value = loading + own * uniform(seed, i, j) + offset + (j % 5) as f64 * 0.25;
                rows.push(value as f32);
            }
        }
        rows
    }
}

/// -0.5 to 0.5 in steps of 2^-20.
fn uniform(seed: u64, sample: u64, dimension: u64) -> f64 {
    (mixed((seed << 48) + (sample << 24) + dimension) >> 44) as f64 / f64::from(1 << 20) - 0.5
}

/// The finaliser of SplitMix64.
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
