//! One block: joint attention and a feed-forward layer in each stream, modulated and gated by the time embedding.

use tch::Tensor;

use super::{FeedForwardKind, MmditConfig, Positions};
use crate::layers::{
    Activation, AttentionConfig, FeedForward, JointAttention, Linear, Modulation, Rotation, SwiGlu, frequency_tensor,
    triple_frequencies,
};
use crate::parameters::Scope;

#[derive(Debug)]
enum AnyFeedForward {
    SwiGlu(SwiGlu),
    Gelu(FeedForward),
}

impl AnyFeedForward {
    fn new(scope: &Scope, config: &MmditConfig) -> Self {
        let (width, hidden) = (config.width, config.hidden);
        match config.variant.feed_forward {
            FeedForwardKind::SwiGlu => Self::SwiGlu(SwiGlu::new(&scope.at("MLP"), width, hidden)),
            FeedForwardKind::SwiGluOld => Self::SwiGlu(SwiGlu::new(scope, width, hidden)),
            FeedForwardKind::Gelu => {
                Self::Gelu(FeedForward::new(scope, ["lin_up", "lin_down"], width, hidden, Activation::Gelu))
            }
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Self::SwiGlu(layer) => layer.forward(x),
            Self::Gelu(layer) => layer.forward(x),
        }
    }
}

/// The half of a block that belongs to one stream, after attention.
#[derive(Debug)]
struct Stream {
    attention_gate: Linear,
    norm: Modulation,
    feed_forward: AnyFeedForward,
    feed_forward_gate: Linear,
}

impl Stream {
    fn new(scope: &Scope, stream: char, config: &MmditConfig) -> Self {
        let width = config.width;
        let initial = config.initial_of_gates(width);
        let gate =
            |n: u8| Linear::without_bias_starting_at(&scope.at(format!("scale{n}_{stream}")), width, width, initial);
        Self {
            attention_gate: gate(1),
            norm: Modulation::new(&scope.at(format!("norm2_{stream}")), width),
            feed_forward: AnyFeedForward::new(&scope.at(format!("MLP_{stream}")), config),
            feed_forward_gate: gate(2),
        }
    }

    /// `x` (batch, tokens, D), `attended` likewise, `y` (batch, D).
    fn forward(&self, x: &Tensor, attended: &Tensor, y: &Tensor) -> Tensor {
        let x = x.addcmul(attended, &self.attention_gate.forward(y).unsqueeze(1));
        let fed = self.feed_forward.forward(&self.norm.forward(&x, y));
        x.addcmul(&fed, &self.feed_forward_gate.forward(y).unsqueeze(1))
    }
}

/// One of the model's blocks, over parameters below its own scope.
#[derive(Debug)]
pub struct Block {
    condition: Linear,
    image_norm: Modulation,
    text_norm: Modulation,
    attention: JointAttention,
    /// Of the rotary positions; the same in every block.
    frequencies: Option<Tensor>,
    image: Stream,
    /// The last block has no text half after attention, unless the model predicts the text: nothing reads it.
    text: Option<Stream>,
}

impl Block {
    /// Block `index` of the model.
    pub fn new(scope: &Scope, config: &MmditConfig, index: i64) -> Self {
        let MmditConfig { width: features, heads, .. } = *config;
        let text_output = config.variant.text_loss || index + 1 < config.blocks;
        let attention = scope.at("attn");
        let shape = AttentionConfig {
            features,
            heads,
            query_features: config.query_features(),
            text_output,
            cosine: config.is_cosine(index),
            merge: config.variant.merge_keys,
        };
        let rotary = attention.at("rotary_emb");
        let head = config.head_features();
        Self {
            condition: Linear::new(&scope.at("y_proj.0"), features, features),
            image_norm: Modulation::new(&scope.at("norm1_x"), features),
            text_norm: Modulation::new(&scope.at("norm1_c"), features),
            attention: JointAttention::new(&attention, shape),
            frequencies: match config.variant.positions {
                Positions::Rope2d => Some(rotary.buffer("freqs", frequency_tensor(head / 2, 10000.0))),
                Positions::Rope => Some(rotary.buffer("freqs", frequency_tensor(head, 10000.0))),
                Positions::Rope2dV2 => Some(rotary.buffer("inv_freq", triple_frequencies(head))),
                Positions::Absolute | Positions::None => None,
            },
            image: Stream::new(scope, 'x', config),
            text: text_output.then(|| Stream::new(scope, 'c', config)),
        }
    }

    pub(super) fn frequencies(&self) -> Option<&Tensor> {
        self.frequencies.as_ref()
    }

    /// `image` (B, h·w, D), `text` (B, L, D), `embedding` (B, D). The text is `None` after the last block.
    pub fn forward(
        &self,
        image: &Tensor,
        text: &Tensor,
        embedding: &Tensor,
        rotation: Option<&Rotation>,
    ) -> (Tensor, Option<Tensor>) {
        let y = self.condition.forward(embedding).silu();
        let (image_attended, text_attended) =
            self.attention.forward(&self.image_norm.forward(image, &y), &self.text_norm.forward(text, &y), rotation);
        let image = self.image.forward(image, &image_attended, &y);
        let text = self.text.as_ref().zip(text_attended).map(|(stream, attended)| stream.forward(text, &attended, &y));
        (image, text)
    }
}
