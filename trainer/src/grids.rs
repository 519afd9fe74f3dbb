//! Sheets of pictures that show how far a training is.

use std::io::Cursor;

use image::ImageFormat;
use models::latents::LatentCodec;
use models::mmdit::Mmdit;
use models::text::TextCondition;
use sampler::text_to_image::{Painter, Request};
use sampler::{SampleError, grid};
use shards::bucket::BucketSize;
use tch::Device;

use crate::TrainError;
use crate::config::SampleGrids;
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
    condition: TextCondition,
    latents: Box<dyn LatentCodec>,
}

impl<'a> Grids<'a> {
    /// `None` where the job asks for none. Encodes the prompts.
    pub(crate) fn open(job: &'a Job<'a>, device: Device) -> Result<Option<Self>, TrainError> {
        let Some(settings) = &job.operations.sample_grids else { return Ok(None) };
        let prompts: Vec<&str> = settings.prompts.iter().map(String::as_str).collect();
        let condition = job.config.text.encoder(device)?.encode(&prompts)?.to_device(Device::Cpu);
        Ok(Some(Self { job, settings, condition, latents: job.config.latents.codec(device)? }))
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
        let Self { job, settings, condition, latents } = self;
        let size = settings.size.as_deref().and_then(|size| size.parse().ok());
        let BucketSize { width, height } = size.unwrap_or(BucketSize { width: side, height: side });
        let request = Request {
            prompts: &settings.prompts,
            seed: settings.seed,
            width,
            height,
            steps: settings.steps,
            guidance: settings.guidance,
            solver: settings.sampler,
            shift: settings.shift,
            batch: BATCH,
        };
        let average = learner.ema.as_ref().unwrap_or(&learner.parameters);
        let average = average.computing_in(job.config.precision.kind());
        let model = Mmdit::over(&job.config.model()?, &average);
        let painter = Painter { model: &model, latents: latents.as_ref(), device: learner.device() };
        painter.check(&request)?;
        let mut pictures = Vec::with_capacity(settings.prompts.len());
        for prompts in settings.prompts.chunks(BATCH) {
            let first = pictures.len();
            let condition = condition.narrow(first as i64, prompts.len() as i64);
            pictures.extend(painter.paint(&request, first as u64, &condition, |_| ())?);
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
    /// Refuses what cannot be made, before the training begins.
    pub(crate) fn check(&self) -> Result<(), TrainError> {
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
        Ok(())
    }
}
