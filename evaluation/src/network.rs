//! The networks that say what is in a picture.

use std::fmt;
use std::path::Path;

use image::RgbImage;
use models::ModelError;
use models::clip::ClipSimilarity;
use models::device::usual_kind;
use models::inception::{FEATURES, Inception, Resize};
use models::settings::folder_digest;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::EvaluationError;

/// What features of a CLIP are called, before what it computes in. Earlier versions left that out.
pub(crate) const CLIP_FEATURES: &str = "CLIP image embedding";

/// Whose features are compared. Numbers of different networks cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkName {
    pub network: String,
    /// Of its weights.
    pub digest: String,
    pub dimensions: usize,
    /// Whether it is the network by which a Fréchet distance may be called FID, and a kernel distance KID.
    pub is_inception: bool,
}

/// With the beginning of its digest: there are many weights of one network.
impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (weights {:.10})", self.network, self.digest)
    }
}

/// What makes features of pictures and, where there is a CLIP, scores of pictures and their captions.
pub struct Networks {
    name: NetworkName,
    inception: Option<Inception>,
    clip: Option<ClipSimilarity>,
    /// Of the CLIP's folder, and what it computes in.
    scored_by: Option<String>,
    device: Device,
}

/// What networks say of some pictures.
#[derive(Debug, Default)]
pub struct Seen {
    /// Pictures × dimensions.
    pub features: Vec<f32>,
    /// A CLIP score of each picture that has a caption, where there is a CLIP.
    pub scores: Vec<f64>,
}

impl Networks {
    /// Inception v3 for the features, else a CLIP's vision half; one of them is needed. Inception computes in float32, as those whose
    /// numbers are compared do; a CLIP in what is usual on the device, which is part of its name.
    pub fn open(inception: Option<&Path>, clip: Option<&Path>, device: Device) -> Result<Self, EvaluationError> {
        let of_inception = match inception {
            Some(path) => Some((Inception::open(path, device, Kind::Float)?, folder_digest(path)?)),
            None => None,
        };
        let kind = usual_kind(device);
        let of_clip = match clip {
            Some(folder) => Some((ClipSimilarity::open(folder, device, kind)?, folder_digest(folder)?)),
            None => None,
        };
        let name = match (&of_inception, &of_clip) {
            (Some((_, digest)), _) => NetworkName {
                network: format!("Inception v3, last pool, resized as {}", resize_name(Resize::default())),
                digest: digest.clone(),
                dimensions: FEATURES as usize,
                is_inception: true,
            },
            (None, Some((clip, digest))) => NetworkName {
                network: format!("{CLIP_FEATURES} in {}", precision(kind)),
                digest: digest.clone(),
                dimensions: clip.features() as usize,
                is_inception: false,
            },
            (None, None) => {
                let (value, expected) = ("none".to_owned(), "Inception's weights or a CLIP");
                return Err(EvaluationError::Setting { what: "feature network", value, expected });
            }
        };
        let (clip, clip_digest) = of_clip.unzip();
        let scored_by = clip_digest.map(|digest| format!("{digest} in {}", precision(kind)));
        Ok(Self { name, inception: of_inception.map(|(network, _)| network), clip, scored_by, device })
    }

    pub fn name(&self) -> &NetworkName {
        &self.name
    }

    /// What tells the CLIP that scores captions from others, where there is one: its digest, and what it computes in.
    pub fn scored_by(&self) -> Option<&str> {
        self.scored_by.as_deref()
    }

