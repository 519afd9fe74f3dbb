//! A loaded checkpoint that answers prompts.

use std::cell::OnceCell;
use std::ops::ControlFlow;
use std::path::PathBuf;

use image::RgbImage;
use models::ModelError;
use models::checkpoint::CheckpointState;
use models::device::usual_kind;
use models::latents::{LatentCodec, LatentShape};
use models::mmdit::Mmdit;
use models::random::Stream;
use models::settings::folder_digest;
use models::text::{TextCondition, TextEncoder, Truncation};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::SampleError;
use crate::guidance::{Guidance, Guided};
use crate::opened::Opened;
use crate::pictures;
use crate::recipe::Recipe;
use crate::solver::{self, Solver};

/// A picture larger than this is a slip of the finger: no model here was trained near it.
pub const MOST_PIXELS: u64 = 1 << 26;
pub const MOST_STEPS: u32 = 10_000;

/// One picture to make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Picture {
    pub prompt: String,
    /// What guidance leads away from; empty for no prompt at all.
    #[serde(default)]
    pub negative_prompt: String,
    /// The picture follows from this and from nothing else, so it does not depend on its neighbours.
    pub seed: u64,
}

/// How pictures are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// In pixels; multiples of the latent factor × patch size.
    pub width: u32,
    pub height: u32,
    pub steps: u32,
    pub guidance: Guidance,
    pub sampler: Solver,
    /// See [`solver::times`]; 1 leaves times evenly spaced.
    pub shift: f64,
}

/// How far it is.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Pictures that are sampled, of all of the request.
    pub sampled: usize,
    pub pictures: usize,
    /// Pictures that are being sampled.
    pub batch: usize,
    /// Steps done of those.
    pub step: u32,
    pub steps: u32,
    /// Where the steps led: (batch, channels, height, width).
    pub latents: &'a Tensor,
}

impl Progress<'_> {
    /// The share done, in 0..=1.
    pub fn share(&self) -> f64 {
        let of_batch = self.batch as f64 * f64::from(self.step) / f64::from(self.steps.max(1));
        (self.sampled as f64 + of_batch) / self.pictures.max(1) as f64
    }
}

/// Hears of every step; `Break` ends the work with [`SampleError::Stopped`].
pub type Watch<'a> = dyn FnMut(&Progress) -> ControlFlow<()> + 'a;

