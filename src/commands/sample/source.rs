//! What pictures are made with, as far as the command line says.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};
use models::checkpoint::Checkpoint;
use models::device;
use models::text::PretrainedText;
use sampler::opened::{Companions, Moved, Opened, Parameters};
use sampler::text_to_image::{Loading, TextToImage};
use tch::{Device, Kind};

use crate::errors::Usage;
use crate::watch;

/// Where pictures come from.
#[derive(Clone, Debug, Args)]
pub(crate) struct Source {
    /// A checkpoint, or a training's folder, whose latest checkpoint is used; or weights of the reference system: its .pkl, or the
    /// folder with it and its model_params file.
    #[arg(long)]
    pub(crate) checkpoint: PathBuf,
    #[command(flatten)]
    pub(crate) loading: HowLoaded,
}

/// How what pictures come from is loaded, as far as the command line says.
#[derive(Clone, Debug, Args)]
pub(crate) struct HowLoaded {
    /// Use the parameters as trained instead of their average.
    #[arg(long)]
    raw: bool,
    /// cpu, cuda or cuda:N [the first GPU, where there is one].
    #[arg(long)]
    device: Option<String>,
    /// Hold only one of text encoders, model and autoencoder at a time; each is loaded anew for every call.
    #[arg(long)]
    pub(super) low_memory: bool,
    /// What the model computes in: float32 or bfloat16 [bfloat16 on a GPU, float32 on the CPU].
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// Folder of the autoencoder that it was trained with [where it lay then, which the reference's weights do not say].
    #[arg(long, help_heading = MODELS, value_name = "FOLDER")]
    vae: Option<PathBuf>,
    /// Folder of its Gemma 2.
    #[arg(long, help_heading = MODELS, value_name = "FOLDER")]
    gemma: Option<PathBuf>,
    /// Folder of its ModernBERT.
    #[arg(long, help_heading = MODELS, value_name = "FOLDER")]
    modernbert: Option<PathBuf>,
    /// Folder of its CLIP.
    #[arg(long, help_heading = MODELS, value_name = "FOLDER")]
    clip: Option<PathBuf>,
    /// Its model_params file [the one beside the weights].
    #[arg(long, help_heading = REFERENCE, value_name = "FILE")]
    model_params: Option<PathBuf>,
    /// How Gemma's texts are padded: right, as in training, or reference-inference, as the reference's own sampling has it [right].
    #[arg(long, help_heading = REFERENCE, value_enum)]
    padding: Option<Padding>,
}

/// The options of [`HowLoaded`] that say nothing where there is no model to load.
pub(crate) const OF_A_MODEL: [&str; 9] =
    ["raw", "low_memory", "precision", "vae", "gemma", "modernbert", "clip", "model_params", "padding"];

const MODELS: &str = "For models that lie elsewhere now, and for weights of the reference system";
/// What these weights do not say themselves.
const REFERENCE: &str = "For weights of the reference system";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Precision {
    Float32,
    Bfloat16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Padding {
    Right,
    ReferenceInference,
}

impl HowLoaded {
    /// What to compute on.
    pub(crate) fn device(&self) -> Result<Device, Usage> {
        device::named(self.device.as_deref(), 0).map_err(Usage)
    }

    /// Where its models lie now.
    fn moved(&self) -> Moved {
        let Self { vae, gemma, modernbert, clip, .. } = self.clone();
        Moved { autoencoder: vae, gemma, modernbert, clip }
    }

    /// The folders, all of which are needed for what lies at `weights`.
    fn companions(&self, weights: &Path) -> Result<Companions, Usage> {
        let folder = |name: &str, folder: &Option<PathBuf>| {
            folder.clone().ok_or_else(|| {
                Usage(format!(
                    "{} holds weights of the reference system, which do not say what they were trained with: give --vae, --gemma, \
                     --modernbert and --clip (there is no --{name})",
                    weights.display()
                ))
            })
        };
        let text = PretrainedText {
            gemma: folder("gemma", &self.gemma)?,
            modernbert: folder("modernbert", &self.modernbert)?,
            clip: folder("clip", &self.clip)?,
            padding: match self.padding {
                None | Some(Padding::Right) => models::text::Padding::Right,
                Some(Padding::ReferenceInference) => models::text::Padding::ReferenceInference,
            },
        };
        Ok(Companions { autoencoder: folder("vae", &self.vae)?, text, parameters: self.model_params.clone() })
    }
}

impl Source {
    /// Finds what there is to sample from, and says how it is used where that is not obvious; loads no weights.
    pub(crate) fn open(&self) -> Result<Opened> {
        let Self { checkpoint, loading } = self;
        let parameters = if loading.raw { Parameters::Raw } else { Parameters::Average };
        let opened = if Opened::is_reference(checkpoint) {
            Opened::reference(checkpoint, parameters, &loading.companions(checkpoint)?)?
        } else {
            if loading.model_params.is_some() || loading.padding.is_some() {
                let words = "--model-params and --padding are for weights of the reference system: a checkpoint says itself how it was trained";
                return Err(Usage(words.to_owned()).into());
            }
            check_place(checkpoint)?;
            Opened::checkpoint(checkpoint, parameters)?.with_moved(&loading.moved())?
        };
        for sentence in &opened.conventions {
            watch::aside(sentence);
        }
        Ok(opened)
    }

    pub(crate) fn load(&self, opened: Opened) -> Result<TextToImage> {
        let usual = Loading::on(self.loading.device()?);
        let kind = match self.loading.precision {
            None => usual.kind,
            Some(Precision::Float32) => Kind::Float,
            Some(Precision::Bfloat16) => Kind::BFloat16,
        };
        Ok(TextToImage::load(opened, Loading { kind, low_memory: self.loading.low_memory, ..usual })?)
    }
}

/// Refuses the folder of a stage, whose trainings lie below it, and names them.
fn check_place(folder: &Path) -> Result<(), Usage> {
    if Checkpoint::is_at(folder) {
        return Ok(());
    }
    let below = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut trainings: Vec<String> =
        below.filter(|path| Checkpoint::is_at(path)).map(|path| path.display().to_string()).collect();
    trainings.sort();
    if trainings.is_empty() {
        return Ok(());
    }
    Err(Usage(format!("{} is no checkpoint: name one that is in it, {}", folder.display(), trainings.join(" or "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_options_but_the_device_are_of_a_model() {
        let command = HowLoaded::augment_args(clap::Command::new("sample"));
        let options = command.get_arguments().map(|option| option.get_id().as_str());
        let options: Vec<&str> = options.filter(|option| *option != "device").collect();
        assert_eq!(options, OF_A_MODEL);
    }
}
