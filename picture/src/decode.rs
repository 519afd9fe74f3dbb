//! Bytes from anywhere to upright RGB pixels.
//!
//! The first frame of an animation; EXIF orientation applied; transparency flattened on white; palette, grey, CMYK and
//! 16-bit images brought to 8-bit RGB. JPEGs go through libjpeg-turbo and WebPs through libwebp, which take half the time
//! of others. What they are not content with (damage, CMYK, animations, rare kinds) goes through the decoder of `image`,
//! whose word is final.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use super::jpeg;

/// Why bytes did not become an image.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Nothing that looks like JPEG, PNG, WebP or GIF.
    #[error("not an image: it begins with {0}")]
    NotAnImage(String),
    /// More pixels than allowed: by its header, and nothing was decoded; or as it would be scaled, and it was not.
    #[error("{width}x{height} pixels are more than {most} allowed")]
    TooManyPixels { width: u32, height: u32, most: u64 },
    /// An image by its header, but damaged.
    #[error("damaged: {0}")]
    Damaged(String),
}

impl DecodeError {
    /// The word by which refused rows are counted.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotAnImage(_) => "not_an_image",
            Self::TooManyPixels { .. } => "too_many_pixels",
            Self::Damaged(_) => "damaged_image",
        }
    }

    pub(super) fn damaged(error: impl std::fmt::Display) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// Decodes `bytes` to upright pixels. The size in the header is checked against `most_pixels` before memory is spent.
pub fn decode(bytes: &[u8], most_pixels: u64) -> Result<RgbImage, DecodeError> {
    decode_at_least(bytes, most_pixels, |width, height| (width, height)).map(|(image, _)| image)
}

/// As [`decode`], for an image that is made smaller afterwards: `target` says of the upright size to which. A JPEG much
/// larger than that is decoded at a half, a quarter or an eighth, but never to less than the target. Returns the pixels and
/// the size before that.
pub fn decode_at_least(
    bytes: &[u8],
    most_pixels: u64,
    target: impl FnOnce(u32, u32) -> (u32, u32),
) -> Result<(RgbImage, (u32, u32)), DecodeError> {
    let format = format(bytes)?;
    if format == ImageFormat::Jpeg
        && let Some(header) = jpeg::header(bytes)
    {
        check_pixels(header.width, header.height, most_pixels)?;
        let orientation = jpeg::orientation(bytes);
        let size = upright((header.width, header.height), orientation);
        // Turning a size twice gives it back.
        let target = upright(target(size.0, size.1), orientation);
        if !jpeg::is_cut_off(bytes)
            && let Some(image) = jpeg::decode(bytes, header, target)
        {
            let mut image = DynamicImage::from(image);
            image.apply_orientation(orientation);
            return Ok((image.into_rgb8(), size));
        }
    }
    let image = decode_any(bytes, format, most_pixels)?;
    let size = image.dimensions();
    Ok((image, size))
}

/// What the first bytes say.
pub(super) fn format(bytes: &[u8]) -> Result<ImageFormat, DecodeError> {
    let known = [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif];
    image::guess_format(bytes).ok().filter(|format| known.contains(format)).ok_or_else(|| {
        let start = bytes.get(..bytes.len().min(12)).unwrap_or_default();
        DecodeError::NotAnImage(format!("`{}`", start.escape_ascii()))
    })
}

pub(super) fn check_pixels(width: u32, height: u32, most: u64) -> Result<(), DecodeError> {
    if u64::from(width) * u64::from(height) > most {
        return Err(DecodeError::TooManyPixels { width, height, most });
    }
    Ok(())
}

/// A size after its image was turned.
pub(super) fn upright((width, height): (u32, u32), orientation: Orientation) -> (u32, u32) {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    match orientation {
        Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH => (height, width),
        _ => (width, height),
    }
}

/// A decoder of the `image` crate that has read the header and found no more pixels than allowed.
pub(super) fn decoder(bytes: &[u8], format: ImageFormat, most_pixels: u64) -> Result<impl ImageDecoder, DecodeError> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(most_pixels.saturating_mul(16).max(1 << 24));
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(DecodeError::damaged)?;
    let (width, height) = decoder.dimensions();
    check_pixels(width, height, most_pixels)?;
    Ok(decoder)
}

