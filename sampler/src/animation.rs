//! The way from noise to a picture as an animation.

use std::io::Cursor;

use image::codecs::gif::{GifEncoder, Repeat};
use image::imageops::{self, FilterType};
use image::{Delay, DynamicImage, Frame, RgbImage};

use crate::SampleError;

/// How animations are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Animation {
    /// 256 colours a frame; shown everywhere.
    Gif,
    /// All colours; shown by browsers.
    Apng,
}

/// Frames of an animation: of more steps than this not all are shown.
pub const MOST_FRAMES: usize = 40;
/// Larger frames are made smaller: animations compress badly.
const LONGEST_SIDE: u32 = 512;
const MILLISECONDS: u32 = 80;
/// The picture itself stays to be looked at.
const LAST_MILLISECONDS: u32 = 2000;

impl Animation {
    pub fn ending(self) -> &'static str {
        match self {
            Self::Gif => "gif",
            Self::Apng => "png",
        }
    }

    /// The bytes of a file that shows `frames`, all of one size, over and over. A frame of a small picture is enlarged by a whole factor, to
    /// about 256 pixels.
    pub fn encode(self, frames: &[RgbImage]) -> Result<Vec<u8>, SampleError> {
        let frames: Vec<RgbImage> = frames.iter().map(sized).collect();
        match self {
            Self::Gif => gif(frames),
            Self::Apng => apng(&frames),
        }
    }
}

fn sized(frame: &RgbImage) -> RgbImage {
    let (width, height) = frame.dimensions();
    let longest = width.max(height).max(1);
    if longest > LONGEST_SIDE {
        let side = |side: u32| (u64::from(side) * u64::from(LONGEST_SIDE) / u64::from(longest)).max(1) as u32;
        return imageops::resize(frame, side(width), side(height), FilterType::Triangle);
    }
    match 256 / longest {
        0 | 1 => frame.clone(),
        factor => imageops::resize(frame, width * factor, height * factor, FilterType::CatmullRom),
    }
}

fn delay(number: usize, frames: usize) -> u32 {
    if number + 1 == frames { LAST_MILLISECONDS } else { MILLISECONDS }
}

fn gif(frames: Vec<RgbImage>) -> Result<Vec<u8>, SampleError> {
    let mut bytes = Cursor::new(Vec::new());
    let failed = |source| SampleError::Encode { what: "a GIF", source };
    let mut encoder = GifEncoder::new_with_speed(&mut bytes, 10);
    encoder.set_repeat(Repeat::Infinite).map_err(failed)?;
    let count = frames.len();
    for (number, frame) in frames.into_iter().enumerate() {
        let delay = Delay::from_numer_denom_ms(delay(number, count), 1);
        let frame = Frame::from_parts(DynamicImage::ImageRgb8(frame).to_rgba8(), 0, 0, delay);
        encoder.encode_frame(frame).map_err(failed)?;
    }
    drop(encoder);
    Ok(bytes.into_inner())
}

fn apng(frames: &[RgbImage]) -> Result<Vec<u8>, SampleError> {
    let mut bytes = Cursor::new(Vec::new());
    let (width, height) = frames.first().map_or((1, 1), RgbImage::dimensions);
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let written = (|| {
        encoder.set_animated(frames.len() as u32, 0)?;
        let mut writer = encoder.write_header()?;
        for (number, frame) in frames.iter().enumerate() {
            writer.set_frame_delay(delay(number, frames.len()) as u16, 1000)?;
            writer.write_image_data(frame.as_raw())?;
        }
        writer.finish()
    })();
    written.map_err(|source| SampleError::Png { source })?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::gif::GifDecoder;
    use image::codecs::png::PngDecoder;
    use image::{AnimationDecoder, Rgb};

    #[test]
    fn all_frames_are_there_and_the_last_one_stays() {
        let frames: Vec<RgbImage> = (0..5).map(|n| RgbImage::from_pixel(20, 10, Rgb([n * 50, 90, 200]))).collect();
        for animation in [Animation::Gif, Animation::Apng] {
            let bytes = Cursor::new(animation.encode(&frames).unwrap());
            let read = match animation {
                Animation::Gif => GifDecoder::new(bytes).unwrap().into_frames().collect_frames().unwrap(),
                Animation::Apng => {
                    PngDecoder::new(bytes).unwrap().apng().unwrap().into_frames().collect_frames().unwrap()
                }
            };
            let delays: Vec<u32> = read.iter().map(|frame| frame.delay().numer_denom_ms().0).collect();
            assert_eq!(delays, [80, 80, 80, 80, 2000], "{animation:?}");
            for (frame, expected) in read.iter().zip(&frames) {
                assert_eq!(frame.buffer().dimensions(), (240, 120));
                let (found, wanted) = (frame.buffer().get_pixel(7, 7).0, expected.get_pixel(0, 0).0);
                assert!(found.iter().zip(wanted).all(|(a, b)| a.abs_diff(b) <= 2), "{found:?} {wanted:?}");
            }
        }
        assert_eq!(sized(&RgbImage::new(2048, 512)).dimensions(), (512, 128));
    }
}
