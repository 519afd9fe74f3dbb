//! `train`: a bucket index to a checkpoint.
//!
//! - in: the bucket index; and, to begin from its checkpoint, another train stage
//! - out: a checkpoint, in `run-<fingerprint>/step-…`; a killed training goes on from its last one
//! - stale when: a setting of [`trainer::config::TrainConfig`] or the index changed
//! - law: rows read
//! - with several ranks, each a `worker` of the same manifest: the first that holds the model commits

use std::path::{Path, PathBuf};

use models::ModelError;
use models::checkpoint::{Checkpoint, EMA, MODEL, OPTIMIZER};
use pipeline::stage::{Facts, Law, Load, Outcome, Partitioning, Stage, StageError, StageKind, Task};
use pipeline::stages::bucket::PATCH_SIZE;
use ranks::World;
use schemars::schema_for;
use serde_json::Value;
use shards::digest::Digest;
use shards::sidecar::Section;
use trainer::TrainError;
use trainer::config::{Encode, TrainConfig, TrainOperations};
use trainer::metrics::Record;
use trainer::start::Start;
use trainer::stored::Stored;

use super::{data_file, encode, fault_of_models, in_a_line};

/// The detail that names the committed checkpoint's folder, relative to the stage's.
pub(super) const CHECKPOINT: &str = "checkpoint";

/// The fact that there is a checkpoint among what a stage reads.
const TRAINED: &str = "trained";

pub(super) fn kind() -> StageKind {
    StageKind {
        name: "train",
        version: 1,
        about: "Trains a text-to-image model on an index of buckets.",
        inputs: (1, 2),
        schemas: || vec![schema_for!(TrainConfig), schema_for!(TrainOperations)],
        rehearse: |parameters, rows| {
            let config = parameters.read::<TrainConfig>().unwrap_or_default();
            let steps = rows.div_ceil(config.batch_size.max(1)).clamp(1, config.steps);
            vec![
                ("steps", steps.into()),
                ("warmup_steps", config.warmup_steps.min(steps / 2).into()),
                // Of so few rows most are to be trained on.
                ("validation_images", config.validation_images.min(rows / 10).into()),
            ]
        },
        build: |parameters| {
            let config: TrainConfig = parameters.read()?;
            let operations: TrainOperations = parameters.read()?;
            // Models that cannot be read are named by the key that names them, before the sizes that follow from them.
            config.latents.shape().map_err(|error| fault_of_models(parameters, "latents", error))?;
            config.text.shape().map_err(|error| fault_of_models(parameters, "text", error))?;
            config.validate().map_err(|error| parameters.fault(key_of(&error), in_a_line(error)))?;
            operations.validate(&config).map_err(|error| parameters.fault(key_of(&error), in_a_line(error)))?;
            // Now, and not once all that comes before a training is made.
            if let Some(start) = config.start.as_ref().filter(|start| !start.folder.as_os_str().is_empty()) {
                start.identity().map_err(|error| fault_of_models(parameters, "start", error))?;
            }
            Ok(Box::new(Train { config, operations }))
        },
    }
}

/// The key whose value an error is about.
fn key_of(error: &TrainError) -> &'static str {
    match error {
        TrainError::Configuration { what, .. } | TrainError::Model(ModelError::Configuration { what, .. }) => {
            match *what {
                "hidden" => "hidden_scale",
                what => what.split('.').next().unwrap_or(what),
            }
        }
        TrainError::Sample(_) => "sample_grids",
        _ => "",
    }
}

/// The loss of the images that are held out, where there are any.
fn validation_curve(records: &[Record]) -> Option<Section> {
    let points = records.iter().filter_map(|record| Some((record.step as f64, record.validation.as_ref()?.loss)));
    let (x, y): (Vec<f64>, Vec<f64>) = points.unzip();
    let (title, x_label) = ("Validation loss".to_owned(), "updates".to_owned());
    (!x.is_empty()).then_some(Section::Curve { title, x_label, x, y })
}

/// Sheets that are shown of a training: its last, and others from its whole length.
const SHEETS: usize = 4;

