//! One of the two captions of a row.

use std::sync::Arc;

use super::answers::Answers;
use super::settings::Price;
use super::{Image, JobError, Texts};
use crate::captioner::{Captioner, Completion, Finish, Request, Sampling, Usage};
use crate::checks::{Checks, Context, Flag, Instructions, Kind, Policy};
use crate::journal::{Entry, Question};
use crate::nobody::NO_CAPTION;
use crate::prompt::Prompt;
use captions::{Mended, clean};

/// Tokens of a second try are drawn with at least this temperature: the likeliest ones would be the same again.
const RETRY_TEMPERATURE: f64 = 0.7;

/// How one caption is made.
pub struct Step {
    pub kind: Kind,
    pub captioner: Arc<dyn Captioner>,
    pub prompt: Prompt,
    pub instructions: Instructions,
    pub system: Option<String>,
    pub sampling: Sampling,
    /// How often a model is asked for a caption that passes the checks.
    pub attempts: u32,
    pub checks: Checks,
    /// How images are shown, as it counts for the answer; `None` where none is.
    pub image_mode: Option<String>,
    /// Whether nobody is asked, and what would be fallen back to is the caption.
    pub passes_on: bool,
    pub price: Option<Price>,
}

/// A caption that was taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Caption {
    pub text: String,
    pub source: Source,
    /// What was found in the last answer, whatever was done about it; sorted.
    pub flags: Vec<Flag>,
    pub mended: Vec<Mended>,
    /// Answers that were looked at.
    pub attempts: u32,
    /// Of all of them.
    pub usage: Usage,
    /// Answers of them that were in the journal already.
    pub known: u32,
}

/// Where a caption comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Model,
    /// It was there already.
    Ready,
    /// No answer was good enough: the alt text, or the beginning of the long caption.
    FallBack,
    /// Nobody was asked: the same as when falling back.
    PassedOn,
    /// It is no caption: its row is refused.
    Refused,
}

/// A row that cannot be captioned.
pub(super) struct Refusal {
    /// A word to count by.
    pub(super) reason: &'static str,
    pub(super) detail: String,
    /// What was asked for all the same.
    pub(super) caption: Caption,
}

impl Step {
    /// Makes the caption. `value` gives the columns that the prompt names.
    pub(super) async fn caption(
        &self,
        image: &Image,
        texts: &Texts<'_>,
        value: impl Fn(&str) -> Option<String>,
        answers: &Answers,
    ) -> Result<Result<Caption, Refusal>, JobError> {
        let mut ready_flagged = None;
        if let Some(ready) = texts.ready {
            let caption = Caption { source: Source::Ready, ..self.judge(ready, Finish::Stop, texts.alt) };
            match self.checks.policies.decide(&caption.flags) {
                Policy::Accept => return Ok(Ok(caption)),
                Policy::Quarantine => return Ok(Err(refusal(caption))),
                // A model may do better.
                Policy::Retry | Policy::FallBack => ready_flagged = Some(caption),
            }
        }
        if self.passes_on {
            let caption = passed_on(texts.fall_back.trim());
            if caption.source == Source::Refused {
                let detail = "no model is named, and there is no text to pass on".to_owned();
                return Ok(Err(Refusal { reason: NO_CAPTION, detail, caption }));
            }
            return Ok(Ok(caption));
        }
        let prompt = self.render(value);
        let (mut usage, mut known) = (Usage::default(), 0);
        let mut last = None;
        for attempt in 0..self.attempts.max(1) {
            let (entry, was_known) = self.ask(attempt, image, &prompt, answers).await?;
            known += u32::from(was_known);
            let completion = match entry {
                Entry::Completion(completion) => completion,
                Entry::Refused { reason, detail } => {
                    // There is no model: what was there is all that there is.
                    if let Some(ready) = ready_flagged.filter(|_| reason == NO_CAPTION) {
                        if self.checks.policies.decide(&ready.flags) == Policy::Retry {
                            return Ok(Err(refusal(ready)));
                        }
                        last = Some(ready);
                        break;
                    }
                    let nothing = self.judge("", Finish::Stop, texts.alt);
                    let caption = Caption {
                        source: Source::Refused,
                        flags: Vec::new(),
                        attempts: attempt,
                        usage,
                        known,
                        ..nothing
                    };
                    return Ok(Err(Refusal { reason: word(&reason), detail, caption }));
                }
            };
            usage += completion.usage;
            let mut caption = self.judge(&completion.text, completion.finish, texts.alt);
            (caption.attempts, caption.usage, caption.known) = (attempt + 1, usage, known);
            match self.checks.policies.decide(&caption.flags) {
                Policy::Accept => {
                    answers.judged(self.kind, true, &caption)?;
                    return Ok(Ok(caption));
                }
                Policy::Retry => last = Some(caption),
                Policy::FallBack | Policy::Quarantine => {
                    last = Some(caption);
                    break;
                }
            }
        }
        // There is one: of the last attempt, or what was there before.
        let Some(caption) = last else { return Err(JobError::Lost) };
        if caption.source == Source::Model {
            answers.judged(self.kind, false, &caption)?;
        }
        if self.checks.policies.decide_finally(&caption.flags) == Policy::Quarantine
            || texts.fall_back.trim().is_empty()
        {
            return Ok(Err(refusal(caption)));
        }
        Ok(Ok(Caption { text: texts.fall_back.trim().to_owned(), source: Source::FallBack, ..caption }))
    }

