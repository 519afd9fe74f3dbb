//! Writing safetensors.

use std::borrow::Cow;
use std::fs::File;
use std::path::Path;

use safetensors::{Dtype, View};
use tch::{Device, Kind, Tensor};

use super::safetensors::dtype;
use crate::ModelError;

/// A tensor as the library writes it: its bytes are made when they are due, so that memory holds one at a time.
struct Written<'a> {
    tensor: &'a Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl View for Written<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(bytes_of(self.tensor))
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// The elements of a tensor, little-endian, row-major.
pub fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
    let length = tensor.numel() * tensor.kind().elt_size_in_bytes();
    let mut bytes = vec![0u8; length];
    if length > 0 {
        tensor.view([-1]).view_dtype(Kind::Uint8).copy_data_u8(&mut bytes, length);
    }
    bytes
}

/// Writes tensors in their own types; durable when it returns. The file must not exist.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<(), ModelError> {
    let refused = |detail: String| ModelError::Record { path: path.to_owned(), what: "safetensors file", detail };
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let kind = tensor.kind();
        let dtype =
            dtype(kind).ok_or_else(|| refused(format!("{name} is of the type {kind:?}, which it cannot hold")))?;
        let shape = tensor.size().iter().map(|&side| side as usize).collect();
        views.push((name.as_str(), Written { tensor, dtype, shape }));
    }
    staged(path, |staged| {
        safetensors::serialize_to_file(views, None, staged).map_err(|e| match e {
            safetensors::SafeTensorError::IoError(source) => ModelError::io("write", path)(source),
            other => refused(other.to_string()),
        })?;
        File::open(staged).and_then(|file| file.sync_all()).map_err(ModelError::io("write", path))
    })
}

/// Gives `path` the file that `write` makes under another name, when it is complete. `path` must not exist, and nothing is left
/// behind by a failure.
pub(super) fn staged(path: &Path, write: impl FnOnce(&Path) -> Result<(), ModelError>) -> Result<(), ModelError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let staged = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let result =
        write(&staged).and_then(|()| std::fs::hard_link(&staged, path).map_err(ModelError::io("create", path)));
    let _ = std::fs::remove_file(&staged);
    result?;
    Ok(shards::disk::sync_parent(path)?)
}
