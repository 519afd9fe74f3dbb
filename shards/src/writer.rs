//! Writing a parquet shard so that one image costs one read.
//!
//! The image column is plain: no dictionary, no compression (the bytes are compressed already), one row a page, so the
//! offset index says where each image lies. Other columns are compressed with zstd. The same rows give the same bytes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::data_file::DataFileWriter;
use crate::sidecar::DataFile;
use crate::{ShardError, columns};

/// A row group is in memory until it is ended: it ends with about so many bytes, however many rows a shard has.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// Writes one shard. Nothing is durable before [`ShardWriter::finish`].
pub struct ShardWriter {
    inner: ArrowWriter<DataFileWriter>,
    path: PathBuf,
    rows: u64,
}

impl ShardWriter {
    /// Starts a shard at `path`, which must not exist.
    pub fn create(path: &Path, schema: &Arc<Schema>) -> Result<Self, ShardError> {
        let out = DataFileWriter::create(path)?;
        let inner = ArrowWriter::try_new(out, Arc::clone(schema), Some(properties(schema)))
            .map_err(ShardError::parquet(path))?;
        Ok(Self { inner, path: path.to_owned(), rows: 0 })
    }

    /// Appends rows to the current row group, and ends it where it has become large.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), ShardError> {
        self.rows += batch.num_rows() as u64;
        self.inner.write(batch).map_err(ShardError::parquet(&self.path))?;
        if self.inner.in_progress_size() < ROW_GROUP_BYTES { Ok(()) } else { self.end_row_group() }
    }

    /// Ends the current row group; the next rows begin another.
    pub fn end_row_group(&mut self) -> Result<(), ShardError> {
        self.inner.flush().map_err(ShardError::parquet(&self.path))
    }

    /// Writes the footer and makes the file durable. Returns its description, with `file` as the bare file name.
    pub fn finish(self) -> Result<DataFile, ShardError> {
        let Self { inner, path, rows } = self;
        let out = inner.into_inner().map_err(ShardError::parquet(&path))?;
        out.finish(rows)
    }
}

fn properties(schema: &Schema) -> WriterProperties {
    let image = ColumnPath::from(columns::IMAGE);
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(10_000))
        .set_created_by(concat!("ferrotype ", env!("CARGO_PKG_VERSION")).to_owned());
    if schema.index_of(columns::IMAGE).is_err() {
        return properties.build();
    }
    properties
        .set_column_dictionary_enabled(image.clone(), false)
        .set_column_compression(image.clone(), Compression::UNCOMPRESSED)
        .set_column_encoding(image.clone(), Encoding::PLAIN)
        .set_column_statistics_enabled(image.clone(), EnabledStatistics::None)
        // A page ends once it exceeds its size limit, which is looked at after each write batch.
        .set_column_data_page_size_limit(image, 1)
        .set_write_batch_size(1)
        .build()
}
