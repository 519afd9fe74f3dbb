//! A query that a cluster answers, over partitions' metadata: what [`super::select`] does on one machine. Rows are located by a join
//! on their keys; in images' place stands where their rows lie, so none is read and none travels.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::Schema;
use datafusion::common::JoinType;
use datafusion::prelude::col;
use shards::columns;

use super::select::{AGAIN, Done, Fault, KEY, Located, PART, PLACE, Shape, answer, in_words, next_batch};
use super::statement::TABLE;
use super::table::Table;
use crate::stage::{Cancel, Input, Queries, StageError};
use crate::stages::distributed::{quoted, register};

const ROWS: &str = "__ferrotype_rows";

/// Lets `queries` run `query` and gives the result to `each`, in the order of partitions and rows.
pub(super) fn select(
    query: &str,
    table: &Table,
    inputs: &[Input],
    queries: &dyn Queries,
    cancel: &Cancel,
    each: impl FnMut(Located) -> Result<(), StageError>,
) -> Result<Done, StageError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| StageError::failed(format!("a query cannot be started: {error}")))?;
    runtime.block_on(run(query, table, inputs, queries, cancel, each)).map_err(|fault| match fault {
        Fault::Stage(error) => error,
        Fault::Query(error) => in_words(&error, table, None),
    })
}

/// In SQL, what [`super::table::stand_in`] makes of a place.
fn stand_in() -> String {
    let hex = |column: &str, digits: u8| format!("lpad(to_hex(CAST({column} AS BIGINT)), {digits}, '0')");
    format!("arrow_cast(decode({} || {}, 'hex'), 'FixedSizeBinary(12)')", hex(PART, 8), hex(PLACE, 16))
}

async fn run(
    query: &str,
    table: &Table,
    inputs: &[Input],
    queries: &dyn Queries,
    cancel: &Cancel,
    mut each: impl FnMut(Located) -> Result<(), StageError>,
) -> Result<Done, Fault> {
    let context = queries.context()?;
    let read: Vec<String> = table.names().filter(|name| *name != columns::IMAGE).map(quoted).collect();
    register(&context, ROWS, inputs, &read, [PART, PLACE]).await?;
    let seen = table.names().map(|name| match name {
        columns::IMAGE => format!("{} AS {}", stand_in(), columns::IMAGE),
        other => quoted(other),
    });
    let seen = seen.collect::<Vec<_>>().join(", ");
    let input = context.sql(&format!("SELECT {seen} FROM {ROWS}")).await?;
    context.register_table(TABLE, input.into_view())?;
    // A key that is there twice would make two rows of one.
    let located = format!(
        "SELECT {key} AS {KEY}, {PART}, {PLACE}, row_number() OVER (PARTITION BY {key} ORDER BY {PART}, {PLACE}) > 1 AS {AGAIN} \
         FROM {ROWS}",
        key = quoted(columns::KEY)
    );
    let located = context.sql(&located).await?;
    let result = answer(&context, query).await?;
    let result = result.join(located, JoinType::Left, &[columns::KEY], &[KEY], None)?;
    let result = result.sort(vec![col(PART).sort(true, true), col(PLACE).sort(true, true)])?;
    let schema: Arc<Schema> = Arc::new(result.schema().as_arrow().clone());
    let shape = Shape::of(&schema);
    let mut stream = result.execute_stream().await?;
    let mut last = None;
    while let Some(batch) = next_batch(&mut stream, cancel).await.map_err(Fault::Stage)? {
        // A cluster may have its own ways to hold texts.
        let batch = batch?;
        let columns =
            batch.columns().iter().zip(schema.fields()).map(|(column, field)| cast(column, field.data_type()));
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns.collect::<Result<_, _>>()?)?;
        shape.split(&batch, &mut last, &mut each)?;
    }
    Ok(Done { schema: shape.schema, spilled: None })
}
