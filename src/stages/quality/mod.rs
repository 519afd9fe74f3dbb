//! `evaluate`, beside real pictures: Fréchet and kernel distance, precision and recall, CLIP score.
//!
//! - in: a checkpoint
//! - out: a table, in the report; features, in the stage's folder
//! - stale when: a setting, a network's weights, the reference or the checkpoint changed
//! - law: prompts read

pub(crate) mod sources;
#[cfg(feature = "pipeline")]
pub(super) mod stage;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Result;
use evaluation::{
    BootstrapSettings, FeatureStore, FrechetReference, KernelSubsets, Measured, Networks, Reference, Report,
    ReportSettings, SCORED_BY,
};
use sampler::SampleError;
use sampler::text_to_image::{Progress, Watch};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shards::digest::Digest;
use tch::Device;

use self::sources::{Bucketed, Files, Made, Maker, Pictures, Prompts};
use crate::errors::Usage;

/// What is measured, and by which networks.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Quality {
    /// Inception v3's weights (the published pt_inception-2015-12-05 file, or safetensors of it): for FID, KID, precision and recall.
    pub(crate) inception: Option<PathBuf>,
    /// Folder of a CLIP with both halves: for CLIP scores and, without Inception, for distances that are called by its name.
    pub(crate) clip_score: Option<PathBuf>,
    /// What pictures are compared with: a folder of pictures, a bucket index (.parquet), features that were kept, or a mean and a
    /// covariance (.npz with mu and sigma).
    pub(crate) reference: Option<PathBuf>,
    /// What to make pictures of, over and over; none for the captions of the reference, where that is a bucket index.
    pub(crate) prompts: Vec<String>,
    /// Pictures to make, and of a bucket index to compare with [one for each prompt; 10000 of captions].
    pub(crate) count: Option<u64>,
    /// Picture i is made from seed + i [0].
    pub(crate) seed: u64,
    /// Pictures in each subset of the kernel distance [1000].
    pub(crate) subset_size: Option<usize>,
    /// Resamples behind the interval of the Fréchet distance and the error of the kernel distance; 0 for neither [40].
    pub(crate) resamples: Option<usize>,
}

/// Pictures of captions where nothing is said.
const COUNT: u64 = 10_000;

impl Quality {
    /// Refuses what contradicts itself or makes no number, before anything is loaded; with the setting that it is about.
    pub(crate) fn check(&self) -> Result<(), (&'static str, Usage)> {
        let refuse = |setting: &'static str, words: String| Err((setting, Usage(words)));
        if self.inception.is_none() && self.clip_score.is_none() {
            return refuse("inception", "nothing to measure by: give inception, clip_score or both".to_owned());
        }
        if self.inception.is_some() && self.reference.is_none() {
            return refuse("inception", "inception makes distances to real pictures: give a reference".to_owned());
        }
        let ReportSettings { subsets, bootstrap, .. } = self.settings();
        if let Err(error) = subsets.check() {
            return refuse("subset_size", error.to_string());
        }
        match bootstrap.check() {
            Err(error) if bootstrap.resamples > 0 => refuse("resamples", format!("{error}; 0 is for none")),
            _ => Ok(()),
        }
    }

    /// Refuses files that are not there, with the setting that names them: a run comes to them only after the training.
    #[cfg(feature = "pipeline")]
    pub(super) fn check_files(&self) -> Result<(), (&'static str, String)> {
        let Self { inception, clip_score, reference, .. } = self;
        for (setting, path) in [("inception", inception), ("clip_score", clip_score), ("reference", reference)] {
            if let Some(path) = path
                && let Err(error) = std::fs::metadata(path)
            {
                return Err((setting, format!("{setting}: cannot open {}: {error}", path.display())));
            }
        }
        Ok(())
    }

    pub(crate) fn networks(&self, device: Device) -> Result<Networks> {
        Ok(Networks::open(self.inception.as_deref(), self.clip_score.as_deref(), device)?)
    }

    fn is_of_captions(&self) -> bool {
        self.prompts.is_empty()
    }

