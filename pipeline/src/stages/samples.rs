//! Images that have just come in, as rows: what `download`, `extract` and `import` write.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, BinaryBuilder, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use picture::{Check, DecodeError, decode, header};
use sha2::{Digest, Sha256};
use shards::sidecar::DataFile;
use shards::writer::ShardWriter;
use shards::{ShardError, columns};

/// Rows that are written together; fewer where their images are large.
const ROWS: usize = 256;
const BYTES: usize = 1 << 20;

/// One image with what is known of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    pub(super) key: String,
    pub(super) bytes: Vec<u8>,
    pub(super) caption: String,
    pub(super) url: String,
    /// Pixels, upright.
    pub(super) width: u32,
    pub(super) height: u32,
    /// Of the bytes as they came; in a column that [`Columns::hash`] names.
    pub(super) hash: Option<String>,
    /// Pixels as it came, upright.
    pub(super) original: (u32, u32),
    pub(super) phash: Option<String>,
    pub(super) exif: Option<String>,
    /// Its row in [`Columns::additional`].
    pub(super) row: u32,
}

/// Which columns samples have beside those that all have.
#[derive(Clone, Debug, Default)]
pub(super) struct Columns {
    pub(super) hash: Option<&'static str>,
    pub(super) original_size: bool,
    pub(super) phash: bool,
    pub(super) exif: bool,
    /// Passed on as they are.
    pub(super) additional: Option<RecordBatch>,
}

/// Writes a shard of samples, in the order they are given.
pub(super) struct SampleWriter {
    writer: ShardWriter,
    path: PathBuf,
    schema: Arc<Schema>,
    columns: Columns,
    waiting: Vec<Sample>,
    bytes: usize,
}

impl SampleWriter {
    pub(super) fn create(path: &Path, columns: Columns) -> Result<Self, ShardError> {
        let schema = Arc::new(columns.schema());
        let writer = ShardWriter::create(path, &schema)?;
        Ok(Self { writer, path: path.to_owned(), schema, columns, waiting: Vec::new(), bytes: 0 })
    }

    pub(super) fn push(&mut self, sample: Sample) -> Result<(), ShardError> {
        self.bytes += sample.bytes.len();
        self.waiting.push(sample);
        if self.waiting.len() >= ROWS || self.bytes >= BYTES { self.flush() } else { Ok(()) }
    }

    /// For rows that come as a stream: from here on, [`Sample::row`] counts the rows of `additional`, whose columns are those
    /// that the writer was created with.
    pub(super) fn begin_additional(&mut self, additional: RecordBatch) -> Result<(), ShardError> {
        if !self.waiting.is_empty() {
            self.flush()?;
        }
        self.columns.additional = Some(additional);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ShardError> {
        let arrow = ShardError::arrow(&self.path);
        let batch = self.columns.batch(&self.schema, &self.waiting).map_err(arrow)?;
        self.waiting.clear();
        self.bytes = 0;
        self.writer.write(&batch)
    }

    /// Ends the shard; see [`ShardWriter::finish`].
    pub(super) fn finish(mut self) -> Result<DataFile, ShardError> {
        if !self.waiting.is_empty() {
            self.flush()?;
        }
        self.writer.finish()
    }
}

impl Columns {
    fn schema(&self) -> Schema {
        let field = |name: &str, kind: DataType| Field::new(name, kind, false);
        let mut fields = vec![
            field(columns::KEY, DataType::Utf8),
            field(columns::IMAGE, DataType::Binary),
            field(columns::CAPTION, DataType::Utf8),
            field(columns::URL, DataType::Utf8),
            field(columns::WIDTH, DataType::UInt32),
            field(columns::HEIGHT, DataType::UInt32),
        ];
        if self.original_size {
            fields.push(field(columns::ORIGINAL_WIDTH, DataType::UInt32));
            fields.push(field(columns::ORIGINAL_HEIGHT, DataType::UInt32));
        }
        fields.extend(self.hash.map(|name| field(name, DataType::Utf8)));
        fields.extend(self.phash.then(|| field(columns::PHASH, DataType::Utf8)));
        fields.extend(self.exif.then(|| Field::new(columns::EXIF, DataType::Utf8, true)));
        let additional = self.additional.iter().flat_map(|batch| batch.schema_ref().fields());
        fields.extend(additional.map(|field| field.as_ref().clone()));
        columns::schema_of_samples(fields)
    }

    fn batch(&self, schema: &Arc<Schema>, rows: &[Sample]) -> Result<RecordBatch, arrow::error::ArrowError> {
        let text = |value: fn(&Sample) -> &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(rows.iter().map(value)))
        };
        let perhaps = |value: fn(&Sample) -> Option<&str>| -> ArrayRef {
            Arc::new(rows.iter().map(value).collect::<StringArray>())
        };
        let number =
            |value: fn(&Sample) -> u32| -> ArrayRef { Arc::new(UInt32Array::from_iter_values(rows.iter().map(value))) };
        let mut arrays = vec![
            text(|s| &s.key),
            Arc::new(images(rows)) as ArrayRef,
            text(|s| &s.caption),
            text(|s| &s.url),
            number(|s| s.width),
            number(|s| s.height),
        ];
        if self.original_size {
            arrays.extend([number(|s| s.original.0), number(|s| s.original.1)]);
        }
        arrays.extend(self.hash.map(|_| text(|s| s.hash.as_deref().unwrap_or_default())));
        arrays.extend(self.phash.then(|| text(|s| s.phash.as_deref().unwrap_or_default())));
        arrays.extend(self.exif.then(|| perhaps(|s| s.exif.as_deref())));
        let numbers = UInt32Array::from_iter_values(rows.iter().map(|s| s.row));
        for column in self.additional.iter().flat_map(RecordBatch::columns) {
            arrays.push(arrow::compute::take(column, &numbers, None)?);
        }
        RecordBatch::try_new(Arc::clone(schema), arrays)
    }
}

/// The images in one piece; made at its size, since growing to it would copy them several times over.
fn images(rows: &[Sample]) -> BinaryArray {
    let mut images = BinaryBuilder::with_capacity(rows.len(), rows.iter().map(|row| row.bytes.len()).sum());
    for row in rows {
        images.append_value(&row.bytes);
    }
    images.finish()
}

/// The size, upright, of an image that is kept as it is.
pub(super) fn size(bytes: &[u8], check: Check, max_pixels: u64) -> Result<(u32, u32), DecodeError> {
    match check {
        Check::Decode => decode(bytes, max_pixels).map(|image| image.dimensions()),
        Check::Header => header(bytes, max_pixels).map(|header| (header.width, header.height)),
    }
}

/// SHA-256 in lower-case hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
