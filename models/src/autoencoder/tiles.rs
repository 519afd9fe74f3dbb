//! Pictures too large for memory, piece by piece.

use tch::{Device, Kind, Tensor};

/// Pieces of at most `tile` pixels a side that overlap by `overlap` pixels, where they fade into each other.
///
/// The result is not that of the whole picture at once: normalisation and the attention in the middle then see a piece only.
/// With an overlap of a quarter the seams are not visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// In pixels of the picture; rounded up to the autoencoder's factor.
    pub tile: i64,
    pub overlap: i64,
}

impl Default for Tiling {
    /// 1024 pixels with a quarter of overlap: what a GPU with 24 GB holds.
    fn default() -> Self {
        Self { tile: 1024, overlap: 256 }
    }
}

impl Tiling {
    /// Sizes in latent pixels, (tile, overlap).
    fn latent(self, factor: i64) -> (i64, i64) {
        let tile = (self.tile.max(1) + factor - 1) / factor;
        (tile, ((self.overlap.max(0) + factor - 1) / factor).min(tile / 2))
    }

    pub(super) fn encode(self, pixels: &Tensor, factor: i64, whole: impl Fn(&Tensor) -> Tensor) -> Tensor {
        let (tile, overlap) = self.latent(factor);
        in_tiles(pixels, [tile, overlap], [factor, 1], whole)
    }

    pub(super) fn decode(self, latents: &Tensor, factor: i64, whole: impl Fn(&Tensor) -> Tensor) -> Tensor {
        let (tile, overlap) = self.latent(factor);
        in_tiles(latents, [tile, overlap], [1, factor], whole)
    }
}

/// Starts of pieces of length `tile` that cover `length` and overlap by at least `overlap`.
fn starts(length: i64, tile: i64, overlap: i64) -> Vec<i64> {
    if length <= tile {
        return vec![0];
    }
    let step = (tile - overlap).max(1);
    let count = (length - overlap + step - 1) / step;
    (0..count).map(|i| (i * step).min(length - tile)).collect()
}

/// A piece's weights along one axis: rising over the overlap with the piece before, falling over that with the next.
fn fade(length: i64, overlap: i64, first: bool, last: bool, device: Device) -> Tensor {
    let places = Tensor::arange(length, (Kind::Float, device)) + 0.5;
    let ramp = |distance: Tensor| (distance / overlap.max(1) as f64).clamp(1e-3, 1.0);
    let mut weights = places.ones_like();
    if !first {
        weights = &weights * ramp(places.shallow_clone());
    }
    if !last {
        weights = &weights * ramp(places.neg() + length as f64);
    }
    weights
}

/// Applies `whole` to pieces of `x` (batch, channels, height, width), one sample at a time, and joins the results. Sizes
/// in latent pixels; a latent pixel is `scales[0]` pixels of the input and `scales[1]` of the output.
fn in_tiles(
    x: &Tensor,
    [tile, overlap]: [i64; 2],
    [input, output]: [i64; 2],
    whole: impl Fn(&Tensor) -> Tensor,
) -> Tensor {
    let size = x.size();
    let [batch, height, width] = [0, 2, 3].map(|axis| size.get(axis).copied().unwrap_or(0));
    let (height, width) = (height / input, width / input);
    let rows = starts(height, tile, overlap);
    let columns = starts(width, tile, overlap);
    let mut samples = Vec::new();
    for sample in 0..batch {
        let x = x.narrow(0, sample, 1);
        if rows.len() == 1 && columns.len() == 1 {
            samples.push(whole(&x));
            continue;
        }
        let mut joined: Option<(Tensor, Tensor)> = None;
        for (i, &row) in rows.iter().enumerate() {
            for (j, &column) in columns.iter().enumerate() {
                let (h, w) = (tile.min(height), tile.min(width));
                let piece = whole(&x.narrow(2, row * input, h * input).narrow(3, column * input, w * input));
                let device = piece.device();
                let down = fade(h * output, overlap * output, i == 0, i + 1 == rows.len(), device);
                let across = fade(w * output, overlap * output, j == 0, j + 1 == columns.len(), device);
                let weights = (down.unsqueeze(1) * across.unsqueeze(0)).to_kind(piece.kind());
                let (sum, total) = joined.get_or_insert_with(|| {
                    let channels = piece.size().get(1).copied().unwrap_or(1);
                    let zeros = |channels: i64| {
                        Tensor::zeros([1, channels, height * output, width * output], (piece.kind(), device))
                    };
                    (zeros(channels), zeros(1))
                });
                let part = |t: &Tensor| t.narrow(2, row * output, h * output).narrow(3, column * output, w * output);
                let _ = part(sum).g_add_(&(piece * &weights));
                let _ = part(total).g_add_(&weights);
            }
        }
        samples.extend(joined.map(|(sum, total)| sum / total));
    }
    Tensor::cat(&samples, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_everything_and_fade_into_what_was_there() {
        for (length, tile, overlap) in [(7, 4, 1), (64, 16, 4), (65, 16, 8), (5, 9, 2), (16, 16, 4), (17, 16, 8)] {
            let starts = starts(length, tile, overlap);
            assert_eq!(starts.first(), Some(&0));
            assert!(starts.last().is_some_and(|&last| last + tile >= length && (last + tile == length || last == 0)));
            assert!(starts.windows(2).all(|p| p[0] < p[1] && p[1] - p[0] <= tile - overlap), "{length}: {starts:?}");
            // A function that acts on each pixel alone gives the same in pieces.
            let x = Tensor::arange(2 * 3 * length * 6, (Kind::Float, Device::Cpu)).view([2, 3, length, 6]);
            let y = in_tiles(&x, [tile, overlap], [1, 1], |piece| piece * 2.0 + 1.0);
            assert!((y - (x * 2.0 + 1.0)).abs().max().double_value(&[]) < 1e-2);
        }
    }
}
