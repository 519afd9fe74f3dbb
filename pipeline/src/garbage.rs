//! What a workdir holds that the manifest no longer asks for.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;

use shards::ShardError;
use shards::lease::Runner;
use shards::sidecar::{Section, Sidecar};
use shards::storage::Workdir;

use crate::plan::{Plan, PlannedStage};
use crate::run::RunError;

/// Something that may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Garbage {
    pub stage: String,
    /// A file, or a folder (then with a slash at its end), relative to the workdir.
    pub name: String,
    pub bytes: u64,
    pub why: &'static str,
    /// The files that it comes to, in the order in which they may go.
    files: Vec<String>,
}

const EARLIER: &str = "made by an earlier configuration";
const ABANDONED: &str = "an unfinished training of an earlier configuration";
const LEFT: &str = "left by a process that ended early";
const NOT_NAMED: &str = "its stage is not in the manifest";

/// What the plan's workdir holds beyond the plan: partitions of earlier configurations, trainings that an earlier
/// configuration began, folders of stages that are gone. Records come before the data they name.
pub fn find(plan: &Plan) -> Result<Vec<Garbage>, ShardError> {
    let mut by_stage: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for entry in plan.workdir.list("stages", true)? {
        if let Some((stage, file)) = entry.name.split_once('/') {
            by_stage.entry(stage.to_owned()).or_default().insert(file.to_owned(), entry.bytes);
        }
    }
    let mut garbage = Vec::new();
    for stage in &plan.stages {
        if let Some(files) = by_stage.remove(&stage.name) {
            of_stage(plan, stage, &files, &mut garbage);
        }
    }
    for (stage, files) in by_stage {
        let (name, bytes) = (format!("stages/{stage}/"), files.values().sum());
        // Records first, so that a deletion that is cut short leaves nothing that looks committed and is not.
        let mut files: Vec<String> = files.into_keys().map(|file| format!("{name}{file}")).collect();
        files.sort_by_key(|file| !file.ends_with(".json"));
        garbage.push(Garbage { stage, name, bytes, why: NOT_NAMED, files });
    }
    Ok(garbage)
}

fn of_stage(plan: &Plan, stage: &PlannedStage, files: &BTreeMap<String, u64>, garbage: &mut Vec<Garbage>) {
    let surveys = stage.survey.as_ref().and_then(|survey| survey.sidecar());
    let current: Vec<&Sidecar> = stage.committed().chain(surveys).map(AsRef::as_ref).collect();
    let mut kept: HashSet<String> = current.iter().flat_map(|sidecar| named(sidecar)).collect();
    kept.extend(current.iter().map(|sidecar| sidecar.file_name()));
    // A training keeps its checkpoints in a folder named by its fingerprint, also while it is unfinished. Where the
    // fingerprint is not known yet, because the input will be made first, nothing is said of them.
    let fingerprints: Option<HashSet<String>> = (0..stage.partitions.len())
        .map(|number| plan.made_from(stage, Some(number)).map(|made| stage.fingerprint(&made.digests).short()))
        .collect();
    let mut added: HashSet<String> = HashSet::new();
    let mut add = |name: &str, why| {
        let inside = |file: &str| file == name || (name.ends_with('/') && file.starts_with(name));
        let from_there = files.range::<str, _>((Bound::Included(name), Bound::Unbounded));
        let found: Vec<(&String, &u64)> = from_there.take_while(|(file, _)| inside(file)).collect();
        if !found.is_empty() && added.insert(name.to_owned()) {
            let name = stage.folder.name_of(name);
            let bytes = found.iter().map(|(_, bytes)| **bytes).sum();
            let files = found.into_iter().map(|(file, _)| stage.folder.name_of(file)).collect();
            garbage.push(Garbage { stage: stage.name.clone(), name, bytes, why, files });
        }
    };
    for sidecar in stage.ledger.sidecars().filter(|sidecar| !kept.contains(&sidecar.file_name())) {
        add(&sidecar.file_name(), EARLIER);
        for file in named(sidecar).into_iter().filter(|file| !kept.contains(file)) {
            add(&file, EARLIER);
        }
    }
    let folders: HashSet<&str> = kept.iter().filter_map(|name| Some(name.split_once('/')?.0)).collect();
    for (file, _) in files.iter().filter(|(file, _)| !kept.contains(*file)) {
        match file.split_once('/') {
            Some((folder, _)) if folder.starts_with("run-") => {
                let folder = format!("{folder}/");
                let begun = folder.trim_start_matches("run-").trim_end_matches('/');
                if !kept.contains(&folder) && fingerprints.as_ref().is_some_and(|current| !current.contains(begun)) {
                    add(&folder, ABANDONED);
                }
            }
            // What a shard was abandoned with, in the folder of the present configuration, is written over by the next try.
            Some((folder, _)) if folder.starts_with("webdataset-") && !folders.contains(folder) => add(file, EARLIER),
            // Parts of files that a fetch would go on with, too.
            Some(("quarantine" | "lease" | "partial", _)) => add(file, LEFT),
            // Lists of rows to try again belong to the partitions that refused them.
            Some(("retry", _)) if !stage.retries.iter().any(|list| list.has(file)) => add(file, EARLIER),
            None if file.starts_with("part-") && !file.ends_with(".json") => add(file, LEFT),
            _ => {}
        }
    }
}