/// Titles and files of a run's sheets of pictures, oldest first.
fn sheets(run: &Path) -> Result<Vec<(String, PathBuf)>, StageError> {
    let folder = run.join(trainer::grids::FOLDER);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let listed = std::fs::read_dir(&folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut files: Vec<PathBuf> =
        listed.map_err(StageError::io("list", &folder))?.into_iter().map(|entry| entry.path()).collect();
    files.sort();
    let all = files.len();
    let is_shown = |number: usize| number.is_multiple_of(all.div_ceil(SHEETS).max(1));
    // Counted from the last, which is always shown.
    let shown = files.into_iter().enumerate().filter(|(n, _)| is_shown(all - 1 - n)).map(|(_, file)| file);
    Ok(shown.filter_map(|file| Some((format!("Samples after {} updates", updates_of(&file)?), file))).collect())
}

/// The updates that a sheet's name tells.
fn updates_of(sheet: &Path) -> Option<u64> {
    sheet.file_stem()?.to_str()?.strip_prefix("step-")?.parse().ok()
}

/// What a training that is to be made again replaces.
struct Replaced {
    /// The digest of the record that is there.
    record: Vec<u8>,
    /// Whether the finished training in the run's folder was to replace it: it has not been committed then, and is not to be made once more.
    is_made: bool,
}

/// What this task replaces; nothing where it was not asked to make again what is there.
fn replaced(task: &Task, run: &Path) -> Result<Option<Replaced>, StageError> {
    let workdir = task.folder.workdir();
    let record = format!("{}.{}.json", task.partition, task.fingerprint.short());
    let record = if task.force { workdir.read(&task.folder.name_of(&record))? } else { None };
    let Some(record) = record.map(|record| Digest::of(&record).to_string().into_bytes()) else { return Ok(None) };
    let is_made = workdir.read(&name_of_replaced(task, run))?.is_some_and(|made| made == record);
    Ok(Some(Replaced { record, is_made }))
}

/// The file, within the workdir, in which a finished training that was made again says what it replaces.
fn name_of_replaced(task: &Task, run: &Path) -> String {
    task.folder.name_of(&format!("{}/replaces", run.file_name().unwrap_or_default().to_string_lossy()))
}

struct Train {
    config: TrainConfig,
    operations: TrainOperations,
}

impl Train {
    /// How where it begins does not fit what it reads.
    fn misfit_of_start(&self, reads_checkpoint: bool) -> Option<(&'static str, String)> {
        let names_folder = self.config.start.as_ref().map(|start| !start.folder.as_os_str().is_empty());
        match (names_folder, reads_checkpoint) {
            (Some(true), true) => Some((
                "start",
                "start.folder names a checkpoint, and `from` a train stage as well: keep one".to_owned(),
            )),
            (Some(false), false) => {
                let text = "start names no folder: give one, or name a train stage in from = [\"INDEX\", \"TRAIN\"]";
                Some(("start", text.to_owned()))
            }
            _ => None,
        }
    }

    /// The configuration with the checkpoint that it begins from, where that is an input's.
    fn begun_from_inputs(&self, task: &Task) -> Result<TrainConfig, StageError> {
        let mut config = self.config.clone();
        if task.inputs.len() > 1 {
            let folder = super::checkpoint_of(task)?;
            let start = config.start.unwrap_or_default();
            // Of a checkpoint on a store, an input brings what one samples with.
            let stored = folder.parent().and_then(|run| Stored::of(task.folder.workdir(), run));
            if let Some(stored) = stored.filter(|_| start.optimizer) {
                let state = Checkpoint::open(&folder).map_err(StageError::failed)?.state;
                stored.bring(state.step, OPTIMIZER).map_err(StageError::failed)?;
            }
            config.start = Some(Start { folder, ..start });
        }
        Ok(config)
    }

    /// How what was encoded ahead, or was not, does not fit this training.
    fn misfit_of_encoding(&self, encoded: Option<&Value>) -> Option<(&'static str, String)> {
        let encoded = match (self.config.encode, encoded) {
            (Encode::Online, None) => return None,
            (Encode::Online, Some(_)) => {
                return Some((
                    "encode",
                    "its input was encoded ahead and has no images: set encode = \"cached\"".to_owned(),
                ));
            }
            (Encode::Cached, None) => {
                let text = "encode = \"cached\" needs the index of an encode stage (uses = \"encode\") as its input";
                return Some(("encode", text.to_owned()));
            }
            (Encode::Cached, Some(encoded)) => encoded,
        };
        let own = self.config.latents.identity_of_distribution().ok();
        if own.is_some_and(|own| encoded.get("latents") != Some(&own)) {
            return Some(("latents", "its input was encoded to other latents".to_owned()));
        }
        let columns: Vec<&str> =
            encoded.get("captions").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        if columns.is_empty() {
            return None;
        }
        let own = self.config.text.identity().ok();
        if own.is_some_and(|own| encoded.get("text") != Some(&own)) {
            return Some(("text", "its input was encoded by other text encoders".to_owned()));
        }
        let missing = self.config.captions.keys().find(|column| !columns.contains(&column.as_str()))?;
        let text = format!(
            "its input has no encoded captions of the column {missing}; it has those of {}",
            columns.join(", ")
        );
        Some(("captions", text))
    }
}

impl Stage for Train {
    fn semantics(&self) -> Value {
        let mut semantics = serde_json::to_value(&self.config).unwrap_or_default();
        // Models count by their contents. Where a folder cannot be read, `build` has said so, and nothing runs.
        let start = self.config.start.as_ref().map(|start| ("start", start.identity()));
        let models = [("latents", self.config.latents.identity()), ("text", self.config.text.identity())];
        for (key, identity) in models.into_iter().chain(start) {
            if let (Some(value), Ok(identity)) = (semantics.get_mut(key), identity) {
                *value = identity;
            }
        }
        semantics
    }

    fn partitioning(&self) -> Partitioning {
        Partitioning::Whole
    }

    fn law(&self) -> Law {
        Law::Reads
    }

    fn load(&self) -> Load {
        Load::AllCores
    }

    fn reads_through(&self) -> bool {
        true
    }

    fn leader(&self, processes: usize) -> Result<Option<usize>, StageError> {
        trainer::first_model(&self.operations, processes).map(Some).map_err(StageError::failed)
    }

    fn rows_to_read(&self) -> Option<u64> {
        Some(self.config.steps.saturating_mul(self.config.batch_size))
    }

    fn facts(&self) -> Facts {
        [(TRAINED.to_owned(), true.into())].into()
    }

    fn check(&self, upstream: &Facts) -> Vec<(&'static str, String)> {
        if let Some(fault) = self.misfit_of_start(upstream.contains_key(TRAINED)) {
            return vec![fault];
        }
        let multiple = match self.config.pixel_multiple() {
            Ok(multiple) => multiple,
            Err(error) => return vec![("latents", in_a_line(error))],
        };
        if let Some(fault) = self.misfit_of_encoding(upstream.get(encode::ENCODED)) {
            return vec![fault];
        }
        let patch = upstream.get(PATCH_SIZE).and_then(Value::as_i64);
        let misfit = patch.filter(|patch| patch % multiple != 0);
        let fault = misfit.map(|patch| {
            let text = format!(
                "buckets come in multiples of {patch} pixels, but the model needs multiples of {multiple} \
                 (latent factor × patch_size): set bucket.patch_size = {multiple}"
            );
            ("patch_size", text)
        });
        fault.into_iter().collect()
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let index = task.files().next().ok_or_else(|| StageError::failed("its input has no index"))?;
        let run = task.folder.path().join(format!("run-{}", task.fingerprint.short()));
        let config = self.begun_from_inputs(task)?;
        let replaced = replaced(task, &run)?;
        let job = trainer::Job {
            config: &config,
            operations: &self.operations,
            index: &index,
            workdir: Some(task.folder.workdir()),
            folder: &run,
            stage: task.stage,
            events: task.events,
            cancelled: &|| task.cancel.is_cancelled(),
            again: replaced.as_ref().is_some_and(|replaced| !replaced.is_made),
        };
        let world = if task.together { World::from_environment().map_err(StageError::failed)? } else { None };
        let finished = match &world {
            Some(world) => trainer::train_together(&job, world).map_err(StageError::failed)?,
            None => Some(trainer::train(&job).map_err(StageError::failed)?),
        };
        // Another rank commits.
        let Some(finished) = finished else { return Ok(Outcome::default()) };
        if finished.interrupted {
            return Err(StageError::Cancelled);
        }
        if let Some(Replaced { record, .. }) = replaced {
            task.folder.workdir().replace(&name_of_replaced(task, &run), &record)?;
        }
        let rows = self.config.steps * self.config.batch_size;
        let folder = &finished.checkpoint.folder;
        let mut outcome = Outcome { rows_in: rows, rows_out: rows, ..Outcome::default() };
        for file in [EMA, MODEL, "state.json"] {
            outcome.data.push(data_file(task.folder, &folder.join(file), 0)?);
        }
        let relative = folder.strip_prefix(task.folder.path()).unwrap_or(folder).to_string_lossy().into_owned();
        outcome.details.insert(CHECKPOINT.to_owned(), relative.clone().into());
        if finished.replaced > 0 {
            outcome.observed.insert("bad images replaced".to_owned(), finished.replaced);
        }
        outcome.sections.push(Section::Curve {
            title: "Training loss".to_owned(),
            x_label: "updates".to_owned(),
            x: finished.records.iter().map(|r| r.step as f64).collect(),
            y: finished.records.iter().map(|r| r.loss).collect(),
        });
        outcome.sections.extend(validation_curve(&finished.records));
        for (title, file) in sheets(&run)? {
            let file = data_file(task.folder, &file, 0)?;
            outcome.sections.push(Section::Picture { title, file: file.file.clone() });
            outcome.data.push(file);
        }
        if let Some(last) = finished.records.last() {
            let rates = finished.records.iter().map(|r| r.images_per_second);
            let mean = rates.clone().sum::<f64>() / rates.count().max(1) as f64;
            let text = format!(
                "{} updates of {} images, {} passes over the data; loss {:.4} at the end; {mean:.0} images/s. Checkpoint: {relative}",
                last.step, self.config.batch_size, last.epoch, last.loss
            );
            outcome.sections.push(Section::Text { title: "Training".to_owned(), text });
        }
        Ok(outcome)
    }
}
