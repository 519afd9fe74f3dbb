//! The folder that a training run leaves.
//!
//! ```text
//! run/
//!     latest                      the name of the newest checkpoint
//!     step-000000950/
//!         model.safetensors       parameters as trained
//!         ema.safetensors         their moving average: what to sample with
//!         optimizer.safetensors   moments, by parameter name
//!         state.json              what is needed to use it and to go on
//! ```
//!
//! A checkpoint appears under its name only when it is complete and durable.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shards::digest::Digest;
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::latents::Latents;
use crate::mmdit::{Mmdit, MmditConfig};
use crate::parameters::ParameterSet;
use crate::text::TextEncoding;
use crate::weights::{self, Weights};

/// The format this version writes; newer ones are refused.
pub const FORMAT: u32 = 1;
/// File of everything but the tensors.
pub const STATE: &str = "state.json";
/// File of a run's folder that names its newest checkpoint.
pub const LATEST: &str = "latest";

/// File of the parameters as trained.
pub const MODEL: &str = "model.safetensors";
/// File of the parameters' moving average.
pub const EMA: &str = "ema.safetensors";
/// File of the optimiser's moments.
pub const OPTIMIZER: &str = "optimizer.safetensors";

/// Everything but the tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckpointState {
    pub format: u32,
    /// Optimiser updates done.
    pub step: u64,
    pub model: MmditConfig,
    pub latents: Latents,
    pub text: TextEncoding,
    /// Longest side of the training images, in pixels.
    pub max_resolution: u32,
    /// The trainer's own state: its configuration, seed and position in the data.
    pub training: serde_json::Value,
    /// Digest of the bucket index that it was trained from; earlier versions did not write it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Digest>,
    /// Identities of `latents` and `text`, by these names: folders of the same contents are the same models, wherever they lie. Earlier
    /// versions did not write it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoders: Option<serde_json::Value>,
    /// Version of the program that wrote it.
    pub version: String,
}

/// A checkpoint on disk.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub folder: PathBuf,
    pub state: CheckpointState,
}

/// The name of a step's folder.
pub fn folder_name(step: u64) -> String {
    format!("step-{step:09}")
}

/// The step whose folder has this name.
pub fn step_of_folder(name: &str) -> Option<u64> {
    name.strip_prefix("step-").filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

impl Checkpoint {
    /// Whether `path` is a checkpoint, or a run's folder that has one.
    pub fn is_at(path: &Path) -> bool {
        path.join(STATE).exists() || path.join(LATEST).exists()
    }

    /// Opens `path`: a checkpoint, or a run's folder, whose latest checkpoint is meant.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let folder =
            if path.join(STATE).exists() { path.to_owned() } else { path.join(folder_name(Self::read_latest(path)?)) };
        let file = folder.join(STATE);
        let bytes = fs::read(&file).map_err(ModelError::io("read", &file))?;
        let damaged = |detail: String| ModelError::Record { path: file.clone(), what: "checkpoint state", detail };
        let state: CheckpointState = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if state.format > FORMAT {
            return Err(damaged(format!("it has format {}, this version knows up to {FORMAT}", state.format)));
        }
        state.model.validate()?;
        Ok(Self { folder, state })
    }

    /// The step of a run's newest checkpoint, or `None` when it has none yet.
    pub fn latest_step(run: &Path) -> Result<Option<u64>, ModelError> {
        run.join(LATEST).exists().then(|| Self::read_latest(run)).transpose()
    }

    fn read_latest(run: &Path) -> Result<u64, ModelError> {
        let file = run.join(LATEST);
        let name = fs::read_to_string(&file).map_err(|source| ModelError::Io {
            action: "find a checkpoint (state.json, or latest) in",
            path: run.to_owned(),
            source,
        })?;
        let name = name.trim();
        // The file is data: it may name a sibling and nothing else.
        step_of_folder(name).ok_or_else(|| {
            let detail = format!("it names `{name}`, not a step-… folder beside it");
            ModelError::Record { path: file, what: "checkpoint pointer", detail }
        })
    }

    /// Writes a checkpoint into `run` and points `latest` at it. `files` are pairs of file name and tensors. An existing
    /// checkpoint of the same step is replaced.
    pub fn write(
        run: &Path,
        state: &CheckpointState,
        files: &[(&str, Vec<(String, Tensor)>)],
    ) -> Result<Self, ModelError> {
        let name = folder_name(state.step);
        let folder = run.join(&name);
        let staged = run.join(format!(".{name}"));
        shards::disk::create_folder(run)?;
        for stale in [&staged, &folder] {
            if stale.exists() {
                fs::remove_dir_all(stale).map_err(ModelError::io("remove", stale))?;
            }
        }
        if let Err(error) = Self::stage(&staged, state, files) {
            // The room may be what is missing. That this fails, too, is not the error to tell.
            let _ = fs::remove_dir_all(&staged);
            return Err(error);
        }
        fs::rename(&staged, &folder).map_err(ModelError::io("rename", &staged))?;
        shards::disk::sync_parent(&folder)?;
        shards::disk::replace(&run.join(LATEST), format!("{name}\n").as_bytes())?;
        Ok(Self { folder, state: state.clone() })
    }

    fn stage(
        staged: &Path,
        state: &CheckpointState,
        files: &[(&str, Vec<(String, Tensor)>)],
    ) -> Result<(), ModelError> {
        fs::create_dir(staged).map_err(ModelError::io("create the folder", staged))?;
        for (file, tensors) in files {
            weights::write(&staged.join(file), tensors)?;
        }
        let file = staged.join(STATE);
        let bytes = serde_json::to_vec_pretty(state).map_err(|e| ModelError::Record {
            path: file.clone(),
            what: "checkpoint state",
            detail: e.to_string(),
        })?;
        Ok(shards::disk::replace(&file, &bytes)?)
    }

    /// The parameters in one of the checkpoint's files: [`EMA`] to sample, [`MODEL`] as trained.
    pub fn parameters(&self, file: &str, device: Device) -> Result<ParameterSet, ModelError> {
        self.state.parameters(&self.folder.join(file), device)
    }
}

