//! Writing a parquet shard so that one image costs one read.
//!
//! The image column is plain: no dictionary, no compression (the bytes are compressed already), one row a page, so the
//! offset index says where each image lies; so is the column of what was encoded of images. Other columns are compressed with zstd, in pages of a few rows, for a row's
//! captions are read with its image. Each row with an image has a [`crate::checksum`]. The same rows give the same bytes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;

use crate::data_file::DataFileWriter;
use crate::digest::Digest;
use crate::sidecar::DataFile;
use crate::{ShardError, checksum, columns};

/// A row group is in memory until it is ended: it ends with about so many bytes, however many rows a shard has.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// Rows in a page of a column that is not the image: captions of some 300 bytes make pages of 20 KB.
const ROWS_OF_PAGE: usize = 64;

/// Writes one shard. Nothing is durable before [`ShardWriter::finish`].
pub struct ShardWriter {
    inner: ArrowWriter<DataFileWriter>,
    /// What is written: that of the rows, and a column of checksums where there are images.
    schema: Arc<Schema>,
    path: PathBuf,
    rows: u64,
}

impl ShardWriter {
    /// Starts a shard at `path`, which must not exist.
    pub fn create(path: &Path, schema: &Arc<Schema>) -> Result<Self, ShardError> {
        let out = DataFileWriter::create(path)?;
        let schema = Arc::new(checksum::with_column(schema));
        let inner = ArrowWriter::try_new(out, Arc::clone(&schema), Some(properties(&schema)))
            .map_err(ShardError::parquet(path))?;
        Ok(Self { inner, schema, path: path.to_owned(), rows: 0 })
    }

    /// Appends rows to the current row group, and ends it where it has become large.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), ShardError> {
        self.rows += batch.num_rows() as u64;
        let batch = self.with_checksums(batch).map_err(ShardError::arrow(&self.path))?;
        self.inner.write(&batch).map_err(ShardError::parquet(&self.path))?;
        if self.inner.in_progress_size() < ROW_GROUP_BYTES { Ok(()) } else { self.end_row_group() }
    }

    /// `batch` with the checksums of its rows; those that it may have are of what its rows were before.
    fn with_checksums(&self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let Ok(place) = self.schema.index_of(columns::CHECKSUM) else { return Ok(batch.clone()) };
        let mut arrays = batch.columns().to_vec();
        let checksums = Arc::new(checksum::of_rows(batch)?);
        match arrays.get_mut(place) {
            Some(array) => *array = checksums,
            None => arrays.push(checksums),
        }
        RecordBatch::try_new(Arc::clone(&self.schema), arrays)
    }

    /// Ends the current row group; the next rows begin another.
    pub fn end_row_group(&mut self) -> Result<(), ShardError> {
        self.inner.flush().map_err(ShardError::parquet(&self.path))
    }

    /// Writes the footer and makes the file durable. Returns its description, with `file` as the bare file name.
    pub fn finish(self) -> Result<DataFile, ShardError> {
        let Self { inner, path, rows, .. } = self;
        let out = inner.into_inner().map_err(ShardError::parquet(&path))?;
        let file = out.finish(rows)?;
        let footer = footer(&path).map_err(ShardError::io("read", &path))?;
        Ok(DataFile { footer: Some(footer), ..file })
    }
}

/// The digest of a parquet file's footer, its length and "PAR1" included.
pub(crate) fn footer(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-8))?;
    let mut length = [0; 4];
    file.read_exact(&mut length)?;
    file.seek(SeekFrom::End(-8 - i64::from(u32::from_le_bytes(length))))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Digest::of(&bytes))
}

fn properties(schema: &Schema) -> WriterProperties {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(10_000))
        .set_created_by(concat!("ferrotype ", env!("CARGO_PKG_VERSION")).to_owned());
    let payloads = columns::PAYLOADS.iter().filter(|name| schema.index_of(name).is_ok());
    let payloads: Vec<ColumnPath> = payloads.map(|name| ColumnPath::from(*name)).collect();
    if payloads.is_empty() {
        return properties.build();
    }
    // A dictionary of texts that are all different would be read with each of them.
    let texts = checksum::COVERED.map(ColumnPath::from);
    let properties = texts.into_iter().fold(properties, |p, text| p.set_column_dictionary_enabled(text, false));
    let properties = properties.set_data_page_row_count_limit(ROWS_OF_PAGE).set_write_batch_size(1);
    let of_payload = |properties: WriterPropertiesBuilder, payload: ColumnPath| {
        properties
            .set_column_compression(payload.clone(), Compression::UNCOMPRESSED)
            .set_column_encoding(payload.clone(), Encoding::PLAIN)
            .set_column_statistics_enabled(payload.clone(), EnabledStatistics::None)
            // A page ends once it exceeds its size limit, which is looked at after each write batch.
            .set_column_data_page_size_limit(payload, 1)
    };
    payloads.into_iter().fold(properties, of_payload).build()
}
