//! `evaluate`: numbers about a checkpoint's pictures; here, whether backgrounds have the colour that the prompt names.
//!
//! - in: a checkpoint trained on the demo's pictures
//! - out: a table, in the report
//! - stale when: a setting or the checkpoint changed
//! - law: prompts read

use std::ops::ControlFlow;

use image::RgbImage;
use sampler::SampleError;
use sampler::colors::{Bar, NamedColor, Score, judge};
use sampler::guidance::Guidance;
use sampler::solver::Solver;
use sampler::text_to_image::{Picture, Progress, Settings, TextToImage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::watch::say;

/// Samples prompts "… on a COLOUR background" and looks at the pictures' borders.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct ColorTest {
    /// How many prompts to try, going round the named colours.
    pub(crate) prompts: usize,
    /// Guidance scale; 1 is none [4].
    pub(crate) guidance: f64,
    /// Steps from noise to picture [25].
    pub(crate) steps: u32,
    pub(crate) sampler: Solver,
    /// Picture i is made from seed + i [0].
    pub(crate) seed: u64,
    /// Share of prompts whose colour must be right.
    pub(crate) right: f64,
    /// A border whose standard deviation, of 255, is not below this is uneven.
    pub(crate) deviation: f64,
    /// How many borders may be uneven.
    pub(crate) uneven: usize,
}

impl Default for ColorTest {
    fn default() -> Self {
        let Bar { right, deviation, uneven } = Bar::default();
        Self { prompts: 48, guidance: 4.0, steps: 25, sampler: Solver::Heun, seed: 0, right, deviation, uneven }
    }
}

impl ColorTest {
    pub(crate) fn bar(&self) -> Bar {
        Bar { right: self.right, deviation: self.deviation, uneven: self.uneven }
    }

    /// How it samples: squares of the training's longest side.
    pub(crate) fn settings(&self, model: &TextToImage) -> Settings {
        let side = model.state.max_resolution;
        Settings {
            width: side,
            height: side,
            steps: self.steps,
            guidance: Guidance::of(self.guidance),
            sampler: self.sampler,
            shift: 1.0,
        }
    }

    /// Samples as `settings` say, `batch` pictures at once, and judges; `watch` hears of every step, and may end it.
    pub(crate) fn run(
        &self,
        model: &TextToImage,
        settings: &Settings,
        batch: usize,
        watch: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<(Score, Vec<RgbImage>), SampleError> {
        let questions = demo::Catalogue::default().color_prompts(self.prompts);
        let wanted: Vec<Picture> = (self.seed..)
            .zip(&questions)
            .map(|(seed, q)| Picture { prompt: q.prompt.clone(), seed, ..Picture::default() })
            .collect();
        let pictures = model.generate(&wanted, settings, batch, watch)?;
        let colors: Vec<NamedColor> =
            demo::palette::COLORS.iter().map(|c| NamedColor { name: c.name.to_owned(), rgb: c.rgb }).collect();
        let judgements =
            pictures.iter().zip(&questions).map(|(picture, q)| judge(picture, &q.prompt, q.color, &colors)).collect();
        Ok((Score { judgements }, pictures))
    }

    /// The score in a line.
    pub(crate) fn summary(&self, score: &Score) -> String {
        let bar = self.bar();
        format!(
            "{} of {} backgrounds have the colour asked for ({:.0} %; {:.0} % needed). {} borders have a standard deviation of {:.0} \
             of 255 or more ({} may); the mean is {:.1}. {}",
            score.right(),
            score.judgements.len(),
            100.0 * score.share_right(),
            100.0 * bar.right,
            score.uneven(bar),
            bar.deviation,
            bar.uneven,
            score.mean_deviation(),
            if score.passes(bar) { "Passed." } else { "Not passed." }
        )
    }
}

/// One row a prompt: prompt, asked, nearest, mean colour, deviation, verdict.
pub(crate) fn table(score: &Score) -> Vec<[String; 6]> {
    let row = |j: &sampler::colors::Judgement| {
        let [r, g, b] = j.mean.map(|c| c.round() as u8);
        let verdict = if j.is_right() { "right" } else { "wrong" };
        [
            j.prompt.clone(),
            j.expected.clone(),
            j.nearest.clone(),
            format!("{r} {g} {b}"),
            format!("{:.1}", j.deviation),
            verdict.to_owned(),
        ]
    };
    score.judgements.iter().map(row).collect()
}

/// Prints the rows of [`table`].
pub(crate) fn print_table<'a>(rows: impl IntoIterator<Item = &'a [String]>) -> std::io::Result<()> {
    say(format_args!("{:<52} {:<8} {:<8} {:>13} {:>9}", "prompt", "asked", "nearest", "border's mean", "deviation"))?;
    for row in rows {
        if let [prompt, asked, nearest, mean, deviation, verdict] = row {
            say(format_args!("{prompt:<52} {asked:<8} {nearest:<8} {mean:>13} {deviation:>9}  {verdict}"))?;
        }
    }
    Ok(())
}