    /// Pictures to make.
    pub(super) fn count(&self) -> u64 {
        self.count.unwrap_or(if self.is_of_captions() { COUNT } else { self.prompts.len() as u64 })
    }

    /// Numbers about what a model makes. What was seen is kept in `folder`, from which a later call goes on.
    pub(crate) fn of_model(
        &self,
        maker: &Maker,
        networks: &Networks,
        folder: &Path,
        watch: &mut dyn FnMut(&str, u64) -> ControlFlow<()>,
    ) -> Result<Report> {
        let reference = self.reference(networks, folder, watch)?;
        let count = self.count();
        let prompted = match (&self.reference, self.is_of_captions()) {
            (_, false) => json!(Digest::of(self.prompts.join("\n").as_bytes()).to_string()),
            (Some(index), true) if is_index(index) => Bucketed::source(index, count, self.seed)?,
            _ => {
                let words =
                    "no prompts: give some, or a bucket index (.parquet) as the reference, whose captions are taken";
                return Err(Usage(words.to_owned()).into());
            }
        };
        let source = json!({"made_by": maker.identity(), "seed": self.seed, "count": count, "prompts": prompted});
        // Asked at every step too, so that nobody waits for a whole batch to stop.
        let looked = std::cell::Cell::new(0);
        let watch = std::cell::RefCell::new(watch);
        let go_on = || (watch.borrow_mut())("generated", looked.get());
        let each_step = |_: &Progress| go_on();
        let open = |skip: u64| {
            let prompts = match &self.reference {
                Some(index) if self.is_of_captions() => {
                    Prompts::OfPictures(Box::new(Bucketed::open(index, skip, count, self.seed)?))
                }
                _ => Prompts::Listed { prompts: self.prompts.clone(), next: skip },
            };
            let watch: Box<Watch> = Box::new(each_step);
            Ok(Box::new(Made { maker, prompts, seed: self.seed, done: skip, count, watch }) as Box<dyn Pictures>)
        };
        let generated = look(networks, &folder.join("generated"), scored(source, networks), open, &mut |seen| {
            looked.set(seen);
            told(go_on())
        })?;
        Ok(Report::of(&generated, reference.as_ref(), &self.settings())?)
    }

    /// Numbers about the pictures in a folder.
    pub(crate) fn of_files(
        &self,
        images: &Path,
        networks: &Networks,
        folder: &Path,
        watch: &mut dyn FnMut(&str, u64) -> ControlFlow<()>,
    ) -> Result<Report> {
        let reference = self.reference(networks, folder, watch)?;
        let mut files = Files::in_folder(images, self.count)?.with_captions(networks.scored_by().is_some());
        let source = scored(files.source(), networks);
        let open = move |skip| {
            files.skip(skip);
            Ok(Box::new(files) as Box<dyn Pictures>)
        };
        let generated =
            look(networks, &folder.join("generated"), source, open, &mut |seen| told(watch("generated", seen)))?;
        Ok(Report::of(&generated, reference.as_ref(), &self.settings())?)
    }

    /// What tells a reference from others: of features that were kept what they say of themselves, of a folder of pictures names, sizes
    /// and times, of a file its contents. `None` where there is none, or none that can be read.
    #[cfg(feature = "pipeline")]
    fn reference_identity(&self) -> Option<Value> {
        let path = self.reference.as_deref()?;
        if FeatureStore::is_at(path) {
            return FeatureStore::identity(path).ok();
        }
        if path.is_dir() {
            return Files::in_folder(path, None).ok().map(|files| files.source());
        }
        models::settings::folder_digest(path).ok().map(Value::from)
    }

    fn settings(&self) -> ReportSettings {
        let usual = ReportSettings::default();
        ReportSettings {
            subsets: KernelSubsets {
                size: self.subset_size.unwrap_or(usual.subsets.size),
                seed: self.seed,
                ..usual.subsets
            },
            bootstrap: BootstrapSettings {
                resamples: self.resamples.unwrap_or(usual.bootstrap.resamples),
                seed: self.seed,
                ..usual.bootstrap
            },
            ..usual
        }
    }

