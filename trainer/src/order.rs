//! Which samples make up step k.
//!
//! Each bucket of n rows is an endless stream perm(0) ‖ perm(1) ‖ …, perm(e) keyed by (seed, bucket, e), cut into batches of
//! B. Epoch e owns the bucket's batches ⌊e·n/B⌋ … ⌊(e+1)·n/B⌋ − 1, and the batches of all buckets in an epoch are shuffled
//! by (seed, epoch). So every image is seen once in each pass over its bucket, none is ever lost, a bucket smaller than a
//! batch comes up every few epochs, and the position after any step is computed, not replayed.

use models::random::Permutation;

/// The samples of one step: all from one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepSamples {
    pub epoch: u64,
    /// Position among the index's buckets.
    pub bucket: usize,
    /// Positions within the bucket.
    pub samples: Vec<u64>,
    /// Where in the bucket's stream the first of them stands.
    pub place: u64,
}

/// The order of a whole training.
#[derive(Clone, Debug)]
pub struct DataOrder {
    seed: u64,
    batch: u64,
    rows: Vec<u64>,
}

impl DataOrder {
    /// `rows` of each bucket, and the batch size. `None` when there are no rows at all.
    pub fn new(seed: u64, rows: Vec<u64>, batch: u64) -> Option<Self> {
        (rows.iter().any(|&n| n > 0) && batch > 0).then_some(Self { seed, batch, rows })
    }

    /// Batches of one bucket before epoch `epoch`.
    fn batches_before(&self, bucket: usize, epoch: u64) -> u64 {
        let rows = self.rows.get(bucket).copied().unwrap_or(0);
        (u128::from(epoch) * u128::from(rows) / u128::from(self.batch)) as u64
    }

    /// Steps before epoch `epoch`.
    pub fn steps_before(&self, epoch: u64) -> u64 {
        (0..self.rows.len()).map(|bucket| self.batches_before(bucket, epoch)).sum()
    }

    fn epoch_of(&self, step: u64) -> u64 {
        let total: u64 = self.rows.iter().sum();
        // Σ⌊e·n/B⌋ lies between e·N/B − buckets and e·N/B, which brackets the epoch; the rest is bisection.
        let estimate = |step: u64| (u128::from(step) * u128::from(self.batch) / u128::from(total)) as u64;
        let (mut low, mut high) = (estimate(step).saturating_sub(1), estimate(step + self.rows.len() as u64) + 2);
        while low + 1 < high {
            let middle = u64::midpoint(low, high);
            if self.steps_before(middle) <= step {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The samples of step `step`, counted from 0.
    pub fn samples(&self, step: u64) -> StepSamples {
        let epoch = self.epoch_of(step);
        let position = step - self.steps_before(epoch);
        let batches = self.steps_before(epoch + 1) - self.steps_before(epoch);
        let (bucket, number) =
            self.batch_at(epoch, Permutation::new(self.seed, "order of batches", &[epoch], batches).get(position));
        let rows = self.rows.get(bucket).copied().unwrap_or(1).max(1);
        let first = u128::from(number) * u128::from(self.batch);
        let mut current: Option<(u64, Permutation)> = None;
        let samples = (0..self.batch)
            .map(|i| {
                let place = first + u128::from(i);
                let (pass, within) = ((place / u128::from(rows)) as u64, (place % u128::from(rows)) as u64);
                // A batch touches one pass, or two at a boundary; more only in buckets smaller than a batch.
                if current.is_none_or(|(of, _)| of != pass) {
                    let counters = [bucket as u64, pass];
                    current = Some((pass, Permutation::new(self.seed, "order of samples", &counters, rows)));
                }
                current.map_or(0, |(_, permutation)| permutation.get(within))
            })
            .collect();
        StepSamples { epoch, bucket, samples, place: first as u64 }
    }

    /// The sample at one place of a bucket's stream.
    pub fn sample_at(&self, bucket: usize, place: u64) -> u64 {
        let rows = self.rows.get(bucket).copied().unwrap_or(1).max(1);
        Permutation::new(self.seed, "order of samples", &[bucket as u64, place / rows], rows).get(place % rows)
    }

    /// The `n`th batch of an epoch before shuffling, where those of a bucket follow each other: (bucket, number of the batch
    /// in its bucket).
    fn batch_at(&self, epoch: u64, n: u64) -> (usize, u64) {
        let mut before = 0;
        for bucket in 0..self.rows.len() {
            let first = self.batches_before(bucket, epoch);
            let batches = self.batches_before(bucket, epoch + 1) - first;
            if n < before + batches {
                return (bucket, first + n - before);
            }
            before += batches;
        }
        (0, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// After any number of whole passes each sample was seen that often, or will be within the batch that is due.
        #[test]
        fn every_sample_is_seen_once_a_pass(rows in prop::collection::vec(0u64..40, 1..5), batch in 1u64..12, seed in 0u64..9) {
            let Some(order) = DataOrder::new(seed, rows.clone(), batch) else {
                prop_assert!(rows.iter().all(|&n| n == 0));
                return Ok(());
            };
            let epochs = batch * 2; // after a multiple of the batch size of epochs, no bucket has anything left over
            let steps = order.steps_before(epochs);
            prop_assert_eq!(steps * batch, epochs * rows.iter().sum::<u64>());
            let mut seen: Vec<Vec<u64>> = rows.iter().map(|&n| vec![0; n as usize]).collect();
            let mut last_epoch = 0;
            for step in 0..steps {
                let batch_of = order.samples(step);
                prop_assert_eq!(batch_of.samples.len() as u64, batch);
                prop_assert!(batch_of.epoch >= last_epoch);
                last_epoch = batch_of.epoch;
                for (place, sample) in (batch_of.place..).zip(batch_of.samples) {
                    prop_assert_eq!(order.sample_at(batch_of.bucket, place), sample);
                    seen[batch_of.bucket][sample as usize] += 1;
                }
            }
            prop_assert!(seen.iter().flatten().all(|&n| n == epochs));
        }
    }
}
