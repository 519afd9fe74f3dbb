//! Runs a query over partitions' metadata, within a limit of memory, and says for each row of the result where it lies.
//!
//! ```text
//!   query over input ── sort by key ─┐
//!                                    ├─ merge join on key ── sort by partition and row ──►
//!   locations of all keys ── sorted ─┘
//! ```
//!
//! Every step spills to disk when its memory is used up. One partition of DataFusion's is worked on at a time, so the result
//! does not depend on the number of cores.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, BooleanArray, FixedSizeBinaryArray, RecordBatch, StringArray, UInt32Array, UInt64Array,
};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{Column, JoinType, NullEquality};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::{Expr, cast};
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr, expressions::col};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::joins::SortMergeJoinExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, execute_stream};
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use futures::StreamExt;
use shards::columns;

use super::statement::TABLE;
use super::table::{STAND_IN, Table, stand_in};
use crate::stage::{Cancel, StageError};

/// In [`Located`] batches: stands where the image goes.
pub(super) const IMAGE_PLACE: &str = "__ferrotype_image";

const LOCATIONS: &str = "__ferrotype_locations";
pub(super) const KEY: &str = "__ferrotype_key";
pub(super) const PART: &str = "__ferrotype_part";
/// The number of a row in its partition.
pub(super) const PLACE: &str = "__ferrotype_row";
/// In the locations of keys: whether a row before has the same one.
pub(super) const AGAIN: &str = "__ferrotype_again";

/// Rows of the result that lie in one partition, in their order there.
pub(super) struct Located {
    pub(super) part: usize,
    /// First [`PLACE`], the numbers of the rows in their partition; then the result's columns, with [`IMAGE_PLACE`] for the image.
    pub(super) rows: RecordBatch,
}

/// How a query went.
pub(super) struct Done {
    /// Of all [`Located::rows`].
    pub(super) schema: SchemaRef,
    /// Bytes written to disk for want of memory, where that was here.
    pub(super) spilled: Option<u64>,
}

/// Runs `query` in at most `memory` bytes and gives the result to `each`, in the order of partitions and rows.
pub(super) fn select(
    query: &str,
    table: &Table,
    memory: u64,
    cancel: &Cancel,
    each: impl FnMut(Located) -> Result<(), StageError>,
) -> Result<Done, StageError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| StageError::failed(format!("a query cannot be started: {error}")))?;
    runtime.block_on(run(query, table, memory, cancel, each)).map_err(|fault| match fault {
        Fault::Stage(error) => error,
        Fault::Query(error) => in_words(&error, table, Some(memory)),
    })
}

/// Why a query gave nothing.
pub(in crate::stages) enum Fault {
    Stage(StageError),
    Query(DataFusionError),
}

impl<E: Into<DataFusionError>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Query(error.into())
    }
}

fn fault(words: impl Into<String>) -> Fault {
    Fault::Stage(StageError::failed(words.into()))
}

/// What a query's error says to people. `memory` is what it was limited to, where that was here.
pub(super) fn in_words(error: &DataFusionError, table: &Table, memory: Option<u64>) -> StageError {
    let words = error.strip_backtrace();
    StageError::failed(match (error.find_root(), memory) {
        (DataFusionError::ResourcesExhausted(_), Some(memory)) => format!(
            "query: {words}\nmemory is limited to {memory} bytes, and what this step holds cannot go to disk: give the stage \
             more, such as memory = \"4 GB\""
        ),
        _ => format!("query: {words}\ncolumns of {TABLE}: {}", table.columns()),
    })
}

async fn run(
    query: &str,
    table: &Table,
    memory: u64,
    cancel: &Cancel,
    mut each: impl FnMut(Located) -> Result<(), StageError>,
) -> Result<Done, Fault> {
    let context = session(memory)?;
    context.register_table(TABLE, Arc::new(table.clone()))?;
    context.register_table(LOCATIONS, Arc::new(table.locations([KEY, PART, PLACE])))?;
    let result = answer(&context, query).await?;
    // A key that is there twice would make two rows of one.
    let by_key = format!("ORDER BY {KEY} NULLS FIRST");
    let located = format!(
        "SELECT {KEY}, {PART}, {PLACE}, {KEY} = lag({KEY}) OVER ({by_key}) AS {AGAIN} FROM {LOCATIONS} {by_key}"
    );
    let located = context.sql(&located).await?.create_physical_plan().await?;
    let plan = locate(result.create_physical_plan().await?, located)?;
    let shape = Shape::of(&plan.schema());
    let mut stream = execute_stream(Arc::clone(&plan), context.task_ctx())?;
    let mut last = None;
    while let Some(batch) = next_batch(&mut stream, cancel).await.map_err(Fault::Stage)? {
        shape.split(&batch?, &mut last, &mut each)?;
    }
    Ok(Done { schema: shape.schema, spilled: Some(spilled(plan.as_ref())) })
}

