//! What stands between pixels and the model.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::autoencoder::{Affine, Autoencoder, AutoencoderConfig, Posterior, Scaling, Tiling};
use crate::device::usual_kind;
use crate::settings::{Settings, folder_digest};

/// What latents look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentShape {
    pub channels: i64,
    /// Image pixels along one side of a latent pixel.
    pub factor: i64,
}

/// What an encoder says of pictures, from which their latents are drawn.
#[derive(Debug)]
pub struct LatentDistribution {
    /// (batch, channels, height / factor, width / factor), float32, before any scaling.
    pub mean: Tensor,
    /// Likewise, the logarithm of the variance; `None` where the latents are the mean.
    pub logvar: Option<Tensor>,
}

impl LatentDistribution {
    /// The latents for a model; `normal` gives standard normal numbers of a shape, where they are needed.
    pub fn draw(self, scaling: Option<Scaling>, normal: &dyn Fn(&[i64]) -> Tensor) -> Tensor {
        let Self { mean, logvar } = self;
        let raw = match logvar {
            Some(logvar) => {
                let noise = normal(&mean.size()).to_device(mean.device());
                Posterior { mean, logvar }.sample(&noise)
            }
            None => mean,
        };
        scaling.map_or_else(|| raw.shallow_clone(), |scaling| scaling.apply(&raw))
    }
}

/// Turns pictures into latents and back.
pub trait LatentCodec: Send {
    fn shape(&self) -> LatentShape;

    /// How latents that were drawn are scaled for the model.
    fn scaling(&self) -> Option<Scaling>;

    /// `pixels` (batch, 3, height, width), float32 in -1..=1, sides multiples of the factor.
    fn distribution(&self, pixels: &Tensor) -> Result<LatentDistribution, ModelError>;

    /// `pixels` (batch, 3, height, width), float32 in -1..=1, sides multiples of the factor, to (batch, channels, height /
    /// factor, width / factor). A codec that draws latents from a distribution takes standard normal numbers of a shape from
    /// `normal`.
    fn encode(&self, pixels: &Tensor, normal: &dyn Fn(&[i64]) -> Tensor) -> Result<Tensor, ModelError> {
        Ok(self.distribution(pixels)?.draw(self.scaling(), normal))
    }

    /// From latents back to pixels; values may lie outside of -1..=1.
    fn decode(&self, latents: &Tensor) -> Result<Tensor, ModelError>;
}

/// Which latents a model works on. Stored in every checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Latents {
    /// The image itself, space-to-depth by two: no VAE, no weights to download, 12 channels.
    Pixels,
    /// A variational autoencoder.
    Autoencoder(AutoencoderLatents),
}

/// An autoencoder in diffusers' layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AutoencoderLatents {
    /// Its folder, with config.json and weights.
    pub folder: PathBuf,
    /// How its latents are scaled for the model.
    #[serde(default)]
    pub affine: Affine,
}

impl Latents {
    /// What the latents will look like; reads configurations, no weights.
    pub fn shape(&self) -> Result<LatentShape, ModelError> {
        match self {
            Self::Pixels => Ok(SpaceToDepth::SHAPE),
            Self::Autoencoder(of) => {
                let config = AutoencoderConfig::read(&Settings::in_folder(&of.folder)?)?;
                Ok(LatentShape { channels: config.latent_channels, factor: config.factor() })
            }
        }
    }

    /// What latents depend on, for fingerprints: contents, and no paths.
    pub fn identity(&self) -> Result<Value, ModelError> {
        Ok(match self {
            Self::Pixels => json!("pixels"),
            Self::Autoencoder(of) => json!({"autoencoder": folder_digest(&of.folder)?, "affine": of.affine}),
        })
    }

    /// What their distributions depend on: as [`Latents::identity`], without how they are scaled.
    pub fn identity_of_distribution(&self) -> Result<Value, ModelError> {
        let mut identity = self.identity()?;
        if let Some(identity) = identity.as_object_mut() {
            identity.remove("affine");
        }
        Ok(identity)
    }

    /// How drawn latents are scaled; reads configurations, no weights.
    pub fn scaling(&self) -> Result<Option<Scaling>, ModelError> {
        Ok(match self {
            Self::Pixels => None,
            Self::Autoencoder(of) => {
                Some(AutoencoderConfig::read(&Settings::in_folder(&of.folder)?)?.scaling(of.affine))
            }
        })
    }

    /// Loads the codec.
    pub fn codec(&self, device: Device) -> Result<Box<dyn LatentCodec>, ModelError> {
        Ok(match self {
            Self::Pixels => Box::new(SpaceToDepth),
            Self::Autoencoder(of) => {
                let kind = usual_kind(device);
                let loaded = Autoencoder::open(&of.folder, of.affine, device, kind)?;
                loaded.refuse_not_finite(&of.folder)?;
                // Pictures up to a tile are not cut; larger ones would not fit into memory.
                Box::new(AutoencoderCodec { model: loaded.model.with_tiling(Tiling::default()), device, kind })
            }
        })
    }
}

/// Each square of 2×2 pixels becomes one latent pixel with 12 channels.
#[derive(Clone, Copy, Debug)]
struct SpaceToDepth;

impl SpaceToDepth {
    const SHAPE: LatentShape = LatentShape { channels: 12, factor: 2 };
}

impl LatentCodec for SpaceToDepth {
    fn shape(&self) -> LatentShape {
        Self::SHAPE
    }

    fn scaling(&self) -> Option<Scaling> {
        None
    }

    fn distribution(&self, pixels: &Tensor) -> Result<LatentDistribution, ModelError> {
        Ok(LatentDistribution { mean: pixels.pixel_unshuffle(Self::SHAPE.factor), logvar: None })
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
        Ok(latents.pixel_shuffle(Self::SHAPE.factor))
    }
}

/// Latents drawn from an autoencoder's distribution.
struct AutoencoderCodec {
    model: Autoencoder,
    device: Device,
    /// What it computes in; latents are float32 on both sides.
    kind: Kind,
}

impl LatentCodec for AutoencoderCodec {
    fn shape(&self) -> LatentShape {
        let config = self.model.config();
        LatentShape { channels: config.latent_channels, factor: config.factor() }
    }

    fn scaling(&self) -> Option<Scaling> {
        Some(self.model.scaling())
    }

    fn distribution(&self, pixels: &Tensor) -> Result<LatentDistribution, ModelError> {
        let _guard = tch::no_grad_guard();
        let Posterior { mean, logvar } = self.model.encode(&pixels.to_device(self.device).to_kind(self.kind))?;
        Ok(LatentDistribution { mean: mean.to_kind(Kind::Float), logvar: Some(logvar.to_kind(Kind::Float)) })
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
        let _guard = tch::no_grad_guard();
        let raw = self.model.scaling().undo(&latents.to_device(self.device));
        Ok(self.model.decode(&raw.to_kind(self.kind))?.to_kind(Kind::Float))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    #[test]
    fn pixels_survive_the_round_trip_to_the_bit() {
        let codec = Latents::Pixels.codec(Device::Cpu).unwrap();
        let pixels = Stream::new(0, "test", &[]).normal_tensor(&[2, 3, 8, 12], Device::Cpu);
        let latents = codec.encode(&pixels, &|_| unreachable!("nothing is drawn")).unwrap();
        assert_eq!(latents.size(), [2, codec.shape().channels, 4, 6]);
        assert_eq!(codec.decode(&latents).unwrap(), pixels);
    }
}
