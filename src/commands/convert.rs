//! `convert`: the same weights in another format.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use models::checkpoint::{self, Checkpoint, CheckpointState};
use models::mmdit::{Mmdit, MmditConfig};
use models::reference_files::parameters_beside;
use models::weights::{self, TensorInfo, Weights};

use crate::errors::{OK, Usage};
use crate::watch::{self, say};

#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// Weights: safetensors (one file, a shard index or a folder), a PyTorch file, GGUF, or one of our checkpoints.
    input: PathBuf,
    /// Where to write them: a name that ends in .safetensors, or in .pkl, .pt, .pth or .bin for PyTorch. Without it the
    /// tensors are listed only.
    output: Option<PathBuf>,
    /// The reference's model_params_*.json: the weights must be exactly those of that model [the one beside INPUT that
    /// belongs to it].
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
}

impl Convert {
    pub(crate) fn run(self) -> Result<u8> {
        let format = self.output.as_deref().map(Format::of).transpose()?;
        // Before anything large is read.
        if let Some(output) = &self.output {
            check_place(output)?;
        }
        let (weights, config, parameters) = self.open()?;
        let tensors: Vec<TensorInfo> = weights.tensors().collect();
        list(&tensors)?;
        if let Some(config) = &config {
            Mmdit::check(config, weights.clone())?;
            let (width, blocks) = (config.width, config.blocks);
            say(format_args!("Exactly the tensors of its model: width {width}, {blocks} blocks."))?;
        }
        let (Some(output), Some(format)) = (&self.output, format) else { return Ok(OK) };
        let mut held = Vec::with_capacity(tensors.len());
        for TensorInfo { name, .. } in tensors {
            let Some(tensor) = weights.read(&name)? else { continue };
            if !models::parameters::is_finite(&tensor) {
                watch::aside(format_args!("warning: {} holds NaN or infinity", weights::shown(&name)));
            }
            held.push((name, tensor));
        }
        match format {
            Format::Safetensors => weights::write(output, &held)?,
            Format::Torch => {
                // The reference's loader asks for the table of positions too.
                let table = config.as_ref().and_then(Mmdit::position_table);
                held.extend(table.filter(|(name, _)| !weights.contains(name)));
                weights::write_torch(output, &held)?;
            }
        }
        say(format_args!("wrote {}", output.display()))?;
        if config.is_some() {
            write_parameters(parameters.as_deref(), &parameters_beside(output))?;
        }
        Ok(OK)
    }

    /// The weights, the model they belong to where that is known, and the text of the reference's file about it: of the one they
    /// come with, which may say more than is read of it, or made of our checkpoint's state where it has words for that.
    fn open(&self) -> Result<(Weights, Option<MmditConfig>, Option<String>)> {
        if Checkpoint::is_at(&self.input) {
            if self.model.is_some() {
                return Err(Usage(
                    "--model is for weights alone: a checkpoint says itself what model it is of".to_owned(),
                )
                .into());
            }
            let checkpoint = Checkpoint::open(&self.input)?;
            let weights = Weights::open(&checkpoint.folder.join(checkpoint::EMA))?;
            let CheckpointState { model, latents, max_resolution, .. } = checkpoint.state;
            let parameters = model.to_reference(max_resolution, &latents);
            let text = parameters.map(|parameters| serde_json::to_string_pretty(&parameters)).transpose()?;
            return Ok((weights, Some(model), text.map(|text| text + "\n")));
        }
        let weights = Weights::open(&self.input)?;
        let beside = parameters_beside(&self.input);
        let file = self.model.clone().or_else(|| beside.exists().then_some(beside));
        let Some(file) = file else { return Ok((weights, None, None)) };
        let config = MmditConfig::from_reference(&file, &weights)?;
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok((weights, Some(config), Some(text)))
    }
}

/// Refuses a place where weights cannot be written.
fn check_place(output: &Path) -> Result<(), Usage> {
    if output.exists() {
        return Err(Usage(format!("{} exists already: remove it, or choose another name", output.display())));
    }
    match output.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
        Some(folder) => Err(Usage(format!("{} is no folder: create it, or choose another", folder.display()))),
        None => Ok(()),
    }
}

/// Puts the reference's configuration beside converted weights. One that is there already stays.
fn write_parameters(text: Option<&str>, path: &Path) -> Result<()> {
    if path.exists() {
        say(format_args!("kept  {}", path.display()))?;
        let is_same = |text: &str| std::fs::read(path).is_ok_and(|kept| kept == text.as_bytes());
        if !text.is_some_and(is_same) {
            let kept = path.display();
            watch::aside(format_args!("warning: {kept} says something else than is known of these weights"));
        }
        return Ok(());
    }
    let Some(text) = text else {
        say("The reference system's model_params file has no words for this model: none was written.")?;
        return Ok(());
    };
    let mut file = std::fs::File::create_new(path).with_context(|| format!("cannot create {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    say(format_args!("wrote {}", path.display()))?;
    Ok(())
}

#[derive(Clone, Copy)]
enum Format {
    Safetensors,
    Torch,
}

impl Format {
    fn of(path: &Path) -> Result<Self, Usage> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => Ok(Self::Safetensors),
            Some("pkl" | "pt" | "pth" | "bin") => Ok(Self::Torch),
            _ => Err(Usage(format!(
                "{}: the name must end in .safetensors, or in .pkl, .pt, .pth or .bin for PyTorch",
                path.display()
            ))),
        }
    }
}

fn list(tensors: &[TensorInfo]) -> std::io::Result<()> {
    let names: Vec<String> = tensors.iter().map(|tensor| weights::shown(&tensor.name)).collect();
    let widest = names.iter().map(String::len).max().unwrap_or(0).min(100);
    for (name, tensor) in names.iter().zip(tensors) {
        say(format_args!("{name:<widest$}  {:<5}  {:?}", tensor.encoding.to_string(), tensor.shape))?;
    }
    let elements: i64 = tensors.iter().map(|tensor| tensor.shape.iter().product::<i64>()).sum();
    say(format_args!("{} tensors, {elements} elements", tensors.len()))
}
