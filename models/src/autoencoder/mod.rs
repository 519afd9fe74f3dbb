//! The variational autoencoder of latent diffusion models (diffusers' `AutoencoderKL`, FLUX and Stable Diffusion).

mod blocks;
mod tiles;

pub use tiles::Tiling;

use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::layers::Convolution;
use crate::parameters::{Loaded, Scope};
use crate::settings::Settings;
use crate::weights::Weights;
use blocks::{Decoder, Encoder};

/// How raw latents are brought to the range that a model is trained on. A model must be used with the convention it was
/// trained with: for the FLUX autoencoder the two differ by 0.158 everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Affine {
    /// `(z − shift)·scale`: diffusers' convention, and the default.
    #[default]
    ShiftThenScale,
    /// `z·scale + shift`: the reference system's.
    ScaleThenShift,
}

/// How one autoencoder's latents are scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    pub affine: Affine,
    pub scale: f64,
    pub shift: f64,
}

impl Scaling {
    /// Raw latents to the range that models are trained on.
    pub fn apply(self, latents: &Tensor) -> Tensor {
        let Self { affine, scale, shift } = self;
        match affine {
            Affine::ShiftThenScale => (latents - shift) * scale,
            Affine::ScaleThenShift => latents * scale + shift,
        }
    }

    /// The inverse of [`Scaling::apply`].
    pub fn undo(self, latents: &Tensor) -> Tensor {
        let Self { affine, scale, shift } = self;
        match affine {
            Affine::ShiftThenScale => latents / scale + shift,
            Affine::ScaleThenShift => (latents - shift) / scale,
        }
    }
}

/// Sizes and settings.
#[derive(Clone, Debug)]
pub struct AutoencoderConfig {
    pub in_channels: i64,
    pub out_channels: i64,
    pub latent_channels: i64,
    /// Of each resolution, from the picture down.
    pub widths: Vec<i64>,
    pub layers_per_block: i64,
    pub groups: i64,
    pub mid_attention: bool,
    pub quant_conv: bool,
    pub post_quant_conv: bool,
    pub scale: f64,
    pub shift: f64,
}

impl AutoencoderConfig {
    pub fn read(settings: &Settings) -> Result<Self, ModelError> {
        let class = settings.text("_class_name", Some("AutoencoderKL"))?;
        if class != "AutoencoderKL" {
            return Err(settings.refuse("_class_name", format_args!("{class:?} is not AutoencoderKL")));
        }
        let widths = settings.integers("block_out_channels")?;
        let groups = settings.size("norm_num_groups", 32)?;
        if widths.is_empty() || widths.len() > 16 {
            return Err(settings.refuse("block_out_channels", "from 1 to 16 numbers of channels are needed"));
        }
        if widths.iter().any(|&width| width <= 0 || width > 1 << 16 || width % groups != 0) {
            let detail = format_args!("{widths:?} are not all positive multiples of norm_num_groups {groups}");
            return Err(settings.refuse("block_out_channels", detail));
        }
        for (field, known) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            let kinds = settings.texts(field)?;
            if let Some(other) = kinds.iter().find(|kind| *kind != known) {
                return Err(settings.refuse(field, format_args!("{other:?} is not known; {known} is")));
            }
            if !kinds.is_empty() && kinds.len() != widths.len() {
                let detail = format_args!("{} blocks for {} block_out_channels", kinds.len(), widths.len());
                return Err(settings.refuse(field, detail));
            }
        }
        let activation = settings.text("act_fn", Some("silu"))?;
        if !["silu", "swish"].contains(&activation.as_str()) {
            return Err(settings.refuse("act_fn", format_args!("{activation:?} is not known; silu is")));
        }
        // Diffusers' pipelines scale by them, channel by channel, in place of the two numbers below.
        for field in ["latents_mean", "latents_std"] {
            if let Some(numbers) = settings.get(field) {
                let detail = format_args!("{numbers}: latents that are scaled by channel are not known; null is");
                return Err(settings.refuse(field, detail));
            }
        }
        Ok(Self {
            in_channels: settings.size("in_channels", 3)?,
            out_channels: settings.size("out_channels", 3)?,
            latent_channels: settings.size("latent_channels", 4)?,
            widths,
            layers_per_block: settings.layers("layers_per_block", 1)?,
            groups,
            mid_attention: settings.flag("mid_block_add_attention", true)?,
            quant_conv: settings.flag("use_quant_conv", true)?,
            post_quant_conv: settings.flag("use_post_quant_conv", true)?,
            scale: settings.positive("scaling_factor", 0.18215)?,
            shift: settings.number("shift_factor", 0.0)?,
        })
    }

    pub fn scaling(&self, affine: Affine) -> Scaling {
        Scaling { affine, scale: self.scale, shift: self.shift }
    }

    /// Picture pixels along one side of a latent pixel.
    pub fn factor(&self) -> i64 {
        1 << (self.widths.len() - 1)
    }
}

