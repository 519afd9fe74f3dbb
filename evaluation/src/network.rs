//! The networks that say what is in a picture.

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

/// What makes features of pictures and, where there is a CLIP, scores of pictures and their captions.
pub struct Networks {
    name: NetworkName,
    inception: Option<Inception>,
    clip: Option<ClipSimilarity>,
    /// Of the CLIP's folder.
    clip_digest: Option<String>,
}

/// What networks say of some pictures.
#[derive(Debug)]
pub struct Seen {
    /// Pictures × dimensions.
    pub features: Vec<f32>,
    /// A CLIP score each, where there is a CLIP and every picture has a caption.
    pub scores: Option<Vec<f64>>,
}

impl Networks {
    /// Inception v3 for the features, else a CLIP's vision half; one of them is needed. Inception computes in float32, as those whose
    /// numbers are compared do.
    pub fn open(inception: Option<&Path>, clip: Option<&Path>, device: Device) -> Result<Self, EvaluationError> {
        let of_inception = match inception {
            Some(path) => Some((Inception::open(path, device, Kind::Float)?, folder_digest(path)?)),
            None => None,
        };
        let of_clip = match clip {
            Some(folder) => Some((ClipSimilarity::open(folder, device, usual_kind(device))?, folder_digest(folder)?)),
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
                network: "CLIP image embedding".to_owned(),
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
        Ok(Self { name, inception: of_inception.map(|(network, _)| network), clip, clip_digest })
    }

    pub fn name(&self) -> &NetworkName {
        &self.name
    }

    /// Digest of the CLIP that scores captions, where there is one.
    pub fn scored_by(&self) -> Option<&str> {
        self.clip_digest.as_deref()
    }

    /// Looks at pictures of any sizes and their captions.
    pub fn look(&self, pictures: &[RgbImage], captions: &[Option<String>]) -> Result<Seen, EvaluationError> {
        let _guard = tch::no_grad_guard();
        let captions: Option<Vec<&str>> = captions.iter().map(Option::as_deref).collect();
        let captions = captions.filter(|_| self.clip.is_some());
        let embedded = match &self.clip {
            Some(clip) if captions.is_some() || self.inception.is_none() => {
                Some(clip.pictures(&pictures.iter().collect::<Vec<_>>())?)
            }
            _ => None,
        };
        let features = match (&self.inception, &embedded) {
            (Some(inception), _) => of_inception(inception, pictures)?,
            (None, Some(embedded)) => values(embedded),
            (None, None) => Vec::new(),
        };
        let scores = match (&self.clip, embedded, captions) {
            (Some(clip), Some(embedded), Some(captions)) => Some(clip.scores(&embedded, &captions)?),
            _ => None,
        };
        Ok(Seen { features, scores })
    }
}

fn resize_name(resize: Resize) -> &'static str {
    match resize {
        Resize::PytorchFid => "pytorch-fid does",
        Resize::Tensorflow1 => "TensorFlow 1 does",
    }
}

/// Runs of pictures of one size together.
fn of_inception(inception: &Inception, pictures: &[RgbImage]) -> Result<Vec<f32>, ModelError> {
    let mut features = Vec::with_capacity(pictures.len() * FEATURES as usize);
    for run in pictures.chunk_by(|a, b| a.dimensions() == b.dimensions()) {
        let (width, height) = run.first().map_or((0, 0), RgbImage::dimensions);
        let bytes: Vec<u8> = run.iter().flat_map(|picture| picture.as_raw().iter().copied()).collect();
        let shape = [run.len() as i64, i64::from(height), i64::from(width), 3];
        let pixels = Tensor::f_from_data_size(&bytes, &shape, Kind::Uint8);
        let pixels = pixels.map_err(ModelError::torch("putting pictures together"))?.permute([0, 3, 1, 2]);
        features.extend(values(&inception.features(&(pixels.to_kind(Kind::Float) / 255.0))?));
    }
    Ok(features)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.numel()];
    tensor.to_kind(Kind::Float).to_device(Device::Cpu).contiguous().copy_data(&mut values, tensor.numel());
    values
}
