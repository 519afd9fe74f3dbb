//! Llama 2 and 3 and what is built like them (transformers' `LlamaForCausalLM`).
//!
//! Sequences of different lengths are kept without padding in front: each lies in a slot of the cache from position 0 on, so
//! a token's position is its place, and a sequence gives the same answer alone and beside others.

mod cache;
mod config;
mod generate;

pub use cache::Cache;
pub use config::LlamaConfig;
pub use generate::{Draw, Generation, Sampling, choose};

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::layers::{GatedFeedForward, HalfRotation, Linear, RmsNorm, attend};
use crate::parameters::{Initial, Loaded, Scope};
use crate::settings::Settings;
use crate::text::check_ids;
use crate::weights::Weights;

#[derive(Debug)]
struct Layer {
    attention_norm: RmsNorm,
    /// Queries, keys and values of all heads, one after the other.
    heads: Linear,
    out: Linear,
    feed_forward_norm: RmsNorm,
    feed_forward: GatedFeedForward,
}

impl Layer {
    fn new(scope: &Scope, config: &LlamaConfig) -> Self {
        let attention = scope.at("self_attn");
        let [attention_bias, feed_forward_bias] = config.biases;
        let projection =
            |name: &str, inputs, outputs| Linear::with_bias_if(attention_bias, &attention.at(name), inputs, outputs);
        let norm = |name: &str| RmsNorm::with_epsilon(&scope.at(name), config.width, config.epsilon);
        let (width, queries, keys) =
            (config.width, config.heads * config.head_features, config.key_heads * config.head_features);
        Self {
            attention_norm: norm("input_layernorm"),
            heads: Linear::side_by_side(&[
                projection("q_proj", width, queries),
                projection("k_proj", width, keys),
                projection("v_proj", width, keys),
            ]),
            out: projection("o_proj", queries, width),
            feed_forward_norm: norm("post_attention_layernorm"),
            feed_forward: GatedFeedForward::new(
                &scope.at("mlp"),
                width,
                config.hidden,
                feed_forward_bias,
                config.activation,
            ),
        }
    }

    /// Brings `x` (sequences, tokens, width) through the layer, in place. `attended` is given rotated queries and keys, and values, each
    /// (sequences, heads, tokens, features), and returns the attention's result, (sequences, tokens, heads × features).
    ///
    /// One token at a time, on a GPU it is the number of kernels that takes time: what can be one is one.
    fn forward(
        &self,
        x: &mut Tensor,
        rotation: &HalfRotation,
        config: &LlamaConfig,
        attended: impl FnOnce(Tensor, Tensor, Tensor) -> Tensor,
    ) {
        let heads = self.heads.forward(&self.attention_norm.forward(x));
        let heads = heads.unflatten(-1, [-1, config.head_features]).transpose(1, 2);
        let (queries, keys) = (config.heads, config.key_heads);
        let turned = rotation.apply(&heads.narrow(1, 0, queries + keys));
        let [query, key] = [turned.narrow(1, 0, queries), turned.narrow(1, queries, keys)];
        self.out.add_to(x, &attended(query, key, heads.narrow(1, queries + keys, keys)));
        let normalised = self.feed_forward_norm.forward(x);
        self.feed_forward.add_to(x, &normalised);
    }
}

/// The output layer: its own where the files have one, whatever the configuration says of tying, and the embedding otherwise. One
/// that equals the embedding takes no memory of its own.
fn output_layer(head: &Scope, embedding: &Tensor, config: &LlamaConfig) -> Linear {
    if config.tied && !head.has("weight") {
        return Linear::tied(embedding);
    }
    let own = Linear::without_bias(head, config.width, config.vocabulary);
    if config.tied && own.has_weight(embedding) { Linear::tied(embedding) } else { own }
}

/// A language model.
#[derive(Debug)]
pub struct Llama {
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: RmsNorm,
    output: Linear,
    frequencies: Tensor,
    config: LlamaConfig,
}

impl Llama {
    /// Reads a folder in the Hugging Face layout, or a GGUF file.
    pub fn open(path: &Path, device: Device, kind: Kind) -> Result<Loaded<Self>, ModelError> {
        let (config, weights) = if path.is_dir() {
            let settings = Settings::in_folder(path)?;
            settings.expect_type(&["llama"])?;
            let mut config = LlamaConfig::read(&settings)?;
            config.add_stops(path)?;
            let weights = Weights::open(path)?.renamed(|name| (!name.ends_with("inv_freq")).then(|| name.to_owned()));
            (config, weights)
        } else {
            LlamaConfig::from_gguf(path)?
        };
        Scope::read(weights, device, kind, |scope| Self::new(&scope.at("model"), &scope.at("lm_head"), &config))
    }

