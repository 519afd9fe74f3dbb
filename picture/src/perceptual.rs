//! A hash that pictures keep when they are scaled or encoded anew.
//!
//! It is the gradient hash (Krawetz's dHash, 8×8): the picture is made grey and scaled to 9×8, and each bit says whether a
//! pixel is brighter than its left neighbour. Of the well-known hashes of 64 bits it was chosen because brightness, contrast,
//! size and encoding leave neighbours in their order, which a comparison with the mean (aHash) does not survive as well; and
//! because it compares whole numbers, where pHash compares floating-point sums with their median, which rounding on another
//! processor could turn. A flat picture has no gradient and gives no bit at all; see [`NOTHING`].

use image::RgbImage;
use image_hasher::{FilterType, HashAlg, Hasher, HasherConfig};

/// The hash of what cannot be compared: a picture that cannot be decoded, or has no gradient from left to right, or nothing
/// but one. Of those two hashes (no bit, and all of them) pictures that have nothing in common but their emptiness share one.
pub const NOTHING: u64 = 0;

thread_local! {
    // A triangle is enough to shrink with, and three times as fast as Lanczos.
    static HASHER: Hasher<[u8; 8]> = HasherConfig::with_bytes_type::<[u8; 8]>()
        .hash_size(8, 8)
        .hash_alg(HashAlg::Gradient)
        .resize_filter(FilterType::Triangle)
        .to_hasher();
}

/// The hash of a picture.
pub fn perceptual_hash(picture: &RgbImage) -> u64 {
    let bits = HASHER.with(|hasher| u64::from_le_bytes(hasher.hash_image(picture).into_inner()));
    if bits == u64::MAX { NOTHING } else { bits }
}

#[cfg(test)]
mod tests {
    use image::imageops;

    use super::*;

    /// Waves across each other, of lengths that follow from `seed`.
    fn picture(seed: u32) -> RgbImage {
        let length = |n: u32| 14.0 + (seed * 37 + n * 29) as f32 % 31.0;
        RgbImage::from_fn(160, 120, |x, y| {
            let (x, y) = (x as f32, y as f32);
            let light = ((x + y / 3.0) / length(0)).sin() + ((y - x / 2.0) / length(1)).cos() + (x / length(2)).cos();
            let value = (128.0 + 40.0 * light) as u8;
            image::Rgb([value, value / 2, 255 - value / 3])
        })
    }

    fn apart(a: &RgbImage, b: &RgbImage) -> u32 {
        (perceptual_hash(a) ^ perceptual_hash(b)).count_ones()
    }

    #[test]
    fn sizes_and_brightness_leave_the_hash_alone_and_other_pictures_do_not() {
        for seed in 0..8 {
            let original = picture(seed);
            let half = imageops::resize(&original, 80, 60, imageops::FilterType::Lanczos3);
            let squeezed = imageops::resize(&original, 200, 90, imageops::FilterType::CatmullRom);
            let bright = imageops::brighten(&original, 12);
            for (what, copy) in [("half", &half), ("squeezed", &squeezed), ("bright", &bright)] {
                assert!(apart(&original, copy) <= 4, "{seed} {what}: {}", apart(&original, copy));
            }
            assert!(apart(&original, &picture(seed + 1)) > 6, "{seed}: {}", apart(&original, &picture(seed + 1)));
        }
    }

    #[test]
    fn each_bit_compares_a_pixel_with_its_left_neighbour() {
        let value = |x: u32, y: u32| (x * 67 + y * 178 + x * y * 17) as u8;
        let bit = |n: u32| u64::from(value(n % 8, n / 8) < value(n % 8 + 1, n / 8)) << n;
        let expected: u64 = (0..64).map(bit).sum();
        for size in [1, 10] {
            let picture = RgbImage::from_fn(9 * size, 8 * size, |x, y| image::Rgb([value(x / size, y / size); 3]));
            assert_eq!(perceptual_hash(&picture), expected, "{size}");
        }
        // Another hash would drop other rows under an unchanged fingerprint.
        assert_eq!(expected, 0x4849_4a2a_adad_7677);
    }

    #[test]
    fn a_blank_page_has_no_hash() {
        for grey in [0, 128, 255] {
            assert_eq!(perceptual_hash(&RgbImage::from_pixel(40, 30, image::Rgb([grey; 3]))), NOTHING);
        }
        let ramp = RgbImage::from_fn(90, 80, |x, _| image::Rgb([x as u8 * 2; 3]));
        assert_eq!(perceptual_hash(&ramp), NOTHING);
    }
}
