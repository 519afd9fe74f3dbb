//! What the survey writes: a file for each partition of samples, with a row for each of its rows.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, UInt32Array, UInt64Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::Joined;
use super::join::{Fault, SAMPLE_PART, SAMPLE_ROW, beside_schema, lost, typed};
use crate::stage::{Input, MATCHED, Outcome, StageError, Task};
use crate::stages::survey_file::{ROWS, SurveyFile};

/// Whether the table names the row.
pub(super) const HAS_MATCH: &str = "__ferrotype_matched";

/// The schema of the survey's files.
fn survey_schema(joined: &Joined) -> SchemaRef {
    let taken = joined.taken.iter().map(|taken| Field::new(&taken.name, taken.kind.clone(), true));
    Arc::new(Schema::new(
        std::iter::once(Field::new(HAS_MATCH, DataType::Boolean, false)).chain(taken).collect::<Vec<_>>(),
    ))
}

/// The survey's files, one for each partition of samples.
pub(super) struct Files<'a> {
    joined: &'a Joined,
    schema: SchemaRef,
    task: &'a Task<'a>,
    /// Rows of each partition.
    rows: Vec<u64>,
    open: Option<Open>,
    outcome: Outcome,
    matched: u64,
}

/// The file that is being written.
struct Open {
    file: SurveyFile,
    /// The number of the row that comes next.
    next: u64,
}

impl<'a> Files<'a> {
    pub(super) fn new(joined: &'a Joined, samples: &[Input], task: &'a Task<'a>) -> Self {
        let rows = samples.iter().map(|input| input.sidecar.data.iter().map(|file| file.rows).sum()).collect();
        Self { joined, schema: survey_schema(joined), task, rows, open: None, outcome: Outcome::default(), matched: 0 }
    }

    /// Takes in rows that are sorted by partition and row.
    pub(super) fn take(&mut self, batch: &RecordBatch) -> Result<(), Fault> {
        let parts: &UInt32Array = typed(batch, SAMPLE_PART)?;
        let rows: &UInt64Array = typed(batch, SAMPLE_ROW)?;
        self.matched += batch.num_rows() as u64;
        let mut start = 0;
        for of_part in parts.values().chunk_by(|a, b| a == b) {
            let part = of_part.first().copied().unwrap_or_default() as usize;
            while self.outcome.data.len() < part {
                self.finish_file()?;
            }
            let places = rows.values().iter().enumerate().skip(start).take(of_part.len());
            self.write(batch, places.map(|(at, row)| (*row, at as u64)))?;
            start += of_part.len();
        }
        Ok(())
    }

    /// Writes rows of the open file up to the last of `places`: numbers of rows, each with where in `batch` it is.
    fn write(&mut self, batch: &RecordBatch, places: impl Iterator<Item = (u64, u64)>) -> Result<(), StageError> {
        let mut indices: Vec<Option<u64>> = Vec::with_capacity(ROWS);
        let mut next = self.open()?.next;
        for (row, at) in places {
            while next < row {
                indices.push(None);
                next += 1;
                if indices.len() >= ROWS {
                    self.put(batch, &mut indices)?;
                }
            }
            if next > row {
                return Err(lost("the order of the samples"));
            }
            indices.push(Some(at));
            next += 1;
            if indices.len() >= ROWS {
                self.put(batch, &mut indices)?;
            }
        }
        self.put(batch, &mut indices)
    }

    /// Writes the rows of `batch` at `indices`, empty ones where there is none.
    fn put(&mut self, batch: &RecordBatch, indices: &mut Vec<Option<u64>>) -> Result<(), StageError> {
        if indices.is_empty() {
            return Ok(());
        }
        let has_match: BooleanArray = indices.iter().map(|index| Some(index.is_some())).collect();
        let places = UInt64Array::from(std::mem::take(indices));
        let mut arrays: Vec<ArrayRef> = vec![Arc::new(has_match)];
        for taken in &self.joined.taken {
            let column = batch.column_by_name(&taken.name).ok_or_else(|| lost(&taken.name))?;
            arrays.push(take(column, &places, None).map_err(StageError::failed)?);
        }
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), arrays).map_err(StageError::failed)?;
        let open = self.open()?;
        open.next += rows.num_rows() as u64;
        open.file.take(rows)
    }

    fn open(&mut self) -> Result<&mut Open, StageError> {
        let open = match self.open.take() {
            Some(open) => open,
            None => Open {
                file: SurveyFile::create(&self.task.attempt.numbered(self.outcome.data.len()), &self.schema)?,
                next: 0,
            },
        };
        Ok(self.open.insert(open))
    }

    /// Fills the open file up to the rows of its partition, and ends it.
    fn finish_file(&mut self) -> Result<(), StageError> {
        self.task.check_cancelled()?;
        let rows = self.rows.get(self.outcome.data.len()).copied().unwrap_or(0);
        let nothing = RecordBatch::new_empty(beside_schema(self.joined));
        let mut next = self.open()?.next;
        while next < rows {
            let mut indices = vec![None; usize::try_from(rows - next).unwrap_or(ROWS).min(ROWS)];
            next += indices.len() as u64;
            self.put(&nothing, &mut indices)?;
        }
        if let Some(open) = self.open.take() {
            let file = open.file.finish()?;
            if file.rows != rows {
                return Err(lost("a row of the samples"));
            }
            self.outcome.rows_in += file.rows;
            self.outcome.data.push(file);
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Outcome, StageError> {
        while self.outcome.data.len() < self.rows.len() {
            self.finish_file()?;
        }
        self.outcome.rows_out = self.outcome.rows_in;
        self.outcome.observed.insert(MATCHED.to_owned(), self.matched);
        Ok(self.outcome)
    }
}
