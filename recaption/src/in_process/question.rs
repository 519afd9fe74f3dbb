//! What the engine is asked, and what it answers.

use models::ModelError;
use models::llama::{Draw, Sampling as How};
use models::llava::PreparedPicture;
use tokio::sync::oneshot;

use crate::captioner::{Failure, Finish, Sampling};

/// A request, ready for the model.
#[derive(Debug)]
pub(super) struct Question {
    /// The prompt, with one token where the image stands.
    pub(super) ids: Vec<i64>,
    pub(super) picture: Option<PreparedPicture>,
    pub(super) sampling: Sampling,
    pub(super) reply: oneshot::Sender<Result<Answer, Failure>>,
}

/// An answer in tokens.
#[derive(Debug)]
pub(super) struct Answer {
    /// Without the token that ended it.
    pub(super) ids: Vec<i64>,
    pub(super) finish: Finish,
    /// Tokens of the prompt, the image's included.
    pub(super) prompt_tokens: u64,
    /// Tokens that were made, the one that ended it included.
    pub(super) completion_tokens: u64,
}

impl Question {
    /// How the token at `place` of the answer is chosen.
    pub(super) fn draw(&self, place: usize) -> Draw {
        let Sampling { temperature, top_p, seed, .. } = self.sampling;
        let sampling = if temperature > 0.0 { How::Random { temperature, top_k: 0, top_p, seed } } else { How::Greedy };
        Draw { sampling, key: [0, place as u64] }
    }

    /// The longest answer; nobody asks for none.
    pub(super) fn most_tokens(&self) -> usize {
        self.sampling.max_tokens.max(1) as usize
    }

    /// Answers, unless nobody waits any more.
    pub(super) fn reply(self, answer: Result<Answer, Failure>) {
        // The receiver may be gone by now; then there is nobody to tell.
        let _gone = self.reply.send(answer);
    }
}

/// One step of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A prompt is read into a slot, beside `active` others.
    Prefill { slot: usize, active: usize },
    /// Each of `active` sequences takes one more token.
    Decode { active: usize },
    /// Memory has run out: all but `slots` of the slots are given up, of which `active` are in use.
    Shrink { slots: usize, active: usize },
}

/// Is shown each step before it is made. An error that it returns counts as the step's own: so tests let memory run out.
pub type Watch = Box<dyn FnMut(Step) -> Result<(), ModelError> + Send>;
