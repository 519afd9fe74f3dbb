//! `loader`: what a training would read from an index, and how fast.

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use shards::columns;
use shards::index::BucketIndex;
use trainer::loader::{BadImage, Loader as Batches, LoaderOptions, LoaderStatistics, OnBadImage, WAITING};
use trainer::order::DataOrder;

use crate::errors::{OK, Usage};

/// Images in a batch where nothing says how many.
pub(super) const BATCH_SIZE: u64 = 64;
/// Shards that are opened to say what an image costs.
const OPENED: usize = 8;
/// Bad images that are named.
const NAMED: usize = 20;
/// More bytes for one image are worth a word.
const DEAR: u64 = 4 << 20;

#[derive(Debug, Args)]
pub(crate) struct Loader {
    /// A bucket index (.parquet), or a manifest (.toml) whose index stage has run.
    index: PathBuf,
    /// Overrides a key of the manifest: --set stage.bucket.max_resolution=512
    #[cfg(feature = "pipeline")]
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Which index stage of the manifest, where it has several.
    #[cfg(feature = "pipeline")]
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// Load batches as fast as possible, and say how fast that is.
    #[arg(long)]
    bench: bool,
    /// Images in a batch [that of the manifest's training on the index, or 64].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    batch_size: Option<u64>,
    /// Batches to load [one epoch].
    #[arg(long, requires = "bench", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// The step to begin with.
    #[arg(long, requires = "bench", default_value_t = 0)]
    from_step: u64,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads that read and decode [all processors].
    #[arg(long, requires = "bench", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Decoded pixels that may wait, in MB.
    #[arg(long, requires = "bench", default_value_t = 512)]
    prefetch_mb: u64,
    /// Of shards on a store, what may be kept on this machine's disk, in GB.
    #[arg(long, requires = "bench", default_value_t = 16)]
    cache_gb: u64,
    /// Read what an encode stage made, in place of images.
    #[arg(long)]
    encoded: bool,
    /// A column to take captions from; with several, one is drawn for each image.
    #[arg(long = "caption", value_name = "COLUMN", default_values_t = [columns::CAPTION.to_owned()])]
    captions: Vec<String>,
    /// What becomes of an image that cannot be used.
    #[arg(long, value_enum, requires = "bench", default_value_t = OnBad::Replace)]
    on_bad_image: OnBad,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnBad {
    /// Take the next of its bucket, and name it.
    Replace,
    /// End with an error.
    Stop,
}

/// What a training would read.
struct Found {
    path: PathBuf,
    index: BucketIndex,
    /// That of the training in the manifest.
    batch_size: Option<u64>,
}

impl Loader {
    pub(crate) fn run(&self) -> Result<u8> {
        let Found { path, index, batch_size } = self.find()?;
        let batch_size = self.batch_size.or(batch_size).unwrap_or(BATCH_SIZE);
        let order = DataOrder::new(self.seed, index.buckets().iter().map(|b| b.rows).collect(), 0, batch_size);
        let Some(order) = order else { bail!(Usage(format!("{} holds no samples", path.display()))) };
        let steps_per_epoch = order.steps_before(batch_size) as f64 / batch_size as f64;
        let (text, value) = if self.bench {
            let steps = self.steps.unwrap_or_else(|| (steps_per_epoch as u64).max(1));
            self.load(&path, index, batch_size, self.from_step..self.from_step.saturating_add(steps))?
        } else {
            self.describe(&index, batch_size, steps_per_epoch)?
        };
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{value:#}")?;
        } else {
            write!(out, "{text}")?;
        }
        Ok(OK)
    }

    #[cfg(not(feature = "pipeline"))]
    fn find(&self) -> Result<Found> {
        Ok(Found { path: self.index.clone(), index: BucketIndex::read(&self.index)?, batch_size: None })
    }

    #[cfg(feature = "pipeline")]
    fn find(&self) -> Result<Found> {
        if self.index.extension().is_none_or(|ending| ending != "toml") {
            if self.stage.is_some() || !self.set.is_empty() {
                let index = self.index.display();
                bail!(Usage(format!(
                    "--stage and --set are for a manifest (.toml), and {index} is taken for an index"
                )));
            }
            return Ok(Found { path: self.index.clone(), index: BucketIndex::read(&self.index)?, batch_size: None });
        }
        let manifest = self.index.display();
        let plan = pipeline::plan::Plan::new(
            &pipeline::manifest::Manifest::read(&self.index, &self.set)?,
            &crate::stages::registry(),
        )?;
        let is_meant = |name: &str| self.stage.as_ref().is_none_or(|stage| stage == name);
        let stage = plan.stages.iter().find(|stage| stage.kind.starts_with("index@") && is_meant(&stage.name));
        let Some(stage) = stage else {
            let which = self.stage.as_ref().map_or(String::new(), |stage| format!(" {stage}"));
            bail!(Usage(format!("{manifest} has no index stage{which}")));
        };
        let Some(file) = stage.committed().flat_map(|sidecar| &sidecar.data).next() else {
            let name = &stage.name;
            bail!(Usage(format!("stage {name} has not run yet; `ferrotype run {manifest} --until {name}` does")));
        };
        let path = stage.fetch(file)?;
        let index = BucketIndex::read_in(Some(&plan.workdir), &path)?;
        Ok(Found { path, index, batch_size: super::manifest::batch_size(&plan, &stage.name, None) })
    }

