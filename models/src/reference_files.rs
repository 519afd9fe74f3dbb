//! The files that the reference system leaves of one step of its training: `model_7s.pkl`, `model_ema_7s.pkl`, `optim_7s.pkl` and
//! `model_params_7s.json`.

use std::path::{Path, PathBuf};

use crate::ModelError;

/// Of one step, in one folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceFiles {
    pub folder: PathBuf,
    /// As the files' names have it: `7s`, say.
    pub step: String,
}

impl ReferenceFiles {
    /// Of the latest step that the folder has a `model_params` file of; `None` where it has none.
    pub fn latest(folder: &Path) -> Result<Option<Self>, ModelError> {
        let failed = |source| ModelError::Io { action: "list", path: folder.to_owned(), source };
        let mut latest: Option<Self> = None;
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            let step = name.strip_prefix("model_params_").and_then(|rest| rest.strip_suffix(".json"));
            let Some(step) = step else { continue };
            let files = Self { folder: folder.to_owned(), step: step.to_owned() };
            if latest.as_ref().is_none_or(|latest| files.number() >= latest.number()) {
                latest = Some(files);
            }
        }
        Ok(latest)
    }

    pub fn number(&self) -> u64 {
        step_of(&self.parameters())
    }

    fn path(&self, kind: &str, ending: &str) -> PathBuf {
        self.folder.join(format!("{kind}_{}.{ending}", self.step))
    }

    /// The weights: as trained, or their average.
    pub fn weights(&self, average: bool) -> PathBuf {
        self.path(if average { "model_ema" } else { "model" }, "pkl")
    }

    pub fn optimizer(&self) -> PathBuf {
        self.path("optim", "pkl")
    }

    pub fn parameters(&self) -> PathBuf {
        self.path("model_params", "json")
    }
}

/// The step at the end of a file's name, 0 where it says none.
pub fn step_of(path: &Path) -> u64 {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    stem.rsplit('_').next().unwrap_or_default().trim_end_matches('s').parse().unwrap_or(0)
}

/// Where the configuration of the weights at `path` lies: `model_ema_7s.pkl` has `model_params_7s.json` beside it; to other names
/// `.model_params.json` is added in place of their ending.
pub fn parameters_beside(path: &Path) -> PathBuf {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let name = match stem.strip_prefix("model_ema_").or_else(|| stem.strip_prefix("model_")) {
        Some(step) => format!("model_params_{step}.json"),
        None => format!("{stem}.model_params.json"),
    };
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_step_counts_whatever_is_before_it_in_the_name() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(ReferenceFiles::latest(folder.path()).unwrap(), None);
        for step in ["900s", "3e_1000s", "notes", "20s"] {
            std::fs::write(folder.path().join(format!("model_params_{step}.json")), "{}").unwrap();
        }
        let files = ReferenceFiles::latest(folder.path()).unwrap().unwrap();
        assert_eq!((files.step.as_str(), files.number()), ("3e_1000s", 1000));
        for average in [false, true] {
            assert_eq!(parameters_beside(&files.weights(average)), files.parameters());
        }
        assert_eq!(parameters_beside(Path::new("a/b.safetensors")), Path::new("a/b.model_params.json"));
    }
}
