//! Everything a training run can be told.

use std::collections::BTreeMap;

use models::latents::Latents;
use models::mmdit::{AttentionKind, FeedForwardKind, MmditConfig, MmditVariant, Positions};
use models::text::TextEncoding;
use sampler::solver::Solver;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shards::columns;
use tch::Kind;

use crate::TrainError;
use crate::loader::OnBadImage;
use crate::start::Start;

/// What determines the result. A change to any of these is another training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TrainConfig {
    /// Optimiser updates.
    pub steps: u64,
    /// Samples in one update.
    pub batch_size: u64,
    /// What the first weights, the order of images and all noise follow from.
    pub seed: u64,

    /// What the model works on: `pixels` needs no VAE; `{ autoencoder = { folder = "…" } }` is one in diffusers' layout.
    pub latents: Latents,
    /// Text encoder: `hash` needs no weights; `{ pretrained = { gemma = "…", modernbert = "…", clip = "…" } }` names folders.
    pub text: TextEncoding,
    /// `online` encodes pictures and captions while it trains; `cached` takes what an encode stage made of them, and needs no encoders
    /// (but for captions, where that stage encoded none).
    pub encode: Encode,
    /// Side of a patch, in latent pixels.
    pub patch_size: u32,
    /// Features of a token.
    pub width: u32,
    /// Blocks of the model, one after the other.
    pub blocks: u32,
    /// Heads of the attention in each block, among which `width` is divided.
    pub heads: u32,
    /// Hidden features of the feed-forward layers, as a multiple of `width`.
    pub hidden_scale: f64,
    /// Start every residual branch and the output at zero.
    pub zero_gates: bool,
    pub attention: AttentionKind,
    pub feed_forward: FeedForwardKind,
    pub positions: Positions,
    /// Factor on rotary positions: below one for pictures larger than those the model was first trained on.
    pub position_scale: f64,
    /// Average keys and values of neighbouring tokens in pairs; each stream needs an even number of tokens.
    pub merge_keys: bool,
    /// Give queries and keys half the width.
    pub half_queries: bool,
    /// Weight of the loss by which the model learns to fill in text tokens that were taken out; 0 for a model that predicts no text.
    pub text_loss_weight: f64,

    /// What the model computes in: `bfloat16` keeps weights, moments, norms, noise and loss in float32.
    pub precision: Precision,

    /// A checkpoint to begin from: `{ folder = "…" }` takes its weights, as for a fine-tuning at a higher resolution; with `optimizer =
    /// true` the training goes on where it stood. Left out, the training begins from its seed.
    pub start: Option<Start>,

    /// Peak learning rate of AdamW.
    pub learning_rate: f64,
    /// Updates over which the learning rate rises from 0 to its peak.
    pub warmup_steps: u64,
    pub schedule: Schedule,
    /// How much of itself AdamW's mean of the gradients keeps at each update.
    pub beta1: f64,
    /// How much of itself its mean of their squares keeps.
    pub beta2: f64,
    /// What is added to the root of that mean, by which an update is divided.
    pub epsilon: f64,
    /// Share of a parameter by which an update makes it smaller, times the learning rate.
    pub weight_decay: f64,
    /// Which parameters decay: `matrices` leaves scalars, norms and biases alone.
    pub decay: Decay,
    /// Largest norm of an update's gradient; longer ones are shortened to it.
    pub clip_norm: f64,
    /// The moving average keeps this share of itself at each of its updates.
    pub ema_decay: f64,
    /// Updates of the model between those of its average.
    pub ema_every: u64,

    /// Images that are held out: never trained on, drawn in proportion from all buckets, and tried every `validate_every` updates at eight
    /// fixed times with fixed noise. Encoded, they stay in memory.
    pub validation_images: u64,
    /// Columns to take captions from, each with its weight: `{ recaption = 0.6, recaption_short = 0.4 }` draws one for each
    /// sample of each step.
    pub captions: BTreeMap<String, f64>,
    /// Share of captions that are dropped, so that the model learns to go without (classifier-free guidance).
    pub null_caption: f64,
    /// Share of captions whose tokens are dropped, for each stream by itself, besides those that are dropped whole.
    pub null_tokens: f64,
    /// Share of captions whose pooled text is dropped, by itself, besides those that are dropped whole.
    pub null_pooled: f64,
    pub time_sampling: TimeSampling,
    /// Moves times towards noise: t' = s·t / (1 + (s − 1)·t). 1 leaves them.
    pub time_shift: f64,
    /// Side in pixels of the square images for which `time_shift` holds; others have it times the root of their share of its pixels
    /// (Esser et al. 2024, section 5.3.2). 0 shifts all alike.
    pub time_shift_side: u32,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 100_000,
            batch_size: 256,
            seed: 0,
            latents: Latents::Pixels,
            text: TextEncoding::Hash,
            encode: Encode::Online,
            patch_size: 2,
            width: 768,
            blocks: 12,
            heads: 12,
            hidden_scale: 4.0,
            zero_gates: true,
            attention: AttentionKind::default(),
            feed_forward: FeedForwardKind::default(),
            positions: Positions::default(),
            position_scale: 1.0,
            merge_keys: false,
            half_queries: false,
            text_loss_weight: 0.0,
            precision: Precision::Float32,
            start: None,
            learning_rate: 1e-4,
            warmup_steps: 1000,
            schedule: Schedule::Constant,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            decay: Decay::Matrices,
            clip_norm: 1.0,
            ema_decay: 0.999,
            ema_every: 1,
            validation_images: 0,
            captions: BTreeMap::from([(columns::CAPTION.to_owned(), 1.0)]),
            null_caption: 0.1,
            null_tokens: 0.0,
            null_pooled: 0.0,
            time_sampling: TimeSampling::LogitNormal,
            time_shift: 1.0,
            time_shift_side: 0,
        }
    }
}

