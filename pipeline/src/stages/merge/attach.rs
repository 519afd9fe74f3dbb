//! A partition of samples with what the survey left for it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, StringArray};
use arrow::compute::{filter_record_batch, kernels::zip::zip};
use arrow::datatypes::{DataType, Field, Schema};
use shards::reader::Shard;
use shards::writer::ShardWriter;
use shards::{ShardError, columns};

use super::files::HAS_MATCH;
use super::join::key_of;
use super::{Merge, MergeError, Unmatched};
use crate::quarantine::{BadRow, Quarantine};
use crate::stage::{MATCHED, Outcome, StageError, Task, UNMATCHED};
use crate::stages::rows;

/// Rows with their images that are in memory together.
const ROWS: usize = 128;

pub(super) fn attach(merge: &Merge, task: &Task) -> Result<Outcome, StageError> {
    let shards = rows::open(task.inputs)?;
    let survey = rows::survey(task)?;
    let taken: Vec<Field> = survey.schema().fields().iter().skip(1).map(|field| field.as_ref().clone()).collect();
    let mut outcome = Outcome::default();
    let mut quarantine = Quarantine::new(task.on_bad_row, task.stage, task.tally);
    let Some(first) = shards.first() else { return Ok(outcome) };
    let schema = Arc::new(merged(first.schema(), &taken));
    let mut writer = ShardWriter::create(&task.attempt.data(), &schema)?;
    let mut table = Reader { batches: Box::new(survey.batches(None, 8192)?), rest: None };
    let mut counts = [0; 2];
    let mut replaced = 0;
    for shard in &shards {
        for batch in shard.batches(None, ROWS)? {
            task.check_cancelled()?;
            let batch = batch?;
            let said = table.next(batch.num_rows())?;
            let has_match: &BooleanArray = typed(&said, HAS_MATCH)?;
            let matched = has_match.true_count() as u64;
            counts[0] += matched;
            counts[1] += batch.num_rows() as u64 - matched;
            let (merged, fallbacks) =
                merge.columns_of(&batch, &said, &schema).map_err(ShardError::arrow(shard.path()))?;
            replaced += fallbacks;
            let kept = match merge.unmatched {
                Unmatched::Keep => merged,
                Unmatched::Drop => {
                    for row in (0..batch.num_rows()).filter(|&row| !has_match.value(row)) {
                        quarantine.refuse(refused(shard, &batch, row))?;
                    }
                    filter_record_batch(&merged, has_match).map_err(ShardError::arrow(shard.path()))?
                }
                Unmatched::Fail => {
                    if let Some(row) = (0..batch.num_rows()).find(|&row| !has_match.value(row)) {
                        let (key, partition) = (key_of(shard, &batch, row), task.partition.to_owned());
                        let row = outcome.rows_in + row as u64;
                        return Err(MergeError::Unmatched { key, partition, row }.into());
                    }
                    merged
                }
            };
            outcome.rows_in += batch.num_rows() as u64;
            task.tally.good(kept.num_rows() as u64);
            writer.write(&kept)?;
        }
    }
    let data = writer.finish()?;
    outcome.rows_out = data.rows;
    outcome.data.push(data);
    outcome.observed.insert(MATCHED.to_owned(), counts[0]);
    outcome.observed.insert(UNMATCHED.to_owned(), counts[1]);
    if replaced > 0 {
        outcome.observed.insert("texts by a fallback".to_owned(), replaced);
    }
    (outcome.dropped, outcome.quarantine) = quarantine.finish(&task.attempt.quarantine())?;
    Ok(outcome)
}

fn refused(shard: &Shard, batch: &RecordBatch, row: usize) -> BadRow {
    let text = |column| rows::text(shard, batch, column, row);
    let (key, url, caption) = (text(columns::KEY), text(columns::URL), text(columns::CAPTION));
    let detail = "the table has no row of its key".to_owned();
    BadRow { key, url, caption, reason: UNMATCHED, status: "filtered", detail }
}

/// The samples' columns and then the table's, which take the place of those of the same name.
fn merged(samples: &Schema, taken: &[Field]) -> Schema {
    let of_table = |name: &str| taken.iter().find(|field| field.name() == name);
    let own = samples.fields().iter().map(|field| of_table(field.name()).unwrap_or(field).clone());
    let new = taken.iter().filter(|field| samples.index_of(field.name()).is_err()).cloned();
    columns::schema_of_samples(own.chain(new).collect())
}

impl Merge {
    /// A batch with the columns that the table `said` it has, and how many values a fallback took the place of.
    fn columns_of(
        &self,
        batch: &RecordBatch,
        said: &RecordBatch,
        schema: &Arc<Schema>,
    ) -> Result<(RecordBatch, u64), arrow::error::ArrowError> {
        let mut replaced = 0;
        let mut arrays = Vec::with_capacity(schema.fields().len());
        for field in schema.fields() {
            let name = field.name();
            let Some(column) = said.column_by_name(name) else {
                arrays.push(Arc::clone(batch.column(batch.schema_ref().index_of(name)?)));
                continue;
            };
            let column = self.without_markers(column);
            let Some(fallback) = self.fallback.get(name) else {
                arrays.push(column);
                continue;
            };
            let own = batch.column(batch.schema_ref().index_of(fallback)?);
            let is_there = arrow::compute::is_not_null(&column)?;
            replaced += (is_there.len() - is_there.true_count()) as u64;
            arrays.push(zip(&is_there, &column, own)?);
        }
        Ok((RecordBatch::try_new(Arc::clone(schema), arrays)?, replaced))
    }

    /// A column of texts without those that count as missing, and without white space around them; others as they are.
    fn without_markers(&self, column: &ArrayRef) -> ArrayRef {
        let texts = column.as_any().downcast_ref::<StringArray>().filter(|_| *column.data_type() == DataType::Utf8);
        let Some(texts) = texts else { return Arc::clone(column) };
        let is_text = |text: &&str| !text.is_empty() && !self.treat_as_missing.iter().any(|marker| marker == text);
        Arc::new(texts.iter().map(|text| text.map(str::trim).filter(is_text)).collect::<StringArray>())
    }
}

/// Reads the survey by as many rows as the samples have.
struct Reader {
    batches: Box<dyn Iterator<Item = Result<RecordBatch, ShardError>> + Send>,
    rest: Option<RecordBatch>,
}

impl Reader {
    fn next(&mut self, rows: usize) -> Result<RecordBatch, StageError> {
        let mut pieces: Vec<RecordBatch> = Vec::new();
        let mut missing = rows;
        loop {
            let batch = match self.rest.take() {
                Some(batch) => batch,
                None => self.batches.next().ok_or_else(too_short)??,
            };
            let taken = batch.num_rows().min(missing);
            missing -= taken;
            pieces.push(batch.slice(0, taken));
            if taken < batch.num_rows() {
                self.rest = Some(batch.slice(taken, batch.num_rows() - taken));
            }
            if missing == 0 {
                break;
            }
        }
        let Some(first) = pieces.first() else { return Err(too_short()) };
        arrow::compute::concat_batches(&first.schema(), &pieces).map_err(StageError::failed)
    }
}

fn too_short() -> StageError {
    StageError::failed("the survey has fewer rows than the samples; this is a fault in the program")
}

fn typed<'a, A: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a A, StageError> {
    batch.column_by_name(name).and_then(|array| array.as_any().downcast_ref::<A>()).ok_or_else(too_short)
}
