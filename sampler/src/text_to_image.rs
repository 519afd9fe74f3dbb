//! A loaded checkpoint that answers prompts.

use std::path::Path;

use image::RgbImage;
use models::checkpoint::{self, Checkpoint, CheckpointState};
use models::latents::{LatentCodec, LatentShape};
use models::mmdit::Mmdit;
use models::random::Stream;
use models::text::{TextCondition, TextEncoder};
use tch::{Device, Tensor};

use crate::SampleError;
use crate::guidance::Guided;
use crate::pictures;
use crate::solver::{self, Solver};

/// A picture larger than this is a slip of the finger: no model here was trained near it.
const MOST_PIXELS: u64 = 1 << 26;
const MOST_STEPS: u32 = 10_000;

/// What to make.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub prompts: &'a [String],
    /// Picture i is made from seed + i and from nothing else, so it does not depend on its neighbours.
    pub seed: u64,
    /// In pixels; multiples of the latent factor × patch size.
    pub width: u32,
    pub height: u32,
    pub steps: u32,
    pub guidance: f64,
    pub solver: Solver,
    /// See [`solver::times`]; 1 leaves times evenly spaced.
    pub shift: f64,
    /// Pictures made at a time.
    pub batch: usize,
}

/// Which of a checkpoint's parameters to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// The moving average: what one wants.
    Average,
    /// As trained.
    Raw,
}

/// Model, text encoder and latent codec of one checkpoint.
pub struct TextToImage {
    pub state: CheckpointState,
    model: Mmdit,
    text: Box<dyn TextEncoder>,
    latents: Box<dyn LatentCodec>,
    device: Device,
}

impl TextToImage {
    /// Loads a checkpoint, or a run's latest.
    pub fn load(path: &Path, weights: Weights) -> Result<Self, SampleError> {
        let device = Device::Cpu;
        let checkpoint = Checkpoint::open(path)?;
        let file = match weights {
            Weights::Average => checkpoint::EMA,
            Weights::Raw => checkpoint::MODEL,
        };
        let model = checkpoint.model(file, device)?;
        let state = checkpoint.state;
        Ok(Self { model, text: state.text.encoder(device)?, latents: state.latents.codec(device)?, state, device })
    }

    /// Makes one picture for each prompt. `progress` hears the share done, in 0..=1.
    pub fn generate(&self, request: &Request, mut progress: impl FnMut(f64)) -> Result<Vec<RgbImage>, SampleError> {
        let painter = Painter { model: &self.model, latents: self.latents.as_ref(), device: self.device };
        painter.check(request)?;
        let mut pictures = Vec::with_capacity(request.prompts.len());
        for prompts in request.prompts.chunks(request.batch.max(1)) {
            let first = pictures.len();
            let captions: Vec<&str> = prompts.iter().map(String::as_str).collect();
            let condition = self.text.encode(&captions)?;
            pictures.extend(painter.paint(request, first as u64, &condition, |step| {
                let done = first as f64 + prompts.len() as f64 * step as f64 / f64::from(request.steps);
                progress(done / request.prompts.len() as f64);
            })?);
        }
        Ok(pictures)
    }
}

/// A model and the codec of its latents: makes pictures of prompts that are encoded already.
pub struct Painter<'a> {
    pub model: &'a Mmdit,
    pub latents: &'a dyn LatentCodec,
    /// Where the model is.
    pub device: Device,
}

impl Painter<'_> {
    /// Makes the pictures of a request from number `first` on, one for each of the captions of `condition`, all at once. `step_done` hears
    /// the number of steps done.
    pub fn paint(
        &self,
        request: &Request,
        first: u64,
        condition: &TextCondition,
        step_done: impl FnMut(usize),
    ) -> Result<Vec<RgbImage>, SampleError> {
        let LatentShape { channels, factor } = self.latents.shape();
        let shape = [channels, i64::from(request.height) / factor, i64::from(request.width) / factor];
        let condition = condition.to_device(self.device);
        let count = condition.pooled.size().first().copied().unwrap_or(0).unsigned_abs();
        // Each picture has its own numbers, so that it does not depend on the batch it is made in.
        let normal = |purpose: &str, counters: &[u64]| {
            let one = |i| Stream::new(request.seed + first + i, purpose, counters).normal_tensor(&shape, self.device);
            Tensor::stack(&(0..count).map(one).collect::<Vec<_>>(), 0)
        };
        let guided = Guided::new(self.model, &condition, request.guidance);
        let latents = solver::follow(
            request.solver,
            &solver::times(request.steps, request.shift),
            &normal("sample", &[]),
            |x, t| guided.velocity(x, t),
            |step| normal("step", &[step as u64]),
            step_done,
        )?;
        Ok(pictures::from_tensor(&self.latents.decode(&latents)?)?)
    }

    /// Refuses what cannot be made, before anything is.
    pub fn check(&self, request: &Request) -> Result<(), SampleError> {
        let refuse = |what, value: String, expected: String| Err(SampleError::Request { what, value, expected });
        let multiple = self.latents.shape().factor * self.model.config().patch_size;
        for (what, side) in [("width", request.width), ("height", request.height)] {
            if side == 0 || i64::from(side) % multiple != 0 {
                return refuse(
                    what,
                    side.to_string(),
                    format!("a positive multiple of {multiple} pixels, for this checkpoint"),
                );
            }
        }
        if u64::from(request.width) * u64::from(request.height) > MOST_PIXELS {
            let size = format!("{}x{}", request.width, request.height);
            return refuse("size", size, format!("at most {MOST_PIXELS} pixels"));
        }
        if request.steps == 0 || request.steps > MOST_STEPS {
            return refuse("steps", request.steps.to_string(), format!("from 1 to {MOST_STEPS}"));
        }
        if !request.guidance.is_finite() || request.guidance < 0.0 {
            return refuse(
                "guidance",
                request.guidance.to_string(),
                "a number from 0 up; 1 is none, 4 is usual".into(),
            );
        }
        if !(request.shift.is_finite() && request.shift > 0.0) {
            return refuse("shift", request.shift.to_string(), "a positive number; 1 is none".into());
        }
        Ok(())
    }
}
