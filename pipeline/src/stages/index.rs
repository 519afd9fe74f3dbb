//! `index`: one table that says where each bucket's rows lie, and statistics about them.
//!
//! - in: all bucketed shards
//! - out: the bucket index (see [`shards::index`])
//! - stale when: any shard changed
//! - law: rows read
//!
//! Reads the bucket_size column by a projected scan (polars); no image is touched.

use std::path::Path;

use polars::prelude::{
    DataFrame, IntoLazy, LazyFrame, PlRefPath, PolarsResult, ScanArgsParquet, SortMultipleOptions, col, concat, len,
};
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::bucket::BucketSize;
use shards::columns;
use shards::digest::Digest;
use shards::index::Run;
use shards::sidecar::Section;

use crate::stage::{Law, Outcome, Partitioning, Stage, StageError, StageKind, Task, as_it_is};

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
struct Index {}

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "index",
        version: 1,
        about: "Says where each bucket's rows lie.",
        inputs: (1, 1),
        schemas: || vec![schema_for!(Index)],
        rehearse: as_it_is,
        build: |parameters| parameters.read::<Index>().map(|index| Box::new(index) as Box<dyn Stage>),
    }
}

impl Stage for Index {
    fn semantics(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn partitioning(&self) -> Partitioning {
        Partitioning::Whole
    }

    fn law(&self) -> Law {
        Law::Reads
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let mut runs = Vec::new();
        let mut frames = Vec::new();
        for input in task.inputs {
            for (file, path) in input.sidecar.data.iter().zip(input.files()) {
                task.check_cancelled()?;
                let frame = scan(&path).map_err(|error| unreadable(&path, &error))?;
                let shard = format!("../{}/{}", input.stage, input.sidecar.partition);
                let found = runs_of(&frame, &shard, file.digest).map_err(|error| unreadable(&path, error.as_ref()))?;
                task.tally.good(found.iter().map(|run| run.rows).sum());
                runs.extend(found);
                frames.push(frame.lazy());
            }
        }
        runs.sort_by(|a, b| (a.bucket, &a.shard, a.first_row).cmp(&(b.bucket, &b.shard, b.first_row)));
        let data = shards::index::write(&task.attempt.data(), &runs)?;
        let rows = runs.iter().map(|r| r.rows).sum();
        let section = statistics(frames, rows).map_err(StageError::failed)?;
        Ok(Outcome { data: vec![data], rows_in: rows, rows_out: rows, sections: vec![section], ..Outcome::default() })
    }
}

fn unreadable(path: &Path, error: &(impl std::fmt::Display + ?Sized)) -> StageError {
    StageError::failed(format!("{} cannot be indexed: {error}", path.display()))
}

fn scan(path: &Path) -> PolarsResult<DataFrame> {
    let path = PlRefPath::try_from_path(path)?;
    LazyFrame::scan_parquet(path, ScanArgsParquet::default())?.select([col(columns::BUCKET_SIZE)]).collect()
}

/// The runs of equal bucket sizes, in the order of the shard.
fn runs_of(
    frame: &DataFrame,
    shard: &str,
    digest: Digest,
) -> Result<Vec<Run>, Box<dyn std::error::Error + Send + Sync>> {
    let sizes = frame.column(columns::BUCKET_SIZE)?.str()?;
    let mut runs: Vec<Run> = Vec::new();
    let mut last: Option<&str> = None;
    for (row, size) in sizes.iter().enumerate() {
        let size = size.ok_or_else(|| format!("row {row} has no {}", columns::BUCKET_SIZE))?;
        match runs.last_mut() {
            Some(run) if last == Some(size) => run.rows += 1,
            _ => {
                let bucket: BucketSize = size.parse()?;
                runs.push(Run { bucket, shard: shard.to_owned(), digest, first_row: row as u64, rows: 1 });
            }
        }
        last = Some(size);
    }
    Ok(runs)
}

/// The buckets as a table, largest first.
fn statistics(frames: Vec<LazyFrame>, rows: u64) -> Result<Section, Box<dyn std::error::Error + Send + Sync>> {
    let header = ["bucket", "images", "share", "aspect ratio"].map(str::to_owned).to_vec();
    let title = "Buckets".to_owned();
    if frames.is_empty() {
        return Ok(Section::Table { title, header, rows: Vec::new() });
    }
    let descending = SortMultipleOptions::default().with_order_descending_multi([true, false]);
    let table = concat(frames, polars::prelude::UnionArgs::default())?
        .group_by([col(columns::BUCKET_SIZE)])
        .agg([len().alias("images")])
        .sort_by_exprs([col("images"), col(columns::BUCKET_SIZE)], descending)
        .collect()?;
    let (sizes, counts) = (table.column(columns::BUCKET_SIZE)?.str()?, table.column("images")?.u32()?);
    let body = (0..table.height()).map(|i| {
        let (size, count) = (sizes.get(i).unwrap_or_default(), counts.get(i).unwrap_or(0));
        let ratio = size.parse().map_or(0.0, BucketSize::aspect_ratio);
        let share = 100.0 * f64::from(count) / rows.max(1) as f64;
        vec![size.to_owned(), count.to_string(), format!("{share:.1} %"), format!("{ratio:.2}")]
    });
    Ok(Section::Table { title, header, rows: body.collect() })
}
