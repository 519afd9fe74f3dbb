//! img2dataset's ways of resizing: the same sizes exactly, and pixels as close as another resampler's can be.
//!
//! Downscaling averages areas and upscaling is Lanczos with four lobes, as OpenCV's `INTER_AREA` and `INTER_LANCZOS4` that
//! img2dataset uses. EXIF orientation is applied first, which img2dataset does not do.

use std::cell::{Cell, RefCell};

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{Filter, FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::{Rgb, RgbImage, imageops};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::decode::check_pixels;
use super::{DecodeError, Format, Header, decode, decode_at_least, encode, header};

/// What is made of an image on the way in.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Resize {
    /// `no`; `border` (longer side to size, white around it to a square), `keep_ratio` (shorter side to size),
    /// `keep_ratio_largest` (longer side to size), `center_crop` (shorter side to size, the middle square) [no].
    #[serde(default)]
    pub mode: Mode,
    /// Pixels of the side that the mode names [256].
    #[serde(default = "default_size")]
    pub size: u32,
    /// Leave smaller images at their size [false].
    #[serde(default)]
    pub only_if_bigger: bool,
    /// Encoding of the result; without one and with mode `no`, the bytes are kept as served [jpeg].
    #[serde(default)]
    pub format: Option<Format>,
    /// Quality of jpeg and webp, from 1 to 100 [95].
    #[serde(default = "default_quality")]
    pub quality: u8,
    /// Keep the bytes of an image that is not resized and has the format already [false].
    #[serde(default)]
    pub skip_reencode: bool,
    /// Images with a shorter side below this are refused [0].
    #[serde(default)]
    pub min_image_size: u32,
    /// Images of more pixels are refused [no limit].
    #[serde(default)]
    pub max_image_area: Option<f64>,
    /// Images whose longer side is more than this times the shorter are refused [no limit].
    #[serde(default)]
    pub max_aspect_ratio: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    #[default]
    No,
    Border,
    KeepRatio,
    KeepRatioLargest,
    CenterCrop,
}

/// Pixels of a scaled image, as a multiple of the square of its size, that one of a usual shape does not exceed.
const USUAL: u64 = 4;

/// How an image that is kept as served is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// All of it is decoded.
    #[default]
    Decode,
    /// Its header is read, and its end looked for.
    Header,
}

fn default_size() -> u32 {
    256
}
fn default_quality() -> u8 {
    95
}

impl Default for Resize {
    fn default() -> Self {
        Self {
            mode: Mode::No,
            size: default_size(),
            only_if_bigger: false,
            format: None,
            quality: default_quality(),
            skip_reencode: false,
            min_image_size: 0,
            max_image_area: None,
            max_aspect_ratio: None,
        }
    }
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("image too small")]
    TooSmall,
    #[error("image area too large")]
    TooLarge,
    #[error("aspect ratio too large")]
    TooLong,
    #[error("it cannot be encoded: {0}")]
    Encode(String),
}

impl ResizeError {
    /// The word by which refused rows are counted.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Decode(error) => error.reason(),
            Self::TooSmall => "image_too_small",
            Self::TooLarge => "image_area_too_large",
            Self::TooLong => "aspect_ratio_too_large",
            Self::Encode(_) => "not_encoded",
        }
    }
}

/// An image as it is kept.
#[derive(Clone, Debug)]
pub struct Resized {
    pub bytes: Vec<u8>,
    /// Pixels, upright.
    pub width: u32,
    pub height: u32,
    /// As it came, upright.
    pub original_width: u32,
    pub original_height: u32,
}

/// What becomes of an image of some size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fate {
    /// Scaled to this.
    scaled: (u32, u32),
    /// Then cut, or filled with white, to this; both about the middle.
    canvas: (u32, u32),
}

impl Resize {
    /// What is wrong with its values.
    pub fn check(&self) -> Result<(), String> {
        if self.size == 0 || self.size > 16_384 {
            return Err(format!("size = {}: expected 1 to 16384", self.size));
        }
        if !(1..=100).contains(&self.quality) {
            return Err(format!("quality = {}: expected 1 to 100", self.quality));
        }
        Ok(())
    }

    /// Whether bytes are kept as served, whatever they are.
    pub fn keeps_bytes(&self) -> bool {
        self.mode == Mode::No && self.format.is_none()
    }

    /// The encoding of what is encoded.
    pub fn format(&self) -> Format {
        self.format.unwrap_or(Format::Jpeg)
    }

