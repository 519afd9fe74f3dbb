//! What an update changes, and how.

use models::mmdit::{Mmdit, MmditConfig};
use models::parameters::ParameterSet;
use tch::{Device, Tensor};

use crate::TrainError;
use crate::backward::{Gradients, Pass, backward};
use crate::collective::Collective;
use crate::config::{TrainConfig, TrainOperations};
use crate::objective::Task;
use crate::optimizer::Optimizer;
use crate::schedule::learning_rate;
use crate::split::{Phase, Split};

/// Model, average and moments.
#[derive(Debug)]
pub struct Learner {
    pub parameters: ParameterSet,
    /// Made from `parameters` in the type that the model computes in.
    computing: ParameterSet,
    /// On the first rank only.
    pub ema: Option<ParameterSet>,
    pub optimizer: Optimizer,
    model: Mmdit,
    gradients: Gradients,
    device: Device,
    pub(crate) split: Split,
}

/// What came of an update. The tensors lie on the device, and may still be in the making.
#[derive(Debug)]
pub struct Update {
    /// Of each of this rank's samples, (samples), float32.
    pub losses: Tensor,
    /// Their times, (samples).
    pub times: Tensor,
    /// Of the gradient before clipping, one number.
    pub gradient_norm: Tensor,
}

impl Learner {
    /// Over parameters of `model`, on their device.
    pub fn new(
        config: &TrainConfig,
        model: &MmditConfig,
        parameters: ParameterSet,
        ema: Option<ParameterSet>,
    ) -> Result<Self, TrainError> {
        let device = parameters.flat().device();
        let computing = parameters.computing_in(config.precision.kind());
        let optimizer = Optimizer::new(config, &parameters)?;
        let model = Mmdit::over(model, &computing);
        let gradients = Gradients::new(&model, &parameters);
        Ok(Self { parameters, computing, ema, optimizer, model, gradients, device, split: Split::new(device) })
    }

    /// Of the last update, before clipping.
    pub fn gradients(&self) -> &Gradients {
        &self.gradients
    }

    pub fn device(&self) -> Device {
        self.device
    }

    /// One update, by all ranks together; `step` counts from 0, and `task` holds this rank's samples of its batch.
    pub fn update(
        &mut self,
        config: &TrainConfig,
        operations: &TrainOperations,
        step: u64,
        task: &Task,
        ranks: &mut dyn Collective,
    ) -> Result<Update, TrainError> {
        let losses = self.differentiate(config, operations, task, ranks)?;
        let gradient_norm = self.apply(config, step)?;
        Ok(Update { losses, times: task.time.shallow_clone(), gradient_norm })
    }

    /// The first half of an update: the gradient, of all ranks together. Returns the loss of each of this rank's samples.
    pub fn differentiate(
        &mut self,
        config: &TrainConfig,
        operations: &TrainOperations,
        task: &Task,
        ranks: &mut dyn Collective,
    ) -> Result<Tensor, TrainError> {
        let samples = task.samples();
        let at_once =
            operations.micro_batch.and_then(|n| i64::try_from(n).ok()).unwrap_or(samples).clamp(1, samples.max(1));
        let mut losses = Vec::new();
        for start in (0..samples).step_by(at_once as usize) {
            let length = at_once.min(samples - start);
            let is_last = start + length == samples;
            let pass = Pass {
                recompute: operations.recompute_blocks as usize,
                scale: 1.0 / config.batch_size as f64,
                text_weight: config.text_loss_weight,
                add: start > 0,
            };
            let part = task.narrow(start, length);
            let mut ready = |gradient| if is_last { ranks.start_sum(gradient) } else { Ok(()) };
            let Self { model, computing, gradients, split, .. } = self;
            losses.push(backward(model, computing, &part, pass, gradients, split, &mut ready)?);
        }
        self.split.enter(Phase::Reduce);
        ranks.finish()?;
        Ok(Tensor::cat(&losses, 0))
    }

    /// The second half: the parameters' change by the gradient. Returns its norm before clipping.
    pub fn apply(&mut self, config: &TrainConfig, step: u64) -> Result<Tensor, TrainError> {
        self.split.enter(Phase::Update);
        let rate = learning_rate(config, step);
        let Self { parameters, computing, ema, optimizer, gradients, .. } = self;
        optimizer.step(step, rate, gradients.flat(), parameters, computing, ema.as_ref())
    }

    /// The loss of each sample of a task, (samples), float32, without learning from it.
    pub fn losses(&self, task: &Task) -> Result<Tensor, TrainError> {
        let Task { noisy, time, condition, .. } = task;
        tch::no_grad(|| Ok(task.losses(&self.model.forward(noisy, time, condition)?, 0.0)))
    }

    /// Gives all ranks what the first one has, and the number of updates that it has made, which is returned.
    pub fn share(&mut self, updates: u64, ranks: &mut dyn Collective) -> Result<u64, TrainError> {
        ranks.broadcast(self.parameters.flat())?;
        for moment in self.optimizer.moments() {
            ranks.broadcast(moment)?;
        }
        self.computing.renew(&self.parameters);
        let mut updates = [if ranks.rank() == 0 { updates as f64 } else { 0.0 }];
        ranks.sum_numbers(&mut updates)?;
        Ok(updates[0] as u64)
    }
}