/// What changes nothing about the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TrainOperations {
    /// Updates between checkpoints; the last update always has one, with 0 no other.
    pub checkpoint_every: u64,
    /// Checkpoints to keep, newest first.
    pub keep_last: u64,
    /// Besides those, every checkpoint whose step is a multiple of this is kept; 0 for none.
    pub keep_every: u64,
    /// Updates between lines in metrics.jsonl; the last update always has one, with 0 no other but those with a checkpoint.
    pub log_every: u64,
    /// Updates between trials of the images that are held out; the last update always has one, with 0 no other.
    pub validate_every: u64,
    /// Pictures to make while it trains: `{ prompts = ["…"], every = 1000 }`. Left out, none.
    pub sample_grids: Option<SampleGrids>,
    /// Whether the gradients of every part of the model are shown in TensorBoard as histograms, as often.
    pub gradient_histograms: bool,
    /// Where it trains: `cpu`, `cuda` or `cuda:N`; left out, the GPU of this rank's number on its machine, where there is one.
    pub device: Option<String>,
    /// Samples that go through the model at once; left out, all of a rank's share of a batch. Gradients add up over the parts.
    pub micro_batch: Option<u64>,
    /// Blocks, from the first on, whose activations are not kept but made again on the way back: slower, in less memory.
    pub recompute_blocks: u32,
    /// Which ranks load, and for which ranks that hold the model: `{ 0 = [2, 3, 4], 1 = [5, 6, 7] }`. Left out, every rank loads for
    /// itself. For `ferrotype launch`, torchrun or Slurm.
    pub loaders: Option<BTreeMap<usize, Vec<usize>>>,
    /// The same in short: of each group of ranks the first loads for so many others.
    pub models_per_loader: Option<usize>,
    /// What a rank's device can do at best, in 10¹² FLOPs a second in the precision that is used (an H100 or H200 in bfloat16: 989); then
    /// metrics say which share of it is reached.
    pub peak_teraflops: Option<f64>,
    /// Pixels that are read and decoded ahead of need, in bytes.
    pub prefetch_bytes: u64,
    /// Of shards on a store: bytes of them that are kept on this machine's disk. The ranks that load here share them.
    pub cache_bytes: u64,
    /// What becomes of an image that cannot be used: `replace` takes the next of its bucket, counts and names it; `stop` ends
    /// the run.
    pub on_bad_image: OnBadImage,
}

