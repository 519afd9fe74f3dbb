//! The pictures: a few of each kind, made once, and marked with the row that they are served for, so that no two rows have the
//! same bytes. And what is made of them to mislead.

use std::fmt::Write as _;
use std::io::{self, Cursor, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;
use image::codecs::gif::GifEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageFormat, RgbImage};
use sha2::{Digest, Sha256};

use crate::behaviour::Kind;
use crate::random::{mix, number};

/// Different pictures of each kind.
const EACH: u64 = 12;
/// Different large pictures.
const LARGE: u64 = 2;
/// What a bomb unpacks to, in MiB.
const BOMB: usize = 256;

const PAGE: &str = "<!DOCTYPE html>\n<html><head><title>Hotlinking is not allowed</title></head>\
    <body><h1>Please visit our site to see this picture.</h1></body></html>\n";

/// A picture as it is served for a row.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    pub(crate) bytes: Vec<u8>,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

/// All pictures of a seed.
pub(crate) struct Pictures {
    seed: u64,
    jpeg: Vec<Picture>,
    png: Vec<Picture>,
    webp: Vec<Picture>,
    gif: Vec<Picture>,
    large: Vec<Picture>,
    /// A small gzip with much in it.
    pub(crate) bomb: bytes::Bytes,
}

impl Pictures {
    pub(crate) fn new(seed: u64) -> io::Result<Self> {
        let all = |kind: Kind, count: u64| (0..count).map(|n| draw(seed, kind, n)).collect::<io::Result<Vec<_>>>();
        Ok(Self {
            seed,
            jpeg: all(Kind::Jpeg, EACH)?,
            png: all(Kind::Png, EACH)?,
            webp: all(Kind::Webp, EACH)?,
            gif: all(Kind::Gif, EACH)?,
            large: all(Kind::LargeJpeg, LARGE)?,
            bomb: bomb()?.into(),
        })
    }

    fn base(&self, kind: Kind, row: usize) -> &Picture {
        let all = match kind {
            Kind::Jpeg => &self.jpeg,
            Kind::Png => &self.png,
            Kind::Webp => &self.webp,
            Kind::Gif => &self.gif,
            Kind::LargeJpeg => &self.large,
        };
        &all[number(self.seed, "which picture", row as u64) as usize % all.len()]
    }

    /// The picture of a row.
    pub(crate) fn of(&self, kind: Kind, row: usize) -> Picture {
        let base = self.base(kind, row);
        let mark = format!("chaos {}, row {row}", self.seed);
        let bytes = match kind {
            Kind::Jpeg | Kind::LargeJpeg => with_comment(&base.bytes, mark.as_bytes()),
            Kind::Png => before_end(&base.bytes, 12, &png_chunk(*b"tEXt", format!("Comment\0{mark}").as_bytes())),
            Kind::Webp => with_riff_chunk(&base.bytes, mark.as_bytes()),
            Kind::Gif => before_end(&base.bytes, 1, &gif_comment(mark.as_bytes())),
        };
        Picture { bytes, ..*base }
    }
}

/// The SHA-256, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A page of HTML.
pub(crate) fn page() -> &'static [u8] {
    PAGE.as_bytes()
}

/// A page that begins like a GIF, of a believable size.
pub(crate) fn page_as_gif() -> Vec<u8> {
    format!("GIF89a\r\n\r\n{PAGE}").into_bytes()
}

/// A JPEG with HTML in its comment.
pub(crate) fn with_page_in_comment(jpeg: &[u8]) -> Vec<u8> {
    with_comment(jpeg, format!("--><script>alert(1)</script>{PAGE}").as_bytes())
}

/// A JPEG with HTML after it.
pub(crate) fn with_page_after(jpeg: &[u8]) -> Vec<u8> {
    [jpeg, page()].concat()
}

/// A GIF that reads as a script: what follows its header is in a comment, and ends with an assignment.
pub(crate) fn with_script(gif: &[u8]) -> Vec<u8> {
    [&before_end(gif, 1, &gif_comment(b"*/=1;alert(1);/*"))[..], b"*/=1;alert(document.domain)"].concat()
}

