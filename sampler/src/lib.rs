//! From a checkpoint to pictures, and to numbers about them.
//!
//! - [`solver`]: the ways to follow the velocity from noise to an image.
//! - [`guidance`]: classifier-free guidance around a model.
//! - [`opened`]: a checkpoint, or weights of the reference system. [`text_to_image`]: the loaded model, which answers prompts.
//! - [`recipe`]: what a picture was made with, kept in the picture. [`animation`]: the way from noise to it.
//! - [`replay`]: a recorded sampling of the reference, made again.
//! - [`pictures`]: between tensors and pictures.
//! - [`grid`]: several pictures and their prompts on one sheet.
//! - [`colors`]: whether a picture's background has the colour its prompt asked for.

pub mod animation;
pub mod colors;
pub mod grid;
pub mod guidance;
pub mod opened;
pub mod pictures;
pub mod recipe;
pub mod replay;
pub mod solver;
pub mod text_to_image;

use std::path::PathBuf;

/// What can go wrong between a prompt and its picture.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    #[error(transparent)]
    Model(#[from] models::ModelError),
    #[error("{what} = {value} is not possible: {expected}")]
    Request { what: &'static str, value: String, expected: String },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: image::ImageError },
    #[error("cannot make {what} of pictures")]
    Encode { what: &'static str, source: image::ImageError },
    #[error("cannot make a PNG of a picture")]
    Png { source: png::EncodingError },
    #[error("{path} cannot be repeated: {detail}")]
    Recipe { path: PathBuf, detail: String },
    #[error("stopped before it was done")]
    Stopped,
}
