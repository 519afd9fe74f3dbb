//! Whether what was committed is still what was committed.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use shards::ShardError;
use shards::digest::Digest;
use shards::reader::Shard;
use shards::sidecar::{DataFile, Sidecar};

use crate::plan::{Plan, PlannedStage};
use crate::stage::{Cancel, NAMES, Partitioning, StageError};

/// Something that is not as its record says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub stage: String,
    pub partition: String,
    /// What is wrong, with the file or the numbers.
    pub problem: String,
}

/// What was looked at, and what was found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    pub partitions: usize,
    pub files: u64,
    pub bytes: u64,
    /// In the order of stages and partitions; empty when all is well.
    pub findings: Vec<Finding>,
}

/// Reads every committed file of the plan's current partitions and compares digest, size and rows with the record, and the
/// rows of each stage with those of its inputs. `progress` hears the bytes read so far.
pub fn verify(plan: &Plan, cancel: &Cancel, progress: impl Fn(u64) + Sync) -> Result<Verified, StageError> {
    let work: Vec<(&PlannedStage, &Sidecar)> =
        plan.stages.iter().flat_map(|stage| stage.committed().map(move |sidecar| (stage, &**sidecar))).collect();
    let (files, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let findings = Mutex::new(Vec::new());
    let report = |stage: &PlannedStage, sidecar: &Sidecar, problem: String| {
        let finding = Finding { stage: stage.name.clone(), partition: sidecar.partition.clone(), problem };
        findings.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(finding);
    };
    work.par_iter().try_for_each(|(stage, sidecar)| {
        for file in sidecar.data.iter().chain(&sidecar.quarantine) {
            if cancel.is_cancelled() {
                return Err(StageError::Cancelled);
            }
            // What a store holds is looked at, not a copy of it; and all of it together may be more than there is room for here.
            let name = [stage.folder.name_of(&file.file)];
            plan.workdir.let_go(&name);
            let problem = match stage.fetch(file) {
                Ok(path) => file_problem(&path, file),
                Err(error) => Some(error.to_string()),
            };
            plan.workdir.let_go(&name);
            if let Some(problem) = problem {
                report(stage, sidecar, problem);
            }
            files.fetch_add(1, Ordering::Relaxed);
            progress(bytes.fetch_add(file.bytes, Ordering::Relaxed) + file.bytes);
        }
        let (rows_in, rows_out, dropped) = (sidecar.rows_in, sidecar.rows_out, sidecar.rows_dropped());
        if !stage.stage.law().holds(rows_in, rows_out, dropped, &sidecar.observed) {
            report(stage, sidecar, format!("{rows_in} rows in, but {rows_out} out and {dropped} dropped"));
        }
        Ok(())
    })?;
    for stage in &plan.stages {
        for (number, sidecar) in stage.partitions.iter().enumerate().filter_map(|(i, p)| Some((i, p.sidecar()?))) {
            if let Some(problem) = input_problem(plan, stage, number, sidecar) {
                report(stage, sidecar, problem);
            }
        }
    }
    let mut findings = findings.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let place = |finding: &Finding| plan.stages.iter().position(|stage| stage.name == finding.stage);
    findings.sort_by(|a, b| place(a).cmp(&place(b)).then_with(|| a.cmp(b)));
    Ok(Verified { partitions: work.len(), files: files.into_inner(), bytes: bytes.into_inner(), findings })
}

/// What is wrong with a file, if anything is.
fn file_problem(path: &Path, file: &DataFile) -> Option<String> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) => return Some(format!("{} cannot be read: {error}", path.display())),
    };
    if size != file.bytes {
        return Some(format!("{} has {size} bytes, its record says {}", path.display(), file.bytes));
    }
    match Digest::of_file(path) {
        Ok(digest) if digest == file.digest => {}
        Ok(_) => return Some(format!("{} was changed: its digest is not the recorded one", path.display())),
        Err(error) => return Some(in_words(path, &error)),
    }
    if crate::plan::is_rows(path) {
        return match Shard::open(path) {
            Ok(shard) if shard.rows() == file.rows => None,
            Ok(shard) => Some(format!("{} has {} rows, its record says {}", path.display(), shard.rows(), file.rows)),
            Err(error) => Some(in_words(path, &error)),
        };
    }
    None
}

fn in_words(path: &Path, error: &ShardError) -> String {
    format!("{} cannot be read: {error}", path.display())
}

/// Whether a row-wise partition took in as many rows as its inputs gave out.
fn input_problem(plan: &Plan, stage: &PlannedStage, number: usize, sidecar: &Sidecar) -> Option<String> {
    if !stage.stage.law().passes_rows_on() || stage.stage.partitioning() == Partitioning::Source {
        return None;
    }
    let inputs = plan.made_from(stage, Some(number))?.inputs;
    // How many rows are in files as they came is known only to who reads them.
    if inputs.iter().any(|input| input.sidecar.details.contains_key(NAMES)) {
        return None;
    }
    let given: u64 = inputs.iter().map(|input| input.sidecar.rows_out).sum();
    (given != sidecar.rows_in).then(|| format!("it took in {} rows, but its input gave out {given}", sidecar.rows_in))
}
