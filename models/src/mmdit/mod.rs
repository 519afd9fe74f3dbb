//! The SD3-style multimodal diffusion transformer: image and text tokens in two streams that meet in every attention.
//!
//! Equations and names are those of the published "SD3 from scratch" checkpoints. Shapes: B batch, C latent channels, H×W
//! the latent's size, h×w = (H/2)×(W/2) patches, D model width, L text tokens.

mod block;
mod config;
mod embed;
mod reference;

pub use block::Block;
pub use config::{AttentionKind, FeedForwardKind, MmditConfig, MmditVariant, Positions};

use std::ops::Range;

use tch::{Device, Tensor};

use crate::ModelError;
use crate::layers::{Linear, Modulation, Rotation};
use crate::parameters::{ParameterSet, Scope};
use crate::text::TextCondition;
use crate::weights::Weights;
use embed::{GRID, PatchEmbedding, TextEmbedding, TimeEmbedding, absolute_positions, unpatchify};

/// The table of absolute positions, which published checkpoints hold and which is computed here instead.
const POSITION_TABLE: &str = "pos_enc.pos_embed";

fn without_position_table(weights: Weights) -> Weights {
    weights.renamed(|name| (name != POSITION_TABLE).then(|| name.to_owned()))
}

/// What the model says of a batch.
#[derive(Debug)]
pub struct Prediction {
    /// (B, C, H, W), as the input.
    pub velocity: Tensor,
    /// (B, L, text features): the text, of a model trained with text loss.
    pub text: Option<Tensor>,
}

/// What flows from block to block.
#[derive(Debug)]
pub struct Tokens {
    /// (B, h·w, D)
    pub image: Tensor,
    /// (B, L, D)
    pub text: Tensor,
    /// (B, D): of time and pooled text; the same in every block.
    pub embedding: Tensor,
}

/// What a batch's size determines, and no parameter.
#[derive(Debug)]
pub struct Frame {
    rows: i64,
    columns: i64,
    positions: Option<Tensor>,
    rotation: Option<Rotation>,
}

/// A model whose parameters live in a [`ParameterSet`].
#[derive(Debug)]
pub struct Mmdit {
    config: MmditConfig,
    patches: PatchEmbedding,
    time: TimeEmbedding,
    text: TextEmbedding,
    blocks: Vec<Block>,
    out_norm: Modulation,
    out_proj: Linear,
    out_text: Option<Linear>,
}

impl Mmdit {
    /// A parameter set for this configuration, started from `seed`. The configuration must be valid.
    pub fn initialise(config: &MmditConfig, seed: u64, device: Device) -> ParameterSet {
        ParameterSet::initialise(seed, device, |scope| drop(Self::describe(config, scope)))
    }

    /// A parameter set for this configuration, all zero, to load weights into.
    pub fn allocate(config: &MmditConfig, device: Device) -> ParameterSet {
        ParameterSet::allocate(device, |scope| drop(Self::describe(config, scope)))
    }

    /// Fills a set that [`Mmdit::allocate`] made with published weights, strictly by name and shape.
    pub fn load(weights: Weights, parameters: &ParameterSet) -> Result<(), ModelError> {
        without_position_table(weights).fill(parameters.state_dict())
    }

    /// Refuses weights that are not exactly those of this configuration, without reading them.
    pub fn check(config: &MmditConfig, weights: Weights) -> Result<(), ModelError> {
        let expected = ParameterSet::shapes_of(|scope| drop(Self::describe(config, scope)));
        without_position_table(weights).check(&expected)
    }

    /// The table of absolute positions, which the reference's checkpoints hold and this state dict leaves out; `None` for
    /// models without.
    pub fn position_table(config: &MmditConfig) -> Option<(String, Tensor)> {
        let table = || absolute_positions(GRID, GRID, config.width, Device::Cpu).unsqueeze(0);
        (config.variant.positions == Positions::Absolute).then(|| (POSITION_TABLE.to_owned(), table()))
    }

