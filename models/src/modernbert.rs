//! ModernBERT, as a text encoder (transformers' `ModernBertModel`).

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::layers::{Activation, HalfRotation, LayerNorm, Linear, attend, padding_mask, presence_mask};
use crate::parameters::{Initial, Loaded, Scope};
use crate::settings::{RotarySettings, Settings};
use crate::text::check_ids;
use crate::weights::Weights;

/// Sizes and settings.
#[derive(Clone, Debug)]
pub struct ModernBertConfig {
    pub vocabulary: i64,
    pub width: i64,
    pub hidden: i64,
    pub heads: i64,
    /// For each layer: whether it sees the whole text.
    pub global: Vec<bool>,
    /// How many tokens to each side the other layers see.
    pub window: i64,
    epsilon: f64,
    activation: Activation,
    /// Biases of attention, feed-forward and norms.
    biases: [bool; 3],
    rotary_global: RotarySettings,
    rotary_local: RotarySettings,
}

impl ModernBertConfig {
    pub fn read(settings: &Settings) -> Result<Self, ModelError> {
        let layers = settings.layers("num_hidden_layers", 22)?;
        let every = settings.size("global_attn_every_n_layers", 3)?;
        let kinds = settings.texts("layer_types")?;
        let global = (0..layers).map(|i| match kinds.get(i as usize).map(String::as_str) {
            Some("full_attention") => Ok(true),
            Some("sliding_attention") => Ok(false),
            None if kinds.is_empty() => Ok(i % every == 0),
            Some(other) => Err(settings.refuse("layer_types", format_args!("{other:?} is not known"))),
            None => Err(settings.refuse("layer_types", format_args!("{} kinds for {layers} layers", kinds.len()))),
        });
        let global = global.collect::<Result<Vec<_>, _>>()?;
        let width = settings.size("hidden_size", 768)?;
        let heads = settings.size("num_attention_heads", 12)?;
        if width % (2 * heads) != 0 {
            let detail = format_args!("hidden_size {width} has no even part for each of {heads} heads");
            return Err(settings.refuse("num_attention_heads", detail));
        }
        let global_theta = settings.number("global_rope_theta", 160_000.0)?;
        // null means the same as for the global layers.
        let local_theta = settings
            .number("local_rope_theta", if settings.has_null("local_rope_theta") { global_theta } else { 10_000.0 })?;
        let rotary = |kind, field, theta| RotarySettings::read(settings, Some(kind), field, theta, width / heads);
        Ok(Self {
            vocabulary: settings.size("vocab_size", 50_368)?,
            width,
            hidden: settings.size("intermediate_size", 1152)?,
            heads,
            global,
            window: settings.size("local_attention", 128)? / 2,
            epsilon: settings.positive("norm_eps", 1e-5)?,
            activation: settings.activation(&["hidden_activation"], Activation::Gelu)?,
            biases: [
                settings.flag("attention_bias", false)?,
                settings.flag("mlp_bias", false)?,
                settings.flag("norm_bias", false)?,
            ],
            rotary_global: rotary("full_attention", "global_rope_theta", global_theta)?,
            rotary_local: rotary("sliding_attention", "local_rope_theta", local_theta)?,
        })
    }
}

#[derive(Debug)]
struct Layer {
    /// The first layer has none: the embedding is normalised already.
    attention_norm: Option<LayerNorm>,
    queries_keys_values: Linear,
    out: Linear,
    feed_forward_norm: LayerNorm,
    /// Activated half and gate, stacked.
    up: Linear,
    down: Linear,
    global: bool,
}

impl Layer {
    fn new(scope: &Scope, config: &ModernBertConfig, index: usize, global: bool) -> Self {
        let ModernBertConfig { width, hidden, epsilon, biases: [attention_bias, feed_forward_bias, norm_bias], .. } =
            *config;
        let (attention, feed_forward) = (scope.at("attn"), scope.at("mlp"));
        Self {
            attention_norm: (index > 0).then(|| LayerNorm::new(&scope.at("attn_norm"), width, epsilon, norm_bias)),
            queries_keys_values: Linear::with_bias_if(attention_bias, &attention.at("Wqkv"), width, 3 * width),
            out: Linear::with_bias_if(attention_bias, &attention.at("Wo"), width, width),
            feed_forward_norm: LayerNorm::new(&scope.at("mlp_norm"), width, epsilon, norm_bias),
            up: Linear::with_bias_if(feed_forward_bias, &feed_forward.at("Wi"), width, 2 * hidden),
            down: Linear::with_bias_if(feed_forward_bias, &feed_forward.at("Wo"), hidden, width),
            global,
        }
    }

