//! One image as its bucket wants it.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use shards::bucket::BucketSize;

use super::Bucket;
use super::merge::Merges;
use picture::{DecodeError, decode_at_least, encode, header};

/// An image of its bucket's size.
pub(super) struct Picture {
    pub(super) size: BucketSize,
    /// The bucket it would be in if none were merged.
    pub(super) own: BucketSize,
    pub(super) bytes: Vec<u8>,
}

/// Why an image is in no bucket.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("{width}x{height}: its longer side is more than {most} times the shorter")]
    TooLong { width: u32, height: u32, most: f64 },
    #[error("it cannot be encoded: {0}")]
    Encode(String),
}

impl Refused {
    /// The word by which refused rows are counted.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Decode(error) => error.reason(),
            Self::TooLong { .. } => "aspect_ratio_too_large",
            Self::Encode(_) => "not_encoded",
        }
    }
}

impl Bucket {
    /// Makes of an image what its bucket holds.
    pub(super) fn make(&self, bytes: &[u8], merges: &Merges) -> Result<Picture, Refused> {
        if let Some(most) = self.max_aspect {
            let header = header(bytes, self.max_pixels)?;
            judge(header.width, header.height, most)?;
        }
        let sizes = |width, height| {
            let own = self.rule().size(width, height);
            (own, merges.bucket(own))
        };
        let (image, (width, height)) = decode_at_least(bytes, self.max_pixels, |width, height| {
            // Lanczos looks further than the pixels that it is given.
            let (own, size) = sizes(width, height);
            (2 * own.width.max(size.width), 2 * own.height.max(size.height))
        })?;
        let (own, size) = sizes(width, height);
        if self.keep && (width, height) == (size.width, size.height) && can_be_kept(bytes, self.max_pixels) {
            return Ok(Picture { size, own, bytes: bytes.to_vec() });
        }
        let image = scale(image, size, own != size).map_err(Refused::Encode)?;
        let bytes = encode(&image, self.format, self.quality).map_err(Refused::Encode)?;
        Ok(Picture { size, own, bytes })
    }
}

fn judge(width: u32, height: u32, most: f64) -> Result<(), Refused> {
    let (shorter, longer) = (width.min(height), width.max(height));
    if f64::from(longer) > most * f64::from(shorter) { Err(Refused::TooLong { width, height, most }) } else { Ok(()) }
}

fn can_be_kept(bytes: &[u8], most_pixels: u64) -> bool {
    header(bytes, most_pixels).is_ok_and(|header| header.format.is_some() && !header.is_turned)
}

/// Lanczos with three lobes, as the reference. What is `cut` keeps its aspect ratio and loses what lies outside the size; else
/// all of it is brought to the size.
fn scale(image: RgbImage, size: BucketSize, cut: bool) -> Result<RgbImage, String> {
    if image.dimensions() == (size.width, size.height) {
        return Ok(image);
    }
    let source =
        ImageRef::new(image.width(), image.height(), image.as_raw(), PixelType::U8x3).map_err(|e| e.to_string())?;
    let mut target = Image::new(size.width, size.height, PixelType::U8x3);
    let mut options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
    if cut {
        options = options.fit_into_destination(None);
    }
    Resizer::new().resize(&source, &mut target, &options).map_err(|e| e.to_string())?;
    RgbImage::from_raw(size.width, size.height, target.into_vec())
        .ok_or_else(|| "the resizer gave too few bytes".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_keeps_its_shape_about_the_middle() {
        // A white square in the middle of black, twice as wide as high.
        let image = RgbImage::from_fn(128, 64, |x, y| {
            let inside = (48..80).contains(&x) && (16..48).contains(&y);
            image::Rgb([if inside { 255 } else { 0 }; 3])
        });
        let bright = |image: &RgbImage| {
            let inside: Vec<(u32, u32)> =
                image.enumerate_pixels().filter(|(_, _, pixel)| pixel.0[0] > 127).map(|(x, y, _)| (x, y)).collect();
            (inside.first().copied(), inside.last().copied())
        };
        let size = BucketSize { width: 32, height: 32 };
        let cut = scale(image.clone(), size, true).unwrap();
        assert_eq!(bright(&cut), (Some((8, 8)), Some((23, 23))));
        let squeezed = scale(image, size, false).unwrap();
        assert_eq!(bright(&squeezed), (Some((12, 8)), Some((19, 23))));
    }
}
