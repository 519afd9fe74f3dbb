//! Images that have just come in, as rows: what `download` and `import` write.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field};
use sha2::{Digest, Sha256};
use shards::sidecar::DataFile;
use shards::writer::ShardWriter;
use shards::{ShardError, columns};

/// One image with what is known of it.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) key: String,
    /// As they came.
    pub(super) bytes: Vec<u8>,
    pub(super) caption: String,
    pub(super) url: String,
    /// Pixels, upright.
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) sha256: String,
}

/// Writes a shard of samples, in their order.
pub(super) fn write(path: &Path, samples: &[Sample]) -> Result<DataFile, ShardError> {
    let schema = Arc::new(columns::schema_of_samples(vec![
        Field::new(columns::KEY, DataType::Utf8, false),
        Field::new(columns::IMAGE, DataType::Binary, false),
        Field::new(columns::CAPTION, DataType::Utf8, false),
        Field::new(columns::URL, DataType::Utf8, false),
        Field::new(columns::WIDTH, DataType::UInt32, false),
        Field::new(columns::HEIGHT, DataType::UInt32, false),
        Field::new(columns::SHA256, DataType::Utf8, false),
    ]));
    let mut writer = ShardWriter::create(path, &schema)?;
    for rows in samples.chunks(256) {
        let text = |value: fn(&Sample) -> &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(rows.iter().map(value)))
        };
        let number =
            |value: fn(&Sample) -> u32| -> ArrayRef { Arc::new(UInt32Array::from_iter_values(rows.iter().map(value))) };
        let arrays = vec![
            text(|s| &s.key),
            Arc::new(BinaryArray::from_iter_values(rows.iter().map(|s| &s.bytes))) as ArrayRef,
            text(|s| &s.caption),
            text(|s| &s.url),
            number(|s| s.width),
            number(|s| s.height),
            text(|s| &s.sha256),
        ];
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(ShardError::arrow(path))?)?;
    }
    writer.finish()
}

/// SHA-256 in lower-case hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
