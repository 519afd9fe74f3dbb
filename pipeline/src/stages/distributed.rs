//! What a cluster's queries read: rows of shards, each with its place, that is the number of its partition and its own in that.
//!
//! A place is counted where the shard is read. Images are among the columns only where somebody asks for them; nobody does.

use std::path::Path;
use std::sync::Arc;

use datafusion::error::DataFusionError;
use datafusion::logical_expr::{LogicalPlan, Union};
use datafusion::prelude::{DataFrame, ParquetReadOptions, SessionContext};

use crate::stage::Input;

/// Registers a table `name` of these columns (in SQL) of all inputs' rows, and of their places under the names `part` (an unsigned
/// number of 32 bits) and `row` (of 64). Returns whether there is one: without rows there is none.
pub(super) async fn register(
    context: &SessionContext,
    name: &str,
    inputs: &[Input],
    columns: &[String],
    [part, row]: [&str; 2],
) -> Result<bool, DataFusionError> {
    let columns = columns.join(", ");
    let mut shards = Vec::new();
    for (number, input) in inputs.iter().enumerate() {
        let mut first = 0;
        for (file, path) in input.sidecar.data.iter().zip(input.files()) {
            if file.rows > 0 {
                let shard = format!("{name}_{}", shards.len());
                parquet(context, &shard, &path).await?;
                // A shard is read by one task from its first row on, so that the numbers are those of its rows.
                let query = format!(
                    "SELECT {columns}, CAST({number} AS INT UNSIGNED) AS {part}, \
                       CAST({first} + row_number() OVER () - 1 AS BIGINT UNSIGNED) AS {row} FROM {shard}"
                );
                shards.push(Arc::new(context.sql(&query).await?.into_unoptimized_plan()));
            }
            first += file.rows;
        }
    }
    let plan = match shards.as_slice() {
        [] => return Ok(false),
        [one] => LogicalPlan::clone(one),
        _ => LogicalPlan::Union(Union::try_new_with_loose_types(shards)?),
    };
    context.register_table(name, DataFrame::new(context.state(), plan).into_view())?;
    Ok(true)
}

async fn parquet(context: &SessionContext, name: &str, path: &Path) -> Result<(), DataFusionError> {
    let path = std::path::absolute(path)?;
    context.register_parquet(name, path.to_string_lossy(), ParquetReadOptions::default()).await
}

/// A name as SQL takes it.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
