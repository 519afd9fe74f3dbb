//! Rectified flow: straight paths from data to noise, and the velocity along them.

use models::mmdit::Prediction;
use models::random::Stream;
use models::text::TextCondition;
use rayon::prelude::*;
use shards::bucket::BucketSize;
use tch::{Device, Kind, Tensor};

use crate::config::{TimeSampling, TrainConfig};
use crate::encode::EncodedBatch;

/// Scale of [`TimeSampling::Mode`]: the paper's choice.
const MODE_SCALE: f64 = 1.29;
/// Share of the text tokens that are taken out for the model to fill in.
const TEXT_TAKEN: f64 = 0.25;

/// What a batch draws at random: keyed by (seed, step, sample), so a resumed run draws the same, and any number of ranks.
#[derive(Debug)]
pub struct Draws {
    /// (batch), in 0..1.
    pub time: Tensor,
    /// The latents' shape, standard normal.
    pub noise: Tensor,
    /// Of each stream of tokens, whether each caption's are kept.
    keep_tokens: Vec<Vec<bool>>,
    keep_pooled: Vec<bool>,
}

impl Draws {
    /// For a batch or a rank's part of one. All of it lies in the CPU's memory.
    pub fn new(config: &TrainConfig, batch: &EncodedBatch) -> Self {
        let shape = batch.latents.size();
        let samples = shape.first().copied().unwrap_or(0).unsigned_abs();
        let per_sample = shape.get(1..).unwrap_or_default();
        let (seed, step, first) = (config.seed, batch.step, batch.first);
        let numbers = first..first + samples;
        let stream = |purpose, sample| Stream::new(seed, purpose, &[step, sample]);
        let shift = shift(config, batch.bucket);
        let time = |sample| {
            let t = time(config.time_sampling, &mut stream("time", sample));
            (shift * t / (1.0 + (shift - 1.0) * t)) as f32
        };
        let times: Vec<f32> = numbers.clone().map(time).collect();
        // One sample's noise after the other, on all threads: at full size there are millions of them in a step.
        let elements = per_sample.iter().product::<i64>().max(0) as usize;
        let mut noise = vec![0f32; elements * samples as usize];
        let parts = noise.par_chunks_mut(elements.max(1)).enumerate();
        parts.for_each(|(i, part)| stream("noise", first + i as u64).fill_normal(part));
        let keep = |purpose, share| move |sample| share == 0.0 || stream(purpose, sample).uniform() >= share;
        let whole: Vec<bool> = numbers.clone().map(keep("caption", config.null_caption)).collect();
        let part =
            |purpose, share| numbers.clone().map(keep(purpose, share)).zip(&whole).map(|(a, b)| a && *b).collect();
        let streams = batch.condition.tokens.len();
        Self {
            time: Tensor::from_slice(&times),
            noise: Tensor::from_slice(&noise).view(shape.as_slice()),
            keep_tokens: (0..streams)
                .map(|n| part(["drop first tokens", "drop second tokens"][n.min(1)], config.null_tokens))
                .collect(),
            keep_pooled: part("drop pooled", config.null_pooled),
        }
    }
}

fn time(sampling: TimeSampling, stream: &mut Stream) -> f64 {
    match sampling {
        TimeSampling::LogitNormal => 1.0 / (1.0 + (-stream.normal()).exp()),
        TimeSampling::Uniform => stream.uniform(),
        TimeSampling::Mode => {
            let u = stream.uniform();
            1.0 - u - MODE_SCALE * ((std::f64::consts::FRAC_PI_2 * u).cos().powi(2) - 1.0 + u)
        }
    }
}

/// The shift of times for images of one size.
fn shift(config: &TrainConfig, bucket: BucketSize) -> f64 {
    let side = f64::from(config.time_shift_side);
    let pixels = f64::from(bucket.width) * f64::from(bucket.height);
    if side == 0.0 || pixels == 0.0 { config.time_shift } else { config.time_shift * pixels.sqrt() / side }
}

/// The tensor on `device`. The CPU does not wait for the copy, nor so for the work that the device has before it.
fn upload(tensor: &Tensor, device: Device) -> Tensor {
    if device.is_cuda() && tensor.device() == Device::Cpu {
        // Not by `pin_memory`, which warns of the device that this binding must give it.
        return tensor.internal_pin_memory(device).to_device_(device, tensor.kind(), true, false);
    }
    tensor.to_device(device)
}

