//! The configuration file of the reference system (`model_params_*.json`), which lies beside its weights.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{AttentionKind, FeedForwardKind, MmditConfig, MmditVariant, Positions};
use crate::ModelError;
use crate::autoencoder::Affine;
use crate::latents::Latents;
use crate::weights::Weights;

/// The reference's own names. Keys that say nothing about the model (`device`, `wandb_id`, …) are passed over.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Parameters {
    #[serde(rename = "inCh")]
    channels: i64,
    class_dim: i64,
    patch_size: i64,
    dim: i64,
    hidden_scale: f64,
    num_heads: i64,
    attn_type: String,
    /// Files from before there was a choice have none.
    #[serde(rename = "MLP_type", default = "swiglu_old")]
    mlp_type: String,
    num_blocks: i64,
    positional_encoding: String,
    #[serde(default = "side")]
    max_res_orig: f64,
    #[serde(default = "side")]
    max_res: f64,
    #[serde(default)]
    kv_merge_attn: bool,
    #[serde(default)]
    qk_half_dim: bool,
    #[serde(default)]
    text_loss: bool,
    /// Ours: how latents are scaled, where that is not as the reference does. Its loader refuses a file with this key, rather than
    /// decode by its own convention what was trained by another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    latent_affine: Option<Affine>,
    /// Its loader needs one, and passes over it.
    #[serde(default = "cpu", skip_deserializing)]
    device: String,
}

fn swiglu_old() -> String {
    "swiglu_old".into()
}

fn side() -> f64 {
    256.0
}

fn cpu() -> String {
    "cpu".into()
}

/// The element of `table` with that name, or an error that lists the names.
fn choose<T: Copy>(what: &'static str, name: &str, table: &[(&str, T)]) -> Result<T, ModelError> {
    table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value).ok_or_else(|| ModelError::Configuration {
        what,
        value: format!("{name:?}"),
        expected: format!("one of {}", table.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ")),
    })
}

const POSITIONS: [(&str, Positions); 5] = [
    ("RoPE2d", Positions::Rope2d),
    ("RoPE", Positions::Rope),
    ("RoPE2dV2", Positions::Rope2dV2),
    ("absolute", Positions::Absolute),
    ("NoPE", Positions::None),
];
const ATTENTION: [(&str, AttentionKind); 4] = [
    ("softmax_flash", AttentionKind::Softmax),
    ("softmax", AttentionKind::Softmax),
    ("cosine", AttentionKind::Cosine),
    ("both", AttentionKind::Both),
];
const FEED_FORWARD: [(&str, FeedForwardKind); 3] =
    [("swiglu", FeedForwardKind::SwiGlu), ("swiglu_old", FeedForwardKind::SwiGluOld), ("gelu", FeedForwardKind::Gelu)];

impl MmditConfig {
    /// Reads the reference's configuration file. What it does not say (the width of the text) is taken from the weights.
    pub fn from_reference(path: &Path, weights: &Weights) -> Result<Self, ModelError> {
        let damaged = |detail| damaged(path, detail);
        let parameters = Parameters::read(path)?;
        let text_width = weights.shape("c_proj.weight").and_then(|shape| shape.get(1)).copied().ok_or_else(|| {
            damaged(format!("{} has no c_proj.weight to take the width of the text from", weights.path().display()))
        })?;
        parameters.config(text_width).map_err(|e| damaged(e.to_string()))
    }

    /// The longest side of the images that the model of such a file was trained with, in pixels.
    pub fn resolution_of_reference(path: &Path) -> Result<u32, ModelError> {
        Ok(Parameters::read(path)?.max_res.clamp(1.0, f64::from(1 << 16)) as u32)
    }

    /// How the latents were scaled that the model of such a file was trained on: as the reference scales them, unless a conversion
    /// wrote down another way.
    pub fn affine_of_reference(path: &Path) -> Result<Affine, ModelError> {
        Ok(Parameters::read(path)?.latent_affine.unwrap_or(Affine::ScaleThenShift))
    }
}

fn damaged(path: &Path, detail: String) -> ModelError {
    ModelError::Record { path: path.to_owned(), what: "model_params file", detail }
}

/// The name of `value` in a table; the first that stands for it.
fn name_of<T: PartialEq>(value: &T, table: &[(&str, T)]) -> String {
    table.iter().find(|(_, known)| known == value).map_or_else(String::new, |(name, _)| (*name).to_owned())
}

impl MmditConfig {
    /// The contents of the reference's configuration file for this model, trained on `latents` of images with sides of up to
    /// `max_resolution` pixels; `None` for a model it has no words for: one with a single text stream, or with scaled positions
    /// where it scales none.
    pub fn to_reference(&self, max_resolution: u32, latents: &Latents) -> Option<Value> {
        let variant = self.variant;
        let scales = matches!(variant.positions, Positions::Rope | Positions::Rope2dV2);
        if self.text_streams != 2 || (!scales && variant.position_scale != 1.0) {
            return None;
        }
        let max_res = f64::from(max_resolution.max(1));
        let affine = match latents {
            Latents::Autoencoder(of) => of.affine,
            Latents::Pixels => Affine::ScaleThenShift,
        };
        let parameters = Parameters {
            channels: self.channels,
            class_dim: self.pooled_width,
            patch_size: self.patch_size,
            dim: self.width,
            hidden_scale: self.hidden as f64 / self.width as f64,
            num_heads: self.heads,
            attn_type: name_of(&variant.attention, &ATTENTION),
            mlp_type: name_of(&variant.feed_forward, &FEED_FORWARD),
            num_blocks: self.blocks,
            positional_encoding: name_of(&variant.positions, &POSITIONS),
            max_res_orig: max_res * variant.position_scale,
            max_res,
            kv_merge_attn: variant.merge_keys,
            qk_half_dim: variant.half_queries,
            text_loss: variant.text_loss,
            latent_affine: (affine != Affine::ScaleThenShift).then_some(affine),
            device: cpu(),
        };
        serde_json::to_value(parameters).ok()
    }
}

impl Parameters {
    fn read(path: &Path) -> Result<Self, ModelError> {
        let bytes = crate::read_at_most(path, 1 << 20, "model_params file")?;
        serde_json::from_slice(&bytes).map_err(|error| damaged(path, error.to_string()))
    }

    fn config(&self, text_width: i64) -> Result<MmditConfig, ModelError> {
        let positions = choose("positional_encoding", &self.positional_encoding, &POSITIONS)?;
        let config = MmditConfig {
            channels: self.channels,
            patch_size: self.patch_size,
            width: self.dim,
            blocks: self.num_blocks,
            heads: self.num_heads,
            hidden: (self.hidden_scale * self.dim as f64).round() as i64,
            text_streams: 2,
            text_width,
            pooled_width: self.class_dim,
            zero_gates: false,
            variant: MmditVariant {
                positions,
                // Its interpolation has no effect on RoPE2d: positions are whole numbers at every resolution.
                position_scale: match positions {
                    Positions::Rope | Positions::Rope2dV2 => self.max_res_orig / self.max_res,
                    _ => 1.0,
                },
                attention: choose("attn_type", &self.attn_type, &ATTENTION)?,
                feed_forward: choose("MLP_type", &self.mlp_type, &FEED_FORWARD)?,
                merge_keys: self.kv_merge_attn,
                half_queries: self.qk_half_dim,
                text_loss: self.text_loss,
            },
        };
        config.validate()?;
        Ok(config)
    }
}
