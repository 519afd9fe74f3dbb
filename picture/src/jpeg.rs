//! JPEG through libjpeg-turbo.

use std::cell::RefCell;

use image::RgbImage;
use image::metadata::Orientation;
use turbojpeg::{Colorspace, Compressor, Decompressor, Image, PixelFormat, ScalingFactor, Subsamp};

/// Scans of a progressive JPEG; more are an attack on the decoder's time.
const MOST_SCANS: u32 = 500;
/// Fractions that libjpeg-turbo decodes at, the smallest first. It knows others, but is slow at them.
const SCALES: [ScalingFactor; 3] = [ScalingFactor::ONE_EIGHTH, ScalingFactor::ONE_QUARTER, ScalingFactor::ONE_HALF];

thread_local! {
    static DECOMPRESSOR: RefCell<Option<Decompressor>> = const { RefCell::new(None) };
    static COMPRESSOR: RefCell<Option<Compressor>> = const { RefCell::new(None) };
}

/// What its header says, where libjpeg-turbo understands it and can give RGB.
#[derive(Clone, Copy, Debug)]
pub(super) struct JpegHeader {
    /// Pixels, as stored.
    pub(super) width: u32,
    pub(super) height: u32,
    /// Kinds that are not made of 8×8 blocks of frequencies cannot be scaled.
    scalable: bool,
}

pub(super) fn header(bytes: &[u8]) -> Option<JpegHeader> {
    with_decompressor(|decompressor| {
        let header = decompressor.read_header(bytes).ok()?;
        if matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK) {
            return None;
        }
        let (width, height) = (header.width.try_into().ok()?, header.height.try_into().ok()?);
        Some(JpegHeader { width, height, scalable: !header.is_lossless })
    })
}

/// The pixels as stored, at the smallest scale that leaves both sides at least as long as `target`'s. `None` where there is
/// anything to complain of.
pub(super) fn decode(bytes: &[u8], header: JpegHeader, target: (u32, u32)) -> Option<RgbImage> {
    let (width, height) = (header.width as usize, header.height as usize);
    let is_enough =
        |scale: &&ScalingFactor| scale.scale(width) >= target.0 as usize && scale.scale(height) >= target.1 as usize;
    let scale = SCALES.iter().filter(|_| header.scalable).find(is_enough).copied().unwrap_or(ScalingFactor::ONE);
    let (width, height) = (scale.scale(width), scale.scale(height));
    let pitch = width.checked_mul(3)?;
    let mut image =
        Image { pixels: vec![0; pitch.checked_mul(height)?], width, pitch, height, format: PixelFormat::RGB };
    with_decompressor(|decompressor| {
        decompressor.set_scaling_factor(scale).ok()?;
        decompressor.decompress(bytes, image.as_deref_mut()).ok()
    })?;
    RgbImage::from_raw(width as u32, height as u32, image.pixels)
}

fn with_decompressor<T>(work: impl FnOnce(&mut Decompressor) -> Option<T>) -> Option<T> {
    DECOMPRESSOR.with_borrow_mut(|kept| {
        if kept.is_none() {
            let mut new = Decompressor::new().ok()?;
            new.set_scan_limit(MOST_SCANS).ok()?;
            *kept = Some(new);
        }
        work(kept.as_mut()?)
    })
}

/// Encodes at `quality` (1 to 100) with chroma at half resolution, as OpenCV and Pillow do.
pub(super) fn encode(image: &RgbImage, quality: u8) -> Result<Vec<u8>, String> {
    COMPRESSOR.with_borrow_mut(|kept| {
        let words = |error: turbojpeg::Error| format!("libjpeg-turbo: {error}");
        let compressor = match kept {
            Some(compressor) => compressor,
            None => kept.insert(Compressor::new().map_err(words)?),
        };
        compressor.set_quality(i32::from(quality)).map_err(words)?;
        compressor.set_subsamp(Subsamp::Sub2x2).map_err(words)?;
        let (width, height) = (image.width() as usize, image.height() as usize);
        let pixels = image.as_raw().as_slice();
        let image = Image { pixels, width, pitch: width * 3, height, format: PixelFormat::RGB };
        compressor.compress_to_vec(image).map_err(words)
    })
}

/// Whether the end marker after the last scan is missing: decoders fill what does not come with grey. (In scan data 0xff is
/// always followed by 0x00 or a restart marker, so the markers cannot be mistaken there.)
pub(super) fn is_cut_off(bytes: &[u8]) -> bool {
    let at = |marker: u8| move |pair: &[u8]| pair == [0xff, marker];
    let (start_of_scan, end) = (at(0xda), at(0xd9));
    let last_scan_is_open = match bytes.windows(2).rposition(end) {
        Some(end) => bytes.get(end..).unwrap_or_default().windows(2).any(start_of_scan),
        None => bytes.windows(2).any(start_of_scan),
    };
    // Telephones put a film behind the picture, and among its bytes is anything.
    last_scan_is_open && behind_end(bytes).is_none()
}