fn decode_any(bytes: &[u8], format: ImageFormat, most_pixels: u64) -> Result<RgbImage, DecodeError> {
    let mut decoder = decoder(bytes, format, most_pixels)?;
    // This decoder fills what is missing with grey and reports success.
    if format == ImageFormat::Jpeg && jpeg::is_cut_off(bytes) {
        return Err(DecodeError::Damaged("the JPEG is cut off: no end marker after its last scan".to_owned()));
    }
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let of_libwebp = if format == ImageFormat::WebP { webp(bytes, decoder.dimensions()) } else { None };
    let mut image = match of_libwebp {
        Some(image) => image,
        None => DynamicImage::from_decoder(decoder).map_err(DecodeError::damaged)?,
    };
    image.apply_orientation(orientation);
    Ok(flatten(image))
}

/// The pixels as stored. `None` where libwebp has anything to complain of, where there is an animation, or where it sees
/// another size than was checked.
fn webp(bytes: &[u8], size: (u32, u32)) -> Option<DynamicImage> {
    let features = webp::BitstreamFeatures::new(bytes)?;
    if (features.width(), features.height()) != size {
        return None;
    }
    let image = webp::Decoder::new(bytes).decode()?;
    let (width, height) = size;
    match image.layout() {
        webp::PixelLayout::Rgb => RgbImage::from_raw(width, height, image.to_vec()).map(DynamicImage::from),
        webp::PixelLayout::Rgba => image::RgbaImage::from_raw(width, height, image.to_vec()).map(DynamicImage::from),
    }
}

fn flatten(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let image = image.into_rgba8();
    let over_white = |value: u8, alpha: u8| {
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let [r, g, b, a] = image.get_pixel(x, y).0;
        image::Rgb([over_white(r, a), over_white(g, a), over_white(b, a)])
    })
}
#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageFormat, Rgba, RgbaImage};

    fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn transparency_becomes_white() {
        let image = RgbaImage::from_fn(2, 1, |x, _| Rgba([10, 20, 30, if x == 0 { 0 } else { 255 }]));
        let decoded = decode(&encode(&image.into(), ImageFormat::Png), 100).unwrap();
        assert_eq!((decoded.get_pixel(0, 0).0, decoded.get_pixel(1, 0).0), ([255; 3], [10, 20, 30]));
    }

    #[test]
    fn a_cut_jpeg_is_damaged_and_a_whole_one_is_not() {
        let image = RgbImage::from_fn(64, 48, |x, y| image::Rgb([x as u8 * 3, y as u8 * 5, (x ^ y) as u8]));
        let bytes = encode(&image.into(), ImageFormat::Jpeg);
        assert_eq!(decode(&bytes, 10_000).unwrap().dimensions(), (64, 48));
        for share in [30, 60, 90, 99] {
            let cut = &bytes[..bytes.len() * share / 100];
            assert!(matches!(decode(cut, 10_000), Err(DecodeError::Damaged(_))), "{share} %");
        }
    }

    #[test]
    fn pixels_are_counted_before_they_are_decoded_and_other_bytes_are_named() {
        let bytes = encode(&RgbImage::new(100, 100).into(), ImageFormat::Png);
        assert_eq!(decode(&bytes, 9_999), Err(DecodeError::TooManyPixels { width: 100, height: 100, most: 9_999 }));
        let error = decode(b"<!DOCTYPE html>", 100).unwrap_err().to_string();
        assert!(error.contains("<!DOCTYPE"), "{error}");
        assert!(decode(b"", 100).is_err());
    }

    #[test]
    fn exif_orientation_is_applied() {
        // A 2x1 JPEG-in-EXIF is long; PNG carries the same EXIF in an eXIf chunk: orientation 6, turn right.
        let mut bytes = Cursor::new(Vec::new());
        let mut encoder = png_encoder(&mut bytes);
        let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        image::ImageEncoder::set_exif_metadata(&mut encoder, exif.to_vec()).unwrap();
        let image = RgbImage::from_fn(3, 1, |x, _| image::Rgb([x as u8 * 100, 0, 0]));
        image.write_with_encoder(encoder).unwrap();
        let decoded = decode(&bytes.into_inner(), 100).unwrap();
        assert_eq!(decoded.dimensions(), (1, 3));
        assert_eq!(decoded.get_pixel(0, 2).0, [200, 0, 0]);
    }

    fn png_encoder(out: &mut Cursor<Vec<u8>>) -> image::codecs::png::PngEncoder<&mut Cursor<Vec<u8>>> {
        image::codecs::png::PngEncoder::new(out)
    }
}
