//! Which samples make up step k.
//!
//! Each bucket of n rows is an endless stream perm(0) ‖ perm(1) ‖ …, perm(e) keyed by (seed, bucket, e), cut into batches of
//! B. Epoch e owns the bucket's batches ⌊e·n/B⌋ … ⌊(e+1)·n/B⌋ − 1, and the batches of all buckets in an epoch are shuffled
//! by (seed, epoch). So every image is seen once in each pass over its bucket, none is ever lost, a bucket smaller than a
//! batch comes up every few epochs, and the position after any step is computed, not replayed.

use std::collections::HashMap;

use models::random::Stream;

/// The samples of one step: all from one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepSamples {
    pub epoch: u64,
    /// Position among the index's buckets.
    pub bucket: usize,
    /// Positions within the bucket.
    pub samples: Vec<u64>,
}

/// The order of a whole training.
#[derive(Debug)]
pub struct DataOrder {
    seed: u64,
    batch: u64,
    rows: Vec<u64>,
    /// Shuffled batches (bucket, number of the batch in its bucket) of the epoch last asked for.
    epoch: Option<(u64, Vec<(usize, u64)>)>,
    permutations: HashMap<(usize, u64), Vec<u64>>,
}

impl DataOrder {
    /// `rows` of each bucket, and the batch size. `None` when there are no rows at all.
    pub fn new(seed: u64, rows: Vec<u64>, batch: u64) -> Option<Self> {
        (rows.iter().any(|&n| n > 0) && batch > 0).then_some(Self {
            seed,
            batch,
            rows,
            epoch: None,
            permutations: HashMap::new(),
        })
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
    pub fn samples(&mut self, step: u64) -> StepSamples {
        let epoch = self.epoch_of(step);
        if self.epoch.as_ref().is_none_or(|(e, _)| *e != epoch) {
            self.epoch = Some((epoch, self.shuffled(epoch)));
        }
        let position = step - self.steps_before(epoch);
        let (bucket, number) =
            self.epoch.as_ref().and_then(|(_, batches)| batches.get(position as usize)).copied().unwrap_or((0, 0));
        let rows = self.rows.get(bucket).copied().unwrap_or(1).max(1);
        let first = u128::from(number) * u128::from(self.batch);
        let samples = (0..self.batch)
            .map(|i| {
                let place = first + u128::from(i);
                let (pass, within) = ((place / u128::from(rows)) as u64, (place % u128::from(rows)) as usize);
                self.permutation(bucket, pass, rows).get(within).copied().unwrap_or(0)
            })
            .collect();
        StepSamples { epoch, bucket, samples }
    }

    fn shuffled(&self, epoch: u64) -> Vec<(usize, u64)> {
        let batches: Vec<(usize, u64)> = (0..self.rows.len())
            .flat_map(|bucket| {
                (self.batches_before(bucket, epoch)..self.batches_before(bucket, epoch + 1)).map(move |n| (bucket, n))
            })
            .collect();
        let order = Stream::new(self.seed, "order of batches", &[epoch]).permutation(batches.len() as u64);
        order.into_iter().filter_map(|i| batches.get(i as usize).copied()).collect()
    }

    fn permutation(&mut self, bucket: usize, pass: u64, rows: u64) -> &[u64] {
        // A batch touches one pass, or two at a boundary (more only in buckets smaller than a batch); older ones go.
        self.permutations.retain(|&(b, p), _| b != bucket || p + 1 >= pass);
        let seed = self.seed;
        self.permutations
            .entry((bucket, pass))
            .or_insert_with(|| Stream::new(seed, "order of samples", &[bucket as u64, pass]).permutation(rows))
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
            let Some(mut order) = DataOrder::new(seed, rows.clone(), batch) else {
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
                for sample in batch_of.samples {
                    seen[batch_of.bucket][sample as usize] += 1;
                }
            }
            prop_assert!(seen.iter().flatten().all(|&n| n == epochs));
        }

        /// A run that starts at step k sees what a run from the beginning sees there.
        #[test]
        fn any_step_is_computed_alone(rows in prop::collection::vec(1u64..40, 1..5), batch in 1u64..12, step in 0u64..300) {
            let mut from_start = DataOrder::new(5, rows.clone(), batch).unwrap();
            let replayed = (0..=step).map(|k| from_start.samples(k)).last();
            let computed = DataOrder::new(5, rows, batch).unwrap().samples(step);
            prop_assert_eq!(replayed, Some(computed));
        }
    }
}
