//! From a picture to what the vision tower takes.

use std::path::Path;

use image::{Rgb, RgbImage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::LlavaConfig;
use crate::ModelError;
use crate::settings::Settings;

/// CLIP's mean and standard deviation of each channel, of 0..=1.
const MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

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
    side: u32,
    pinpoints: Vec<[i64; 2]>,
    mean: [f64; 3],
    deviation: [f64; 3],
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
        let mut processor =
            Self { side: side as u32, pinpoints: config.pinpoints.clone(), mean: MEAN, deviation: DEVIATION };
        let older = folder.join("preprocessor_config.json");
        let newer = folder.join("processor_config.json");
        let settings = if older.exists() {
            Settings::read(&older)?
        } else if newer.exists() {
            Settings::read(&newer)?.table("image_processor")
        } else {
            return Ok(processor);
        };
        if settings.get("image_grid_pinpoints").is_some() {
            processor.pinpoints = read_pinpoints(&settings, side)?;
        }
        processor.mean = three(&settings, "image_mean", MEAN)?;
        processor.deviation = three(&settings, "image_std", DEVIATION)?;
        if processor.deviation.iter().any(|deviation| *deviation <= 0.0) {
            return Err(settings.refuse("image_std", "it must be above zero"));
        }
        refuse_other_preparations(&settings)?;
        Ok(processor)
    }

    /// What each channel is divided by.
    pub fn deviation(&self) -> [f64; 3] {
        self.deviation
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
                let background = self.mean.map(|mean| (mean * 255.0) as u8);
                let square = pasted(picture, longest, longest, background);
                let pixels = self.normalise(&[resized(&square, self.side, self.side)])?;
                Ok(PreparedPicture { pixels, size, tiles: None })
            }
            ImageMode::Anyres => {
                let [target_height, target_width] = self.best_size(size);
                let side = i64::from(self.side);
                let tiles = [target_height / side, target_width / side];
                let [new_height, new_width] = fitted(size, [target_height, target_width]);
                let fitted = resized(picture, new_width as u32, new_height as u32);
                let padded = pasted(&fitted, target_width as u32, target_height as u32, [0; 3]);
                let mut pieces = vec![resized(picture, self.side, self.side)];
                for row in 0..tiles[0] {
                    for column in 0..tiles[1] {
                        let (x, y) = ((column * side) as u32, (row * side) as u32);
                        pieces.push(image::imageops::crop_imm(&padded, x, y, self.side, self.side).to_image());
                    }
                }
                Ok(PreparedPicture { pixels: self.normalise(&pieces)?, size, tiles: Some(tiles) })
            }
        }
    }

    /// The size, (height, width), that keeps most of the picture's pixels, and wastes least of its own.
    fn best_size(&self, [height, width]: [i64; 2]) -> [i64; 2] {
        let mut best = ([i64::from(self.side); 2], -1, i64::MAX);
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

    /// To (pictures, 3, side, side).
    fn normalise(&self, pictures: &[RgbImage]) -> Result<Tensor, ModelError> {
        let bytes: Vec<u8> = pictures.iter().flat_map(|picture| picture.as_raw().iter().copied()).collect();
        let side = i64::from(self.side);
        let pixels = Tensor::f_from_data_size(&bytes, &[pictures.len() as i64, side, side, 3], Kind::Uint8)
            .map_err(ModelError::torch("making a tensor of a picture"))?
            .permute([0, 3, 1, 2])
            .to_kind(Kind::Float)
            / 255.0;
        let channel = |values: &[f64; 3]| Tensor::from_slice(values).to_kind(Kind::Float).view([1, 3, 1, 1]);
        Ok(((pixels - channel(&self.mean)) / channel(&self.deviation)).contiguous())
    }
}

/// Refuses settings under which a picture would be prepared in another way than here.
fn refuse_other_preparations(settings: &Settings) -> Result<(), ModelError> {
    // Pillow's number for bicubic.
    let resample = settings.integer("resample", 3)?;
    if resample != 3 {
        return Err(settings.refuse("resample", format_args!("{resample} is not known; 3, bicubic, is")));
    }
    let factor = settings.number("rescale_factor", 1.0 / 255.0)?;
    if (factor * 255.0 - 1.0).abs() > 1e-6 {
        return Err(settings.refuse("rescale_factor", format_args!("{factor} is not 1/255")));
    }
    for field in ["do_resize", "do_rescale", "do_normalize"] {
        if !settings.flag(field, true)? {
            return Err(settings.refuse(field, "pictures are always resized, rescaled and normalised here"));
        }
    }
    Ok(())
}