impl Default for TrainOperations {
    fn default() -> Self {
        Self {
            checkpoint_every: 1000,
            keep_last: 3,
            keep_every: 0,
            log_every: 10,
            validate_every: 1000,
            sample_grids: None,
            gradient_histograms: false,
            device: None,
            micro_batch: None,
            recompute_blocks: 0,
            loaders: None,
            models_per_loader: None,
            peak_teraflops: None,
            prefetch_bytes: 512 << 20,
            cache_bytes: 16 << 30,
            on_bad_image: OnBadImage::Replace,
        }
    }
}

impl TrainOperations {
    /// Refuses what no run of `config` can do, before any data is touched.
    pub fn validate(&self, config: &TrainConfig) -> Result<(), TrainError> {
        let refuse = |what, value: String, expected: &str| {
            Err(TrainError::Configuration { what, value, expected: expected.to_owned() })
        };
        if let Some(grids) = &self.sample_grids {
            grids.check(config)?;
        }
        if self.micro_batch == Some(0) {
            return refuse(
                "micro_batch",
                "0".to_owned(),
                "at least 1; leave it out for a rank's whole share of a batch",
            );
        }
        match self.peak_teraflops {
            Some(peak) if !(peak.is_finite() && peak > 0.0) => {
                refuse("peak_teraflops", peak.to_string(), "a positive number, such as 989")
            }
            _ => Ok(()),
        }
    }
}

/// Pictures that show how far a training is: made from the average of its weights, in `samples/` beside the checkpoints and in
/// TensorBoard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SampleGrids {
    /// One picture each, on one sheet.
    pub prompts: Vec<String>,
    /// Updates between two sheets; the last update has one too [1000].
    #[serde(default = "default_every")]
    pub every: u64,
    /// WIDTHxHEIGHT in pixels [a square of the longest side trained on so far].
    #[serde(default)]
    pub size: Option<String>,
    /// Steps from noise to picture [25].
    #[serde(default = "default_sample_steps")]
    pub steps: u32,
    /// Guidance scale; 1 is none [4].
    #[serde(default = "default_guidance")]
    pub guidance: f64,
    /// [heun]
    #[serde(default = "default_sampler")]
    pub sampler: Solver,
    /// Moves the steps towards noise; 1 spaces them evenly [1].
    #[serde(default = "default_shift")]
    pub shift: f64,
    /// Picture i is made from seed + i, on every sheet [0].
    #[serde(default)]
    pub seed: u64,
}

fn default_every() -> u64 {
    1000
}
fn default_sample_steps() -> u32 {
    25
}
fn default_guidance() -> f64 {
    4.0
}
fn default_sampler() -> Solver {
    Solver::Heun
}
fn default_shift() -> f64 {
    1.0
}

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    Constant,
    /// Half a cosine down to 0 at the last step.
    Cosine,
    /// A straight line down to 0 at the last step.
    Linear,
}

/// When pictures and captions are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encode {
    Online,
    Cached,
}

/// Which parameters decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    Matrices,
    All,
}

/// What layers compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    Float32,
    Bfloat16,
}

impl Precision {
    pub fn kind(self) -> Kind {
        match self {
            Self::Float32 => Kind::Float,
            Self::Bfloat16 => Kind::BFloat16,
        }
    }
}

