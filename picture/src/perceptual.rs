//! A hash that pictures keep when they are scaled or encoded anew, and a look that tells apart pictures which share one.
//!
//! The hash is the gradient hash (Krawetz's dHash, 8×8): the picture is made grey and scaled to 9×8, and each bit says whether a
//! pixel is brighter than its left neighbour. Of the well-known hashes of 64 bits it was chosen because brightness, contrast,
//! size and encoding leave neighbours in their order, which a comparison with the mean (aHash) does not survive as well; and
//! because it compares whole numbers, where pHash compares floating-point sums with their median, which rounding on another
//! processor could turn. A flat picture has no gradient and gives no bit at all; see [`NOTHING`].
//!
//! It does not say how much brighter, nor in which colour, and flat areas say nothing: of all pictures with one thing in the
//! middle of a page the hashes are within a few bits of each other, whatever thing that is. So equal hashes are only a reason
//! to compare [`Look`]s.

use image::{RgbImage, imageops};
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

/// Pixels across, and down, of a look.
const SIDE: u32 = 12;
const PIXELS: usize = (SIDE * SIDE) as usize;
/// Pixels across, and down, of a tile of a look.
const TILE: u32 = 4;
/// Tiles across, and down, of a look.
const TILES_ACROSS: u32 = SIDE / TILE;
const TILES: usize = (TILES_ACROSS * TILES_ACROSS) as usize;
/// Of what is in two pictures, so many parts of this may differ as bits of their hashes, and one more: with four bits, a
/// hundredth. Copies of photographs in a third of their size, or with strong compression, differ in a few thousandths.
const PARTS: i64 = 500;

/// What a picture looks like from afar: its colours, 12×12 of them.
#[derive(Clone, Debug)]
pub struct Look {
    /// Red, green and blue, one after the other.
    channels: [[u8; PIXELS]; 3],
    /// The sums of their tiles.
    tiles: [[u16; TILES]; 3],
    unevenness: i64,
}

impl Look {
    /// The look of a picture.
    pub fn of(picture: &RgbImage) -> Self {
        let small = imageops::resize(picture, SIDE, SIDE, imageops::FilterType::Triangle);
        let (mut channels, mut tiles) = ([[0_u8; PIXELS]; 3], [[0_u16; TILES]; 3]);
        for (channel, (values, sums)) in channels.iter_mut().zip(&mut tiles).enumerate() {
            let seen = small.iter().skip(channel).step_by(3);
            for ((at, value), seen) in (0_u32..).zip(values).zip(seen) {
                *value = *seen;
                let tile = at / SIDE / TILE * TILES_ACROSS + at % SIDE / TILE;
                if let Some(sum) = sums.get_mut(tile as usize) {
                    *sum += u16::from(*seen);
                }
            }
        }
        let unevenness = channels.iter().map(|values| unevenness(values.iter().map(|value| i32::from(*value)))).sum();
        Self { channels, tiles, unevenness }
    }

    /// Whether both show the same, where `distance` is how many bits of their hashes may differ. Brightness that all of a
    /// picture has more than the other counts for nothing; a copy in grey, or with a sign across it, is another picture.
    pub fn is_like(&self, other: &Self, distance: u32) -> bool {
        let most = i64::from(distance + 1) * (self.unevenness + other.unevenness);
        // Tiles first: they are a sixteenth of the work, tell apart much of what differs, and nothing that the pixels do not.
        PARTS * difference(&self.tiles, &other.tiles) <= most
            && PARTS * difference(&self.channels, &other.channels) <= most
    }
}

/// By how much the differences between two pictures' values are uneven. Of the sums of tiles it is never more than of the pixels: n values
/// have squares of no less than an n-th of the square of their sum.
fn difference<V: Copy, const N: usize>(a: &[[V; N]; 3], b: &[[V; N]; 3]) -> i64
where
    i32: From<V>,
{
    let of = |(a, b): (&[V; N], &[V; N])| unevenness(a.iter().zip(b).map(|(a, b)| i32::from(*a) - i32::from(*b)));
    a.iter().zip(b).map(of).sum()
}

/// By how much values differ from their mean: the sum of the squares of that, times how many they are, as a whole number.
fn unevenness(values: impl Iterator<Item = i32>) -> i64 {
    let add = |(count, sum, squares): (i32, i32, i32), value: i32| (count + 1, sum + value, squares + value * value);
    let (count, sum, squares) = values.fold((0, 0, 0), add);
    i64::from(count) * i64::from(squares) - i64::from(sum) * i64::from(sum)
}

#[cfg(test)]
mod tests {
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

    /// A white page on which what lies within has a colour; it reaches from -1 to 1.
    fn page(colour: [u8; 3], is_within: impl Fn(f32, f32) -> bool) -> RgbImage {
        RgbImage::from_fn(96, 96, |x, y| {
            let [u, v] = [x, y].map(|place| (place as f32 - 47.5) / 48.0);
            image::Rgb(if is_within(u, v) { colour } else { [255; 3] })
        })
    }

    #[test]
    fn looks_tell_apart_what_shares_a_hash() {
        let original = page([200, 30, 30], |u, v| u.hypot(v) < 0.4);
        let others = [
            ("blue", page([30, 60, 200], |u, v| u.hypot(v) < 0.4)),
            ("larger", page([200, 30, 30], |u, v| u.hypot(v) < 0.46)),
            ("square", page([200, 30, 30], |u, v| u.abs().max(v.abs()) < 0.38)),
            ("ring", page([200, 30, 30], |u, v| (0.2..0.4).contains(&u.hypot(v)))),
        ];
        let look = Look::of(&original);
        for (what, other) in &others {
            assert!(apart(&original, other) <= 6, "{what}: {}", apart(&original, other));
            let other = Look::of(other);
            assert!(!look.is_like(&other, 4), "{what}");
            let of_tiles = difference(&look.tiles, &other.tiles);
            let of_pixels = difference(&look.channels, &other.channels);
            assert!(0 < of_tiles && of_tiles <= of_pixels, "{what}: {of_tiles} {of_pixels}");
        }
        for (what, copy) in [
            ("half", imageops::resize(&original, 48, 48, imageops::FilterType::Lanczos3)),
            ("squeezed", imageops::resize(&original, 110, 70, imageops::FilterType::CatmullRom)),
            ("darker", RgbImage::from_fn(96, 96, |x, y| image::Rgb(original.get_pixel(x, y).0.map(|v| v - v / 20)))),
        ] {
            assert!(look.is_like(&Look::of(&copy), 4), "{what}");
        }
        assert!(look.is_like(&look, 0) && Look::of(&RgbImage::new(3, 2)).is_like(&Look::of(&RgbImage::new(5, 1)), 0));
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