/// A batch as the model meets it, and what it is to answer. All of it on the model's device.
#[derive(Debug)]
pub struct Task {
    /// `(1 − t)·x_0 + t·ε`, (batch, channels, height, width).
    pub noisy: Tensor,
    /// (batch)
    pub time: Tensor,
    pub condition: TextCondition,
    /// `ε − x_0`.
    velocity: Tensor,
    text: Option<TextTask>,
}

/// The text before some of its tokens were taken out.
#[derive(Debug)]
struct TextTask {
    /// (batch, tokens of all streams, features)
    tokens: Tensor,
    /// (batch, tokens of all streams): 1 where one was taken out.
    taken: Tensor,
}

impl Task {
    pub fn new(config: &TrainConfig, batch: &EncodedBatch, draws: &Draws, device: Device) -> Self {
        let condition = batch.condition.to_device(device).keep_parts(&draws.keep_tokens, &draws.keep_pooled);
        let [latents, noise, time] = [&batch.latents, &draws.noise, &draws.time].map(|tensor| upload(tensor, device));
        let task = Self::of(&latents, condition, &time, &noise);
        if config.text_loss_weight > 0.0 { task.with_text_taken(config, batch) } else { task }
    }

    /// Without a text to fill in.
    pub fn of(latents: &Tensor, condition: TextCondition, time: &Tensor, noise: &Tensor) -> Self {
        let t = time.view([-1, 1, 1, 1]);
        let noisy = latents * (1.0 - &t) + noise * &t;
        Self { noisy, time: time.shallow_clone(), condition, velocity: noise - latents, text: None }
    }

    /// Takes a quarter of the text tokens out that are not null, as padding is, or a dropped caption.
    fn with_text_taken(mut self, config: &TrainConfig, batch: &EncodedBatch) -> Self {
        let tokens = Tensor::cat(&self.condition.tokens, 1);
        let size = tokens.size();
        let (samples, length) = (size[0], size[1]);
        let mut chosen = Vec::with_capacity((samples * length) as usize);
        for sample in batch.first..batch.first + samples as u64 {
            let mut stream = Stream::new(config.seed, "take text", &[batch.step, sample]);
            chosen.extend((0..length).map(|_| f32::from(u8::from(stream.uniform() < TEXT_TAKEN))));
        }
        let chosen = upload(&Tensor::from_slice(&chosen).view([samples, length]), tokens.device());
        let taken = chosen * tokens.not_equal(0.0).any_dim(-1, false).to_kind(Kind::Float);
        let left: Tensor = &tokens * (1.0 - taken.unsqueeze(-1));
        let mut start = 0;
        for stream in &mut self.condition.tokens {
            let length = stream.size()[1];
            *stream = left.narrow(1, start, length);
            start += length;
        }
        self.text = Some(TextTask { tokens, taken });
        self
    }

    pub fn samples(&self) -> i64 {
        self.time.size().first().copied().unwrap_or(0)
    }

    /// The samples `start..start + length`.
    #[must_use]
    pub fn narrow(&self, start: i64, length: i64) -> Self {
        let part = |tensor: &Tensor| tensor.narrow(0, start, length);
        let text = self.text.as_ref();
        Self {
            noisy: part(&self.noisy),
            time: part(&self.time),
            condition: self.condition.narrow(start, length),
            velocity: part(&self.velocity),
            text: text.map(|text| TextTask { tokens: part(&text.tokens), taken: part(&text.taken) }),
        }
    }

    /// The loss of each sample, (batch), float32: `mean (v(x_t, t, c) − (ε − x_0))²`, and where text was taken out, `text_weight` times
    /// the mean squared error of those of its tokens. (A mean over each sample's own tokens, so that it does not matter how a batch is
    /// divided.)
    pub fn losses(&self, prediction: &Prediction, text_weight: f64) -> Tensor {
        let error = prediction.velocity.to_kind(Kind::Float) - &self.velocity;
        let losses = error.square().mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float);
        let (Some(text), Some(task)) = (&prediction.text, &self.text) else { return losses };
        let error =
            (text.to_kind(Kind::Float) - &task.tokens).square().mean_dim([-1i64].as_slice(), false, Kind::Float);
        let count = task.taken.sum_dim_intlist([1i64].as_slice(), false, Kind::Float).clamp_min(1.0);
        let error = (error * &task.taken).sum_dim_intlist([1i64].as_slice(), false, Kind::Float) / count;
        losses + error * text_weight
    }
}
