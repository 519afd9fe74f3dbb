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

/// Models that lie elsewhere than a checkpoint says: those of the machine that trained it, or where they were then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub autoencoder: Option<PathBuf>,
    pub gemma: Option<PathBuf>,
    pub modernbert: Option<PathBuf>,
    pub clip: Option<PathBuf>,
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

    /// With the models that lie elsewhere now. What was never used is refused, and what does not fit; what is not the same to the byte is
    /// told.
    pub fn with_moved(mut self, moved: &Moved) -> Result<Self, ModelError> {
        let refused = |what, folder: &Path, used: &str| ModelError::Configuration {
            what,
            value: folder.display().to_string(),
            expected: format!("none, this checkpoint was trained {used}"),
        };
        if let Some(folder) = &moved.autoencoder {
            let Latents::Autoencoder(of) = &mut self.state.latents else {
                return Err(refused("the autoencoder", folder, "on pixels"));
            };
            of.folder.clone_from(folder);
        }
        for (what, folder) in [("gemma", &moved.gemma), ("modernbert", &moved.modernbert), ("clip", &moved.clip)] {
            let Some(folder) = folder else { continue };
            let TextEncoding::Pretrained(of) = &mut self.state.text else {
                return Err(refused(what, folder, "with no such text encoder"));
            };
            let place = match what {
                "gemma" => &mut of.gemma,
                "modernbert" => &mut of.modernbert,
                _ => &mut of.clip,
            };
            place.clone_from(folder);
        }
        if *moved == Moved::default() {
            return Ok(self);
        }
        let CheckpointState { model, latents, text, encoders, .. } = &self.state;
        check_fit(model, latents, text, &self.parameters)?;
        for (key, name, identity) in
            [("latents", "autoencoder", latents.identity()?), ("text", "text encoders", text.identity()?)]
        {
            if encoders.as_ref().and_then(|of| of.get(key)).is_some_and(|trained| *trained != identity) {
                self.conventions.push(format!("Its {name} are not the same files as in its training."));
            }
        }
        Ok(self)
    }

    /// Weights of the reference system, of its latest step where `path` is a folder. Its conventions are followed where they
    /// are part of the model, and named; how latents are scaled, a conversion of ours may say.
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
        let affine = MmditConfig::affine_of_reference(&described)?;
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
            encoders: None,
            version: String::new(),
        };
        let conventions = vec![
            format!(
                "{} holds weights as the reference system has them, described by {}.",
                file.display(),
                described.display()
            ),
            match affine {
                Affine::ScaleThenShift => "Its latents are scaled, then shifted (diffusers shifts first).",
                Affine::ShiftThenScale => "Its latents are shifted, then scaled, as in diffusers.",
            }
            .to_owned(),
            "The reference's cfg_scale w is a guidance of 1 + w here.".to_owned(),
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
