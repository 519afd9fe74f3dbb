//! How pictures of any size become the network's input.

use tch::{Kind, Tensor};

use super::SIDE;

/// Resizing to 299 × 299 pixels and scaling. Both kinds are bilinear between the four nearest pixels, without antialiasing:
/// of a larger picture most pixels count for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resize {
    /// pytorch-fid: `F.interpolate(align_corners=False)`, where pixels have their places in the middle of their squares, then
    /// `2·p − 1`.
    #[default]
    PytorchFid,
    /// The graph that FID was first computed with, and torch-fidelity: TensorFlow 1's `resize_bilinear`, where pixels have
    /// their places in the upper left corners of their squares, so that the picture moves by up to half a pixel; then
    /// `(255·p − 128) / 128`.
    Tensorflow1,
}

impl Resize {
    /// `pixels` (batch, 3, height, width) in 0..=1, float32, to (batch, 3, 299, 299) in about −1..=1.
    pub fn prepare(self, pixels: &Tensor) -> Tensor {
        match self {
            // Pictures that have the right size come back as they are.
            Self::PytorchFid => pixels.upsample_bilinear2d([SIDE; 2], false, None, None) * 2.0 - 1.0,
            Self::Tensorflow1 => {
                let rows = stretch(&(pixels * 255.0)).transpose(2, 3);
                (stretch(&rows).transpose(2, 3) - 128.0) / 128.0
            }
        }
    }
}

/// Rows of any length to rows of [`SIDE`] pixels, by TensorFlow 1's rule.
fn stretch(x: &Tensor) -> Tensor {
    let length = x.size().last().copied().unwrap_or(SIDE);
    // In float32, as TensorFlow's kernel computes its places.
    let places = Tensor::arange(SIDE, (Kind::Float, x.device())) * f64::from(length as f32 / SIDE as f32);
    let left = places.floor();
    let share = &places - &left;
    let left = left.to_kind(Kind::Int64);
    let right = (&left + 1).clamp_max(length - 1);
    let (left, right) = (x.index_select(-1, &left), x.index_select(-1, &right));
    &left + (right - &left) * share
}