    /// Looks at pictures of any sizes, and scores those that have a caption.
    pub fn look(&self, pictures: &[RgbImage], captions: &[Option<String>]) -> Result<Seen, EvaluationError> {
        let _guard = tch::no_grad_guard();
        if pictures.is_empty() {
            return Ok(Seen::default());
        }
        let captioned = (0i64..).zip(pictures).zip(captions);
        let captioned = captioned.filter_map(|((place, picture), caption)| Some((place, picture, caption.as_deref()?)));
        let captioned: Vec<(i64, &RgbImage, &str)> = captioned.collect();
        let texts: Vec<&str> = captioned.iter().map(|(_, _, text)| *text).collect();
        match (&self.inception, &self.clip) {
            (Some(inception), clip) => {
                let features = of_inception(inception, pictures, self.device)?;
                let scores = match clip {
                    Some(clip) if !texts.is_empty() => {
                        let pictures: Vec<&RgbImage> = captioned.iter().map(|(_, picture, _)| *picture).collect();
                        clip.scores(&clip.pictures(&pictures)?, &texts)?
                    }
                    _ => Vec::new(),
                };
                Ok(Seen { features, scores })
            }
            (None, Some(clip)) => {
                let embedded = clip.pictures(&pictures.iter().collect::<Vec<_>>())?;
                let scores = if texts.is_empty() {
                    Vec::new()
                } else {
                    let places: Vec<i64> = captioned.iter().map(|(place, _, _)| *place).collect();
                    let places = Tensor::from_slice(&places).to_device(embedded.device());
                    clip.scores(&embedded.index_select(0, &places), &texts)?
                };
                Ok(Seen { features: values(&embedded), scores })
            }
            (None, None) => Ok(Seen::default()),
        }
    }
}

/// What numbers of a kind are called, where it tells results from others.
pub fn precision(kind: Kind) -> &'static str {
    match kind {
        Kind::Float => "float32",
        Kind::BFloat16 => "bfloat16",
        Kind::Half => "float16",
        _ => "another precision",
    }
}

fn resize_name(resize: Resize) -> &'static str {
    match resize {
        Resize::PytorchFid => "pytorch-fid does",
        Resize::Tensorflow1 => "TensorFlow 1 does",
    }
}

fn of_inception(inception: &Inception, pictures: &[RgbImage], device: Device) -> Result<Vec<f32>, ModelError> {
    let prepared = pictures.iter().map(|picture| prepared(picture, device)).collect::<Result<Vec<_>, _>>()?;
    Ok(values(&inception.features_of_prepared(&Tensor::cat(&prepared, 0))?))
}

/// What Inception takes of a picture: (1, 3, 299, 299). One by one, so that of all pictures no more than that is there in float32, however
/// large they are.
fn prepared(picture: &RgbImage, device: Device) -> Result<Tensor, ModelError> {
    let shape = [1, i64::from(picture.height()), i64::from(picture.width()), 3];
    let pixels = Tensor::f_from_data_size(picture.as_raw(), &shape, Kind::Uint8);
    let pixels = pixels.map_err(ModelError::torch("making a tensor of a picture"))?.permute([0, 3, 1, 2]);
    Ok(Resize::default().prepare(&(pixels.to_kind(Kind::Float) / 255.0).to_device(device)))
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.numel()];
    tensor.to_kind(Kind::Float).to_device(Device::Cpu).contiguous().copy_data(&mut values, tensor.numel());
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So that what was prepared together and what was prepared one by one make the same features.
    #[test]
    fn pictures_are_prepared_to_the_same_bits_one_by_one_and_together() {
        for (width, height) in [(40, 32), (400, 310), (299, 299)] {
            let picture = |n: u32| {
                RgbImage::from_fn(width, height, |x, y| image::Rgb([x * 7 + n, y * 5 + x, x * y].map(|c| c as u8)))
            };
            let pictures = [picture(0), picture(90), picture(201)];
            let bytes = pictures.each_ref().map(|picture| picture.as_raw().as_slice()).concat();
            let shape = [3, i64::from(height), i64::from(width), 3];
            let pixels = Tensor::from_data_size(&bytes, &shape, Kind::Uint8).permute([0, 3, 1, 2]);
            let together = Resize::default().prepare(&(pixels.to_kind(Kind::Float) / 255.0));
            let alone = pictures.each_ref().map(|picture| prepared(picture, Device::Cpu).unwrap());
            assert!(Tensor::cat(&alone, 0) == together, "{width}×{height}");
        }
    }
}
