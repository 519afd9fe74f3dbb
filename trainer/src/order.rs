//! Which samples make up step k.
//!
//! Each bucket of n rows is an endless stream perm(0) ‖ perm(1) ‖ …, perm(e) keyed by (seed, bucket, e), cut into batches of
//! B. Epoch e owns the bucket's batches ⌊e·n/B⌋ … ⌊(e+1)·n/B⌋ − 1, and the batches of all buckets in an epoch are shuffled
//! by (seed, epoch). So every image is seen once in each pass over its bucket, none is ever lost, a bucket smaller than a
//! batch comes up every few epochs, and the position after any step is computed, not replayed.
//!
//! Rows that are held out for validation are drawn once, in proportion from all buckets, by (seed, bucket); what is said above is of the
//! others.

use models::random::Permutation;

/// What samples are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    #[default]
    Training,
    /// The rows that are held out, each once.
    Validation,
}

/// The samples of one step: all from one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepSamples {
    pub part: Part,
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
    /// Of each bucket, those to train on.
    rows: Vec<u64>,
    /// Of each bucket, those that are held out.
    held_out: Vec<u64>,
}

impl DataOrder {
    /// `rows` of each bucket, how many of them all are held out for validation, and the batch size. `None` when there is nothing to
    /// train on.
    pub fn new(seed: u64, rows: Vec<u64>, held_out: u64, batch: u64) -> Option<Self> {
        let total: u64 = rows.iter().sum();
        if total <= held_out || batch == 0 {
            return None;
        }
        let held_out = in_proportion(&rows, held_out);
        let rows = rows.into_iter().zip(&held_out).map(|(rows, held)| rows - held).collect();
        Some(Self { seed, batch, rows, held_out })
    }

    /// The row of a bucket that is its `n`th in one of the parts.
    fn row(&self, part: Part, bucket: usize, n: u64) -> u64 {
        let of = |rows: &[u64]| rows.get(bucket).copied().unwrap_or(0);
        let held = of(&self.held_out);
        if held == 0 {
            return n;
        }
        let drawn = Permutation::new(self.seed, "held out", &[bucket as u64], held + of(&self.rows));
        drawn.get(if part == Part::Training { held + n } else { n })
    }

    /// How many batches the rows that are held out make.
    pub fn validation_batches(&self) -> u64 {
        self.held_out.iter().map(|held| held.div_ceil(self.batch)).sum()
    }

    /// Batch `number` of the rows that are held out; those of a bucket follow each other, and its last one may be small.
    pub fn validation(&self, number: u64) -> Option<StepSamples> {
        let mut left = number;
        for (bucket, &held) in self.held_out.iter().enumerate() {
            let batches = held.div_ceil(self.batch);
            if left < batches {
                let place = left * self.batch;
                let places = place..held.min(place + self.batch);
                let samples = places.map(|n| self.row(Part::Validation, bucket, n)).collect();
                return Some(StepSamples { part: Part::Validation, epoch: 0, bucket, samples, place });
            }
            left -= batches;
        }
        None
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
                self.row(Part::Training, bucket, current.map_or(0, |(_, permutation)| permutation.get(within)))
            })
            .collect();
        StepSamples { part: Part::Training, epoch, bucket, samples, place: first as u64 }
    }

    /// The sample at one place of a bucket's stream; those that are held out repeat in their order.
    pub fn sample_at(&self, part: Part, bucket: usize, place: u64) -> u64 {
        let rows = self.rows_of(part, bucket).max(1);
        let n = match part {
            Part::Training => {
                let counters = [bucket as u64, place / rows];
                Permutation::new(self.seed, "order of samples", &counters, rows).get(place % rows)
            }
            Part::Validation => place % rows,
        };
        self.row(part, bucket, n)
    }

    /// Rows of a bucket that belong to a part.
    pub fn rows_of(&self, part: Part, bucket: usize) -> u64 {
        let rows = if part == Part::Training { &self.rows } else { &self.held_out };
        rows.get(bucket).copied().unwrap_or(0)
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

/// Divides `count`, at most their sum, over `rows` in proportion: each has its whole share, and what is left goes to the largest remainders.
fn in_proportion(rows: &[u64], count: u64) -> Vec<u64> {
    let total = rows.iter().map(|&rows| u128::from(rows)).sum::<u128>().max(1);
    let share = |rows: u64| u128::from(rows) * u128::from(count);
    let mut divided: Vec<u64> = rows.iter().map(|&rows| (share(rows) / total) as u64).collect();
    let left = count.saturating_sub(divided.iter().sum());
    let mut by_remainder: Vec<usize> = (0..rows.len()).collect();
    by_remainder.sort_by_key(|&bucket| std::cmp::Reverse(share(rows[bucket]) % total));
    for bucket in by_remainder.into_iter().take(left as usize) {
        divided[bucket] += 1;
    }
    divided
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// After any number of whole passes each sample that is not held out was seen that often, or will be within the batch that is
        /// due; the others are in no step, and once in the validation.
        #[test]
        fn every_sample_is_seen_once_a_pass_or_held_out(
            rows in prop::collection::vec(0u64..40, 1..5), batch in 1u64..12, seed in 0u64..9, held_out in 0u64..30,
        ) {
            let total: u64 = rows.iter().sum();
            let Some(order) = DataOrder::new(seed, rows.clone(), held_out, batch) else {
                prop_assert!(total <= held_out);
                return Ok(());
            };
            let epochs = batch * 2; // after a multiple of the batch size of epochs, no bucket has anything left over
            let steps = order.steps_before(epochs);
            prop_assert_eq!(steps * batch, epochs * (total - held_out));
            let mut seen: Vec<Vec<u64>> = rows.iter().map(|&n| vec![0; n as usize]).collect();
            let mut last_epoch = 0;
            for step in 0..steps {
                let batch_of = order.samples(step);
                prop_assert_eq!(batch_of.samples.len() as u64, batch);
                prop_assert!(batch_of.epoch >= last_epoch);
                last_epoch = batch_of.epoch;
                for (place, sample) in (batch_of.place..).zip(batch_of.samples) {
                    prop_assert_eq!(order.sample_at(Part::Training, batch_of.bucket, place), sample);
                    seen[batch_of.bucket][sample as usize] += 1;
                }
            }
            let mut tried = 0;
            for number in 0..order.validation_batches() {
                let batch_of = order.validation(number).unwrap();
                prop_assert!((1..=batch).contains(&(batch_of.samples.len() as u64)));
                for (place, sample) in (batch_of.place..).zip(batch_of.samples) {
                    prop_assert_eq!(order.sample_at(Part::Validation, batch_of.bucket, place), sample);
                    let times = &mut seen[batch_of.bucket][sample as usize];
                    prop_assert_eq!(*times, 0);
                    *times = epochs;
                    tried += 1;
                }
            }
            prop_assert_eq!((tried, order.validation(order.validation_batches())), (held_out, None));
            prop_assert!(seen.iter().flatten().all(|&n| n == epochs));
            // In proportion: no bucket gives more than one beyond its share.
            for (bucket, &of) in rows.iter().enumerate() {
                let share = (of * held_out) as f64 / total as f64;
                prop_assert!((order.rows_of(Part::Validation, bucket) as f64 - share).abs() < 1.0);
            }
        }
    }
}
