//! `caption`: what prompts give for a few pictures, with times and tokens.

mod picture;
mod settings;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use recaption::Usage as Tokens;
use recaption::checks::Kind;
use recaption::job::{Job, Row, StepSettings};
use recaption::trial::Trial;

use self::picture::Picture;
use self::settings::Flags;
#[cfg(feature = "pipeline")]
use self::settings::FromManifest;
use crate::errors::{FAILED, OK, Usage};

/// Whoever tries a prompt does not wait for servers that do not answer, however long a job may.
const GIVE_UP_AFTER: f64 = 5.0;

#[derive(Debug, Args)]
pub(crate) struct Caption {
    /// Pictures.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Their alt text.
    #[arg(long, default_value = "", value_name = "TEXT")]
    alt: String,
    /// The value of another column that a prompt names; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = column)]
    column: Vec<(String, String)>,
    #[cfg(feature = "pipeline")]
    #[command(flatten)]
    manifest: FromManifest,
    #[command(flatten)]
    flags: Flags,
    /// Print a line of JSON for each picture.
    #[arg(long)]
    json: bool,
}

/// For clap.
fn column(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// How both captions are made.
struct Steps {
    long: Option<StepSettings>,
    short: Option<StepSettings>,
}

impl Caption {
    pub(crate) fn run(&self) -> Result<u8> {
        let Steps { long, short } = self.steps()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.context("no runtime can be started")?;
        let entered = runtime.enter();
        let (long, short) = (long.map(impatient), short.map(impatient));
        let (job, _) = Job::start(long.as_ref(), short.as_ref()).map_err(|(kind, error)| {
            let name = if kind == Kind::Long { "long" } else { "short" };
            Usage(format!("the {name} caption's model: {error}"))
        })?;
        drop(entered);
        let values: BTreeMap<String, String> = self.column.iter().cloned().collect();
        if let Some(missing) = job.columns().into_iter().find(|name| !values.contains_key(name)) {
            bail!(Usage(format!("a prompt names the column {missing}: say what it holds, --column {missing}=…")));
        }
        let mut trial = Trial::new(job);
        let began = Instant::now();
        let mut sums = Sums::default();
        for path in &self.images {
            let picture = match std::fs::read(path) {
                Err(error) => Picture::unreadable(path, &error),
                Ok(image) => {
                    let bytes = image.len();
                    let (alt, values) = (self.alt.clone(), values.clone());
                    let row = Row { image: Arc::from(image), alt, values, ..Row::default() };
                    let tried = runtime.block_on(trial.of(&row));
                    Picture::new(path, bytes, tried?)
                }
            };
            let mut out = std::io::stdout().lock();
            if self.json {
                writeln!(out, "{}", picture.json())?;
            } else {
                write!(out, "{}", picture.in_words())?;
            }
            sums.add(&picture);
        }
        if !self.json {
            writeln!(std::io::stdout(), "{}", sums.in_words(began.elapsed().as_secs_f64()))?;
        }
        Ok(if sums.failed > 0 { FAILED } else { OK })
    }

    fn steps(&self) -> Result<Steps> {
        #[cfg(feature = "pipeline")]
        if let Some(steps) = self.manifest.steps()? {
            return Ok(steps);
        }
        self.flags.steps()
    }
}

/// Whoever tries a prompt does not wait for a server that is gone.
fn impatient(mut settings: StepSettings) -> StepSettings {
    if let Some(server) = &mut settings.server {
        let operations = &mut server.operations;
        operations.give_up_after = operations.give_up_after.min(GIVE_UP_AFTER);
    }
    settings
}

/// Over all pictures.
#[derive(Debug, Default)]
struct Sums {
    captioned: usize,
    failed: usize,
    answers: usize,
    tokens: Tokens,
    /// Of waiting for answers.
    seconds: f64,
}

impl Sums {
    fn add(&mut self, picture: &Picture) {
        if picture.has_failed() {
            self.failed += 1;
        } else {
            self.captioned += 1;
        }
        for answer in picture.answers() {
            self.answers += 1;
            self.tokens += answer.completion.usage;
            self.seconds += answer.seconds;
        }
    }

    fn in_words(&self, seconds: f64) -> String {
        let Self { captioned, failed, answers, tokens, .. } = self;
        format!(
            "{captioned} captioned, {failed} failed, in {}: {}",
            crate::words::duration(seconds),
            picture::cost(*answers, *tokens, self.seconds)
        )
    }
}
