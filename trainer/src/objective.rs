//! Rectified flow: straight paths from data to noise, and the velocity along them.

use models::ModelError;
use models::mmdit::Mmdit;
use models::random::Stream;
use models::text::TextCondition;
use tch::{Device, Kind, Tensor};

use crate::config::{TimeSampling, TrainConfig};

/// What one batch draws at random: keyed by (seed, step, sample), so a resumed run draws the same.
#[derive(Debug)]
pub struct Draws {
    /// (batch), in 0..1.
    pub time: Tensor,
    /// The latents' shape, standard normal.
    pub noise: Tensor,
    /// Whether each caption is kept.
    pub keep_caption: Vec<bool>,
}

impl Draws {
    /// For latents of `shape` (batch, channels, height, width) at step `step`.
    pub fn new(config: &TrainConfig, step: u64, shape: &[i64], device: Device) -> Self {
        let batch = shape.first().copied().unwrap_or(0);
        let per_sample = shape.get(1..).unwrap_or_default();
        let mut times = Vec::new();
        let mut noise = Vec::new();
        let mut keep_caption = Vec::new();
        for sample in 0..batch as u64 {
            let stream = |purpose| Stream::new(config.seed, purpose, &[step, sample]);
            let time = match config.time_sampling {
                TimeSampling::LogitNormal => 1.0 / (1.0 + (-stream("time").normal()).exp()),
                TimeSampling::Uniform => stream("time").uniform(),
            };
            times.push((config.time_shift * time / (1.0 + (config.time_shift - 1.0) * time)) as f32);
            noise.push(stream("noise").normal_tensor(per_sample, device));
            keep_caption.push(stream("caption").uniform() >= config.null_caption);
        }
        Self { time: Tensor::from_slice(&times).to_device(device), noise: Tensor::stack(&noise, 0), keep_caption }
    }
}

/// The loss of a batch: `mean (v(x_t, t, c) − (ε − x_0))²` with `x_t = (1 − t)·x_0 + t·ε`.
pub fn loss(
    model: &Mmdit,
    latents: &Tensor,
    condition: &TextCondition,
    time: &Tensor,
    noise: &Tensor,
) -> Result<Tensor, ModelError> {
    let t = time.view([-1, 1, 1, 1]);
    let noisy = latents * (1.0 - &t) + noise * &t;
    let velocity = model.forward(&noisy, time, condition)?.velocity;
    Ok(velocity.mse_loss(&(noise - latents), tch::Reduction::Mean).to_kind(Kind::Float))
}
