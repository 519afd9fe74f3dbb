//! `sample`: a checkpoint and prompts to pictures.
//!
//! - in: a checkpoint
//! - out: a grid of pictures with their prompts, for each size
//! - stale when: a prompt, a setting or the checkpoint changed
//! - law: prompts read

use pipeline::stage::{Law, Load, Outcome, Partitioning, Stage, StageError, StageKind, Task, as_it_is};
use sampler::grid;
use sampler::guidance::Guidance;
use sampler::solver::Solver;
use sampler::text_to_image::{Picture, Settings};
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::bucket::BucketSize;
use shards::sidecar::Section;

use super::{Operations, batch_of, checkpoint_of, data_file, load, of_sampling, until_cancelled};

/// The detail that names the first grid, relative to the stage's folder.
pub(crate) const GRID: &str = "grid";

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Sample {
    /// One picture each.
    prompts: Vec<String>,
    /// WIDTHxHEIGHT in pixels; one grid for each [the training's longest side, square].
    #[serde(default)]
    sizes: Vec<String>,
    /// Steps from noise to picture [25].
    #[serde(default = "default_steps")]
    steps: u32,
    /// What is not to be seen, in every picture [nothing].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    negative_prompt: String,
    /// Guidance scale; 1 is none [4].
    #[serde(default = "default_guidance")]
    guidance: f64,
    /// How steps are taken [heun].
    #[serde(default = "default_sampler")]
    sampler: Solver,
    /// Moves the steps towards noise; 1 spaces them evenly [1].
    #[serde(default = "default_shift")]
    shift: f64,
    /// Picture i is made from seed + i [0].
    #[serde(default)]
    seed: u64,
    /// Pictures in a row of the grid [6].
    #[serde(default = "default_columns")]
    columns: u32,
}

fn default_steps() -> u32 {
    25
}
fn default_guidance() -> f64 {
    4.0
}
fn default_sampler() -> Solver {
    Solver::Heun
}
fn default_shift() -> f64 {
    1.0
}
fn default_columns() -> u32 {
    6
}

pub(super) fn kind() -> StageKind {
    StageKind {
        name: "sample",
        version: 1,
        about: "Makes pictures of prompts from a checkpoint.",
        inputs: (1, 1),
        schemas: || vec![schema_for!(Sample), schema_for!(Operations)],
        rehearse: as_it_is,
        build: |parameters| {
            let sample: Sample = parameters.read()?;
            if sample.prompts.is_empty() {
                return Err(parameters.fault("prompts", "prompts is empty: give at least one"));
            }
            for size in &sample.sizes {
                size.parse::<BucketSize>().map_err(|error| parameters.fault("sizes", error))?;
            }
            Ok(Box::new(Samples { sample, batch: batch_of(parameters)? }))
        },
    }
}

/// Its settings, and pictures that are made at once.
struct Samples {
    sample: Sample,
    batch: usize,
}

impl Stage for Samples {
    fn semantics(&self) -> Value {
        serde_json::to_value(&self.sample).unwrap_or_default()
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

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let model = load(&checkpoint_of(task)?).map_err(StageError::failed)?;
        let side = model.state.max_resolution;
        let Self { sample, batch } = self;
        let mut sizes: Vec<BucketSize> = sample.sizes.iter().filter_map(|s| s.parse().ok()).collect();
        if sizes.is_empty() {
            sizes.push(BucketSize { width: side, height: side });
        }
        let rows = (sample.prompts.len() * sizes.len()) as u64;
        let mut outcome = Outcome { rows_in: rows, rows_out: rows, ..Outcome::default() };
        for size in sizes {
            task.check_cancelled()?;
            let settings = Settings {
                width: size.width,
                height: size.height,
                steps: sample.steps,
                guidance: Guidance::of(sample.guidance),
                sampler: sample.sampler,
                shift: sample.shift,
            };
            let wanted = (sample.seed..).zip(&sample.prompts).map(|(seed, prompt)| Picture {
                prompt: prompt.clone(),
                negative_prompt: sample.negative_prompt.clone(),
                seed,
            });
            let wanted: Vec<Picture> = wanted.collect();
            let pictures = model.generate(&wanted, &settings, *batch, &mut until_cancelled(task));
            let pictures = pictures.map_err(of_sampling)?;
            task.tally.good(pictures.len() as u64);
            let file = format!("{}-{}-{size}.png", task.partition, task.fingerprint.short());
            let path = task.folder.path().join(&file);
            let sheet = grid::sheet(&pictures, &sample.prompts, sample.columns, 160);
            grid::save(&sheet, &path).map_err(StageError::failed)?;
            outcome.data.push(data_file(task.folder, &path, pictures.len() as u64)?);
            outcome.details.entry(GRID.to_owned()).or_insert_with(|| file.clone().into());
            outcome.sections.push(Section::Picture { title: format!("Samples, {size}"), file });
        }
        Ok(outcome)
    }
}
