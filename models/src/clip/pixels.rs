//! From pictures to what a vision tower takes.

use std::path::Path;

use image::RgbImage;
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::ModelError;
use crate::bicubic::resized;
use crate::settings::Settings;

/// CLIP's mean and standard deviation of each channel, of 0..=1.
const MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Of a picture of which the middle is taken: scaled, a longer one would take memory without end.
const MOST_ASPECT: u64 = 1000;

/// Side and colours of a tower's pictures.
#[derive(Clone, Debug)]
pub(crate) struct PixelSettings {
    pub(crate) side: u32,
    pub(crate) mean: [f64; 3],
    pub(crate) deviation: [f64; 3],
}

impl PixelSettings {
    /// CLIP's own.
    pub(crate) fn usual(side: u32) -> Self {
        Self { side, mean: MEAN, deviation: DEVIATION }
    }

    /// As the folder's `preprocessor_config.json` or `processor_config.json` says, where there is one, which comes too.
    pub(crate) fn open(folder: &Path, side: u32) -> Result<(Self, Option<Settings>), ModelError> {
        let mut pixels = Self::usual(side);
        let older = folder.join("preprocessor_config.json");
        let newer = folder.join("processor_config.json");
        let settings = if older.exists() {
            Settings::read(&older)?
        } else if newer.exists() {
            Settings::read(&newer)?.table("image_processor")
        } else {
            return Ok((pixels, None));
        };
        pixels.mean = three(&settings, "image_mean", MEAN)?;
        pixels.deviation = three(&settings, "image_std", DEVIATION)?;
        if pixels.deviation.iter().any(|deviation| *deviation <= 0.0) {
            return Err(settings.refuse("image_std", "it must be above zero"));
        }
        refuse_other_preparations(&settings)?;
        Ok((pixels, Some(settings)))
    }

    /// The middle square of a picture whose shorter side was scaled to the tower's, as transformers' processor of CLIP has it.
    pub(crate) fn middle(&self, picture: &RgbImage) -> Result<RgbImage, ModelError> {
        let (width, height) = picture.dimensions();
        let short = width.min(height);
        if short == 0 || u64::from(width.max(height)) > MOST_ASPECT * u64::from(short) {
            return Err(ModelError::Configuration {
                what: "a picture's size",
                value: format!("{width}×{height}"),
                expected: format!("at least a pixel, and one side at most {MOST_ASPECT} times the other"),
            });
        }
        let scaled = |length: u32| (u64::from(self.side) * u64::from(length) / u64::from(short)) as u32;
        let scaled = resized(picture, scaled(width), scaled(height));
        let (x, y) = ((scaled.width() - self.side) / 2, (scaled.height() - self.side) / 2);
        Ok(image::imageops::crop_imm(&scaled, x, y, self.side, self.side).to_image())
    }

    /// Pictures of the tower's size to (pictures, 3, side, side), float32.
    pub(crate) fn normalise(&self, pictures: &[RgbImage]) -> Result<Tensor, ModelError> {
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
