//! Features on disk, so that a set is looked at once, and a run that was stopped goes on.
//!
//! ```text
//! features/
//!     features.json               whose features, of what, and whether they are all there
//!     statistics.safetensors      their mean and covariance, once they were asked for
//!     block-00000000.safetensors  features f32 (n, dimensions); scores f64 (up to n), of those that have a caption, in their order
//! ```
//!
//! A block appears under its name only when it is complete and durable. The number in it is that of its first sample.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::network::{CLIP_FEATURES, NetworkName, Seen};
use crate::{EvaluationError, FeatureStatistics, Features};

const DESCRIPTION: &str = "features.json";
const STATISTICS: &str = "statistics.safetensors";

/// The key of a source whose pictures are to be scored with their captions, by that CLIP ([`crate::Networks::scored_by`]).
pub const SCORED_BY: &str = "scored_by";

/// The format that this version writes; newer ones are refused.
const FORMAT: u32 = 1;

/// No description is longer.
const LONGEST: u64 = 1 << 20;

/// Whose features a store holds, and of what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct StoreDescription {
    format: u32,
    network: NetworkName,
    /// What the pictures are: whatever tells them from others.
    source: Value,
    /// Whether all of them are there.
    complete: bool,
}

/// A folder of features.
#[derive(Debug)]
pub struct FeatureStore {
    folder: PathBuf,
    description: StoreDescription,
    features: Vec<f32>,
    /// Of the samples that have a caption.
    scores: Vec<f64>,
}

impl FeatureStore {
    /// Whether a folder is one.
    pub fn is_at(folder: &Path) -> bool {
        folder.join(DESCRIPTION).is_file()
    }

    /// Begins a store, or goes on with one of the same network and source.
    pub fn open(folder: &Path, network: &NetworkName, source: Value) -> Result<Self, EvaluationError> {
        if Self::is_at(folder) {
            let store = Self::read(folder)?;
            let StoreDescription { network: found, source: of, .. } = &store.description;
            if found != network || *of != source {
                let detail = format!(
                    "it holds features of {of}, by {found}; these are to be of {source}, by {network}: remove it, or choose another \
                     folder"
                );
                return Err(EvaluationError::Store { folder: folder.to_owned(), detail });
            }
            return Ok(store);
        }
        shards::disk::create_folder(folder)?;
        let description = StoreDescription { format: FORMAT, network: network.clone(), source, complete: false };
        let store = Self { folder: folder.to_owned(), description, features: Vec::new(), scores: Vec::new() };
        store.describe()?;
        Ok(store)
    }

    /// Reads a store as it is.
    pub fn read(folder: &Path) -> Result<Self, EvaluationError> {
        let description = Self::describe_at(folder)?;
        let mut store = Self { folder: folder.to_owned(), description, features: Vec::new(), scores: Vec::new() };
        loop {
            let path = store.block(store.count());
            if !path.exists() {
                return Ok(store);
            }
            store.add(&path)?;
        }
    }

    fn describe_at(folder: &Path) -> Result<StoreDescription, EvaluationError> {
        let damaged = |detail: String| EvaluationError::Store { folder: folder.to_owned(), detail };
        let text = bytes(&folder.join(DESCRIPTION), LONGEST)?;
        let description: StoreDescription =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if description.format > FORMAT {
            let format = description.format;
            return Err(damaged(format!("it has format {format}, this version knows up to {FORMAT}")));
        }
        if description.network.dimensions == 0 {
            return Err(damaged("it says that features have no dimensions".to_owned()));
        }
        Ok(description)
    }

    /// What tells a store from others, without its features: network, source, whether it is complete.
    pub fn identity(folder: &Path) -> Result<Value, EvaluationError> {
        Ok(serde_json::to_value(Self::describe_at(folder)?).unwrap_or_default())
    }

    fn block(&self, first: u64) -> PathBuf {
        self.folder.join(format!("block-{first:08}.safetensors"))
    }

