//! The survey: for each partition of samples, what the table says of its rows.
//!
//! ```text
//!   keys of the samples ── sorted ─┐
//!                                  ├─ merge join ── sort by the table's rows ─┐
//!   keys of the table ──── sorted ─┘                                          ├─ side by side ── sort by the samples' rows ──►
//!   the table's columns, as they lie ─────────────────────────────────────────┘
//! ```
//!
//! What is sorted by key are places of 12 bytes; the table's columns, which are most of it, are sorted once. Every step spills to disk
//! when its memory is used up.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::execute_stream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use shards::reader::Shard;
use shards::{ShardError, columns};

use super::files::Files;
use super::{Joined, MEMORY, MergeError, distributed};
use crate::stage::{Input, Outcome, StageError, Task};
use crate::stages::sql::select::{next_batch, session, spilled};
use crate::stages::sql::table::Table;

/// Rows of a shard that are read together.
const ROWS: usize = 8192;

pub(super) const KEY: &str = "__ferrotype_key";
pub(super) const SAMPLE_PART: &str = "__ferrotype_sample_part";
pub(super) const SAMPLE_ROW: &str = "__ferrotype_sample_row";
pub(super) const PART: &str = "__ferrotype_part";
pub(super) const ROW: &str = "__ferrotype_row";
/// Whether the table's row before has the same key.
const AGAIN: &str = "__ferrotype_again";

pub(super) fn survey(joined: &Joined, samples: &[Input], table: &[Input], task: &Task) -> Result<Outcome, StageError> {
    let memory = task.memory.unwrap_or(MEMORY);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| StageError::failed(format!("a join cannot be started: {error}")))?;
    let outcome = match task.queries {
        Some(queries) => runtime.block_on(distributed::run(joined, samples, table, queries, task)),
        None => runtime.block_on(run(joined, samples, table, memory, task)),
    };
    let mut outcome = outcome.map_err(|fault| match fault {
        Fault::Stage(error) => error,
        Fault::Join(error) => in_words(error, memory),
    })?;
    let of_table: u64 = table.iter().map(|input| input.sidecar.rows_out).sum();
    let used = outcome.observed.remove(USED).unwrap_or(0);
    outcome.details.insert("rows_of_the_table".to_owned(), of_table.into());
    outcome.details.insert("rows_of_the_table_without_a_sample".to_owned(), of_table.saturating_sub(used).into());
    Ok(outcome)
}

/// Where a join leaves how many rows of the table belong to a sample.
pub(super) const USED: &str = "used";

pub(super) enum Fault {
    Stage(StageError),
    Join(DataFusionError),
}

impl From<StageError> for Fault {
    fn from(error: StageError) -> Self {
        Self::Stage(error)
    }
}

impl From<ShardError> for Fault {
    fn from(error: ShardError) -> Self {
        Self::Stage(error.into())
    }
}

impl From<DataFusionError> for Fault {
    fn from(error: DataFusionError) -> Self {
        Self::Join(error)
    }
}

fn in_words(error: DataFusionError, memory: u64) -> StageError {
    // What this stage reads says by itself what is wrong.
    if let DataFusionError::External(own) = error {
        return match own.downcast::<StageError>() {
            Ok(own) => *own,
            Err(other) => StageError::Failed(other),
        };
    }
    let words = error.strip_backtrace();
    StageError::failed(match error.find_root() {
        DataFusionError::ResourcesExhausted(_) => format!(
            "the join: {words}\nmemory is limited to {memory} bytes, and what this step holds cannot go to disk: give the stage more, \
             such as memory = \"4 GB\""
        ),
        _ => format!("the join: {words}"),
    })
}