    /// Over `model` (embedding, layers, norm) and `head` (the output layer, unless it is tied).
    pub(crate) fn new(model: &Scope, head: &Scope, config: &LlamaConfig) -> Self {
        let initial = Initial::Linear { inputs: config.width };
        let embedding = model.at("embed_tokens").parameter("weight", &[config.vocabulary, config.width], initial);
        let layers = model.at("layers");
        Self {
            layers: (0..config.layers).map(|i| Layer::new(&layers.at(i), config)).collect(),
            norm: RmsNorm::with_epsilon(&model.at("norm"), config.width, config.epsilon),
            output: output_layer(head, &embedding, config),
            frequencies: config.rotary.tensor().to_device(embedding.device()),
            embedding,
            config: config.clone(),
        }
    }

    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    pub fn device(&self) -> Device {
        self.embedding.device()
    }

    pub fn kind(&self) -> Kind {
        self.embedding.kind()
    }

    /// Token embeddings, (…, width), of `ids` (…, int64).
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor, ModelError> {
        check_ids(ids, None, self.config.vocabulary, None)?;
        Ok(Tensor::embedding(&self.embedding, ids, -1, false, false))
    }

    fn rotation(&self, positions: &Tensor) -> HalfRotation {
        HalfRotation::new(positions, &self.frequencies, self.kind()).for_heads()
    }

    /// Logits, (sequences, tokens, vocabulary), of whole sequences from their first token on. `embeddings` (sequences,
    /// tokens, width); shorter sequences are padded behind, where the logits mean nothing.
    pub fn logits(&self, embeddings: &Tensor) -> Tensor {
        let hidden = self.through(embeddings, |_, _, _| ());
        self.output.forward(&hidden)
    }

    /// The last hidden state of whole sequences; `keep` is given each layer's number, keys and values.
    fn through(&self, embeddings: &Tensor, mut keep: impl FnMut(usize, &Tensor, &Tensor)) -> Tensor {
        let tokens = embeddings.size().get(1).copied().unwrap_or(0);
        let positions = Tensor::arange(tokens, (Kind::Int64, self.device())).unsqueeze(0);
        let rotation = self.rotation(&positions);
        let mut x = embeddings.contiguous().copy();
        for (i, layer) in self.layers.iter().enumerate() {
            layer.forward(&mut x, &rotation, &self.config, |query, key, value| {
                keep(i, &key, &value);
                attend(&query, &key, &value, None, true, None).transpose(1, 2).flatten(2, 3)
            });
        }
        self.norm.forward(&x)
    }

    /// Puts whole sequences into the cache's slots from `first` on, and returns the logits of the token that follows each,
    /// (sequences, vocabulary). `embeddings` (sequences, tokens, width), padded behind; `lengths` without the padding.
    pub fn prefill(&self, cache: &mut Cache, first: i64, embeddings: &Tensor, lengths: &[i64]) -> Tensor {
        let hidden = self.through(embeddings, |layer, key, value| cache.fill(layer, first, key, value));
        cache.set_lengths(first, lengths);
        let last = (Tensor::from_slice(lengths) - 1).to_device(self.device());
        let index = last.view([-1, 1, 1]).expand([-1, 1, self.config.width], false);
        self.output.forward(&hidden.gather(1, &index, false).squeeze_dim(1))
    }

    /// Takes one more token in each of the cache's first `tokens.len()` slots, and returns the logits of those that follow,
    /// (sequences, vocabulary).
    pub fn decode(&self, cache: &mut Cache, tokens: &[i64]) -> Result<Tensor, ModelError> {
        let count = tokens.len() as i64;
        // Here, and not by [`check_ids`]: on a GPU that would wait for everything under way.
        if let Some(token) = tokens.iter().find(|token| !(0..self.config.vocabulary).contains(*token)) {
            let expected = format!("from 0 to {}", self.config.vocabulary - 1);
            return Err(ModelError::Configuration { what: "a token id", value: token.to_string(), expected });
        }
        let ids = Tensor::from_slice(tokens).to_device(self.device()).view([count, 1]);
        let mut x = Tensor::embedding(&self.embedding, &ids, -1, false, false);
        let step = cache.begin_step(count);
        let rotation = self.rotation(&step.positions.unsqueeze(1));
        for (i, layer) in self.layers.iter().enumerate() {
            layer.forward(&mut x, &rotation, &self.config, |query, key, value| {
                let (keys, values) = cache.append(i, &step, &key, &value);
                // Query heads that share a key head become rows of one query, so that keys are not copied.
                let shared = query.reshape([count, self.config.key_heads, -1, self.config.head_features]);
                attend(&shared, &keys, &values, step.mask.as_ref(), false, None).reshape([count, 1, -1])
            });
        }
        cache.end_step(&step);
        Ok(self.output.forward(&self.norm.forward(&x).squeeze_dim(1)))
    }
}
