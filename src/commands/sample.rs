//! `sample`: pictures from a checkpoint.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use sampler::grid;
use sampler::solver::Solver;
use sampler::text_to_image::{Request, TextToImage, Weights};
use shards::bucket::BucketSize;
use shards::event::Event;

use crate::errors::{OK, Usage};
use crate::settings::{lines, size};
use crate::watch::{self, Style};

#[derive(Debug, Args)]
pub(crate) struct Sample {
    /// A checkpoint, or a training's folder, whose latest checkpoint is used.
    #[arg(long)]
    checkpoint: PathBuf,
    /// What to show; may be given several times.
    #[arg(long)]
    prompt: Vec<String>,
    /// A file with a prompt a line.
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// WIDTHxHEIGHT in pixels, or one number for a square [the training's longest side, square].
    #[arg(long, value_parser = size)]
    size: Option<BucketSize>,
    #[arg(long, default_value_t = 25)]
    steps: u32,
    /// Guidance scale: 1 is none.
    #[arg(long, default_value_t = 4.0)]
    guidance: f64,
    #[arg(long, value_enum, default_value_t = SolverName::Heun)]
    sampler: SolverName,
    /// Moves the steps towards noise: 1 spaces them evenly.
    #[arg(long, default_value_t = 1.0)]
    shift: f64,
    /// Picture i is made from seed + i.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Pictures made at a time.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Use the parameters as trained instead of their average.
    #[arg(long)]
    raw: bool,
    /// Folder for the pictures and their grid.
    #[arg(long, default_value = "samples")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SolverName {
    Euler,
    Heun,
    /// Euler with fresh noise in each step, as the reference system has it.
    EulerStochastic,
    /// The same with the drift that makes up for the noise.
    EulerStochasticCorrected,
}

impl From<SolverName> for Solver {
    fn from(name: SolverName) -> Self {
        match name {
            SolverName::Euler => Self::Euler,
            SolverName::Heun => Self::Heun,
            SolverName::EulerStochastic => Self::EulerStochastic,
            SolverName::EulerStochasticCorrected => Self::EulerStochasticCorrected,
        }
    }
}

impl Sample {
    pub(crate) fn run(self) -> Result<u8> {
        let mut prompts = self.prompt;
        if let Some(file) = &self.prompts {
            prompts.extend(lines(file)?);
        }
        if prompts.is_empty() {
            return Err(Usage("no prompt: give --prompt \"…\" or --prompts FILE".to_owned()).into());
        }
        let weights = if self.raw { Weights::Raw } else { Weights::Average };
        let model = TextToImage::load(&self.checkpoint, weights)?;
        let side = model.state.max_resolution;
        let BucketSize { width, height } = self.size.unwrap_or(BucketSize { width: side, height: side });
        let request = Request {
            prompts: &prompts,
            seed: self.seed,
            width,
            height,
            steps: self.steps,
            guidance: self.guidance,
            solver: self.sampler.into(),
            shift: self.shift,
            batch: self.batch,
        };
        let events = watch::sink(Style::Lines { quiet: false, verbose: false });
        let pictures = model.generate(&request, |share| {
            events.send(Event::Progress {
                stage: "sample".to_owned(),
                unit: "%",
                done: (share * 100.0) as u64,
                total: Some(100),
                outcomes: std::collections::BTreeMap::new(),
                note: String::new(),
            });
        })?;
        shards::disk::create_folder(&self.out)?;
        for (i, picture) in pictures.iter().enumerate() {
            grid::save(picture, &self.out.join(format!("{i:04}.png")))?;
        }
        let path = self.out.join("grid.png");
        grid::save(&grid::sheet(&pictures, &prompts, 6, 160), &path)?;
        println!("{}", path.display());
        Ok(OK)
    }
}
