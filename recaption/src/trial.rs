//! Prompts tried on single pictures: every answer is noted, with its time and what it is worth, and none is kept.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;

use crate::captioner::{Captioner, Completion, Failure, Request};
use crate::checks::{Flag, Policy};
use crate::job::{Answers, Job, JobError, Row, RowEnd, Step};

/// A job that is tried.
pub struct Trial {
    job: Job,
    long: Option<Arc<Noted>>,
    short: Option<Arc<Noted>>,
}

/// What came of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    pub end: RowEnd,
    pub seconds: f64,
    /// Answers to the question for the long caption, in their order.
    pub long: Vec<Answer>,
    pub short: Vec<Answer>,
}

/// One answer of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// As it came.
    pub completion: Completion,
    /// From the question to its end; waiting for a server's turn, and tries that failed, are in it.
    pub seconds: f64,
    pub flags: Vec<Flag>,
    /// What is done about its flags, as long as there are attempts.
    pub policy: Policy,
}

impl Trial {
    pub fn new(mut job: Job) -> Self {
        let noted = |step: &mut Step| {
            let noted = Arc::new(Noted { captioner: Arc::clone(&step.captioner), answers: Mutex::default() });
            step.captioner = Arc::clone(&noted) as _;
            noted
        };
        let (long, short) = (job.long.as_mut().map(noted), job.short.as_mut().map(noted));
        Self { job, long, short }
    }

    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Captions one row, as a run would. One at a time, so that times are those of single questions.
    pub async fn of(&mut self, row: &Row) -> Result<Tried, JobError> {
        let began = Instant::now();
        let end = self.job.caption(row, &Answers::unkept(Arc::default())).await;
        let seconds = began.elapsed().as_secs_f64();
        let answers = |step: &Option<Step>, noted: &Option<Arc<Noted>>| match (step, noted) {
            (Some(step), Some(noted)) => noted.judged(step, &row.alt),
            _ => Vec::new(),
        };
        let (long, short) = (answers(&self.job.long, &self.long), answers(&self.job.short, &self.short));
        Ok(Tried { end: end?, seconds, long, short })
    }
}

/// A captioner whose answers are noted.
struct Noted {
    captioner: Arc<dyn Captioner>,
    answers: Mutex<Vec<(Completion, f64)>>,
}

impl Noted {
    /// What was noted since this was last asked for.
    fn judged(&self, step: &Step, alt: &str) -> Vec<Answer> {
        let noted = std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner));
        let judged = noted.into_iter().map(|(completion, seconds)| {
            let (_text, flags, policy) = step.look_at(&completion, alt);
            Answer { completion, seconds, flags, policy }
        });
        judged.collect()
    }
}

#[async_trait]
impl Captioner for Noted {
    fn identity(&self) -> &str {
        self.captioner.identity()
    }

    fn capacity(&self) -> usize {
        self.captioner.capacity()
    }

    async fn complete(&self, request: Request) -> Result<Completion, Failure> {
        let began = Instant::now();
        let completion = self.captioner.complete(request).await?;
        let answer = (completion.clone(), began.elapsed().as_secs_f64());
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
        Ok(completion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captioner::{Finish, Usage};
    use crate::checks::Kind;
    use crate::job::{Answering, Known, Source, StepSettings};
    use crate::journal::{Cache, Entry};

    /// Refuses at first.
    struct Reluctant(Mutex<u32>);

    #[async_trait]
    impl Captioner for Reluctant {
        fn identity(&self) -> &'static str {
            "reluctant"
        }

        fn capacity(&self) -> usize {
            1
        }

        async fn complete(&self, request: Request) -> Result<Completion, Failure> {
            let mut asked = self.0.lock().unwrap();
            *asked += 1;
            let text =
                if *asked == 1 { "I'm sorry, but I cannot help with that." } else { "Two dogs run along a beach." };
            let usage = Usage { prompt_tokens: request.prompt.len() as u64, completion_tokens: 7, cached_tokens: 0 };
            Ok(Completion { text: text.to_owned(), finish: Finish::Stop, usage })
        }
    }

    fn job() -> Job {
        let step = |kind| {
            let captioner = Arc::new(Reluctant(Mutex::new(0)));
            Step { captioner, ..StepSettings::default().step(kind, &Answering::Nobody) }
        };
        Job { long: Some(step(Kind::Long)), short: Some(step(Kind::Short)) }
    }

    #[tokio::test]
    async fn every_answer_is_noted_with_its_worth() {
        let mut trial = Trial::new(job());
        let row = Row { image: Arc::from(*b"image"), ..Row::default() };
        let tried = trial.of(&row).await.unwrap();
        for answers in [&tried.long, &tried.short] {
            let [first, second] = answers.as_slice() else { panic!("{answers:?}") };
            assert_eq!((first.policy, first.flags.contains(&Flag::Refusal)), (Policy::Retry, true));
            assert_eq!((second.policy, second.flags.as_slice()), (Policy::Accept, [].as_slice()));
        }
        let RowEnd::Captioned(captioned) = tried.end else { panic!("{:?}", tried.end) };
        let long = captioned.long.unwrap();
        assert_eq!((long.text.as_str(), long.source, long.attempts), ("Two dogs run along a beach.", Source::Model, 2));
        // Nothing is kept: the same row is asked about again.
        assert_eq!(trial.of(&row).await.unwrap().long.len(), 1);
    }

    /// The way of batches: question after question, each answered in between.
    #[tokio::test]
    async fn a_row_asks_one_question_after_the_other() {
        let (job, mut cache) = (job(), Cache::default());
        let row = Row { image: Arc::from(*b"image"), alt: "dogs".to_owned(), ..Row::default() };
        let mut asked = Vec::new();
        while let Some(question) = job.next_question(&row, &Known::new(cache.clone())).await.unwrap() {
            let step = if question.kind == Kind::Long { &job.long } else { &job.short };
            let captioner = &step.as_ref().unwrap().captioner;
            asked.push((question.kind, question.request.sampling.seed, question.request.image.is_some()));
            cache.insert(question.key, Entry::Completion(captioner.complete(question.request).await.unwrap()));
        }
        let expected = [(Kind::Long, 0, true), (Kind::Long, 1, true), (Kind::Short, 0, false), (Kind::Short, 1, false)];
        assert_eq!(asked, expected);
        // It was the job's own questions that were asked.
        let end = job.caption(&row, &Known::new(cache).0).await.unwrap();
        assert!(matches!(end, RowEnd::Captioned(_)), "{end:?}");
    }
}
