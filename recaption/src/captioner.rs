//! One question to a model, its answer, and why there may be none.

use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whoever answers: a model in this process, or a fleet of servers.
///
/// As many requests as [`Captioner::capacity`] may be waiting at once; what is really in flight is the captioner's own affair
/// (slots of a batch, limits of an endpoint). A request that is dropped is given up.
#[async_trait]
pub trait Captioner: Send + Sync {
    /// What answers, as it counts for the result: a server's model name, or a model's name and the digest of its weights.
    fn identity(&self) -> &str;

    /// Requests that keep it busy.
    fn capacity(&self) -> usize;

    /// Answers one request.
    async fn complete(&self, request: Request) -> Result<Completion, Failure>;
}

/// One question.
#[derive(Clone, Debug)]
pub struct Request {
    pub system: Option<String>,
    /// What the user says.
    pub prompt: String,
    /// An encoded image, as stored.
    pub image: Option<Arc<[u8]>>,
    pub sampling: Sampling,
}

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// 0 takes the likeliest token.
    pub temperature: f64,
    /// Tokens are drawn from the likeliest ones that together have this probability.
    pub top_p: f64,
    /// Longest answer, in tokens; an answer that is cut there is no caption.
    pub max_tokens: u32,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, max_tokens: 300, seed: 0 }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    pub text: String,
    pub finish: Finish,
    pub usage: Usage,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    Stop,
    /// It was cut at `max_tokens`.
    Length,
}

/// Tokens that were paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// Of the prompt's, those that a server had in its cache.
    pub cached_tokens: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.cached_tokens += other.cached_tokens;
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// This request cannot be answered, whoever is asked: the row is to blame.
    #[error("{reason}: {detail}")]
    Refused {
        /// A word to count by: `refused_by_server`, `poisoned`, `bad_image`, …
        reason: &'static str,
        detail: String,
    },
    /// Nobody can answer now, or ever: the job is to stop, and says why.
    #[error("{0}")]
    Unavailable(String),
    #[error("interrupted")]
    Cancelled,
}
