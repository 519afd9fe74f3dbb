//! Pixels to bytes.

use std::io::Cursor;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::jpeg;

/// An encoding that is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Compressed fast rather than to the last byte.
    #[default]
    Png,
    #[serde(alias = "jpg")]
    Jpeg,
    Webp,
}

impl Format {
    /// The ending of its files, as img2dataset has it.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::Webp => "webp",
        }
    }
}

/// Encodes; `quality`, from 1 to 100, is JPEG's and WebP's.
pub fn encode(image: &RgbImage, format: Format, quality: u8) -> Result<Vec<u8>, String> {
    match format {
        Format::Png => {
            let mut out = Cursor::new(Vec::new());
            PngEncoder::new_with_quality(&mut out, CompressionType::Fast, FilterType::Adaptive)
                .write_image(image.as_raw(), image.width(), image.height(), ExtendedColorType::Rgb8)
                .map_err(|error| error.to_string())?;
            Ok(out.into_inner())
        }
        Format::Jpeg => jpeg::encode(image, quality),
        Format::Webp => webp::Encoder::from_rgb(image.as_raw(), image.width(), image.height())
            .encode_simple(false, f32::from(quality))
            .map(|memory| memory.to_vec())
            .map_err(|error| format!("libwebp: {error:?}")),
    }
}
