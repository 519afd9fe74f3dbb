//! Sizes and settings of a Llama, from a Hugging Face folder or a GGUF file.

use std::path::Path;

use serde_json::json;

use crate::ModelError;
use crate::layers::Activation;
use crate::settings::{RotarySettings, Settings};
use crate::weights::{GgufMetadata, Weights};

/// Sizes and settings.
#[derive(Clone, Debug)]
pub struct LlamaConfig {
    pub vocabulary: i64,
    pub width: i64,
    pub hidden: i64,
    pub layers: i64,
    pub heads: i64,
    pub key_heads: i64,
    pub head_features: i64,
    /// The longest sequence it was made for, in tokens.
    pub positions: i64,
    pub epsilon: f64,
    pub activation: Activation,
    /// Biases of attention and of feed-forward.
    pub biases: [bool; 2],
    /// Whether the output layer is the embedding.
    pub tied: bool,
    pub rotary: RotarySettings,
    /// Tokens that end an answer.
    pub stop: Vec<i64>,
}

impl LlamaConfig {
    /// Reads a `config.json` (or the table of it that describes the language model).
    pub fn read(settings: &Settings) -> Result<Self, ModelError> {
        let width = settings.size("hidden_size", 4096)?;
        let heads = settings.size("num_attention_heads", 32)?;
        let key_heads = settings.size("num_key_value_heads", heads)?;
        if heads % key_heads != 0 {
            let detail = format_args!("{key_heads} does not divide num_attention_heads {heads}");
            return Err(settings.refuse("num_key_value_heads", detail));
        }
        let head_features = settings.size("head_dim", (width / heads).max(1))?;
        settings.refuse_odd_heads(head_features)?;
        Ok(Self {
            vocabulary: settings.size("vocab_size", 32_000)?,
            width,
            hidden: settings.size("intermediate_size", 11_008)?,
            layers: settings.layers("num_hidden_layers", 32)?,
            heads,
            key_heads,
            head_features,
            positions: settings.size("max_position_embeddings", 2048)?,
            epsilon: settings.positive("rms_norm_eps", 1e-6)?,
            activation: settings.activation(&["hidden_act"], Activation::Silu)?,
            biases: [settings.flag("attention_bias", false)?, settings.flag("mlp_bias", false)?],
            tied: settings.flag("tie_word_embeddings", false)?,
            rotary: RotarySettings::read(settings, None, "rope_theta", 10_000.0, head_features)?,
            stop: settings.integers("eos_token_id")?,
        })
    }

    /// Adds the tokens that `generation_config.json` in `folder` ends answers with, when there is one.
    pub(crate) fn add_stops(&mut self, folder: &Path) -> Result<(), ModelError> {
        let path = folder.join("generation_config.json");
        if path.exists() {
            let more = Settings::read(&path)?.integers("eos_token_id")?;
            self.stop.extend(more);
            self.stop.sort_unstable();
            self.stop.dedup();
        }
        Ok(())
    }

    /// Reads the metadata of a GGUF file, and brings its tensors into the published names and order of rows.
    pub(super) fn from_gguf(path: &Path) -> Result<(Self, Weights), ModelError> {
        let metadata = GgufMetadata::open(path)?;
        let architecture = metadata.str("general.architecture")?;
        if architecture != "llama" {
            let detail = format!("general.architecture is {architecture:?}; llama is what can be read");
            return Err(ModelError::Record { path: path.to_owned(), what: "GGUF file", detail });
        }
        let weights = Weights::open(path)?;
        let rows = weights.shape("token_embd.weight").and_then(|shape| shape.first()).copied();
        let number = |key: &str| metadata.u64(&format!("llama.{key}"));
        let real = |key: &str| metadata.f64(&format!("llama.{key}"));
        // A key may be absent; one that is there must be of its type.
        let has = |key: &str| metadata.get(&format!("llama.{key}")).is_some();
        let scaling = "llama.rope.scaling.type";
        if metadata.get(scaling).is_some() && metadata.str(scaling)? != "none" {
            let detail = format!("{scaling} is {:?}, which is not known here", metadata.str(scaling)?);
            return Err(ModelError::Record { path: path.to_owned(), what: "GGUF file", detail });
        }
        let heads = number("attention.head_count")?;
        let width = number("embedding_length")?;
        let mut stop = Vec::new();
        for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
            if metadata.get(key).is_some() {
                stop.push(metadata.u64(key)?);
            }
        }
        let values = json!({
            "vocab_size": rows,
            "hidden_size": width,
            "intermediate_size": number("feed_forward_length")?,
            "num_hidden_layers": number("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": if has("attention.head_count_kv") { number("attention.head_count_kv")? } else { heads },
            "head_dim": if has("attention.key_length") {
                number("attention.key_length")?
            } else {
                width.checked_div(heads).unwrap_or(0)
            },
            "max_position_embeddings": number("context_length")?,
            "rms_norm_eps": real("attention.layer_norm_rms_epsilon")?,
            "rope_theta": if has("rope.freq_base") { real("rope.freq_base")? } else { 10_000.0 },
            "tie_word_embeddings": !weights.contains("output.weight"),
            "eos_token_id": stop,
        });
        let mut config = Self::read(&Settings::from_values(values, path))?;
        // Llama 3.1's stretched frequencies come as a tensor of divisors.
        if let Some(divisors) = weights.read("rope_freqs.weight")? {
            let divisors = Vec::<f64>::try_from(divisors.to_kind(tch::Kind::Double)).unwrap_or_default();
            if divisors.len() != config.rotary.frequencies.len() || !divisors.iter().all(|divisor| *divisor > 0.0) {
                let detail = format!("rope_freqs.weight is not {} positive numbers", config.rotary.frequencies.len());
                return Err(ModelError::Record { path: path.to_owned(), what: "GGUF file", detail });
            }
            for (frequency, divisor) in config.rotary.frequencies.iter_mut().zip(divisors) {
                *frequency /= divisor;
            }
        }
        let weights = weights
            .with_split_heads(|name| match name {
                _ if name.ends_with(".attn_q.weight") => Some(config.heads),
                _ if name.ends_with(".attn_k.weight") => Some(config.key_heads),
                _ => None,
            })
            .renamed(published_name);
        Ok((config, weights))
    }
}

/// A GGUF's name in the published layout; `None` for what is not a parameter.
fn published_name(name: &str) -> Option<String> {
    const LAYER: [(&str, &str); 9] = [
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    let in_layer = |rest: &str| {
        let (index, rest) = rest.split_once('.')?;
        let (part, kind) = rest.rsplit_once('.')?;
        let (_, published) = LAYER.iter().find(|(gguf, _)| *gguf == part)?;
        Some(format!("model.layers.{index}.{published}.{kind}"))
    };
    match name {
        "token_embd.weight" => Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => Some("model.norm.weight".into()),
        "output.weight" => Some("lm_head.weight".into()),
        "rope_freqs.weight" => None,
        _ => Some(name.strip_prefix("blk.").and_then(in_layer).unwrap_or_else(|| name.to_owned())),
    }
}
