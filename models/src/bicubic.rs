//! Scaling pictures as Pillow does.

use image::{Rgb, RgbImage};

/// Bicubic, as Pillow 13 does it to the bit: across first, then down, unless the picture loses height, and more than twice the
/// pixels of height than of width. Each pass is rounded and cut to a byte, so order and rounding show; no library does both
/// alike.
pub(crate) fn resized(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let lost = |from: u32, to: u32| i64::from(from) - i64::from(to);
    let (across, down) = (lost(picture.width(), width), lost(picture.height(), height));
    if down > 0 && down > 2 * across {
        resized_across(&resized_down(picture, height), width)
    } else {
        resized_down(&resized_across(picture, width), height)
    }
}

/// Bits behind the point of a weight.
const PRECISION: u32 = 22;

/// For each of `to` places: the first of `from` places that it is made of, and their weights.
fn weights(from: u32, to: u32) -> Vec<(u32, Vec<i64>)> {
    let bicubic = |x: f64| {
        let x = x.abs();
        if x < 1.0 {
            (1.5 * x - 2.5) * x * x + 1.0
        } else if x < 2.0 {
            (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        } else {
            0.0
        }
    };
    let scale = f64::from(from) / f64::from(to);
    let stretch = scale.max(1.0);
    let (support, shrink) = (2.0 * stretch, 1.0 / stretch);
    let place = |i: u32| {
        let center = (f64::from(i) + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as u32;
        let end = ((center + support + 0.5) as u32).min(from);
        let raw: Vec<f64> = (first..end).map(|j| bicubic((f64::from(j) - center + 0.5) * shrink)).collect();
        let total: f64 = raw.iter().sum();
        let whole = |weight: f64| {
            let scaled = weight / total * f64::from(1 << PRECISION);
            (scaled + if scaled < 0.0 { -0.5 } else { 0.5 }) as i64
        };
        (first, raw.into_iter().map(whole).collect())
    };
    (0..to).map(place).collect()
}

/// The pixel that is made of `pixels` with their weights.
fn mixed<'a>(pixels: impl Iterator<Item = (&'a Rgb<u8>, &'a i64)>) -> Rgb<u8> {
    let mut sums = [1i64 << (PRECISION - 1); 3];
    for (Rgb(pixel), weight) in pixels {
        for (sum, &channel) in sums.iter_mut().zip(pixel) {
            *sum += i64::from(channel) * weight;
        }
    }
    Rgb(sums.map(|sum| (sum >> PRECISION).clamp(0, 255) as u8))
}

fn resized_across(picture: &RgbImage, width: u32) -> RgbImage {
    if picture.width() == width {
        return picture.clone();
    }
    let weights = weights(picture.width(), width);
    let mut scaled = RgbImage::new(width, picture.height());
    for (row, out) in picture.rows().zip(scaled.rows_mut()) {
        let row: Vec<&Rgb<u8>> = row.collect();
        for (pixel, (first, weights)) in out.zip(&weights) {
            *pixel = mixed(row.iter().skip(*first as usize).copied().zip(weights));
        }
    }
    scaled
}

fn resized_down(picture: &RgbImage, height: u32) -> RgbImage {
    if picture.height() == height {
        return picture.clone();
    }
    let weights = weights(picture.height(), height);
    let rows: Vec<Vec<&Rgb<u8>>> = picture.rows().map(Iterator::collect).collect();
    let mut scaled = RgbImage::new(picture.width(), height);
    for (out, (first, weights)) in scaled.rows_mut().zip(&weights) {
        let rows = rows.get(*first as usize..).unwrap_or_default();
        for (x, pixel) in out.enumerate() {
            *pixel = mixed(rows.iter().filter_map(|row| row.get(x).copied()).zip(weights));
        }
    }
    scaled
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Pillow 13.0 makes of a small chequered picture: across first, then down first.
    #[test]
    fn pictures_are_scaled_as_pillow_does() {
        let picture = RgbImage::from_fn(5, 7, |x, y| Rgb([if (x * y + x) % 3 == 0 { 255 } else { 0 }, 90, 17]));
        let red = |picture: RgbImage| picture.pixels().map(|pixel| pixel.0[0]).collect::<Vec<_>>();
        assert_eq!(
            red(resized(&picture, 3, 6)),
            [137, 46, 109, 177, 116, 158, 214, 182, 204, 127, 29, 97, 229, 208, 222, 160, 86, 137]
        );
        assert_eq!(red(resized(&picture, 4, 3)), [217, 35, 183, 102, 222, 66, 194, 124, 227, 90, 201, 140]);
    }
}
