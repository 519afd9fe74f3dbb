//! `buckets`: which buckets images would fall into, before any is resized.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use pipeline::forecast::{Assumptions, Forecast, Tally};
use pipeline::manifest::Manifest;
use pipeline::plan::Plan;
use pipeline::stages::bucket::{self, Rules};
use serde_json::json;
use shards::bucket::BucketRule;

use super::loader::BATCH_SIZE;
use super::manifest::batch_size;
use crate::errors::{OK, Usage};
use crate::stages;

/// Buckets that are shown by themselves.
const SHOWN: usize = 40;
/// Advice is given from these shares on.
const MANY_SMALLER: f64 = 0.2;
const MUCH_CHANGED: f64 = 0.03;

#[derive(Debug, Args)]
pub(crate) struct Buckets {
    /// A manifest, whose bucket stage and the shards before it are looked at; or parquet shards, pictures, or folders of
    /// either.
    #[arg(required = true)]
    sources: Vec<PathBuf>,
    /// Which bucket stage of the manifest, where it has several.
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// Overrides a key of the manifest: --set stage.bucket.max_aspect=2
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Pixels of the longest side [the manifest's, or 256].
    #[arg(long)]
    max_resolution: Option<u32>,
    /// Sides are multiples of this many pixels [the manifest's, or 16].
    #[arg(long)]
    patch_size: Option<u32>,
    /// Bring smaller images up to the resolution.
    #[arg(long)]
    upscale: bool,
    /// Leave images out whose longer side is more than this times the shorter.
    #[arg(long)]
    max_aspect: Option<f64>,
    /// Images in a batch of a training [that of the manifest's training on the buckets, or 64].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    batch_size: Option<u64>,
    /// Print the forecast as JSON, a line for each resolution.
    #[arg(long)]
    json: bool,
}

impl Buckets {
    pub(crate) fn run(&self) -> Result<u8> {
        let mut looked_at = match self.sources.as_slice() {
            [manifest] if has_ending(manifest, &["toml"]) => self.of_manifest(manifest)?,
            sources => {
                self.check_files(sources)?;
                let rule = BucketRule { max_resolution: 256, patch_size: 16, upscale: false };
                let assumptions = vec![Assumptions { rule, max_aspect: None, batch_size: BATCH_SIZE }];
                LookedAt { files: Files::below(sources)?, assumptions }
            }
        };
        for Assumptions { rule, max_aspect, batch_size } in &mut looked_at.assumptions {
            rule.max_resolution = self.max_resolution.unwrap_or(rule.max_resolution).max(1);
            rule.patch_size = self.patch_size.unwrap_or(rule.patch_size).max(1);
            rule.upscale |= self.upscale;
            *max_aspect = self.max_aspect.or(*max_aspect);
            *batch_size = self.batch_size.unwrap_or(*batch_size);
        }
        let LookedAt { files, mut assumptions } = looked_at;
        assumptions.dedup_by_key(|assumptions| assumptions.rule);
        let mut out = std::io::stdout().lock();
        for (n, assumptions) in assumptions.into_iter().enumerate() {
            let Assumptions { rule, max_aspect, batch_size } = assumptions;
            let tally = match &files {
                Files::Shards(shards) => Tally::of_shards(shards, assumptions)?,
                Files::Images(images) => Tally::of_images(images, assumptions),
            };
            let forecast = tally.forecast(assumptions);
            if self.json {
                let rule = json!({ "max_resolution": rule.max_resolution, "patch_size": rule.patch_size,
                                   "upscale": rule.upscale, "max_aspect": max_aspect, "batch_size": batch_size });
                writeln!(out, "{}", json!({ "rule": rule, "forecast": forecast }))?;
            } else {
                let between = if n > 0 { "\n" } else { "" };
                write!(out, "{between}{}", in_words(&forecast, assumptions))?;
            }
        }
        Ok(OK)
    }

    /// Refuses what says nothing, or too much, about files.
    fn check_files(&self, sources: &[PathBuf]) -> Result<(), Usage> {
        if let Some(manifest) = sources.iter().find(|source| has_ending(source, &["toml"])) {
            return Err(Usage(format!(
                "{} is a manifest, which is looked at alone: name nothing else",
                manifest.display()
            )));
        }
        if self.stage.is_some() || !self.set.is_empty() {
            return Err(Usage("--stage and --set are for a manifest (.toml): name one in place of files".to_owned()));
        }
        Ok(())
    }

