//! One of the two captions, as users write it.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Job, Step};
use crate::captioner::{Captioner, Sampling, Usage};
use crate::checks::{Checks, Instructions, Kind};
use crate::in_process::{InProcessCaptioner, InProcessOptions};
use crate::nobody::Nobody;
use crate::prompt::{ALT, CAPTION, Prompt, Template};
use crate::server::{OptionsError, ServerCaptioner, ServerOptions};

/// How one of the two captions is made.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StepSettings {
    /// The model: a fleet of OpenAI-compatible servers.
    pub server: Option<ServerOptions>,
    /// The model: in this process, from a folder of weights.
    pub model: Option<InProcessOptions>,
    /// What is asked; `{alt}` is the alt text, `{caption}` (for a short caption) the long one, and the name of any other column in
    /// braces its value [a prompt of our own].
    pub prompt: Option<Template>,
    /// What is asked where there is no alt text [a prompt of our own; none where prompt is given].
    pub prompt_without_alt: Option<Template>,
    /// The system message [none].
    pub system: Option<String>,
    /// Whether the image is shown [true for the long caption, false for the short one].
    pub image: Option<bool>,
    /// 0 takes the likeliest token; a further attempt takes 0.7 at least [0].
    pub temperature: Option<f64>,
    /// Tokens are drawn from the likeliest ones that together have this probability [1].
    pub top_p: Option<f64>,
    /// Longest answer, in tokens; one that is cut there is no caption [300 for the long caption, 100 for the short one].
    pub max_tokens: Option<u32>,
    /// Of the drawing; a further attempt takes the next one [0].
    pub seed: Option<u64>,
    /// How often a model is asked for a caption that passes the checks [3].
    pub attempts: Option<u32>,
    /// When a caption is flagged, and what is done then.
    pub checks: Checks,
    /// What tokens cost, for the sum in records and reports [nothing].
    pub price: Option<Price>,
}

/// For a million tokens each, in any currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Price {
    /// Those of prompts, image tokens included.
    pub prompt: f64,
    /// Those of answers.
    pub completion: f64,
}

impl StepSettings {
    /// Whether it names a model.
    pub fn has_model(&self) -> bool {
        self.server.is_some() || self.model.is_some()
    }

    /// Whether both are answered by the same model.
    fn has_model_of(&self, other: &Self) -> bool {
        self.server == other.server && self.model == other.model
    }

