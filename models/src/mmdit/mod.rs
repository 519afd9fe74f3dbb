//! The SD3-style multimodal diffusion transformer: image and text tokens in two streams that meet in every attention.
//!
//! Equations and names are those of the published "SD3 from scratch" checkpoints. Shapes: B batch, C latent channels, H×W
//! the latent's size, h×w = (H/2)×(W/2) patches, D model width, L text tokens.

mod block;
mod config;
mod embed;

pub use config::MmditConfig;

use tch::{Device, Tensor};

use crate::layers::{Linear, Modulation, Rotation};
use crate::parameters::{ParameterSet, Scope};
use crate::text::TextCondition;
use block::Block;
use embed::{PatchEmbedding, TextEmbedding, TimeEmbedding, unpatchify};

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
            blocks: (0..config.blocks)
                .map(|i| Block::new(&scope.at("blocks").at(i), config, i + 1 == config.blocks))
                .collect(),
            out_norm: Modulation::new(&scope.at("out_norm"), width),
            out_proj: Linear::starting_at(&scope.at("out_proj"), width, patch_features, config.initial_of_gates(width)),
        }
    }

    pub fn config(&self) -> &MmditConfig {
        &self.config
    }

    /// The predicted velocity, of the shape of `noisy`.
    ///
    /// `noisy` (B, C, H, W) with H and W multiples of the patch size; `time` (B) in 0..=1; `condition` for B captions.
    pub fn forward(&self, noisy: &Tensor, time: &Tensor, condition: &TextCondition) -> Tensor {
        let size = noisy.size();
        let patch = self.config.patch_size;
        let (rows, columns) = (size[2] / patch, size[3] / patch);
        let mut image = self.patches.forward(noisy);
        let mut text = self.text.forward(condition);
        let embedding = self.time.forward(time, &condition.pooled);
        let rotation = self.blocks.first().map(|b| Rotation::axial(rows, columns, b.frequencies(), noisy.device()));
        if let Some(rotation) = rotation {
            for block in &self.blocks {
                let (next_image, next_text) = block.forward(&image, &text, &embedding, &rotation);
                image = next_image;
                text = next_text.unwrap_or(text);
            }
        }
        let out = self.out_proj.forward(&self.out_norm.forward(&image, &embedding));
        unpatchify(&out, rows, columns, patch)
    }
}
