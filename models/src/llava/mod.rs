//! LLaVA-NeXT: a CLIP vision tower whose features stand as tokens in a Llama's prompt (transformers'
//! `LlavaNextForConditionalGeneration`).

mod picture;

pub use picture::{ImageMode, PictureProcessor, PreparedPicture};

use std::path::Path;

use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::clip::{ClipVision, ClipVisionConfig};
use crate::layers::{Activation, Linear};
use crate::llama::{Llama, LlamaConfig};
use crate::parameters::{Initial, Loaded, Scope};
use crate::settings::Settings;
use crate::weights::Weights;

/// What stands for the picture in the code that the original layout is of.
const ORIGINAL_IMAGE_TOKEN: i64 = -200;

/// Sizes and settings beyond those of the two halves.
#[derive(Clone, Debug)]
pub struct LlavaConfig {
    pub vision: ClipVisionConfig,
    pub language: LlamaConfig,
    /// The token that stands for the picture; it may be none of the vocabulary.
    pub image_token: i64,
    /// Which of the tower's states are the features, as indices from its first; several are joined.
    feature_states: Vec<usize>,
    /// Whether the class token is left out of the features.
    drop_class: bool,
    /// Sizes in which a picture may be cut into tiles, (height, width).
    pub pinpoints: Vec<[i64; 2]>,
    activation: Activation,
    projector_bias: bool,
}