fn three(settings: &Settings, field: &str, default: [f64; 3]) -> Result<[f64; 3], ModelError> {
    let Some(value) = settings.get(field) else { return Ok(default) };
    let numbers: Option<Vec<f64>> = value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
    match numbers.as_deref() {
        Some(&[a, b, c]) if [a, b, c].iter().all(|number| number.is_finite() && number.abs() < 1e6) => Ok([a, b, c]),
        _ => Err(settings.refuse(field, format_args!("{value} is not a list of three numbers"))),
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

/// Bicubic, as Pillow 13 does it to the bit: across first, then down, unless the picture loses height, and more than twice the
/// pixels of height than of width. Each pass is rounded and cut to a byte, so order and rounding show; no library does both
/// alike.
fn resized(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let lost = |from: u32, to: u32| i64::from(from) - i64::from(to);
    let (across, down) = (lost(picture.width(), width), lost(picture.height(), height));
    if down > 0 && down > 2 * across {
        resized_across(&resized_down(picture, height), width)
    } else {
        resized_down(&resized_across(picture, width), height)
    }
}

/// Bits behind the point of a weight.
const PRECISION: u32 = 22;

/// For each of `to` places: the first of `from` places that it is made of, and their weights.
fn weights(from: u32, to: u32) -> Vec<(u32, Vec<i64>)> {
    let bicubic = |x: f64| {
        let x = x.abs();
        if x < 1.0 {
            (1.5 * x - 2.5) * x * x + 1.0
        } else if x < 2.0 {
            (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        } else {
            0.0
        }
    };
    let scale = f64::from(from) / f64::from(to);
    let stretch = scale.max(1.0);
    let (support, shrink) = (2.0 * stretch, 1.0 / stretch);
    let place = |i: u32| {
        let center = (f64::from(i) + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as u32;
        let end = ((center + support + 0.5) as u32).min(from);
        let raw: Vec<f64> = (first..end).map(|j| bicubic((f64::from(j) - center + 0.5) * shrink)).collect();
        let total: f64 = raw.iter().sum();
        let whole = |weight: f64| {
            let scaled = weight / total * f64::from(1 << PRECISION);
            (scaled + if scaled < 0.0 { -0.5 } else { 0.5 }) as i64
        };
        (first, raw.into_iter().map(whole).collect())
    };
    (0..to).map(place).collect()
}

/// The pixel that is made of `pixels` with their weights.
fn mixed<'a>(pixels: impl Iterator<Item = (&'a Rgb<u8>, &'a i64)>) -> Rgb<u8> {
    let mut sums = [1i64 << (PRECISION - 1); 3];
    for (Rgb(pixel), weight) in pixels {
        for (sum, &channel) in sums.iter_mut().zip(pixel) {
            *sum += i64::from(channel) * weight;
        }
    }
    Rgb(sums.map(|sum| (sum >> PRECISION).clamp(0, 255) as u8))
}

fn resized_across(picture: &RgbImage, width: u32) -> RgbImage {
    if picture.width() == width {
        return picture.clone();
    }
    let weights = weights(picture.width(), width);
    let mut scaled = RgbImage::new(width, picture.height());
    for (row, out) in picture.rows().zip(scaled.rows_mut()) {
        let row: Vec<&Rgb<u8>> = row.collect();
        for (pixel, (first, weights)) in out.zip(&weights) {
            *pixel = mixed(row.iter().skip(*first as usize).copied().zip(weights));
        }
    }
    scaled
}

fn resized_down(picture: &RgbImage, height: u32) -> RgbImage {
    if picture.height() == height {
        return picture.clone();
    }
    let weights = weights(picture.height(), height);
    let rows: Vec<Vec<&Rgb<u8>>> = picture.rows().map(Iterator::collect).collect();
    let mut scaled = RgbImage::new(picture.width(), height);
    for (out, (first, weights)) in scaled.rows_mut().zip(&weights) {
        let rows = rows.get(*first as usize..).unwrap_or_default();
        for (x, pixel) in out.enumerate() {
            *pixel = mixed(rows.iter().filter_map(|row| row.get(x).copied()).zip(weights));
        }
    }
    scaled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor() -> PictureProcessor {
        PictureProcessor {
            side: 336,
            pinpoints: vec![[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
            mean: MEAN,
            deviation: DEVIATION,
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

    /// What Pillow 13.0 makes of a small chequered picture: across first, then down first.
    #[test]
    fn pictures_are_scaled_as_pillow_does() {
        let picture = RgbImage::from_fn(5, 7, |x, y| Rgb([if (x * y + x) % 3 == 0 { 255 } else { 0 }, 90, 17]));
        let red = |picture: RgbImage| picture.pixels().map(|pixel| pixel.0[0]).collect::<Vec<_>>();
        assert_eq!(
            red(resized(&picture, 3, 6)),
            [137, 46, 109, 177, 116, 158, 214, 182, 204, 127, 29, 97, 229, 208, 222, 160, 86, 137]
        );
        assert_eq!(red(resized(&picture, 4, 3)), [217, 35, 183, 102, 222, 66, 194, 124, 227, 90, 201, 140]);
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
