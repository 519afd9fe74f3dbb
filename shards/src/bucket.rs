//! The size that names a bucket.

use std::fmt;
use std::str::FromStr;

/// Width and height, in pixels, shared by every image of a bucket. Written `{width}x{height}`, always width first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BucketSize {
    pub width: u32,
    pub height: u32,
}

/// How the size of an image becomes that of its bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketRule {
    /// Pixels of the longest side: larger images are brought down to it.
    pub max_resolution: u32,
    /// Sides are multiples of this many pixels.
    pub patch_size: u32,
    /// Whether smaller images are brought up to `max_resolution`.
    pub upscale: bool,
}

impl BucketRule {
    /// The bucket an image falls into: its longest side is brought to `max_resolution` where the rule says so, the aspect
    /// ratio is kept, and each side goes to the *nearest* multiple of `patch_size` (ties down), never below one patch. A zero
    /// counts as one.
    pub fn size(self, width: u32, height: u32) -> BucketSize {
        let patch = u64::from(self.patch_size.max(1));
        let (width, height) = (u64::from(width.max(1)), u64::from(height.max(1)));
        let (longest, most) = (width.max(height), u64::from(self.max_resolution.max(1)));
        // The scaled side is side·numerator/denominator exactly; whole numbers keep the ties exact on every machine.
        let (numerator, denominator) = if longest > most || self.upscale { (most, longest) } else { (1, 1) };
        let snap = |side: u64| {
            let (scaled, unit) = (side * numerator, patch * denominator);
            let (whole, rest) = (scaled / unit, scaled % unit);
            let patches = if rest * 2 > unit { whole + 1 } else { whole };
            (patches.max(1) * patch).min(u64::from(u32::MAX)) as u32
        };
        BucketSize { width: snap(width), height: snap(height) }
    }
}

impl BucketSize {
    /// Width over height.
    pub fn aspect_ratio(self) -> f64 {
        f64::from(self.width) / f64::from(self.height)
    }
}

impl fmt::Display for BucketSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// The text was not `{width}x{height}` with two positive whole numbers.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a bucket size; expected WIDTHxHEIGHT in pixels, such as 512x384")]
pub struct InvalidBucketSize(String);

impl FromStr for BucketSize {
    type Err = InvalidBucketSize;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidBucketSize(text.to_owned());
        let (width, height) = text.split_once('x').ok_or_else(invalid)?;
        let side = |s: &str| s.parse().ok().filter(|&n: &u32| n > 0).ok_or_else(invalid);
        Ok(Self { width: side(width)?, height: side(height)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sides_go_to_the_nearest_multiple_and_ties_go_down() {
        let cases = [
            ((1024, 768, 256, 16), "256x192"),
            ((1000, 600, 256, 16), "256x160"), // 153.6 is 9.6 patches
            ((32, 18, 32, 4), "32x16"),        // 4.5 patches: a tie, down
            ((100, 1, 256, 16), "96x16"),      // never below one patch, and small images are not enlarged
            ((5000, 10, 256, 16), "256x16"),
            ((256, 256, 256, 16), "256x256"),
        ];
        for ((width, height, resolution, patch), expected) in cases {
            let rule = BucketRule { max_resolution: resolution, patch_size: patch, upscale: false };
            assert_eq!(rule.size(width, height).to_string(), expected);
        }
        let upscale = BucketRule { max_resolution: 256, patch_size: 16, upscale: true };
        assert_eq!(upscale.size(64, 48).to_string(), "256x192");
        assert_eq!(upscale.size(1024, 768).to_string(), "256x192");
    }

    #[test]
    fn text_is_width_first_and_nothing_else_parses() {
        assert_eq!("512x384".parse(), Ok(BucketSize { width: 512, height: 384 }));
        for bad in ["", "512", "512x", "x3", "512X384", "0x16", "-4x16", "512x384x3", "99999999999x1"] {
            assert!(bad.parse::<BucketSize>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_image_gets_a_bucket_of_whole_patches(
            w in 0u32..100_000, h in 0u32..100_000, r in 0u32..4096, p in 0u32..256, upscale: bool,
        ) {
            let bucket = BucketRule { max_resolution: r, patch_size: p, upscale }.size(w, h);
            let patch = p.max(1);
            prop_assert!(bucket.width > 0 && bucket.height > 0);
            prop_assert_eq!(bucket.width % patch, 0);
            prop_assert_eq!(bucket.height % patch, 0);
            prop_assert!(bucket.width.max(bucket.height) <= r.max(1) + patch);
            prop_assert_eq!(bucket.to_string().parse::<BucketSize>().unwrap(), bucket);
        }
    }
}
