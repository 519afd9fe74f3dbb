//! An image as it is sent: as stored where a server can be trusted to read it so, else as a JPEG.

use std::sync::Arc;

use picture::{Check, Format, Mode, Resize, header};
use tokio::sync::Semaphore;

use crate::captioner::Failure;

/// Larger files are encoded anew.
const MOST_BYTES: usize = 8_000_000;
/// Of an image that is made smaller. More are refused before memory is spent.
const MOST_PIXELS: u64 = 200_000_000;
const QUALITY: u8 = 92;

/// Bytes and what they are.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) bytes: Arc<[u8]>,
    pub(super) media_type: &'static str,
}

/// What is sent of `bytes`: themselves, or a JPEG with no side longer than `max_side`, which may take a while, and waits
/// for a permit of `decoding`.
///
/// What its EXIF turns is encoded anew as well: servers show models the pixels as stored.
pub(super) async fn prepare(bytes: Arc<[u8]>, max_side: u32, decoding: &Arc<Semaphore>) -> Result<Image, Failure> {
    let bad = |detail: String| Failure::Refused { reason: "bad_image", detail };
    if bytes.len() <= MOST_BYTES {
        let header = header(&bytes, MOST_PIXELS).map_err(|error| bad(error.to_string()))?;
        if let Some(format) = header.format
            && header.width.max(header.height) <= max_side
            && !header.is_turned
        {
            return Ok(Image { bytes, media_type: media_type(format) });
        }
    }
    let permit = Arc::clone(decoding).acquire_owned().await.map_err(|_closed| Failure::Cancelled)?;
    let encoded = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        reencode(&bytes, max_side)
    });
    let encoded = encoded.await;
    let bytes = match encoded {
        Ok(encoded) => encoded.map_err(bad)?,
        Err(error) if error.is_cancelled() => return Err(Failure::Cancelled),
        Err(_panicked) => return Err(bad("its decoder failed".to_owned())),
    };
    Ok(Image { bytes, media_type: media_type(Format::Jpeg) })
}

fn media_type(format: Format) -> &'static str {
    match format {
        Format::Jpeg => "image/jpeg",
        Format::Png => "image/png",
        Format::Webp => "image/webp",
    }
}

fn reencode(bytes: &[u8], max_side: u32) -> Result<Arc<[u8]>, String> {
    let resize = Resize {
        mode: Mode::KeepRatioLargest,
        size: max_side,
        only_if_bigger: true,
        format: Some(Format::Jpeg),
        quality: QUALITY,
        ..Resize::default()
    };
    let resized = resize.apply(bytes.to_vec(), Check::Header, MOST_PIXELS).map_err(|error| error.to_string())?;
    Ok(resized.bytes.into())
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, ImageFormat, RgbImage};

    use super::*;

    fn encoded(width: u32, height: u32, format: ImageFormat) -> Arc<[u8]> {
        let image = RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 9]));
        let mut bytes = std::io::Cursor::new(Vec::new());
        DynamicImage::from(image).write_to(&mut bytes, format).unwrap();
        bytes.into_inner().into()
    }

    fn one() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(1))
    }

    #[tokio::test]
    async fn what_servers_read_is_sent_as_stored_and_the_rest_as_jpeg() {
        for (format, media_type) in
            [(ImageFormat::Jpeg, "image/jpeg"), (ImageFormat::Png, "image/png"), (ImageFormat::WebP, "image/webp")]
        {
            let bytes = encoded(40, 30, format);
            let image = prepare(Arc::clone(&bytes), 40, &one()).await.unwrap();
            assert!(Arc::ptr_eq(&image.bytes, &bytes) && image.media_type == media_type, "{format:?}");
        }
        for (bytes, size) in [
            (encoded(40, 30, ImageFormat::Gif), (40, 30)),
            (encoded(40, 100, ImageFormat::Png), (16, 40)),
            (encoded(80, 8, ImageFormat::Jpeg), (40, 4)),
        ] {
            let image = prepare(bytes, 40, &one()).await.unwrap();
            let header = header(&image.bytes, MOST_PIXELS).unwrap();
            assert_eq!((header.format, header.width, header.height), (Some(Format::Jpeg), size.0, size.1));
            assert_eq!(image.media_type, "image/jpeg");
        }
    }

    #[tokio::test]
    async fn what_is_no_image_is_refused() {
        let cut = encoded(40, 30, ImageFormat::Jpeg);
        for bytes in [Arc::from(*b"<html>"), Arc::from(&cut[..cut.len() - 9])] {
            let error = prepare(bytes, 40, &one()).await.unwrap_err();
            assert!(matches!(error, Failure::Refused { reason: "bad_image", .. }), "{error}");
        }
    }
}