#[cfg(feature = "pipeline")]
pub(super) use adapter::kind;

#[cfg(feature = "pipeline")]
pub(crate) use adapter::{SUMMARY, TABLE};

#[cfg(feature = "pipeline")]
mod adapter {
    use pipeline::manifest::Parameters;
    use pipeline::stage::{Law, Load, Outcome, Partitioning, Stage, StageError, StageKind, Task};
    use schemars::schema_for;
    use serde_json::Value;
    use shards::sidecar::Section;

    use super::super::quality::Quality;
    use super::super::quality::stage::{Making, Measure, VERSION};
    use super::super::{Operations, batch_of, checkpoint_of, load, of_sampling, until_cancelled};
    use super::{ColorTest, table};

    /// The detail that holds the score in words.
    pub(crate) const SUMMARY: &str = "summary";
    /// The title of the section that holds the table.
    pub(crate) const TABLE: &str = "Colours, prompt by prompt";

    /// Whether it compares pictures with real ones or with their prompts, not backgrounds with colours.
    fn is_of_images(parameters: &Parameters) -> bool {
        parameters.has("inception") || parameters.has("clip_score")
    }

    pub(in super::super) fn kind() -> StageKind {
        StageKind {
            name: "evaluate",
            version: VERSION,
            about: "Samples prompts that name a background colour and looks whether the pictures have it; with inception or clip_score, \
                    compares pictures with real ones and with their prompts (FID, KID, precision, recall, CLIP score).",
            inputs: (1, 1),
            schemas: || {
                vec![schema_for!(ColorTest), schema_for!(Quality), schema_for!(Making), schema_for!(Operations)]
            },
            rehearse: |parameters, rows| match parameters.read::<Quality>() {
                Ok(quality) if is_of_images(parameters) => vec![("count", quality.count().min(rows).into())],
                _ => Vec::new(),
            },
            build: |parameters| {
                let batch = batch_of(parameters)?;
                if !is_of_images(parameters) {
                    return Ok(Box::new(Colors { test: parameters.read()?, batch }));
                }
                let (quality, making): (Quality, Making) = (parameters.read()?, parameters.read()?);
                quality.check().map_err(|(setting, error)| parameters.fault(setting, error))?;
                quality.check_files().map_err(|(setting, error)| parameters.fault(setting, error))?;
                making.size().map_err(|error| parameters.fault("size", error))?;
                Ok(Box::new(Measure { quality, making, batch }))
            },
        }
    }

    /// The test of colours as a stage.
    struct Colors {
        test: ColorTest,
        batch: usize,
    }

    impl Stage for Colors {
        fn semantics(&self) -> Value {
            serde_json::to_value(&self.test).unwrap_or_default()
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
            let (test, settings) = (&self.test, self.test.settings(&model));
            let (score, pictures) =
                test.run(&model, &settings, self.batch, &mut until_cancelled(task)).map_err(of_sampling)?;
            let rows = pictures.len() as u64;
            task.tally.good(rows);
            let mut outcome = Outcome { rows_in: rows, rows_out: rows, ..Outcome::default() };
            let summary = test.summary(&score);
            outcome.details.insert(SUMMARY.to_owned(), summary.clone().into());
            outcome.details.insert("passed".to_owned(), score.passes(test.bar()).into());
            outcome.sections.push(Section::Text { title: "Colours".to_owned(), text: summary });
            outcome.sections.push(Section::Table {
                title: TABLE.to_owned(),
                header: ["prompt", "asked", "nearest", "border's mean", "deviation", ""].map(str::to_owned).to_vec(),
                rows: table(&score).into_iter().map(|row| row.to_vec()).collect(),
            });
            Ok(outcome)
        }
    }
}