    fn of_manifest(&self, path: &Path) -> Result<LookedAt> {
        let plan = Plan::new(&Manifest::read(path, &self.set)?, &stages::registry())?;
        let is_meant = |name: &str| self.stage.as_ref().is_none_or(|stage| stage == name);
        let mut found = plan.stages.iter().filter(|stage| is_meant(&stage.name));
        let of = found.find_map(|stage| Some((stage, bucket::rules(&stage.semantics)?)));
        let Some((stage, Rules { rules, max_aspect })) = of else {
            let which = self.stage.as_ref().map_or(String::new(), |stage| format!(" {stage}"));
            bail!(Usage(format!("{} has no bucket stage{which}", path.display())));
        };
        let input =
            stage.inputs.first().and_then(|&n| plan.stages.get(n)).context("the bucket stage reads from nothing")?;
        let variant = stage.variants.first().and_then(|variant| variant.as_deref());
        let files: Vec<PathBuf> =
            input.data_of(variant).into_iter().map(|file| input.fetch(file)).collect::<Result<_, _>>()?;
        if files.is_empty() {
            let (manifest, name) = (path.display(), &input.name);
            let hint = format!("`ferrotype run {manifest} --until {name}` makes them");
            bail!(Usage(format!("stage {name} has no shards yet; {hint}")));
        }
        // Each resolution may have a training of its own.
        let assumptions = rules.into_iter().zip(stage.variant_names()).map(|(rule, name)| {
            let batch_size = batch_size(&plan, &stage.name, name.as_deref()).unwrap_or(BATCH_SIZE);
            Assumptions { rule, max_aspect, batch_size }
        });
        Ok(LookedAt { files: Files::Shards(files), assumptions: assumptions.collect() })
    }
}

/// Images, and what is taken to become of them, for each resolution.
struct LookedAt {
    files: Files,
    assumptions: Vec<Assumptions>,
}

/// What is looked at.
enum Files {
    Shards(Vec<PathBuf>),
    Images(Vec<PathBuf>),
}

impl Files {
    /// The files below `sources`: shards if there are any, else pictures.
    fn below(sources: &[PathBuf]) -> Result<Self> {
        let mut files = Vec::new();
        for source in sources {
            collect(source, &mut files).with_context(|| format!("cannot read {}", source.display()))?;
        }
        files.sort();
        let of = |endings: &[&str]| -> Vec<PathBuf> {
            files.iter().filter(|file| has_ending(file, endings)).cloned().collect()
        };
        let (shards, images) = (of(&["parquet"]), of(&["jpg", "jpeg", "png", "webp", "gif"]));
        match (shards.is_empty(), images.is_empty()) {
            (false, _) => Ok(Self::Shards(shards)),
            (true, false) => Ok(Self::Images(images)),
            (true, true) => {
                let hint = "name shards, pictures or a manifest (.toml)";
                bail!(Usage(format!("there are neither parquet files nor pictures; {hint}")))
            }
        }
    }
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !std::fs::metadata(path)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    endings.contains(&ending.as_str())
}

fn in_words(forecast: &Forecast, assumptions: Assumptions) -> String {
    use std::fmt::Write as _;
    let Assumptions { rule, max_aspect, batch_size: batch } = assumptions;
    let share = |part: u64, of: u64| 100.0 * part as f64 / of.max(1) as f64;
    let mut text = format!(
        "{} images in {} buckets of at most {} pixels a side, in steps of {}; {:.1} batches of {batch} an epoch.\n",
        forecast.images,
        forecast.buckets.len(),
        rule.max_resolution,
        rule.patch_size,
        forecast.batches,
    );
    if forecast.too_long > 0 {
        let most = max_aspect.unwrap_or_default();
        let _ = writeln!(text, "{} are left out: longer than {most} times their shorter side.", forecast.too_long);
    }
    if forecast.unreadable > 0 {
        let _ = writeln!(text, "{} have no size that can be read.", forecast.unreadable);
    }
    let _ = writeln!(
        text,
        "\n{:<12}{:>12}{:>9}{:>12}{:>12}{:>12}",
        "bucket", "images", "share", "batches", "left over", "off shape"
    );
    for bucket in forecast.buckets.iter().take(SHOWN) {
        let _ = writeln!(
            text,
            "{:<12}{:>12}{:>7.1} %{:>12}{:>12}{:>10.1} %",
            bucket.size,
            bucket.images,
            share(bucket.images, forecast.images),
            bucket.images / batch,
            bucket.images % batch,
            100.0 * bucket.change
        );
    }
    if let Some(rest) = forecast.buckets.get(SHOWN..).filter(|rest| !rest.is_empty()) {
        let images = rest.iter().map(|bucket| bucket.images).sum::<u64>();
        let _ = writeln!(
            text,
            "{:<12}{images:>12}{:>7.1} %",
            format!("{} more", rest.len()),
            share(images, forecast.images)
        );
    }
    let merged = &forecast.merged;
    let _ = writeln!(
        text,
        "\nOff shape: what of an image lies outside its bucket's shape. The bucket stage stretches by as much: {:.1} % on average.",
        100.0 * forecast.change()
    );
    if merged.small_buckets > 0 {
        let _ = writeln!(
            text,
            "{} buckets have fewer than {batch} images, {} in all ({:.1} %): they come up only every few epochs.",
            merged.small_buckets,
            merged.small_images,
            share(merged.small_images, forecast.images)
        );
    }
    let mut advice = Vec::new();
    if merged.moved > 0 {
        advice.push(format!(
            "merge_small = {batch} leaves {} buckets; {} images join another and lose {:.1} % of their area each (padded instead, \
             {:.1} % of them would be padding)",
            merged.buckets,
            merged.moved,
            100.0 * merged.cut,
            100.0 * merged.cut
        ));
    }
    if !rule.upscale && share(forecast.smaller, forecast.images) > 100.0 * MANY_SMALLER {
        advice.push(format!(
            "{:.0} % of the images are smaller than {} pixels and make buckets of their own: a smaller max_resolution, a filter, or \
             upscale = true",
            share(forecast.smaller, forecast.images),
            rule.max_resolution
        ));
    }
    if forecast.change() > MUCH_CHANGED && rule.patch_size > 1 {
        advice.push("a smaller patch_size or a larger max_resolution stretches less".to_owned());
    }
    for advice in advice {
        let _ = writeln!(text, "Consider: {advice}.");
    }
    text
}
