//! What stands between captions and the model.

mod hash;
mod pretrained;
mod truncation;

pub use hash::HashEncoder;
pub use pretrained::PretrainedEncoder;
pub use truncation::{Truncated, Truncation};

use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use self::pretrained::Tokenizers;
use crate::ModelError;
use crate::settings::folder_digest;

/// Captions as the model takes them. A dropped caption (the null condition) is exact zeros throughout.
#[derive(Debug)]
pub struct TextCondition {
    /// One tensor a stream, each (batch, tokens, features). Positions past a caption's end are zeros.
    pub tokens: Vec<Tensor>,
    /// (batch, features)
    pub pooled: Tensor,
}

impl TextCondition {
    /// The condition of the captions whose entry in `keep` is true; the others become the null condition.
    #[must_use]
    pub fn keep(&self, keep: &[bool]) -> Self {
        self.keep_parts(&vec![keep.to_vec(); self.tokens.len()], keep)
    }

    /// The condition with parts of some captions dropped: of each stream of tokens, and of the pooled text, those whose entry is false
    /// (one entry a caption; a stream without a list is kept).
    #[must_use]
    pub fn keep_parts(&self, tokens: &[Vec<bool>], pooled: &[bool]) -> Self {
        let factors = |keep: &[bool]| {
            let factors: Vec<f32> = keep.iter().map(|&keep| f32::from(u8::from(keep))).collect();
            Tensor::from_slice(&factors).to_device(self.pooled.device())
        };
        // Tokens are most of a batch: where all are kept, they are not copied.
        let kept = |(number, stream): (usize, &Tensor)| match tokens.get(number) {
            Some(keep) if keep.contains(&false) => stream * factors(keep).view([-1, 1, 1]),
            _ => stream.shallow_clone(),
        };
        Self {
            tokens: self.tokens.iter().enumerate().map(kept).collect(),
            pooled: &self.pooled * factors(pooled).view([-1, 1]),
        }
    }

    /// The null condition, of the same shape.
    #[must_use]
    pub fn null(&self) -> Self {
        Self { tokens: self.tokens.iter().map(Tensor::zeros_like).collect(), pooled: self.pooled.zeros_like() }
    }

    /// Both conditions, one batch after the other.
    #[must_use]
    pub fn followed_by(&self, other: &Self) -> Self {
        let tokens = self.tokens.iter().zip(&other.tokens).map(|(a, b)| Tensor::cat(&[a, b], 0)).collect();
        Self { tokens, pooled: Tensor::cat(&[&self.pooled, &other.pooled], 0) }
    }

    /// The captions `start..start + length` of the batch.
    #[must_use]
    pub fn narrow(&self, start: i64, length: i64) -> Self {
        Self {
            tokens: self.tokens.iter().map(|t| t.narrow(0, start, length)).collect(),
            pooled: self.pooled.narrow(0, start, length),
        }
    }

    #[must_use]
    pub fn to_device(&self, device: Device) -> Self {
        Self {
            tokens: self.tokens.iter().map(|t| t.to_device(device)).collect(),
            pooled: self.pooled.to_device(device),
        }
    }
}

/// The number of tokens of `ids` (batch, tokens; int64), when the model has an embedding for each and, where it has only so
/// many positions, one for each of those too.
///
/// A `mask` must have the shape of the ids, and both must then have two dimensions.
pub(crate) fn check_ids(
    ids: &Tensor,
    mask: Option<&Tensor>,
    vocabulary: i64,
    positions: Option<i64>,
) -> Result<i64, ModelError> {
    let tokens = ids.size().last().copied().unwrap_or(0);
    let refused = |what, value: String, expected: String| Err(ModelError::Configuration { what, value, expected });
    if ids.kind() != Kind::Int64 || ids.numel() == 0 {
        let expected = "at least one, as int64".to_owned();
        return refused("token ids", format!("{:?} of type {:?}", ids.size(), ids.kind()), expected);
    }
    if let Some(mask) = mask.filter(|mask| ids.dim() != 2 || mask.size() != ids.size()) {
        let value = format!("{:?} for ids {:?}", mask.size(), ids.size());
        return refused("a mask's shape", value, "(batch, tokens), as the ids".to_owned());
    }
    let (lowest, highest) = (ids.min().int64_value(&[]), ids.max().int64_value(&[]));
    if lowest < 0 || highest >= vocabulary {
        let worst = if lowest < 0 { lowest } else { highest };
        let expected = format!("below {vocabulary}: the tokenizer does not fit the model");
        return refused("a token id", worst.to_string(), expected);
    }
    match positions {
        Some(positions) if tokens > positions => {
            refused("tokens of a text", tokens.to_string(), format!("at most {positions}"))
        }
        _ => Ok(tokens),
    }
}

