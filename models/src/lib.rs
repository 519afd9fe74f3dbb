//! Ground floor, torch side: building blocks, the MMDiT, latents and text encoders, weights and the checkpoint format.
//!
//! Knows no shard of images, no training loop and no sampler. Tensor shapes are written `(batch, channels, height,
//! width)`; token sequences `(batch, tokens, features)`.
//!
//! - [`mmdit`]: the model that is trained, its configuration and its state-dict names.
//! - [`autoencoder`], [`clip`], [`gemma2`], [`modernbert`], [`llama`], [`llava`]: published models, read as they are.
//! - [`inception`]: the network that FID compares pictures with.
//! - [`latents`], [`text`]: what stands between pixels or words and the model, behind one trait each.
//! - [`tokenizer`]: text to token ids, chats to prompts.
//! - [`layers`]: building blocks. [`parameters`]: named parameters, in one flat buffer or read from files.
//! - [`weights`], [`settings`]: files of tensors and of sizes. [`checkpoint`]: the folder that a training run leaves, and
//!   [`reference_files`]: those that a training of the reference system leaves.
//! - [`device`]: the CPU or a GPU. [`random`]: random numbers from counters, so that a result depends on no order of calls.

pub mod autoencoder;
mod bicubic;
pub mod checkpoint;
pub mod clip;
pub mod device;
pub mod gemma2;
pub mod inception;
pub mod latents;
pub mod layers;
pub mod llama;
pub mod llava;
pub mod mmdit;
pub mod modernbert;
pub mod parameters;
pub mod random;
pub mod reference_files;
pub mod settings;
pub mod text;
pub mod tokenizer;
pub mod weights;

use std::any::Any;
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

/// What can go wrong between a model and its files or inputs.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path} is not a readable {what}: {detail}")]
    Record { path: PathBuf, what: &'static str, detail: String },
    /// All differences between a file's tensors and the model's, at once.
    #[error("{path} does not fit the model:\n{}", first_lines(problems))]
    StateDict { path: PathBuf, problems: Vec<String> },
    #[error("{what} = {value} is not possible: {expected}")]
    Configuration { what: &'static str, value: String, expected: String },
    #[error("{operation} failed in libtorch")]
    Torch { operation: &'static str, source: tch::TchError },
    #[error(transparent)]
    Shard(#[from] shards::ShardError),
}

/// The first lines of a list that may have millions.
fn first_lines(lines: &[String]) -> String {
    const MOST: usize = 60;
    let mut shown = lines.get(..MOST).unwrap_or(lines).to_vec();
    if lines.len() > MOST {
        shown.push(format!("  … and {} more", lines.len() - MOST));
    }
    shown.join("\n")
}

/// The contents of a file that nobody needs to be longer than `limit` bytes.
pub(crate) fn read_at_most(path: &Path, limit: u64, what: &'static str) -> Result<Vec<u8>, ModelError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(ModelError::io("open", path))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(ModelError::io("read", path))?;
    if bytes.len() as u64 > limit {
        let detail = format!("it is longer than {} megabytes", limit >> 20);
        return Err(ModelError::Record { path: path.to_owned(), what, detail });
    }
    Ok(bytes)
}

impl ModelError {
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Makes an error of the panic by which tensors' infallible methods report what libtorch refuses; other panics go on. The
    /// program's panic hook has heard of it by then.
    pub fn attempt<T>(operation: &'static str, run: impl FnOnce() -> Result<T, Self>) -> Result<T, Self> {
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| match refusal_of_libtorch(panic.as_ref()) {
            Some(message) => Err(Self::Torch { operation, source: tch::TchError::Torch(message) }),
            None => resume_unwind(panic),
        })
    }

    /// Whether there was too little memory: with less to do at once it may go well.
    pub fn is_out_of_memory(&self) -> bool {
        let Self::Torch { source, .. } = self else { return false };
        let message = source.to_string();
        ["out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED"]
            .iter()
            .any(|words| message.contains(words))
    }

    /// For `map_err` on fallible libtorch calls.
    pub fn torch(operation: &'static str) -> impl FnOnce(tch::TchError) -> Self {
        move |source| Self::Torch { operation, source }
    }
}

/// What libtorch refused, in a line, of the panic by which tensors' infallible methods report it.
pub fn refusal_of_libtorch(panic: &(dyn Any + Send)) -> Option<String> {
    // As `Result::unwrap` words it. What follows the first line are the frames of libtorch's stack.
    let (_, message) = panic.downcast_ref::<String>()?.split_once("Torch(\"")?;
    Some(message.split("\\n").next().unwrap_or_default().trim_end_matches("\")").to_owned())
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::ModelError;

    #[test]
    fn what_libtorch_refuses_is_an_error_and_other_panics_go_on() {
        let too_large = || Ok(Tensor::zeros([1 << 55], (Kind::Float, Device::Cpu)));
        let error = ModelError::attempt("making room", too_large).unwrap_err();
        assert!(error.is_out_of_memory() && error.to_string() == "making room failed in libtorch", "{error:?}");
        let mismatched = || Ok(Tensor::from_slice(&[1, 2]) + Tensor::from_slice(&[1, 2, 3]));
        let error = ModelError::attempt("adding", mismatched).unwrap_err();
        assert!(matches!(error, ModelError::Torch { .. }) && !error.is_out_of_memory(), "{error:?}");
        let other =
            std::panic::catch_unwind(|| ModelError::attempt("failing", || -> Result<(), _> { panic!("other") }));
        assert_eq!(other.unwrap_err().downcast_ref::<&str>(), Some(&"other"));
    }
}
