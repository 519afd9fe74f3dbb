//! What a partition's journal knows, and what it learns.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use super::tally::Meter;
use super::{Caption, JobError, Step};
use crate::captioner::{Failure, Request};
use crate::checks::Kind;
use crate::journal::{Cache, CacheKey, Entry, Journal, Others, Question};

/// A partition's answers: those of earlier attempts, and those of this one.
pub struct Answers {
    known: Mutex<HashMap<CacheKey, Entry>>,
    /// Those of other partitions, which may have had its rows.
    others: Option<Others>,
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

    /// As [`Answers::with_others`].
    #[must_use]
    pub fn with_others(self, others: Option<Others>) -> Self {
        Self(self.0.with_others(others))
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
        Self { known: Mutex::new(cache.entries), others: None, asking, meter }
    }

    /// With what other partitions have answered: it is not asked again either, and goes into this partition's journal.
    #[must_use]
    pub fn with_others(self, others: Option<Others>) -> Self {
        Self { others, ..self }
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
                if let Some(entry) = self.look_elsewhere(&key).await? {
                    locked(&self.known).insert(key, entry.clone());
                    return Ok((entry, true));
                }
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
                    let found = self.look_elsewhere(&key).await?;
                    was_known = found.is_some();
                    let entry = match found {
                        Some(entry) => entry,
                        None => self.ask(step, request()).await?,
                    };
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
    pub(super) fn judged(&self, kind: Kind, passes: bool, caption: &Caption) -> Result<(), JobError> {
        match self.asking {
            Asking::Journal { .. } => self.meter.judged(kind, passes, caption).map_err(JobError::Unavailable),
            Asking::Unkept | Asking::Never => Ok(()),
        }
    }

    /// What is known already. The lock is not held when this returns: it must not be while anyone is asked.
    fn look_up(&self, key: &CacheKey) -> Option<Entry> {
        locked(&self.known).get(key).filter(|entry| lasts(entry)).cloned()
    }

    /// What other partitions know.
    async fn look_elsewhere(&self, key: &CacheKey) -> Result<Option<Entry>, JobError> {
        let Some(others) = &self.others else { return Ok(None) };
        Ok(others.find(key).await?.filter(lasts))
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

    use shards::storage::Workdir;

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

    /// A job of long captions that are asked of one who counts, and answers that go into the journal of an attempt.
    fn counted(finish: Option<Finish>, folder: &Path, attempt: &str) -> (Job, Answers, Arc<Counting>) {
        let captioner = Arc::new(Counting { asked: AtomicUsize::new(0), finish });
        let step = StepSettings::default().step(Kind::Long, &Answering::Nobody);
        let step = Step { captioner: Arc::clone(&captioner) as _, passes_on: false, ..step };
        let (journal, cache) = Journal::open(folder, attempt).unwrap();
        (Job { long: Some(step), short: None }, Answers::new(journal, cache, Arc::default()), captioner)
    }

    fn row(alt: &str) -> Row {
        Row { alt: alt.to_owned(), ..Row::default() }
    }

    #[tokio::test]
    async fn rows_that_ask_the_same_at_the_same_time_pay_for_one_answer() {
        for finish in [Some(Finish::Stop), None] {
            let folder = tempfile::tempdir().unwrap();
            let (job, answers, captioner) = counted(finish, folder.path(), "a");
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
        let (job, answers, captioner) = counted(Some(Finish::Length), folder.path(), "a");
        for number in 0..127 {
            let end = job.caption(&row(&format!("dog {number}")), &answers).await.unwrap();
            assert!(matches!(end, RowEnd::Captioned(_)), "{end:?}");
        }
        let error = job.caption(&row("the last dog"), &answers).await.unwrap_err().to_string();
        assert!(error.contains("of 128 long captions not one") && error.contains("cut 128"), "{error}");
        assert_eq!(captioner.asked.load(Ordering::Relaxed), 3 * 128);
        // One that has passed is enough to go on.
        answers.meter.passed_before(Kind::Long);
        job.caption(&row("one more dog"), &answers).await.unwrap();
    }

    #[tokio::test]
    async fn what_another_partition_has_answered_is_not_asked_and_is_known_here_from_then_on() {
        let place = tempfile::tempdir().unwrap();
        let journals = |partition: &str| place.path().join("captions").join(partition);
        let (job, answers, _) = counted(Some(Finish::Stop), &journals("part-00000"), "a");
        job.caption(&row("dogs"), &answers).await.unwrap();
        answers.close().unwrap();

        let before = vec!["part-00000".to_owned()];
        let others = Others::new(&Workdir::local(place.path()), "captions".to_owned(), before);
        let (job, answers, captioner) = counted(Some(Finish::Stop), &journals("part-00001"), "b");
        // Who only looks finds it, too.
        let known = Known::new(Cache::default()).with_others(Some(others.clone()));
        assert!(job.next_question(&row("dogs"), &known).await.unwrap().is_none());
        assert!(job.next_question(&row("cats"), &known).await.unwrap().is_some());

        let answers = answers.with_others(Some(others));
        for alt in ["dogs", "cats", "dogs"] {
            let end = job.caption(&row(alt), &answers).await.unwrap();
            let RowEnd::Captioned(captioned) = end else { panic!("{end:?}") };
            assert_eq!(captioned.long.unwrap().known, u32::from(alt == "dogs"));
        }
        assert_eq!(captioner.asked.load(Ordering::Relaxed), 1);
        answers.close().unwrap();
        let (job, answers, captioner) = counted(Some(Finish::Stop), &journals("part-00001"), "c");
        job.caption(&row("dogs"), &answers).await.unwrap();
        assert_eq!(captioner.asked.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn an_answer_that_fails_its_checks_counts_once_and_not_again_when_it_is_met_again() {
        let folder = tempfile::tempdir().unwrap();
        let (job, answers, captioner) = counted(Some(Finish::Length), folder.path(), "a");
        for _ in 0..130 {
            job.caption(&row("the same dog"), &answers).await.unwrap();
        }
        assert_eq!(captioner.asked.load(Ordering::Relaxed), 3);
        for number in 0..70 {
            job.caption(&row(&format!("dog {number}")), &answers).await.unwrap();
        }
        answers.close().unwrap();
        // Of the next attempt these are known, and there are fewer others than it takes.
        let (job, answers, captioner) = counted(Some(Finish::Length), folder.path(), "b");
        for number in 0..140 {
            job.caption(&row(&format!("dog {number}")), &answers).await.unwrap();
        }
        assert_eq!(captioner.asked.load(Ordering::Relaxed), 3 * 70);
    }
}