/// What an encoder yields: how many token streams, and the features of a token and of the pooled text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextShape {
    pub streams: i64,
    pub width: i64,
    pub pooled: i64,
}

/// Turns captions into conditions.
pub trait TextEncoder: Send {
    /// One condition for all captions, float32. An empty caption is the null condition.
    fn encode(&self, captions: &[&str]) -> Result<TextCondition, ModelError>;

    /// Tells what it leaves out of captions that are longer than it takes.
    fn truncation(&self) -> Truncation;
}

/// Which text encoder a model is trained with. Stored in every checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TextEncoding {
    /// Fixed random features of the words: no weights to download.
    Hash,
    /// Gemma 2 and ModernBERT for the tokens, CLIP for the pooled text.
    Pretrained(PretrainedText),
}

/// Folders in the Hugging Face layout, each with its tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PretrainedText {
    /// That of Gemma 2.
    pub gemma: PathBuf,
    /// That of ModernBERT.
    pub modernbert: PathBuf,
    /// That of CLIP, whose text half is read.
    pub clip: PathBuf,
    #[serde(default, skip_serializing_if = "Padding::is_usual")]
    pub padding: Padding,
}

/// How Gemma's texts are filled up to their 77 tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// Behind the text, and states of the padding are zeros: as every training has it, the reference system's too.
    #[default]
    Right,
    /// Before the text, and states of the padding stay what they are: as the reference system's inference has it, which its models were
    /// not trained with. To compare pictures with it.
    ReferenceInference,
}

impl Padding {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl TextEncoding {
    /// What the encoder will yield; reads configurations, no weights.
    pub fn shape(&self) -> Result<TextShape, ModelError> {
        match self {
            Self::Hash => Ok(HashEncoder::SHAPE),
            Self::Pretrained(folders) => PretrainedEncoder::shape(folders),
        }
    }

    /// What the encoder's output depends on, for fingerprints: contents, and no paths.
    pub fn identity(&self) -> Result<Value, ModelError> {
        Ok(match self {
            Self::Hash => json!("hash"),
            Self::Pretrained(PretrainedText { gemma, modernbert, clip, padding }) => {
                let mut identity = json!({
                    "gemma": folder_digest(gemma)?, "modernbert": folder_digest(modernbert)?, "clip": folder_digest(clip)?,
                });
                if !padding.is_usual() {
                    identity["padding"] = json!(padding);
                }
                identity
            }
        })
    }

    /// As the encoder's own; reads tokenizers, no weights.
    pub fn truncation(&self) -> Result<Truncation, ModelError> {
        let tokenizers = match self {
            Self::Hash => None,
            Self::Pretrained(folders) => Some(Arc::new(Tokenizers::open(folders)?)),
        };
        Ok(Truncation { tokenizers })
    }

    /// Loads the encoder.
    pub fn encoder(&self, device: Device) -> Result<Box<dyn TextEncoder>, ModelError> {
        Ok(match self {
            Self::Hash => Box::new(HashEncoder::default()),
            Self::Pretrained(folders) => Box::new(PretrainedEncoder::open(folders, device)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_captions_are_exact_zeros() {
        let condition = HashEncoder::default().encode(&["one", "two"]).unwrap().keep(&[true, false]);
        let norms = condition.pooled.abs().sum_dim_intlist(1i64, false, Kind::Float);
        assert!(norms.double_value(&[0]) > 0.0);
        assert_eq!(norms.double_value(&[1]), 0.0);
    }
}
