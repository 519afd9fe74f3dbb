//! What stands between pixels and the model.

use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Turns pictures into latents and back.
pub trait LatentCodec: Send {
    /// Channels of a latent.
    fn channels(&self) -> i64;

    /// Image pixels along one side of a latent pixel.
    fn factor(&self) -> i64;

    /// `pixels` (batch, 3, height, width), float32 in -1..=1, sides multiples of [`LatentCodec::factor`], to (batch,
    /// channels, height / factor, width / factor).
    fn encode(&self, pixels: &Tensor) -> Tensor;

    /// The inverse of [`LatentCodec::encode`]; values may lie outside of -1..=1.
    fn decode(&self, latents: &Tensor) -> Tensor;
}

/// Which latents a model works on. Stored in every checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Latents {
    /// The image itself, space-to-depth by two: no VAE, no weights to download, 12 channels.
    Pixels,
}

impl Latents {
    pub fn codec(self) -> Box<dyn LatentCodec> {
        match self {
            Self::Pixels => Box::new(SpaceToDepth { factor: 2 }),
        }
    }
}

/// Each square of `factor`×`factor` pixels becomes one latent pixel with 3·factor² channels.
#[derive(Clone, Copy, Debug)]
struct SpaceToDepth {
    factor: i64,
}

impl LatentCodec for SpaceToDepth {
    fn channels(&self) -> i64 {
        3 * self.factor * self.factor
    }

    fn factor(&self) -> i64 {
        self.factor
    }

    fn encode(&self, pixels: &Tensor) -> Tensor {
        pixels.pixel_unshuffle(self.factor)
    }

    fn decode(&self, latents: &Tensor) -> Tensor {
        latents.pixel_shuffle(self.factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;
    use tch::Device;

    #[test]
    fn pixels_survive_the_round_trip_to_the_bit() {
        let codec = Latents::Pixels.codec();
        let pixels = Stream::new(0, "test", &[]).normal_tensor(&[2, 3, 8, 12], Device::Cpu);
        let latents = codec.encode(&pixels);
        assert_eq!(latents.size(), [2, codec.channels(), 4, 6]);
        assert_eq!(codec.decode(&latents), pixels);
    }
}
