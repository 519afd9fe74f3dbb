//! `export`: the same samples as webdataset tars, for trainers that read those.
//!
//! - in: shards with an image column
//! - out: a tar for each partition, with `KEY.jpg` (or png, webp, gif), `KEY.txt` and `KEY.json` of each row in the order of the
//!   input, so that a bucketed shard's buckets follow each other. The keys in a tar are the partition's name and a number;
//!   the sample's own key is in its json, with all other columns
//! - stale when: caption or its input changed
//! - law: in = out + Σ dropped (`not_an_image`)
//!
//! Images keep their bytes.

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::columns;
use shards::data_file::DataFileWriter;
use shards::reader::Shard;

use super::members::{member, objects, pretty};
use super::rows;
use crate::manifest::{Diagnostic, Parameters};
use crate::quarantine::{BadRow, Quarantine};
use crate::stage::{Facts, Law, NOT_SHARDS, Outcome, Partitioning, Stage, StageError, StageKind, Task, as_it_is};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Export {
    /// The column that becomes KEY.txt; with none there, no such member [caption].
    #[serde(default = "default_caption")]
    caption: String,
}

fn default_caption() -> String {
    columns::CAPTION.to_owned()
}

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "export",
        version: 2,
        about: "Writes samples as webdataset tars.",
        inputs: (1, 1),
        schemas: || vec![schema_for!(Export)],
        rehearse: as_it_is,
        build: |parameters| build(parameters).map(|export| Box::new(export) as Box<dyn Stage>),
    }
}

fn build(parameters: &Parameters) -> Result<Export, Diagnostic> {
    parameters.read()
}

impl Stage for Export {
    fn semantics(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn partitioning(&self) -> Partitioning {
        Partitioning::EachInput
    }

    fn law(&self) -> Law {
        Law::RowWise
    }

    fn facts(&self) -> Facts {
        [(NOT_SHARDS.to_owned(), "webdataset".into())].into()
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let path = task.attempt.tar();
        let mut tar = tar::Builder::new(DataFileWriter::create(&path)?);
        let mut quarantine = Quarantine::new(task.on_bad_row, task.stage, task.tally);
        let mut outcome = Outcome::default();
        // Of the partition's name, which no other has; positions move when there is one more.
        let prefix = task.partition.trim_start_matches("part-");
        for shard in rows::open(task.inputs)? {
            for batch in shard.batches(None, 64)? {
                task.check_cancelled()?;
                let batch = batch?;
                let images = shard.binary(&batch, columns::IMAGE)?;
                let objects = objects(&without_bytes(&batch)?)?;
                for row in 0..batch.num_rows() {
                    // Nine digits: a tar of a thousand million images is none.
                    let key = format!("{prefix}{:09}", outcome.rows_in);
                    outcome.rows_in += 1;
                    let image = images.value(row);
                    let Some(ending) = ending(image) else {
                        quarantine.refuse(no_image(&shard, &batch, row)?)?;
                        continue;
                    };
                    let mut write = |ending: &str, bytes: &[u8]| {
                        member(&mut tar, &key, ending, bytes).map_err(StageError::io("write", &path))
                    };
                    write(ending, image)?;
                    if let Some(json) = objects.get(row) {
                        write("json", &pretty(json)?)?;
                    }
                    if shard.schema().index_of(&self.caption).is_ok() {
                        write("txt", rows::text(&shard, &batch, &self.caption, row).as_bytes())?;
                    }
                    outcome.rows_out += 1;
                    task.tally.good(1);
                }
            }
        }
        let tar = tar.into_inner().map_err(StageError::io("write", &path))?;
        outcome.data.push(tar.finish(outcome.rows_out)?);
        (outcome.dropped, outcome.quarantine) = quarantine.finish(&task.attempt.quarantine())?;
        Ok(outcome)
    }
}

/// The columns that JSON can hold.
fn without_bytes(batch: &RecordBatch) -> Result<RecordBatch, StageError> {
    let is_bytes = |kind: &DataType| matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView);
    let fields = batch.schema_ref().fields().iter().enumerate();
    let kept: Vec<usize> = fields.filter(|(_, field)| !is_bytes(field.data_type())).map(|(n, _)| n).collect();
    batch.project(&kept).map_err(StageError::failed)
}

/// What ends the name of an image's file.
fn ending(image: &[u8]) -> Option<&'static str> {
    image::guess_format(image).ok()?.extensions_str().first().copied()
}

fn no_image(shard: &Shard, batch: &RecordBatch, row: usize) -> Result<BadRow, StageError> {
    let key = shard.text(batch, columns::KEY)?.value(row).to_owned();
    let text = |column| rows::text(shard, batch, column, row);
    let (url, caption) = (text(columns::URL), text(columns::CAPTION));
    let detail = "its bytes are no image".to_owned();
    Ok(BadRow { key, url, caption, reason: "not_an_image", status: "failed_to_resize", detail })
}
