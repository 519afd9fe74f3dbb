//! `union`: the rows of several stages as one.
//!
//! - in: shards of several stages
//! - out: the same rows in the same partitions, which take the names of their stages; with the columns of all, empty where a stage has none
//! - stale when: its own input changed, or the columns of all
//! - law: out = Σ in
//!
//! A survey looks at columns and keys: a column must be of one type in all, and a key may be there once. It keeps to the stage's
//! `memory` (1 GB unless the manifest says otherwise) and spills the rest to disk. A shard that has the columns already is linked and
//! not written again.

use std::sync::Arc;

use arrow::array::{Array, RecordBatch, StringArray, UInt32Array, new_null_array};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::error::DataFusionError;
use datafusion::physical_plan::execute_stream;
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::reader::Shard;
use shards::writer::ShardWriter;
use shards::{ShardError, columns};

use super::rows;
use super::sql::select::{Fault, next_batch, session, spilled};
use super::sql::table::Table;
use crate::stage::{Input, Law, Outcome, Partitioning, Stage, StageError, StageKind, Task, as_it_is};

/// Bytes of memory for the comparison of keys where the manifest does not say.
const MEMORY: u64 = 1_000_000_000;
/// The most stages of one union.
const MOST: usize = 100;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Union {
    /// Keep only these columns, beside the key and the image [all].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    columns: Option<Vec<String>>,
}

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "union",
        version: 1,
        about: "The rows of several stages as one.",
        inputs: (2, MOST),
        schemas: || vec![schema_for!(Union)],
        rehearse: as_it_is,
        build: |parameters| Ok(Box::new(parameters.read::<Union>()?)),
    }
}

/// Why rows cannot be put together.
#[derive(Debug, thiserror::Error)]
enum UnionError {
    #[error(
        "the column {column} is {kind} in {stage}, but {before} in {first}; make them alike with `uses = \"sql\"`, or leave the column out \
         with columns = […]"
    )]
    Kind { column: String, kind: DataType, stage: String, before: DataType, first: String },
    #[error("the key {key} is in {first} and in {second}; give one of the stages that they come from another `source`")]
    Twice { key: String, first: String, second: String },
    #[error("columns: {column} is a column of none of the stages; they have {known}")]
    NoColumn { column: String, known: String },
}

