//! Where tokens are made: slots that are filled, advanced together, and filled again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use models::ModelError;
use models::llama::{Cache, Draw, choose};
use tch::Tensor;
use tokio::sync::mpsc;

use super::model::Model;
use super::question::{Answer, Question, Step, Watch};
use super::status::Figures;
use crate::captioner::{Failure, Finish};

/// Questions for which there is no memory in the only slot, with no answer between, until that is not taken for theirs any more.
const STARVED: u32 = 32;
/// Answers for each slot without a want of memory, until more slots are tried again.
const CALM: usize = 64;

/// A question whose answer is being made. It lies in the slot of its place among those that run.
struct Sequence {
    question: Question,
    /// Tokens of the prompt.
    prompt: i64,
    answer: Vec<i64>,
}

/// What came of a prompt.
enum Prefilled {
    Started {
        prompt: i64,
        token: i64,
    },
    /// The prompt has so many tokens, and there is no room for them and an answer.
    TooLong {
        prompt: i64,
    },
}

/// The model and its slots. All of it is one thread's.
pub(super) struct Engine {
    model: Model,
    cache: Cache,
    slots: usize,
    /// Slots that are asked for.
    wanted: usize,
    capacity: i64,
    stop: Vec<i64>,
    queue: mpsc::Receiver<Question>,
    watch: Watch,
    pub(super) figures: Arc<Figures>,
    /// Questions refused for want of memory since the last answer.
    starved: u32,
    /// Answers since memory ran out last.
    calm: usize,
    running: Vec<Sequence>,
    /// Questions whose slots were given up: they begin anew, before all others.
    again: VecDeque<Question>,
}

/// What an engine is made of.
pub(super) struct Parts {
    pub(super) model: Model,
    pub(super) slots: usize,
    /// Tokens of a slot.
    pub(super) capacity: i64,
    /// Tokens that end an answer.
    pub(super) stop: Vec<i64>,
    pub(super) queue: mpsc::Receiver<Question>,
    pub(super) watch: Watch,
    pub(super) figures: Arc<Figures>,
}

impl Engine {
    /// Makes room for as many slots as there is memory for, at most `slots`.
    pub(super) fn new(parts: Parts) -> Result<Self, ModelError> {
        let Parts { model, slots, capacity, stop, queue, watch, figures } = parts;
        let wanted = slots;
        let (slots, cache) = room(&model, wanted, capacity)?;
        figures.change(|status| status.slots = slots);
        let (running, again) = (Vec::new(), VecDeque::new());
        let (starved, calm) = (0, 0);
        Ok(Self { model, cache, slots, wanted, capacity, stop, queue, watch, figures, starved, calm, running, again })
    }

    /// Answers until nobody can ask any more. An error is the end: nothing can be answered after it.
    pub(super) fn run(&mut self) -> Result<(), ModelError> {
        let _guard = tch::no_grad_guard();
        loop {
            self.drop_abandoned();
            // Slots are made anew where nothing is in them; until then none is filled.
            let is_calm = self.slots < self.wanted && self.calm >= CALM * self.slots;
            if is_calm && self.running.is_empty() {
                self.try_more_slots()?;
                continue;
            }
            while self.running.len() < self.slots && !is_calm {
                let Some(question) = self.next() else { break };
                self.start(question)?;
            }
            self.figures.change(|status| status.active = self.running.len());
            // The queue has ended then: where nothing runs, the next question is waited for.
            if self.running.is_empty() {
                return Ok(());
            }
            self.advance()?;
        }
    }

    /// The next question that somebody still waits for. Waits for one where nothing else is to be done; `None` is the end then.
    fn next(&mut self) -> Option<Question> {
        loop {
            let question = match self.again.pop_front() {
                Some(question) => Some(question),
                None if self.running.is_empty() => {
                    self.figures.change(|status| status.active = 0);
                    self.queue.blocking_recv()
                }
                None => self.queue.try_recv().ok(),
            }?;
            if !question.reply.is_closed() {
                return Some(question);
            }
        }
    }

