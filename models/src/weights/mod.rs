//! Named tensors in files: safetensors (one file, or shards with an index), PyTorch's zip of pickles and its older files, GGUF.
//!
//! A file is mapped, its directory of names read and checked, and each tensor is copied out when it is asked for, so loading a
//! model needs the memory of the model and of one tensor. What a file lacks, has too much of, or has in another shape is
//! listed together in one error.

mod gguf;
mod mapping;
mod pickle;
mod safetensors;
mod torch_legacy;
mod torch_zip;
mod write;

pub use gguf::{GgufValue, Metadata as GgufMetadata, Quantization};
pub use pickle::{TensorRecord, Value as TorchValue};
pub use torch_zip::{TorchFile, write as write_torch};
pub use write::{bytes_of, write};

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch::{Kind, Tensor};

use crate::ModelError;
use crate::parameters::ParameterSet;
use mapping::Mapping;

/// How a tensor's elements lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Plain(Kind),
    /// Blocks of small integers with scales, turned into float32 when read.
    Quantized(Quantization),
}

impl std::fmt::Display for Encoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain(kind) => f.write_str(safetensors::dtype_name(*kind)),
            Self::Quantized(quantization) => write!(f, "{quantization}"),
        }
    }
}

/// Where a tensor lies. Made by a format's reader, which has checked that `range` lies within the mapping and holds what
/// `shape` and `encoding` say.
#[derive(Clone, Debug)]
struct Entry {
    mapping: Arc<Mapping>,
    range: Range<usize>,
    shape: Vec<i64>,
    /// In elements from the start of `range`; `None` for a contiguous tensor.
    strides: Option<Vec<i64>>,
    encoding: Encoding,
    /// The rows of a matrix belong to this many heads, and within a head neighbours are pairs (GGUF); read, they come as
    /// halves.
    paired_heads: Option<i64>,
}

impl Entry {
    fn read(&self) -> Result<Tensor, ModelError> {
        let damaged = || self.mapping.damaged("file of weights", "a tensor does not lie within it");
        let bytes = self.mapping.bytes(self.range.clone()).ok_or_else(damaged)?;
        // libtorch copies as many bytes as the shape says: they must be there.
        let elements = self.shape.iter().try_fold(1usize, |n, &side| n.checked_mul(usize::try_from(side).ok()?));
        if let (Encoding::Plain(kind), None) = (self.encoding, &self.strides)
            && elements.and_then(|n| n.checked_mul(kind.elt_size_in_bytes())) != Some(bytes.len())
        {
            return Err(damaged());
        }
        let failed = ModelError::torch("reading a tensor");
        let tensor = match (self.encoding, &self.strides) {
            (Encoding::Plain(kind), None) => Tensor::f_from_data_size(bytes, &self.shape, kind).map_err(failed)?,
            (Encoding::Plain(kind), Some(strides)) => {
                let elements = (bytes.len() / kind.elt_size_in_bytes()) as i64;
                let storage = Tensor::f_from_data_size(bytes, &[elements], kind).map_err(failed)?;
                storage.as_strided(self.shape.as_slice(), strides.as_slice(), 0).contiguous()
            }
            (Encoding::Quantized(quantization), _) => {
                let values = quantization.dequantize(bytes);
                Tensor::from_slice(&values).f_view(self.shape.as_slice()).map_err(failed)?
            }
        };
        self.mapping.forget(self.range.clone());
        Ok(match (self.paired_heads, self.shape.as_slice()) {
            (Some(heads), &[_, columns]) => {
                tensor.view([heads, -1, 2, columns]).transpose(1, 2).reshape(self.shape.as_slice())
            }
            _ => tensor,
        })
    }
}

/// A tensor's description, without its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    pub shape: Vec<i64>,
    pub encoding: Encoding,
}

/// The tensors of a model's files, by name.
#[derive(Clone, Debug)]
pub struct Weights {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
    /// Names that two tensors came to have by renaming: only one of them could be used.
    collisions: Vec<String>,
}

/// What a folder's weights may be called, in the order in which they are looked for.
const IN_FOLDER: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
];

