//! Gemma 2, as a text encoder (transformers' `Gemma2Model`).

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::layers::{Activation, GatedFeedForward, HalfRotation, Linear, RmsNorm, padding_mask, softmax_attention};
use crate::parameters::{Initial, Loaded, Scope};
use crate::settings::{RotarySettings, Settings};
use crate::text::check_ids;
use crate::weights::Weights;

/// Sizes and settings.
#[derive(Clone, Debug)]
pub struct Gemma2Config {
    pub vocabulary: i64,
    pub width: i64,
    pub hidden: i64,
    pub heads: i64,
    pub key_heads: i64,
    pub head_features: i64,
    /// For each layer: how many tokens back it sees, or `None` for all of them.
    pub windows: Vec<Option<i64>>,
    scale: f64,
    cap: Option<f64>,
    epsilon: f64,
    activation: Activation,
    bias: bool,
    rotary: RotarySettings,
}

impl Gemma2Config {
    pub fn read(settings: &Settings) -> Result<Self, ModelError> {
        let layers = settings.layers("num_hidden_layers", 26)?;
        let window = settings.size("sliding_window", 4096)?;
        let kinds = settings.texts("layer_types")?;
        let windows = (0..layers).map(|i| match kinds.get(i as usize).map(String::as_str) {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => Ok(Some(window)),
            None if kinds.is_empty() => Ok((i % 2 == 0).then_some(window)),
            Some(other) => Err(settings.refuse("layer_types", format_args!("{other:?} is not known"))),
            None => Err(settings.refuse("layer_types", format_args!("{} kinds for {layers} layers", kinds.len()))),
        });
        let heads = settings.size("num_attention_heads", 8)?;
        let key_heads = settings.size("num_key_value_heads", 4)?;
        if heads % key_heads != 0 {
            let detail = format_args!("{key_heads} does not divide num_attention_heads {heads}");
            return Err(settings.refuse("num_key_value_heads", detail));
        }
        let head_features = settings.size("head_dim", 256)?;
        settings.refuse_odd_heads(head_features)?;
        Ok(Self {
            vocabulary: settings.size("vocab_size", 256_000)?,
            width: settings.size("hidden_size", 2304)?,
            hidden: settings.size("intermediate_size", 9216)?,
            heads,
            key_heads,
            head_features,
            windows: windows.collect::<Result<_, _>>()?,
            scale: 1.0 / settings.positive("query_pre_attn_scalar", 256.0)?.sqrt(),
            cap: if settings.has_null("attn_logit_softcapping") {
                None
            } else {
                Some(settings.positive("attn_logit_softcapping", 50.0)?)
            },
            epsilon: settings.positive("rms_norm_eps", 1e-6)?,
            activation: settings.activation(&["hidden_activation"], Activation::GeluTanh)?,
            bias: settings.flag("attention_bias", false)?,
            rotary: RotarySettings::read(settings, None, "rope_theta", 10_000.0, head_features)?,
        })
    }
}

/// Norms before and after attention and feed-forward.
#[derive(Debug)]
struct Layer {
    norms: [RmsNorm; 4],
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    feed_forward: GatedFeedForward,
    window: Option<i64>,
}

impl Layer {
    fn new(scope: &Scope, config: &Gemma2Config, window: Option<i64>) -> Self {
        let attention = scope.at("self_attn");
        let projection =
            |name: &str, inputs, outputs| Linear::with_bias_if(config.bias, &attention.at(name), inputs, outputs);
        let norm = |name: &str| RmsNorm::around_one(&scope.at(name), config.width, config.epsilon);
        let (queries, keys) = (config.heads * config.head_features, config.key_heads * config.head_features);
        Self {
            norms: [
                norm("input_layernorm"),
                norm("post_attention_layernorm"),
                norm("pre_feedforward_layernorm"),
                norm("post_feedforward_layernorm"),
            ],
            query: projection("q_proj", config.width, queries),
            key: projection("k_proj", config.width, keys),
            value: projection("v_proj", config.width, keys),
            out: projection("o_proj", queries, config.width),
            feed_forward: GatedFeedForward::new(
                &scope.at("mlp"),
                config.width,
                config.hidden,
                false,
                config.activation,
            ),
            window,
        }
    }