/// How often a query that works looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(100);

/// The next batch of a query; an error once the run was asked to stop, also while there is none yet: a sort over many rows gives
/// its first at its end, minutes later. The runtime must have timers. Sources give way often enough for them to be heard.
pub(in crate::stages) async fn next_batch(
    stream: &mut SendableRecordBatchStream,
    cancel: &Cancel,
) -> Result<Option<Result<RecordBatch, DataFusionError>>, StageError> {
    // The first tick comes at once.
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            biased;
            _ = look.tick() => {
                if cancel.is_cancelled() {
                    return Err(StageError::Cancelled);
                }
            }
            batch = stream.next() => return Ok(batch),
        }
    }
}

/// A session that keeps to `memory` bytes, spills the rest to disk, and whose results do not depend on the number of cores. Joins
/// are by sorting: those by a hash cannot spill.
pub(in crate::stages) fn session(memory: u64) -> Result<SessionContext, DataFusionError> {
    let memory = usize::try_from(memory).unwrap_or(usize::MAX);
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(FairSpillPool::new(memory))).build_arc()?;
    let config = SessionConfig::new()
        .with_target_partitions(1)
        .set_bool("datafusion.optimizer.prefer_hash_join", false)
        // Little memory is shared by several sorts, each of which merges several batches.
        .with_batch_size((memory / 65_536).clamp(128, 8192))
        .with_sort_spill_reservation_bytes((memory / 32).min(10 << 20));
    Ok(SessionContext::new_with_config_rt(config, runtime))
}

/// What `query` gives, once it is something that a stage can take.
pub(super) async fn answer(context: &SessionContext, query: &str) -> Result<DataFrame, Fault> {
    let only_read = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    normalised(context.sql_with_options(query, only_read).await?)
}

/// The result with plain names and types that shards hold, or what is wrong with it.
fn normalised(result: DataFrame) -> Result<DataFrame, Fault> {
    let mut names: Vec<&String> = Vec::new();
    let mut expressions: Vec<Expr> = Vec::new();
    for (table, field) in result.schema().iter() {
        let name = field.name();
        if names.contains(&name) {
            return Err(fault(format!("query: its result has two columns {name}; give one another name with AS")));
        }
        if (name == columns::IMAGE) != (*field.data_type() == STAND_IN) {
            return Err(fault(format!(
                "query: {name} is not the image column, or is it under another name; images keep their name"
            )));
        }
        names.push(name);
        let column = Expr::Column(Column::new(table.cloned(), name));
        let column = match field.data_type() {
            DataType::Null | DataType::Utf8View | DataType::LargeUtf8 => cast(column, DataType::Utf8),
            DataType::BinaryView | DataType::LargeBinary => cast(column, DataType::Binary),
            DataType::Dictionary(_, values) => cast(column, values.as_ref().clone()),
            _ => column,
        };
        expressions.push(column.alias(name));
    }
    match result.schema().fields().iter().find(|field| field.name() == columns::KEY).map(|field| field.data_type()) {
        Some(DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8) => Ok(result.select(expressions)?),
        Some(other) => Err(fault(format!("query: key is {other}; it must be the key of a row of the input"))),
        None => Err(fault("query: its result has no column key, which says what its rows are: select it too")),
    }
}

/// Joins `result` with the `locations` of all keys, which are sorted by key, and sorts by them.
fn locate(
    result: Arc<dyn ExecutionPlan>,
    locations: Arc<dyn ExecutionPlan>,
) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    let one = |plan: Arc<dyn ExecutionPlan>| -> Arc<dyn ExecutionPlan> {
        if plan.output_partitioning().partition_count() == 1 {
            plan
        } else {
            Arc::new(CoalescePartitionsExec::new(plan))
        }
    };
    let sorted = |plan: Arc<dyn ExecutionPlan>, names: &[&str]| -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let schema = plan.schema();
        let columns = names.iter().map(|name| Ok(PhysicalSortExpr::new_default(col(name, &schema)?)));
        let order = LexOrdering::new(columns.collect::<Result<Vec<_>, DataFusionError>>()?);
        Ok(match order {
            Some(order) => Arc::new(SortExec::new(order, plan)),
            None => plan,
        })
    };
    let left = sorted(one(result), &[columns::KEY])?;
    let right = one(locations);
    let on: Vec<(Arc<dyn PhysicalExpr>, Arc<dyn PhysicalExpr>)> =
        vec![(col(columns::KEY, &left.schema())?, col(KEY, &right.schema())?)];
    let options = vec![SortOptions::default()];
    let join =
        SortMergeJoinExec::try_new(left, right, on, None, JoinType::Left, options, NullEquality::NullEqualsNothing)?;
    sorted(Arc::new(join), &[PART, PLACE])
}

