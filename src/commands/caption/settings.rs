//! Where prompts and models come from: a manifest, or flags.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use recaption::checks::Kind;
use recaption::in_process::{self, InProcessOptions};
use recaption::job::StepSettings;
use recaption::prompt::Template;
use recaption::server::{Endpoint, Operations, Semantics, ServerOptions};

use super::Steps;
use crate::errors::Usage;

/// A manifest's recaption stage.
#[cfg(feature = "pipeline")]
#[derive(Debug, Args)]
pub(super) struct FromManifest {
    /// A manifest, whose recaption stage says how captions are made.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["endpoint", "model", "folder"])]
    manifest: Option<PathBuf>,
    /// Which recaption stage of the manifest, where it has several.
    #[arg(long, value_name = "STAGE", requires = "manifest")]
    stage: Option<String>,
    /// Overrides a key of the manifest: --set stage.recaption.long.prompt="What is this?"
    #[arg(long, value_name = "KEY=VALUE", requires = "manifest")]
    set: Vec<String>,
}

#[cfg(feature = "pipeline")]
impl FromManifest {
    /// Nothing, if no manifest is named.
    pub(super) fn steps(&self) -> Result<Option<Steps>> {
        let Some(file) = &self.manifest else { return Ok(None) };
        let manifest = pipeline::manifest::Manifest::read(file, &self.set)?;
        let (_, recaption) = crate::stages::recaption::find(&manifest, self.stage.as_deref())?;
        Ok(Some(Steps { long: recaption.long, short: recaption.short }))
    }
}

/// A server or a folder of weights, without a manifest.
#[derive(Debug, Args)]
pub(super) struct Flags {
    /// A server's base URL, such as http://host:8000/v1; may be given several times.
    #[arg(long, value_name = "URL", requires = "model")]
    endpoint: Vec<String>,
    /// The model, as the servers know it.
    #[arg(long, value_name = "NAME", requires = "endpoint", group = "asked")]
    model: Option<String>,
    /// In place of servers: a folder of weights, for a model in this process.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["endpoint", "model"], group = "asked")]
    folder: Option<PathBuf>,
    /// In place of servers: a folder of weights for short captions [the model of the long ones].
    #[arg(long, value_name = "DIR", requires = "folder", conflicts_with_all = ["short_endpoint", "short_model"])]
    short_folder: Option<PathBuf>,
    /// The environment variable that holds the servers' token [none is sent].
    #[arg(long, value_name = "NAME", requires = "model")]
    api_key_env: Option<String>,
    /// What is asked; {alt} stands for the alt text [a prompt of our own].
    #[arg(long, value_name = "TEXT", requires = "asked", value_parser = template)]
    prompt: Option<Template>,
    /// Also a short caption, from the long one.
    #[arg(long, requires = "asked")]
    short: bool,
    /// What is asked for a short caption; {caption} stands for the long one [a prompt of our own].
    #[arg(long, value_name = "TEXT", requires = "asked", value_parser = template)]
    short_prompt: Option<Template>,
    /// A server for short captions; may be given several times [those of the long ones].
    #[arg(long, value_name = "URL", requires = "model")]
    short_endpoint: Vec<String>,
    /// The model for short captions [that of the long ones].
    #[arg(long, value_name = "NAME", requires = "model")]
    short_model: Option<String>,
    /// Longest answer for a long caption, in tokens [300].
    #[arg(long, value_name = "N", requires = "asked", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// 0 takes the likeliest token [0].
    #[arg(long, value_name = "F", requires = "asked")]
    temperature: Option<f64>,
}

/// For clap.
fn template(text: &str) -> Result<Template, String> {
    Template::parse(text).map_err(|error| error.to_string())
}

impl Flags {
    pub(super) fn steps(&self) -> Result<Steps> {
        let of_servers = |model: &str, endpoints: &[String]| StepSettings {
            server: Some(ServerOptions {
                semantics: Semantics { model: model.to_owned(), ..Semantics::default() },
                operations: Operations {
                    endpoints: endpoints.iter().map(|url| Endpoint { url: url.clone(), in_flight: None }).collect(),
                    api_key_env: self.api_key_env.clone(),
                    ..Operations::default()
                },
            }),
            ..StepSettings::default()
        };
        let in_process = |folder: &Path| StepSettings {
            model: Some(InProcessOptions {
                semantics: in_process::Semantics { folder: folder.to_owned(), ..in_process::Semantics::default() },
                operations: in_process::Operations::default(),
            }),
            ..StepSettings::default()
        };
        let (long, short) = match (&self.model, &self.folder) {
            (Some(model), _) => {
                let endpoints = if self.short_endpoint.is_empty() { &self.endpoint } else { &self.short_endpoint };
                let short = of_servers(self.short_model.as_ref().unwrap_or(model), endpoints);
                (of_servers(model, &self.endpoint), short)
            }
            (None, Some(folder)) => (in_process(folder), in_process(self.short_folder.as_ref().unwrap_or(folder))),
            (None, None) => {
                let manifest = if cfg!(feature = "pipeline") { "--manifest FILE, or " } else { "" };
                bail!(Usage(format!(
                    "nothing says who is asked: give {manifest}--endpoint http://host:8000/v1 and --model NAME, or --folder DIR"
                )));
            }
        };
        let temperature = self.temperature;
        let long = StepSettings { max_tokens: self.max_tokens, prompt: self.prompt.clone(), temperature, ..long };
        let has_short = self.short
            || self.short_prompt.is_some()
            || self.short_model.is_some()
            || self.short_folder.is_some()
            || !self.short_endpoint.is_empty();
        let short = has_short.then(|| StepSettings { prompt: self.short_prompt.clone(), temperature, ..short });
        let both = [("the long caption", Some(&long), Kind::Long), ("the short caption", short.as_ref(), Kind::Short)];
        for (name, step, kind) in both {
            if let Some(Err(error)) = step.map(|step| step.check(kind)) {
                bail!(Usage(format!("of {name}, {error}")));
            }
        }
        Ok(Steps { long: Some(long), short })
    }
}
