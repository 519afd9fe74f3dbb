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

    /// A permutation of 0..`length` (Fisher and Yates).
    pub fn permutation(&mut self, length: u64) -> Vec<u64> {
        let mut order: Vec<u64> = (0..length).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, self.below(i as u64 + 1) as usize);
        }
        order
    }

    /// A float32 tensor of standard normal numbers.
    pub fn normal_tensor(&mut self, shape: &[i64], device: Device) -> Tensor {
        let count = shape.iter().product::<i64>().max(0) as usize;
        let values: Vec<f32> = (0..count).map(|_| StandardNormal.sample(&mut self.0)).collect();
        Tensor::from_slice(&values).reshape(shape).to_device(device)
    }

    /// A float32 tensor of numbers uniform in [-`bound`, `bound`).
    pub fn uniform_tensor(&mut self, shape: &[i64], bound: f64, device: Device) -> Tensor {
        let count = shape.iter().product::<i64>().max(0) as usize;
        let values: Vec<f32> = (0..count).map(|_| ((self.uniform() * 2.0 - 1.0) * bound) as f32).collect();
        Tensor::from_slice(&values).reshape(shape).to_device(device)
    }
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
    fn permutations_hold_everything_once_and_normals_are_normal() {
        let mut order = Stream::new(0, "order", &[]).permutation(1000);
        assert_ne!(order[..5], [0, 1, 2, 3, 4]);
        order.sort_unstable();
        assert!(order.iter().enumerate().all(|(i, &n)| i as u64 == n));
        let values = Stream::new(0, "noise", &[]).normal_tensor(&[100_000], Device::Cpu);
        assert!(values.mean(tch::Kind::Float).double_value(&[]).abs() < 0.02);
        assert!((values.std(true).double_value(&[]) - 1.0).abs() < 0.02);
    }
}
