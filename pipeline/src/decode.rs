//! Bytes from anywhere to upright RGB pixels.
//!
//! The first frame of an animation; EXIF orientation applied; transparency flattened on white; palette, grey, CMYK and
//! 16-bit images brought to 8-bit RGB by the decoder.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};

/// Why bytes did not become an image.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Nothing that looks like JPEG, PNG, WebP or GIF.
    #[error("not an image: it begins with {0}")]
    NotAnImage(String),
    /// More pixels than allowed, by its header; nothing was decoded.
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
}

/// Decodes `bytes` to upright pixels. The size in the header is checked against `most_pixels` before memory is spent.
pub fn decode(bytes: &[u8], most_pixels: u64) -> Result<RgbImage, DecodeError> {
    let damaged = |error: image::ImageError| DecodeError::Damaged(error.to_string());
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| DecodeError::Damaged(error.to_string()))?;
    let Some(format) = reader.format() else {
        let start = bytes.get(..bytes.len().min(12)).unwrap_or_default();
        return Err(DecodeError::NotAnImage(format!("`{}`", start.escape_ascii())));
    };
    let mut limits = Limits::default();
    limits.max_alloc = Some(most_pixels.saturating_mul(16).max(1 << 24));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > most_pixels {
        return Err(DecodeError::TooManyPixels { width, height, most: most_pixels });
    }
    if format == image::ImageFormat::Jpeg && is_cut_off(bytes) {
        return Err(DecodeError::Damaged("the JPEG is cut off: no end marker after its last scan".to_owned()));
    }
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    image.apply_orientation(orientation);
    Ok(flatten(image))
}

/// The decoder fills what is missing with grey and reports success; a whole JPEG has an end marker after its last scan. (In
/// scan data 0xff is always followed by 0x00 or a restart marker, so the markers cannot be mistaken.)
fn is_cut_off(bytes: &[u8]) -> bool {
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    match (last(0xda), last(0xd9)) {
        (Some(scan), Some(end)) => end < scan,
        (Some(_), None) => true,
        (None, _) => false,
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
