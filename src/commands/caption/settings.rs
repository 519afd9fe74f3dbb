//! Where prompts and models come from: a manifest, or flags.

#[cfg(feature = "pipeline")]
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
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
    #[arg(long, value_name = "FILE", conflicts_with_all = ["endpoint", "model"])]
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

/// A server, without a manifest.
#[derive(Debug, Args)]
pub(super) struct Flags {
    /// A server's base URL, such as http://host:8000/v1; may be given several times.
    #[arg(long, value_name = "URL", requires = "model")]
    endpoint: Vec<String>,
    /// The model, as the servers know it.
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    model: Option<String>,
    /// The environment variable that holds the servers' token [none is sent].
    #[arg(long, value_name = "NAME", requires = "model")]
    api_key_env: Option<String>,
    /// What is asked; {alt} stands for the alt text [a prompt of our own].
    #[arg(long, value_name = "TEXT", requires = "model", value_parser = template)]
    prompt: Option<Template>,
    /// Also a short caption, from the long one.
    #[arg(long, requires = "model")]
    short: bool,
    /// What is asked for a short caption; {caption} stands for the long one [a prompt of our own].
    #[arg(long, value_name = "TEXT", requires = "model", value_parser = template)]
    short_prompt: Option<Template>,
    /// A server for short captions; may be given several times [those of the long ones].
    #[arg(long, value_name = "URL", requires = "model")]
    short_endpoint: Vec<String>,
    /// The model for short captions [that of the long ones].
    #[arg(long, value_name = "NAME", requires = "model")]
    short_model: Option<String>,
    /// Longest answer for a long caption, in tokens [300].
    #[arg(long, value_name = "N", requires = "model", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// 0 takes the likeliest token [0].
    #[arg(long, value_name = "F", requires = "model")]
    temperature: Option<f64>,
}

/// For clap.
fn template(text: &str) -> Result<Template, String> {
    Template::parse(text).map_err(|error| error.to_string())
}

impl Flags {
    pub(super) fn steps(&self) -> Result<Steps> {
        let Some(model) = &self.model else {
            let manifest = if cfg!(feature = "pipeline") { "--manifest FILE, or " } else { "" };
            bail!(Usage(format!(
                "nothing says who is asked: give {manifest}--endpoint http://host:8000/v1 and --model NAME"
            )));
        };
        let settings = |model: &str, endpoints: &[String], prompt: &Option<Template>| StepSettings {
            server: Some(ServerOptions {
                semantics: Semantics { model: model.to_owned(), ..Semantics::default() },
                operations: Operations {
                    endpoints: endpoints.iter().map(|url| Endpoint { url: url.clone(), in_flight: None }).collect(),
                    api_key_env: self.api_key_env.clone(),
                    ..Operations::default()
                },
            }),
            prompt: prompt.clone(),
            temperature: self.temperature,
            ..StepSettings::default()
        };
        let long = StepSettings { max_tokens: self.max_tokens, ..settings(model, &self.endpoint, &self.prompt) };
        let has_short =
            self.short || self.short_prompt.is_some() || self.short_model.is_some() || !self.short_endpoint.is_empty();
        let short = has_short.then(|| {
            let endpoints = if self.short_endpoint.is_empty() { &self.endpoint } else { &self.short_endpoint };
            settings(self.short_model.as_ref().unwrap_or(model), endpoints, &self.short_prompt)
        });
        for (name, step) in [("the long caption", Some(&long)), ("the short caption", short.as_ref())] {
            if let Some(Err(error)) = step.map(StepSettings::check) {
                bail!(Usage(format!("of {name}, {error}")));
            }
        }
        Ok(Steps { long: Some(long), short })
    }
}