    fn render(&self, value: impl Fn(&str) -> Option<String>) -> String {
        let names = self.prompt.columns();
        let values: Vec<(&str, String)> = names.into_iter().filter_map(|name| Some((name, value(name)?))).collect();
        self.prompt.render(|name| values.iter().find(|(of, _)| *of == name).map(|(_, value)| value.as_str()))
    }

    /// The answer to one attempt's question, and whether it was known.
    async fn ask(
        &self,
        attempt: u32,
        image: &Image,
        prompt: &str,
        answers: &Answers,
    ) -> Result<(Entry, bool), JobError> {
        let mut sampling = self.sampling;
        if attempt > 0 {
            sampling.temperature = sampling.temperature.max(RETRY_TEMPERATURE);
            sampling.seed = sampling.seed.wrapping_add(u64::from(attempt));
        }
        let question = Question {
            image: self.image_mode.as_ref().map(|_| image.digest),
            system: self.system.as_deref(),
            prompt,
            identity: self.captioner.identity(),
            image_mode: self.image_mode.as_deref().unwrap_or_default(),
            sampling,
        };
        let request = || Request {
            system: self.system.clone(),
            prompt: prompt.to_owned(),
            image: self.image_mode.as_ref().map(|_| Arc::clone(&image.bytes)),
            sampling,
        };
        answers.get(&question, self, request).await
    }

    fn judge(&self, text: &str, finish: Finish, alt: &str) -> Caption {
        let cleaned = clean(text);
        let context = Context { kind: self.kind, finish, alt, instructions: &self.instructions };
        let flags = self.checks.judge(cleaned.text, &context);
        Caption {
            text: cleaned.text.to_owned(),
            source: Source::Model,
            flags,
            mended: cleaned.mended,
            attempts: 0,
            usage: Usage::default(),
            known: 0,
        }
    }

    /// What an answer means, apart from any row: for trying prompts.
    pub fn look_at(&self, completion: &Completion, alt: &str) -> (String, Vec<Flag>, Policy) {
        let caption = self.judge(&completion.text, completion.finish, alt);
        let policy = self.checks.policies.decide(&caption.flags);
        (caption.text, caption.flags, policy)
    }
}

/// What was there takes the place of a caption, if it says anything.
fn passed_on(text: &str) -> Caption {
    Caption {
        text: text.to_owned(),
        source: if text.is_empty() { Source::Refused } else { Source::PassedOn },
        flags: Vec::new(),
        mended: Vec::new(),
        attempts: 0,
        usage: Usage::default(),
        known: 0,
    }
}

/// A row is counted by the first of its caption's flags.
fn refusal(caption: Caption) -> Refusal {
    let names: Vec<&str> = caption.flags.iter().map(|flag| flag.name()).collect();
    let shown: String = caption.text.chars().take(300).collect();
    Refusal {
        reason: names.first().copied().unwrap_or("empty"),
        detail: format!("{}: {shown:?}", names.join(", ")),
        caption: Caption { source: Source::Refused, ..caption },
    }
}

/// The word itself, if it is one of those that rows are counted by.
fn word(reason: &str) -> &'static str {
    const WORDS: [&str; 13] = [
        "bad_answer",
        "bad_image",
        "content_filter",
        "empty_answer",
        "no_answer",
        NO_CAPTION,
        "out_of_memory",
        "poisoned",
        "prompt_too_long",
        "refused_by_server",
        "server_busy",
        "server_errors",
        "timed_out",
    ];
    WORDS.into_iter().find(|word| *word == reason).unwrap_or("refused_by_server")
}

#[cfg(test)]
mod tests {
    use super::super::{Answering, Job, Row, RowEnd, StepSettings};
    use super::*;

    async fn of_ready(settings: serde_json::Value, ready: Option<&str>) -> RowEnd {
        let settings: StepSettings = serde_json::from_value(settings).unwrap();
        let job = Job { long: Some(settings.step(Kind::Long, &Answering::Nobody)), short: None };
        let row = Row { alt: "two dogs".to_owned(), ready: (ready.map(str::to_owned), None), ..Row::default() };
        job.caption(&row, &Answers::unkept(Arc::default())).await.unwrap()
    }

    #[tokio::test]
    async fn where_there_is_no_model_a_ready_caption_is_refused_by_the_check_that_it_failed() {
        let refused = "I'm sorry, but I cannot help with that.";
        let end = of_ready(serde_json::json!({}), Some(refused)).await;
        let RowEnd::Refused { reason, detail, .. } = end else { panic!("{end:?}") };
        assert_eq!(reason, "refusal");
        assert!(detail.contains("sorry"), "{detail}");
        let end =
            of_ready(serde_json::json!({ "checks": { "policies": { "refusal": "fall_back" } } }), Some(refused)).await;
        let RowEnd::Captioned(captioned) = end else { panic!("{end:?}") };
        let long = captioned.long.unwrap();
        assert_eq!((long.text.as_str(), long.source, long.flags), ("two dogs", Source::FallBack, vec![Flag::Refusal]));
        let end = of_ready(serde_json::json!({}), None).await;
        assert!(matches!(&end, RowEnd::Refused { reason: "no_caption", .. }), "{end:?}");
    }
}
