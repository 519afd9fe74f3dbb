//! CLIP's vision half.

use tch::Tensor;

use super::encoder::{Encoder, EncoderConfig};
use crate::ModelError;
use crate::layers::{Convolution, LayerNorm};
use crate::parameters::{Initial, Scope};
use crate::settings::Settings;

/// Side of a picture; published towers take up to 448.
const LARGEST_SIDE: i64 = 2048;

/// Sizes of the vision half.
#[derive(Clone, Debug)]
pub struct ClipVisionConfig {
    pub channels: i64,
    /// Side of the square pictures it takes, in pixels.
    pub image: i64,
    /// Side of a patch, in pixels.
    pub patch: i64,
    pub encoder: EncoderConfig,
}

impl ClipVisionConfig {
    pub fn read(settings: &Settings) -> Result<Self, ModelError> {
        let config = Self {
            channels: settings.size("num_channels", 3)?,
            image: settings.size("image_size", 224)?,
            patch: settings.size("patch_size", 32)?,
            encoder: EncoderConfig::read(settings, 768, 3072, 12)?,
        };
        if config.image > LARGEST_SIDE {
            return Err(settings.refuse("image_size", format_args!("{} is more than {LARGEST_SIDE}", config.image)));
        }
        if config.image < config.patch {
            return Err(
                settings.refuse("patch_size", format_args!("{} exceeds image_size {}", config.patch, config.image))
            );
        }
        Ok(config)
    }

    /// Patches along one side of a picture.
    pub fn side(&self) -> i64 {
        self.image / self.patch
    }
}

/// What the vision half says of a batch.
#[derive(Debug)]
pub struct ClipVisionOutput {
    /// transformers' `hidden_states`: what each layer was given, and last what the last one made; each (batch, 1 + patches,
    /// width), the class token first.
    pub states: Vec<Tensor>,
    /// (batch, width): the class token after the last norm.
    pub pooled: Tensor,
}

/// Patch, class and position embeddings, layers, a norm.
#[derive(Debug)]
pub struct ClipVision {
    patches: Convolution,
    class: Tensor,
    positions: Tensor,
    norm_before: LayerNorm,
    encoder: Encoder,
    norm_after: LayerNorm,
    config: ClipVisionConfig,
}

impl ClipVision {
    pub fn new(scope: &Scope, config: &ClipVisionConfig) -> Self {
        let EncoderConfig { width, epsilon, .. } = config.encoder;
        let embeddings = scope.at("embeddings");
        let initial = Initial::Linear { inputs: width };
        let norm = |name: &str| LayerNorm::new(&scope.at(name), width, epsilon, true);
        Self {
            patches: Convolution::patches(&embeddings.at("patch_embedding"), config.channels, width, config.patch),
            class: embeddings.parameter("class_embedding", &[width], initial),
            positions: embeddings.at("position_embedding").parameter(
                "weight",
                &[config.side() * config.side() + 1, width],
                initial,
            ),
            // The misspelling is the published name.
            norm_before: norm("pre_layrnorm"),
            encoder: Encoder::new(&scope.at("encoder"), &config.encoder),
            norm_after: norm("post_layernorm"),
            config: config.clone(),
        }
    }

    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// `pixels` (batch, channels, image, image), normalised as the image processor does.
    pub fn forward(&self, pixels: &Tensor) -> Result<ClipVisionOutput, ModelError> {
        let ClipVisionConfig { channels, image, .. } = self.config;
        let size = pixels.size();
        if size.len() != 4 || size.get(1..) != Some(&[channels, image, image]) {
            return Err(ModelError::Configuration {
                what: "the picture's shape",
                value: format!("{size:?}"),
                expected: format!("(batch, {channels}, {image}, {image})"),
            });
        }
        let patches = self.patches.forward(pixels).flatten(2, 3).transpose(1, 2);
        let batch = size.first().copied().unwrap_or(0);
        let class = self.class.view([1, 1, -1]).expand([batch, 1, self.config.encoder.width], false);
        let x = Tensor::cat(&[class, patches], 1) + &self.positions;
        let states = self.encoder.forward(self.norm_before.forward(&x), None);
        let last = states.last().map_or_else(|| x.select(1, 0), |x| x.select(1, 0));
        Ok(ClipVisionOutput { pooled: self.norm_after.forward(&last), states })
    }
}
