//! CLIP: text with its projection, vision with its hidden states (transformers' `CLIPModel`, `CLIPTextModel…` and
//! `CLIPVisionModel…`).

mod encoder;
mod pixels;
mod similarity;
mod text;
mod vision;

pub(crate) use pixels::PixelSettings;
pub use similarity::ClipSimilarity;
pub use text::{ClipText, ClipTextConfig, ClipTextOutput};
pub use vision::{ClipVision, ClipVisionConfig, ClipVisionOutput};

use std::path::Path;

use tch::{Device, Kind};

use crate::ModelError;
use crate::layers::Linear;
use crate::parameters::{Loaded, Scope};
use crate::settings::Settings;
use crate::weights::Weights;

/// A published CLIP folder: whichever halves it holds.
#[derive(Debug)]
pub struct Clip {
    pub text: Option<ClipText>,
    /// To the space that text and images share; bias-free. Not every folder of one half has it.
    pub text_projection: Option<Linear>,
    pub vision: Option<ClipVision>,
    pub visual_projection: Option<Linear>,
}

impl Clip {
    /// Reads a folder of the model type `clip`, `clip_text_model` or `clip_vision_model`.
    pub fn open(folder: &Path, device: Device, kind: Kind) -> Result<Loaded<Self>, ModelError> {
        let settings = Settings::in_folder(folder)?;
        let (text, vision) = match settings.text("model_type", Some("clip"))?.as_str() {
            "clip" => (Some(half(&settings, "text_config")), Some(half(&settings, "vision_config"))),
            "clip_text_model" => (Some(settings.clone()), None),
            "clip_vision_model" => (None, Some(settings.clone())),
            other => {
                return Err(settings.refuse("model_type", format_args!("{other:?} is not a CLIP model")));
            }
        };
        let dimension = settings.size("projection_dim", 512)?;
        let text = text.as_ref().map(ClipTextConfig::read).transpose()?;
        let vision = vision.as_ref().map(ClipVisionConfig::read).transpose()?;
        let weights = Weights::open(folder)?.renamed(|name| published_name(name, text.is_some(), vision.is_some()));
        Scope::read(weights, device, kind, |scope| {
            let projection = |name: &str, features: i64| {
                let scope = scope.at(name);
                scope.has("weight").then(|| Linear::without_bias(&scope, features, dimension))
            };
            Self {
                text: text.as_ref().map(|config| ClipText::new(&scope.at("text_model"), config)),
                text_projection: text.as_ref().and_then(|c| projection("text_projection", c.width)),
                vision: vision.as_ref().map(|config| ClipVision::new(&scope.at("vision_model"), config)),
                visual_projection: vision.as_ref().and_then(|c| projection("visual_projection", c.encoder.width)),
            }
        })
    }
}

/// The settings of one half. Early files say some of them in a second table, which counts more.
fn half(settings: &Settings, field: &str) -> Settings {
    settings.table(field).overlaid(&settings.table(&format!("{field}_dict")))
}

/// The name in the layout of `CLIPModel`. Folders of one half may leave out its prefix; buffers and the training
/// temperature are not needed.
fn published_name(name: &str, text: bool, vision: bool) -> Option<String> {
    if name.ends_with("position_ids") || name == "logit_scale" {
        return None;
    }
    let half = match (text, vision) {
        (true, false) => "text_model",
        (false, true) => "vision_model",
        _ => return Some(name.to_owned()),
    };
    let full = name.starts_with("text_") || name.starts_with("vision_") || name.starts_with("visual_");
    Some(if full { name.to_owned() } else { format!("{half}.{name}") })
}
