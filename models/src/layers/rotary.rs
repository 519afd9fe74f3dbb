//! Rotary positions.

use tch::{Device, Kind, Tensor};

/// The frequencies of one axis of a two-axis rotary embedding: `10000^(−2i/(d/2))` for i in 0..d/4, where d is the head's
/// width. Shape (d/4).
pub fn axial_frequencies(head_features: i64) -> Tensor {
    let half = head_features / 2;
    let values: Vec<f32> = (0..half / 2).map(|i| 10000f64.powf(-2.0 * i as f64 / half as f64) as f32).collect();
    Tensor::from_slice(&values)
}

/// Turns for the image tokens of one size: complex numbers of length one, (tokens, 1, head features / 2), one for each
/// interleaved pair of features, rows first, then columns. Positions are whole numbers at every resolution.
#[derive(Debug)]
pub struct Rotation(Tensor);

impl Rotation {
    /// For `rows`×`columns` tokens in row-major order, with the frequencies of one axis.
    pub fn axial(rows: i64, columns: i64, frequencies: &Tensor, device: Device) -> Self {
        let options = (Kind::Float, device);
        let pairs = frequencies.size()[0];
        let angles = |positions: i64| Tensor::arange(positions, options).unsqueeze(1) * frequencies.to_device(device);
        let row = angles(rows).unsqueeze(1).expand([rows, columns, pairs], false);
        let column = angles(columns).unsqueeze(0).expand([rows, columns, pairs], false);
        let angles = Tensor::cat(&[row, column], -1).reshape([rows * columns, 1, 2 * pairs]);
        Self(Tensor::complex(&angles.cos(), &angles.sin()))
    }

    /// Rotates `x` (batch, tokens, heads, features), float32: the pair (2m, 2m+1) is a complex number and is turned by the mth.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        let shape = x.size();
        let pairs = x.reshape([shape[0], shape[1], shape[2], shape[3] / 2, 2]).view_as_complex();
        (pairs * &self.0).view_as_real().reshape(shape.as_slice())
    }
}