async fn run(
    joined: &Joined,
    samples: &[Input],
    table: &[Input],
    memory: u64,
    task: &Task<'_>,
) -> Result<Outcome, Fault> {
    let context = session(memory)?;
    let mapping = mapping(&context, joined, samples, table).await?;
    let mapping_plan = mapping.create_physical_plan().await?;
    let beside = Arc::new(Beside {
        schema: beside_schema(joined),
        state: Mutex::new(Some(Follower {
            mapping: execute_stream(Arc::clone(&mapping_plan), context.task_ctx())?,
            table: TableReader::new(joined, table),
            schema: beside_schema(joined),
            names: Names::new(table),
            last: None,
        })),
        used: Arc::default(),
    });
    let used = Arc::clone(&beside.used);
    let schema = Arc::clone(&beside.schema);
    context.register_table(
        "beside",
        Arc::new(StreamingTable::try_new(schema, vec![beside as Arc<dyn PartitionStream>])?),
    )?;
    let sorted = context.sql(&format!("SELECT * FROM beside ORDER BY {SAMPLE_PART}, {SAMPLE_ROW}")).await?;
    let plan = sorted.create_physical_plan().await?;
    let mut stream = execute_stream(Arc::clone(&plan), context.task_ctx())?;
    let mut files = Files::new(joined, samples, task);
    while let Some(batch) = next_batch(&mut stream, task.cancel).await? {
        files.take(&batch?)?;
    }
    let mut outcome = files.finish()?;
    outcome.observed.insert(USED.to_owned(), *used.lock().unwrap_or_else(PoisonError::into_inner));
    let bytes = spilled(plan.as_ref()) + spilled(mapping_plan.as_ref());
    outcome.details.insert("spilled_bytes".to_owned(), bytes.into());
    Ok(outcome)
}

/// Which row of the table belongs to which sample, in the order of the table's rows.
async fn mapping(
    context: &SessionContext,
    joined: &Joined,
    samples: &[Input],
    table: &[Input],
) -> Result<datafusion::prelude::DataFrame, DataFusionError> {
    let [of_samples, of_table] = &joined.kinds;
    let places = [KEY, SAMPLE_PART, SAMPLE_ROW];
    context.register_table("samples", Arc::new(Table::places(samples, &joined.on[0], of_samples.clone(), places)))?;
    let places = [KEY, PART, ROW];
    context.register_table("lines", Arc::new(Table::places(table, &joined.on[1], of_table.clone(), places)))?;
    // Which of two rows with one key comes first is told by their places.
    let query = format!(
        "SELECT s.{KEY}, s.{SAMPLE_PART}, s.{SAMPLE_ROW}, t.{PART}, t.{ROW}, t.{AGAIN} FROM \
           (SELECT CAST({KEY} AS VARCHAR) AS {KEY}, {SAMPLE_PART}, {SAMPLE_ROW} FROM samples) AS s JOIN \
           (SELECT {KEY}, {PART}, {ROW}, coalesce({KEY} = lag({KEY}) OVER (ORDER BY {KEY}), false) AS {AGAIN} FROM \
             (SELECT CAST({KEY} AS VARCHAR) AS {KEY}, {PART}, {ROW} FROM lines)) AS t \
         ON s.{KEY} = t.{KEY} ORDER BY t.{PART}, t.{ROW}"
    );
    context.sql(&query).await
}

/// What is sorted by the samples' rows: their places, and what the table says.
pub(super) fn beside_schema(joined: &Joined) -> SchemaRef {
    let places = [Field::new(SAMPLE_PART, DataType::UInt32, false), Field::new(SAMPLE_ROW, DataType::UInt64, false)];
    let taken = joined.taken.iter().map(|taken| Field::new(&taken.name, taken.kind.clone(), true));
    Arc::new(Schema::new(places.into_iter().chain(taken).collect::<Vec<_>>()))
}

/// The rows of the mapping, each beside the row of the table that it names: both come in the order in which that lies.
struct Beside {
    schema: SchemaRef,
    state: Mutex<Option<Follower>>,
    /// Rows of the table that belong to a sample.
    used: Arc<Mutex<u64>>,
}

impl std::fmt::Debug for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Beside").finish_non_exhaustive()
    }
}

