//! One row's story through every stage.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use shards::reader::Shard;
use shards::sidecar::DataFile;
use shards::{ShardError, columns};

use crate::manifest::with_variant;
use crate::plan::{Plan, PlannedStage, is_shard};
use crate::stage::Cancel;

/// What a stage did with the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is in this file, at this row, with these values (the image is its size), and with what the stage says of how they came about.
    Kept { file: String, row: u64, values: Vec<(String, String)>, origin: Vec<(String, String)> },
    /// It was refused; the quarantine says why.
    Refused { reason: String, detail: String },
    /// Nothing of the stage has been made yet.
    NotMade,
    /// It is neither among the stage's rows nor among those it refused and kept.
    Absent,
    /// The stage's data are not rows with keys (an index, a checkpoint, pictures).
    NotRows,
}

/// A stage, and what it did with the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chapter {
    pub stage: String,
    pub kind: String,
    pub verdict: Verdict,
}

/// What each stage of the plan did with the row `key`. Reads the key column of what is committed, and keeps no copies of it;
/// stops early, with what it has, when cancelled.
pub fn explain(plan: &Plan, key: &str, cancel: &Cancel) -> Result<Vec<Chapter>, ShardError> {
    let mut story = Vec::new();
    for stage in &plan.stages {
        if cancel.is_cancelled() {
            break;
        }
        for variant in stage.variant_names() {
            let (name, kind) = (with_variant(&stage.name, variant.as_deref()), stage.kind.clone());
            story.push(Chapter { stage: name, kind, verdict: verdict(stage, variant.as_deref(), key)? });
        }
    }
    Ok(story)
}

fn verdict(stage: &PlannedStage, variant: Option<&str>, key: &str) -> Result<Verdict, ShardError> {
    if stage.committed().next().is_none() {
        return Ok(Verdict::NotMade);
    }
    let mut has_keys = false;
    let mut refused = None;
    for sidecar in stage.committed() {
        let is_meant = |file: &&DataFile| file.variant.as_deref() == variant && is_shard(&file.file);
        for file in sidecar.data.iter().filter(is_meant) {
            let found = look_at(stage, file, |shard| {
                let Some(row) = find(shard, key, &mut has_keys)? else { return Ok(None) };
                let names: Vec<&str> = shard.schema().fields().iter().map(|field| field.name().as_str()).collect();
                Ok(Some((row, values(&shard.rows_at(&[row], &names)?, shard)?)))
            })?;
            if let Some((row, values)) = found {
                let origin = stage.stage.origin(sidecar);
                return Ok(Verdict::Kept { file: file.file.clone(), row, values, origin });
            }
        }
        if let Some(file) = &sidecar.quarantine {
            let found = look_at(stage, file, |shard| {
                let Some(row) = find(shard, key, &mut has_keys)? else { return Ok(None) };
                let batch = shard.rows_at(&[row], &[columns::REASON, columns::ERROR_MESSAGE])?;
                let text = |column| shard.text(&batch, column).map(|texts| texts.value(0).to_owned());
                Ok(Some(Verdict::Refused { reason: text(columns::REASON)?, detail: text(columns::ERROR_MESSAGE)? }))
            })?;
            // A later try may have passed it.
            refused = found.or(refused);
        }
    }
    Ok(refused.unwrap_or(if has_keys { Verdict::Absent } else { Verdict::NotRows }))
}

/// What `look` finds in a committed shard. Of a workdir on a store, the copy that it looks at goes again: all shards together may
/// be more than there is room for here.
pub(crate) fn look_at<T>(
    stage: &PlannedStage,
    file: &DataFile,
    look: impl FnOnce(&Shard) -> Result<T, ShardError>,
) -> Result<T, ShardError> {
    let looked = stage.fetch(file).and_then(|path| look(&Shard::open(&path)?));
    stage.folder.workdir().let_go(&[stage.folder.name_of(&file.file)]);
    looked
}

/// The row of `key`. `has_keys` becomes true where the rows have keys.
fn find(shard: &Shard, key: &str, has_keys: &mut bool) -> Result<Option<u64>, ShardError> {
    let is_text = |field: &arrow::datatypes::Field| *field.data_type() == DataType::Utf8;
    if !shard.schema().field_with_name(columns::KEY).is_ok_and(is_text) {
        return Ok(None);
    }
    *has_keys = true;
    let mut before = 0;
    for batch in shard.batches(Some(&[columns::KEY]), 65_536)? {
        let batch = batch?;
        let keys = shard.text(&batch, columns::KEY)?;
        if let Some(row) = keys.iter().position(|found| found == Some(key)) {
            return Ok(Some(before + row as u64));
        }
        before += batch.num_rows() as u64;
    }
    Ok(None)
}

/// Names and values of the only row of `batch`, as people read them.
pub(crate) fn values(batch: &RecordBatch, shard: &Shard) -> Result<Vec<(String, String)>, ShardError> {
    let options = FormatOptions::default().with_null("null");
    let value = |array: &dyn Array| -> Result<String, ShardError> {
        if let Some(bytes) = array.as_binary_opt::<i32>() {
            return Ok(format!("{} bytes", bytes.value(0).len()));
        }
        let formatter = ArrayFormatter::try_new(array, &options).map_err(ShardError::arrow(shard.path()))?;
        Ok(formatter.value(0).to_string())
    };
    let schema = batch.schema();
    schema.fields().iter().zip(batch.columns()).map(|(f, a)| Ok((f.name().clone(), value(a)?))).collect()
}

/// Some of the rows that a stage refused and kept, by reason: (reason, key, detail), at most `each` of a reason.
pub fn refused(stage: &PlannedStage, each: usize) -> Result<Vec<[String; 3]>, ShardError> {
    let mut rows: Vec<[String; 3]> = Vec::new();
    let mut counts: std::collections::BTreeMap<String, usize> = std::collections::BTreeMap::new();
    for file in stage.committed().filter_map(|sidecar| sidecar.quarantine.as_ref()) {
        look_at(stage, file, |shard| {
            for batch in shard.batches(Some(&[columns::REASON, columns::KEY, columns::ERROR_MESSAGE]), 8192)? {
                let batch = batch?;
                let text = |column| shard.text(&batch, column);
                let (reasons, keys, details) =
                    (text(columns::REASON)?, text(columns::KEY)?, text(columns::ERROR_MESSAGE)?);
                for i in 0..batch.num_rows() {
                    let count = counts.entry(reasons.value(i).to_owned()).or_default();
                    *count += 1;
                    if *count <= each {
                        rows.push([reasons, keys, details].map(|column| column.value(i).to_owned()));
                    }
                }
            }
            Ok(())
        })?;
    }
    rows.sort();
    Ok(rows)
}