/// What the encoder says of a picture: a normal distribution for each element of the latent.
#[derive(Debug)]
pub struct Posterior {
    /// (batch, channels, height / factor, width / factor)
    pub mean: Tensor,
    /// Likewise; from −30 to 20.
    pub logvar: Tensor,
}

impl Posterior {
    /// `mean + noise·√variance`, with standard normal `noise` of the same shape.
    pub fn sample(&self, noise: &Tensor) -> Tensor {
        &self.mean + (&self.logvar * 0.5).exp() * noise
    }
}

/// An autoencoder, and how its latents are scaled.
#[derive(Debug)]
pub struct Autoencoder {
    encoder: Encoder,
    decoder: Decoder,
    quant: Option<Convolution>,
    post_quant: Option<Convolution>,
    config: AutoencoderConfig,
    affine: Affine,
    tiling: Option<Tiling>,
}

impl Autoencoder {
    /// Reads a folder in diffusers' layout.
    pub fn open(folder: &Path, affine: Affine, device: Device, kind: Kind) -> Result<Loaded<Self>, ModelError> {
        let config = AutoencoderConfig::read(&Settings::in_folder(folder)?)?;
        let weights = Weights::open(folder)?.renamed(|name| Some(blocks::current_name(name)));
        Scope::read(weights, device, kind, |scope| Self::new(scope, &config, affine))
    }

    /// Over any scope: for tests and benches with parameters that come from no file.
    pub fn new(scope: &Scope, config: &AutoencoderConfig, affine: Affine) -> Self {
        let latent = config.latent_channels;
        Self {
            encoder: Encoder::new(&scope.at("encoder"), config),
            decoder: Decoder::new(&scope.at("decoder"), config),
            quant: config.quant_conv.then(|| Convolution::same(&scope.at("quant_conv"), 2 * latent, 2 * latent, 1)),
            post_quant: config
                .post_quant_conv
                .then(|| Convolution::same(&scope.at("post_quant_conv"), latent, latent, 1)),
            config: config.clone(),
            affine,
            tiling: None,
        }
    }

    pub fn config(&self) -> &AutoencoderConfig {
        &self.config
    }

    /// Works on pictures larger than a tile piece by piece, so that memory does not grow with the picture.
    #[must_use]
    pub fn with_tiling(self, tiling: Tiling) -> Self {
        Self { tiling: Some(tiling), ..self }
    }

    /// `pixels` (batch, channels, height, width) in −1..=1; in tiles, one picture at a time, and the sides must be multiples of
    /// the factor.
    pub fn encode(&self, pixels: &Tensor) -> Result<Posterior, ModelError> {
        let factor = self.config.factor();
        // In tiles, what is left beyond the last whole latent pixel would be lost.
        let multiple = if self.tiling.is_some() { factor } else { 1 };
        check("pictures", pixels, self.config.in_channels, [factor, multiple])?;
        let whole = |pixels: &Tensor| {
            let moments = self.encoder.forward(pixels);
            self.quant.as_ref().map_or_else(|| moments.shallow_clone(), |layer| layer.forward(&moments))
        };
        let moments = match &self.tiling {
            Some(tiling) => tiling.encode(pixels, factor, whole),
            None => whole(pixels),
        };
        let latent = self.config.latent_channels;
        let logvar = moments.narrow(1, latent, latent).clamp(-30.0, 20.0);
        Ok(Posterior { mean: moments.narrow(1, 0, latent), logvar })
    }

    /// The inverse, of raw latents (batch, latent channels, height, width); values may lie outside of −1..=1.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
        check("latents", latents, self.config.latent_channels, [1, 1])?;
        let whole = |latents: &Tensor| {
            let latents =
                self.post_quant.as_ref().map_or_else(|| latents.shallow_clone(), |layer| layer.forward(latents));
            self.decoder.forward(&latents)
        };
        Ok(match &self.tiling {
            Some(tiling) => tiling.decode(latents, self.config.factor(), whole),
            None => whole(latents),
        })
    }

    /// How its latents are brought to the range that models are trained on, and back.
    pub fn scaling(&self) -> Scaling {
        self.config.scaling(self.affine)
    }
}

/// Refuses what is not (batch, `channels`, height, width) with sides of at least `least` that are multiples of `multiple`.
fn check(what: &'static str, x: &Tensor, channels: i64, [least, multiple]: [i64; 2]) -> Result<(), ModelError> {
    let fits = |side: i64| side >= least && side % multiple == 0;
    match x.size()[..] {
        [_, found, height, width] if found == channels && fits(height) && fits(width) => Ok(()),
        ref size => Err(ModelError::Configuration {
            what,
            value: format!("of the shape {size:?}"),
            expected: format!("(batch, {channels}, height, width), the sides multiples of {multiple} from {least} on"),
        }),
    }
}
