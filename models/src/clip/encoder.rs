//! The transformer that both halves of CLIP share.

use tch::Tensor;

use crate::ModelError;
use crate::layers::{Activation, FeedForward, LayerNorm, Linear, attend};
use crate::parameters::Scope;
use crate::settings::Settings;

/// Sizes of an encoder.
#[derive(Clone, Debug)]
pub struct EncoderConfig {
    pub width: i64,
    pub hidden: i64,
    pub layers: i64,
    pub heads: i64,
    pub epsilon: f64,
    pub activation: Activation,
}

impl EncoderConfig {
    /// With the defaults of transformers' configuration class, which files leave out.
    pub(super) fn read(settings: &Settings, width: i64, hidden: i64, heads: i64) -> Result<Self, ModelError> {
        let config = Self {
            width: settings.size("hidden_size", width)?,
            hidden: settings.size("intermediate_size", hidden)?,
            layers: settings.layers("num_hidden_layers", 12)?,
            heads: settings.size("num_attention_heads", heads)?,
            epsilon: settings.positive("layer_norm_eps", 1e-5)?,
            activation: settings.activation(&["hidden_act"], Activation::QuickGelu)?,
        };
        if config.width % config.heads != 0 {
            let detail = format_args!("{} heads do not divide hidden_size {}", config.heads, config.width);
            return Err(settings.refuse("num_attention_heads", detail));
        }
        Ok(config)
    }
}

/// A pre-norm layer.
#[derive(Debug)]
struct Layer {
    norms: [LayerNorm; 2],
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    feed_forward: FeedForward,
    heads: i64,
}

impl Layer {
    fn new(scope: &Scope, config: &EncoderConfig) -> Self {
        let EncoderConfig { width, hidden, epsilon, activation, .. } = *config;
        let attention = scope.at("self_attn");
        let projection = |name: &str| Linear::new(&attention.at(name), width, width);
        let norm = |name: &str| LayerNorm::new(&scope.at(name), width, epsilon, true);
        Self {
            norms: [norm("layer_norm1"), norm("layer_norm2")],
            query: projection("q_proj"),
            key: projection("k_proj"),
            value: projection("v_proj"),
            out: projection("out_proj"),
            feed_forward: FeedForward::new(&scope.at("mlp"), ["fc1", "fc2"], width, hidden, activation),
            heads: config.heads,
        }
    }

    fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let [before_attention, before_feed_forward] = &self.norms;
        let normalised = before_attention.forward(x);
        let split = |layer: &Linear| layer.forward(&normalised).unflatten(-1, [self.heads, -1]).transpose(1, 2);
        let attended = attend(&split(&self.query), &split(&self.key), &split(&self.value), mask, false, None);
        let x = x + self.out.forward(&attended.transpose(1, 2).flatten(2, 3));
        &x + self.feed_forward.forward(&before_feed_forward.forward(&x))
    }
}

/// Layers one after the other.
#[derive(Debug)]
pub(super) struct Encoder(Vec<Layer>);

impl Encoder {
    pub(super) fn new(scope: &Scope, config: &EncoderConfig) -> Self {
        Self((0..config.layers).map(|i| Layer::new(&scope.at("layers").at(i), config)).collect())
    }

    /// `x` (batch, tokens, width). Returns what each layer was given, and last what the last one made.
    pub(super) fn forward(&self, x: Tensor, mask: Option<&Tensor>) -> Vec<Tensor> {
        let mut states = vec![x];
        for layer in &self.0 {
            if let Some(x) = states.last() {
                states.push(layer.forward(x, mask));
            }
        }
        states
    }
}
