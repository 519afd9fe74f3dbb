//! How well pictures fit their texts, by a CLIP that was trained to tell.

use std::path::Path;

use image::RgbImage;
use tch::{Device, Kind, Tensor};

use super::pixels::PixelSettings;
use super::{Clip, ClipText, ClipVision};
use crate::ModelError;
use crate::layers::Linear;
use crate::tokenizer::Tokenizer;

/// Both halves of a CLIP, and what they need of pictures and words.
pub struct ClipSimilarity {
    text: ClipText,
    text_projection: Linear,
    vision: ClipVision,
    visual_projection: Linear,
    tokenizer: Tokenizer,
    pixels: PixelSettings,
    kind: Kind,
    device: Device,
}

impl ClipSimilarity {
    /// Reads a folder with both halves and a tokenizer. Computes in `kind`.
    pub fn open(folder: &Path, device: Device, kind: Kind) -> Result<Self, ModelError> {
        let loaded = Clip::open(folder, device, kind)?;
        loaded.refuse_not_finite(folder)?;
        let Clip {
            text: Some(text),
            text_projection: Some(text_projection),
            vision: Some(vision),
            visual_projection: Some(visual_projection),
        } = loaded.model
        else {
            let detail = "both halves of it are needed, each with its projection".to_owned();
            return Err(ModelError::Record { path: folder.to_owned(), what: "CLIP model", detail });
        };
        let tokenizer = Tokenizer::open(folder)?;
        tokenizer.check_fits(text.config().vocabulary)?;
        let (pixels, _) = PixelSettings::open(folder, vision.config().image as u32)?;
        Ok(Self { text, text_projection, vision, visual_projection, tokenizer, pixels, kind, device })
    }

    /// Numbers of a picture.
    pub fn features(&self) -> i64 {
        self.visual_projection.outputs()
    }

    /// Pictures as vectors of length 1 in the space that they share with texts: (pictures, features), float32.
    pub fn pictures(&self, pictures: &[&RgbImage]) -> Result<Tensor, ModelError> {
        let _guard = tch::no_grad_guard();
        let middles = pictures.iter().map(|picture| self.pixels.middle(picture)).collect::<Result<Vec<_>, _>>()?;
        let pixels = self.pixels.normalise(&middles)?.to_device(self.device).to_kind(self.kind);
        Ok(of_length_one(&self.visual_projection.forward(&self.vision.forward(&pixels)?.pooled)))
    }

    /// Texts likewise; what is beyond the model's positions is cut off.
    pub fn texts(&self, texts: &[&str]) -> Result<Tensor, ModelError> {
        let _guard = tch::no_grad_guard();
        let config = self.text.config();
        let (ids, mask) = self.tokenizer.padded(texts, config.positions as usize, config.padding())?;
        let pooled = self.text.forward(&ids.to_device(self.device), &mask.to_device(self.device))?.pooled;
        Ok(of_length_one(&self.text_projection.forward(&pooled)))
    }

    /// The CLIP score of each picture with its text: 100 times the cosine of their vectors, at least 0 (Hessel et al. 2021, with the
    /// factor 100 of torchmetrics in place of 2.5). Scores of different CLIPs cannot be compared.
    pub fn scores(&self, pictures: &Tensor, texts: &[&str]) -> Result<Vec<f64>, ModelError> {
        let cosines = (pictures * self.texts(texts)?).sum_dim_intlist(-1i64, false, Kind::Double);
        let scores = (cosines * 100.0).clamp_min(0.0).to_device(Device::Cpu);
        Vec::try_from(&scores).map_err(ModelError::torch("reading CLIP scores"))
    }
}

fn of_length_one(vectors: &Tensor) -> Tensor {
    let vectors = vectors.to_kind(Kind::Float);
    let length = vectors.square().sum_dim_intlist(-1i64, true, Kind::Float).sqrt();
    vectors / length.clamp_min(1e-12)
}