    /// Makes of `bytes` what is to be kept. An image of more than `most_pixels` is refused, and so is one that would be scaled
    /// to more, unless the size that is asked for makes images of usual shapes so large.
    pub fn apply(&self, bytes: Vec<u8>, check: Check, most_pixels: u64) -> Result<Resized, ResizeError> {
        if self.keeps_bytes() {
            let (width, height) = match check {
                Check::Header => {
                    let Header { width, height, .. } = header(&bytes, most_pixels)?;
                    (width, height)
                }
                Check::Decode => decode(&bytes, most_pixels)?.dimensions(),
            };
            self.judge(width, height)?;
            return Ok(Resized { bytes, width, height, original_width: width, original_height: height });
        }
        let mut fate = None;
        let (image, (width, height)) = decode_at_least(&bytes, most_pixels, |width, height| {
            let of_this = self.fate(width, height);
            fate = Some(of_this);
            // At least twice of it, or the pixels would not be close to those of a picture decoded in whole.
            (of_this.scaled.0.saturating_mul(2), of_this.scaled.1.saturating_mul(2))
        })?;
        self.judge(width, height)?;
        let fate = fate.unwrap_or_else(|| self.fate(width, height));
        // A strip grows with its shorter side: one of a few kilobytes would take more memory than there is.
        let most = most_pixels.max(USUAL.saturating_mul(u64::from(self.size).pow(2)));
        check_pixels(fate.scaled.0, fate.scaled.1, most)?;
        let untouched = fate == Fate { scaled: (width, height), canvas: (width, height) };
        let (original_width, original_height) = (width, height);
        if self.skip_reencode && untouched && self.has_format(&bytes, most_pixels) {
            return Ok(Resized { bytes, width, height, original_width, original_height });
        }
        let image = on_canvas(scale(image, fate.scaled), fate.canvas);
        let bytes = encode(&image, self.format(), self.quality).map_err(ResizeError::Encode)?;
        Ok(Resized { bytes, width: image.width(), height: image.height(), original_width, original_height })
    }

    fn has_format(&self, bytes: &[u8], most_pixels: u64) -> bool {
        header(bytes, most_pixels).is_ok_and(|header| header.format == Some(self.format()))
    }

    fn judge(&self, width: u32, height: u32) -> Result<(), ResizeError> {
        let (shorter, longer) = (width.min(height), width.max(height));
        if shorter < self.min_image_size {
            return Err(ResizeError::TooSmall);
        }
        if self.max_image_area.is_some_and(|most| f64::from(width) * f64::from(height) > most) {
            return Err(ResizeError::TooLarge);
        }
        if self.max_aspect_ratio.is_some_and(|most| f64::from(longer) / f64::from(shorter) > most) {
            return Err(ResizeError::TooLong);
        }
        Ok(())
    }

    fn fate(&self, width: u32, height: u32) -> Fate {
        let (shorter, longer) = (width.min(height), width.max(height));
        let side = match self.mode {
            Mode::No => return Fate { scaled: (width, height), canvas: (width, height) },
            Mode::KeepRatio | Mode::CenterCrop => shorter,
            Mode::Border | Mode::KeepRatioLargest => longer,
        };
        if self.only_if_bigger && side <= self.size {
            return Fate { scaled: (width, height), canvas: (width, height) };
        }
        // As Python rounds: halves to the even number.
        let factor = f64::from(self.size) / f64::from(side);
        let scaled = |side: u32| ((f64::from(side) * factor).round_ties_even() as u32).max(1);
        let scaled = (scaled(width), scaled(height));
        let canvas = match self.mode {
            Mode::Border | Mode::CenterCrop => (self.size, self.size),
            _ => scaled,
        };
        Fate { scaled, canvas }
    }
}

thread_local! {
    static RESIZER: RefCell<Resizer> = RefCell::new(Resizer::new());
    /// By how much the picture at hand shrinks: the resizer takes a filter only as a function of the distance.
    static SHRINKS: Cell<f64> = const { Cell::new(1.0) };
}

/// How much of a source pixel lies within the area that becomes one pixel, at a distance of `x` of such areas.
fn area(x: f64) -> f64 {
    let shrinks = SHRINKS.get();
    ((0.5 + 0.5 / shrinks - x.abs()) * shrinks).clamp(0.0, 1.0)
}

fn lanczos4(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (std::f64::consts::PI * x).sin() / (std::f64::consts::PI * x) };
    if x.abs() < 4.0 { sinc(x) * sinc(x / 4.0) } else { 0.0 }
}