impl CheckpointState {
    /// The model with the parameters in a file, computing in `kind`.
    pub fn load(&self, file: &Path, device: Device, kind: Kind) -> Result<Mmdit, ModelError> {
        Ok(Mmdit::over(&self.model, &self.parameters(file, device)?.computing_in(kind)))
    }

    fn parameters(&self, file: &Path, device: Device) -> Result<ParameterSet, ModelError> {
        let bytes = fs::metadata(file).map_err(ModelError::io("read", file))?.len();
        // Before memory is spent on what the description claims: no element takes less than a byte.
        let elements = Mmdit::elements(&self.model);
        if u64::try_from(elements).unwrap_or(u64::MAX) > bytes {
            let detail =
                format!("it has {bytes} bytes, too few for the {elements} elements that its description claims");
            return Err(ModelError::Record { path: file.to_owned(), what: "file of weights", detail });
        }
        let set = Mmdit::allocate(&self.model, device);
        Mmdit::load(Weights::open(file)?, &set)?;
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmdit::MmditVariant;

    #[test]
    fn a_state_that_claims_too_much_is_refused_before_memory_is_spent() {
        let run = tempfile::tempdir().unwrap();
        let model = MmditConfig {
            channels: 12,
            patch_size: 2,
            width: 8,
            blocks: 1,
            heads: 2,
            hidden: 16,
            text_streams: 1,
            text_width: 4,
            pooled_width: 4,
            zero_gates: true,
            variant: MmditVariant::default(),
        };
        let state = |model: &MmditConfig| CheckpointState {
            format: FORMAT,
            step: 3,
            model: model.clone(),
            latents: Latents::Pixels,
            text: TextEncoding::Hash,
            max_resolution: 32,
            training: serde_json::Value::Null,
            index: None,
            encoders: None,
            version: "test".into(),
        };
        let set = Mmdit::initialise(&model, 0, Device::Cpu);
        let checkpoint = Checkpoint::write(run.path(), &state(&model), &[(EMA, set.state_dict())]).unwrap();
        assert_eq!(Checkpoint::open(run.path()).unwrap().parameters(EMA, Device::Cpu).unwrap().flat(), set.flat());

        let greedy = state(&MmditConfig { width: 1 << 16, hidden: 1 << 16, blocks: 1000, ..model });
        fs::write(checkpoint.folder.join(STATE), serde_json::to_vec(&greedy).unwrap()).unwrap();
        let error = Checkpoint::open(run.path()).unwrap().parameters(EMA, Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("too few for"), "{error}");
        fs::write(run.path().join(LATEST), "../../etc").unwrap();
        assert!(Checkpoint::open(run.path()).is_err());
    }
}
