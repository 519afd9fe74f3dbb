//! Times and sums between two lines of metrics.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use shards::event::Event;
use tch::{Kind, Tensor};

use crate::TrainError;
use crate::collective::Collective;
use crate::cuda::used_memory;
use crate::feed::Fed;
use crate::learner::{Learner, Update};
use crate::metrics::{Record, TIME_BINS};
use crate::train::Job;

/// Where the number of replaced images stands among what is summed over ranks.
const REPLACED: usize = 2 + 2 * TIME_BINS;

/// What was done since the line before.
pub(crate) struct Meter<'a> {
    job: &'a Job<'a>,
    since: Instant,
    waiting: Duration,
    /// FLOPs of the model, of this rank, backward passes included.
    flops: f64,
    /// Images of this rank that were replaced.
    replaced: u64,
    /// What is to be read from the device, step by step.
    updates: Vec<(u64, Update)>,
}

impl<'a> Meter<'a> {
    /// `shown` where this rank is to show how far it is.
    pub(crate) fn new(job: &'a Job<'a>, start: u64, shown: bool) -> Self {
        let meter = Self::empty(job);
        if shown {
            meter.progress(start, String::new());
        }
        meter
    }

    fn empty(job: &'a Job<'a>) -> Self {
        Self { job, since: Instant::now(), waiting: Duration::ZERO, flops: 0.0, replaced: 0, updates: Vec::new() }
    }

    /// Notes how a batch came.
    pub(crate) fn fed(&mut self, fed: &Fed) {
        self.waiting += fed.waited;
        self.replaced += fed.replaced.len() as u64;
    }