fn scale(image: RgbImage, (width, height): (u32, u32)) -> RgbImage {
    if image.dimensions() == (width, height) {
        return image;
    }
    let shrinks = f64::from(image.width()) / f64::from(width);
    let shrinks = (shrinks * f64::from(image.height()) / f64::from(height)).sqrt();
    let filter = if shrinks > 1.0 {
        SHRINKS.set(shrinks);
        Filter::new("area", area, 0.5 + 0.5 / shrinks)
    } else {
        Filter::new("lanczos4", lanczos4, 4.0)
    };
    let resized = filter.ok().and_then(|filter| {
        let source = ImageRef::new(image.width(), image.height(), image.as_raw(), PixelType::U8x3).ok()?;
        let mut target = Image::new(width, height, PixelType::U8x3);
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Custom(filter)));
        RESIZER.with_borrow_mut(|resizer| resizer.resize(&source, &mut target, &options)).ok()?;
        RgbImage::from_raw(width, height, target.into_vec())
    });
    // The resizer has nothing to complain of: the pixels are there, and no side is zero.
    resized.unwrap_or_else(|| imageops::resize(&image, width, height, imageops::FilterType::Lanczos3))
}

/// The middle of the image where it is larger than the canvas, white around it where it is smaller.
fn on_canvas(image: RgbImage, (width, height): (u32, u32)) -> RgbImage {
    if image.dimensions() == (width, height) {
        return image;
    }
    // Where it begins in the image, where on the canvas, and for how long.
    let span = |have: u32, want: u32| {
        let (from, to) = (have.saturating_sub(want) / 2, want.saturating_sub(have) / 2);
        (from as usize, to as usize, have.min(want) as usize)
    };
    let (from_x, to_x, across) = span(image.width(), width);
    let (from_y, to_y, down) = span(image.height(), height);
    let mut canvas = RgbImage::from_pixel(width, height, Rgb([255; 3]));
    let lines = image.as_raw().chunks_exact(3 * image.width() as usize).skip(from_y).take(down);
    for (line, of_canvas) in lines.zip(canvas.chunks_exact_mut(3 * width as usize).skip(to_y)) {
        let pixels = line.iter().skip(3 * from_x).take(3 * across);
        for (pixel, of_canvas) in pixels.zip(of_canvas.iter_mut().skip(3 * to_x)) {
            *of_canvas = *pixel;
        }
    }
    canvas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_brought_up_to_the_size_may_be_larger_than_what_may_come_in() {
        let made = |mode, width, height| {
            let photo = encode(&RgbImage::new(width, height), Format::Png, 95).unwrap();
            let resize = Resize { mode, size: 64, format: Some(Format::Png), ..Resize::default() };
            resize.apply(photo, Check::Decode, 500).map(|kept| (kept.width, kept.height))
        };
        for mode in [Mode::Border, Mode::KeepRatio, Mode::KeepRatioLargest, Mode::CenterCrop] {
            assert_eq!(made(mode, 20, 20).unwrap(), (64, 64), "{mode:?}");
            assert_eq!(made(mode, 30, 30).unwrap_err().reason(), "too_many_pixels", "{mode:?}");
        }
        assert_eq!(made(Mode::KeepRatio, 24, 16).unwrap(), (96, 64));
        assert_eq!(made(Mode::CenterCrop, 16, 24).unwrap(), (64, 64));
        let error = made(Mode::CenterCrop, 4, 20).unwrap_err();
        assert!(error.to_string().starts_with("64x320 pixels"), "{error}");
    }

    #[test]
    fn a_strip_that_would_be_scaled_to_more_than_the_limit_is_refused() {
        const MOST_PIXELS: u64 = 100_000_000;
        let made = |mode, height| {
            let strip = encode(&RgbImage::new(1, height), Format::Png, 95).unwrap();
            let resize = Resize { mode, format: Some(Format::Png), ..Resize::default() };
            resize.apply(strip, Check::Decode, MOST_PIXELS)
        };
        for mode in [Mode::KeepRatio, Mode::CenterCrop] {
            let error = made(mode, 500_000).unwrap_err();
            assert_eq!(error.reason(), "too_many_pixels", "{mode:?}");
            assert!(error.to_string().starts_with("256x128000000 pixels"), "{mode:?}: {error}");
        }
        for (mode, height, size) in [
            (Mode::KeepRatio, 300, (256, 76_800)),
            (Mode::Border, 500_000, (256, 256)),
            (Mode::KeepRatioLargest, 500_000, (1, 256)),
        ] {
            let kept = made(mode, height).unwrap();
            assert_eq!((kept.width, kept.height), size, "{mode:?}");
        }
    }
}
