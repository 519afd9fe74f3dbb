//! `repack`: bucketed parquet from outside, laid out so that an image costs one read.
//!
//! - in: `files`, parquet files with a column of images that have their bucket's size already, as bytes or as the hub's structure
//!   of bytes and path
//! - out: as of a bucket stage, a shard for each file: sorted by size, a page for each image, checksums. Columns of text and bytes
//!   get the types that later stages read; a row without a key gets one, of its file's name and its number
//! - stale when: the file of its partition is another one, or has another name
//! - law: in = out + Σ dropped (`damaged_image`, `not_an_image`, `too_many_pixels`)
//!
//! Images keep their bytes. Their sizes are those in their own headers: published datasets exist whose width and height are each
//! other's.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use serde_json::{Value, json};
use shards::bucket::BucketSize;
use shards::digest::DigestBuilder;
use shards::reader::Shard;
use shards::{ShardError, columns};

use super::spool::Spool;
use super::{default_pixels, write};
use crate::manifest::{Diagnostic, OneOrMore, Parameters};
use crate::quarantine::{BadRow, Quarantine};
use crate::stage::{Law, Outcome, Partitioning, Source, Stage, StageError, StageKind, Task, as_it_is};
use crate::stages::outside::{FileKind, OutsideFile, Places, PlannedFiles};
use picture::header;

const FILES: FileKind = FileKind { key: "files", one: "parquet file", endings: &[".parquet"] };
/// The member of an image that is a structure.
const BYTES: &str = "bytes";

#[derive(Clone, Debug, Deserialize, JsonSchema)]
struct Parameter {
    /// A folder of parquet files, a file, or a pattern such as "buckets/*.parquet"; or several.
    files: OneOrMore,
    /// Larger images are refused, in pixels [100 million].
    #[serde(default = "default_pixels")]
    max_pixels: u64,
}

struct Repack {
    places: Places,
    max_pixels: u64,
    planned: PlannedFiles,
}

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "repack",
        version: 2,
        about: "Lays out bucketed parquet from outside so that an image costs one read.",
        inputs: (0, 0),
        schemas: || vec![schema_for!(Parameter)],
        rehearse: as_it_is,
        build: |parameters| build(parameters).map(|repack| Box::new(repack) as Box<dyn Stage>),
    }
}

fn build(parameters: &Parameters) -> Result<Repack, Diagnostic> {
    let Parameter { files, max_pixels } = parameters.read()?;
    let places = Places::read(files.as_slice(), &FILES).map_err(|fault| parameters.fault("files", fault))?;
    Ok(Repack { places, max_pixels, planned: PlannedFiles::default() })
}

impl Stage for Repack {
    fn semantics(&self) -> Value {
        json!({ "max_pixels": self.max_pixels })
    }

    fn partitioning(&self) -> Partitioning {
        Partitioning::Source
    }

    fn law(&self) -> Law {
        Law::RowWise
    }

    fn sources(&self, folder: &Path) -> Result<Vec<Source>, StageError> {
        let files: Vec<OutsideFile> = self.places.files(folder, &[])?.into_values().collect();
        let source = |file: &OutsideFile| {
            // Keys may hold its name.
            let digest = DigestBuilder::new().part(&file.name).part(file.digest.to_string()).finish();
            Source { name: file.name.clone(), digest, rows: file.parquet_rows() }
        };
        let sources = files.iter().map(source).collect();
        self.planned.set(files);
        Ok(sources)
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let file = self.planned.of(task)?;
        file.expect_unchanged()?;
        let shard = Shard::open(file.path.as_deref().unwrap_or(Path::new("")))?;
        let stem = file.name.strip_suffix(".parquet").unwrap_or(&file.name);
        let mut quarantine = Quarantine::new(task.on_bad_row, task.stage, task.tally);
        let mut metadata = Vec::new();
        let mut spool = Spool::create(&task.folder.path())?;
        let mut rows = 0;
        let none = (shard.rows() == 0).then(|| Ok(RecordBatch::new_empty(Arc::clone(shard.schema()))));
        for batch in shard.batches(None, 64)?.chain(none) {
            task.check_cancelled()?;
            let batch = ours(&batch?, stem, rows).map_err(ShardError::arrow(shard.path()))?;
            let images = shard.binary(&batch, columns::IMAGE)?;
            for i in 0..batch.num_rows() {
                let bytes = if images.is_valid(i) { images.value(i) } else { &[] };
                match header(bytes, self.max_pixels) {
                    Ok(header) => {
                        let size = BucketSize { width: header.width, height: header.height };
                        spool.push(size, rows + i as u64, bytes)?;
                        task.tally.good(1);
                    }
                    Err(error) => {
                        let text = |column| super::rows::text(&shard, &batch, column, i);
                        quarantine.refuse(BadRow {
                            key: text(columns::KEY),
                            url: text(columns::URL),
                            caption: text(columns::CAPTION),
                            reason: error.reason(),
                            status: "failed_to_resize",
                            detail: error.to_string(),
                        })?;
                    }
                }
            }
            rows += batch.num_rows() as u64;
            let position = batch.schema_ref().index_of(columns::IMAGE).map_err(ShardError::arrow(shard.path()))?;
            let mut without_image = batch;
            without_image.remove_column(position);
            metadata.push(without_image);
        }
        file.expect_unchanged()?;
        let mut outcome = Outcome { rows_in: rows, ..Outcome::default() };
        let data = write(&mut spool, &metadata, &[], &task.attempt.data(), task)?;
        outcome.rows_out = data.rows;
        outcome.data.push(data);
        (outcome.dropped, outcome.quarantine) = quarantine.finish(&task.attempt.quarantine())?;
        Ok(outcome)
    }
}

/// The columns as later stages read them, the key first.
fn ours(batch: &RecordBatch, stem: &str, first_row: u64) -> Result<RecordBatch, ArrowError> {
    let mut fields: Vec<Field> = Vec::with_capacity(batch.num_columns() + 1);
    let mut arrays: Vec<ArrayRef> = Vec::with_capacity(batch.num_columns() + 1);
    for (field, array) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let bytes = array.as_struct_opt().and_then(|members| members.column_by_name(BYTES));
        let array = bytes.filter(|_| field.name() == columns::IMAGE).unwrap_or(array);
        let to = match array.data_type() {
            DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
            DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
            DataType::Dictionary(_, values) => values.as_ref().clone(),
            _ if field.name() == columns::KEY => DataType::Utf8,
            other => other.clone(),
        };
        let place = if field.name() == columns::KEY { 0 } else { fields.len() };
        fields.insert(place, Field::new(field.name(), to.clone(), true));
        arrays.insert(place, cast(array, &to)?);
    }
    if fields.first().is_none_or(|field| field.name() != columns::KEY) {
        let keys = (0..batch.num_rows() as u64).map(|row| format!("{stem}/{:09}", first_row + row));
        fields.insert(0, Field::new(columns::KEY, DataType::Utf8, false));
        arrays.insert(0, Arc::new(StringArray::from_iter_values(keys)));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
}
