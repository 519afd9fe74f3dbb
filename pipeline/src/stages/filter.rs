//! `filter`: keeps the rows that meet all conditions.
//!
//! - in: shards with key, image, caption, url, width, height and any other column
//! - out: the same columns, rows in the same order; texts of the columns in `clean` without openings that say nothing
//! - stale when: a condition or its input changed
//! - law: in = out + Σ dropped (`below_min_side`, `short_caption`, `where`)
//!
//! `where` is a DataFusion SQL condition over all columns but the image, which is never read for it.

use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch, StringArray, UInt32Array};
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::reader::Shard;
use shards::writer::ShardWriter;
use shards::{ShardError, columns};

use crate::condition;
use crate::quarantine::{BadRow, Quarantine};
use crate::stage::{Law, Outcome, Partitioning, Stage, StageError, StageKind, Task, as_it_is};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Filter {
    /// At least one side must have this many pixels [0].
    #[serde(default)]
    min_side: u32,
    /// Shortest caption, in letters [0].
    #[serde(default)]
    min_caption: u32,
    /// Columns of captions that lose what says nothing of the picture ("The image shows …") at their start, and begin with a
    /// capital, before anything is judged [none].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    clean: Vec<String>,
    /// An SQL condition over the columns, such as "width < 4 * height".
    #[serde(default, rename = "where")]
    condition: Option<String>,
}

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "filter",
        version: 1,
        about: "Keeps the rows that meet all conditions.",
        inputs: (1, 1),
        schemas: || vec![schema_for!(Filter)],
        rehearse: as_it_is,
        build: |parameters| {
            let filter: Filter = parameters.read()?;
            if let Some(condition) = &filter.condition
                && let Err(reason) = condition::check_syntax(condition)
            {
                return Err(parameters.fault("where", format!("where is not an SQL condition: {reason}")));
            }
            Ok(Box::new(filter))
        },
    }
}

impl Stage for Filter {
    fn semantics(&self) -> Value {
        let mut semantics = serde_json::to_value(self).unwrap_or_default();
        // Where nothing is cleaned, it does not matter how.
        if !self.clean.is_empty() {
            semantics["cleaning"] = captions::VERSION.into();
        }
        semantics
    }

    fn partitioning(&self) -> Partitioning {
        Partitioning::EachInput
    }

    fn law(&self) -> Law {
        Law::RowWise
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let mut outcome = Outcome::default();
        let mut quarantine = Quarantine::new(task.on_bad_row, task.stage, task.tally);
        let path = task.attempt.data();
        let mut writer: Option<ShardWriter> = None;
        for file in task.files() {
            let shard = Shard::open(&file)?;
            if writer.is_none() {
                writer = Some(ShardWriter::create(&path, shard.schema())?);
            }
            let (keep, cleaned) = self.judge(&shard, task, &mut quarantine)?;
            outcome.rows_in += keep.len() as u64;
            if cleaned > 0 {
                *outcome.observed.entry("captions cleaned".to_owned()).or_default() += cleaned;
            }
            let mut start = 0;
            for batch in shard.batches(None, 256)? {
                task.check_cancelled()?;
                let (batch, _) = self.cleaned(&shard, batch?)?;
                let mask = keep.slice(start, batch.num_rows());
                start += batch.num_rows();
                let kept = arrow::compute::filter_record_batch(&batch, &mask).map_err(ShardError::arrow(&file))?;
                task.tally.good(kept.num_rows() as u64);
                if let Some(writer) = &mut writer {
                    writer.write(&kept)?;
                }
            }
        }
        if let Some(writer) = writer {
            outcome.data.push(writer.finish()?);
        }
        outcome.rows_out = outcome.data.iter().map(|f| f.rows).sum();
        (outcome.dropped, outcome.quarantine) = quarantine.finish(&task.attempt.quarantine())?;
        Ok(outcome)
    }
}

impl Filter {
    /// A batch with clean captions, and how many there are that were not.
    fn cleaned(&self, shard: &Shard, batch: RecordBatch) -> Result<(RecordBatch, u64), StageError> {
        if self.clean.is_empty() {
            return Ok((batch, 0));
        }
        let mut arrays = batch.columns().to_vec();
        let mut changed = 0;
        for name in &self.clean {
            let texts = shard.text(&batch, name)?;
            let clean: StringArray = texts.iter().map(|text| Some(captions::tidy(text?))).collect();
            changed += texts.iter().zip(clean.iter()).filter(|(before, after)| before != after).count() as u64;
            if let Some((at, _)) = batch.schema_ref().column_with_name(name)
                && let Some(array) = arrays.get_mut(at)
            {
                *array = Arc::new(clean);
            }
        }
        let batch = RecordBatch::try_new(batch.schema(), arrays).map_err(ShardError::arrow(shard.path()))?;
        Ok((batch, changed))
    }

    /// Which rows stay, and how many captions were cleaned. Reads everything but the image.
    fn judge(
        &self,
        shard: &Shard,
        task: &Task,
        quarantine: &mut Quarantine,
    ) -> Result<(BooleanArray, u64), StageError> {
        let names: Vec<&str> =
            shard.schema().fields().iter().map(|f| f.name().as_str()).filter(|n| *n != columns::IMAGE).collect();
        let (mut batches, mut cleaned) = (Vec::new(), 0);
        for batch in shard.batches(Some(&names), 65_536)? {
            let (batch, changed) = self.cleaned(shard, batch?)?;
            batches.push(batch);
            cleaned += changed;
        }
        let meets = self.meets_condition(shard, &batches)?;
        let mut keep = Vec::with_capacity(meets.len());
        for batch in &batches {
            task.check_cancelled()?;
            let text = |column| shard.text(batch, column);
            let (keys, captions, urls) = (text(columns::KEY)?, text(columns::CAPTION)?, text(columns::URL)?);
            let widths: &UInt32Array = shard.typed(batch, columns::WIDTH, "uint32")?;
            let heights: &UInt32Array = shard.typed(batch, columns::HEIGHT, "uint32")?;
            for i in 0..batch.num_rows() {
                let (width, height, caption) = (widths.value(i), heights.value(i), value(captions, i));
                let letters = caption.chars().count();
                let refused = if width.max(height) < self.min_side {
                    Some(("below_min_side", format!("{width}x{height}, both sides below {}", self.min_side)))
                } else if letters < self.min_caption as usize {
                    Some(("short_caption", format!("{letters} letters, fewer than {}", self.min_caption)))
                } else if !meets.get(keep.len()).copied().unwrap_or(false) {
                    Some(("where", self.condition.clone().unwrap_or_default()))
                } else {
                    None
                };
                keep.push(refused.is_none());
                if let Some((reason, detail)) = refused {
                    let (key, url, caption) = (value(keys, i), value(urls, i), caption);
                    quarantine.refuse(BadRow { key, url, caption, reason, status: "filtered", detail })?;
                }
            }
        }
        Ok((BooleanArray::from(keep), cleaned))
    }

    fn meets_condition(&self, shard: &Shard, batches: &[RecordBatch]) -> Result<Vec<bool>, StageError> {
        let rows = batches.iter().map(RecordBatch::num_rows).sum();
        let Some(condition) = &self.condition else { return Ok(vec![true; rows]) };
        let Some(first) = batches.first() else { return Ok(Vec::new()) };
        let all = arrow::compute::concat_batches(&first.schema(), batches).map_err(ShardError::arrow(shard.path()))?;
        condition::rows_that_meet(condition, &all)
    }
}

fn value(array: &StringArray, row: usize) -> String {
    if array.is_null(row) { String::new() } else { array.value(row).to_owned() }
}
