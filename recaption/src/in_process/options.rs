//! What is said of a model in this process: what determines its answers, and how it works.

use std::path::PathBuf;

use models::llava::ImageMode;
use models::settings::folder_digest;
use models::{ModelError, device};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Kind};

use crate::server::OptionsError;

/// Slots that one captioner may have.
const MOST_SLOTS: usize = 1024;
/// Tokens of a prompt and its answer, whatever is written.
const MOST_TOKENS: usize = 1 << 20;
const LEAST_TOKENS: usize = 16;
/// Tokens of a prompt and its answer, where nothing is written: the published LLaVA-NeXT's largest image has 2,928.
pub(super) const USUAL_TOKENS: i64 = 4096;

/// A model in this process.
// Only `semantics` may be part of a fingerprint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InProcessOptions {
    #[serde(flatten)]
    pub semantics: Semantics,
    #[serde(flatten)]
    pub operations: Operations,
}

/// What determines the answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Semantics {
    /// The model's folder in the Hugging Face layout, with its tokenizer: LLaVA-NeXT, or a Llama for texts alone, which may be a
    /// GGUF file too.
    pub folder: PathBuf,
    /// How images are cut: "pad" makes them square, one tile, few tokens; "anyres" makes up to six tiles, as servers do [pad].
    pub image_mode: ImageMode,
    /// The type of weights and sums: "bfloat16", "float16" or "float32" [bfloat16 on a GPU, float32 on the CPU].
    pub dtype: Option<Dtype>,
}

/// How it works; changes nothing about an answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Operations {
    /// Where the model works: "cpu", "cuda" or "cuda:N" [the first GPU, where this libtorch has one, else the CPU].
    pub device: Option<String>,
    /// Requests that are answered at a time; halved when memory runs out [16].
    pub slots: usize,
    /// The longest prompt and answer together, in tokens, an image's included; each slot has room for as many [4096, or as many as
    /// the model was made for].
    pub tokens: Option<usize>,
}

impl Default for Semantics {
    fn default() -> Self {
        Self { folder: PathBuf::new(), image_mode: ImageMode::Pad, dtype: None }
    }
}

impl Default for Operations {
    fn default() -> Self {
        Self { device: None, slots: 16, tokens: None }
    }
}

/// A type of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    Bfloat16,
    Float16,
    Float32,
}

impl Dtype {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Bfloat16 => Kind::BFloat16,
            Self::Float16 => Kind::Half,
            Self::Float32 => Kind::Float,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
            Self::Float32 => "float32",
        }
    }
}

/// Why there is no captioner.
#[derive(Debug, thiserror::Error)]
pub enum InProcessError {
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The folder, or the memory of the device.
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("cannot start a thread for the model")]
    Thread(#[source] std::io::Error),
}

pub(super) fn fault(key: &'static str, message: impl Into<String>) -> OptionsError {
    OptionsError { key, message: message.into() }
}

impl InProcessOptions {
    /// Whether a captioner can be made of it, as far as that can be said without a look at the machine.
    pub fn check(&self) -> Result<(), OptionsError> {
        if self.semantics.folder.as_os_str().is_empty() {
            return Err(fault("folder", "expected the folder of a model"));
        }
        let Operations { slots, tokens, .. } = self.operations;
        if !(1..=MOST_SLOTS).contains(&slots) {
            return Err(fault("slots", format!("{slots}: expected 1 to {MOST_SLOTS}")));
        }
        if let Some(tokens) = tokens.filter(|tokens| !(LEAST_TOKENS..=MOST_TOKENS).contains(tokens)) {
            return Err(fault("tokens", format!("{tokens}: expected {LEAST_TOKENS} to {MOST_TOKENS}")));
        }
        self.operations.asked_device().map(drop)
    }
}

impl Semantics {
    /// What the answers depend on, for fingerprints: contents, and no paths.
    pub fn identity(&self) -> Result<Value, ModelError> {
        Ok(json!({"model": folder_digest(&self.folder)?, "image_mode": self.image_mode, "dtype": self.dtype}))
    }
}

impl Operations {
    /// The device that is asked for; `None` where nothing is said.
    fn asked_device(&self) -> Result<Option<Device>, OptionsError> {
        let Some(name) = &self.device else { return Ok(None) };
        let unknown = || fault("device", format!("{name:?}: expected \"cpu\", \"cuda\" or \"cuda:N\""));
        device::parse(name).map(Some).ok_or_else(unknown)
    }

    /// The device to work on, when this machine has it.
    pub(super) fn device(&self) -> Result<Device, OptionsError> {
        device::named(self.device.as_deref(), 0).map_err(|message| fault("device", message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<InProcessOptions, String> {
        let options: InProcessOptions = serde_json::from_value(value).map_err(|error| error.to_string())?;
        options.check().map_err(|error| error.to_string())?;
        Ok(options)
    }

    #[test]
    fn options_have_defaults_and_faults_have_keys() {
        let options =
            read(json!({ "folder": "m", "image_mode": "anyres", "dtype": "float16", "device": "cuda:3" })).unwrap();
        assert_eq!((options.semantics.image_mode, options.operations.slots), (ImageMode::Anyres, 16));
        assert_eq!(options.operations.asked_device(), Ok(Some(Device::Cuda(3))));
        assert_eq!(read(json!({ "folder": "m" })).unwrap().semantics.image_mode, ImageMode::Pad);
        for (key, value, words) in [
            ("folder", json!(""), "folder: expected the folder"),
            ("image_mode", json!("any"), "unknown variant `any`, expected `anyres` or `pad`"),
            ("dtype", json!("int8"), "unknown variant `int8`"),
            ("device", json!("gpu"), "device: \"gpu\": expected \"cpu\""),
            ("device", json!("cuda:-1"), "device: \"cuda:-1\""),
            ("slots", json!(0), "slots: 0: expected 1 to 1024"),
            ("tokens", json!(7), "tokens: 7: expected 16 to"),
            ("slot", json!(1), "unknown field `slot`"),
        ] {
            let mut options = json!({ "folder": "m" });
            options[key] = value;
            let error = read(options).unwrap_err();
            assert!(error.contains(words), "{key}: {error}");
        }
    }

    #[test]
    fn the_schema_knows_all_keys() {
        let schema = serde_json::to_value(schemars::schema_for!(InProcessOptions)).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        for key in ["folder", "image_mode", "dtype", "device", "slots", "tokens"] {
            assert!(properties[key].get("description").is_some(), "{key}: {schema}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_refused_in_words() {
        let operations = Operations { device: Some("cuda:1000".to_owned()), ..Operations::default() };
        let error = operations.device().unwrap_err().to_string();
        assert!(error.starts_with("device: cuda:1000: this "), "{error}");
    }
}
