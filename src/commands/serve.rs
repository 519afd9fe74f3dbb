//! `serve`: pictures over HTTP, for programs (the OpenAI images API) and for people (a web page).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::ControlFlow;

use anyhow::{Context, Result};
use clap::Args;
use sampler::SampleError;
use sampler::guidance::Guidance;
use sampler::opened::Opened;
use sampler::recipe;
use sampler::solver::Solver;
use sampler::text_to_image::{MOST_PIXELS, Picture, Settings, TextToImage};
use serve::{
    Defaults, Description, Event, GenerateError, Generator, Limits, Options, Outcome, PictureRequest, Server, Size,
};

use super::sample::Source;
use super::sample::settings::{How, defaults};
use crate::errors::{OK, Usage};
use crate::watch::say;

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
        // A wrong path is told before a port is taken, and a taken port before a model is loaded.
        let opened = self.source.open()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.context("cannot start the server's threads")?.block_on(async {
            let server = Server::bind(options).await.map_err(|error| match error {
                error @ serve::ServeError::Options { .. } => Usage(error.to_string()).into(),
                error => anyhow::Error::from(error),
            })?;
            let address = server.address();
            let generator = Checkpointed::load(&self.source, opened, &self.how, self.most_pixels)?;
            if !address.ip().is_loopback() && self.api_key.is_none() {
                eprintln!("warning: anyone who can reach {address} can have pictures made; --api-key asks for a key");
            }
            say(format_args!("http://{address}"))?;
            server.run(generator, stopped()).await?;
            Ok(OK)
        })
    }
}

/// Waits for Ctrl-C, or to be told to end.
async fn stopped() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    // Without it there is no way to end but by force.
    let _ = tokio::signal::ctrl_c().await;
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
            eprintln!("{pictures} pictures in {:.1} s: {what}", took.as_secs_f64());
        }
        Event::AcceptFailed(error) => eprintln!("warning: a connection was not accepted: {error}"),
    }
}

/// A checkpoint as the server sees it.
struct Checkpointed {
    model: TextToImage,
    description: Description,
    /// Guidance's interval and rescaling, which requests do not name.
    guidance: Guidance,
}

impl Checkpointed {
    fn load(source: &Source, opened: Opened, how: &How, most_pixels: Option<u64>) -> Result<Self> {
        let model = source.load(opened)?;
        let Settings { width, height, steps, guidance, sampler, shift } = how.over(&defaults(&model));
        let trained = u64::from(model.state.max_resolution.max(model.side_multiple()));
        let own = u64::from(width) * u64::from(height);
        let most_pixels = most_pixels.unwrap_or((PIXELS_OF_TRAINING * trained * trained).max(own)).min(MOST_PIXELS);
        let folder = source.checkpoint.canonicalize().unwrap_or_else(|_| source.checkpoint.clone());
        let name = folder.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
        let description = Description {
            model: format!("{name}@{}", model.state.step),
            checkpoint: model.digest.clone(),
            side_multiple: model.side_multiple(),
            most_pixels,
            samplers: Solver::ALL.map(|solver| solver.name().to_owned()).to_vec(),
            defaults: Defaults {
                size: Size { width, height },
                steps,
                guidance: guidance.scale,
                sampler: sampler.name().to_owned(),
                shift,
            },
        };
        Ok(Self { model, description, guidance })
    }
}

impl Generator for Checkpointed {
    fn describe(&self) -> &Description {
        &self.description
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
            guidance: Guidance { scale: first.guidance, ..self.guidance },
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
