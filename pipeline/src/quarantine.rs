//! Rows that were refused: counted by reason and, unless the manifest drops them, kept with their keys.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::StringArray;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use shards::sidecar::DataFile;
use shards::writer::ShardWriter;
use shards::{ShardError, columns};

use crate::manifest::OnBadRow;
use crate::stage::{StageError, Tally};

/// A refused row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    pub key: String,
    pub url: String,
    pub caption: String,
    /// One of a small set of words, counted in the sidecar.
    pub reason: &'static str,
    /// img2dataset's word for the same.
    pub status: &'static str,
    pub detail: String,
}

/// Collects the refused rows of one partition.
pub struct Quarantine<'a> {
    policy: OnBadRow,
    stage: &'a str,
    tally: &'a Tally,
    rows: Vec<BadRow>,
    dropped: BTreeMap<String, u64>,
}

impl<'a> Quarantine<'a> {
    pub fn new(policy: OnBadRow, stage: &'a str, tally: &'a Tally) -> Self {
        Self { policy, stage, tally, rows: Vec::new(), dropped: BTreeMap::new() }
    }

    /// Refuses a row. An error when the manifest says that one bad row, or so many, fail the stage. Call it in the order of
    /// the rows: the file keeps that order.
    pub fn refuse(&mut self, row: BadRow) -> Result<(), StageError> {
        self.tally.bad(row.reason)?;
        self.record(row)
    }

    /// As [`Quarantine::refuse`], for a row that the tally has heard of already.
    pub fn record(&mut self, row: BadRow) -> Result<(), StageError> {
        *self.dropped.entry(row.reason.to_owned()).or_default() += 1;
        match self.policy {
            OnBadRow::Drop => {}
            OnBadRow::Quarantine => self.rows.push(row),
            OnBadRow::Fail => {
                return Err(StageError::BadRow { key: row.key, reason: row.reason.to_owned(), detail: row.detail });
            }
        }
        Ok(())
    }

    /// Writes the kept rows to `path`. Returns the counts by reason, and the file unless there is nothing to keep.
    pub fn finish(self, path: &Path) -> Result<(BTreeMap<String, u64>, Option<DataFile>), StageError> {
        if self.rows.is_empty() {
            return Ok((self.dropped, None));
        }
        let names = [
            columns::KEY,
            columns::URL,
            columns::CAPTION,
            columns::STAGE,
            columns::REASON,
            columns::STATUS,
            columns::ERROR_MESSAGE,
        ];
        let fields: Vec<Field> = names.iter().map(|name| Field::new(*name, DataType::Utf8, false)).collect();
        let schema = Arc::new(Schema::new(fields));
        let column = |value: fn(&BadRow) -> &str| -> Arc<StringArray> {
            Arc::new(StringArray::from_iter_values(self.rows.iter().map(value)))
        };
        let stages = Arc::new(StringArray::from_iter_values(self.rows.iter().map(|_| self.stage)));
        let batch = RecordBatch::try_new(
            Arc::clone(&schema),
            vec![
                column(|r| &r.key),
                column(|r| &r.url),
                column(|r| &r.caption),
                stages,
                column(|r| r.reason),
                column(|r| r.status),
                column(|r| &r.detail),
            ],
        )
        .map_err(ShardError::arrow(path))?;
        let mut writer = ShardWriter::create(path, &schema)?;
        writer.write(&batch)?;
        let mut file = writer.finish()?;
        file.file = format!("quarantine/{}", file.file);
        Ok((self.dropped, Some(file)))
    }
}