    /// Does what is no part of the training, and does not count its time.
    pub(crate) fn leave_out<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = work();
        self.since += started.elapsed();
        done
    }

    /// Notes the update of `step`, counted from 0, which took so many FLOPs.
    pub(crate) fn updated(&mut self, step: u64, update: Update, flops: f64) {
        self.flops += flops;
        self.updates.push((step, update));
    }

    /// Reads what the updates since the line before came to, of all ranks, and begins anew. Waits for the device. A loss or
    /// a gradient that is no number is an error.
    pub(crate) fn record(
        &mut self,
        done: u64,
        epoch: u64,
        learning_rate: f64,
        learner: &mut Learner,
        ranks: &mut dyn Collective,
    ) -> Result<Record, TrainError> {
        let Self { job, since, waiting, flops, replaced, updates } = std::mem::replace(self, Self::empty(self.job));
        // Losses, samples, then both of each bin of times, then images replaced; the norm is the same on all ranks.
        let mut numbers = [0.0; 3 + 2 * TIME_BINS];
        numbers[REPLACED] = replaced as f64;
        let mut norm = 0.0;
        for (step, Update { losses, times, gradient_norm }) in &updates {
            let read = |tensor: &Tensor| Vec::<f64>::try_from(tensor.to_kind(Kind::Double));
            let unread = |source| models::ModelError::Torch { operation: "reading the loss", source };
            for (loss, time) in read(losses).map_err(unread)?.into_iter().zip(read(times).map_err(unread)?) {
                if !loss.is_finite() {
                    return Err(TrainError::NotFinite { step: *step, loss });
                }
                let bin = ((time * TIME_BINS as f64) as usize).min(TIME_BINS - 1);
                for (place, value) in [(0, loss), (1, 1.0), (2 + bin, loss), (2 + TIME_BINS + bin, 1.0)] {
                    numbers[place] += value;
                }
            }
            // Losses are those before the update: with such a gradient, what it left is no model to save.
            let of_step = gradient_norm.double_value(&[]);
            if !of_step.is_finite() {
                return Err(TrainError::GradientNotFinite { step: *step, norm: of_step });
            }
            norm += of_step;
        }
        // Where this line's time ends, the next one's begins: what was waited for above is of this one alone.
        self.since = Instant::now();
        let seconds = self.since.duration_since(since).as_secs_f64().max(1e-9);
        ranks.sum_numbers(&mut numbers)?;
        let of_bin = |bin: usize| {
            let (sum, count) = (numbers[2 + bin], numbers[2 + TIME_BINS + bin]);
            (count > 0.0).then(|| sum / count)
        };
        let count = updates.len() as f64;
        let teraflops = flops / seconds / 1e12;
        let waiting = waiting.as_secs_f64();
        Ok(Record {
            step: done,
            epoch,
            loss: numbers[0] / numbers[1].max(1.0),
            loss_by_time: (0..TIME_BINS).map(of_bin).collect(),
            gradient_norm: norm / count.max(1.0),
            learning_rate,
            images_per_second: count * job.config.batch_size as f64 / seconds,
            waiting: waiting / seconds,
            teraflops,
            utilisation: job.operations.peak_teraflops.map(|peak| teraflops / peak),
            time: learner.split.shares(seconds, waiting),
            memory: used_memory(learner.device()),
            replaced: numbers[REPLACED] as u64,
            validation: None,
        })
    }

    /// Whether all losses so far are numbers, where that is known without waiting: on the CPU.
    pub(crate) fn check(&self) -> Result<(), TrainError> {
        let Some((step, update)) = self.updates.last().filter(|(_, update)| !update.losses.device().is_cuda()) else {
            return Ok(());
        };
        let loss = update.losses.mean(Kind::Float).double_value(&[]);
        if loss.is_finite() { Ok(()) } else { Err(TrainError::NotFinite { step: *step, loss }) }
    }

    /// Shows how far it is; `replaced` counts the bad images of the whole training.
    pub(crate) fn report(&self, last: &Record, replaced: u64) {
        let mut note = format!("loss {:.4}, {:.0} images/s", last.loss, last.images_per_second);
        if let Some(share) = last.utilisation {
            let _ = write!(note, ", {:.0} % of the peak", share * 100.0);
        }
        if let Some(validated) = &last.validation {
            let _ = write!(note, ", validation loss {:.4}", validated.loss);
        }
        if replaced > 0 {
            let _ = write!(note, ", {replaced} bad images replaced");
        }
        self.progress(last.step, note);
    }

    fn progress(&self, done: u64, note: String) {
        self.job.events.send(Event::Progress {
            stage: self.job.stage.to_owned(),
            unit: "steps",
            done,
            total: Some(self.job.config.steps),
            outcomes: BTreeMap::new(),
            note,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use models::mmdit::Mmdit;
    use shards::event::EventSink;
    use tch::Device;

    use super::*;
    use crate::collective::Alone;
    use crate::config::{TrainConfig, TrainOperations};

    #[test]
    fn the_time_of_a_line_ends_where_that_of_the_next_one_begins() {
        let config = TrainConfig { width: 32, heads: 2, blocks: 1, batch_size: 4, ..TrainConfig::default() };
        let model = config.model().unwrap();
        let parameters = Mmdit::initialise(&model, 0, Device::Cpu);
        let mut learner = Learner::new(&config, &model, parameters, None).unwrap();
        let job = Job {
            config: &config,
            operations: &TrainOperations::default(),
            index: Path::new("index"),
            workdir: None,
            folder: Path::new("run"),
            stage: "train",
            events: &EventSink::silent(),
            cancelled: &|| false,
            again: false,
        };
        let mut meter = Meter::new(&job, 0, false);
        let began = meter.since;
        for step in 0..3 {
            let numbers = Tensor::from_slice(&[0.5f32; 4]);
            let update = Update { losses: numbers.copy(), times: numbers, gradient_norm: Tensor::from(1.0f32) };
            meter.updated(step, update, 1.0);
        }
        let record = meter.record(3, 0, 0.1, &mut learner, &mut Alone).unwrap();
        let seconds = 3.0 * 4.0 / record.images_per_second;
        let between = meter.since.duration_since(began).as_secs_f64();
        assert!((seconds / between - 1.0).abs() < 1e-9, "{seconds} {between}");
    }
}
