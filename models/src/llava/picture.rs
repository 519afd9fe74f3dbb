//! From a picture to what the vision tower takes.

use std::path::Path;

use image::{Rgb, RgbImage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::Tensor;

use super::LlavaConfig;
use crate::ModelError;
use crate::bicubic::resized;
use crate::clip::PixelSettings;
use crate::settings::Settings;

/// No picture that is made square may have more pixels: a strip 100,000 pixels long would.
const LARGEST_SQUARE: u64 = 1 << 27;

/// Tiles of a picture; published models use five.
const MOST_TILES: i64 = 64;

/// How a picture is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageMode {
    /// Scaled into the best of several sizes and cut into tiles, with the whole picture before them: what servers do.
    Anyres,
    /// Made square by borders, one tile: what the reference ran, at a fraction of the tokens.
    Pad,
}

/// What the vision tower takes.
#[derive(Debug)]
pub struct PreparedPicture {
    /// (tiles, 3, side, side), normalised, float32.
    pub pixels: Tensor,
    /// Height and width of the picture as it came.
    pub(super) size: [i64; 2],
    /// Rows and columns of the tiles after the first; `None` for a single tile.
    pub(super) tiles: Option<[i64; 2]>,
}

impl PreparedPicture {
    /// The same picture and tiles with other pixels, of the same shape.
    #[must_use]
    pub fn with_pixels(self, pixels: Tensor) -> Self {
        Self { pixels, ..self }
    }
}

/// Settings of the preparation.
#[derive(Clone, Debug)]
pub struct PictureProcessor {
    pixels: PixelSettings,
    pinpoints: Vec<[i64; 2]>,
}

/// `image_grid_pinpoints`, each a multiple of the tile.
pub(super) fn read_pinpoints(settings: &Settings, side: i64) -> Result<Vec<[i64; 2]>, ModelError> {
    let field = "image_grid_pinpoints";
    let default = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]];
    let Some(value) = settings.get(field) else { return Ok(default.to_vec()) };
    let pair = |value: &Value| match value.as_array().map(Vec::as_slice) {
        Some([height, width]) => Some([height.as_i64()?, width.as_i64()?]),
        _ => None,
    };
    let pairs = value.as_array().and_then(|list| list.iter().map(pair).collect::<Option<Vec<_>>>());
    let pairs = pairs.filter(|pairs| !pairs.is_empty() && pairs.len() <= 1024);
    let fits = |[height, width]: &[i64; 2]| {
        let tiles = (height / side).saturating_mul(width / side);
        *height > 0 && *width > 0 && height % side == 0 && width % side == 0 && tiles <= MOST_TILES
    };
    pairs.filter(|pairs| pairs.iter().all(fits)).ok_or_else(|| {
        let expected = format!("multiples of image_size {side} that come to at most {MOST_TILES} tiles");
        settings.refuse(field, format_args!("{value} is not a list of [height, width], {expected}"))
    })
}

impl PictureProcessor {
    /// Reads `preprocessor_config.json` in the folder, where there is one.
    pub(super) fn open(folder: &Path, config: &LlavaConfig) -> Result<Self, ModelError> {
        let side = config.vision.image;
        let (pixels, settings) = PixelSettings::open(folder, side as u32)?;
        let pinpoints = match settings.filter(|settings| settings.get("image_grid_pinpoints").is_some()) {
            Some(settings) => read_pinpoints(&settings, side)?,
            None => config.pinpoints.clone(),
        };
        Ok(Self { pixels, pinpoints })
    }

    /// What each channel is divided by.
    pub fn deviation(&self) -> [f64; 3] {
        self.pixels.deviation
    }

    /// Cuts, scales and normalises `picture`.
    pub fn prepare(&self, picture: &RgbImage, mode: ImageMode) -> Result<PreparedPicture, ModelError> {
        let (width, height) = picture.dimensions();
        let refused = |expected: &str| {
            let value = format!("{width}×{height}");
            Err(ModelError::Configuration { what: "a picture's size", value, expected: expected.to_owned() })
        };
        if width == 0 || height == 0 {
            return refused("at least one pixel on each side");
        }
        let size = [i64::from(height), i64::from(width)];
        match mode {
            ImageMode::Pad => {
                let longest = width.max(height);
                if u64::from(longest) * u64::from(longest) > LARGEST_SQUARE {
                    return refused("at most 11585 pixels on the longer side, since it is made square");
                }
                let background = self.pixels.mean.map(|mean| (mean * 255.0) as u8);
                let square = pasted(picture, longest, longest, background);
                let pixels = self.pixels.normalise(&[resized(&square, self.pixels.side, self.pixels.side)])?;
                Ok(PreparedPicture { pixels, size, tiles: None })
            }
            ImageMode::Anyres => {
                let [target_height, target_width] = self.best_size(size);
                let side = i64::from(self.pixels.side);
                let tiles = [target_height / side, target_width / side];
                let [new_height, new_width] = fitted(size, [target_height, target_width]);
                let fitted = resized(picture, new_width as u32, new_height as u32);
                let padded = pasted(&fitted, target_width as u32, target_height as u32, [0; 3]);
                let mut pieces = vec![resized(picture, self.pixels.side, self.pixels.side)];
                for row in 0..tiles[0] {
                    for column in 0..tiles[1] {
                        let (x, y) = ((column * side) as u32, (row * side) as u32);
                        pieces.push(
                            image::imageops::crop_imm(&padded, x, y, self.pixels.side, self.pixels.side).to_image(),
                        );
                    }
                }
                Ok(PreparedPicture { pixels: self.pixels.normalise(&pieces)?, size, tiles: Some(tiles) })
            }
        }
    }

