//! A file that a survey leaves. What is made of it is stale when its bytes change, so they depend on its rows only: those are written
//! in batches of one size, whatever their sizes are as they come.

use std::path::Path;

use arrow::array::RecordBatch;
use arrow::compute::BatchCoalescer;
use arrow::datatypes::SchemaRef;
use shards::sidecar::DataFile;
use shards::writer::ShardWriter;

use crate::stage::StageError;

/// Rows that are written together.
pub(super) const ROWS: usize = 8192;

pub(super) struct SurveyFile {
    writer: ShardWriter,
    waiting: BatchCoalescer,
}

impl SurveyFile {
    pub(super) fn create(path: &Path, schema: &SchemaRef) -> Result<Self, StageError> {
        let waiting = BatchCoalescer::new(SchemaRef::clone(schema), ROWS);
        Ok(Self { writer: ShardWriter::create(path, schema)?, waiting })
    }

    pub(super) fn take(&mut self, rows: RecordBatch) -> Result<(), StageError> {
        self.waiting.push_batch(rows).map_err(StageError::failed)?;
        self.write()
    }

    fn write(&mut self) -> Result<(), StageError> {
        while let Some(batch) = self.waiting.next_completed_batch() {
            self.writer.write(&batch)?;
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<DataFile, StageError> {
        self.waiting.finish_buffered_batch().map_err(StageError::failed)?;
        self.write()?;
        Ok(self.writer.finish()?)
    }
}