impl Stage for Union {
    fn semantics(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn partitioning(&self) -> Partitioning {
        Partitioning::Surveyed
    }

    fn law(&self) -> Law {
        Law::Union
    }

    fn survey(&self, task: &Task) -> Result<Outcome, StageError> {
        let schema = Arc::new(self.schema_of(task.inputs)?);
        let mut outcome = Outcome::default();
        outcome.details.insert("spilled_bytes".to_owned(), compare_keys(task)?.into());
        for (part, input) in task.inputs.iter().enumerate() {
            // What a partition is to know is the columns; that they are the same keeps it.
            outcome.data.push(ShardWriter::create(&task.attempt.numbered(part), &schema)?.finish()?);
            outcome.rows_in += input.sidecar.data.iter().map(|file| file.rows).sum::<u64>();
        }
        outcome.rows_out = outcome.rows_in;
        Ok(outcome)
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let wanted = Arc::clone(rows::survey(task)?.schema());
        let mut outcome = Outcome::default();
        let shards = rows::open(task.inputs)?;
        let alike = |shard: &Shard| shard.schema().fields() == wanted.fields();
        if let ([input], [shard]) = (task.inputs, shards.as_slice())
            && let [described] = input.sidecar.data.as_slice()
            && alike(shard)
        {
            let linked = shards::data_file::link(shard.path(), described, &task.attempt.data())?;
            (outcome.rows_in, outcome.rows_out) = (linked.rows, linked.rows);
            task.tally.good(linked.rows);
            outcome.data.push(linked);
            return Ok(outcome);
        }
        let mut writer = ShardWriter::create(&task.attempt.data(), &wanted)?;
        for shard in &shards {
            let names: Vec<&str> = shard.schema().fields().iter().map(|field| field.name().as_str()).collect();
            let names: Vec<&str> = names.into_iter().filter(|name| wanted.index_of(name).is_ok()).collect();
            for batch in shard.batches(Some(&names), 128)? {
                task.check_cancelled()?;
                let batch = batch?;
                let arrays = wanted.fields().iter().map(|field| match batch.column_by_name(field.name()) {
                    Some(column) => Arc::clone(column),
                    None => new_null_array(field.data_type(), batch.num_rows()),
                });
                let batch = RecordBatch::try_new(Arc::clone(&wanted), arrays.collect());
                let batch = batch.map_err(ShardError::arrow(shard.path()))?;
                task.tally.good(batch.num_rows() as u64);
                writer.write(&batch)?;
            }
            outcome.rows_in += shard.rows();
        }
        let data = writer.finish()?;
        outcome.rows_out = data.rows;
        outcome.data.push(data);
        Ok(outcome)
    }
}

impl Union {
    /// The columns of all: those of the first, then what further ones add.
    fn schema_of(&self, inputs: &[Input]) -> Result<Schema, StageError> {
        // Of each column, the stage that it was seen in first, and in how many shards it is.
        let mut fields: Vec<(Field, String, usize)> = Vec::new();
        let mut shards = 0;
        let mut known: Vec<String> = Vec::new();
        let always = [columns::KEY, columns::IMAGE, columns::CHECKSUM];
        let is_wanted = |name: &String| {
            self.columns.as_ref().is_none_or(|wanted| always.contains(&name.as_str()) || wanted.contains(name))
        };
        let has_rows = inputs.iter().any(|input| input.sidecar.rows_out > 0);
        for input in inputs {
            for file in input.files() {
                let shard = Shard::open(&file)?;
                // One without rows may not know of what type its columns would be.
                if shard.rows() == 0 && has_rows {
                    continue;
                }
                shards += 1;
                for field in shard.schema().fields() {
                    if !known.contains(field.name()) {
                        known.push(field.name().clone());
                    }
                    if !is_wanted(field.name()) {
                        continue;
                    }
                    match fields.iter_mut().find(|(known, ..)| known.name() == field.name()) {
                        None => fields.push((field.as_ref().clone(), input.stage.clone(), 1)),
                        Some((known, _, count)) if known.data_type() == field.data_type() => {
                            *count += 1;
                            known.set_nullable(known.is_nullable() || field.is_nullable());
                        }
                        Some((known, first, _)) => {
                            let (column, kind) = (field.name().clone(), field.data_type().clone());
                            let (before, first, stage) =
                                (known.data_type().clone(), first.clone(), input.stage.clone());
                            return Err(StageError::failed(UnionError::Kind { column, kind, stage, before, first }));
                        }
                    }
                }
            }
        }
        if let Some(column) = self.columns.iter().flatten().find(|name| !known.contains(name)) {
            return Err(StageError::failed(UnionError::NoColumn { column: column.clone(), known: known.join(", ") }));
        }
        let field = |(field, _, count): (Field, String, usize)| {
            let nullable = field.is_nullable() || count < shards;
            field.with_nullable(nullable)
        };
        Ok(columns::schema_of_samples(fields.into_iter().map(field).collect()))
    }
}

/// Refuses a key that is there twice; returns the bytes that were spilled.
fn compare_keys(task: &Task) -> Result<u64, StageError> {
    let memory = task.memory.unwrap_or(MEMORY);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| StageError::failed(format!("a comparison of keys cannot be started: {error}")))?;
    let compared = runtime.block_on(async {
        let context = session(memory)?;
        let keys = Table::places(task.inputs, columns::KEY, DataType::Utf8, ["key", "part", "row"]);
        context.register_table("keys", Arc::new(keys))?;
        let query = "SELECT key, before, part FROM (SELECT key, part, lag(key) OVER w AS last, lag(part) OVER w AS before FROM keys \
                     WINDOW w AS (ORDER BY key, part, row)) WHERE key = last";
        let plan = context.sql(query).await?.create_physical_plan().await?;
        let mut stream = execute_stream(Arc::clone(&plan), context.task_ctx())?;
        while let Some(batch) = next_batch(&mut stream, task.cancel).await.map_err(Fault::Stage)? {
            let batch = batch?;
            if batch.num_rows() > 0 {
                return Ok::<_, Fault>((Some(batch), 0));
            }
        }
        Ok((None, spilled(plan.as_ref())))
    });
    let (twice, spilled) = compared.map_err(|fault| match fault {
        Fault::Stage(error) => error,
        Fault::Query(error) => StageError::failed(match error.find_root() {
            DataFusionError::ResourcesExhausted(_) => format!(
                "memory is limited to {memory} bytes, which are too few to compare keys: give the stage more, such as memory = \"4 GB\""
            ),
            _ => format!("keys cannot be compared: {}", error.strip_backtrace()),
        }),
    })?;
    let Some(batch) = twice else { return Ok(spilled) };
    let part = |column: usize| {
        let parts = batch.column(column).as_any().downcast_ref::<UInt32Array>().filter(|parts| parts.is_valid(0));
        let input = parts.and_then(|parts| task.inputs.get(parts.value(0) as usize));
        input.map_or_else(|| "a partition".to_owned(), Input::name)
    };
    let keys = batch.column(0).as_any().downcast_ref::<StringArray>();
    let key = keys.map(|keys| keys.value(0).to_owned()).unwrap_or_default();
    Err(StageError::failed(UnionError::Twice { key, first: part(1), second: part(2) }))
}
