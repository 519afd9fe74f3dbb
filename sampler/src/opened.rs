//! What is opened to sample from: a checkpoint, or weights of the reference system.

use std::path::{Path, PathBuf};

use models::ModelError;
use models::autoencoder::Affine;
use models::checkpoint::{self, Checkpoint, CheckpointState};
use models::latents::{AutoencoderLatents, Latents};
use models::mmdit::MmditConfig;
use models::reference_files::{ReferenceFiles, parameters_beside, step_of};
use models::text::{PretrainedText, TextEncoding};
use models::weights;

/// Which of a checkpoint's parameters to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameters {
    /// The moving average: what one wants.
    Average,
    /// As trained.
    Raw,
}

/// A model's parameters, and all else that is needed to sample with them.
#[derive(Clone, Debug)]
pub struct Opened {
    pub state: CheckpointState,
    /// The file that the parameters are in.
    pub parameters: PathBuf,
    /// What one should know of how it is used, in sentences.
    pub conventions: Vec<String>,
}

/// What the reference's files do not say: which models theirs was trained with.
#[derive(Clone, Debug)]
pub struct Companions {
    /// Folder of the autoencoder.
    pub autoencoder: PathBuf,
    pub text: PretrainedText,
    /// The `model_params` file [the one beside the weights that belongs to them].
    pub parameters: Option<PathBuf>,
}

impl Opened {
    /// Whether `path` is to be opened by [`Opened::reference`]: a file of weights, or a folder with the reference's.
    pub fn is_reference(path: &Path) -> bool {
        path.is_file() || (!Checkpoint::is_at(path) && ReferenceFiles::latest(path).is_ok_and(|files| files.is_some()))
    }

    /// A checkpoint, or a run's latest.
    pub fn checkpoint(path: &Path, parameters: Parameters) -> Result<Self, ModelError> {
        let Checkpoint { folder, state } = Checkpoint::open(path)?;
        let file = match parameters {
            Parameters::Average => checkpoint::EMA,
            Parameters::Raw => checkpoint::MODEL,
        };
        Ok(Self { state, parameters: folder.join(file), conventions: Vec::new() })
    }

    /// Weights of the reference system, of its latest step where `path` is a folder. Its conventions are followed where they
    /// are part of the model, and named.
    pub fn reference(path: &Path, parameters: Parameters, with: &Companions) -> Result<Self, ModelError> {
        let (file, beside) = if path.is_file() {
            (path.to_owned(), parameters_beside(path))
        } else {
            let files = ReferenceFiles::latest(path)?.ok_or_else(|| ModelError::Record {
                path: path.to_owned(),
                what: "checkpoint",
                detail: "it has no model_params_…s.json of the reference system".to_owned(),
            })?;
            (files.weights(parameters == Parameters::Average), files.parameters())
        };
        let described = with.parameters.clone().unwrap_or(beside);
        let model = MmditConfig::from_reference(&described, &weights::Weights::open(&file)?)?;
        let affine = Affine::ScaleThenShift;
        let latents = Latents::Autoencoder(AutoencoderLatents { folder: with.autoencoder.clone(), affine });
        let text = TextEncoding::Pretrained(with.text.clone());
        check_fit(&model, &latents, &text, &file)?;
        let state = CheckpointState {
            format: checkpoint::FORMAT,
            step: step_of(&file),
            max_resolution: MmditConfig::resolution_of_reference(&described)?,
            model,
            latents,
            text,
            training: serde_json::Value::Null,
            index: None,
            version: String::new(),
        };
        let conventions = vec![
            format!("{} holds weights of the reference system, described by {}.", file.display(), described.display()),
            "Its latents are scaled, then shifted (diffusers shifts first).".to_owned(),
            "Its cfg_scale w is a guidance of 1 + w here.".to_owned(),
            match with.text.padding {
                models::text::Padding::Right => {
                    "Texts are padded behind, as in its training; its inference padded Gemma's before them (--padding reference-inference)."
                }
                models::text::Padding::ReferenceInference => {
                    "Gemma's texts are padded before them and their padding is seen, as in its inference; it was trained without."
                }
            }
            .to_owned(),
        ];
        Ok(Self { state, parameters: file, conventions })
    }
}

/// Refuses companions that do not fit the model.
fn check_fit(model: &MmditConfig, latents: &Latents, text: &TextEncoding, file: &Path) -> Result<(), ModelError> {
    let (shape, texts) = (latents.shape()?, text.shape()?);
    let pairs = [
        ("the autoencoder's channels", shape.channels, model.channels),
        ("the width of the texts' tokens", texts.width, model.text_width),
        ("the width of the pooled text", texts.pooled, model.pooled_width),
    ];
    match pairs.into_iter().find(|(_, found, wanted)| found != wanted) {
        Some((what, found, wanted)) => Err(ModelError::Configuration {
            what,
            value: found.to_string(),
            expected: format!("{} was trained with {wanted}", file.display()),
        }),
        None => Ok(()),
    }
}