impl LlavaConfig {
    pub fn read(settings: &Settings) -> Result<Self, ModelError> {
        let vision = if settings.get("vision_config").is_some() {
            settings.table("vision_config")
        } else {
            // The default of the published class, and the tower that the original layout's configuration only names.
            let tower = json!({"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                "num_attention_heads": 16, "image_size": 336, "patch_size": 14});
            Settings::from_values(tower, settings.path())
        };
        let vision = ClipVisionConfig::read(&vision)?;
        let states = vision.encoder.layers + 1;
        let mut layers = settings.integers("vision_feature_layer")?;
        layers.extend(settings.integers("mm_vision_select_layer")?);
        if layers.is_empty() {
            layers.push(-2);
        }
        let index = |layer: &i64| {
            let index = if *layer < 0 { states + layer } else { *layer };
            (0..states).contains(&index).then_some(index as usize)
        };
        let feature_states = layers.iter().map(index).collect::<Option<Vec<_>>>().ok_or_else(|| {
            settings
                .refuse("vision_feature_layer", format_args!("{layers:?} are not among the tower's {states} states"))
        })?;
        let strategy = settings.text("vision_feature_select_strategy", Some("default"))?;
        if !["default", "full"].contains(&strategy.as_str()) {
            let detail = format_args!("{strategy:?} is not default or full");
            return Err(settings.refuse("vision_feature_select_strategy", detail));
        }
        // The original layout has the language model's settings beside the rest.
        let text = settings.get("text_config").map_or_else(|| settings.clone(), |_| settings.table("text_config"));
        let kind = text.text("model_type", Some("llama"))?;
        if !["llama", "llava_llama"].contains(&kind.as_str()) {
            return Err(text.refuse("model_type", format_args!("{kind:?} is not known; llama is")));
        }
        let mut language = LlamaConfig::read(&text)?;
        language.tied |= settings.flag("tie_word_embeddings", false)?;
        // In the original layout the picture's place is no token of the vocabulary. Other layouts have the published class's default.
        let usual = if settings.get("text_config").is_some() { 32_000 } else { ORIGINAL_IMAGE_TOKEN };
        let image_token = settings.integer("image_token_index", settings.integer("image_token_id", usual)?)?;
        Ok(Self {
            pinpoints: picture::read_pinpoints(settings, vision.image)?,
            vision,
            language,
            image_token,
            feature_states,
            drop_class: strategy == "default",
            activation: settings.activation(&["projector_hidden_act"], Activation::Gelu)?,
            projector_bias: settings.flag("multimodal_projector_bias", true)?,
        })
    }
}

/// What becomes of a name after its prefix.
type Rule<'a> = &'a dyn Fn(&str) -> String;

/// The published name in this module's layout, from any of the four that are in use; `None` for buffers.
fn canonical_name(name: &str) -> Option<String> {
    if name.ends_with("inv_freq") || name.ends_with("position_ids") {
        return None;
    }
    if ["model.image_newline", "image_newline"].contains(&name) {
        return Some("newline".to_owned());
    }
    let vision = |rest: &str| format!("vision.{}", rest.strip_prefix("vision_model.").unwrap_or(rest));
    let projector = |rest: &str| match rest.split_once('.') {
        Some(("0" | "linear_1", kind)) => format!("projector.0.{kind}"),
        Some(("2" | "linear_2", kind)) => format!("projector.1.{kind}"),
        _ => format!("projector.{rest}"),
    };
    // The longest prefix first: some begin like others.
    let rules: [(&str, Rule<'_>); 11] = [
        ("model.vision_tower.vision_tower.", &vision),
        ("model.vision_tower.", &vision),
        ("vision_tower.", &vision),
        ("model.mm_projector.", &projector),
        ("model.multi_modal_projector.", &projector),
        ("multi_modal_projector.", &projector),
        ("model.language_model.lm_head.", &|rest| format!("head.{rest}")),
        ("model.language_model.", &|rest| format!("language.{rest}")),
        ("language_model.lm_head.", &|rest| format!("head.{rest}")),
        ("language_model.model.", &|rest| format!("language.{rest}")),
        ("lm_head.", &|rest| format!("head.{rest}")),
    ];
    let known = rules.iter().find_map(|(prefix, rule)| name.strip_prefix(prefix).map(rule));
    // The original layout has the language model's layers beside the rest.
    Some(
        known
            .or_else(|| name.strip_prefix("model.").map(|rest| format!("language.{rest}")))
            .unwrap_or_else(|| name.into()),
    )
}

/// A vision-language model.
#[derive(Debug)]
pub struct Llava {
    vision: ClipVision,
    projector: [Linear; 2],
    /// Ends each row of a picture's features, (width).
    newline: Tensor,
    language: Llama,
    processor: PictureProcessor,
    config: LlavaConfig,
}

impl Llava {
    /// Reads a folder in the Hugging Face layout, with its `preprocessor_config.json` where there is one.
    pub fn open(folder: &Path, device: Device, kind: Kind) -> Result<Loaded<Self>, ModelError> {
        let settings = Settings::in_folder(folder)?;
        settings.expect_type(&["llava_next", "llava_llama", "llava"])?;
        let mut config = LlavaConfig::read(&settings)?;
        config.language.add_stops(folder)?;
        let processor = PictureProcessor::open(folder, &config)?;
        let weights = Weights::open(folder)?.renamed(canonical_name);
        Scope::read(weights, device, kind, |scope| {
            let width = config.language.width;
            let features = config.vision.encoder.width * config.feature_states.len() as i64;
            let projector = scope.at("projector");
            let layer = |i: i64, inputs| Linear::with_bias_if(config.projector_bias, &projector.at(i), inputs, width);
            Self {
                vision: ClipVision::new(&scope.at("vision"), &config.vision),
                projector: [layer(0, features), layer(1, width)],
                newline: scope.parameter("newline", &[width], Initial::Linear { inputs: width }),
                language: Llama::new(&scope.at("language"), &scope.at("head"), &config.language),
                processor: processor.clone(),
                config: config.clone(),
            }
        })
    }

    pub fn config(&self) -> &LlavaConfig {
        &self.config
    }

    pub fn language(&self) -> &Llama {
        &self.language
    }

    pub fn processor(&self) -> &PictureProcessor {
        &self.processor
    }

    /// The tokens that stand for a picture, (tokens, width).
    pub fn picture_tokens(&self, picture: &PreparedPicture) -> Result<Tensor, ModelError> {
        let pixels = picture.pixels.to_device(self.language.device()).to_kind(self.language.kind());
        let states = self.vision.forward(&pixels)?.states;
        let chosen: Vec<&Tensor> = self.config.feature_states.iter().filter_map(|&i| states.get(i)).collect();
        let features = Tensor::cat(&chosen, -1);
        let features = if self.config.drop_class { features.narrow(1, 1, features.size()[1] - 1) } else { features };
        let [first, second] = &self.projector;
        // (tiles, patches, width)
        let features = second.forward(&self.config.activation.forward(&first.forward(&features)));
        let base = features.select(0, 0);
        let Some([rows, columns]) = picture.tiles else {
            return Ok(Tensor::cat(&[base, self.newline.unsqueeze(0)], 0));
        };
        let side = self.config.vision.side();
        if features.size().first() != Some(&(1 + rows * columns)) {
            let value = format!("{:?}", features.size());
            let expected = format!("{} tiles: the picture, and {rows}×{columns} of it", 1 + rows * columns);
            return Err(ModelError::Configuration { what: "a prepared picture", value, expected });
        }
        let tiles = features.narrow(0, 1, rows * columns);
        if tiles.size().get(1) != Some(&(side * side)) {
            return Err(ModelError::Configuration {
                what: "vision_feature_select_strategy",
                value: "full".into(),
                expected: "default, for pictures in tiles: the class token has no place on their grid".into(),
            });
        }
        // Tiles side by side: (rows of patches, columns of patches, width)
        let grid = tiles.view([rows, columns, side, side, -1]).permute([0, 2, 1, 3, 4]).flatten(2, 3).flatten(0, 1);
        let [top, left, height, width] = picture::without_padding(picture.size, [rows * side, columns * side]);
        let grid = grid.narrow(0, top, height).narrow(1, left, width);
        let newline = self.newline.view([1, 1, -1]).expand([height, 1, self.config.language.width], false);
        let tokens = Tensor::cat(&[grid, newline], 1).flatten(0, 1);
        Ok(Tensor::cat(&[base, tokens], 0))
    }

    /// A prompt's embeddings, (tokens, width): `ids` with each run of image tokens in the place of a picture replaced by the
    /// next of `pictures`' tokens. One image token may stand for all of a picture's.
    pub fn embed(&self, ids: &[i64], pictures: &[Tensor]) -> Result<Tensor, ModelError> {
        let mut parts = Vec::new();
        let mut pictures = pictures.iter();
        let mut left = ids;
        let refused = |value: String, expected: String| {
            Err(ModelError::Configuration { what: "image tokens in the prompt", value, expected })
        };
        while let Some(&first) = left.first() {
            let is_image = |id: &i64| *id == self.config.image_token;
            let run = left.iter().take_while(|id| is_image(id) == (first == self.config.image_token)).count();
            let (now, rest) = left.split_at(run);
            left = rest;
            if is_image(&first) {
                let Some(picture) = pictures.next() else {
                    return refused("more places than pictures".into(), "one place for each picture".into());
                };
                let tokens = picture.size().first().copied().unwrap_or(0);
                if run > 1 && run as i64 != tokens {
                    return refused(run.to_string(), format!("1, or {tokens} as the picture has"));
                }
                parts.push(picture.shallow_clone());
            } else {
                parts.push(self.language.embed(&Tensor::from_slice(now).to_device(self.language.device()))?);
            }
        }
        if pictures.next().is_some() || parts.is_empty() {
            return refused("fewer places than pictures".into(), "one place for each picture".into());
        }
        Ok(Tensor::cat(&parts, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::canonical_name;

    #[test]
    fn all_four_layouts_lead_to_the_same_names() {
        for (canonical, published) in [
            (
                "language.layers.3.mlp.up_proj.weight",
                [
                    "model.layers.3.mlp.up_proj.weight",
                    "language_model.model.layers.3.mlp.up_proj.weight",
                    "model.language_model.layers.3.mlp.up_proj.weight",
                    "model.language_model.layers.3.mlp.up_proj.weight",
                ],
            ),
            ("head.weight", ["lm_head.weight", "language_model.lm_head.weight", "lm_head.weight", "lm_head.weight"]),
            (
                "projector.1.bias",
                [
                    "model.mm_projector.2.bias",
                    "multi_modal_projector.linear_2.bias",
                    "model.multi_modal_projector.linear_2.bias",
                    "model.multi_modal_projector.linear_2.bias",
                ],
            ),
            ("newline", ["model.image_newline", "image_newline", "model.image_newline", "model.image_newline"]),
            (
                "vision.encoder.layers.0.mlp.fc1.bias",
                [
                    "model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
                    "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
                    "model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
                    "model.vision_tower.encoder.layers.0.mlp.fc1.bias",
                ],
            ),
        ] {
            for name in published {
                assert_eq!(canonical_name(name).as_deref(), Some(canonical), "{name}");
            }
        }
        assert_eq!(canonical_name("model.layers.0.self_attn.rotary_emb.inv_freq"), None);
    }
}
