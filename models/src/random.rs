//! Random numbers from counters: every draw is keyed by (seed, purpose, counters), so a result does not depend on the
//! order of calls, the number of ranks or a resume.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use shards::digest::DigestBuilder;
use tch::{Device, Tensor};

/// A stream of random numbers for one key.
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of (`seed`, `purpose`, `counters`). Equal keys give equal streams, on every machine.
    pub fn new(seed: u64, purpose: &str, counters: &[u64]) -> Self {
        let mut key = DigestBuilder::new().part(seed.to_le_bytes()).part(purpose);
        for counter in counters {
            key.add(counter.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key.finish().seed()))
    }

    /// Uniform in [0, 1), with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in 0..`end`, without bias (Lemire's multiplication with rejection). `end` must not be 0.
    pub fn below(&mut self, end: u64) -> u64 {
        loop {
            let product = u128::from(self.0.next_u64()) * u128::from(end);
            if product as u64 >= end.wrapping_neg() % end {
                return (product >> 64) as u64;
            }
        }
    }

    /// Standard normal.
    pub fn normal(&mut self) -> f64 {
        StandardNormal.sample(&mut self.0)
    }

    /// Makes all of `values` standard normal numbers.
    pub fn fill_normal(&mut self, values: &mut [f32]) {
        values.fill_with(|| StandardNormal.sample(&mut self.0));
    }

    /// A float32 tensor of standard normal numbers.
    pub fn normal_tensor(&mut self, shape: &[i64], device: Device) -> Tensor {
        let mut values = vec![0f32; shape.iter().product::<i64>().max(0) as usize];
        self.fill_normal(&mut values);
        Tensor::from_slice(&values).reshape(shape).to_device(device)
    }

    /// A float32 tensor of numbers uniform in [-`bound`, `bound`).
    pub fn uniform_tensor(&mut self, shape: &[i64], bound: f64, device: Device) -> Tensor {
        let count = shape.iter().product::<i64>().max(0) as usize;
        let values: Vec<f32> = (0..count).map(|_| ((self.uniform() * 2.0 - 1.0) * bound) as f32).collect();
        Tensor::from_slice(&values).reshape(shape).to_device(device)
    }
}

/// Rounds of a permutation's network. Four make it pseudo-random (Luby and Rackoff, 1988); two more for small domains.
const ROUNDS: usize = 6;
/// Bits of each half at least, so that the network has orders enough for a few places.
const LEAST_BITS: u32 = 4;

/// A permutation of 0..`length` of which any place is computed alone, however long it is: a Feistel network over the smallest
/// square of a power of two that holds `length`, walked until it falls below it (Black and Rogaway, "Ciphers with arbitrary
/// finite domains", 2002).
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    length: u64,
    /// Bits of one half.
    bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of (`seed`, `purpose`, `counters`).
    pub fn new(seed: u64, purpose: &str, counters: &[u64], length: u64) -> Self {
        let mut stream = Stream::new(seed, purpose, counters);
        let bits = (u64::BITS - length.saturating_sub(1).leading_zeros()).div_ceil(2).max(LEAST_BITS);
        Self { length, bits, keys: std::array::from_fn(|_| stream.0.next_u64()) }
    }

    /// What stands at `place`, which must be below the length.
    pub fn get(&self, place: u64) -> u64 {
        debug_assert!(place < self.length);
        let mut at = place;
        loop {
            at = self.network(at);
            if at < self.length {
                return at;
            }
        }
    }

    fn network(&self, at: u64) -> u64 {
        let mask = (1 << self.bits) - 1;
        let (mut left, mut right) = (at >> self.bits, at & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mixed(right ^ key) & mask));
        }
        left << self.bits | right
    }
}

/// The finaliser of SplitMix64: each bit of the input turns each bit of the output with a chance of about a half.
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_depend_on_the_whole_key_and_on_nothing_else() {
        let first = |seed, purpose: &str, counters: &[u64]| Stream::new(seed, purpose, counters).0.next_u64();
        assert_eq!(first(1, "noise", &[2, 3]), first(1, "noise", &[2, 3]));
        let different = [
            first(1, "noise", &[2, 3]),
            first(2, "noise", &[2, 3]),
            first(1, "time", &[2, 3]),
            first(1, "noise", &[3, 2]),
        ];
        assert!(different.iter().enumerate().all(|(i, a)| different[i + 1..].iter().all(|b| a != b)));
    }

    #[test]
    fn normals_are_normal() {
        let values = Stream::new(0, "noise", &[]).normal_tensor(&[100_000], Device::Cpu);
        assert!(values.mean(tch::Kind::Float).double_value(&[]).abs() < 0.02);
        assert!((values.std(true).double_value(&[]) - 1.0).abs() < 0.02);
    }

    #[test]
    fn permutations_hold_everything_once() {
        for length in [1, 2, 3, 15, 16, 17, 255, 256, 257, 1000, 65_537] {
            let permutation = Permutation::new(0, "order", &[length], length);
            let mut order: Vec<u64> = (0..length).map(|place| permutation.get(place)).collect();
            assert!(length < 10 || order.iter().enumerate().any(|(i, &n)| i as u64 != n));
            order.sort_unstable();
            assert!(order.iter().enumerate().all(|(i, &n)| i as u64 == n));
        }
    }

    #[test]
    fn all_orders_of_a_few_are_about_equally_frequent() {
        let mut seen = std::collections::BTreeMap::<[u64; 4], u32>::new();
        for counter in 0..24_000 {
            let permutation = Permutation::new(0, "order", &[counter], 4);
            *seen.entry(std::array::from_fn(|place| permutation.get(place as u64))).or_default() += 1;
        }
        // 1,000 each are expected; the standard deviation is 31.
        assert_eq!(seen.len(), 24);
        assert!(seen.values().all(|&times| (850..1150).contains(&times)), "{seen:?}");
    }

    #[test]
    fn neighbours_in_a_large_permutation_have_nothing_in_common() {
        let length = 1_000_003;
        let permutation = Permutation::new(0, "order", &[], length);
        let order: Vec<f64> = (0..20_000).map(|place| permutation.get(place) as f64 / length as f64).collect();
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / order.len() as f64;
        assert!((mean(&mut order.iter().copied()) - 0.5).abs() < 0.01);
        let together = mean(&mut order.windows(2).map(|two| (two[0] - 0.5) * (two[1] - 0.5)));
        assert!(together.abs() < 0.003, "{together}");
    }
}
