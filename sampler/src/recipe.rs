//! What a picture was made with, kept in the picture itself.
//!
//! A PNG has it twice: under the keyword `ferrotype` as JSON, by which `sample --like` repeats it, and under `parameters` as text, where
//! other people's programs look for it. JPEG and WebP have no place that is as widely read; they go without.

use std::fs::File;
use std::io::{BufReader, Cursor};
use std::path::Path;

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::SampleError;
use crate::text_to_image::{Picture, Settings};

const KEYWORD: &str = "ferrotype";
const PARAMETERS: &str = "parameters";

/// All that is needed to make a picture again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    #[serde(flatten)]
    pub picture: Picture,
    #[serde(flatten)]
    pub settings: Settings,
    /// The digest of the weights.
    pub checkpoint: String,
    /// Of the program.
    pub version: String,
}

impl Recipe {
    /// As other programs write it.
    fn parameters(&self) -> String {
        let Self { picture, settings, checkpoint, version } = self;
        let Settings { width, height, steps, guidance, sampler, shift } = settings;
        let negative = match picture.negative_prompt.as_str() {
            "" => String::new(),
            text => format!("\nNegative prompt: {text}"),
        };
        let short: String = checkpoint.chars().take(10).collect();
        format!(
            "{}{negative}\nSteps: {steps}, Sampler: {sampler}, CFG scale: {}, Seed: {}, Size: {width}x{height}, Shift: {shift}, \
             Model hash: {short}, Version: ferrotype {version}",
            picture.prompt, guidance.scale, picture.seed
        )
    }

    /// Reads what is kept in a PNG.
    pub fn read(path: &Path) -> Result<Self, SampleError> {
        let refused = |detail: String| SampleError::Recipe { path: path.to_owned(), detail };
        let file = File::open(path).map_err(|error| refused(error.to_string()))?;
        let mut reader =
            png::Decoder::new(BufReader::new(file)).read_info().map_err(|error| refused(error.to_string()))?;
        // Texts may stand behind the picture.
        reader.finish().map_err(|error| refused(error.to_string()))?;
        let chunk = reader.info().utf8_text.iter().find(|chunk| chunk.keyword == KEYWORD);
        let chunk = chunk.ok_or_else(|| refused("it does not say what it was made with".to_owned()))?;
        let text = chunk.get_text().map_err(|error| refused(error.to_string()))?;
        serde_json::from_str(&text).map_err(|error| refused(error.to_string()))
    }
}

/// A picture as PNG, with its recipe in it. The same picture and recipe give the same bytes.
pub fn png(picture: &RgbImage, recipe: Option<&Recipe>) -> Result<Vec<u8>, SampleError> {
    let mut bytes = Cursor::new(Vec::new());
    let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let written = (|| {
        if let Some(recipe) = recipe {
            encoder.add_itxt_chunk(KEYWORD.to_owned(), serde_json::to_string(recipe).unwrap_or_default())?;
            encoder.add_itxt_chunk(PARAMETERS.to_owned(), recipe.parameters())?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(picture.as_raw())?;
        writer.finish()
    })();
    written.map_err(|source| SampleError::Png { source })?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guidance::Guidance;
    use crate::solver::Solver;
    use image::Rgb;

    #[test]
    fn a_picture_tells_what_it_was_made_with_and_others_say_that_they_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = Recipe {
            picture: Picture {
                prompt: "a größe\n漢字".to_owned(),
                negative_prompt: "blurry".to_owned(),
                seed: (1 << 53) - 1,
            },
            settings: Settings {
                width: 6,
                height: 4,
                steps: 9,
                guidance: Guidance { scale: 3.5, interval: [0.2, 0.9], rescale: 0.7 },
                sampler: Solver::DpmPlusPlus2M,
                shift: 1.5,
            },
            checkpoint: "0123456789abcdef".to_owned(),
            version: "1".to_owned(),
        };
        let picture = RgbImage::from_fn(6, 4, |x, y| Rgb([x as u8 * 40, y as u8 * 60, 7]));
        let bytes = png(&picture, Some(&recipe)).unwrap();
        assert_eq!(image::load_from_memory(&bytes).unwrap().to_rgb8(), picture);
        let path = folder.path().join("a.png");
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Recipe::read(&path).unwrap(), recipe);
        let text = recipe.parameters();
        assert!(text.contains("Negative prompt: blurry\nSteps: 9, Sampler: dpm++-2m, CFG scale: 3.5"), "{text}");

        std::fs::write(&path, png(&picture, None).unwrap()).unwrap();
        assert!(Recipe::read(&path).unwrap_err().to_string().contains("does not say what it was made with"));
        for cut in [0, 20, bytes.len() / 2] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(Recipe::read(&path).is_err());
        }
    }
}