    /// What is wrong with it as the settings of that caption, with the key.
    pub fn check(&self, kind: Kind) -> Result<(), OptionsError> {
        let fault = |key: &'static str, message: String| Err(OptionsError { key, message });
        if let Some(server) = &self.server {
            server.check()?;
        }
        if let Some(model) = &self.model {
            if self.server.is_some() {
                return fault("model", "there is a server as well: name one of them".to_owned());
            }
            model.check()?;
            model.semantics.identity().map_err(|error| OptionsError { key: "model", message: in_a_line(&error) })?;
        }
        for (key, template) in [("prompt", &self.prompt), ("prompt_without_alt", &self.prompt_without_alt)] {
            let Some(template) = template.as_ref().filter(|_| kind == Kind::Long) else { continue };
            if template.columns().contains(CAPTION) {
                let message = format!(
                    "{{{CAPTION}}} is the long caption, which this prompt asks for; the text that came with the image is {{{ALT}}}"
                );
                return fault(key, message);
            }
        }
        let Sampling { temperature, top_p, max_tokens, .. } = self.sampling(kind);
        if !(0.0..=10.0).contains(&temperature) {
            return fault("temperature", format!("{temperature}: expected 0 to 10"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return fault("top_p", format!("{top_p}: expected more than 0 and at most 1"));
        }
        if max_tokens == 0 {
            return fault("max_tokens", "0: expected 1 or more".to_owned());
        }
        if self.attempts() == 0 || self.attempts() > 100 {
            return fault("attempts", format!("{}: expected 1 to 100", self.attempts()));
        }
        Ok(())
    }

    pub fn prompt(&self, kind: Kind) -> Prompt {
        let usual = match kind {
            Kind::Long => Prompt::long(),
            Kind::Short => Prompt::short(),
        };
        match (&self.prompt, &self.prompt_without_alt) {
            (Some(template), without_alt) => Prompt { template: template.clone(), without_alt: without_alt.clone() },
            (None, Some(without_alt)) => Prompt { without_alt: Some(without_alt.clone()), ..usual },
            (None, None) => usual,
        }
    }

    fn sampling(&self, kind: Kind) -> Sampling {
        let usual = Sampling { max_tokens: if kind == Kind::Long { 300 } else { 100 }, ..Sampling::default() };
        Sampling {
            temperature: self.temperature.unwrap_or(usual.temperature),
            top_p: self.top_p.unwrap_or(usual.top_p),
            max_tokens: self.max_tokens.unwrap_or(usual.max_tokens),
            seed: self.seed.unwrap_or(usual.seed),
        }
    }

    fn attempts(&self) -> u32 {
        self.attempts.unwrap_or(3)
    }

    fn shows_image(&self, kind: Kind) -> bool {
        self.image.unwrap_or(kind == Kind::Long)
    }

    /// How images are shown, as it counts for an answer.
    fn image_mode(&self, kind: Kind) -> Option<String> {
        let mode = match (&self.server, &self.model) {
            (Some(server), _) => format!("at most {} pixels a side", server.semantics.max_side),
            (None, Some(model)) => json!(model.semantics.image_mode).to_string(),
            (None, None) => String::new(),
        };
        self.shows_image(kind).then_some(mode)
    }

    /// All that a caption depends on.
    pub fn semantics(&self, kind: Kind) -> Value {
        let prompt = self.prompt(kind);
        json!({
            "server": self.server.as_ref().map(|server| &server.semantics),
            // A folder that cannot be read was refused by `check`.
            "model": self.model.as_ref().and_then(|model| model.semantics.identity().ok()),
            "prompt": prompt.template,
            "prompt_without_alt": prompt.without_alt,
            "system": self.system,
            "image": self.shows_image(kind),
            "sampling": self.sampling(kind),
            "attempts": self.attempts(),
            "checks": self.checks,
        })
    }

    /// Who answers. A model in this process is loaded, which may take minutes. To be called within the tokio runtime that the
    /// requests will be made on, but not on its own threads.
    pub fn captioner(&self) -> Result<Answering, OptionsError> {
        Ok(match (&self.server, &self.model) {
            (Some(options), _) => Answering::Server(Arc::new(ServerCaptioner::new(options)?)),
            (None, Some(options)) => {
                let opened = InProcessCaptioner::open(options);
                let fault = |error| OptionsError { key: "model", message: in_a_line(&error) };
                Answering::InProcess(Arc::new(opened.map_err(fault)?))
            }
            (None, None) => Answering::Nobody,
        })
    }

    /// The step, with who answers.
    pub fn step(&self, kind: Kind, answering: &Answering) -> Step {
        let captioner: Arc<dyn Captioner> = match answering {
            Answering::Server(server) => Arc::clone(server) as _,
            Answering::InProcess(model) => Arc::clone(model) as _,
            Answering::Nobody => Arc::new(Nobody),
        };
        let prompt = self.prompt(kind);
        Step {
            kind,
            captioner,
            instructions: Instructions::of(&prompt),
            prompt,
            system: self.system.clone(),
            sampling: self.sampling(kind),
            attempts: self.attempts(),
            checks: self.checks.clone(),
            image_mode: self.image_mode(kind),
            passes_on: false,
            price: self.price,
        }
    }

    /// What tokens cost, where a price is given.
    pub fn cost(&self, usage: Usage) -> Option<f64> {
        self.price.map(|price| price.of(usage))
    }
}

impl Price {
    /// Of so many tokens.
    pub fn of(self, usage: Usage) -> f64 {
        (usage.prompt_tokens as f64 * self.prompt + usage.completion_tokens as f64 * self.completion) / 1e6
    }
}

impl Job {
    /// Starts whoever answers: see [`StepSettings::captioner`]. Where both captions come from the same model they share it, and
    /// what it may have in flight. An error says of which of the two it is.
    pub fn start(
        long: Option<&StepSettings>,
        short: Option<&StepSettings>,
    ) -> Result<(Self, Vec<Answering>), (Kind, OptionsError)> {
        let mut started: Vec<Answering> = Vec::new();
        let are_the_same = long.zip(short).is_some_and(|(long, short)| long.has_model_of(short));
        let mut step = |settings: Option<&StepSettings>, kind| {
            let Some(settings) = settings else { return Ok(None) };
            let shared = started.first().filter(|_| are_the_same).cloned();
            let answering = if let Some(shared) = shared {
                shared
            } else {
                let new = settings.captioner().map_err(|error| (kind, error))?;
                started.push(new.clone());
                new
            };
            Ok(Some(settings.step(kind, &answering)))
        };
        let (long, short) = (step(long, Kind::Long)?, step(short, Kind::Short)?);
        Ok((Self { long, short }, started))
    }
}

/// An error and its causes.
fn in_a_line(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut causes: Vec<String> = causes.map(ToString::to_string).collect();
    // A transparent error repeats its source.
    causes.dedup();
    causes.join(": ")
}

/// Who answers the requests of a step.
#[derive(Clone)]
pub enum Answering {
    Server(Arc<ServerCaptioner>),
    InProcess(Arc<InProcessCaptioner>),
    /// Only captions that are there already are taken.
    Nobody,
}
