//! `sql`: the rows and columns that a SELECT gives.
//!
//! - in: shards with key and any other column, all alike; they are the table `input`
//! - out: the columns of the result; its rows in the order of their shards, each in the partition that it came from
//! - stale when: the query or its input changed; of a query that needs the whole, a partition is stale only when its own rows
//!   of the result changed
//! - law: in = out + Σ dropped (`not_selected`); they are not kept in quarantine
//!
//! Images never enter the query: the column is there to be selected or left out, and each partition attaches its own images,
//! as they are, to the rows that remain. The result needs the column `key`: a row may come out once or not at all, and no new
//! rows may come of it.
//!
//! A query that only projects and filters runs on each partition by itself. Any other (DISTINCT, ORDER BY, LIMIT, GROUP BY,
//! joins, subqueries, window functions) runs once, over the metadata of all partitions, in a survey. It keeps to the stage's
//! `memory` (1 GB unless the manifest says otherwise) and spills the rest to the folder for temporary files (`TMPDIR`). Where an
//! ORDER BY leaves ties open, memory may decide them: end it with the key.
//!
//! With a cluster, the survey is a query that it answers ([`distributed`]), if it comes to the same in whichever order rows are met
//! ([`order`]).

mod distributed;
mod order;
pub(super) mod select;
mod statement;
pub(super) mod table;

use std::sync::Arc;

use arrow::array::{RecordBatch, UInt64Array};
use arrow::datatypes::{Field, Schema};
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::reader::Shard;
use shards::sidecar::DataFile;
use shards::writer::ShardWriter;
use shards::{ShardError, columns};

use self::select::{IMAGE_PLACE, Located, PLACE, select};
use self::statement::Reach;
use self::table::Table;
use super::rows;
use super::survey_file::SurveyFile;
use crate::stage::{Law, Outcome, Partitioning, Stage, StageError, StageKind, Task, as_it_is};

/// Bytes of memory for a query where the manifest does not say.
const MEMORY: u64 = 1_000_000_000;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Parameters {
    /// A SELECT over the table `input`, such as "SELECT * FROM input WHERE width > 512". Its result must have the column key.
    query: String,
}

#[derive(Debug)]
struct Sql {
    parameters: Parameters,
    reach: Reach,
}

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "sql",
        version: 1,
        about: "The rows and columns that a SELECT gives.",
        inputs: (1, 1),
        schemas: || vec![schema_for!(Parameters)],
        rehearse: as_it_is,
        build: |table| {
            let parameters: Parameters = table.read()?;
            let reach = statement::check(&parameters.query);
            let reach = reach.map_err(|reason| table.fault("query", format!("query cannot be run: {reason}")))?;
            Ok(Box::new(Sql { parameters, reach }))
        },
    }
}

impl Stage for Sql {
    fn semantics(&self) -> Value {
        serde_json::to_value(&self.parameters).unwrap_or_default()
    }

    fn partitioning(&self) -> Partitioning {
        match self.reach {
            Reach::Row => Partitioning::EachInput,
            Reach::AnyOrder | Reach::Whole => Partitioning::Surveyed,
        }
    }

    fn asks_a_cluster(&self) -> bool {
        self.reach == Reach::AnyOrder
    }

    fn law(&self) -> Law {
        Law::RowWise
    }

