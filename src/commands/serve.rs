//! `serve`: pictures over HTTP, for programs (the OpenAI images API) and for people (a web page).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use models::checkpoint::CheckpointState;
use models::text::Truncation;
use sampler::SampleError;
use sampler::guidance::Guidance;
use sampler::opened::Opened;
use sampler::recipe;
use sampler::solver::Solver;
use sampler::text_to_image::{MOST_PIXELS, Picture, Settings, TextToImage, check, side_multiple};
use serve::{
    Defaults, Description, Event, GenerateError, Generator, Limits, Options, Outcome, PictureRequest, Server, Size,
};
use tokio::sync::Notify;

use super::sample::Source;
use super::sample::settings::{How, usual};
use crate::errors::{OK, Usage};
use crate::settings::on_interrupt;
use crate::watch::{self, say};

/// A picture of four times the training's pixels still shows something; larger ones only take others' time.
const PIXELS_OF_TRAINING: u64 = 4;

#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    source: Source,
    /// Where to listen. Others than this machine reach it only if asked for, as by 0.0.0.0.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// 0 for any that is free.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// A name by which the server may be called, besides its addresses; may be given several times.
    #[arg(long = "host-name", value_name = "NAME")]
    host_names: Vec<String>,
    /// What URLs of pictures begin with, behind another server: https://pictures.example/ferrotype.
    #[arg(long)]
    base_url: Option<String>,
    /// What clients must send as a bearer token.
    #[arg(long, env = "FERROTYPE_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Pictures that may wait; more are told to come again.
    #[arg(long, default_value_t = 64)]
    queue: usize,
    /// Pictures made at a time, of one or of several clients.
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// The largest picture, in pixels [four times the square of the training's longest side].
    #[arg(long)]
    most_pixels: Option<u64>,
    #[command(flatten)]
    how: How,
}

impl Serve {
    pub(crate) fn run(self) -> Result<u8> {
        let limits = Limits { waiting: self.queue, batch: self.batch, ..Limits::default() };
        let limits = Limits { pictures: limits.pictures.min(self.queue), ..limits };
        let options = Options {
            address: SocketAddr::new(self.host, self.port),
            host_names: self.host_names.clone(),
            base_url: self.base_url.clone(),
            api_key: self.api_key.clone(),
            limits,
            observer: Box::new(tell),
        };
        // Wrong paths and settings are told before a port is taken, and a taken port before a model is loaded.
        let opened = self.source.open()?;
        let description = self.describe(&opened, &options.limits)?;
        let grace = options.limits.grace.as_secs();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.context("cannot start the server's threads")?.block_on(async {
            let server = Server::bind(options).await.map_err(|error| match error {
                error @ serve::ServeError::Options { .. } => Usage(error.to_string()).into(),
                error => anyhow::Error::from(error),
            })?;
            let address = server.address();
            let generator = Checkpointed::load(&self.source, opened, description)?;
            if !address.ip().is_loopback() && self.api_key.is_none() {
                watch::aside(format_args!(
                    "warning: anyone who can reach {address} can have pictures made; --api-key asks for a key"
                ));
            }
            let stop = Arc::new(Notify::new());
            let interrupted = Arc::clone(&stop);
            on_interrupt(move || {
                watch::aside(format_args!(
                    "stopping: what is being made has {grace} s to be made and sent; another signal ends it at once"
                ));
                interrupted.notify_one();
            })?;
            say(format_args!("http://{address}"))?;
            server.run(generator, stop.notified()).await?;
            Ok(OK)
        })
    }