    /// Reads a prompt into the first free slot, and makes the first token of its answer.
    fn start(&mut self, question: Question) -> Result<(), ModelError> {
        let start = Instant::now();
        match self.prefill(&question) {
            Ok(Prefilled::Started { prompt, token }) => {
                let slot = self.running.len();
                self.running.push(Sequence { question, prompt, answer: Vec::new() });
                self.figures.change(|status| status.prompt_tokens += prompt.unsigned_abs());
                self.take(slot, token);
                self.figures.worked(start, 1);
            }
            Ok(Prefilled::TooLong { prompt }) => {
                let most = question.most_tokens();
                let detail = format!("{prompt} tokens and an answer of {most} are more than {}", self.capacity);
                question.reply(Err(Failure::Refused { reason: "prompt_too_long", detail }));
            }
            Err(error) if error.is_out_of_memory() => self.give_up_slots(Some(question), error)?,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn prefill(&mut self, question: &Question) -> Result<Prefilled, ModelError> {
        let Self { model, cache, watch, running, capacity, .. } = self;
        let slot = running.len();
        ModelError::attempt("reading a prompt", || {
            watch(Step::Prefill { slot, active: slot })?;
            let embeddings = model.embed(question)?;
            let prompt = embeddings.size().first().copied().unwrap_or(0);
            let most = i64::try_from(question.most_tokens()).unwrap_or(i64::MAX);
            if prompt.saturating_add(most) > *capacity {
                return Ok(Prefilled::TooLong { prompt });
            }
            let logits = model.language().prefill(cache, slot as i64, &embeddings.unsqueeze(0), &[prompt]);
            let token = choose(&logits, &[question.draw(0)])?.first().copied().unwrap_or(0);
            Ok(Prefilled::Started { prompt, token })
        })
    }

    /// Makes one more token of every answer.
    fn advance(&mut self) -> Result<(), ModelError> {
        let start = Instant::now();
        let Self { model, cache, watch, running, .. } = self;
        let tokens: Vec<i64> = running.iter().filter_map(|sequence| sequence.answer.last().copied()).collect();
        let draws: Vec<Draw> = running.iter().map(|sequence| sequence.question.draw(sequence.answer.len())).collect();
        let chosen = ModelError::attempt("making the next tokens", || {
            watch(Step::Decode { active: tokens.len() })?;
            let logits: Tensor = model.language().decode(cache, &tokens)?;
            choose(&logits, &draws)
        });
        match chosen {
            Ok(chosen) => {
                let made = chosen.len() as u64;
                // From the last slot down, so that the sequence that moves into a gap has its token.
                for (slot, token) in chosen.into_iter().enumerate().rev() {
                    self.take(slot, token);
                }
                self.figures.worked(start, made);
                Ok(())
            }
            Err(error) if error.is_out_of_memory() => self.give_up_slots(None, error),
            Err(error) => Err(error),
        }
    }

    /// Adds a token to the answer in `slot`, and replies when it was the last.
    fn take(&mut self, slot: usize, token: i64) {
        let Some(sequence) = self.running.get_mut(slot) else { return };
        sequence.answer.push(token);
        let is_stop = self.stop.contains(&token);
        if !is_stop && sequence.answer.len() < sequence.question.most_tokens() {
            return;
        }
        let Some(Sequence { question, prompt, mut answer }) = self.remove(slot) else { return };
        let completion_tokens = answer.len() as u64;
        answer.truncate(answer.len() - usize::from(is_stop));
        let finish = if is_stop { Finish::Stop } else { Finish::Length };
        (self.starved, self.calm) = (0, self.calm + 1);
        self.figures.answered(question.picture.is_some(), self.running.len());
        question.reply(Ok(Answer { ids: answer, finish, prompt_tokens: prompt.unsigned_abs(), completion_tokens }));
    }

    /// Frees `slot`; the last sequence moves into it.
    fn remove(&mut self, slot: usize) -> Option<Sequence> {
        if slot >= self.running.len() {
            return None;
        }
        let sequence = self.running.swap_remove(slot);
        self.cache.replace(slot, self.running.len());
        Some(sequence)
    }

    /// Frees the slots of those that nobody waits for any more.
    fn drop_abandoned(&mut self) {
        for slot in (0..self.running.len()).rev() {
            if self.running.get(slot).is_some_and(|sequence| sequence.question.reply.is_closed()) {
                drop(self.remove(slot));
            }
        }
    }

    /// Memory ran out, at the prompt of `failed` or in a step of all: half of the slots are given up, and their questions, and
    /// `failed`, begin anew later. With one slot, the question is to blame, unless there is no memory for any.
    fn give_up_slots(&mut self, failed: Option<Question>, error: ModelError) -> Result<(), ModelError> {
        self.figures.change(|status| status.out_of_memory += 1);
        self.calm = 0;
        if self.slots <= 1 {
            self.starved += 1;
            if self.starved >= STARVED {
                return Err(error);
            }
            if let Some(question) = failed.or_else(|| self.remove(0).map(|sequence| sequence.question)) {
                let detail = said(&error);
                question.reply(Err(Failure::Refused { reason: "out_of_memory", detail }));
            }
            return Ok(());
        }
        self.slots /= 2;
        let given_up = self.running.split_off(self.slots.min(self.running.len()));
        self.begin_anew(given_up.into_iter().map(|sequence| sequence.question).chain(failed).collect());
        // The last token of each is not in the cache yet.
        let lengths = self.running.iter().map(|sequence| sequence.prompt + sequence.answer.len() as i64 - 1);
        let lengths: Vec<i64> = lengths.collect();
        let Self { cache, watch, slots, .. } = &mut *self;
        let shrunk = ModelError::attempt("giving up slots", || {
            watch(Step::Shrink { slots: *slots, active: lengths.len() })?;
            cache.shrink(*slots as i64, &lengths)
        });
        match shrunk {
            Ok(()) => {}
            Err(error) if error.is_out_of_memory() => {
                let running = std::mem::take(&mut self.running);
                self.begin_anew(running.into_iter().map(|sequence| sequence.question).collect());
                // The old one first: there is no memory for both.
                self.cache = room(&self.model, 0, 0)?.1;
                (self.slots, self.cache) = room(&self.model, self.slots, self.capacity)?;
            }
            Err(error) => return Err(error),
        }
        let slots = self.slots;
        self.figures.change(|status| status.slots = slots);
        Ok(())
    }

    /// Twice as many slots, if there is memory for them now. Nothing may be running.
    fn try_more_slots(&mut self) -> Result<(), ModelError> {
        self.calm = 0;
        // The old one first: there need not be memory for both.
        self.cache = room(&self.model, 0, 0)?.1;
        let more = (2 * self.slots).min(self.wanted);
        (self.slots, self.cache) = room(&self.model, more, self.capacity)?;
        let slots = self.slots;
        self.figures.change(|status| status.slots = slots);
        Ok(())
    }

    /// Puts questions before all others that wait, in their order.
    fn begin_anew(&mut self, questions: Vec<Question>) {
        for question in questions.into_iter().rev() {
            self.again.push_front(question);
        }
    }
}

/// A cache with as many slots as there is memory for, at most `slots`.
fn room(model: &Model, mut slots: usize, capacity: i64) -> Result<(usize, Cache), ModelError> {
    let language = model.language();
    loop {
        match Cache::new(language.config(), slots as i64, capacity, language.device(), language.kind()) {
            Err(error) if slots > 1 && error.is_out_of_memory() => slots /= 2,
            made => return Ok((slots, made?)),
        }
    }
}

/// An error and its causes on one line.
pub(super) fn said(error: &ModelError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