/// Everything that a record names, relative to the stage's folder. Checkpoints lie in a folder of their training.
fn named(sidecar: &Sidecar) -> Vec<String> {
    let pictures = sidecar.sections.iter().filter_map(|section| match section {
        Section::Picture { file, .. } => Some(file.clone()),
        _ => None,
    });
    let data = sidecar.data.iter().chain(&sidecar.quarantine).map(|file| match file.file.split_once('/') {
        Some((folder, _)) if folder.starts_with("run-") => format!("{folder}/"),
        _ => file.file.clone(),
    });
    data.chain(pictures).collect()
}

/// Joins a workdir from which something is to be deleted, before the plan is made: what others were about to commit would be taken for
/// left. Refused while anybody is at work there, as far as the storage's own clock says: by this machine's all of them may seem dead.
pub fn join_alone(workdir: &Workdir) -> Result<Runner, RunError> {
    let runner = Runner::join(workdir)?;
    check_alone(workdir, &runner)?;
    Ok(runner)
}

fn check_alone(workdir: &Workdir, runner: &Runner) -> Result<(), RunError> {
    let others = runner.others_now()?;
    if others.is_empty() {
        return Ok(());
    }
    let holders: Vec<String> = others.values().map(ToString::to_string).collect();
    Err(RunError::Busy { workdir: workdir.to_string(), holders: holders.join(", ") })
}

/// Deletes what [`find`] found, but for what has been committed since the plan was made; returns what went. `runner` is that of
/// [`join_alone`]; refused while anybody else is at work on the workdir.
pub fn delete(plan: &Plan, mut garbage: Vec<Garbage>, runner: &Runner) -> Result<Vec<Garbage>, RunError> {
    // In this order: whoever has left by now has left records of what it committed, and what others will write was not found.
    check_alone(&plan.workdir, runner)?;
    for stage in &plan.stages {
        let named = named_since(stage, &garbage)?;
        garbage.retain(|found| !named.contains(&found.name) && !found.files.iter().any(|file| named.contains(file)));
    }
    for file in garbage.iter().flat_map(|garbage| &garbage.files) {
        plan.workdir.remove(file)?;
    }
    // Folders that are empty now, on a local disk.
    for folder in garbage.iter().filter(|garbage| garbage.name.ends_with('/')) {
        let path = plan.workdir.path(&folder.name);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).map_err(ShardError::io("remove", &path))?;
        }
    }
    Ok(garbage)
}

/// What is named, within the workdir, by records of a stage that are not to go and were made since the plan was: new ones, and (of
/// partitions of which there is something left) those that have taken the place of one that the plan knows.
fn named_since(stage: &PlannedStage, garbage: &[Garbage]) -> Result<HashSet<String>, ShardError> {
    let of_stage = || garbage.iter().filter(|garbage| garbage.stage == stage.name);
    let to_go: HashSet<&str> = of_stage().flat_map(|garbage| &garbage.files).map(String::as_str).collect();
    if to_go.is_empty() {
        return Ok(HashSet::new());
    }
    let left: HashSet<&str> =
        of_stage().filter(|garbage| garbage.why == LEFT).map(|garbage| partition_of(&garbage.name)).collect();
    let known: HashSet<String> = stage.ledger.sidecars().map(Sidecar::file_name).collect();
    let mut records = stage.folder.listing()?.sidecars;
    records.retain(|record| {
        let is_unknown = !known.contains(record) || left.contains(partition_of(record));
        is_unknown && !to_go.contains(stage.folder.name_of(record).as_str())
    });
    let records = stage.folder.read_all(&records)?;
    let files = records.iter().flat_map(|(_, record)| named(record));
    Ok(files.map(|file| stage.folder.name_of(&file)).collect())
}

/// The partition in the name of a file, in whichever folder.
fn partition_of(name: &str) -> &str {
    let file = name.rsplit('/').next().unwrap_or_default();
    file.split('.').next().unwrap_or_default()
}
