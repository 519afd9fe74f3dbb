//! `index`: one table that says where each bucket's rows lie, and statistics about them.
//!
//! - in: all bucketed shards; or parquet files from outside that have a column bucket_size: `files`, or those that a stage fetched
//! - out: the bucket index (see [`shards::index`])
//! - stale when: any shard or file changed
//! - law: rows read
//!
//! Reads the bucket_size column by a projected scan (polars). Of files from outside, a few images' headers are compared with it;
//! no other image is touched.

mod outside;
mod scan;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use serde_json::{Value, json};
use shards::bucket::BucketSize;
use shards::digest::{Digest, DigestBuilder};
use shards::index::Part;
use shards::sidecar::Section;

use crate::manifest::{Diagnostic, OneOrMore, Parameters};
use crate::stage::{
    FILES as FETCHED, Input, Law, NAMES, Outcome, Partitioning, Source, Stage, StageError, StageKind, Task, as_it_is,
};
use crate::stages::outside::{FileKind, OutsideFile, Places, PlannedFiles};

const FILES: FileKind = FileKind { key: "files", one: "parquet file", endings: &[".parquet"] };

#[derive(Clone, Debug, Deserialize, JsonSchema)]
struct Parameter {
    /// In place of `from`: a folder of parquet files that have a column bucket_size, a file, or a pattern such as
    /// "buckets/*.parquet"; or several.
    #[serde(default)]
    files: Option<OneOrMore>,
}

/// Of shards, or of files from outside.
struct Index {
    places: Option<Places>,
    planned: PlannedFiles,
}

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "index",
        version: 2,
        about: "Says where each bucket's rows lie.",
        inputs: (0, 1),
        schemas: || vec![schema_for!(Parameter)],
        rehearse: as_it_is,
        build: |parameters| build(parameters).map(|index| Box::new(index) as Box<dyn Stage>),
    }
}

fn build(parameters: &Parameters) -> Result<Index, Diagnostic> {
    let Parameter { files } = parameters.read()?;
    let places = files.map(|files| Places::read(files.as_slice(), &FILES)).transpose();
    let places = places.map_err(|fault| parameters.fault("files", fault))?;
    Ok(Index { places, planned: PlannedFiles::default() })
}

/// A file to be indexed.
struct Indexed {
    path: PathBuf,
    /// As the index names it.
    shard: String,
    digest: Digest,
}

impl Stage for Index {
    fn semantics(&self) -> Value {
        match &self.places {
            // The index names files by where they lie.
            Some(places) => json!({ "files": places.absolute() }),
            None => json!({}),
        }
    }

    fn partitioning(&self) -> Partitioning {
        if self.places.is_some() { Partitioning::Source } else { Partitioning::Whole }
    }

    fn law(&self) -> Law {
        Law::Reads
    }

    fn reads(&self, format: &str) -> bool {
        format == FETCHED
    }

    fn sources(&self, folder: &Path) -> Result<Vec<Source>, StageError> {
        let Some(places) = &self.places else { return Ok(Vec::new()) };
        let files: Vec<OutsideFile> = places.files(folder, &[])?.into_values().collect();
        let mut digest = DigestBuilder::new();
        for file in &files {
            digest.add(&file.name);
            digest.add(file.digest.to_string());
        }
        let rows = files.iter().map(OutsideFile::parquet_rows).sum();
        let name = format!("{} files", files.len());
        self.planned.set(files);
        Ok(vec![Source { name, digest: digest.finish(), rows }])
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let planned = if self.places.is_some() { self.planned.all(task)? } else { Arc::default() };
        planned.iter().try_for_each(OutsideFile::expect_unchanged)?;
        let files = if self.places.is_some() { of_places(&planned)? } else { of_stages(task)? };
        let parts = files.par_iter().map(|file| {
            task.check_cancelled()?;
            let parts = scan::parts(file)?;
            task.tally.good(parts.iter().map(|part| part.runs.rows()).sum());
            Ok(parts)
        });
        let mut parts = parts.collect::<Result<Vec<_>, StageError>>()?.concat();
        planned.iter().try_for_each(OutsideFile::expect_unchanged)?;
        parts.sort_by(|a, b| {
            (a.bucket, &a.shard, a.digest.to_string()).cmp(&(b.bucket, &b.shard, b.digest.to_string()))
        });
        let data = shards::index::write(&task.attempt.data(), &parts)?;
        let rows = parts.iter().map(|part| part.runs.rows()).sum();
        let sections = vec![statistics(&parts, rows)];
        Ok(Outcome { data: vec![data], rows_in: rows, rows_out: rows, sections, ..Outcome::default() })
    }
}

/// Files from outside.
fn of_places(planned: &[OutsideFile]) -> Result<Vec<Indexed>, StageError> {
    let files: Vec<Indexed> = planned.iter().filter_map(of_outside).collect();
    // What others say of their images may not be so.
    outside::compare_with_images(&files)?;
    Ok(files)
}

/// The files of the stages it reads from.
fn of_stages(task: &Task) -> Result<Vec<Indexed>, StageError> {
    let (fetched, ours): (Vec<&Input>, Vec<&Input>) =
        task.inputs.iter().partition(|input| input.sidecar.details.contains_key(NAMES));
    let mut files = of_inputs(&fetched);
    // What others say of their images may not be so.
    outside::compare_with_images(&files)?;
    files.extend(of_inputs(&ours));
    match task.inputs.first() {
        Some(input) if files.is_empty() => Err(StageError::failed(format!(
            "none of the files of stage.{} ends in .parquet, which is what buckets come in",
            input.stage
        ))),
        _ => Ok(files),
    }
}

fn of_outside(file: &OutsideFile) -> Option<Indexed> {
    let path = std::path::absolute(file.path.as_ref()?).ok()?;
    let shard = path.to_string_lossy().into_owned();
    Some(Indexed { path, shard, digest: file.digest })
}

/// The shards among their files: all of a stage that makes some, and of others those that are called so.
fn of_inputs(inputs: &[&Input]) -> Vec<Indexed> {
    let mut files = Vec::new();
    for input in inputs {
        let shard = format!("../{}/{}", input.stage, input.sidecar.partition);
        for (file, (name, path)) in input.sidecar.data.iter().zip(input.named_files()) {
            if FILES.is_one(&name) {
                files.push(Indexed { path, shard: shard.clone(), digest: file.digest });
            }
        }
    }
    files
}

/// The buckets as a table, largest first.
fn statistics(parts: &[Part], rows: u64) -> Section {
    let mut counts: BTreeMap<BucketSize, u64> = BTreeMap::new();
    for part in parts {
        *counts.entry(part.bucket).or_default() += part.runs.rows();
    }
    let mut counts: Vec<(BucketSize, u64)> = counts.into_iter().collect();
    counts.sort_by_key(|(size, count)| (std::cmp::Reverse(*count), *size));
    let body = counts.into_iter().map(|(size, count)| {
        let share = 100.0 * count as f64 / rows.max(1) as f64;
        vec![size.to_string(), count.to_string(), format!("{share:.1} %"), format!("{:.2}", size.aspect_ratio())]
    });
    let header = ["bucket", "images", "share", "aspect ratio"].map(str::to_owned).to_vec();
    Section::Table { title: "Buckets".to_owned(), header, rows: body.collect() }
}
