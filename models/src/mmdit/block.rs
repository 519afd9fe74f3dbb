//! One block: joint attention and a feed-forward layer in each stream, modulated and gated by the time embedding.

use tch::Tensor;

use super::MmditConfig;
use crate::layers::{AttentionConfig, JointAttention, Linear, Modulation, Rotation, SwiGlu, axial_frequencies};
use crate::parameters::Scope;

/// The half of a block that belongs to one stream, after attention.
#[derive(Debug)]
struct Stream {
    attention_gate: Linear,
    norm: Modulation,
    feed_forward: SwiGlu,
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
            feed_forward: SwiGlu::new(&scope.at(format!("MLP_{stream}")).at("MLP"), width, config.hidden),
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

#[derive(Debug)]
pub(super) struct Block {
    condition: Linear,
    image_norm: Modulation,
    text_norm: Modulation,
    attention: JointAttention,
    frequencies: Tensor,
    image: Stream,
    /// The last block has no text half after attention: nothing reads it.
    text: Option<Stream>,
}

impl Block {
    pub(super) fn new(scope: &Scope, config: &MmditConfig, last: bool) -> Self {
        let MmditConfig { width: features, heads, .. } = *config;
        let attention = scope.at("attn");
        let frequencies = axial_frequencies(config.head_features());
        Self {
            condition: Linear::new(&scope.at("y_proj.0"), features, features),
            image_norm: Modulation::new(&scope.at("norm1_x"), features),
            text_norm: Modulation::new(&scope.at("norm1_c"), features),
            attention: JointAttention::new(&attention, AttentionConfig { features, heads, text_output: !last }),
            frequencies: attention.at("rotary_emb").buffer("freqs", frequencies),
            image: Stream::new(scope, 'x', config),
            text: (!last).then(|| Stream::new(scope, 'c', config)),
        }
    }

    /// Frequencies of one axis of the rotary embedding; the same in every block.
    pub(super) fn frequencies(&self) -> &Tensor {
        &self.frequencies
    }

    /// `image` (B, h·w, D), `text` (B, L, D), `embedding` (B, D). The text is `None` after the last block.
    pub(super) fn forward(
        &self,
        image: &Tensor,
        text: &Tensor,
        embedding: &Tensor,
        rotation: &Rotation,
    ) -> (Tensor, Option<Tensor>) {
        let y = self.condition.forward(embedding).silu();
        let (image_attended, text_attended) =
            self.attention.forward(&self.image_norm.forward(image, &y), &self.text_norm.forward(text, &y), rotation);
        let image = self.image.forward(image, &image_attended, &y);
        let text = self.text.as_ref().zip(text_attended).map(|(stream, attended)| stream.forward(text, &attended, &y));
        (image, text)
    }
}
