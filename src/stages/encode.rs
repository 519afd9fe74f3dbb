//! `encode`: what a training needs of images and captions, encoded ahead of it, so that it needs no encoders.
//!
//! - in: bucketed shards with an image column and the caption columns that are encoded
//! - out: the same columns with `encoded` in place of the image ([`trainer::encoded`]); rows in the same order, a row group never
//!   holds two buckets. Read by an index stage, and by a train stage with encode = "cached"
//! - stale when: an encoder, the precision, `batch` or its input changed
//! - law: in = out + Σ dropped (`damaged_image`, `not_finite`)

use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, SchemaRef};
use image::RgbImage;
use models::device;
use models::latents::Latents;
use models::text::TextEncoding;
use pipeline::quarantine::{BadRow, Quarantine};
use pipeline::stage::{Facts, Law, Load, Outcome, Partitioning, Stage, StageError, StageKind, Task, as_it_is};
use pipeline::stages::bucket::PATCH_SIZE;
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shards::bucket::BucketSize;
use shards::reader::Shard;
use shards::writer::ShardWriter;
use shards::{ShardError, columns};
use trainer::encoded::{Ahead, StoredPrecision};

use super::{fault_of_models, in_a_line};

/// The fact that says how shards were encoded: `latents`, `text` and `captions`.
pub(super) const ENCODED: &str = "encoded";

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Parameters {
    /// As of the train stage: `pixels`, or `{ autoencoder = { folder = "…" } }`. Its mean and variance are kept, so that a training draws
    /// another latent each time.
    latents: Latents,
    /// As of the train stage: `hash`, or `{ pretrained = { gemma = "…", modernbert = "…", clip = "…" } }`.
    text: TextEncoding,
    /// Caption columns to encode. None of them makes a training encode captions itself: of 77 tokens in two streams of 2304 features
    /// each takes up to 700 kB [caption].
    #[serde(default = "default_captions")]
    captions: Vec<String>,
    /// `float32`, or `half`: latents in float16, texts in bfloat16 [half].
    #[serde(default)]
    precision: StoredPrecision,
    /// Images of one size that are encoded at once [16].
    #[serde(default = "default_batch")]
    batch: usize,
}

/// What changes nothing about the result but its last bits.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Operations {
    /// `cpu`, `cuda` or `cuda:N`; left out, the first GPU, where there is one.
    #[serde(default)]
    device: Option<String>,
}

fn default_captions() -> Vec<String> {
    vec![columns::CAPTION.to_owned()]
}
fn default_batch() -> usize {
    16
}

pub(super) fn kind() -> StageKind {
    StageKind {
        name: "encode",
        version: 1,
        about: "Encodes images and captions ahead of a training, which then needs no encoders.",
        inputs: (1, 1),
        schemas: || vec![schema_for!(Parameters), schema_for!(Operations)],
        rehearse: as_it_is,
        build: |table| {
            let parameters: Parameters = table.read()?;
            let Operations { device } = table.read()?;
            parameters.latents.shape().map_err(|error| fault_of_models(table, "latents", error))?;
            if !parameters.captions.is_empty() {
                parameters.text.shape().map_err(|error| fault_of_models(table, "text", error))?;
            }
            if parameters.batch == 0 {
                return Err(table.fault("batch", "batch = 0: expected at least 1"));
            }
            Ok(Box::new(Encode { parameters, device, encoders: Mutex::default() }))
        },
    }
}

struct Encode {
    parameters: Parameters,
    device: Option<String>,
    /// There from the first partition on.
    encoders: Mutex<Option<Ahead>>,
}

impl Encode {
    /// The text encoding, where captions are encoded.
    fn text(&self) -> Option<&TextEncoding> {
        Some(&self.parameters.text).filter(|_| !self.parameters.captions.is_empty())
    }

    fn load_encoders(&self) -> Result<Ahead, StageError> {
        let device = device::named(self.device.as_deref(), 0).map_err(StageError::failed)?;
        let Parameters { latents, precision, .. } = &self.parameters;
        Ahead::load(latents, self.text(), *precision, device).map_err(StageError::failed)
    }
}

impl Stage for Encode {
    fn semantics(&self) -> Value {
        let mut semantics = serde_json::to_value(&self.parameters).unwrap_or_default();
        // Models count by their contents. Where a folder cannot be read, `build` has said so, and nothing runs.
        let latents = self.parameters.latents.identity_of_distribution().unwrap_or_default();
        let text = self.text().and_then(|text| text.identity().ok()).unwrap_or_default();
        for (key, identity) in [("latents", latents), ("text", text)] {
            if let Some(value) = semantics.get_mut(key) {
                *value = identity;
            }
        }
        semantics
    }