    /// What there is to compare with, where it can be compared. Features of pictures are kept in `folder`.
    fn reference(
        &self,
        networks: &Networks,
        folder: &Path,
        watch: &mut dyn FnMut(&str, u64) -> ControlFlow<()>,
    ) -> Result<Option<Reference>> {
        let Some(path) = &self.reference else { return Ok(None) };
        if FeatureStore::is_at(path) {
            let kept = FeatureStore::read(path)?;
            if !kept.is_complete() {
                let words = "holds features of a part of its pictures: end the evaluation that was stopped there first";
                return Err(Usage(format!("{} {words}", path.display())).into());
            }
            kept.check_network(networks.name())?;
            return Ok(Some(Reference::Features(kept)));
        }
        if ends_in(path, "npz") {
            let name = path.display().to_string();
            return Ok(Some(Reference::Moments { of: FrechetReference::from_npz(path, networks.name())?, name }));
        }
        let kept = folder.join("reference");
        let mut seen = |seen| told(watch("reference", seen));
        let features = if is_index(path) {
            let count = self.count();
            let open = |skip| Ok(Box::new(Bucketed::open(path, skip, count, self.seed)?) as Box<dyn Pictures>);
            look(networks, &kept, Bucketed::source(path, count, self.seed)?, open, &mut seen)?
        } else {
            let mut files = Files::in_folder(path, None)?;
            let source = files.source();
            let open = move |skip| {
                files.skip(skip);
                Ok(Box::new(files) as Box<dyn Pictures>)
            };
            look(networks, &kept, source, open, &mut seen)?
        };
        Ok(Some(Reference::Features(features)))
    }
}

fn ends_in(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending))
}

fn is_index(path: &Path) -> bool {
    ends_in(path, "parquet")
}

fn told(flow: ControlFlow<()>) -> Result<()> {
    if flow.is_break() { Err(SampleError::Stopped.into()) } else { Ok(()) }
}

fn scored(mut source: Value, networks: &Networks) -> Value {
    if let Some(clip) = networks.scored_by() {
        source[SCORED_BY] = clip.into();
    }
    source
}

/// Features of all pictures of a source, kept in `folder`; goes on where an earlier look ended. `seen` hears how many there are.
fn look<'a>(
    networks: &Networks,
    folder: &Path,
    source: Value,
    open: impl FnOnce(u64) -> Result<Box<dyn Pictures + 'a>>,
    seen: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<FeatureStore> {
    let mut store = FeatureStore::open(folder, networks.name(), source)?;
    if store.is_complete() {
        return Ok(store);
    }
    let mut pictures = open(store.count())?;
    loop {
        seen(store.count())?;
        let mut shown = pictures.next()?;
        if shown.pictures.is_empty() {
            break;
        }
        if !store.is_scored() {
            shown.captions.fill(None);
        }
        store.append(&networks.look(&shown.pictures, &shown.captions)?)?;
    }
    store.complete()?;
    Ok(store)
}

/// The numbers as rows: metric, value, error, interval, what it is; what was refused, with the reason.
pub(crate) fn table(report: &Report) -> Vec<[String; 5]> {
    let number =
        |value: f64| if value.abs() < 0.01 && value != 0.0 { format!("{value:.3e}") } else { format!("{value:.4}") };
    let row = |measured: &Measured| {
        let error = measured.standard_error.map(|error| format!("± {}", number(error)));
        let interval = measured.interval.map(|[low, high]| format!("{} to {}", number(low), number(high)));
        let (error, interval) = (error.unwrap_or_default(), interval.unwrap_or_default());
        [measured.metric.clone(), number(measured.value), error, interval, measured.about.clone()]
    };
    let refused = report
        .refused
        .iter()
        .map(|refused| [refused.metric.clone(), "–".to_owned(), String::new(), String::new(), refused.reason.clone()]);
    report.metrics.iter().map(row).chain(refused).collect()
}

/// How many pictures, compared with what, by which network.
pub(crate) fn summary(report: &Report) -> String {
    let of = report.reference.map_or_else(String::new, |reference| format!(" beside {reference} real ones"));
    format!("{} pictures{of}; features: {}.", report.generated, report.network)
}
