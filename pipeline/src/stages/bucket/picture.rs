//! One image as its buckets want it.

use std::borrow::Cow;
use std::cell::RefCell;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use shards::bucket::{BucketRule, BucketSize};

use super::Bucket;
use super::merge::Merges;
use picture::{DecodeError, decode_at_least, encode, header};

thread_local! {
    /// Keeps its buffers.
    static RESIZER: RefCell<Resizer> = RefCell::new(Resizer::new());
}

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

/// What is wanted of every image of a partition.
pub(super) struct Wanted<'a> {
    pub(super) bucket: &'a Bucket,
    /// One for each resolution.
    pub(super) rules: &'a [BucketRule],
    pub(super) merges: &'a Merges,
}

impl Wanted<'_> {
    /// Makes of an image what its bucket of each resolution holds. It is decoded once.
    pub(super) fn make(&self, bytes: &[u8]) -> Result<Vec<Picture>, Refused> {
        let bucket = self.bucket;
        if let Some(most) = bucket.max_aspect {
            let header = header(bytes, bucket.max_pixels)?;
            judge(header.width, header.height, most)?;
        }
        let (image, (width, height)) = decode_at_least(bytes, bucket.max_pixels, |width, height| {
            // Lanczos looks further than the pixels that it is given.
            let sizes = self.sizes(width, height).flat_map(|(own, size)| [own, size]);
            sizes.fold((0, 0), |(w, h), size| (w.max(2 * size.width), h.max(2 * size.height)))
        })?;
        let mut pictures: Vec<Picture> = Vec::with_capacity(self.rules.len());
        for (own, size) in self.sizes(width, height) {
            // A small image has the same size at several resolutions.
            let made = pictures.iter().find(|made| made.size == size && (made.own == made.size) == (own == size));
            let bytes = match made {
                Some(made) => made.bytes.clone(),
                None if bucket.keep
                    && (width, height) == (size.width, size.height)
                    && can_be_kept(bytes, bucket.max_pixels) =>
                {
                    bytes.to_vec()
                }
                None => {
                    check_on_the_way(&image, size, bucket.max_pixels)?;
                    let scaled = scale(&image, size, own != size).map_err(Refused::Encode)?;
                    encode(&scaled, bucket.format, bucket.quality).map_err(Refused::Encode)?
                }
            };
            pictures.push(Picture { size, own, bytes });
        }
        Ok(pictures)
    }

    /// At each resolution, the bucket that an image of this size would be in if none were merged, and the one it is in.
    fn sizes(&self, width: u32, height: u32) -> impl Iterator<Item = (BucketSize, BucketSize)> {
        self.rules.iter().map(move |rule| {
            let own = rule.size(width, height);
            (own, self.merges.bucket(rule.max_resolution, own))
        })
    }
}

fn judge(width: u32, height: u32, most: f64) -> Result<(), Refused> {
    let (shorter, longer) = (width.min(height), width.max(height));
    if f64::from(longer) > most * f64::from(shorter) { Err(Refused::TooLong { width, height, most }) } else { Ok(()) }
}

fn can_be_kept(bytes: &[u8], most_pixels: u64) -> bool {
    header(bytes, most_pixels).is_ok_and(|header| header.format.is_some() && !header.is_turned)
}

/// The resizer goes down first and keeps the width meanwhile, in a buffer that lasts: of a strip one pixel high that is many times the strip
/// and its bucket together.
fn check_on_the_way(image: &RgbImage, size: BucketSize, most_pixels: u64) -> Result<(), DecodeError> {
    let (width, height) = (image.width(), size.height);
    let most = most_pixels.max(u64::from(size.width) * u64::from(size.height));
    if u64::from(width) * u64::from(height) > most {
        return Err(DecodeError::TooManyPixels { width, height, most });
    }
    Ok(())
}

/// Lanczos with three lobes, as the reference. What is `cut` keeps its aspect ratio and loses what lies outside the size; else
/// all of it is brought to the size.
fn scale(image: &RgbImage, size: BucketSize, cut: bool) -> Result<Cow<'_, RgbImage>, String> {
    if image.dimensions() == (size.width, size.height) {
        return Ok(Cow::Borrowed(image));
    }
    let source =
        ImageRef::new(image.width(), image.height(), image.as_raw(), PixelType::U8x3).map_err(|e| e.to_string())?;
    let mut target = Image::new(size.width, size.height, PixelType::U8x3);
    let mut options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
    if cut {
        options = options.fit_into_destination(None);
    }
    RESIZER.with_borrow_mut(|resizer| resizer.resize(&source, &mut target, &options)).map_err(|e| e.to_string())?;
    let scaled = RgbImage::from_raw(size.width, size.height, target.into_vec());
    scaled.map(Cow::Owned).ok_or_else(|| "the resizer gave too few bytes".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strip_that_takes_more_than_the_limit_on_its_way_is_refused() {
        let (strip, size) = (RgbImage::new(50_000, 1), BucketSize { width: 256, height: 16 });
        let refused = check_on_the_way(&strip, size, 799_999);
        assert_eq!(refused, Err(DecodeError::TooManyPixels { width: 50_000, height: 16, most: 799_999 }));
        assert_eq!(check_on_the_way(&strip, size, 800_000), Ok(()));
        // What is brought up to its bucket may be larger than what may come in.
        assert_eq!(check_on_the_way(&RgbImage::new(2, 2), size, 10), Ok(()));
    }

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
        let cut = scale(&image, size, true).unwrap();
        assert_eq!(bright(&cut), (Some((8, 8)), Some((23, 23))));
        let squeezed = scale(&image, size, false).unwrap();
        assert_eq!(bright(&squeezed), (Some((12, 8)), Some((19, 23))));
    }
}
