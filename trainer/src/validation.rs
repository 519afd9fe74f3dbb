//! The loss of images that are held out: at fixed times and with fixed noise, so that it moves only as the model does.

use models::random::Stream;
use tch::{Device, Kind, Tensor};

use crate::TrainError;
use crate::collective::Collective;
use crate::config::{TrainConfig, TrainOperations};
use crate::encode::EncodedBatch;
use crate::feed::Fed;
use crate::learner::Learner;
use crate::metrics::{TIME_BINS, Validated};
use crate::objective::Task;

/// This rank's part of the images that are held out, encoded, in the CPU's memory.
pub(crate) struct Validation {
    batches: Vec<EncodedBatch>,
}

impl Validation {
    pub(crate) fn of(batches: Vec<Fed>) -> Self {
        let batches = batches.into_iter().map(|fed| {
            let EncodedBatch { latents, condition, .. } = fed.batch;
            let (latents, condition) = (latents.to_device(Device::Cpu), condition.to_device(Device::Cpu));
            EncodedBatch { latents, condition, ..fed.batch }
        });
        Self { batches: batches.collect() }
    }

    /// The loss of all ranks' images at the times 0, ⅛, …, ⅞, by the weights as trained. `step` updates were done.
    pub(crate) fn run(
        &self,
        config: &TrainConfig,
        operations: &TrainOperations,
        step: u64,
        learner: &Learner,
        ranks: &mut dyn Collective,
    ) -> Result<Validated, TrainError> {
        let at_once = operations.micro_batch.and_then(|n| i64::try_from(n).ok()).unwrap_or(i64::MAX).max(1);
        // Of each time the sum of the losses; then the number of images.
        let mut sums = [0.0; TIME_BINS + 1];
        for batch in &self.batches {
            let samples = batch.latents.size().first().copied().unwrap_or(0);
            for start in (0..samples).step_by(at_once.min(samples).max(1) as usize) {
                let length = at_once.min(samples - start);
                let device = learner.device();
                let latents = batch.latents.narrow(0, start, length).to_device(device);
                let condition = batch.condition.narrow(start, length).to_device(device);
                let noise = noise(config.seed, batch, start, length).to_device(device);
                for (place, sum) in sums.iter_mut().take(TIME_BINS).enumerate() {
                    let time = Tensor::full([length], place as f64 / TIME_BINS as f64, (Kind::Float, device));
                    let task = Task::of(&latents, condition.to_device(device), &time, &noise);
                    *sum += learner.losses(&task)?.sum(Kind::Double).double_value(&[]);
                }
                sums[TIME_BINS] += length as f64;
            }
        }
        ranks.sum_numbers(&mut sums)?;
        let at: Vec<f64> = sums[..TIME_BINS].iter().map(|sum| sum / sums[TIME_BINS].max(1.0)).collect();
        if let Some(&loss) = at.iter().find(|loss| !loss.is_finite()) {
            return Err(TrainError::NotFinite { step: step.saturating_sub(1), loss });
        }
        Ok(Validated { loss: at.iter().sum::<f64>() / TIME_BINS as f64, at })
    }
}

/// Of samples of a batch, keyed by their places in the batch of all ranks.
fn noise(seed: u64, batch: &EncodedBatch, start: i64, length: i64) -> Tensor {
    let shape = batch.latents.size();
    let of = |sample: i64| {
        let counters = [batch.step, batch.first + sample as u64];
        Stream::new(seed, "validation noise", &counters).normal_tensor(shape.get(1..).unwrap_or_default(), Device::Cpu)
    };
    Tensor::stack(&(start..start + length).map(of).collect::<Vec<_>>(), 0)
}