/// A JPEG whose header claims 60,000 × 60,000 pixels.
pub(crate) fn claiming_much_jpeg(jpeg: &[u8]) -> Vec<u8> {
    let mut bytes = jpeg.to_vec();
    // Start of frame: marker, length, precision, height, width.
    if let Some(at) = bytes.windows(2).position(|pair| pair == [0xff, 0xc0])
        && let Some(size) = bytes.get_mut(at + 5..at + 9)
    {
        size.copy_from_slice(&[0xea, 0x60, 0xea, 0x60]);
    }
    bytes
}

/// A PNG whose header claims 60,000 × 60,000 pixels.
pub(crate) fn claiming_much_png(png: &[u8]) -> Vec<u8> {
    let mut header = png.get(16..29).unwrap_or_default().to_vec();
    if let Some(size) = header.get_mut(..8) {
        size.copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    }
    [png.get(..8).unwrap_or_default(), &png_chunk(*b"IHDR", &header), png.get(33..).unwrap_or_default()].concat()
}

/// A JPEG with random bytes in place of the middle of its scan, and markers among them that have no business there.
pub(crate) fn corrupt_jpeg(jpeg: &[u8], row: usize) -> Vec<u8> {
    let mut bytes = jpeg.to_vec();
    let scan = bytes.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap_or(0);
    let (from, to) = (scan + (bytes.len() - scan) / 3, bytes.len() - 16);
    for (n, byte) in bytes.iter_mut().enumerate().take(to).skip(from) {
        *byte = match n % 7 {
            0 => 0xff,
            // A second frame header with nothing in it, where a code is due.
            1 => 0xc4,
            // No marker by accident: decoders are content with an end that comes early.
            _ => mix((row + n) as u64) as u8 & 0x7f,
        };
    }
    bytes
}

/// A PNG with one wrong bit in its pixels.
pub(crate) fn corrupt_png(png: &[u8]) -> Vec<u8> {
    let mut bytes = png.to_vec();
    if let Some(at) = bytes.windows(4).position(|name| name == b"IDAT")
        && let Some(byte) = bytes.get_mut(at + 40)
    {
        *byte ^= 0x10;
    }
    bytes
}

/// Compressed by gzip.
pub(crate) fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// One member of a mebibyte of zeros, again and again.
fn bomb() -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&vec![0; 1 << 20])?;
    Ok(encoder.finish()?.repeat(BOMB))
}

/// Soft bands with some noise: a few kilobytes in every format.
fn draw(seed: u64, kind: Kind, n: u64) -> io::Result<Picture> {
    let random = number(seed, &format!("{kind:?}"), n);
    let (width, height) = match kind {
        Kind::LargeJpeg => (1280 + (random % 64) as u32, 900 + (random >> 8) as u32 % 64),
        _ => (48 + (random % 64) as u32, 40 + (random >> 8) as u32 % 48),
    };
    let noise = if kind == Kind::LargeJpeg { 24 } else { 6 };
    let image = RgbImage::from_fn(width, height, |x, y| {
        let grain = mix(random ^ (u64::from(x) << 32 | u64::from(y)));
        let band = |shift: u32, fast: u32| {
            let wave = (x * (1 + (random >> shift) as u32 % 3) + y * fast) * 400 / (width + height) % 400;
            (if wave < 200 { wave } else { 400 - wave }) as u8 + (grain >> shift) as u8 % noise
        };
        image::Rgb([band(16, 1), band(24, 2), band(32, 3)])
    });
    let mut bytes = Cursor::new(Vec::new());
    let image = DynamicImage::from(image);
    match kind {
        Kind::Jpeg => image.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, 85)),
        Kind::LargeJpeg => image.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, 92)),
        Kind::Png => image.write_to(&mut bytes, ImageFormat::Png),
        Kind::Webp => image.write_to(&mut bytes, ImageFormat::WebP),
        // The slowest of its speeds takes a second for each.
        Kind::Gif => GifEncoder::new_with_speed(&mut bytes, 30).encode_frame(image::Frame::new(image.into_rgba8())),
    }
    .map_err(io::Error::other)?;
    Ok(Picture { bytes: bytes.into_inner(), width, height })
}

