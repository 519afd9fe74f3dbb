//! The engine's side of it.

use std::ops::ControlFlow;
use std::path::PathBuf;

use pipeline::stage::{Law, Load, Outcome, Partitioning, Stage, StageError, Task};
use sampler::guidance::Guidance;
use sampler::solver::Solver;
use sampler::text_to_image::Settings;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shards::bucket::BucketSize;
use shards::digest::Digest;
use shards::sidecar::Section;

use super::sources::Maker;
use super::{Quality, summary, table};
use crate::stages::{checkpoint_of, in_a_line, load};

/// Of the stage kind: raised when the same parameters come to mean other pictures or other numbers.
pub(in super::super) const VERSION: u32 = 3;

/// How the pictures are made.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(in super::super) struct Making {
    /// WIDTHxHEIGHT in pixels [the training's longest side, square; of captions, as their pictures].
    size: Option<String>,
    /// Steps from noise to picture [25].
    steps: u32,
    /// Guidance scale; 1 is none [4].
    guidance: f64,
    sampler: Solver,
}

impl Default for Making {
    fn default() -> Self {
        Self { size: None, steps: 25, guidance: 4.0, sampler: Solver::Heun }
    }
}

/// Measures a checkpoint's pictures.
pub(in super::super) struct Measure {
    pub(in super::super) quality: Quality,
    pub(in super::super) making: Making,
    /// Pictures that are made at once.
    pub(in super::super) batch: usize,
}

impl Measure {
    /// The folder for features, by all that they depend on. How numbers are made of them is not in it, so that other numbers need no
    /// other pictures.
    fn features(&self, maker: &Maker) -> String {
        let mut semantics = self.semantics();
        if let Some(all) = semantics.as_object_mut() {
            for of_numbers in ["subset_size", "resamples"] {
                all.remove(of_numbers);
            }
        }
        let all = json!({"version": VERSION, "semantics": semantics, "made_by": maker.identity()});
        format!("features-{}", Digest::of(all.to_string().as_bytes()).short())
    }
}

impl Making {
    pub(in super::super) fn size(&self) -> Result<Option<BucketSize>, String> {
        self.size
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(|error: shards::bucket::InvalidBucketSize| error.to_string())
    }
}

impl Stage for Measure {
    fn semantics(&self) -> Value {
        let mut semantics = serde_json::to_value(&self.quality).unwrap_or_default();
        if let (Some(all), Ok(Value::Object(making))) = (semantics.as_object_mut(), serde_json::to_value(&self.making))
        {
            all.extend(making);
            // Where one cannot be read its path counts, and the run says what is wrong with it.
            let of = |path: &Option<PathBuf>| models::settings::folder_digest(path.as_deref()?).ok().map(Value::from);
            let Quality { inception, clip_score, .. } = &self.quality;
            let identities = [
                ("inception", of(inception)),
                ("clip_score", of(clip_score)),
                ("reference", self.quality.reference_identity()),
            ];
            all.extend(identities.into_iter().filter_map(|(key, identity)| Some((key.to_owned(), identity?))));
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

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let failed = |error: anyhow::Error| match error.downcast_ref() {
            Some(sampler::SampleError::Stopped) => StageError::Cancelled,
            _ => StageError::failed(in_a_line(error)),
        };
        let model = load(&checkpoint_of(task)?).map_err(StageError::failed)?;
        let networks = self.quality.networks(model.device()).map_err(failed)?;
        let side = model.state.max_resolution.max(model.side_multiple());
        let size = self.making.size().ok().flatten().unwrap_or(BucketSize { width: side, height: side });
        let settings = Settings {
            width: size.width,
            height: size.height,
            steps: self.making.steps,
            guidance: Guidance::of(self.making.guidance),
            sampler: self.making.sampler,
            shift: 1.0,
        };
        let maker = Maker { model: &model, settings, batch: self.batch };
        let folder = task.folder.path().join(self.features(&maker));
        let mut counted = 0;
        let report = self.quality.of_model(&maker, &networks, &folder, &mut |what, seen| {
            if what == "generated" && seen > counted {
                task.tally.good(seen - counted);
                counted = seen;
            }
            if task.cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let report = report.map_err(failed)?;
        let rows = report.generated;
        let mut outcome = Outcome { rows_in: rows, rows_out: rows, ..Outcome::default() };
        for measured in &report.metrics {
            outcome.details.insert(measured.metric.clone(), measured.value.into());
        }
        outcome.sections.push(Section::Table {
            title: summary(&report),
            header: ["metric", "value", "error", "interval", ""].map(str::to_owned).to_vec(),
            rows: table(&report).into_iter().map(|row| row.to_vec()).collect(),
        });
        Ok(outcome)
    }
}
