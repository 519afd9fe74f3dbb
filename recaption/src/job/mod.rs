//! The captions of rows: a long one from the image, a short one from the long one, each asked for, mended, checked, and asked
//! for again where that may help. What was answered once is never asked again.
//!
//! - [`settings`]: how one of the two captions is made, as users write it; [`step`]: the making.
//! - [`answers`]: what a partition's journal knows, and what it learns.
//! - [`rows`]: all rows of a partition, as many at a time as keep the captioners busy.
//! - [`tally`]: what came of them, and what it cost.

pub mod answers;
pub mod rows;
pub mod settings;
pub mod step;
pub mod tally;

use std::collections::BTreeMap;
use std::sync::Arc;

use shards::digest::Digest;

pub use answers::{Answers, Known, Unanswered};
pub use rows::{Watch, run};
pub use settings::{Answering, StepSettings};
use step::Refusal;
pub use step::{Caption, Source, Step};
pub use tally::{Meter, StepTally, Tally};

use crate::checks::sentences::short_of;
use crate::journal::JournalError;
use crate::prompt::{ALT, CAPTION};

/// What is to be made of every row. At least one of the two steps is there.
pub struct Job {
    pub long: Option<Step>,
    pub short: Option<Step>,
}

/// A row that wants captions.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// As stored.
    pub image: Arc<[u8]>,
    /// Its original caption; may be empty.
    pub alt: String,
    /// The long caption that it has already, where the job has no step for it.
    pub long: Option<String>,
    /// Captions that others have made: they are mended and checked like a model's.
    pub ready: (Option<String>, Option<String>),
    /// Further columns that the prompts name.
    pub values: BTreeMap<String, String>,
}

/// What a row got.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Captioned {
    pub long: Option<Caption>,
    pub short: Option<Caption>,
}

/// What became of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum RowEnd {
    Captioned(Captioned),
    Refused {
        /// A word to count by: a check's name, or why a captioner gave no answer.
        reason: &'static str,
        detail: String,
        /// What was asked for it all the same, the caption that it failed by included.
        before: Captioned,
    },
}

/// Why a job stops.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JobError {
    #[error("the answers cannot be kept")]
    Journal(#[from] JournalError),
    /// Nobody answers.
    #[error("{0}")]
    Unavailable(String),
    #[error("interrupted")]
    Cancelled,
    /// Of those who only look at what is known, which nobody else does.
    #[error("a question has no answer yet")]
    Unanswered(Box<Unanswered>),
    #[error("a row's task ended without a result; this is a fault in the program")]
    Lost,
}

impl Job {
    /// Requests that keep its captioners busy.
    pub fn capacity(&self) -> usize {
        self.steps().map(|step| step.captioner.capacity()).sum()
    }

    fn steps(&self) -> impl Iterator<Item = &Step> {
        self.long.iter().chain(&self.short)
    }

    /// Columns that the prompts name, beside the alt text and the long caption.
    pub fn columns(&self) -> Vec<String> {
        let named = self.steps().flat_map(|step| step.prompt.columns());
        let mut names: Vec<String> = named.filter(|name| ![ALT, CAPTION].contains(name)).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Captions one row.
    pub async fn caption(&self, row: &Row, answers: &Answers) -> Result<RowEnd, JobError> {
        let mut done = Captioned::default();
        let value = |name: &str, long: &'_ str| -> Option<String> {
            match name {
                ALT => Some(row.alt.clone()),
                CAPTION => Some(long.to_owned()),
                other => row.values.get(other).cloned(),
            }
        };
        let image = Image { bytes: Arc::clone(&row.image), digest: Digest::of(&row.image) };
        let mut long = row.long.clone().unwrap_or_else(|| row.alt.clone());
        if let Some(step) = &self.long {
            let texts = Texts { alt: &row.alt, ready: row.ready.0.as_deref(), fall_back: &row.alt };
            let caption = match step.caption(&image, &texts, |name| value(name, ""), answers).await? {
                Ok(caption) => caption,
                Err(Refusal { reason, detail, caption }) => {
                    done.long = Some(caption);
                    return Ok(RowEnd::Refused { reason, detail, before: done });
                }
            };
            long.clone_from(&caption.text);
            done.long = Some(caption);
        }
        if let Some(step) = &self.short {
            let fall_back = short_of(&long, step.checks.too_many_words);
            let texts = Texts { alt: &row.alt, ready: row.ready.1.as_deref(), fall_back };
            match step.caption(&image, &texts, |name| value(name, &long), answers).await? {
                Ok(caption) => done.short = Some(caption),
                Err(Refusal { reason, detail, caption }) => {
                    done.short = Some(caption);
                    return Ok(RowEnd::Refused { reason, detail, before: done });
                }
            }
        }
        Ok(RowEnd::Captioned(done))
    }

    /// The first question of a row that has no answer yet: what [`Job::caption`] would ask next. There is none where all that the
    /// row needs is known.
    pub async fn next_question(&self, row: &Row, known: &Known) -> Result<Option<Unanswered>, JobError> {
        match self.caption(row, &known.0).await {
            Ok(_end) => Ok(None),
            Err(JobError::Unanswered(question)) => Ok(Some(*question)),
            Err(other) => Err(other),
        }
    }
}

/// An image, and what it is known by.
pub struct Image {
    pub bytes: Arc<[u8]>,
    pub digest: Digest,
}

/// What a step has to go by, beside the model.
pub struct Texts<'a> {
    pub alt: &'a str,
    /// A caption that is there already.
    pub ready: Option<&'a str>,
    /// What takes the place of a caption that no attempt makes good.
    pub fall_back: &'a str,
}
