//! From a scene to the bytes of a picture file.

use fast_image_resize as resize;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, ImageError, Rgb, RgbImage};
use resize::images::{Image, ImageRef};
use resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use thiserror::Error;

use crate::assets::sprites;
use crate::scene::{Background, Format, Scene};

const JPEG_QUALITY: u8 = 92;
const WEBP_QUALITY: f32 = 90.0;
/// libwebp's effort, 0 to 6. Its own default, 4, takes three times as long for files a tenth smaller.
const WEBP_EFFORT: i32 = 1;

/// Why a picture could not be drawn. None of these can happen with sound assets and memory to spare.
#[derive(Debug, Error)]
pub enum RenderError {
    /// A sprite could not be decoded, or the picture could not be encoded.
    #[error("cannot decode a sprite or encode a picture")]
    Codec(#[from] ImageError),
    /// The sprite could not be scaled.
    #[error("cannot scale a sprite: {reason}")]
    Scale {
        /// What the scaler said.
        reason: String,
    },
    /// libwebp refused the picture.
    #[error("cannot encode a picture as WebP: {reason}")]
    WebP {
        /// What libwebp said.
        reason: String,
    },
}

/// The pixels of a scene.
pub(crate) fn render(scene: &Scene) -> Result<RgbImage, RenderError> {
    let mut picture = paint_background(scene);
    let scaled = scaled_sprite(scene)?;
    let place = scene.placement;
    for (row, line) in (place.top..).zip(scaled.chunks_exact(4 * place.side as usize)) {
        for (column, sprite) in (place.left..).zip(line.as_chunks::<4>().0) {
            let [red, green, blue, alpha] = *sprite;
            let below = picture.get_pixel_mut(column, row);
            *below = Rgb([blend(red, below[0], alpha), blend(green, below[1], alpha), blend(blue, below[2], alpha)]);
        }
    }
    Ok(picture)
}

/// The file of a scene, in the scene's format.
pub(crate) fn encode(scene: &Scene) -> Result<Vec<u8>, RenderError> {
    let picture = render(scene)?;
    let (width, height) = picture.dimensions();
    let mut file = Vec::new();
    match scene.format {
        Format::Jpeg => {
            JpegEncoder::new_with_quality(&mut file, JPEG_QUALITY).write_image(
                &picture,
                width,
                height,
                ExtendedColorType::Rgb8,
            )?;
        }
        Format::Png => PngEncoder::new(&mut file).write_image(&picture, width, height, ExtendedColorType::Rgb8)?,
        Format::WebP => {
            let refuse = |reason: String| RenderError::WebP { reason };
            let mut config = webp::WebPConfig::new().map_err(|()| refuse("no configuration".to_owned()))?;
            config.quality = WEBP_QUALITY;
            config.method = WEBP_EFFORT;
            let encoder = webp::Encoder::from_rgb(&picture, width, height);
            let memory = encoder.encode_advanced(&config).map_err(|error| refuse(format!("{error:?}")))?;
            file.extend_from_slice(&memory);
        }
    }
    Ok(file)
}

/// A JPEG that a decoder cannot finish: cut to 45 %, and ended by a start-of-scan header that makes no sense. The cut alone would not
/// do: some decoders, the `image` crate's among them, paint what is missing grey and report success.
pub(crate) fn corrupt(mut jpeg: Vec<u8>) -> Vec<u8> {
    jpeg.truncate(jpeg.len() * 45 / 100);
    jpeg.extend_from_slice(&[0xFF, 0xDA, 0x00, 0x03, 0xFF]);
    jpeg
}

fn paint_background(scene: &Scene) -> RgbImage {
    match scene.background {
        Background::Plain { rgb, .. } => RgbImage::from_pixel(scene.width, scene.height, Rgb(rgb)),
        Background::Gradient { from, to, angle } => {
            let (down, right) = angle.sin_cos();
            let (width, height) = (f64::from(scene.width), f64::from(scene.height));
            // The gradient's length is that of the picture seen from its direction, so that it just spans from corner to corner.
            let length = width * right.abs() + height * down.abs();
            RgbImage::from_fn(scene.width, scene.height, |column, row| {
                let along =
                    (f64::from(column) + 0.5 - width / 2.0) * right + (f64::from(row) + 0.5 - height / 2.0) * down;
                let share = along / length + 0.5;
                Rgb([0, 1, 2].map(|channel| mix(from.rgb[channel], to.rgb[channel], share)))
            })
        }
    }
}

/// The colour at `share` (0 to 1) of the way from one channel value to another.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float cast to u8 saturates, which is what is wanted"
)]
fn mix(from: u8, to: u8, share: f64) -> u8 {
    (f64::from(from) + (f64::from(to) - f64::from(from)) * share).round() as u8
}

/// `above` over `below`, with `above` not multiplied by its alpha.
#[expect(clippy::cast_possible_truncation, reason = "a weighted mean of two bytes is a byte")]
fn blend(above: u8, below: u8, alpha: u8) -> u8 {
    let alpha = u32::from(alpha);
    ((u32::from(above) * alpha + u32::from(below) * (255 - alpha) + 127) / 255) as u8
}

/// The scene's sprite at its size there: RGBA, 4 bytes a pixel. Scaling weighs colours by their alpha, so edges keep their colour.
fn scaled_sprite(scene: &Scene) -> Result<Vec<u8>, RenderError> {
    fn refuse(error: impl std::fmt::Display) -> RenderError {
        RenderError::Scale { reason: error.to_string() }
    }
    let sprite = sprites()[scene.sprite].pixels()?;
    let side = scene.placement.side;
    let source = ImageRef::new(sprite.width(), sprite.height(), sprite.as_raw(), PixelType::U8x4).map_err(refuse)?;
    let mut scaled = Image::new(side, side, PixelType::U8x4);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    Resizer::new().resize(&source, &mut scaled, &options).map_err(refuse)?;
    Ok(scaled.into_vec())
}
