//! Rotary positions.

use tch::{Device, Kind, Tensor};

/// `base^(−2i/width)` for i in 0..width/2: the frequencies of one axis of `width` features.
pub fn frequencies(width: i64, base: f64) -> Vec<f64> {
    (0..width / 2).map(|i| base.powf(-2.0 * i as f64 / width as f64)).collect()
}

/// As [`frequencies`], shape (width / 2), float32.
pub fn frequency_tensor(width: i64, base: f64) -> Tensor {
    single(&frequencies(width, base))
}

/// The frequencies of the triples of [`Rotation::triples`]: `10000^(−i/k)`, k the third part of the head's features.
pub fn triple_frequencies(head_features: i64) -> Tensor {
    let count = head_features / 3;
    single(&(0..count).map(|i| 10000f64.powf(-(i as f64) / count as f64)).collect::<Vec<_>>())
}

fn single(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).to_kind(Kind::Float)
}

/// `positions`·scale ⊗ `frequencies`: (positions, frequencies).
fn angles(positions: i64, scale: f64, frequencies: &Tensor, device: Device) -> Tensor {
    let positions = Tensor::arange(positions, (Kind::Float, device)) * scale;
    positions.unsqueeze(1) * frequencies.to_device(device)
}

/// One row of angles for each of `rows`×`columns` tokens, row-major: those of its row and those of its column, each
/// (tokens, frequencies).
fn grid_angles(rows: i64, columns: i64, scale: f64, frequencies: &Tensor, device: Device) -> [Tensor; 2] {
    let count = frequencies.size().first().copied().unwrap_or(0);
    let spread = |angles: Tensor, axis: i64| {
        angles.unsqueeze(axis).expand([rows, columns, count], false).reshape([rows * columns, count])
    };
    [spread(angles(rows, scale, frequencies, device), 1), spread(angles(columns, scale, frequencies, device), 0)]
}

/// Turns for the image tokens of one size, the same for every head and block. Applied to queries and keys.
#[derive(Debug)]
pub enum Rotation {
    /// Complex numbers of length one, (tokens, 1, head features / 2), one for each interleaved pair of features.
    Pairs(Tensor),
    /// Sines and cosines of both angles of each triple of features, each (tokens, 1, head features / 3).
    Triples { sin_a: Tensor, cos_a: Tensor, sin_b: Tensor, cos_b: Tensor },
}

impl Rotation {
    /// Two axes (RoPE2d): the first half of a head's features turns with the row, the second with the column.
    pub fn axial(rows: i64, columns: i64, scale: f64, frequencies: &Tensor, device: Device) -> Self {
        Self::pairs(&Tensor::cat(&grid_angles(rows, columns, scale, frequencies, device), -1))
    }

    /// One axis (RoPE): the position is the token's number.
    pub fn linear(tokens: i64, scale: f64, frequencies: &Tensor, device: Device) -> Self {
        Self::pairs(&angles(tokens, scale, frequencies, device))
    }

    fn pairs(angles: &Tensor) -> Self {
        let angles = angles.unsqueeze(1);
        Self::Pairs(Tensor::complex(&angles.cos(), &angles.sin()))
    }

    /// Two angles for each triple of features (RoPE2dV2): a by the row, b by the column.
    pub fn triples(rows: i64, columns: i64, scale: f64, frequencies: &Tensor, device: Device) -> Self {
        let [a, b] = grid_angles(rows, columns, scale, frequencies, device).map(|angles| angles.unsqueeze(1));
        Self::Triples { sin_a: a.sin(), cos_a: a.cos(), sin_b: b.sin(), cos_b: b.cos() }
    }

    /// Rotates `x` (batch, tokens, heads, features).
    pub fn apply(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Pairs(turns) => {
                let mut shape = x.size();
                let features = shape.pop().unwrap_or(0);
                let pairs: Vec<i64> = shape.iter().copied().chain([features / 2, 2]).collect();
                // Complex numbers come in float32 only.
                let numbers = x.to_kind(Kind::Float).reshape(pairs.as_slice()).view_as_complex();
                (numbers * turns).view_as_real().flatten(-2, -1).to_kind(x.kind())
            }
            Self::Triples { sin_a, cos_a, sin_b, cos_b } => {
                let count = sin_a.size().last().copied().unwrap_or(0);
                let features = x.size().last().copied().unwrap_or(0);
                let triples = x.narrow(-1, 0, 3 * count).to_kind(Kind::Float).unflatten(-1, [count, 3]);
                let [p, q, r] = [0, 1, 2].map(|i| triples.select(-1, i));
                let turned = [
                    cos_a * &p - sin_a * cos_b * &q + sin_a * sin_b * &r,
                    sin_a * &p + cos_a * cos_b * &q - cos_a * sin_b * &r,
                    sin_b * &q + cos_b * &r,
                ];
                // The components stay apart; features beyond the last triple are left as they are.
                let rest = x.narrow(-1, 3 * count, features - 3 * count);
                let turned = Tensor::cat(&turned, -1).to_kind(x.kind());
                Tensor::cat(&[turned, rest], -1)
            }
        }
    }
}