/// What follows the end marker, found by going from marker to marker: those of a preview within a segment are not met, nor
/// what looks like one behind the end.
fn behind_end(bytes: &[u8]) -> Option<&[u8]> {
    // Neither data of a scan, nor padding, nor one of the few that have no length.
    let is_marker =
        |pair: &[u8]| matches!(pair, [0xff, marker] if !matches!(*marker, 0x00 | 0x01 | 0xd0..=0xd7 | 0xff));
    let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
    loop {
        let at = rest.windows(2).position(is_marker)?;
        let (marker, after) = rest.get(at + 1..)?.split_first()?;
        if *marker == 0xd9 {
            return Some(after);
        }
        let length = u16::from_be_bytes(*after.first_chunk::<2>()?);
        rest = after.get(usize::from(length)..)?;
    }
}

/// How to turn it, by its EXIF.
pub(super) fn orientation(bytes: &[u8]) -> Orientation {
    exif_chunk(bytes).and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms)
}

/// The EXIF in the segments before the first scan.
fn exif_chunk(bytes: &[u8]) -> Option<&[u8]> {
    const PREFIX: &[u8] = b"Exif\0\0";
    let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
    loop {
        rest = rest.strip_prefix(&[0xff])?;
        while let Some(padded) = rest.strip_prefix(&[0xff]) {
            rest = padded;
        }
        let (marker, after) = rest.split_first()?;
        if matches!(marker, 0xda | 0xd9) {
            return None;
        }
        let length = usize::from(u16::from_be_bytes(*after.first_chunk::<2>()?));
        let segment = after.get(2..length)?;
        if let (0xe1, Some(exif)) = (marker, segment.strip_prefix(PREFIX)) {
            return Some(exif);
        }
        rest = after.get(length..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 90]))
    }

    #[test]
    fn it_is_decoded_at_the_smallest_scale_that_is_enough() {
        let bytes = encode(&gradient(400, 203), 90).unwrap();
        let header = header(&bytes).unwrap();
        let size = |target| decode(&bytes, header, target).unwrap().dimensions();
        assert_eq!(size((400, 203)), (400, 203));
        assert_eq!(size((201, 100)), (400, 203));
        assert_eq!(size((200, 102)), (200, 102));
        assert_eq!(size((60, 30)), (100, 51));
        assert_eq!(size((1, 1)), (50, 26));
    }

    #[test]
    fn exif_is_found_among_the_segments() {
        let plain = encode(&gradient(16, 8), 90).unwrap();
        let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let mut turned = plain[..2].to_vec();
        turned.extend([0xff, 0xe1, 0, (2 + 6 + exif.len()) as u8]);
        turned.extend(b"Exif\0\0");
        turned.extend(exif);
        turned.extend(&plain[2..]);
        assert_eq!(orientation(&plain), Orientation::NoTransforms);
        assert_eq!(orientation(&turned), Orientation::Rotate90);
        let (image, size) = crate::decode_at_least(&turned, 1000, |w, h| (w / 2, h / 2)).unwrap();
        assert_eq!((image.dimensions(), size), ((4, 8), (8, 16)));
        for end in 0..turned.len() {
            orientation(&turned[..end]);
            is_cut_off(&turned[..end]);
        }
    }

    #[test]
    fn a_film_behind_the_end_does_not_make_a_jpeg_cut_off() {
        let (width, height) = (96, 64);
        let image = RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * x + 7 * y) as u8, (x * y) as u8, 40]));
        let mut compressor = Compressor::new().unwrap();
        for is_progressive in [false, true] {
            compressor.set_progressive(is_progressive).unwrap();
            let (width, height) = (width as usize, height as usize);
            let pixels = image.as_raw().as_slice();
            let image = Image { pixels, width, pitch: width * 3, height, format: PixelFormat::RGB };
            let plain = compressor.compress_to_vec(image).unwrap();
            // With a preview in its EXIF, which has markers of its own.
            let preview = encode(&gradient(16, 8), 90).unwrap();
            let mut whole = plain[..2].to_vec();
            whole.extend([0xff, 0xe1]);
            whole.extend(((2 + 6 + preview.len()) as u16).to_be_bytes());
            whole.extend(b"Exif\0\0");
            whole.extend(&preview);
            whole.extend(&plain[2..]);
            for film in [&b""[..], b"\0\0\0\x18ftypmp42..\xff\xd9..\xff\xda..", b"..\xff\xda.."] {
                let bytes = [whole.as_slice(), film].concat();
                assert_eq!(crate::decode(&bytes, 10_000).unwrap().dimensions(), (96, 64), "{}", film.escape_ascii());
                assert!(crate::header(&bytes, 10_000).is_ok());
            }
            for share in [30, 60, 90, 99] {
                let cut = &whole[..whole.len() - plain.len() * (100 - share) / 100];
                assert!(is_cut_off(cut), "{share} %");
                assert!(matches!(crate::decode(cut, 10_000), Err(crate::DecodeError::Damaged(_))), "{share} %");
            }
        }
    }
}
