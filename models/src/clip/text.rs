//! CLIP's text half.

use tch::{Kind, Tensor};

use super::encoder::{Encoder, EncoderConfig};
use crate::ModelError;
use crate::layers::{LayerNorm, padding_mask};
use crate::parameters::{Initial, Scope};
use crate::settings::Settings;

/// In files from before transformers 4.31: the text ends at the largest id.
const LEGACY_END: i64 = 2;

/// Sizes of the text half.
#[derive(Clone, Debug)]
pub struct ClipTextConfig {
    pub width: i64,
    pub vocabulary: i64,
    /// The longest sequence, in tokens.
    pub positions: i64,
    /// The token that ends a text, or [`LEGACY_END`].
    pub end: i64,
    encoder: EncoderConfig,
}

impl ClipTextConfig {
    pub fn read(settings: &Settings) -> Result<Self, ModelError> {
        let encoder = EncoderConfig::read(settings, 512, 2048, 8)?;
        Ok(Self {
            width: encoder.width,
            vocabulary: settings.size("vocab_size", 49408)?,
            positions: settings.size("max_position_embeddings", 77)?,
            end: settings.integer("eos_token_id", 49407)?,
            encoder,
        })
    }
}

impl ClipTextConfig {
    /// What texts are filled up with: the token that ends them, as published.
    pub fn padding(&self) -> i64 {
        if self.end == LEGACY_END { self.vocabulary - 1 } else { self.end }
    }
}

/// What the text half says of a batch.
#[derive(Debug)]
pub struct ClipTextOutput {
    /// (batch, tokens, width), after the last norm.
    pub hidden: Tensor,
    /// (batch, width): the state at the end of each text, before any projection.
    pub pooled: Tensor,
}

/// Token and position embeddings, causal layers, a norm.
#[derive(Debug)]
pub struct ClipText {
    tokens: Tensor,
    positions: Tensor,
    encoder: Encoder,
    norm: LayerNorm,
    config: ClipTextConfig,
}

impl ClipText {
    pub fn new(scope: &Scope, config: &ClipTextConfig) -> Self {
        let width = config.width;
        let embeddings = scope.at("embeddings");
        let table = |name: &str, rows| {
            embeddings.at(name).parameter("weight", &[rows, width], Initial::Linear { inputs: width })
        };
        Self {
            tokens: table("token_embedding", config.vocabulary),
            positions: table("position_embedding", config.positions),
            encoder: Encoder::new(&scope.at("encoder"), &config.encoder),
            norm: LayerNorm::new(&scope.at("final_layer_norm"), width, config.encoder.epsilon, true),
            config: config.clone(),
        }
    }

    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// `ids` (batch, tokens; int64), `mask` likewise, 1 where there is a token. Ids past the vocabulary and sequences
    /// longer than the model's positions are errors.
    pub fn forward(&self, ids: &Tensor, mask: &Tensor) -> Result<ClipTextOutput, ModelError> {
        let tokens = crate::text::check_ids(ids, Some(mask), self.config.vocabulary, Some(self.config.positions))?;
        let x = Tensor::embedding(&self.tokens, ids, -1, false, false) + self.positions.narrow(0, 0, tokens);
        let mask = padding_mask(&mask.to_kind(Kind::Bool), x.kind(), |query, key| key.le_tensor(query));
        let mut states = self.encoder.forward(x, Some(&mask));
        let hidden = self.norm.forward(&states.pop().unwrap_or_else(|| self.tokens.shallow_clone()));
        let end = match self.config.end {
            LEGACY_END => ids.argmax(-1, false),
            end => ids.eq(end).to_kind(Kind::Int64).argmax(-1, false),
        };
        let index = end.view([-1, 1, 1]).expand([-1, 1, self.config.width], false);
        let pooled = hidden.gather(1, &index, false).squeeze_dim(1);
        Ok(ClipTextOutput { hidden, pooled })
    }
}