impl Weights {
    /// Opens a file of any known format (told by its first bytes, not by its name), a shard index (`….index.json`), or a
    /// folder in the Hugging Face layout.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if path.is_dir() {
            let file = IN_FOLDER.iter().map(|name| path.join(name)).find(|file| file.exists());
            return Self::open(&file.ok_or_else(|| ModelError::Record {
                path: path.to_owned(),
                what: "model folder",
                detail: format!("it has none of {}", IN_FOLDER.join(", ")),
            })?);
        }
        let entries = if path.extension().is_some_and(|e| e == "json") {
            safetensors::sharded(path)?
        } else {
            let mapping = Arc::new(Mapping::open(path)?);
            match mapping.all().get(..4) {
                Some(b"GGUF") => gguf::entries(&mapping)?,
                Some(b"PK\x03\x04") => torch_zip::entries(&mapping)?,
                _ if mapping.all().starts_with(torch_legacy::MAGIC) => torch_zip::entries(&mapping)?,
                _ => safetensors::entries(&mapping)?,
            }
        };
        Ok(Self { path: path.to_owned(), entries, collisions: Vec::new() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo> {
        self.entries.iter().map(|(name, entry)| TensorInfo {
            name: name.clone(),
            shape: entry.shape.clone(),
            encoding: entry.encoding,
        })
    }

    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The tensor's shape.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Whether the tensor's elements are real numbers of any precision.
    pub(crate) fn is_floating(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|entry| match entry.encoding {
            Encoding::Plain(kind) => matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16),
            Encoding::Quantized(_) => true,
        })
    }

    /// The tensor `name`, on the CPU, in the file's own type (float32 where that is quantised).
    pub fn read(&self, name: &str) -> Result<Option<Tensor>, ModelError> {
        self.entries.get(name).map(Entry::read).transpose()
    }

    /// The same tensors under other names; those for which `rename` gives `None` are left out.
    #[must_use]
    pub fn renamed(self, rename: impl Fn(&str) -> Option<String>) -> Self {
        let mut renamed = Self { path: self.path, entries: BTreeMap::new(), collisions: self.collisions };
        for (name, entry) in self.entries {
            let Some(new) = rename(&name) else { continue };
            if renamed.entries.insert(new.clone(), entry).is_some() {
                renamed.collisions.push(new);
            }
        }
        renamed
    }

    /// Names that stand for two tensors, as lines of [`ModelError::StateDict`].
    pub(crate) fn collisions(&self) -> impl Iterator<Item = String> + '_ {
        self.collisions.iter().map(|name| format!("  twice       {}", shown(name)))
    }

    /// The same tensors, where the rows of those for which `heads` gives a number are put into the order of halves: rotary
    /// features 2m and 2m + 1 of a head become m and m + half. A matrix that has no such rows is left alone: its shape is
    /// refused when it is used.
    #[must_use]
    pub fn with_split_heads(mut self, heads: impl Fn(&str) -> Option<i64>) -> Self {
        for (name, entry) in &mut self.entries {
            let rows = entry.shape.first().copied().unwrap_or(0);
            entry.paired_heads = heads(name).filter(|&heads| entry.shape.len() == 2 && rows % (2 * heads) == 0);
        }
        self
    }

    /// Refuses weights whose names and shapes are not exactly these; the error lists all differences.
    pub fn check(&self, expected: &[(String, Vec<i64>)]) -> Result<(), ModelError> {
        let mut problems: Vec<String> = self.collisions().collect();
        for (name, shape) in expected {
            match self.entries.get(name) {
                None => problems.push(missing(name, shape)),
                Some(entry) if entry.shape != *shape => problems.push(misshapen(name, &entry.shape, shape)),
                Some(_) => {}
            }
        }
        let known: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let left = self.entries.iter().filter(|(name, _)| !known.contains(name.as_str()));
        problems.extend(left.map(|(name, entry)| unexpected(name, &entry.shape)));
        if problems.is_empty() {
            return Ok(());
        }
        Err(ModelError::StateDict { path: self.path.clone(), problems })
    }

    /// Copies every tensor into `targets`, which must have the same names and shapes.
    pub fn fill(&self, targets: Vec<(String, Tensor)>) -> Result<(), ModelError> {
        self.check(&targets.iter().map(|(name, target)| (name.clone(), target.size())).collect::<Vec<_>>())?;
        for (name, mut target) in targets {
            if let Some(tensor) = self.read(&name)? {
                tch::no_grad(|| target.copy_(&tensor));
            }
        }
        Ok(())
    }
}

/// A tensor's name for people: it comes from a file, so control characters are written out and no name fills the screen.
pub fn shown(name: &str) -> String {
    const LONGEST: usize = 120;
    let mut shown: String = name.escape_debug().take(LONGEST).collect();
    if name.len() > LONGEST {
        shown.push('…');
    }
    shown
}

/// Lines of [`ModelError::StateDict`].
pub(crate) fn missing(name: &str, shape: &[i64]) -> String {
    format!("  missing     {} {shape:?}", shown(name))
}

pub(crate) fn misshapen(name: &str, in_file: &[i64], in_model: &[i64]) -> String {
    format!("  misshapen   {}: {in_file:?} in the file, {in_model:?} in the model", shown(name))
}

pub(crate) fn unexpected(name: &str, shape: &[i64]) -> String {
    format!("  unexpected  {} {shape:?}", shown(name))
}

/// Reads every tensor of a file as float32 on the CPU, by name.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let weights = Weights::open(path)?;
    weights.entries.iter().map(|(name, entry)| Ok((name.clone(), entry.read()?.to_kind(Kind::Float)))).collect()
}

/// Fills a parameter set from a file whose names and shapes must be exactly its own.
pub fn load(path: &Path, set: &ParameterSet) -> Result<(), ModelError> {
    Weights::open(path)?.fill(set.state_dict())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::{Initial, Scope};
    use tch::Device;

    fn describe(scope: &Scope) {
        let _ = scope.parameter("a", &[2, 3], Initial::Linear { inputs: 3 });
        let _ = scope.parameter("b", &[4], Initial::Linear { inputs: 3 });
    }

    #[test]
    fn weights_round_trip_and_differences_are_listed_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let set = ParameterSet::initialise(3, Device::Cpu, describe);
        write(&path, &set.state_dict()).unwrap();
        let other = ParameterSet::allocate(Device::Cpu, describe);
        load(&path, &other).unwrap();
        assert_eq!(other.flat(), set.flat());

        let wrong = ParameterSet::allocate(Device::Cpu, |scope| {
            let _ = scope.parameter("a", &[3, 2], Initial::Constant(0.0));
            let _ = scope.parameter("c", &[1], Initial::Constant(0.0));
        });
        let error = load(&path, &wrong).unwrap_err().to_string();
        for part in ["missing     c", "misshapen   a", "unexpected  b"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
