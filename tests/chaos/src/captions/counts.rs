//! What a caption server was asked, and what it answered.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::question::Identity;

/// What a caption server has done since it was started; stopping it does not change it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// By question: those of chat completions that could be understood.
    pub questions: BTreeMap<Identity, Asked>,
    /// Chat completions that were asked for, understood or not.
    pub requests: u64,
    /// Captions that were sent, or about to be when the client went away.
    pub captions: u64,
    /// Requests for `/health` and `/v1/models`.
    pub probes: u64,
    pub most_at_a_time: usize,
    /// Requests that came while there were as many as [`super::Options::limit`].
    pub over_limit: u64,
    /// Answers 500 because of [`super::POISON`].
    pub poisoned: u64,
    pub connections: u64,
}

/// About one question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub times: u32,
    /// Captions that were paid for, cut and empty ones included.
    pub answered: u32,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    pub(crate) asked: Asked,
    /// Those that were answered in a manner of their own: that the server is broken is not one.
    pub(crate) turns: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Counts(Mutex<Inner>);

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) questions: HashMap<Identity, Known>,
    /// All but its questions.
    pub(crate) served: Served,
    now: usize,
}

impl Counts {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request, until the guard is dropped.
    pub(crate) fn enter(&self, limit: usize) -> Inside<'_> {
        let mut inner = self.lock();
        inner.served.requests += 1;
        inner.served.over_limit += u64::from(inner.now >= limit);
        inner.now += 1;
        inner.served.most_at_a_time = inner.served.most_at_a_time.max(inner.now);
        Inside(self)
    }

    pub(crate) fn served(&self) -> Served {
        let inner = self.lock();
        let questions = inner.questions.iter().map(|(identity, known)| (*identity, known.asked)).collect();
        Served { questions, ..inner.served.clone() }
    }
}

pub(crate) struct Inside<'a>(&'a Counts);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.now = inner.now.saturating_sub(1);
    }
}