    fn partitioning(&self) -> Partitioning {
        Partitioning::EachInput
    }

    fn law(&self) -> Law {
        Law::RowWise
    }

    fn load(&self) -> Load {
        Load::AllCores
    }

    fn facts(&self) -> Facts {
        let Value::Object(semantics) = self.semantics() else { return Facts::new() };
        let of = |key: &str| semantics.get(key).cloned().unwrap_or_default();
        let encoded = json!({ "latents": of("latents"), "text": of("text"), "captions": of("captions") });
        Facts::from([(ENCODED.to_owned(), encoded)])
    }

    fn check(&self, upstream: &Facts) -> Vec<(&'static str, String)> {
        if upstream.contains_key(ENCODED) {
            return vec![(
                "from",
                "its input is encoded already and has no images: read from the bucket stage".to_owned(),
            )];
        }
        let factor = match self.parameters.latents.shape() {
            Ok(shape) => shape.factor,
            Err(error) => return vec![("latents", in_a_line(error))],
        };
        let patch = upstream.get(PATCH_SIZE).and_then(Value::as_i64);
        let misfit = patch.filter(|patch| patch % factor != 0);
        let fault = misfit.map(|patch| {
            let text = format!(
                "buckets come in multiples of {patch} pixels, but the latents in multiples of {factor}: set bucket.patch_size to one"
            );
            ("latents", text)
        });
        fault.into_iter().collect()
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let mut kept = self.encoders.lock().unwrap_or_else(PoisonError::into_inner);
        let encoders = match &mut *kept {
            Some(encoders) => encoders,
            none => none.insert(self.load_encoders()?),
        };
        let mut partition = Partition {
            parameters: &self.parameters,
            encoders,
            task,
            quarantine: Quarantine::new(task.on_bad_row, task.stage, task.tally),
            writer: None,
            bucket: None,
            waiting: Vec::new(),
        };
        let mut outcome = Outcome::default();
        for file in task.files() {
            let shard = Shard::open(&file)?;
            outcome.rows_in += shard.rows();
            partition.begin(&shard)?;
            for batch in shard.batches(None, 64)? {
                task.check_cancelled()?;
                partition.take(&shard, &batch?)?;
            }
            // A row waits with the schema of its shard.
            partition.encode(&shard)?;
        }
        let Partition { quarantine, writer, .. } = partition;
        outcome.data.extend(writer.map(|(writer, _)| writer.finish()).transpose()?);
        outcome.rows_out = outcome.data.iter().map(|file| file.rows).sum();
        (outcome.dropped, outcome.quarantine) = quarantine.finish(&task.attempt.quarantine())?;
        Ok(outcome)
    }
}

/// A row with its image, waiting for others of its size.
struct Waiting {
    /// Of one row, as it was read.
    row: RecordBatch,
    picture: RgbImage,
}

struct Partition<'a> {
    parameters: &'a Parameters,
    encoders: &'a Ahead,
    task: &'a Task<'a>,
    quarantine: Quarantine<'a>,
    writer: Option<(ShardWriter, SchemaRef)>,
    /// Of the rows that wait, and of the row group.
    bucket: Option<BucketSize>,
    waiting: Vec<Waiting>,
}