/// After the start of a JPEG.
fn with_comment(jpeg: &[u8], comment: &[u8]) -> Vec<u8> {
    let length = (comment.len() as u16 + 2).to_be_bytes();
    let (start, rest) = jpeg.split_at(2);
    [start, &[0xff, 0xfe], &length, comment, rest].concat()
}

/// Before the last `end` bytes.
fn before_end(bytes: &[u8], end: usize, inserted: &[u8]) -> Vec<u8> {
    let (start, end) = bytes.split_at(bytes.len().saturating_sub(end));
    [start, inserted, end].concat()
}

fn png_chunk(name: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(&name);
    crc.update(data);
    [&(data.len() as u32).to_be_bytes()[..], &name, data, &crc.sum().to_be_bytes()].concat()
}

fn gif_comment(text: &[u8]) -> Vec<u8> {
    [&[0x21, 0xfe, text.len() as u8][..], text, &[0]].concat()
}

/// With one more chunk, which readers pass over.
fn with_riff_chunk(webp: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = webp.to_vec();
    bytes.extend(b"JUNK");
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    let length = (bytes.len() as u32 - 8).to_le_bytes();
    bytes[4..8].copy_from_slice(&length);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> image::ImageResult<(u32, u32)> {
        image::load_from_memory(bytes).map(|image| (image.width(), image.height()))
    }

    #[test]
    fn every_row_has_a_picture_of_its_own_that_decodes() {
        let pictures = Pictures::new(7).unwrap();
        for kind in [Kind::Jpeg, Kind::Png, Kind::Webp, Kind::Gif, Kind::LargeJpeg] {
            let picture = pictures.of(kind, 3);
            assert_eq!(decode(&picture.bytes).unwrap(), (picture.width, picture.height), "{kind:?}");
            assert_eq!(picture.bytes, Pictures::new(7).unwrap().of(kind, 3).bytes);
            assert_ne!(picture.bytes, pictures.of(kind, 4).bytes);
            assert_ne!(picture.bytes, Pictures::new(8).unwrap().of(kind, 3).bytes);
            assert!(
                (1000..40_000).contains(&picture.bytes.len()) || kind == Kind::LargeJpeg,
                "{}",
                picture.bytes.len()
            );
        }
    }

    #[test]
    fn misleading_pictures_are_what_they_are_said_to_be() {
        let pictures = Pictures::new(1).unwrap();
        for row in 0..200 {
            let jpeg = pictures.of(Kind::Jpeg, row);
            let size = (jpeg.width, jpeg.height);
            assert_eq!(decode(&with_page_in_comment(&jpeg.bytes)).unwrap(), size);
            assert_eq!(decode(&with_page_after(&jpeg.bytes)).unwrap(), size);
            assert!(decode(&corrupt_jpeg(&jpeg.bytes, row)).is_err(), "row {row}");
            assert!(decode(&corrupt_png(&pictures.of(Kind::Png, row).bytes)).is_err(), "row {row}");
        }
        let gif = pictures.of(Kind::Gif, 0);
        assert_eq!(decode(&with_script(&gif.bytes)).unwrap(), (gif.width, gif.height));
        assert!(decode(&page_as_gif()).is_err());
        let claimed = |bytes: &[u8]| {
            let reader = image::ImageReader::new(Cursor::new(bytes)).with_guessed_format().unwrap();
            reader.into_dimensions().unwrap()
        };
        assert_eq!(claimed(&claiming_much_jpeg(&pictures.of(Kind::Jpeg, 0).bytes)), (60_000, 60_000));
        assert_eq!(claimed(&claiming_much_png(&pictures.of(Kind::Png, 0).bytes)), (60_000, 60_000));
    }

    #[test]
    fn the_bomb_is_small() {
        let bomb = bomb().unwrap();
        assert!(bomb.len() < 400_000, "{}", bomb.len());
        let mut unpacked = 0;
        let mut reader = flate2::read::MultiGzDecoder::new(&bomb[..]);
        unpacked += io::copy(&mut reader, &mut io::sink()).unwrap();
        assert_eq!(unpacked, (BOMB as u64) << 20);
    }
}
