//! `convert`: the same weights in another format.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use models::checkpoint::{self, Checkpoint};
use models::mmdit::{Mmdit, MmditConfig};
use models::weights::{self, TensorInfo, Weights};

use crate::errors::{OK, Usage};

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
        let (weights, config) = self.open()?;
        let tensors: Vec<TensorInfo> = weights.tensors().collect();
        list(&tensors);
        if let Some(config) = &config {
            Mmdit::check(config, weights.clone())?;
            println!("Exactly the tensors of its model: width {}, {} blocks.", config.width, config.blocks);
        }
        let (Some(output), Some(format)) = (&self.output, format) else { return Ok(OK) };
        let mut held = Vec::with_capacity(tensors.len());
        for TensorInfo { name, .. } in tensors {
            let Some(tensor) = weights.read(&name)? else { continue };
            if !models::parameters::is_finite(&tensor) {
                eprintln!("warning: {name} holds NaN or infinity");
            }
            held.push((name, tensor));
        }
        match format {
            Format::Safetensors => weights::write(output, &held)?,
            Format::Torch => {
                // The reference's loader asks for the table of positions too.
                held.extend(config.as_ref().and_then(Mmdit::position_table));
                weights::write_torch(output, &held)?;
            }
        }
        println!("wrote {}", output.display());
        if let Some(config) = &config {
            let json = parameters_beside(output);
            let text = serde_json::to_string_pretty(&config.to_reference())?;
            std::fs::write(&json, text + "\n").with_context(|| format!("cannot write {}", json.display()))?;
            println!("wrote {}", json.display());
        }
        Ok(OK)
    }

    /// The weights, and the model they belong to where that is known.
    fn open(&self) -> Result<(Weights, Option<MmditConfig>)> {
        if self.input.is_dir() && (self.input.join("state.json").exists() || self.input.join("latest").exists()) {
            let checkpoint = Checkpoint::open(&self.input)?;
            let weights = Weights::open(&checkpoint.folder.join(checkpoint::EMA))?;
            return Ok((weights, Some(checkpoint.state.model)));
        }
        let weights = Weights::open(&self.input)?;
        let beside = parameters_beside(&self.input);
        let file = self.model.clone().or_else(|| beside.exists().then_some(beside));
        let config = file.map(|file| MmditConfig::from_reference(&file, &weights)).transpose()?;
        Ok((weights, config))
    }
}

/// Where the reference puts the configuration of the weights at `path`: `model_ema_7s.pkl` has `model_params_7s.json`.
fn parameters_beside(path: &Path) -> PathBuf {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let name = match stem.strip_prefix("model_ema_").or_else(|| stem.strip_prefix("model_")) {
        Some(step) => format!("model_params_{step}.json"),
        None => format!("{stem}.model_params.json"),
    };
    path.with_file_name(name)
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

fn list(tensors: &[TensorInfo]) {
    let widest = tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0);
    for tensor in tensors {
        println!("{:<widest$}  {:<5}  {:?}", tensor.name, tensor.encoding.to_string(), tensor.shape);
    }
    let elements: i64 = tensors.iter().map(|tensor| tensor.shape.iter().product::<i64>()).sum();
    println!("{} tensors, {elements} elements", tensors.len());
}