/// For callers that watch nothing.
pub fn unwatched(_: &Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Loading {
    pub device: Device,
    /// What the model's layers compute in.
    pub kind: Kind,
    /// Holds only one of text encoders, model and autoencoder at a time, and loads each anew for every call.
    pub low_memory: bool,
}

/// A model that is loaded when it is first needed, and kept or not.
struct Part<T> {
    loaded: OnceCell<T>,
    keep: bool,
}

impl<T> Part<T> {
    fn new(keep: bool) -> Self {
        Self { loaded: OnceCell::new(), keep }
    }

    fn with<R>(
        &self,
        load: impl FnOnce() -> Result<T, ModelError>,
        work: impl FnOnce(&T) -> Result<R, SampleError>,
    ) -> Result<R, SampleError> {
        if let Some(loaded) = self.loaded.get() {
            return work(loaded);
        }
        let loaded = load()?;
        if self.keep { work(self.loaded.get_or_init(|| loaded)) } else { work(&loaded) }
    }
}

impl Loading {
    /// As is usual on a device: all at once, in bfloat16 on a GPU.
    pub fn on(device: Device) -> Self {
        Self { device, kind: usual_kind(device), low_memory: false }
    }
}

/// Model, text encoder and latent codec of one checkpoint.
pub struct TextToImage {
    pub state: CheckpointState,
    /// Of the weights that are used.
    pub digest: String,
    /// As in [`CheckpointState::encoders`], of those that are used.
    encoders: Value,
    /// Their file.
    parameters: PathBuf,
    loading: Loading,
    model: Part<Mmdit>,
    text: Part<Box<dyn TextEncoder>>,
    latents: Part<Box<dyn LatentCodec>>,
    shape: LatentShape,
}

impl TextToImage {
    /// Loads what was opened, unless memory is to be spared.
    pub fn load(opened: Opened, loading: Loading) -> Result<Self, SampleError> {
        let Opened { state, parameters, .. } = opened;
        let keep = !loading.low_memory;
        let opened = Self {
            digest: folder_digest(&parameters)?,
            shape: state.latents.shape()?,
            encoders: json!({"latents": state.latents.identity()?, "text": state.text.identity()?}),
            state,
            parameters,
            loading,
            model: Part::new(keep),
            text: Part::new(keep),
            latents: Part::new(keep),
        };
        if keep {
            opened.with_model(|_| Ok(()))?;
            opened.with_text(|_| Ok(()))?;
            opened.with_latents(|_| Ok(()))?;
        }
        Ok(opened)
    }

    fn with_model<R>(&self, work: impl FnOnce(&Mmdit) -> Result<R, SampleError>) -> Result<R, SampleError> {
        let Loading { device, kind, .. } = self.loading;
        self.model.with(|| self.state.load(&self.parameters, device, kind), work)
    }

    fn with_text<R>(&self, work: impl FnOnce(&dyn TextEncoder) -> Result<R, SampleError>) -> Result<R, SampleError> {
        self.text.with(|| self.state.text.encoder(self.loading.device), |text| work(text.as_ref()))
    }

    fn with_latents<R>(&self, work: impl FnOnce(&dyn LatentCodec) -> Result<R, SampleError>) -> Result<R, SampleError> {
        self.latents.with(|| self.state.latents.codec(self.loading.device), |latents| work(latents.as_ref()))
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.loading.device
    }

    /// Pixels of which the sides of a picture must be multiples.
    pub fn side_multiple(&self) -> u32 {
        side_multiple(self.shape, self.state.model.patch_size)
    }

    /// Tells what is left out of prompts that are longer than the text encoders take.
    pub fn truncation(&self) -> Result<Truncation, SampleError> {
        Ok(match self.text.loaded.get() {
            Some(text) => text.truncation(),
            None => self.state.text.truncation()?,
        })
    }

    /// Makes one picture for each of `pictures`, in their order, at most `batch` at a time. All prompts are encoded before the first
    /// picture is made, and kept: of many thousands ask for some at a time.
    pub fn generate(
        &self,
        pictures: &[Picture],
        settings: &Settings,
        batch: usize,
        watch: &mut Watch,
    ) -> Result<Vec<RgbImage>, SampleError> {
        check(settings, self.shape, self.state.model.patch_size)?;
        let conditions = self.with_text(|text| {
            pictures
                .chunks(batch.max(1))
                .map(|of_batch| Conditions::encode(text, of_batch, settings.guidance))
                .collect()
        });
        let conditions: Vec<Conditions> = conditions?;
        let latents: Vec<Tensor> = self.with_model(|model| {
            let painter = Painter { model, shape: self.shape, device: self.loading.device };
            let mut sampled = 0;
            let of_batch = |(of_batch, conditions): (&[Picture], Conditions)| {
                let seeds: Vec<u64> = of_batch.iter().map(|picture| picture.seed).collect();
                let latents = painter.paint(&seeds, &conditions, settings, &mut |step, latents| {
                    let (pictures, batch, steps) = (pictures.len(), of_batch.len(), settings.steps);
                    watch(&Progress { sampled, pictures, batch, step, steps, latents })
                })?;
                sampled += of_batch.len();
                Ok(latents.to_device(Device::Cpu))
            };
            pictures.chunks(batch.max(1)).zip(conditions).map(of_batch).collect()
        })?;
        let decoded = latents.iter().map(|latents| self.decode(latents));
        Ok(decoded.collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// The pictures of latents (batch, channels, height, width).
    pub fn decode(&self, latents: &Tensor) -> Result<Vec<RgbImage>, SampleError> {
        self.with_latents(|codec| Ok(pictures::from_tensor(&codec.decode(latents)?)?))
    }

    /// What the model computes in, as options call it.
    fn precision(&self) -> String {
        match self.loading.kind {
            Kind::Float => "float32".to_owned(),
            Kind::BFloat16 => "bfloat16".to_owned(),
            other => format!("{other:?}").to_lowercase(),
        }
    }

    /// What a picture of this checkpoint is made with.
    pub fn recipe(&self, picture: &Picture, settings: &Settings) -> Recipe {
        Recipe {
            picture: picture.clone(),
            settings: settings.clone(),
            checkpoint: self.digest.clone(),
            encoders: Some(self.encoders.clone()),
            precision: Some(self.precision()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// What pictures of one batch are led to, and away from.
#[derive(Debug)]
pub struct Conditions {
    prompts: TextCondition,
    /// `None` for no prompts at all.
    negative: Option<TextCondition>,
}

impl Conditions {
    pub fn encode(text: &dyn TextEncoder, pictures: &[Picture], guidance: Guidance) -> Result<Self, SampleError> {
        let texts = |of: fn(&Picture) -> &str| pictures.iter().map(of).collect::<Vec<&str>>();
        let prompts = text.encode(&texts(|picture| &picture.prompt))?.to_device(Device::Cpu);
        let has_negative = guidance.is_needed() && pictures.iter().any(|picture| !picture.negative_prompt.is_empty());
        let negative = has_negative.then(|| text.encode(&texts(|picture| &picture.negative_prompt))).transpose()?;
        Ok(Self { prompts, negative: negative.map(|negative| negative.to_device(Device::Cpu)) })
    }
}

/// A model that makes latents of prompts that are encoded already.
#[derive(Debug)]
pub struct Painter<'a> {
    pub model: &'a Mmdit,
    pub shape: LatentShape,
    /// Where the model is.
    pub device: Device,
}

impl Painter<'_> {
    /// The latents of a picture for each seed, (batch, channels, height, width), all at once. `step_done` hears the number of steps done,
    /// and where they led.
    pub fn paint(
        &self,
        seeds: &[u64],
        conditions: &Conditions,
        settings: &Settings,
        step_done: &mut dyn FnMut(u32, &Tensor) -> ControlFlow<()>,
    ) -> Result<Tensor, SampleError> {
        let LatentShape { channels, factor } = self.shape;
        let shape = [channels, i64::from(settings.height) / factor, i64::from(settings.width) / factor];
        let prompts = conditions.prompts.to_device(self.device);
        let negative = conditions.negative.as_ref().map(|negative| negative.to_device(self.device));
        // Each picture has its own numbers, so that it does not depend on the batch it is made in.
        let normal = |purpose: &str, counters: &[u64]| {
            let one = |seed: &u64| Stream::new(*seed, purpose, counters).normal_tensor(&shape, self.device);
            Tensor::stack(&seeds.iter().map(one).collect::<Vec<_>>(), 0)
        };
        let guided = Guided::new(self.model, &prompts, negative.as_ref(), settings.guidance);
        solver::follow(
            settings.sampler,
            &solver::times(settings.steps, settings.shift),
            &normal("sample", &[]),
            |x, t| guided.velocity(x, t).map_err(SampleError::from),
            |step| normal("step", &[step as u64]),
            |step, latents| match step_done(step as u32, latents) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(SampleError::Stopped),
            },
        )
    }
}

/// Pixels of which the sides of a picture must be multiples.
pub fn side_multiple(shape: LatentShape, patch_size: i64) -> u32 {
    u32::try_from(shape.factor * patch_size).unwrap_or(u32::MAX)
}

/// Refuses what cannot be made, before anything is.
pub fn check(settings: &Settings, shape: LatentShape, patch_size: i64) -> Result<(), SampleError> {
    let refuse = |what, value: String, expected: String| Err(SampleError::Request { what, value, expected });
    let Settings { width, height, steps, guidance, shift, .. } = settings;
    let multiple = shape.factor * patch_size;
    for (what, side) in [("width", *width), ("height", *height)] {
        if side == 0 || i64::from(side) % multiple != 0 {
            let expected = format!("a positive multiple of {multiple} pixels, for this checkpoint");
            return refuse(what, side.to_string(), expected);
        }
    }
    if u64::from(*width) * u64::from(*height) > MOST_PIXELS {
        return refuse("size", format!("{width}x{height}"), format!("at most {MOST_PIXELS} pixels"));
    }
    if *steps == 0 || *steps > MOST_STEPS {
        return refuse("steps", steps.to_string(), format!("from 1 to {MOST_STEPS}"));
    }
    let Guidance { scale, interval, rescale } = *guidance;
    if !scale.is_finite() || scale < 0.0 {
        return refuse("guidance", scale.to_string(), "a number from 0 up; 1 is none, 4 is usual".into());
    }
    let [low, high] = interval;
    if !(0.0 <= low && low <= high && high <= 1.0) {
        return refuse("guidance interval", format!("{low} to {high}"), "two times between 0 and 1".into());
    }
    if !(0.0..=1.0).contains(&rescale) {
        return refuse("guidance rescale", rescale.to_string(), "from 0 to 1; 0 is none".into());
    }
    if !(shift.is_finite() && *shift > 0.0) {
        return refuse("shift", shift.to_string(), "a positive number; 1 is none".into());
    }
    Ok(())
}
