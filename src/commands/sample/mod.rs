//! `sample`: pictures from a checkpoint.

mod interactive;
pub(crate) mod settings;
mod source;
mod terminal;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use image::codecs::jpeg::JpegEncoder;
use image::{ImageFormat, RgbImage};
use models::text::{Truncated, Truncation};
use sampler::SampleError;
use sampler::animation::{Animation, MOST_FRAMES};
use sampler::grid;
use sampler::recipe::{self, Recipe};
use sampler::text_to_image::{Picture, Progress, Settings, TextToImage};
use shards::event::Event;

use self::interactive::Session;
use self::settings::{How, defaults};
pub(crate) use self::source::{HowLoaded, OF_A_MODEL, Source};
use crate::errors::{INTERRUPTED, OK, Usage};
use crate::settings::{lines, on_interrupt};
use crate::watch::{self, Style, say};

#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
#[derive(Debug, Args)]
pub(crate) struct Sample {
    #[command(flatten)]
    source: Source,
    /// What to show; may be given several times.
    #[arg(long)]
    prompt: Vec<String>,
    /// A file with a prompt a line.
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// What is not to be seen, in every picture.
    #[arg(long, value_name = "TEXT")]
    negative: Option<String>,
    /// Make this picture again: a PNG that was made by `sample` or `serve`. What is given besides is changed.
    #[arg(long, value_name = "FILE.png")]
    like: Option<PathBuf>,
    #[command(flatten)]
    how: How,
    /// Picture i is made from seed + i [0].
    #[arg(long)]
    seed: Option<u64>,
    /// Pictures made at a time.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Read prompts and settings line by line; the model is loaded once.
    #[arg(long, conflicts_with_all = ["prompt", "prompts", "like", "grid", "gif", "apng", "format"])]
    interactive: bool,
    /// Folder for the pictures, whose numbers go on after those that are there.
    #[arg(long, default_value = "samples")]
    out: PathBuf,
    /// One sheet of all pictures and their prompts, grid.png, besides.
    #[arg(long)]
    grid: bool,
    /// The way from noise to each picture as a GIF, besides.
    #[arg(long, conflicts_with = "low_memory")]
    gif: bool,
    /// The same in all colours, as an animated PNG.
    #[arg(long, conflicts_with = "low_memory")]
    apng: bool,
    /// What pictures are written as. Only a PNG says what it was made with.
    #[arg(long, value_enum, default_value_t = Format::Png)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Png,
    Jpg,
    Webp,
}

impl Sample {
    pub(crate) fn run(self) -> Result<u8> {
        let (wanted, like) = self.wanted()?;
        let model = self.source.load(self.source.open()?)?;
        let base = like.as_ref().map_or_else(|| defaults(&model), |recipe| recipe.settings.clone());
        let settings = self.how.over(&base);
        if let Some(recipe) = like {
            for difference in recipe.differences(&model.recipe(&recipe.picture, &settings)) {
                watch::aside(format_args!("warning: that picture was made {difference}: it will be another picture"));
            }
        }
        shards::disk::create_folder(&self.out)?;
        let truncation = model.truncation()?;
        if self.interactive {
            let next = Picture {
                negative_prompt: self.negative.unwrap_or_default(),
                seed: self.seed.unwrap_or(0),
                ..Picture::default()
            };
            Session { model: &model, truncation, settings, next, out: self.out, number: 0 }.run()?;
            return Ok(OK);
        }
        tell_lost(&truncation, &wanted, &settings)?;
        match self.make(&model, &wanted, &settings) {
            Err(error) if matches!(error.downcast_ref(), Some(SampleError::Stopped)) => Ok(INTERRUPTED),
            made => made.map(|()| OK),
        }
    }

    /// The pictures that are asked for, and the one that is to be made again.
    fn wanted(&self) -> Result<(Vec<Picture>, Option<Recipe>)> {
        let like = self.like.as_deref().map(Recipe::read).transpose()?;
        let mut prompts = self.prompt.clone();
        if let Some(file) = &self.prompts {
            prompts.extend(lines(file)?);
        }
        if let Some(recipe) = like.as_ref().filter(|_| prompts.is_empty()) {
            prompts.push(recipe.picture.prompt.clone());
        }
        if prompts.is_empty() && !self.interactive {
            return Err(Usage("no prompt: give --prompt \"…\", --prompts FILE or --like FILE.png".to_owned()).into());
        }
        let of_like = |of: fn(&Recipe) -> String| like.as_ref().map(of);
        let negative = self.negative.clone().or_else(|| of_like(|recipe| recipe.picture.negative_prompt.clone()));
        let negative = negative.unwrap_or_default();
        let seed = self.seed.or(like.as_ref().map(|recipe| recipe.picture.seed)).unwrap_or(0);
        let numbered = prompts.into_iter().enumerate();
        let picture = |(number, prompt)| Picture {
            prompt,
            negative_prompt: negative.clone(),
            seed: seed.wrapping_add(number as u64),
        };
        Ok((numbered.map(picture).collect(), like))
    }

