//! The text encoders of the published models, put together.

use std::path::Path;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::{Padding, PretrainedText, TextCondition, TextEncoder, TextShape, Truncation};
use crate::ModelError;
use crate::clip::Clip;
use crate::device::usual_kind;
use crate::gemma2::{Gemma2, Gemma2Config};
use crate::modernbert::{ModernBert, ModernBertConfig};
use crate::parameters::Loaded;
use crate::settings::Settings;
use crate::tokenizer::Tokenizer;

/// Tokens of each stream.
pub(super) const TOKENS: usize = 77;

/// Gemma 2 and ModernBERT give a stream of 77 tokens each, CLIP's text half the pooled text (item 4 of the model's equations).
///
/// Texts are padded behind; states past their end are exact zeros, and so is everything of an empty caption. The narrower
/// stream is filled up with zeros to the width of the wider one.
pub struct PretrainedEncoder {
    gemma: Gemma2,
    modernbert: ModernBert,
    clip: Clip,
    tokenizers: Arc<Tokenizers>,
    padding: Padding,
    device: Device,
}

/// A model without NaNs.
fn sound<M>(loaded: Loaded<M>, folder: &Path) -> Result<M, ModelError> {
    loaded.refuse_not_finite(folder)?;
    Ok(loaded.model)
}

/// Those of the three models.
#[derive(Debug)]
pub(super) struct Tokenizers {
    gemma: Tokenizer,
    modernbert: Tokenizer,
    clip: Tokenizer,
}

impl Tokenizers {
    pub(super) fn open(folders: &PretrainedText) -> Result<Self, ModelError> {
        Ok(Self {
            gemma: Tokenizer::open(&folders.gemma)?,
            modernbert: Tokenizer::open(&folders.modernbert)?,
            clip: Tokenizer::open(&folders.clip)?,
        })
    }

    /// The end of a caption that is left out: by the model that takes least of it.
    pub(super) fn beyond(&self, caption: &str) -> Result<String, ModelError> {
        let mut longest = String::new();
        for tokenizer in [&self.gemma, &self.modernbert, &self.clip] {
            let beyond = tokenizer.beyond(caption, TOKENS)?;
            if beyond.chars().count() > longest.chars().count() {
                longest = beyond;
            }
        }
        Ok(longest)
    }
}

impl PretrainedEncoder {
    /// Loads all three: as bfloat16 on a GPU, float32 on the CPU.
    pub fn open(folders: &PretrainedText, device: Device) -> Result<Self, ModelError> {
        let kind = usual_kind(device);
        let gemma = sound(Gemma2::open(&folders.gemma, device, kind)?, &folders.gemma)?;
        let modernbert = sound(ModernBert::open(&folders.modernbert, device, kind)?, &folders.modernbert)?;
        let clip = sound(Clip::open(&folders.clip, device, kind)?, &folders.clip)?;
        let (Some(text), Some(_)) = (&clip.text, &clip.text_projection) else {
            let detail = "it has no text half with a projection".to_owned();
            return Err(ModelError::Record { path: folders.clip.clone(), what: "CLIP model", detail });
        };
        let tokenizers = Tokenizers::open(folders)?;
        tokenizers.gemma.check_fits(gemma.config().vocabulary)?;
        tokenizers.modernbert.check_fits(modernbert.config().vocabulary)?;
        tokenizers.clip.check_fits(text.config().vocabulary)?;
        Ok(Self { gemma, modernbert, clip, tokenizers: Arc::new(tokenizers), padding: folders.padding, device })
    }

    pub(super) fn shape(folders: &PretrainedText) -> Result<TextShape, ModelError> {
        let gemma = Gemma2Config::read(&Settings::in_folder(&folders.gemma)?)?.width;
        let modernbert = ModernBertConfig::read(&Settings::in_folder(&folders.modernbert)?)?.width;
        let pooled = Settings::in_folder(&folders.clip)?.size("projection_dim", 512)?;
        Ok(TextShape { streams: 2, width: gemma.max(modernbert), pooled })
    }

