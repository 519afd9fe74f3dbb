//! `evaluate`: numbers about a checkpoint's pictures.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use sampler::text_to_image::unwatched;

use crate::errors::{FAILED, OK, Usage};
use crate::stages::evaluate::{ColorTest, print_table, table};

#[derive(Debug, Args)]
pub(crate) struct Evaluate {
    /// A checkpoint, or a training's folder, whose latest checkpoint is used.
    #[arg(long)]
    checkpoint: PathBuf,
    /// Whether backgrounds have the colour that the prompt names (for models trained on the demo's pictures).
    #[arg(long)]
    colors: bool,
    /// How many prompts to try.
    #[arg(long, default_value_t = 48)]
    prompts: usize,
    #[arg(long, default_value_t = 4.0)]
    guidance: f64,
    #[arg(long, default_value_t = 25)]
    steps: u32,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many borders may be uneven (a standard deviation of 15 of 255 or more).
    #[arg(long, default_value_t = 0)]
    uneven: usize,
}

impl Evaluate {
    pub(crate) fn run(self) -> Result<u8> {
        if !self.colors {
            return Err(Usage("nothing to evaluate: give --colors".to_owned()).into());
        }
        let test = ColorTest {
            prompts: self.prompts,
            guidance: self.guidance,
            steps: self.steps,
            seed: self.seed,
            uneven: self.uneven,
            ..ColorTest::default()
        };
        let (score, _) = test.run(&self.checkpoint, &mut unwatched)?;
        print_table(table(&score).iter().map(<[String; 6]>::as_slice));
        println!("{}", test.summary(&score));
        Ok(if score.passes(test.bar()) { OK } else { FAILED })
    }
}