/// Bytes that a plan wrote to disk for want of memory.
pub(in crate::stages) fn spilled(plan: &dyn ExecutionPlan) -> u64 {
    let own = plan.metrics().and_then(|metrics| metrics.spilled_bytes()).unwrap_or(0) as u64;
    own + plan.children().iter().map(|child| spilled(child.as_ref())).sum::<u64>()
}

/// The columns of a located result.
pub(super) struct Shape {
    /// Of what is handed on.
    pub(super) schema: SchemaRef,
    /// The columns of the result itself come first.
    width: usize,
}

/// The place of the row before, to see repeats by.
pub(super) type Last = Option<(u32, u64)>;

impl Shape {
    pub(super) fn of(joined: &Schema) -> Self {
        let width = joined.fields().len().saturating_sub(4);
        let row = Field::new(PLACE, DataType::UInt64, false);
        let own = joined.fields().iter().take(width).map(|field| {
            if field.name() == columns::IMAGE {
                return Field::new(IMAGE_PLACE, DataType::Boolean, false);
            }
            Field::new(field.name(), field.data_type().clone(), field.is_nullable())
        });
        Self { schema: Arc::new(Schema::new(std::iter::once(row).chain(own).collect::<Vec<_>>())), width }
    }

    /// Hands on the rows of `batch`, partition by partition, once they are what they should be.
    pub(super) fn split(
        &self,
        batch: &RecordBatch,
        last: &mut Last,
        each: &mut impl FnMut(Located) -> Result<(), StageError>,
    ) -> Result<(), Fault> {
        let keys: &StringArray = typed(batch, columns::KEY)?;
        let parts: &UInt32Array = typed(batch, PART)?;
        let places: &UInt64Array = typed(batch, PLACE)?;
        let again: &BooleanArray = typed(batch, AGAIN)?;
        let images = batch.column_by_name(columns::IMAGE).map(|_| typed::<FixedSizeBinaryArray>(batch, columns::IMAGE));
        let images = images.transpose()?;
        for row in 0..batch.num_rows() {
            let key = if keys.is_null(row) { "null" } else { keys.value(row) };
            if parts.is_null(row) {
                return Err(fault(format!("query: its result has the key {key}, which no row of the input has")));
            }
            if again.is_valid(row) && again.value(row) {
                return Err(fault(format!("query: several rows of the input have the key {key}; keys must be unique")));
            }
            let place = (parts.value(row), places.value(row));
            if *last == Some(place) {
                return Err(fault(format!(
                    "query: its result has the key {key} more than once; a row may come out once or not at all"
                )));
            }
            if images.is_some_and(|images| images.value(row) != stand_in(place.0, place.1)) {
                return Err(fault(format!("query: its result has the key {key} beside the image of another row")));
            }
            *last = Some(place);
        }
        let numbers: ArrayRef = Arc::new(UInt64Array::new(places.values().clone(), None));
        let schema = batch.schema();
        let own = batch.columns().iter().zip(schema.fields()).take(self.width).map(|(array, field)| {
            if field.name() == columns::IMAGE {
                Arc::new(BooleanArray::from(vec![true; array.len()]))
            } else {
                Arc::clone(array)
            }
        });
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), std::iter::once(numbers).chain(own).collect())?;
        let mut start = 0;
        for of_part in parts.values().chunk_by(|a, b| a == b) {
            let part = of_part.first().copied().unwrap_or_default() as usize;
            each(Located { part, rows: rows.slice(start, of_part.len()) }).map_err(Fault::Stage)?;
            start += of_part.len();
        }
        Ok(())
    }
}

fn typed<'a, A: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a A, Fault> {
    let array = batch.column_by_name(name).and_then(|array| array.as_any().downcast_ref::<A>());
    array.ok_or_else(|| {
        fault(format!("query: the column {name} came out of another type; this is a fault in the program"))
    })
}

#[cfg(test)]
mod tests {
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use futures::stream;

    use super::*;

    #[test]
    fn a_query_that_gives_nothing_yet_ends_when_it_is_asked_to_stop() {
        let schema = Arc::new(Schema::empty());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let cancel = Cancel::default();
        // As a sort over many rows: its first batch comes at its end.
        let nothing = stream::pending::<Result<RecordBatch, DataFusionError>>();
        let mut sorting: SendableRecordBatchStream =
            Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), nothing));
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(2 * LOOK);
                cancel.cancel();
            });
            runtime.block_on(next_batch(&mut sorting, &cancel))
        });
        assert!(matches!(ended, Err(StageError::Cancelled)));

        let batches = stream::iter([Ok(RecordBatch::new_empty(Arc::clone(&schema)))]);
        let mut one: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema, batches));
        let going = Cancel::default();
        let given =
            runtime.block_on(async { [next_batch(&mut one, &going).await, next_batch(&mut one, &going).await] });
        assert!(matches!(given, [Ok(Some(Ok(_))), Ok(None)]));
    }
}
