//! What a partition's journal knows, and what it learns.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use super::tally::Meter;
use super::{JobError, Step};
use crate::captioner::{Failure, Request};
use crate::checks::{Flag, Kind};
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
    /// It is asked, once for all rows that have the same, and what is answered goes into the journal.
    Journal { journal: Journal, under_way: Mutex<HashMap<CacheKey, Arc<OnceCell<Entry>>>> },
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
        Self::over(cache, Asking::Journal { journal, under_way: Mutex::default() }, meter)
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
            Asking::Journal { journal, .. } => journal.close().map(drop).map_err(JobError::from),
            Asking::Unkept | Asking::Never => Ok(()),
        }
    }

    /// The answer to a question of `step`, and whether it was known, or asked by another row. What is new, and lasts, is durable when
    /// this returns.
    pub(super) async fn get(
        &self,
        question: &Question<'_>,
        step: &Step,
        request: impl FnOnce() -> Request,
    ) -> Result<(Entry, bool), JobError> {
        let key = CacheKey::of(question);
        if let Some(entry) = self.look_up(&key) {
            return Ok((entry, true));
        }
        match &self.asking {
            Asking::Never => {
                let unanswered = Unanswered { kind: step.kind, key, request: request() };
                Err(JobError::Unanswered(Box::new(unanswered)))
            }
            Asking::Unkept => Ok((self.ask(step, request()).await?, false)),
            Asking::Journal { journal, under_way } => {
                let answer = Arc::clone(locked(under_way).entry(key).or_default());
                let mut was_known = true;
                let entry = answer.get_or_try_init(|| async {
                    // One who asked the same may have been answered since the look above.
                    if let Some(entry) = self.look_up(&key) {
                        return Ok(entry);
                    }
                    was_known = false;
                    let entry = self.ask(step, request()).await?;
                    if lasts(&entry) {
                        journal.append(&key, &entry).await?;
                        locked(&self.known).insert(key, entry.clone());
                    }
                    Ok::<_, JobError>(entry)
                });
                let entry = entry.await.cloned();
                locked(under_way).remove(&key);
                Ok((entry?, was_known))
            }
        }
    }

    /// The last answer for a caption passed its checks, or did not; see [`Meter::judged`].
    pub(super) fn judged(&self, kind: Kind, passes: bool, flags: &[Flag]) -> Result<(), JobError> {
        match self.asking {
            Asking::Journal { .. } => self.meter.judged(kind, passes, flags).map_err(JobError::Unavailable),
            Asking::Unkept | Asking::Never => Ok(()),
        }
    }

    /// What is known already. The lock is not held when this returns: it must not be while anyone is asked.
    fn look_up(&self, key: &CacheKey) -> Option<Entry> {
        locked(&self.known).get(key).filter(|entry| lasts(entry)).cloned()
    }

    async fn ask(&self, step: &Step, request: Request) -> Result<Entry, JobError> {
        match step.captioner.complete(request).await {
            Ok(completion) => {
                self.meter.answered(completion.usage, step.price);
                Ok(Entry::Completion(completion))
            }
            Err(Failure::Refused { reason, detail }) => Ok(Entry::Refused { reason: reason.to_owned(), detail }),
            Err(Failure::Unavailable(why)) => Err(JobError::Unavailable(why)),
            Err(Failure::Cancelled) => Err(JobError::Cancelled),
        }
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::{Answering, Job, Row, RowEnd, StepSettings};
    use super::*;
    use crate::captioner::{Captioner, Completion, Finish, Usage};

    /// Answers after a moment, and counts.
    struct Counting {
        asked: AtomicUsize,
        /// `None` where it refuses.
        finish: Option<Finish>,
    }

    #[async_trait::async_trait]
    impl Captioner for Counting {
        fn identity(&self) -> &'static str {
            "counting"
        }

        fn capacity(&self) -> usize {
            8
        }

        async fn complete(&self, _request: Request) -> Result<Completion, Failure> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            let refused = || Failure::Refused { reason: "refused_by_server", detail: "400".to_owned() };
            let finish = self.finish.ok_or_else(refused)?;
            let text = "Two dogs run along a beach in the evening sun.".to_owned();
            Ok(Completion { text, finish, usage: Usage::default() })
        }
    }

    /// A job of long captions that are asked of one who counts, and answers that go into a journal.
    fn counted(finish: Option<Finish>, folder: &Path) -> (Job, Answers, Arc<Counting>) {
        let captioner = Arc::new(Counting { asked: AtomicUsize::new(0), finish });
        let step = StepSettings::default().step(Kind::Long, &Answering::Nobody);
        let step = Step { captioner: Arc::clone(&captioner) as _, passes_on: false, ..step };
        let (journal, cache) = Journal::open(folder, "a").unwrap();
        (Job { long: Some(step), short: None }, Answers::new(journal, cache, Arc::default()), captioner)
    }

    fn row(alt: &str) -> Row {
        Row { alt: alt.to_owned(), ..Row::default() }
    }

    #[tokio::test]
    async fn rows_that_ask_the_same_at_the_same_time_pay_for_one_answer() {
        for finish in [Some(Finish::Stop), None] {
            let folder = tempfile::tempdir().unwrap();
            let (job, answers, captioner) = counted(finish, folder.path());
            let (same, other) = (row("dogs"), row("a beach"));
            let ends = tokio::join!(
                job.caption(&same, &answers),
                job.caption(&same, &answers),
                job.caption(&other, &answers),
                job.caption(&same, &answers),
            );
            assert_eq!(captioner.asked.load(Ordering::Relaxed), 2);
            for end in [ends.0, ends.1, ends.2, ends.3] {
                let end = end.unwrap();
                match &end {
                    RowEnd::Captioned(captioned) => assert!(finish.is_some() && captioned.long.is_some(), "{end:?}"),
                    RowEnd::Refused { reason, .. } => {
                        assert!(finish.is_none() && *reason == "refused_by_server", "{end:?}");
                    }
                }
            }
            // What does not last is asked again by whoever comes later.
            drop(job.caption(&same, &answers).await.unwrap());
            assert_eq!(captioner.asked.load(Ordering::Relaxed), if finish.is_none() { 3 } else { 2 });
        }
    }

    #[tokio::test]
    async fn a_job_of_which_no_caption_passes_its_checks_ends_before_it_puts_other_texts_in_their_place() {
        let folder = tempfile::tempdir().unwrap();
        let (job, answers, captioner) = counted(Some(Finish::Length), folder.path());
        for number in 0..127 {
            let end = job.caption(&row(&format!("dog {number}")), &answers).await.unwrap();
            assert!(matches!(end, RowEnd::Captioned(_)), "{end:?}");
        }
        let error = job.caption(&row("the last dog"), &answers).await.unwrap_err().to_string();
        assert!(error.contains("of 128 long captions not one") && error.contains("cut 128"), "{error}");
        assert_eq!(captioner.asked.load(Ordering::Relaxed), 3 * 128);
        // One that passes is enough to go on.
        answers.judged(Kind::Long, true, &[]).unwrap();
        job.caption(&row("one more dog"), &answers).await.unwrap();
    }
}