    /// The size, (height, width), that keeps most of the picture's pixels, and wastes least of its own.
    fn best_size(&self, [height, width]: [i64; 2]) -> [i64; 2] {
        let mut best = ([i64::from(self.pixels.side); 2], -1, i64::MAX);
        for &[h, w] in &self.pinpoints {
            let scale = (w as f64 / width as f64).min(h as f64 / height as f64);
            let kept = (width as f64 * scale) as i64 * (height as f64 * scale) as i64;
            let kept = kept.min(width * height);
            let wasted = w * h - kept;
            if kept > best.1 || (kept == best.1 && wasted < best.2) {
                best = ([h, w], kept, wasted);
            }
        }
        best.0
    }
}

/// (height, width) of the picture scaled to fit into `target`, one side exactly.
fn fitted([height, width]: [i64; 2], [target_height, target_width]: [i64; 2]) -> [i64; 2] {
    let (across, down) = (target_width as f64 / width as f64, target_height as f64 / height as f64);
    if across < down {
        [((height as f64 * across).ceil() as i64).min(target_height), target_width]
    } else {
        [target_height, ((width as f64 * down).ceil() as i64).min(target_width)]
    }
}

/// The part of a grid of `grid` (rows, columns) that a picture of `size` (height, width) fills when it is fitted into it and
/// centred: (top, left, rows, columns). Of a very thin one nothing may be left.
pub(super) fn without_padding([height, width]: [i64; 2], [rows, columns]: [i64; 2]) -> [i64; 4] {
    // As the reference does it: rounded to seven places before it is cut to a whole number.
    let whole = |length: i64, scale: f64| ((length as f64 * scale * 1e7).round() / 1e7) as i64;
    if width as f64 / height as f64 > columns as f64 / rows as f64 {
        let kept = whole(height, columns as f64 / width as f64);
        let padding = (rows - kept) / 2;
        [padding, 0, rows - 2 * padding, columns]
    } else {
        let kept = whole(width, rows as f64 / height as f64);
        let padding = (columns - kept) / 2;
        [0, padding, rows, columns - 2 * padding]
    }
}

/// `picture` in the middle of a canvas at least as large; what is odd goes to the right and below.
fn pasted(picture: &RgbImage, width: u32, height: u32, background: [u8; 3]) -> RgbImage {
    let mut canvas = RgbImage::from_pixel(width, height, Rgb(background));
    let (left, top) = ((width - picture.width()) / 2, (height - picture.height()) / 2);
    image::imageops::replace(&mut canvas, picture, i64::from(left), i64::from(top));
    canvas
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor() -> PictureProcessor {
        PictureProcessor {
            pixels: PixelSettings::usual(336),
            pinpoints: vec![[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        }
    }

    /// The published model's number of tokens for a picture of (height, width).
    fn tokens(size: [i64; 2]) -> i64 {
        let [height, width] = processor().best_size(size).map(|side| side / 14);
        let [_, _, rows, columns] = without_padding(size, [height, width]);
        576 + rows * (columns + 1)
    }

    #[test]
    fn pictures_have_as_many_tokens_as_published() {
        let sizes = [[336, 336], [512, 512], [480, 640], [640, 480], [1080, 1920]];
        assert_eq!(sizes.map(tokens), [1176, 2928, 2340, 2352, 1948]);
    }

    #[test]
    fn tiny_and_absurd_pictures_are_prepared_or_refused_in_words() {
        let picture = |width, height| RgbImage::from_pixel(width, height, Rgb([9, 80, 200]));
        let anyres = |width, height| processor().prepare(&picture(width, height), ImageMode::Anyres);
        assert_eq!(anyres(1, 1).unwrap().pixels.size()[1..], [3, 336, 336]);
        // So thin that nothing of it is left on its tiles: the whole picture's features remain.
        assert_eq!(anyres(20_000, 3).unwrap().tiles, Some([1, 2]));
        let pad = |width, height| processor().prepare(&picture(width, height), ImageMode::Pad);
        assert!(pad(20_000, 3).unwrap_err().to_string().contains("11585"));
        assert_eq!(pad(1, 7).unwrap().pixels.size(), [1, 3, 336, 336]);
    }
}