    fn survey(&self, task: &Task) -> Result<Outcome, StageError> {
        let mut open: Option<(usize, SurveyFile)> = None;
        let mut files: Vec<Option<DataFile>> = vec![None; task.inputs.len()];
        let mut finish = |open: Option<(usize, SurveyFile)>| -> Result<(), StageError> {
            if let Some((part, file)) = open
                && let Some(place) = files.get_mut(part)
            {
                *place = Some(file.finish()?);
            }
            Ok(())
        };
        let table = Table::of(task.inputs)?;
        let each = |Located { part, rows }: Located| {
            let file = match open.take() {
                Some((at, file)) if at == part => file,
                before => {
                    finish(before)?;
                    SurveyFile::create(&task.attempt.numbered(part), &rows.schema())?
                }
            };
            open.insert((part, file)).1.take(rows)
        };
        let query = &self.parameters.query;
        let done = match task.queries {
            Some(queries) if rows::of(task.inputs) > 0 => {
                distributed::select(query, &table, task.inputs, queries, task.cancel, each)
            }
            _ => select(query, &table, memory(task), task.cancel, each),
        }?;
        finish(open.take())?;
        let mut outcome = Outcome { rows_in: rows::of(task.inputs), ..Outcome::default() };
        for (part, file) in files.into_iter().enumerate() {
            let file = match file {
                Some(file) => file,
                None => SurveyFile::create(&task.attempt.numbered(part), &done.schema)?.finish()?,
            };
            outcome.rows_out += file.rows;
            outcome.data.push(file);
        }
        match done.spilled {
            Some(bytes) => outcome.details.insert("spilled_bytes".to_owned(), bytes.into()),
            None => outcome.details.insert("distributed".to_owned(), true.into()),
        };
        Ok(outcome)
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let shards = rows::open(task.inputs)?;
        let (schema, batches) = match self.reach {
            Reach::AnyOrder | Reach::Whole => {
                let survey = rows::survey(task)?;
                let batches = survey.batches(None, 65_536)?.collect::<Result<Vec<_>, _>>()?;
                (Arc::clone(survey.schema()), batches)
            }
            Reach::Row => {
                let table = Table::of(task.inputs)?;
                let mut batches = Vec::new();
                let done = select(&self.parameters.query, &table, memory(task), task.cancel, |located| {
                    batches.push(located.rows);
                    Ok(())
                })?;
                (done.schema, batches)
            }
        };
        let selected = arrow::compute::concat_batches(&schema, &batches).map_err(StageError::failed)?;
        let mut outcome = Outcome { rows_in: rows::count(&shards) as u64, ..Outcome::default() };
        let data = attach(task, &shards, &selected)?;
        outcome.rows_out = data.rows;
        outcome.data.push(data);
        let left_out = outcome.rows_in.saturating_sub(outcome.rows_out);
        (0..left_out).try_for_each(|_| task.tally.bad(NOT_SELECTED))?;
        if left_out > 0 {
            outcome.dropped.insert(NOT_SELECTED.to_owned(), left_out);
        }
        Ok(outcome)
    }
}

const NOT_SELECTED: &str = "not_selected";

fn memory(task: &Task) -> u64 {
    task.memory.unwrap_or(MEMORY)
}

/// Writes the selected rows, with the images of the shards that they lie in where the query selects them.
fn attach(task: &Task, shards: &[Shard], selected: &RecordBatch) -> Result<DataFile, StageError> {
    let path = task.attempt.data();
    let wrong = || StageError::failed("the survey is not one of this query; this is a fault in the program");
    let schema = selected.schema();
    let image = schema.fields().iter().position(|field| field.name() == IMAGE_PLACE);
    let mut fields = Vec::with_capacity(schema.fields().len());
    for field in schema.fields().iter().skip(1) {
        let shard = if field.name() == IMAGE_PLACE { shards.first() } else { None };
        let field = match shard {
            Some(shard) => shard.schema().field_with_name(columns::IMAGE).map_err(ShardError::arrow(shard.path()))?,
            None => field.as_ref(),
        };
        fields.push(Field::new(field.name(), field.data_type().clone(), field.is_nullable()));
    }
    let schema: Arc<Schema> = Arc::new(columns::schema_of_samples(fields));
    let numbers = selected.column_by_name(PLACE).and_then(|rows| rows.as_any().downcast_ref::<UInt64Array>());
    let numbers = numbers.ok_or_else(wrong)?.values();
    let mut writer = ShardWriter::create(&path, &schema)?;
    let mut write = |from: usize, count: usize, images: Option<arrow::array::ArrayRef>| -> Result<(), StageError> {
        let mut arrays: Vec<_> = selected.slice(from, count).columns().iter().skip(1).cloned().collect();
        if let (Some(at), Some(images)) = (image, images)
            && let Some(place) = arrays.get_mut(at - 1)
        {
            *place = images;
        }
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(ShardError::arrow(&path))?;
        task.tally.good(count as u64);
        Ok(writer.write(&batch)?)
    };
    if image.is_none() {
        write(0, selected.num_rows(), None)?;
        return Ok(writer.finish()?);
    }
    let (mut done, mut start) = (0, 0);
    for shard in shards {
        for batch in shard.batches(Some(&[columns::IMAGE]), 128)? {
            task.check_cancelled()?;
            let batch = batch?;
            let end = start + batch.num_rows() as u64;
            let here = numbers.iter().skip(done).take_while(|number| **number < end);
            let here = UInt64Array::from_iter_values(here.map(|number| number.saturating_sub(start)));
            let images = batch.column_by_name(columns::IMAGE).ok_or_else(wrong)?;
            let images = arrow::compute::take(images, &here, None).map_err(ShardError::arrow(shard.path()))?;
            if !here.is_empty() {
                write(done, here.len(), Some(images))?;
            }
            done += here.len();
            start = end;
        }
    }
    if done < selected.num_rows() {
        return Err(wrong());
    }
    Ok(writer.finish()?)
}
