//! Sheets of pictures that show how far a training is.

use std::io::Cursor;
use std::ops::ControlFlow;

use image::ImageFormat;
use models::latents::LatentCodec;
use models::mmdit::Mmdit;
use sampler::guidance::Guidance;
use sampler::text_to_image::{self, Conditions, Painter, Picture, Settings};
use sampler::{SampleError, grid, pictures};
use shards::bucket::BucketSize;
use tch::Device;

use crate::TrainError;
use crate::config::{SampleGrids, TrainConfig};
use crate::learner::Learner;
use crate::metrics::Metrics;
use crate::train::Job;

/// The folder of the sheets, in that of the run.
pub const FOLDER: &str = "samples";
/// Pictures made at a time.
const BATCH: usize = 16;
const COLUMNS: u32 = 6;
/// About as many pixels has the longest side of a picture on a sheet, unless it is larger.
const SIDE: u32 = 160;

/// What is needed to make a sheet: the prompts encoded, the encoders gone.
pub(crate) struct Grids<'a> {
    job: &'a Job<'a>,
    settings: &'a SampleGrids,
    pictures: Vec<Picture>,
    /// Of each batch.
    conditions: Vec<Conditions>,
    latents: Box<dyn LatentCodec>,
}

impl<'a> Grids<'a> {
    /// `None` where the job asks for none. Encodes the prompts.
    pub(crate) fn open(job: &'a Job<'a>, device: Device) -> Result<Option<Self>, TrainError> {
        let Some(settings) = &job.operations.sample_grids else { return Ok(None) };
        let text = job.config.text.encoder(device)?;
        let of_prompt = |(seed, prompt): (u64, &String)| Picture { prompt: prompt.clone(), seed, ..Picture::default() };
        let pictures: Vec<Picture> = (settings.seed..).zip(&settings.prompts).map(of_prompt).collect();
        let guidance = Guidance::of(settings.guidance);
        let conditions = pictures.chunks(BATCH).map(|batch| Conditions::encode(text.as_ref(), batch, guidance));
        let conditions = conditions.collect::<Result<Vec<_>, _>>()?;
        Ok(Some(Self { job, settings, pictures, conditions, latents: job.config.latents.codec(device)? }))
    }

    pub(crate) fn every(&self) -> u64 {
        self.settings.every
    }

    /// Makes the sheet of what `learner` is after `step` updates, with pictures of `side` where no size is given.
    pub(crate) fn draw(
        &self,
        learner: &Learner,
        step: u64,
        side: u32,
        metrics: &mut Metrics,
    ) -> Result<(), TrainError> {
        let Self { job, settings, latents, .. } = self;
        let how = settings.of_pictures(side);
        let (config, shape) = (job.config.model()?, latents.shape());
        text_to_image::check(&how, shape, config.patch_size)?;
        let average = learner.ema.as_ref().unwrap_or(&learner.parameters);
        let average = average.computing_in(job.config.precision.kind());
        let model = Mmdit::over(&config, &average);
        let painter = Painter { model: &model, shape, device: learner.device() };
        let mut pictures = Vec::with_capacity(self.pictures.len());
        for (batch, conditions) in self.pictures.chunks(BATCH).zip(&self.conditions) {
            let seeds: Vec<u64> = batch.iter().map(|picture| picture.seed).collect();
            let made = painter.paint(&seeds, conditions, &how, &mut |_, _| ControlFlow::Continue(()))?;
            pictures.extend(pictures::from_tensor(&latents.decode(&made)?)?);
        }
        let sheet = grid::sheet(&pictures, &settings.prompts, COLUMNS, SIDE);
        let folder = job.folder.join(FOLDER);
        shards::disk::create_folder(&folder)?;
        let path = folder.join(format!("step-{step:09}.png"));
        let mut png = Cursor::new(Vec::new());
        let written = sheet.write_to(&mut png, ImageFormat::Png);
        written.map_err(|source| SampleError::Write { path: path.clone(), source })?;
        shards::disk::replace(&path, png.get_ref())?;
        metrics.picture(step, sheet.dimensions(), png.get_ref())
    }
}

impl SampleGrids {
    /// How pictures are made, of `side` pixels a side where no size is given.
    fn of_pictures(&self, side: u32) -> Settings {
        let size = self.size.as_deref().and_then(|size| size.parse().ok());
        let BucketSize { width, height } = size.unwrap_or(BucketSize { width: side, height: side });
        Settings {
            width,
            height,
            steps: self.steps,
            guidance: Guidance::of(self.guidance),
            sampler: self.sampler,
            shift: self.shift,
        }
    }

    /// Refuses what the model that is trained cannot make, before the training begins.
    pub fn check(&self, config: &TrainConfig) -> Result<(), TrainError> {
        let refuse = |what, value: String, expected: &str| {
            Err(TrainError::Configuration { what, value, expected: expected.to_owned() })
        };
        if self.prompts.is_empty() {
            return refuse("sample_grids.prompts", "[]".to_owned(), "at least one prompt");
        }
        if let Some(size) = self.size.as_ref().filter(|size| size.parse::<BucketSize>().is_err()) {
            return refuse("sample_grids.size", size.clone(), "WIDTHxHEIGHT in pixels, such as 512x384");
        }
        if self.every == 0 {
            return refuse("sample_grids.every", "0".to_owned(), "at least 1");
        }
        let any_side = u32::try_from(config.pixel_multiple()?).unwrap_or(u32::MAX);
        text_to_image::check(&self.of_pictures(any_side), config.latents.shape()?, i64::from(config.patch_size))?;
        Ok(())
    }
}
