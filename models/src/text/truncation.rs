//! What encoders leave out of captions that are longer than they take.

use std::sync::Arc;

use super::HashEncoder;
use super::pretrained::{TOKENS, Tokenizers};
use crate::ModelError;

/// What is left out of a caption that is longer than its encoder takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncated {
    /// How much the encoder takes, in words.
    pub limit: String,
    /// The caption's end, as its tokens spell it. Of several models, the one that takes least of the caption counts.
    pub rest: String,
}

/// Tells what an encoder leaves out of captions. Holds tokenizers at most, no weights.
#[derive(Clone, Debug)]
pub struct Truncation {
    /// None for [`HashEncoder`], which counts words.
    pub(super) tokenizers: Option<Arc<Tokenizers>>,
}

impl Truncation {
    /// None where the encoder takes all of it.
    pub fn of(&self, caption: &str) -> Result<Option<Truncated>, ModelError> {
        let (limit, rest) = match &self.tokenizers {
            None => (format!("{} words", HashEncoder::TOKENS), HashEncoder::beyond(caption)),
            Some(tokenizers) => (format!("{TOKENS} tokens"), tokenizers.beyond(caption)?),
        };
        Ok((!rest.is_empty()).then_some(Truncated { limit, rest }))
    }
}
