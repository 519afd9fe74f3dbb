//! `evaluate`: numbers about a checkpoint's pictures, or about pictures in a folder.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::Args;
use evaluation::Report;
use sampler::SampleError;
use sampler::text_to_image::unwatched;
use shards::event::Event;

use super::sample::settings::{How, OF_PICTURES, defaults};
use super::sample::{HowLoaded, OF_A_MODEL, Source};
use crate::errors::{FAILED, INTERRUPTED, OK, Usage};
use crate::settings::{lines, on_interrupt};
use crate::stages::evaluate::{ColorTest, print_table, table};
use crate::stages::quality::sources::{BATCH, Maker};
use crate::stages::quality::{self, Quality};
use crate::watch::{self, Style, say};

#[derive(Debug, Args)]
pub(crate) struct Evaluate {
    /// A checkpoint, or a training's folder, whose latest checkpoint is used; or weights of the reference system: its .pkl, or the
    /// folder with it and its model_params file.
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    #[command(flatten)]
    loading: HowLoaded,
    /// Pictures to look at in place of a checkpoint's: a folder. Their captions, where a CLIP is to score them, are those that `sample`
    /// left in them, or in text files of the same names; its grid.png and NNNN-steps.png are left out.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["checkpoint", "colors", "prompts", "batch"])]
    #[arg(conflicts_with_all = OF_A_MODEL, conflicts_with_all = OF_PICTURES)]
    images: Option<PathBuf>,
    /// Whether backgrounds have the colour that the prompt names (for models trained on the demo's pictures).
    #[arg(long, conflicts_with_all = ["inception", "clip_score", "reference", "subset_size", "resamples", "out"])]
    colors: bool,
    /// Inception v3's weights (the published pt_inception-2015-12-05-6726825d.pth, or safetensors of it): for FID, KID, precision, recall.
    #[arg(long, value_name = "FILE")]
    inception: Option<PathBuf>,
    /// A CLIP with both halves: for CLIP scores and, without --inception, for distances that are called by its name.
    #[arg(long, value_name = "FOLDER")]
    clip_score: Option<PathBuf>,
    /// What to compare with: a folder of pictures, a bucket index (.parquet), features that an earlier evaluation kept (OUT/reference),
    /// or a mean and a covariance (.npz with mu and sigma).
    #[arg(long, value_name = "PATH")]
    reference: Option<PathBuf>,
    /// A file with a prompt a line [the captions of the reference, where that is a bucket index]; with --colors, how many prompts [48].
    #[arg(long, value_name = "FILE|N")]
    prompts: Option<String>,
    /// Pictures to make, going round the prompts, and to take of a bucket index [one for each prompt; 10000 of captions].
    #[arg(long)]
    count: Option<u64>,
    #[command(flatten)]
    how: How,
    /// Picture i is made from seed + i.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Pictures that are made at once, up to 64: fewer take less memory.
    #[arg(long, default_value_t = BATCH)]
    batch: usize,
    /// With --colors: how many borders may be uneven (a standard deviation of 15 of 255 or more).
    #[arg(long, default_value_t = 0, conflicts_with_all = ["images", "inception", "clip_score"])]
    uneven: usize,
    /// Pictures in each of the kernel distance's subsets [1000].
    #[arg(long)]
    subset_size: Option<usize>,
    /// Resamples behind the interval of the Fréchet distance and the error of the kernel distance; 0 for neither [40].
    #[arg(long)]
    resamples: Option<usize>,
    /// Folder for evaluation.json and the features, from which an evaluation that was stopped goes on.
    #[arg(long, default_value = "evaluation")]
    out: PathBuf,
}

impl Evaluate {
    pub(crate) fn run(self) -> Result<u8> {
        if self.colors { self.test_colors() } else { self.measure() }
    }

    fn source(&self) -> Result<Source, Usage> {
        let checkpoint = self.checkpoint.clone();
        let checkpoint =
            checkpoint.ok_or_else(|| Usage("nothing to evaluate: give --checkpoint or --images".to_owned()))?;
        Ok(Source { checkpoint, loading: self.loading.clone() })
    }

    fn test_colors(&self) -> Result<u8> {
        let usual = ColorTest::default();
        let prompts = match &self.prompts {
            Some(number) => number
                .parse()
                .map_err(|error| Usage(format!("--prompts {number}: with --colors it is a number ({error})")))?,
            None => self.count.map_or(usual.prompts, |count| usize::try_from(count).unwrap_or(usize::MAX)),
        };
        let test = ColorTest { prompts, seed: self.seed, uneven: self.uneven, ..usual };
        let source = self.source()?;
        let model = source.load(source.open()?)?;
        let settings = self.how.over(&test.settings(&model));
        let (score, _) = test.run(&model, &settings, self.batch, &mut unwatched)?;
        print_table(table(&score).iter().map(<[String; 6]>::as_slice))?;
        say(test.summary(&score))?;
        Ok(if score.passes(test.bar()) { OK } else { FAILED })
    }

    fn measure(&self) -> Result<u8> {
        if self.inception.is_none() && self.clip_score.is_none() {
            let words = "nothing to measure by: give --inception FILE, --clip-score FOLDER, or --colors";
            return Err(Usage(words.to_owned()).into());
        }
        let wanted = Quality {
            inception: self.inception.clone(),
            clip_score: self.clip_score.clone(),
            reference: self.reference.clone(),
            prompts: self.prompts.as_deref().map(|file| lines(file.as_ref())).transpose()?.unwrap_or_default(),
            count: self.count,
            seed: self.seed,
            subset_size: self.subset_size,
            resamples: self.resamples,
        };
        wanted.check().map_err(|(_, error)| error)?;
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopped);
        on_interrupt(move || stop.store(true, Ordering::Relaxed))?;
        let events = watch::sink(Style::Lines { quiet: false, verbose: false });
        let mut progress = |what: &str, seen: u64| {
            events.send(Event::Progress {
                stage: what.to_owned(),
                unit: "pictures",
                done: seen,
                total: None,
                outcomes: BTreeMap::new(),
                note: String::new(),
            });
            if stopped.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let report = if let Some(images) = &self.images {
            let networks = wanted.networks(self.loading.device()?)?;
            wanted.of_files(images, &networks, &self.out, &mut progress)
        } else {
            let source = self.source()?;
            let model = source.load(source.open()?)?;
            let networks = wanted.networks(model.device())?;
            let maker = Maker { model: &model, settings: self.how.over(&defaults(&model)), batch: self.batch };
            wanted.of_model(&maker, &networks, &self.out, &mut progress)
        };
        drop(events);
        let report = match report {
            Err(error) if matches!(error.downcast_ref(), Some(SampleError::Stopped)) => {
                watch::aside("stopped; the same command goes on");
                return Ok(INTERRUPTED);
            }
            report => report?,
        };
        self.tell(&report)
    }

    /// Prints and writes it. That there are too few pictures for every number is a failure.
    fn tell(&self, report: &Report) -> Result<u8> {
        let path = self.out.join("evaluation.json");
        let text = serde_json::to_string_pretty(report).context("cannot write the numbers as JSON")? + "\n";
        shards::disk::create_folder(&self.out)?;
        shards::disk::replace(&path, text.as_bytes())?;
        say(quality::summary(report))?;
        for [metric, value, error, interval, about] in quality::table(report) {
            say(format_args!("{metric:<12} {value:>10} {error:<12} {interval:<22} {about}"))?;
        }
        say(path.display())?;
        Ok(if report.metrics.is_empty() { FAILED } else { OK })
    }
}