    /// States times mask, float32, filled up to `width` features.
    fn stream(states: &Tensor, mask: &Tensor, width: i64) -> Tensor {
        let states = states.to_kind(Kind::Float) * mask.unsqueeze(-1);
        let missing = width - states.size().last().copied().unwrap_or(width);
        if missing > 0 { states.constant_pad_nd([0, missing]) } else { states }
    }

    /// Ids and mask of every caption, on the device.
    fn ids(&self, tokenizer: &Tokenizer, captions: &[&str], padding: i64) -> Result<(Tensor, Tensor), ModelError> {
        let (ids, mask) = tokenizer.padded(captions, TOKENS, padding)?;
        Ok((ids.to_device(self.device), mask.to_device(self.device)))
    }
}

impl TextEncoder for PretrainedEncoder {
    fn encode(&self, captions: &[&str]) -> Result<TextCondition, ModelError> {
        let _guard = tch::no_grad_guard();
        let width = self.gemma.config().width.max(self.modernbert.config().width);
        let (ids, mask) = self.ids(&self.tokenizers.gemma, captions, 0)?;
        let gemma = match self.padding {
            Padding::Right => Self::stream(&self.gemma.forward(&ids, &mask)?, &mask, width),
            Padding::ReferenceInference => {
                let (ids, mask) = (padded_before(&ids, &mask), padded_before(&mask, &mask));
                Self::stream(&self.gemma.forward(&ids, &mask)?, &mask.ones_like(), width)
            }
        };
        let (ids, mask) = self.ids(&self.tokenizers.modernbert, captions, 0)?;
        let modernbert = Self::stream(&self.modernbert.forward(&ids, &mask)?, &mask, width);
        let (Some(text), Some(projection)) = (&self.clip.text, &self.clip.text_projection) else {
            let expected = "a text half with a projection".to_owned();
            return Err(ModelError::Configuration { what: "the CLIP model", value: "another".into(), expected });
        };
        let (ids, mask) = self.ids(&self.tokenizers.clip, captions, text.config().padding())?;
        let pooled = projection.forward(&text.forward(&ids, &mask)?.pooled).to_kind(Kind::Float);
        let condition = TextCondition { tokens: vec![gemma, modernbert], pooled };
        Ok(condition.keep(&captions.iter().map(|caption| !caption.is_empty()).collect::<Vec<_>>()))
    }

    fn truncation(&self) -> Truncation {
        Truncation { tokenizers: Some(Arc::clone(&self.tokenizers)) }
    }
}

/// What was padded behind its texts, padded before them: each row turned by the length of its padding.
fn padded_before(values: &Tensor, mask: &Tensor) -> Tensor {
    let length = mask.size().last().copied().unwrap_or(0);
    let padding = length - mask.sum_dim_intlist(-1i64, true, Kind::Int64);
    let positions = Tensor::arange(length, (Kind::Int64, values.device())).unsqueeze(0);
    values.gather(-1, &(positions - padding).remainder(length), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrower_stream_is_filled_up_and_what_follows_a_text_is_zero() {
        let states = Tensor::ones([1, 3, 2], (Kind::BFloat16, Device::Cpu));
        let stream = PretrainedEncoder::stream(&states, &Tensor::from_slice(&[1i64, 1, 0]).unsqueeze(0), 4);
        let expected = Tensor::from_slice(&[1f32, 1., 0., 0., 1., 1., 0., 0., 0., 0., 0., 0.]).view([1, 3, 4]);
        assert_eq!(stream, expected);
    }

    #[test]
    fn padding_moves_before_its_text() {
        let rows = |values: [i64; 8]| Tensor::from_slice(&values).view([2, 4]);
        let (ids, mask) = (rows([5, 6, 0, 0, 7, 8, 9, 4]), rows([1, 1, 0, 0, 1, 1, 1, 1]));
        assert_eq!(padded_before(&ids, &mask), rows([0, 0, 5, 6, 7, 8, 9, 4]));
        assert_eq!(padded_before(&mask, &mask), rows([0, 0, 1, 1, 1, 1, 1, 1]));
    }
}