/// How times are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TimeSampling {
    /// t = sigmoid(n), n standard normal.
    LogitNormal,
    Uniform,
    /// t = 1 − u − s·(cos²(π·u/2) − 1 + u), u uniform and s = 1.29: more of the middle (Esser et al. 2024, section 3.1).
    Mode,
}

impl TrainConfig {
    /// The model that this configuration builds. Reads the configurations of its latents and text encoders, no weights.
    pub fn model(&self) -> Result<MmditConfig, TrainError> {
        let (latents, text) = (self.latents.shape()?, self.text.shape()?);
        Ok(MmditConfig {
            channels: latents.channels,
            patch_size: i64::from(self.patch_size),
            width: i64::from(self.width),
            blocks: i64::from(self.blocks),
            heads: i64::from(self.heads),
            hidden: (f64::from(self.width) * self.hidden_scale).round() as i64,
            text_streams: text.streams,
            text_width: text.width,
            pooled_width: text.pooled,
            zero_gates: self.zero_gates,
            variant: MmditVariant {
                positions: self.positions,
                position_scale: self.position_scale,
                attention: self.attention,
                feed_forward: self.feed_forward,
                merge_keys: self.merge_keys,
                half_queries: self.half_queries,
                text_loss: self.text_loss_weight > 0.0,
            },
        })
    }

    /// What its latents and text encoders are, by contents: as in [`models::checkpoint::CheckpointState::encoders`].
    pub fn encoders(&self) -> Result<Value, TrainError> {
        Ok(json!({"latents": self.latents.identity()?, "text": self.text.identity()?}))
    }

    /// Image sides must be multiples of this many pixels.
    pub fn pixel_multiple(&self) -> Result<i64, TrainError> {
        Ok(self.latents.shape()?.factor * i64::from(self.patch_size))
    }

    /// Refuses what cannot be trained, before any data is touched.
    pub fn validate(&self) -> Result<(), TrainError> {
        self.model()?.validate()?;
        if let Some(start) = &self.start {
            start.check()?;
        }
        let within = |what: &'static str, value: f64, low: f64, high: f64, expected: &str| {
            if value.is_finite() && value >= low && value <= high {
                return Ok(());
            }
            Err(TrainError::Configuration { what, value: value.to_string(), expected: expected.to_owned() })
        };
        within("steps", self.steps as f64, 1.0, 1e12, "at least 1")?;
        within("batch_size", self.batch_size as f64, 1.0, 1e6, "from 1 to a million")?;
        within("learning_rate", self.learning_rate, 0.0, 1.0, "from 0 to 1")?;
        within("beta1", self.beta1, 0.0, 0.999_999, "from 0 to below 1")?;
        within("beta2", self.beta2, 0.0, 0.999_999_9, "from 0 to below 1")?;
        within("epsilon", self.epsilon, 1e-16, 1.0, "a small positive number")?;
        within("weight_decay", self.weight_decay, 0.0, 10.0, "from 0 to 10")?;
        within("clip_norm", self.clip_norm, 1e-9, 1e9, "a positive number")?;
        within("ema_decay", self.ema_decay, 0.0, 1.0, "from 0 to 1")?;
        let expected = "column names with weights above 0, such as { caption = 1 }";
        if self.captions.is_empty() || !self.captions.values().all(|weight| weight.is_finite() && *weight > 0.0) {
            let value = format!("{:?}", self.captions);
            return Err(TrainError::Configuration { what: "captions", value, expected: expected.to_owned() });
        }
        within("ema_every", self.ema_every as f64, 1.0, 1e12, "at least 1")?;
        within("text_loss_weight", self.text_loss_weight, 0.0, 1e6, "0, or a positive number")?;
        for (what, share) in
            [("null_caption", self.null_caption), ("null_tokens", self.null_tokens), ("null_pooled", self.null_pooled)]
        {
            within(what, share, 0.0, 1.0, "a share from 0 to 1")?;
        }
        within("time_shift", self.time_shift, 1e-3, 1e3, "a positive number; 1 leaves times as they are")
    }
}
