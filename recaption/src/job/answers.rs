//! What a partition's journal knows, and what it learns.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::tally::Meter;
use super::{JobError, Step};
use crate::captioner::{Failure, Request};
use crate::checks::Kind;
use crate::journal::{Cache, CacheKey, Entry, Journal, Question};

/// A partition's answers: those of earlier attempts, and those of this one.
pub struct Answers {
    known: Mutex<HashMap<CacheKey, Entry>>,
    asking: Asking,
    /// Who counts what is asked.
    meter: Arc<Meter>,
}

/// What becomes of a question whose answer is not known.
enum Asking {
    /// It is asked, and what is answered goes into the journal.
    Journal(Journal),
    /// It is asked, and what is answered is kept nowhere.
    Unkept,
    /// It is not asked: see [`JobError::Unanswered`].
    Never,
}

/// Refusals for which the row itself is to blame, whoever is asked. Others may come from a server, an account or a limit that is mended by
/// the time that the row comes up again: it is asked again then, and they are not kept.
const OWN_FAULTS: [&str; 3] = ["bad_image", "content_filter", "poisoned"];

fn lasts(entry: &Entry) -> bool {
    match entry {
        Entry::Completion(_) => true,
        Entry::Refused { reason, .. } => OWN_FAULTS.contains(&reason.as_str()),
    }
}

/// A question that nobody has answered yet.
#[derive(Clone, Debug)]
pub struct Unanswered {
    /// Of which of the two captions it is.
    pub kind: Kind,
    /// What its answer will be known by.
    pub key: CacheKey,
    pub request: Request,
}

/// Answers for looking at: whoever has only these asks nobody. See [`super::Job::next_question`].
pub struct Known(pub(crate) Answers);

impl Known {
    /// Over what a journal holds.
    pub fn new(cache: Cache) -> Self {
        Self(Answers::over(cache, Asking::Never, Arc::default()))
    }
}

impl Answers {
    /// Over an open journal.
    pub fn new(journal: Journal, cache: Cache, meter: Arc<Meter>) -> Self {
        Self::over(cache, Asking::Journal(journal), meter)
    }

    /// For trying: everything is asked, and nothing is kept.
    pub fn unkept(meter: Arc<Meter>) -> Self {
        Self::over(Cache::default(), Asking::Unkept, meter)
    }

    fn over(cache: Cache, asking: Asking, meter: Arc<Meter>) -> Self {
        Self { known: Mutex::new(cache.entries), asking, meter }
    }

    /// Makes everything durable. Blocks on the disk.
    pub fn close(self) -> Result<(), JobError> {
        match self.asking {
            Asking::Journal(journal) => journal.close().map(drop).map_err(JobError::from),
            Asking::Unkept | Asking::Never => Ok(()),
        }
    }

    /// The answer to a question of `step`, and whether it was known. What is new, and lasts, is durable when this returns.
    pub(super) async fn get(
        &self,
        question: &Question<'_>,
        step: &Step,
        request: impl FnOnce() -> Request,
    ) -> Result<(Entry, bool), JobError> {
        let key = CacheKey::of(question);
        // Looked up in a statement of its own: the lock is not held while anyone is asked.
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(entry) = known.filter(lasts) {
            return Ok((entry, true));
        }
        if let Asking::Never = self.asking {
            let unanswered = Unanswered { kind: step.kind, key, request: request() };
            return Err(JobError::Unanswered(Box::new(unanswered)));
        }
        let entry = match step.captioner.complete(request()).await {
            Ok(completion) => {
                self.meter.answered(completion.usage, step.price);
                Entry::Completion(completion)
            }
            Err(Failure::Refused { reason, detail }) => Entry::Refused { reason: reason.to_owned(), detail },
            Err(Failure::Unavailable(why)) => return Err(JobError::Unavailable(why)),
            Err(Failure::Cancelled) => return Err(JobError::Cancelled),
        };
        if let Asking::Journal(journal) = &self.asking
            && lasts(&entry)
        {
            journal.append(&key, &entry).await?;
            self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key, entry.clone());
        }
        Ok((entry, false))
    }
}
