//! The survey of exact duplicates as one query that a cluster answers: recorded digests are dealt out by their values, and of each
//! digest's rows all but the first, by [`super::pictures::Pictures::preference`], come back in the order of their places.

use arrow::array::{Array, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use shards::columns;
use shards::reader::Shard;

use super::List;
use super::pictures::LONGEST_SIDE;
use crate::stage::{Input, Outcome, Queries, StageError, Task};
use crate::stages::distributed::{quoted, register};

const PART: &str = "part";
const ROW: &str = "row";
const TABLE: &str = "pictures";
/// The mark of a row without an image, which is no duplicate of anything.
const NO_IMAGE: &str = "00000000000000000000000000000000";

/// What the query finds; `None` where it cannot, since not every row has its digest recorded.
pub(super) fn survey(task: &Task, queries: &dyn Queries) -> Result<Option<Outcome>, StageError> {
    if !all_can_be_asked(task.inputs)? {
        return Ok(None);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| StageError::failed(format!("a query cannot be started: {error}")))?;
    runtime.block_on(run(task, queries))
}

fn in_words(error: &DataFusionError) -> StageError {
    StageError::failed(format!("the comparison of digests: {}", error.strip_backtrace()))
}

/// Whether all shards have the columns that are compared.
fn all_can_be_asked(inputs: &[Input]) -> Result<bool, StageError> {
    let can = |schema: &Schema| {
        let is = |column: &str, right: fn(&DataType) -> bool| {
            schema.field_with_name(column).is_ok_and(|field| right(field.data_type()))
        };
        let text = |kind: &DataType| *kind == DataType::Utf8;
        is(columns::KEY, text)
            && is(columns::SHA256, text)
            && is(columns::WIDTH, DataType::is_integer)
            && is(columns::HEIGHT, DataType::is_integer)
    };
    for file in inputs.iter().filter(|input| input.sidecar.rows_out > 0).flat_map(Input::files) {
        if !can(Shard::open(&file)?.schema()) {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn run(task: &Task<'_>, queries: &dyn Queries) -> Result<Option<Outcome>, StageError> {
    let context = queries.context().map_err(|error| in_words(&error))?;
    let side = |name: &str| {
        let number = format!("coalesce(try_cast({} AS BIGINT UNSIGNED), 0)", quoted(name));
        format!("least({number}, CAST({LONGEST_SIDE} AS BIGINT UNSIGNED))")
    };
    let wanted = [
        format!("coalesce({}, '') AS key", quoted(columns::KEY)),
        format!("{} AS digest", quoted(columns::SHA256)),
        format!("{} * {} AS area", side(columns::WIDTH), side(columns::HEIGHT)),
    ];
    let mut list = List::new(task);
    if !register(&context, TABLE, task.inputs, &wanted, [PART, ROW]).await.map_err(|error| in_words(&error))? {
        return Ok(Some(list.finish()?));
    }
    // Those can only be compared by their images.
    let without = format!(
        "SELECT key FROM {TABLE} WHERE digest IS NULL OR NOT regexp_like(digest, '^[0-9a-fA-F]{{64}}$') LIMIT 1"
    );
    let mut without = stream(&context, &without).await?;
    while let Some(batch) = without.next().await {
        if batch.map_err(|error| in_words(&error))?.num_rows() > 0 {
            return Ok(None);
        }
    }
    let query = format!(
        "SELECT {PART}, {ROW}, kept FROM \
           (SELECT {PART}, {ROW}, first_value(key) OVER w AS kept, row_number() OVER w AS nth FROM \
              (SELECT key, lower(substr(digest, 1, 32)) AS mark, area, {PART}, {ROW} FROM {TABLE}) WHERE mark <> '{NO_IMAGE}' \
            WINDOW w AS (PARTITION BY mark ORDER BY area DESC, key, {PART}, {ROW})) \
         WHERE nth > 1 ORDER BY {PART}, {ROW}"
    );
    let mut found = stream(&context, &query).await?;
    while let Some(batch) = found.next().await {
        task.check_cancelled()?;
        let batch = batch.map_err(|error| in_words(&error))?;
        let (parts, rows): (UInt32Array, UInt64Array) =
            (column(&batch, PART, &DataType::UInt32)?, column(&batch, ROW, &DataType::UInt64)?);
        let kept: StringArray = column(&batch, "kept", &DataType::Utf8)?;
        for at in 0..batch.num_rows() {
            list.add(parts.value(at) as usize, rows.value(at), kept.value(at), 0)?;
        }
    }
    let mut outcome = list.finish()?;
    outcome.details.insert("distributed".to_owned(), true.into());
    Ok(Some(outcome))
}

async fn stream(context: &SessionContext, query: &str) -> Result<SendableRecordBatchStream, StageError> {
    let answer = async { context.sql(query).await?.execute_stream().await };
    answer.await.map_err(|error| in_words(&error))
}

/// A column as this type, whatever a cluster made of it.
fn column<A: Array + Clone + 'static>(batch: &RecordBatch, name: &str, kind: &DataType) -> Result<A, StageError> {
    let lost = || StageError::failed(format!("{name} got lost in the query; this is a fault in the program"));
    let column = cast(batch.column_by_name(name).ok_or_else(lost)?, kind).map_err(StageError::failed)?;
    column.as_any().downcast_ref::<A>().cloned().ok_or_else(lost)
}