    /// Takes in a block's samples.
    fn add(&mut self, path: &Path) -> Result<(), EvaluationError> {
        let damaged = |detail: String| EvaluationError::Store { folder: path.to_owned(), detail };
        let content = bytes(path, u64::MAX)?;
        let file = SafeTensors::deserialize(&content).map_err(|error| damaged(error.to_string()))?;
        let features = file.tensor("features").map_err(|error| damaged(error.to_string()))?;
        let dimensions = self.description.network.dimensions;
        let count = match features.shape() {
            &[count, found] if found == dimensions && count > 0 && features.dtype() == Dtype::F32 => count,
            shape => return Err(damaged(format!("its features are {:?} of the shape {shape:?}", features.dtype()))),
        };
        let values: Vec<f32> =
            features.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        Features::new(&values, dimensions)?;
        if let Ok(scores) = file.tensor("scores") {
            if scores.dtype() != Dtype::F64 || !matches!(scores.shape(), &[scored] if scored <= count) {
                return Err(damaged(format!("its scores are {:?} of the shape {:?}", scores.dtype(), scores.shape())));
            }
            self.scores.extend(scores.data().as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes)));
        }
        self.features.extend(values);
        Ok(())
    }

    fn describe(&self) -> Result<(), EvaluationError> {
        let text = serde_json::to_vec_pretty(&self.description).unwrap_or_default();
        Ok(shards::disk::replace(&self.folder.join(DESCRIPTION), &text)?)
    }

    pub fn network(&self) -> &NetworkName {
        &self.description.network
    }

    /// Refuses features of another network than `network`: they cannot be compared with its own.
    pub fn check_network(&self, network: &NetworkName) -> Result<(), EvaluationError> {
        if self.network() == network {
            return Ok(());
        }
        let (folder, found) = (self.folder.display(), self.network());
        let mut detail = format!("features in {folder} are by {found}, those to compare by {network}");
        // They may be in either precision.
        if found.network == CLIP_FEATURES {
            detail += "; a name without a precision is of an earlier version, whose features must be made again";
        }
        Err(EvaluationError::Networks { detail })
    }

    pub fn source(&self) -> &Value {
        &self.description.source
    }

    pub fn is_complete(&self) -> bool {
        self.description.complete
    }

    /// Samples in it.
    pub fn count(&self) -> u64 {
        (self.features.len() / self.description.network.dimensions) as u64
    }

    /// Adds what was seen of the next pictures; they are there after a power failure.
    pub fn append(&mut self, seen: &Seen) -> Result<(), EvaluationError> {
        let dimensions = self.description.network.dimensions;
        let count = Features::new(&seen.features, dimensions)?.count();
        if count == 0 {
            return Ok(());
        }
        let little = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let features = little(&seen.features);
        let scores: Vec<u8> = seen.scores.iter().flat_map(|score| score.to_le_bytes()).collect();
        let path = self.block(self.count());
        let damaged = |error: safetensors::SafeTensorError| EvaluationError::Store {
            folder: path.clone(),
            detail: error.to_string(),
        };
        let mut tensors =
            vec![("features", TensorView::new(Dtype::F32, vec![count, dimensions], &features).map_err(damaged)?)];
        if !scores.is_empty() {
            tensors.push(("scores", TensorView::new(Dtype::F64, vec![seen.scores.len()], &scores).map_err(damaged)?));
        }
        shards::disk::replace(&path, &safetensors::serialize(tensors, None).map_err(damaged)?)?;
        self.features.extend_from_slice(&seen.features);
        self.scores.extend(&seen.scores);
        Ok(())
    }

    /// Says that all are there.
    pub fn complete(&mut self) -> Result<(), EvaluationError> {
        self.description.complete = true;
        self.describe()
    }

    pub fn features(&self) -> Result<Features<'_>, EvaluationError> {
        Features::new(&self.features, self.description.network.dimensions)
    }

    /// Their mean and covariance, which are kept: a reference is compared with many times.
    pub fn statistics(&self) -> Result<FeatureStatistics, EvaluationError> {
        let path = self.folder.join(STATISTICS);
        if path.exists() {
            let kept = FeatureStatistics::from_bytes(&bytes(&path, u64::MAX)?);
            // A file of fewer samples, or a damaged one, is made again.
            if let Some(kept) = kept.ok().filter(|kept| kept.count() == self.count()) {
                return Ok(kept);
            }
        }
        let statistics = FeatureStatistics::of(self.features()?);
        if self.is_complete() {
            shards::disk::replace(&path, &statistics.to_bytes()?)?;
        }
        Ok(statistics)
    }

    /// Whether samples are to have a CLIP score.
    pub fn is_scored(&self) -> bool {
        self.source().get(SCORED_BY).is_some()
    }

    /// A CLIP score of each sample that has a caption.
    pub fn scores(&self) -> &[f64] {
        &self.scores
    }
}

fn bytes(path: &Path, most: u64) -> Result<Vec<u8>, EvaluationError> {
    let failed = |source| EvaluationError::Io { action: "read", path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > most {
        let detail = format!("{length} bytes are more than such a file has");
        return Err(EvaluationError::Store { folder: path.to_owned(), detail });
    }
    std::fs::read(path).map_err(failed)
}