impl PartitionStream for Beside {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner).take();
        let used = Arc::clone(&self.used);
        let stream: Pin<Box<dyn futures::Stream<Item = DataFusionResult<RecordBatch>> + Send>> = match state {
            Some(follower) => Box::pin(futures::stream::try_unfold(follower, move |mut follower| {
                let used = Arc::clone(&used);
                async move {
                    let Some(batch) = follower.mapping.next().await else { return Ok(None) };
                    let (batch, new) = follower.follow(&batch?).map_err(|e| DataFusionError::External(Box::new(e)))?;
                    *used.lock().unwrap_or_else(PoisonError::into_inner) += new;
                    Ok(Some((batch, follower)))
                }
            })),
            None => Box::pin(futures::stream::once(async {
                Err(DataFusionError::Internal("the table's rows are read once".to_owned()))
            })),
        };
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), stream))
    }
}

/// How partitions of the table are called.
pub(super) struct Names {
    inputs: Vec<String>,
}

impl Names {
    pub(super) fn new(table: &[Input]) -> Self {
        Self { inputs: table.iter().map(Input::name).collect() }
    }

    pub(super) fn place(&self, (part, row): (u32, u64)) -> String {
        let part = self.inputs.get(part as usize).map_or("?", String::as_str);
        format!("row {row} of {part}")
    }
}

struct Follower {
    mapping: SendableRecordBatchStream,
    table: TableReader,
    schema: SchemaRef,
    names: Names,
    /// The row of the table that was met last.
    last: Option<(u32, u64)>,
}

impl Follower {
    /// The rows of `mapping` beside the table's, and how many rows of that came for the first time.
    fn follow(&mut self, mapping: &RecordBatch) -> Result<(RecordBatch, u64), StageError> {
        let parts: &UInt32Array = typed(mapping, PART)?;
        let rows: &UInt64Array = typed(mapping, ROW)?;
        let again: &BooleanArray = typed(mapping, AGAIN)?;
        if let Some(row) = (0..again.len()).find(|&row| again.value(row)) {
            return Err(self.twice(mapping, row, (parts.value(row), rows.value(row)))?);
        }
        let mut new = 0;
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < mapping.num_rows() {
            let (part, row) = (parts.value(start), rows.value(start));
            let (batch, first) = self.table.batch_of(part, row)?;
            let end = first + batch.num_rows() as u64;
            let is_here = |at: &usize| parts.value(*at) == part && rows.value(*at) < end;
            let stop = (start..mapping.num_rows()).find(|at| !is_here(at)).unwrap_or(mapping.num_rows());
            for at in start..stop {
                let place = (part, rows.value(at));
                new += u64::from(self.last != Some(place));
                self.last = Some(place);
            }
            let indices = UInt64Array::from_iter_values((start..stop).map(|at| rows.value(at) - first));
            let taken = batch.columns().iter().map(|column| take(column, &indices, None));
            let mut arrays: Vec<ArrayRef> = vec![
                mapping.column_by_name(SAMPLE_PART).ok_or_else(|| lost(SAMPLE_PART))?.slice(start, stop - start),
                mapping.column_by_name(SAMPLE_ROW).ok_or_else(|| lost(SAMPLE_ROW))?.slice(start, stop - start),
            ];
            arrays.extend(taken.collect::<Result<Vec<_>, _>>().map_err(StageError::failed)?);
            pieces.push(RecordBatch::try_new(Arc::clone(&self.schema), arrays).map_err(StageError::failed)?);
            start = stop;
        }
        Ok((concat_batches(&self.schema, &pieces).map_err(StageError::failed)?, new))
    }

    /// The error for a key that the table has twice.
    fn twice(&self, mapping: &RecordBatch, row: usize, place: (u32, u64)) -> Result<StageError, StageError> {
        let keys = mapping.column_by_name(KEY).ok_or_else(|| lost(KEY))?;
        let key = arrow::compute::cast(&keys.slice(row, 1), &DataType::Utf8).map_err(StageError::failed)?;
        let key = key.as_any().downcast_ref::<StringArray>().map(|key| key.value(0).to_owned()).unwrap_or_default();
        let first =
            self.table.place_of(&key, place)?.map_or_else(|| "another row".to_owned(), |first| self.names.place(first));
        Ok(MergeError::Twice { key, first, second: self.names.place(place) }.into())
    }
}

