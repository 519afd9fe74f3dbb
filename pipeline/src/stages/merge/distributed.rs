//! The survey as one query that a cluster answers: what [`super::join`] does on one machine, in another way.
//!
//! ```text
//!   samples' shards: key, place ─────────── by hash of the key ─┐
//!                                                               ├─ join ── sorted by the samples' places ── merged ──► here
//!   table's shards: key, place, columns ─── by hash of the key ─┘
//! ```
//!
//! No image is read, and none travels.

use std::sync::Arc;

use arrow::array::{Array, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::compute::cast;
use arrow::datatypes::DataType;

use super::files::Files;
use super::join::{Fault, KEY, Names, PART, ROW, SAMPLE_PART, SAMPLE_ROW, USED, beside_schema, lost, typed};
use super::{Joined, MergeError};
use crate::stage::{Input, Outcome, Queries, StageError, Task};
use crate::stages::distributed::{quoted, register};
use crate::stages::sql::select::next_batch;

/// Of a row of the table: the place of the row before it that has its key.
const BEFORE: [&str; 2] = ["__ferrotype_before_part", "__ferrotype_before_row"];
/// Of a matched sample: which of those with its key it is, from 1.
const NTH: &str = "__ferrotype_nth";

pub(super) async fn run(
    joined: &Joined,
    samples: &[Input],
    table: &[Input],
    queries: &dyn Queries,
    task: &Task<'_>,
) -> Result<Outcome, Fault> {
    let context = queries.context()?;
    let key = |name: &str| format!("CAST({} AS VARCHAR) AS {KEY}", quoted(name));
    let mut columns = vec![key(&joined.on[1])];
    columns.extend(joined.taken.iter().map(|taken| format!("{} AS {}", quoted(&taken.of_table), quoted(&taken.name))));
    if !register(&context, "samples", samples, &[key(&joined.on[0])], [SAMPLE_PART, SAMPLE_ROW]).await?
        || !register(&context, "lines", table, &columns, [PART, ROW]).await?
    {
        return Ok(Files::new(joined, samples, task).finish()?);
    }
    let taken: Vec<String> = joined.taken.iter().map(|taken| format!("t.{}", quoted(&taken.name))).collect();
    let taken = taken.join(", ");
    let [before_part, before_row] = BEFORE;
    let query = format!(
        "SELECT s.{SAMPLE_PART}, s.{SAMPLE_ROW}, t.{KEY}, t.{PART}, t.{ROW}, t.{before_part}, t.{before_row}, \
           row_number() OVER (PARTITION BY s.{KEY} ORDER BY s.{SAMPLE_PART}, s.{SAMPLE_ROW}) AS {NTH}, {taken} \
         FROM samples AS s JOIN \
           (SELECT *, lag({PART}) OVER w AS {before_part}, lag({ROW}) OVER w AS {before_row} FROM lines \
            WINDOW w AS (PARTITION BY {KEY} ORDER BY {PART}, {ROW})) AS t \
         ON s.{KEY} = t.{KEY} ORDER BY s.{SAMPLE_PART}, s.{SAMPLE_ROW}"
    );
    let mut stream = context.sql(&query).await?.execute_stream().await?;
    let names = Names::new(table);
    let schema = beside_schema(joined);
    let mut files = Files::new(joined, samples, task);
    let mut used = 0;
    while let Some(batch) = next_batch(&mut stream, task.cancel).await? {
        let batch = batch?;
        if let Some(error) = twice(&batch, &names)? {
            return Err(StageError::from(error).into());
        }
        let nth: &UInt64Array = typed(&batch, NTH)?;
        used += nth.values().iter().filter(|nth| **nth == 1).count() as u64;
        // A cluster may have its own ways to hold texts.
        let columns = schema.fields().iter().map(|field| -> Result<_, StageError> {
            let column = batch.column_by_name(field.name()).ok_or_else(|| lost(field.name()))?;
            cast(column, field.data_type()).map_err(StageError::failed)
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        files.take(&RecordBatch::try_new(Arc::clone(&schema), columns).map_err(StageError::failed)?)?;
    }
    let mut outcome = files.finish()?;
    outcome.observed.insert(USED.to_owned(), used);
    outcome.details.insert("distributed".to_owned(), true.into());
    Ok(outcome)
}

/// The error for a key that the table has twice.
fn twice(batch: &RecordBatch, names: &Names) -> Result<Option<MergeError>, StageError> {
    let (parts, rows): (&UInt32Array, &UInt64Array) = (typed(batch, PART)?, typed(batch, ROW)?);
    let (before_parts, before_rows): (&UInt32Array, &UInt64Array) =
        (typed(batch, BEFORE[0])?, typed(batch, BEFORE[1])?);
    let Some(row) = (0..batch.num_rows()).find(|&row| before_parts.is_valid(row)) else { return Ok(None) };
    let keys = batch.column_by_name(KEY).ok_or_else(|| lost(KEY))?;
    let key = cast(&keys.slice(row, 1), &DataType::Utf8).map_err(StageError::failed)?;
    let key = key.as_any().downcast_ref::<StringArray>().map(|key| key.value(0).to_owned()).unwrap_or_default();
    let first = names.place((before_parts.value(row), before_rows.value(row)));
    Ok(Some(MergeError::Twice { key, first, second: names.place((parts.value(row), rows.value(row))) }))
}