    fn forward(&self, x: &Tensor, rotation: &HalfRotation, mask: &Tensor, config: &Gemma2Config) -> Tensor {
        let [before_attention, after_attention, before_feed_forward, after_feed_forward] = &self.norms;
        let normalised = before_attention.forward(x);
        let split =
            |layer: &Linear| layer.forward(&normalised).unflatten(-1, [-1, config.head_features]).transpose(1, 2);
        let query = rotation.apply(&split(&self.query));
        let key = rotation.apply(&split(&self.key));
        let attended = softmax_attention(&query, &key, &split(&self.value), mask, config.scale, config.cap);
        let attended = self.out.forward(&attended.transpose(1, 2).flatten(2, 3));
        let x = x + after_attention.forward(&attended);
        let fed = self.feed_forward.forward(&before_feed_forward.forward(&x));
        &x + after_feed_forward.forward(&fed)
    }
}

/// The model without its output layer.
#[derive(Debug)]
pub struct Gemma2 {
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: RmsNorm,
    config: Gemma2Config,
}

impl Gemma2 {
    /// Reads a folder in the Hugging Face layout. An output layer in it is not needed.
    pub fn open(folder: &Path, device: Device, kind: Kind) -> Result<Loaded<Self>, ModelError> {
        let settings = Settings::in_folder(folder)?;
        settings.expect_type(&["gemma2"])?;
        let config = Gemma2Config::read(&settings)?;
        let weights = Weights::open(folder)?.renamed(|name| {
            let name = name.strip_prefix("model.").unwrap_or(name);
            (!name.starts_with("lm_head.") && !name.starts_with("score.") && !name.ends_with("inv_freq"))
                .then(|| name.to_owned())
        });
        Scope::read(weights, device, kind, |scope| Self::new(scope, &config))
    }

    /// Over any scope: for benches with parameters that come from no file.
    pub fn new(scope: &Scope, config: &Gemma2Config) -> Self {
        let shape = [config.vocabulary, config.width];
        let layers = scope.at("layers");
        Self {
            embedding: scope.at("embed_tokens").parameter("weight", &shape, Initial::Linear { inputs: config.width }),
            layers: config.windows.iter().enumerate().map(|(i, &w)| Layer::new(&layers.at(i), config, w)).collect(),
            norm: RmsNorm::around_one(&scope.at("norm"), config.width, config.epsilon),
            config: config.clone(),
        }
    }

    pub fn config(&self) -> &Gemma2Config {
        &self.config
    }

    /// The last hidden state, (batch, tokens, width). `ids` (batch, tokens; int64), `mask` likewise, 1 where there is a token.
    pub fn forward(&self, ids: &Tensor, mask: &Tensor) -> Result<Tensor, ModelError> {
        let config = &self.config;
        let tokens = check_ids(ids, Some(mask), config.vocabulary, None)?;
        let kind = self.embedding.kind();
        // The factor is rounded to the model's type, as the reference does.
        let factor = Tensor::from((config.width as f64).sqrt()).to_device(ids.device()).to_kind(kind);
        let mut x = Tensor::embedding(&self.embedding, ids, -1, false, false) * factor;
        let rotation = HalfRotation::sequence(tokens, &config.rotary.tensor(), kind, ids.device());
        let present = mask.to_kind(Kind::Bool);
        let full = padding_mask(&present, kind, |query, key| key.le_tensor(query));
        let windowed = |window: i64| {
            padding_mask(&present, kind, |query, key| key.le_tensor(query).logical_and(&(query - key).lt(window)))
        };
        let sliding = config.windows.iter().flatten().next().map(|&window| windowed(window));
        for layer in &self.layers {
            let mask = sliding.as_ref().filter(|_| layer.window.is_some()).unwrap_or(&full);
            x = layer.forward(&x, &rotation, mask, config);
        }
        Ok(self.norm.forward(&x))
    }
}