    fn make(&self, model: &TextToImage, wanted: &[Picture], settings: &Settings) -> Result<()> {
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopped);
        on_interrupt(move || stop.store(true, Ordering::Relaxed))?;
        let events = watch::sink(Style::Lines { quiet: false, verbose: false });
        // To spare memory the models take turns, once for all pictures.
        let at_once = if self.source.loading.low_memory { wanted.len() } else { self.batch.max(1) };
        let mut all = Vec::new();
        let (mut written, mut number) = (0usize, 0);
        for of_batch in wanted.chunks(at_once.max(1)) {
            let mut frames: Vec<Vec<RgbImage>> = vec![Vec::new(); of_batch.len()];
            let mut failed = None;
            let mut watch = |progress: &Progress| {
                let done = written as f64 + progress.share() * of_batch.len() as f64;
                events.send(Event::Progress {
                    stage: "sample".to_owned(),
                    unit: "%",
                    done: (100.0 * done / wanted.len() as f64) as u64,
                    total: Some(100),
                    outcomes: BTreeMap::new(),
                    note: String::new(),
                });
                if (self.gif || self.apng) && is_frame(progress) {
                    match model.decode(progress.latents) {
                        Ok(decoded) => {
                            for (frames, frame) in frames.iter_mut().skip(progress.sampled).zip(decoded) {
                                frames.push(frame);
                            }
                        }
                        Err(error) => failed = Some(error),
                    }
                }
                if stopped.load(Ordering::Relaxed) || failed.is_some() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            let made = model.generate(of_batch, settings, self.batch, &mut watch);
            if let Some(error) = failed {
                return Err(error.into());
            }
            for ((picture, made), frames) in of_batch.iter().zip(made?).zip(frames) {
                number = free(&self.out, number);
                self.write(number, &made, &model.recipe(picture, settings), &frames)?;
                written += 1;
                if self.grid {
                    all.push(made);
                }
            }
        }
        if self.grid {
            let prompts: Vec<String> = wanted.iter().map(|picture| picture.prompt.clone()).collect();
            let path = self.out.join("grid.png");
            shards::disk::replace(&path, &recipe::png(&grid::sheet(&all, &prompts, 6, 160), None)?)?;
            say(path.display())?;
        }
        Ok(())
    }

    /// Writes a picture and its animations, and says where.
    fn write(&self, number: usize, picture: &RgbImage, recipe: &Recipe, frames: &[RgbImage]) -> Result<()> {
        let named = |ending: &str| numbered(&self.out, number, ending);
        for (_, animation) in [(self.gif, Animation::Gif), (self.apng, Animation::Apng)].into_iter().filter(|of| of.0) {
            shards::disk::replace(&named(&format!("-steps.{}", animation.ending())), &animation.encode(frames)?)?;
        }
        let path = match self.format {
            Format::Png => named(".png"),
            Format::Jpg => named(".jpg"),
            Format::Webp => named(".webp"),
        };
        shards::disk::replace(&path, &encoded(picture, self.format, recipe, &path)?)?;
        say(path.display())?;
        Ok(())
    }
}

/// A file of a picture.
fn numbered(folder: &Path, number: usize, ending: &str) -> PathBuf {
    folder.join(format!("{number:04}{ending}"))
}

/// The first number from `from` on that no picture in a folder has: what was made earlier stays.
fn free(folder: &Path, from: usize) -> usize {
    const ENDINGS: [&str; 5] = [".png", ".jpg", ".webp", "-steps.gif", "-steps.png"];
    let is_taken = |number: usize| ENDINGS.iter().any(|ending| numbered(folder, number, ending).exists());
    let mut number = from;
    while is_taken(number) {
        number += 1;
    }
    number
}

/// Says what of the texts has no effect. All pictures have the same negative prompt.
fn tell_lost(truncation: &Truncation, pictures: &[Picture], settings: &Settings) -> Result<()> {
    let negative = pictures.first().map_or("", |first| first.negative_prompt.as_str());
    if !negative.is_empty() && !settings.guidance.is_needed() {
        watch::aside("warning: the negative prompt has no effect: a guidance of 1 leads away from nothing");
    }
    let prompts = pictures.iter().map(|picture| ("prompt", picture.prompt.as_str()));
    for (what, text) in prompts.chain([("negative prompt", negative)]) {
        if let Some(Truncated { limit, rest }) = truncation.of(text)? {
            watch::aside(format_args!(
                "warning: a {what} is longer than the {limit} that its encoders take; they do not see its end: {rest}"
            ));
        }
    }
    Ok(())
}

/// Whether a step is shown in animations: all of them where they are few, and the last.
fn is_frame(progress: &Progress) -> bool {
    let every = (progress.steps as usize).div_ceil(MOST_FRAMES).max(1) as u32;
    progress.step.is_multiple_of(every) || progress.step == progress.steps
}

fn encoded(picture: &RgbImage, format: Format, recipe: &Recipe, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    let failed = || format!("cannot encode {}", path.display());
    match format {
        Format::Png => return Ok(recipe::png(picture, Some(recipe))?),
        Format::Jpg => JpegEncoder::new_with_quality(&mut bytes, 95).encode_image(picture).with_context(failed)?,
        Format::Webp => picture.write_to(&mut bytes, ImageFormat::WebP).with_context(failed)?,
    }
    Ok(bytes.into_inner())
}