    fn describe(&self, index: &BucketIndex, batch: u64, steps_per_epoch: f64) -> Result<(String, Value)> {
        let mut columns = vec![if self.encoded { columns::ENCODED } else { columns::IMAGE }];
        columns.extend(self.captions.iter().map(String::as_str));
        let every = index.shards().len().div_ceil(OPENED).max(1);
        let (mut bytes, mut rows, mut without_index) = (0_u128, 0, 0);
        for number in (0..index.shards().len()).step_by(every) {
            let shard = index.open(number, &columns, None)?;
            bytes += u128::from(shard.bytes_per_row()) * u128::from(shard.rows());
            rows += shard.rows();
            without_index += usize::from(!shard.has_page_index());
        }
        let cost = (bytes / u128::from(rows.max(1))) as u64;
        let mut text = format!(
            "{} images in {} buckets and {} shards; {steps_per_epoch:.1} batches of {batch} an epoch. An image costs {} of reading.\n",
            index.rows(),
            index.buckets().len(),
            index.shards().len(),
            size(cost)
        );
        let small: Vec<_> = index.buckets().iter().filter(|bucket| bucket.rows < batch).collect();
        if !small.is_empty() {
            let images: u64 = small.iter().map(|bucket| bucket.rows).sum();
            let _ = writeln!(
                text,
                "{} buckets have fewer than {batch} images, {images} in all: they come up only every few epochs.",
                small.len()
            );
        }
        if cost > DEAR {
            let _ = writeln!(
                text,
                "These files keep many images in one page, and all of a page is read for one image. A stage with uses = \"repack\" gives \
                 each image a page of its own."
            );
        }
        if without_index > 0 {
            let _ = writeln!(
                text,
                "They have no page index: each is looked through once when it is first needed, a small read for each of its pages."
            );
        }
        let buckets: Vec<Value> =
            index.buckets().iter().map(|b| json!({ "bucket": b.size.to_string(), "images": b.rows })).collect();
        let value = json!({
            "images": index.rows(), "shards": index.shards().len(), "batches_per_epoch": steps_per_epoch,
            "bytes_per_image": cost, "buckets": buckets,
        });
        Ok((text, value))
    }

    fn load(
        &self,
        path: &Path,
        index: BucketIndex,
        batch_size: u64,
        steps: std::ops::Range<u64>,
    ) -> Result<(String, Value)> {
        let defaults = LoaderOptions::default();
        let options = LoaderOptions {
            seed: self.seed,
            batch_size,
            steps,
            encoded: self.encoded,
            captions: self.captions.iter().map(|column| (column.clone(), 1.0)).collect(),
            on_bad_image: match self.on_bad_image {
                OnBad::Replace => OnBadImage::Replace,
                OnBad::Stop => OnBadImage::Stop,
            },
            prefetch_bytes: self.prefetch_mb << 20,
            cache_bytes: self.cache_gb << 30,
            threads: self.threads.map_or(defaults.threads, usize::from),
            ..defaults
        };
        let threads = options.threads * if index.is_remote() { WAITING } else { 1 };
        let started = Instant::now();
        let mut loader = Batches::over(path, index, options)?;
        let mut first = Duration::ZERO;
        let mut bad: Vec<BadImage> = Vec::new();
        let mut pixels = 0;
        while let Some(batch) = loader.next_batch() {
            let batch = batch?;
            if first.is_zero() {
                first = started.elapsed();
            }
            pixels += batch.samples.iter().map(|sample| sample.content.bytes()).sum::<u64>();
            bad.extend(batch.replaced.into_iter().take(NAMED.saturating_sub(bad.len())));
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok(measured(&loader.statistics(), &bad, seconds, first.as_secs_f64(), pixels, threads))
    }
}

fn measured(
    statistics: &LoaderStatistics,
    bad: &[BadImage],
    seconds: f64,
    first: f64,
    pixels: u64,
    threads: usize,
) -> (String, Value) {
    let LoaderStatistics { batches, images, replaced, bytes_read, reading, decoding, .. } = *statistics;
    let per_second = |count: u64| count as f64 / seconds.max(1e-9);
    let busy = (seconds * threads as f64).max(1e-9);
    let (reading, decoding) = (reading.as_secs_f64() / busy, decoding.as_secs_f64() / busy);
    let mut text = format!(
        "{images} images in {batches} batches: {:.0} images/s, {:.1} MB/s read, {:.1} MB/s of pixels. The first batch came after {:.0} ms.\n\
         {threads} threads: {:.0} % of their time reading, {:.0} % decoding.\n",
        per_second(images),
        per_second(bytes_read) / 1e6,
        per_second(pixels) / 1e6,
        first * 1e3,
        reading * 100.0,
        decoding * 100.0,
    );
    if replaced > 0 {
        let _ = writeln!(text, "{replaced} bad images were replaced by the next of their bucket:");
        for image in bad {
            let _ = writeln!(text, "  {image}");
        }
        if replaced > bad.len() as u64 {
            let _ = writeln!(text, "  and {} more", replaced - bad.len() as u64);
        }
    }
    let value = json!({
        "images": images, "batches": batches, "seconds": seconds, "images_per_second": per_second(images),
        "first_batch_seconds": first, "bytes_read": bytes_read, "pixel_bytes": pixels, "threads": threads,
        "reading": reading, "decoding": decoding, "replaced": replaced,
        "bad_images": bad.iter().map(ToString::to_string).collect::<Vec<_>>(),
    });
    (text, value)
}

fn size(bytes: u64) -> String {
    if bytes < 1_000_000 { format!("{:.0} kB", bytes as f64 / 1e3) } else { format!("{:.1} MB", bytes as f64 / 1e6) }
}