    fn forward(&self, x: &Tensor, rotation: &HalfRotation, mask: &Tensor, config: &ModernBertConfig) -> Tensor {
        let normalised = self.attention_norm.as_ref().map_or_else(|| x.shallow_clone(), |norm| norm.forward(x));
        // (batch, tokens, 3, heads, features of a head) to three of (batch, heads, tokens, features of a head)
        let parts = self.queries_keys_values.forward(&normalised).unflatten(-1, [3, config.heads, -1]).transpose(1, 3);
        let part = |i: i64| parts.select(2, i);
        let attended = attend(&rotation.apply(&part(0)), &rotation.apply(&part(1)), &part(2), Some(mask), false, None);
        let x = x + self.out.forward(&attended.transpose(1, 2).flatten(2, 3));
        let halves = self.up.forward(&self.feed_forward_norm.forward(&x)).chunk(2, -1);
        match halves.as_slice() {
            [activated, gate] => &x + self.down.forward(&(config.activation.forward(activated) * gate)),
            _ => x,
        }
    }
}

/// The model without any head.
#[derive(Debug)]
pub struct ModernBert {
    embedding: Tensor,
    embedding_norm: LayerNorm,
    layers: Vec<Layer>,
    norm: LayerNorm,
    config: ModernBertConfig,
}

impl ModernBert {
    /// Reads a folder in the Hugging Face layout. Heads in it are not needed.
    pub fn open(folder: &Path, device: Device, kind: Kind) -> Result<Loaded<Self>, ModelError> {
        let settings = Settings::in_folder(folder)?;
        settings.expect_type(&["modernbert"])?;
        let config = ModernBertConfig::read(&settings)?;
        let weights = Weights::open(folder)?.renamed(|name| {
            let name = name.strip_prefix("model.").unwrap_or(name);
            let head = ["head.", "decoder.", "classifier."].iter().any(|prefix| name.starts_with(prefix));
            (!head && !name.ends_with("inv_freq")).then(|| name.to_owned())
        });
        Scope::read(weights, device, kind, |scope| Self::new(scope, &config))
    }

    /// Over any scope: for benches with parameters that come from no file.
    pub fn new(scope: &Scope, config: &ModernBertConfig) -> Self {
        let norm = |scope: &Scope| LayerNorm::new(scope, config.width, config.epsilon, config.biases[2]);
        let embeddings = scope.at("embeddings");
        let shape = [config.vocabulary, config.width];
        let layers = scope.at("layers");
        Self {
            embedding: embeddings.at("tok_embeddings").parameter(
                "weight",
                &shape,
                Initial::Linear { inputs: config.width },
            ),
            embedding_norm: norm(&embeddings.at("norm")),
            layers: config.global.iter().enumerate().map(|(i, &g)| Layer::new(&layers.at(i), config, i, g)).collect(),
            norm: norm(&scope.at("final_norm")),
            config: config.clone(),
        }
    }

    pub fn config(&self) -> &ModernBertConfig {
        &self.config
    }

    /// The last hidden state, (batch, tokens, width). `ids` (batch, tokens; int64), `mask` likewise, 1 where there is a token.
    pub fn forward(&self, ids: &Tensor, mask: &Tensor) -> Result<Tensor, ModelError> {
        let config = &self.config;
        let tokens = check_ids(ids, Some(mask), config.vocabulary, None)?;
        let kind = self.embedding.kind();
        let mut x = self.embedding_norm.forward(&Tensor::embedding(&self.embedding, ids, -1, false, false));
        let rotation = |rotary: &RotarySettings| HalfRotation::sequence(tokens, &rotary.tensor(), kind, ids.device());
        let rotations = [rotation(&config.rotary_local), rotation(&config.rotary_global)];
        let present = mask.to_kind(Kind::Bool);
        let masks = [
            padding_mask(&present, kind, |query, key| (query - key).abs().le(config.window)),
            presence_mask(&present, kind),
        ];
        for layer in &self.layers {
            let [local, global] = &rotations;
            let [near, all] = &masks;
            let (rotation, mask) = if layer.global { (global, all) } else { (local, near) };
            x = layer.forward(&x, rotation, mask, config);
        }
        Ok(self.norm.forward(&x))
    }
}
