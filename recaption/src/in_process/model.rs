//! The model, whichever it is.

use std::path::Path;

use models::ModelError;
use models::llama::Llama;
use models::llava::Llava;
use models::parameters::Loaded;
use models::settings::Settings;
use tch::{Device, Kind, Tensor};

use super::question::Question;

/// `model_type` of what sees.
const VISION: [&str; 3] = ["llava_next", "llava_llama", "llava"];

#[derive(Debug)]
pub(super) enum Model {
    Vision(Box<Llava>),
    Text(Box<Llama>),
}

impl Model {
    /// Reads a folder, or a GGUF file. A model with NaNs in it is refused.
    pub(super) fn open(path: &Path, device: Device, kind: Kind) -> Result<Self, ModelError> {
        fn sound<M>(loaded: Loaded<M>, path: &Path) -> Result<Box<M>, ModelError> {
            loaded.refuse_not_finite(path)?;
            Ok(Box::new(loaded.model))
        }
        if path.is_file() {
            return Ok(Self::Text(sound(Llama::open(path, device, kind)?, path)?));
        }
        let settings = Settings::in_folder(path)?;
        settings.expect_type(&[&VISION[..], &["llama"]].concat())?;
        if VISION.contains(&settings.text("model_type", None)?.as_str()) {
            return Ok(Self::Vision(sound(Llava::open(path, device, kind)?, path)?));
        }
        Ok(Self::Text(sound(Llama::open(path, device, kind)?, path)?))
    }

    pub(super) fn language(&self) -> &Llama {
        match self {
            Self::Vision(llava) => llava.language(),
            Self::Text(llama) => llama,
        }
    }

    pub(super) fn vision(&self) -> Option<&Llava> {
        match self {
            Self::Vision(llava) => Some(llava),
            Self::Text(_) => None,
        }
    }

    /// What kind of model it is, by its published name.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Vision(_) => "llava_next",
            Self::Text(_) => "llama",
        }
    }

    /// The prompt's embeddings, (tokens, width), its image's tokens in their place.
    pub(super) fn embed(&self, question: &Question) -> Result<Tensor, ModelError> {
        match self {
            Self::Vision(llava) => {
                let picture = question.picture.as_ref().map(|picture| llava.picture_tokens(picture)).transpose()?;
                llava.embed(&question.ids, picture.as_slice())
            }
            Self::Text(llama) => llama.embed(&Tensor::from_slice(&question.ids).to_device(llama.device())),
        }
    }
}