    /// Trained elements of this configuration, without allocating them.
    pub fn elements(config: &MmditConfig) -> i64 {
        ParameterSet::elements_of(|scope| drop(Self::describe(config, scope)))
    }

    /// The model over a set that [`Mmdit::initialise`] or [`Mmdit::allocate`] made for the same configuration.
    pub fn over(config: &MmditConfig, parameters: &ParameterSet) -> Self {
        Self::describe(config, &parameters.scope())
    }

    fn describe(config: &MmditConfig, scope: &Scope) -> Self {
        let width = config.width;
        let patch_features = config.channels * config.patch_size * config.patch_size;
        Self {
            config: config.clone(),
            patches: PatchEmbedding::new(scope, config),
            time: TimeEmbedding::new(scope, config),
            text: TextEmbedding::new(scope, config),
            blocks: (0..config.blocks).map(|i| Block::new(&scope.at("blocks").at(i), config, i)).collect(),
            out_norm: Modulation::new(&scope.at("out_norm"), width),
            out_proj: Linear::starting_at(&scope.at("out_proj"), width, patch_features, config.initial_of_gates(width)),
            out_text: config
                .variant
                .text_loss
                .then(|| Linear::new(&scope.at("out_text_proj"), width, config.text_width)),
        }
    }

    pub fn config(&self) -> &MmditConfig {
        &self.config
    }

    /// The predicted velocity, of the shape of `noisy`, and the text where the model predicts it.
    ///
    /// `noisy` (B, C, H, W) with H and W multiples of the patch size; `time` (B) in 0..=1; `condition` for B captions.
    pub fn forward(&self, noisy: &Tensor, time: &Tensor, condition: &TextCondition) -> Result<Prediction, ModelError> {
        let frame = self.frame(noisy, time, condition)?;
        let mut tokens = self.embed(&frame, noisy, time, condition);
        for block in 0..self.blocks.len() {
            tokens = self.block(block, &frame, &tokens);
        }
        Ok(self.predict(&frame, &tokens))
    }

    /// The first part of [`Mmdit::forward`]: what the batch's size determines, when the model can take it. The parts that follow are
    /// [`Mmdit::embed`], [`Mmdit::block`] for every block in its turn, and [`Mmdit::predict`].
    pub fn frame(&self, noisy: &Tensor, time: &Tensor, condition: &TextCondition) -> Result<Frame, ModelError> {
        let (rows, columns) = self.grid(noisy, condition)?;
        let batch = noisy.size().first().copied().unwrap_or(0);
        let fits = time.size() == [batch]
            && condition.pooled.size() == [batch, self.config.pooled_width]
            && condition.tokens.iter().all(|tokens| tokens.size().first() == Some(&batch));
        if !fits {
            return Err(ModelError::Configuration {
                what: "the batch",
                value: format!("times {:?}, pooled text {:?}", time.size(), condition.pooled.size()),
                expected: format!("{batch} of each, the pooled text {} features wide", self.config.pooled_width),
            });
        }
        let MmditConfig { width, variant, .. } = self.config;
        let device = noisy.device();
        let positions =
            (variant.positions == Positions::Absolute).then(|| absolute_positions(rows, columns, width, device));
        let scale = variant.position_scale;
        let rotation = self.blocks.first().and_then(Block::frequencies).map(|frequencies| match variant.positions {
            Positions::Rope => Rotation::linear(rows * columns, scale, frequencies, device),
            Positions::Rope2dV2 => Rotation::triples(rows, columns, scale, frequencies, device),
            _ => Rotation::axial(rows, columns, scale, frequencies, device),
        });
        Ok(Frame { rows, columns, positions, rotation })
    }

    /// What enters the first block.
    pub fn embed(&self, frame: &Frame, noisy: &Tensor, time: &Tensor, condition: &TextCondition) -> Tokens {
        Tokens {
            image: self.patches.forward(noisy, frame.positions.as_ref()),
            text: self.text.forward(condition),
            embedding: self.time.forward(time, &condition.pooled),
        }
    }

