//! What the first and last bytes of an image say, without its pixels.

use image::metadata::Orientation;
use image::{ImageDecoder, ImageFormat};

use super::decode::{DecodeError, check_pixels, decoder, format, upright};
use super::{Format, jpeg};

/// What an image says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `None` for kinds that are read and not written.
    pub format: Option<Format>,
    /// Pixels, upright.
    pub width: u32,
    pub height: u32,
    /// Whether it is stored otherwise than upright: its EXIF says how to turn it.
    pub is_turned: bool,
}

/// Reads the header, and looks whether the end is there. What lies between may be damaged: only [`super::decode`] knows.
pub fn header(bytes: &[u8], most_pixels: u64) -> Result<Header, DecodeError> {
    let kind = format(bytes)?;
    let ((width, height), orientation) = if let (ImageFormat::Jpeg, Some(header)) = (kind, jpeg::header(bytes)) {
        check_pixels(header.width, header.height, most_pixels)?;
        ((header.width, header.height), jpeg::orientation(bytes))
    } else {
        let mut decoder = decoder(bytes, kind, most_pixels)?;
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        (decoder.dimensions(), orientation)
    };
    if !has_end(bytes, kind) {
        return Err(DecodeError::Damaged("it is cut off: its end is missing".to_owned()));
    }
    let (width, height) = upright((width, height), orientation);
    let format = match kind {
        ImageFormat::Jpeg => Some(Format::Jpeg),
        ImageFormat::Png => Some(Format::Png),
        ImageFormat::WebP => Some(Format::Webp),
        _ => None,
    };
    Ok(Header { format, width, height, is_turned: orientation != Orientation::NoTransforms })
}

/// What may follow an image's end: some servers add a line, some cameras a page.
fn has_end(bytes: &[u8], kind: ImageFormat) -> bool {
    match kind {
        ImageFormat::Jpeg => !jpeg::is_cut_off(bytes),
        ImageFormat::Png => bytes.windows(4).rposition(|chunk| chunk == b"IEND").is_some(),
        ImageFormat::WebP => {
            let length = bytes.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
            bytes.len() as u64 >= u64::from(length) + 8
        }
        ImageFormat::Gif => bytes.contains(&b';'),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{DynamicImage, RgbImage};

    use super::*;

    #[test]
    fn headers_are_read_and_missing_ends_are_seen() {
        let image = DynamicImage::from(RgbImage::from_fn(37, 21, |x, y| image::Rgb([x as u8, y as u8, 3])));
        for (kind, format) in [
            (ImageFormat::Jpeg, Some(Format::Jpeg)),
            (ImageFormat::Png, Some(Format::Png)),
            (ImageFormat::WebP, Some(Format::Webp)),
            (ImageFormat::Gif, None),
        ] {
            let mut bytes = Cursor::new(Vec::new());
            image.write_to(&mut bytes, kind).unwrap();
            let bytes = bytes.into_inner();
            assert_eq!(
                header(&bytes, 1000),
                Ok(Header { format, width: 37, height: 21, is_turned: false }),
                "{kind:?}"
            );
            assert!(matches!(header(&bytes, 776), Err(DecodeError::TooManyPixels { .. })), "{kind:?}");
            if kind != ImageFormat::Gif {
                let cut = &bytes[..bytes.len() - 9];
                assert!(matches!(header(cut, 1000), Err(DecodeError::Damaged(_))), "{kind:?}");
            }
        }
        assert!(matches!(header(b"<html>", 1000), Err(DecodeError::NotAnImage(_))));
    }
}
