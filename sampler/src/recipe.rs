//! What a picture was made with, kept in the picture itself.
//!
//! A PNG has it twice: under the keyword `ferrotype` as JSON, by which `sample --like` repeats it, and under `parameters` as text, where
//! other people's programs look for it. JPEG and WebP have no place that is as widely read; they go without.

use std::fs::File;
use std::io::{BufReader, Cursor};
use std::path::Path;

use image::RgbImage;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::SampleError;
use crate::text_to_image::{Picture, Settings};

const KEYWORD: &str = "ferrotype";
const PARAMETERS: &str = "parameters";

/// Bytes that a compressed recipe may come to. Ours are not compressed; a program that copies texts may have done it.
const MOST_TEXT: usize = 1 << 20;

/// All that is needed to make a picture again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    #[serde(flatten)]
    pub picture: Picture,
    #[serde(flatten)]
    pub settings: Settings,
    /// The digest of the weights.
    pub checkpoint: String,
    /// The identities of its latents and texts, as in [`models::checkpoint::CheckpointState::encoders`]. Earlier versions did not write
    /// it down, nor the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoders: Option<Value>,
    /// What the model computed in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Of the program.
    pub version: String,
}

impl Recipe {
    /// As other programs write it.
    fn parameters(&self) -> String {
        let Self { picture, settings, checkpoint, version, .. } = self;
        let Settings { width, height, steps, guidance, sampler, shift } = settings;
        let negative = match picture.negative_prompt.as_str() {
            "" => String::new(),
            text => format!("\nNegative prompt: {text}"),
        };
        let short = short(checkpoint);
        format!(
            "{}{negative}\nSteps: {steps}, Sampler: {sampler}, CFG scale: {}, Seed: {}, Size: {width}x{height}, Shift: {shift}, \
             Model hash: {short}, Version: ferrotype {version}",
            picture.prompt, guidance.scale, picture.seed
        )
    }

    /// With what else than `now` says it was made, though its prompt and settings are the same: words that follow "made", each of which
    /// makes another picture. What it does not say counts as the same.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        if self.checkpoint != now.checkpoint {
            let (made, now) = (short(&self.checkpoint), short(&now.checkpoint));
            differences.push(format!("by other weights ({made}, these are {now})"));
        }
        let of = |recipe: &Self, key: &str| recipe.encoders.as_ref().and_then(|encoders| encoders.get(key)).cloned();
        for (key, words) in [
            ("latents", "by another autoencoder"),
            ("text", "by other text encoders, or of texts that were padded otherwise (--padding)"),
        ] {
            let made = of(self, key);
            if made.is_some() && made != of(now, key) {
                differences.push(words.to_owned());
            }
        }
        if let (Some(made), Some(now)) = (&self.precision, &now.precision)
            && made != now
        {
            differences.push(format!("in {made}, and this is {now} (--precision)"));
        }
        differences
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
        let mut chunk = chunk.clone();
        // Compressed, a few bytes can claim any length.
        chunk.decompress_text_with_limit(MOST_TEXT).map_err(|error| refused(error.to_string()))?;
        let text = chunk.get_text().map_err(|error| refused(error.to_string()))?;
        serde_json::from_str(&text).map_err(|error| refused(error.to_string()))
    }
}

/// The beginning of a digest.
fn short(digest: &str) -> String {
    digest.chars().take(10).collect()
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
    use png::text_metadata::ITXtChunk;
    use serde_json::json;

    #[test]
    fn a_picture_of_other_models_is_told_and_one_that_says_less_is_read() {
        let older: Recipe = serde_json::from_value(json!({
            "prompt": "a fox", "negative_prompt": "", "seed": 7, "width": 32, "height": 32, "steps": 25,
            "guidance": {"scale": 4.0, "interval": [0.0, 1.0], "rescale": 0.0}, "sampler": "heun", "shift": 1.0,
            "checkpoint": "0123456789abcdef", "version": "0.1.0",
        }))
        .unwrap();
        let of = |latents: &str, text: &str, precision: &str| Recipe {
            encoders: Some(json!({"latents": latents, "text": text})),
            precision: Some(precision.to_owned()),
            ..older.clone()
        };
        let now = of("pixels", "hash", "float32");
        assert_eq!([&older, &now].map(|made| made.differences(&now).len()), [0, 0]);
        let other = Recipe { checkpoint: "fedcba9876543210".to_owned(), ..of("a", "b", "bfloat16") };
        let expected = [
            "by other weights (fedcba9876, these are 0123456789)",
            "by another autoencoder",
            "by other text encoders, or of texts that were padded otherwise (--padding)",
            "in bfloat16, and this is float32 (--precision)",
        ];
        assert_eq!(other.differences(&now), expected);
    }

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
            encoders: Some(json!({"latents": "pixels", "text": {"clip": "a", "padding": "reference_inference"}})),
            precision: Some("bfloat16".to_owned()),
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

    #[test]
    fn a_recipe_that_another_program_compressed_is_read_and_one_without_end_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let recipe = |prompt: String| -> Recipe {
            serde_json::from_value(json!({
                "prompt": prompt, "negative_prompt": "", "seed": 7, "width": 1, "height": 1, "steps": 25,
                "guidance": {"scale": 4.0, "interval": [0.0, 1.0], "rescale": 0.0}, "sampler": "heun", "shift": 1.0,
                "checkpoint": "0123456789abcdef", "version": "0.1.0",
            }))
            .unwrap()
        };
        let read = |recipe: &Recipe| {
            let mut chunk = ITXtChunk::new(KEYWORD, serde_json::to_string(recipe).unwrap());
            chunk.compressed = true;
            chunk.compress_text().unwrap();
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
            encoder.set_color(png::ColorType::Rgb);
            let mut writer = encoder.write_header().unwrap();
            writer.write_text_chunk(&chunk).unwrap();
            writer.write_image_data(&[0; 3]).unwrap();
            writer.finish().unwrap();
            std::fs::write(&path, &bytes).unwrap();
            (bytes.len(), Recipe::read(&path))
        };
        let short = recipe("a fox".to_owned());
        assert_eq!(read(&short).1.unwrap(), short);
        let (length, refused) = read(&recipe("a".repeat(MOST_TEXT)));
        assert!(length < MOST_TEXT / 8 && refused.is_err(), "{length} {refused:?}");
    }
}
