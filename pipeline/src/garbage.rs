//! What a workdir holds that the manifest no longer asks for.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use shards::ShardError;
use shards::lease::Lease;
use shards::sidecar::{Section, Sidecar};

use crate::plan::{Plan, PlannedStage, fingerprint};
use crate::run::RunError;

/// Something that may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Garbage {
    pub stage: String,
    /// A file or a folder.
    pub path: PathBuf,
    pub bytes: u64,
    pub why: &'static str,
}

const EARLIER: &str = "made by an earlier configuration";
const ABANDONED: &str = "an unfinished training of an earlier configuration";
const NOT_NAMED: &str = "its stage is not in the manifest";

/// What the plan's workdir holds beyond the plan: partitions of earlier configurations, trainings that an earlier
/// configuration began, folders of stages that are gone. Records come before the data they name.
pub fn find(plan: &Plan) -> Result<Vec<Garbage>, ShardError> {
    let mut garbage = Vec::new();
    for stage in &plan.stages {
        of_stage(plan, stage, &mut garbage)?;
    }
    let root = plan.workdir.join("stages");
    for name in listing(&root)? {
        if !plan.stages.iter().any(|stage| stage.name == name) {
            let path = root.join(&name);
            garbage.push(Garbage { bytes: size(&path), stage: name, path, why: NOT_NAMED });
        }
    }
    Ok(garbage)
}

fn of_stage(plan: &Plan, stage: &PlannedStage, garbage: &mut Vec<Garbage>) -> Result<(), ShardError> {
    let folder = stage.folder.path();
    let mut add = |path: PathBuf, why| {
        if path.exists() && !garbage.iter().any(|g| g.path == path) {
            garbage.push(Garbage { stage: stage.name.clone(), bytes: size(&path), path, why });
        }
    };
    let current: HashSet<String> = stage.committed().map(|sidecar| sidecar.file_name()).collect();
    let kept: HashSet<String> = stage.committed().flat_map(|sidecar| files(sidecar)).collect();
    for sidecar in stage.ledger.sidecars().filter(|sidecar| !current.contains(&sidecar.file_name())) {
        add(folder.join(sidecar.file_name()), EARLIER);
        for file in files(sidecar).into_iter().filter(|file| !kept.contains(file)) {
            add(folder.join(file), EARLIER);
        }
    }
    // A training keeps its checkpoints in a folder named by its fingerprint, also while it is unfinished. Where the
    // fingerprint is not known yet, because the input will be made first, nothing is said of them.
    let mut expected = HashSet::new();
    for number in 0..stage.partitions.len() {
        let Some((_, digests)) = plan.inputs_of(stage, number) else { return Ok(()) };
        expected.insert(format!("run-{}", fingerprint(&stage.kind, &stage.semantics, &digests).short()));
    }
    for name in listing(folder)? {
        if name.starts_with("run-") && !expected.contains(&name) {
            add(folder.join(name), ABANDONED);
        }
    }
    Ok(())
}

/// Everything that a record names, relative to the stage's folder. Checkpoints lie in a folder of their training.
fn files(sidecar: &Sidecar) -> Vec<String> {
    let pictures = sidecar.sections.iter().filter_map(|section| match section {
        Section::Picture { file, .. } => Some(file.clone()),
        _ => None,
    });
    let data = sidecar.data.iter().chain(&sidecar.quarantine).map(|file| match file.file.split_once('/') {
        Some((folder, _)) if folder.starts_with("run-") => folder.to_owned(),
        _ => file.file.clone(),
    });
    data.chain(pictures).collect()
}

/// Deletes what [`find`] found; holds the workdir's lease meanwhile. A record goes before its data, so that a deletion that is
/// cut short leaves nothing that looks committed and is not.
pub fn delete(plan: &Plan, garbage: &[Garbage]) -> Result<(), RunError> {
    let lease = Lease::acquire(&plan.workdir, "run")?;
    for Garbage { path, .. } in garbage {
        if lease.is_lost() {
            return Err(RunError::LeaseLost { workdir: plan.workdir.display().to_string() });
        }
        let gone = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        gone.map_err(ShardError::io("remove", path))?;
    }
    Ok(())
}

fn listing(folder: &Path) -> Result<Vec<String>, ShardError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ShardError::io("list", folder)(error)),
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<String> = names.collect::<Result<_, _>>().map_err(ShardError::io("list", folder))?;
    names.sort_unstable();
    Ok(names)
}

/// Bytes of a file, or of everything below a folder; what cannot be read counts nothing.
fn size(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    if !metadata.is_dir() {
        return metadata.len();
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| size(&entry.path())).sum()
}