/// The table's columns, read in the order in which they lie.
struct TableReader {
    files: Vec<(u32, std::path::PathBuf)>,
    key: String,
    columns: Vec<String>,
    next_file: usize,
    batches: Option<Batches>,
    /// What was read last, the partition that it is of, and the number of its first row there.
    current: Option<(RecordBatch, u32, u64)>,
    /// The partition of the open file, and the number of its next row.
    part: u32,
    next_row: u64,
}

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ShardError>> + Send>;

impl TableReader {
    fn new(joined: &Joined, table: &[Input]) -> Self {
        let files = (0..).zip(table).flat_map(|(part, input)| input.files().map(move |file| (part, file)));
        Self {
            files: files.collect(),
            key: joined.on[1].clone(),
            columns: joined.taken.iter().map(|taken| taken.of_table.clone()).collect(),
            next_file: 0,
            batches: None,
            current: None,
            part: 0,
            next_row: 0,
        }
    }

    /// The batch that holds a row of a partition, and the number of its first. Rows are asked for in their order.
    fn batch_of(&mut self, part: u32, row: u64) -> Result<(RecordBatch, u64), StageError> {
        loop {
            if let Some((batch, of, first)) = &self.current
                && *of == part
                && (*first..*first + batch.num_rows() as u64).contains(&row)
            {
                return Ok((batch.clone(), *first));
            }
            if let Some(batch) = self.batches.as_mut().and_then(Iterator::next) {
                let batch = batch?;
                let first = self.next_row;
                self.next_row += batch.num_rows() as u64;
                // In the order in which they are taken, whatever that of the file is.
                let places = self.columns.iter().map(|name| batch.schema_ref().index_of(name));
                let places = places.collect::<Result<Vec<_>, _>>().map_err(StageError::failed)?;
                let batch = batch.project(&places).map_err(StageError::failed)?;
                self.current = Some((batch, self.part, first));
                continue;
            }
            let Some((of, file)) = self.files.get(self.next_file) else { return Err(lost("a row of the table")) };
            self.next_file += 1;
            if *of != self.part {
                (self.part, self.next_row) = (*of, 0);
            }
            let names: Vec<&str> = self.columns.iter().map(String::as_str).collect();
            self.batches = Some(Box::new(Shard::open(file)?.batches(Some(&names), ROWS)?));
        }
    }

    /// Where a key lies, before `place`. Reads the table once more, for a message.
    fn place_of(&self, key: &str, place: (u32, u64)) -> Result<Option<(u32, u64)>, StageError> {
        let (mut of, mut row) = (0, 0);
        for (part, file) in &self.files {
            if *part != of {
                (of, row) = (*part, 0);
            }
            for batch in Shard::open(file)?.batches(Some(&[self.key.as_str()]), ROWS)? {
                let batch = batch?;
                let texts = arrow::compute::cast(batch.column(0), &DataType::Utf8).map_err(StageError::failed)?;
                let texts = texts.as_any().downcast_ref::<StringArray>().ok_or_else(|| lost("a key"))?;
                if let Some(at) = texts.iter().position(|text| text == Some(key)) {
                    let found = (of, row + at as u64);
                    return Ok(Some(found).filter(|found| *found != place));
                }
                row += batch.num_rows() as u64;
            }
        }
        Ok(None)
    }
}

pub(super) fn lost(what: &str) -> StageError {
    StageError::failed(format!("{what} got lost in the join; this is a fault in the program"))
}

pub(super) fn typed<'a, A: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a A, StageError> {
    let array = batch.column_by_name(name).and_then(|array| array.as_any().downcast_ref::<A>());
    array.ok_or_else(|| lost(name))
}

/// The sample's key, for messages.
pub(super) fn key_of(shard: &Shard, batch: &RecordBatch, row: usize) -> String {
    crate::stages::rows::text(shard, batch, columns::KEY, row)
}
