//! Where rows go: shards of ours, or img2dataset's layout.

use shards::sidecar::DataFile;

use super::order::RowResult;
use super::parameters::{self, Semantics};
use super::row::Picture;
use super::url_list::Rows;
use super::webdataset::Webdataset;
use crate::stage::{StageError, Task};
use crate::stages::samples::{Columns, Sample, SampleWriter};

/// A partition's output.
pub(super) enum Output {
    Parquet(Box<SampleWriter>),
    Webdataset(Box<Webdataset>),
}

impl Output {
    /// Starts the output of `rows`.
    pub(super) fn create(rows: &Rows, semantics: &Semantics, task: &Task) -> Result<Self, StageError> {
        match semantics.output {
            parameters::Output::Parquet => {
                let columns = Columns {
                    hash: semantics.compute_hash.column(),
                    original_size: !semantics.resize.keeps_bytes(),
                    phash: semantics.compute_phash,
                    exif: semantics.extract_exif,
                    additional: Some(rows.additional()?),
                };
                Ok(Self::Parquet(Box::new(SampleWriter::create(&task.attempt.data(), columns)?)))
            }
            parameters::Output::Webdataset => {
                Ok(Self::Webdataset(Box::new(Webdataset::create(rows, semantics, task)?)))
            }
        }
    }

    /// Takes the next row.
    pub(super) fn row(
        &mut self,
        row: usize,
        key: String,
        url: &str,
        caption: &str,
        result: RowResult,
    ) -> Result<(), StageError> {
        match (self, result) {
            (Self::Parquet(writer), Ok(picture)) => {
                let Picture { bytes, width, height, original_width, original_height, hash, phash, exif, .. } = picture;
                let (original, row) = ((original_width, original_height), row as u32);
                let (caption, url) = (caption.to_owned(), url.to_owned());
                let sample = Sample { key, bytes, caption, url, width, height, hash, original, phash, exif, row };
                Ok(writer.push(sample)?)
            }
            (Self::Parquet(_), Err(_)) => Ok(()),
            (Self::Webdataset(writer), result) => writer.row(row, url, caption, result),
        }
    }

    /// Ends it: its files, and how many images they hold.
    pub(super) fn finish(self, task: &Task) -> Result<(Vec<DataFile>, u64), StageError> {
        match self {
            Self::Parquet(writer) => {
                let file = writer.finish()?;
                let rows = file.rows;
                Ok((vec![file], rows))
            }
            Self::Webdataset(writer) => writer.finish(task),
        }
    }
}