    /// What is served, but for the digest of the weights, which are not read yet. Settings that no picture can be made with are refused.
    fn describe(&self, opened: &Opened, limits: &Limits) -> Result<Description> {
        let CheckpointState { model, latents, max_resolution, step, .. } = &opened.state;
        let shape = latents.shape()?;
        let side_multiple = side_multiple(shape, model.patch_size);
        let settings = self.how.over(&usual(*max_resolution, side_multiple));
        check(&settings, shape, model.patch_size)?;
        let Settings { width, height, steps, guidance, sampler, shift } = settings;
        let trained = u64::from((*max_resolution).max(side_multiple));
        let own = u64::from(width) * u64::from(height);
        let most_pixels = self.most_pixels.unwrap_or((PIXELS_OF_TRAINING * trained * trained).max(own));
        let checkpoint = &self.source.checkpoint;
        let folder = checkpoint.canonicalize().unwrap_or_else(|_| checkpoint.clone());
        let name = folder.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
        let description = Description {
            model: format!("{name}@{step}"),
            checkpoint: String::new(),
            side_multiple,
            most_pixels: most_pixels.min(MOST_PIXELS),
            samplers: Solver::ALL.map(|solver| solver.name().to_owned()).to_vec(),
            defaults: Defaults {
                size: Size { width, height },
                steps,
                guidance: guidance.scale,
                sampler: sampler.name().to_owned(),
                shift,
            },
            guidance_interval: guidance.interval,
            guidance_rescale: guidance.rescale,
        };
        match description.fault(limits) {
            None => Ok(description),
            Some(fault) => Err(Usage(fault).into()),
        }
    }
}

/// One line for each batch, for whoever runs the server.
fn tell(event: Event) {
    match event {
        Event::Queued { .. } => {}
        Event::Batch { pictures, took, outcome } => {
            let what = match outcome {
                Outcome::Made => "made".to_owned(),
                Outcome::Stopped => "stopped: nobody waits for them any more".to_owned(),
                Outcome::Failed(error) => format!("failed: {error}"),
            };
            watch::aside(format_args!("{pictures} pictures in {:.1} s: {what}", took.as_secs_f64()));
        }
        Event::AcceptFailed(error) => watch::aside(format_args!("warning: a connection was not accepted: {error}")),
    }
}

/// A checkpoint as the server sees it.
struct Checkpointed {
    model: TextToImage,
    description: Description,
    truncation: Truncation,
}

impl Checkpointed {
    fn load(source: &Source, opened: Opened, description: Description) -> Result<Self> {
        let model = source.load(opened)?;
        let description = Description { checkpoint: model.digest.clone(), ..description };
        Ok(Self { description, truncation: model.truncation()?, model })
    }
}

impl Generator for Checkpointed {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn truncation(&self) -> serve::Truncation {
        let truncation = self.truncation.clone();
        // A text that cannot be read fails when its turn comes.
        Box::new(move |text| truncation.of(text).ok().flatten().map(|truncated| truncated.rest))
    }

    fn generate(
        &mut self,
        pictures: &[PictureRequest],
        progress: &mut dyn FnMut(u32, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<u8>>, GenerateError> {
        let Some(first) = pictures.first() else { return Ok(Vec::new()) };
        let sampler = Solver::named(&first.sampler)
            .ok_or_else(|| GenerateError::Refused(format!("the sampler {} is not known", first.sampler)))?;
        let settings = Settings {
            width: first.width,
            height: first.height,
            steps: first.steps,
            guidance: Guidance {
                scale: first.guidance,
                interval: self.description.guidance_interval,
                rescale: self.description.guidance_rescale,
            },
            sampler,
            shift: first.shift,
        };
        let wanted = pictures.iter().map(|of| Picture {
            prompt: of.prompt.clone(),
            negative_prompt: of.negative_prompt.clone(),
            seed: of.seed,
        });
        let wanted: Vec<Picture> = wanted.collect();
        let made = self.model.generate(&wanted, &settings, wanted.len(), &mut |now| progress(now.step, now.steps));
        let png = |(picture, made): (&Picture, image::RgbImage)| {
            recipe::png(&made, Some(&self.model.recipe(picture, &settings)))
        };
        let files = made.and_then(|made| wanted.iter().zip(made).map(png).collect::<Result<Vec<_>, _>>());
        files.map_err(|error| match error {
            SampleError::Stopped => GenerateError::Stopped,
            error @ SampleError::Request { .. } => GenerateError::Refused(error.to_string()),
            error => GenerateError::Failed(format!("{:#}", anyhow::Error::from(error))),
        })
    }
}