impl Partition<'_> {
    /// The schema of what is written: that of the first shard, with what was encoded in place of the image.
    fn begin(&mut self, shard: &Shard) -> Result<(), StageError> {
        if self.writer.is_some() {
            return Ok(());
        }
        for column in &self.parameters.captions {
            shard.schema().index_of(column).map_err(ShardError::arrow(shard.path()))?;
        }
        let is_kept = |name: &str| name != columns::IMAGE && name != columns::CHECKSUM;
        let fields = shard.schema().fields().iter().filter(|field| is_kept(field.name()));
        let mut fields: Vec<Field> = fields.map(|field| field.as_ref().clone()).collect();
        fields.push(Field::new(columns::ENCODED, DataType::Binary, false));
        let schema = Arc::new(columns::schema_of_samples(fields));
        self.writer = Some((ShardWriter::create(&self.task.attempt.data(), &schema)?, schema));
        Ok(())
    }

    /// Decodes the images of some rows; encodes those that are enough for a batch.
    fn take(&mut self, shard: &Shard, batch: &RecordBatch) -> Result<(), StageError> {
        let images = shard.binary(batch, columns::IMAGE)?;
        let sizes = shard.text(batch, columns::BUCKET_SIZE)?;
        for row in 0..batch.num_rows() {
            let size: Result<BucketSize, _> = sizes.value(row).parse();
            let size = size.map_err(|error| StageError::failed(format!("{}: {error}", shard.path().display())))?;
            let bytes = if images.is_valid(row) { images.value(row) } else { &[] };
            let decoded = decode(bytes, size);
            if self.bucket != Some(size) {
                self.encode(shard)?;
                if let (Some(_), Some((writer, _))) = (self.bucket, &mut self.writer) {
                    writer.end_row_group()?;
                }
                self.bucket = Some(size);
            }
            let of_row = batch.slice(row, 1);
            match decoded {
                Ok(picture) => self.waiting.push(Waiting { row: of_row, picture }),
                Err(detail) => self.refuse(shard, &of_row, "damaged_image", detail)?,
            }
            if self.waiting.len() == self.parameters.batch {
                self.encode(shard)?;
            }
        }
        Ok(())
    }

    /// Encodes and writes the rows that wait.
    fn encode(&mut self, shard: &Shard) -> Result<(), StageError> {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        let rows = arrow::compute::concat_batches(waiting[0].row.schema_ref(), waiting.iter().map(|w| &w.row));
        let rows = rows.map_err(ShardError::arrow(shard.path()))?;
        let pictures: Vec<&RgbImage> = waiting.iter().map(|waiting| &waiting.picture).collect();
        let columns: Vec<(&str, StringArray)> = self
            .parameters
            .captions
            .iter()
            .map(|column| texts(&rows, column))
            .collect::<Result<_, _>>()
            .map_err(ShardError::arrow(shard.path()))?;
        let captions: Vec<(&str, Vec<&str>)> = columns
            .iter()
            .map(|(column, texts)| (*column, texts.iter().map(Option::unwrap_or_default).collect()))
            .collect();
        let encoded = self.encoders.encode(&pictures, &captions).map_err(StageError::failed)?;
        let good: Vec<u64> = (0u64..).zip(&encoded).filter_map(|(row, file)| file.as_ref().map(|_| row)).collect();
        for (row, _) in encoded.iter().enumerate().filter(|(_, file)| file.is_none()) {
            let detail = "its latent or its caption has numbers that are not finite, or too large for the precision";
            self.refuse(shard, &rows.slice(row, 1), "not_finite", detail.to_owned())?;
        }
        let Some((writer, schema)) = &mut self.writer else { return Ok(()) };
        let indices = UInt64Array::from(good);
        let files: ArrayRef = Arc::new(BinaryArray::from_iter_values(encoded.iter().flatten()));
        let of = |field: &Arc<Field>| match rows.column_by_name(field.name()) {
            Some(column) => arrow::compute::take(column, &indices, None),
            None => Ok(Arc::clone(&files)),
        };
        let written = schema.fields().iter().map(of).collect::<Result<Vec<_>, _>>();
        let written = written.and_then(|columns| RecordBatch::try_new(Arc::clone(schema), columns));
        let written = written.map_err(ShardError::arrow(shard.path()))?;
        writer.write(&written)?;
        self.task.tally.good(written.num_rows() as u64);
        Ok(())
    }

    fn refuse(
        &mut self,
        shard: &Shard,
        row: &RecordBatch,
        reason: &'static str,
        detail: String,
    ) -> Result<(), StageError> {
        let text = |column: &str| {
            let texts = shard.text(row, column).ok().filter(|texts| texts.is_valid(0));
            texts.map(|texts| texts.value(0).to_owned()).unwrap_or_default()
        };
        let (key, url, caption) = (text(columns::KEY), text(columns::URL), text(columns::CAPTION));
        self.quarantine.refuse(BadRow { key, url, caption, reason, status: "failed_to_encode", detail })
    }
}

/// A caption column as texts.
fn texts<'a>(rows: &RecordBatch, column: &'a str) -> Result<(&'a str, StringArray), arrow::error::ArrowError> {
    let found = rows.column_by_name(column);
    let found = found.ok_or_else(|| arrow::error::ArrowError::SchemaError(format!("there is no column {column}")))?;
    Ok((column, arrow::compute::cast(found, &DataType::Utf8)?.as_string::<i32>().clone()))
}

fn decode(bytes: &[u8], size: BucketSize) -> Result<RgbImage, String> {
    let pixels = u64::from(size.width) * u64::from(size.height);
    let image = picture::decode(bytes, pixels).map_err(|error| error.to_string())?;
    if image.dimensions() != (size.width, size.height) {
        return Err(format!("it is {}x{}, not {size}", image.width(), image.height()));
    }
    Ok(image)
}