    /// What leaves block `index`, which must be below the number of blocks. After the last one the text is as it was, unless the model
    /// predicts it.
    pub fn block(&self, index: usize, frame: &Frame, tokens: &Tokens) -> Tokens {
        let Tokens { image, text, embedding } = tokens;
        let (image, next) = self.blocks[index].forward(image, text, embedding, frame.rotation.as_ref());
        let text = next.unwrap_or_else(|| text.shallow_clone());
        Tokens { image, text, embedding: embedding.shallow_clone() }
    }

    /// What the model says, from what leaves the last block.
    pub fn predict(&self, frame: &Frame, tokens: &Tokens) -> Prediction {
        let out = self.out_proj.forward(&self.out_norm.forward(&tokens.image, &tokens.embedding));
        Prediction {
            velocity: unpatchify(&out, frame.rows, frame.columns, self.config.patch_size),
            text: self.out_text.as_ref().map(|layer| layer.forward(&tokens.text)),
        }
    }

    /// Which parameters of a set of this model belong to which part, as ranges of their numbers: those of [`Mmdit::embed`], of each
    /// block, and of [`Mmdit::predict`].
    pub fn parts(&self, parameters: &ParameterSet) -> Vec<Range<usize>> {
        let of_block = |name: &str| name.strip_prefix("blocks.")?.split('.').next()?.parse::<usize>().ok();
        let blocks = self.blocks.len();
        let mut ends = vec![0; blocks + 2];
        for (number, parameter) in parameters.parameters().iter().enumerate() {
            let after_blocks = ends[1..=blocks].iter().any(|end| *end > 0);
            let part = of_block(&parameter.name).map_or(if after_blocks { blocks + 1 } else { 0 }, |block| block + 1);
            ends[part] = number + 1;
        }
        let starts = std::iter::once(0).chain(ends.iter().copied());
        starts.zip(&ends).map(|(start, &end)| start..end).collect()
    }

    /// Rows and columns of image tokens, when the model can take this batch.
    fn grid(&self, noisy: &Tensor, condition: &TextCondition) -> Result<(i64, i64), ModelError> {
        let refused = |what, value: String, expected: String| Err(ModelError::Configuration { what, value, expected });
        let config = &self.config;
        let patch = config.patch_size;
        let (rows, columns) = match noisy.size()[..] {
            [_, channels, height, width]
                if channels == config.channels
                    && height >= patch
                    && width >= patch
                    && height % patch == 0
                    && width % patch == 0 =>
            {
                (height / patch, width / patch)
            }
            ref size => {
                let expected = format!("(batch, {}, height, width), the sides multiples of {patch}", config.channels);
                return refused("the latents' shape", format!("{size:?}"), expected);
            }
        };
        if config.variant.positions == Positions::Absolute && rows.max(columns) > GRID {
            let expected = format!("at most {GRID} on each side: absolute positions end there");
            return refused("rows × columns of tokens", format!("{rows} × {columns}"), expected);
        }
        let text: i64 = condition.tokens.iter().map(|tokens| tokens.size().get(1).copied().unwrap_or(0)).sum();
        if config.variant.merge_keys && (rows * columns % 2 != 0 || text % 2 != 0) {
            let expected = "even numbers of image and of text tokens, since keys are merged in pairs".to_owned();
            return refused("tokens of image and text", format!("{} and {text}", rows * columns), expected);
        }
        let widths: Vec<i64> = condition.tokens.iter().filter_map(|tokens| tokens.size().get(2).copied()).collect();
        if widths != vec![config.text_width; config.text_streams as usize] {
            let expected = format!("{} of {} features", config.text_streams, config.text_width);
            return refused("the text's streams", format!("{widths:?}"), expected);
        }
        Ok((rows, columns))
    }
}
