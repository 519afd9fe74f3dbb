//! What one try came to.

use std::time::{Duration, SystemTime};

use super::answer::{self, Held};
use super::client::{Lost, Reply};
use super::retry;
use crate::captioner::Completion;

/// What one try came to, by what is to be done about it.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    Answered(Completion),
    /// The server will not answer this request, whenever it is asked.
    Refused {
        reason: &'static str,
        words: String,
    },
    /// It does not know us.
    Unauthorised {
        status: u16,
        words: String,
    },
    /// It has no such model, or nothing at this address.
    Missing {
        status: u16,
        words: String,
    },
    /// The server works, but this is no answer; the next try may bring one.
    Bad {
        reason: &'static str,
        words: String,
        wait: Option<Duration>,
    },
    /// It has too much to do.
    Busy {
        status: u16,
        words: String,
        wait: Option<Duration>,
    },
    /// Something is wrong with the server, perhaps because of a request.
    Broken {
        words: String,
        wait: Option<Duration>,
    },
    TimedOut,
    /// The server is not there.
    Unreachable(String),
    /// The fault is this machine's.
    Shortage(String),
}

impl Outcome {
    pub(super) fn of(reply: Result<Reply, Lost>) -> Self {
        let reply = match reply {
            Ok(reply) => reply,
            Err(Lost::TimedOut) => return Self::TimedOut,
            Err(Lost::Unreachable(words)) => return Self::Unreachable(words),
            Err(Lost::Broken(words)) => return Self::Broken { words, wait: None },
            Err(Lost::Shortage(words)) => return Self::Shortage(words),
            Err(Lost::TooLarge) => {
                let words = "the answer does not end within 4 MB".to_owned();
                return Self::Bad { reason: "bad_answer", words, wait: None };
            }
        };
        if !(200..300).contains(&reply.status) {
            let wait = retry::asked_for(&reply.headers, SystemTime::now());
            return Self::of_status(reply.status, answer::words(&reply.body), wait);
        }
        match answer::read(&reply.body) {
            Held::Completion(completion) => Self::Answered(completion),
            Held::Nothing { reason, words } => Self::Bad { reason, words, wait: None },
            Held::Error { status: Some(status), words } => Self::of_status(status, words, None),
            Held::Error { status: None, words } => Self::Bad { reason: "bad_answer", words, wait: None },
            Held::Filtered(words) => Self::Refused { reason: "content_filter", words },
        }
    }

    fn of_status(status: u16, words: String, wait: Option<Duration>) -> Self {
        match status {
            401 | 403 => Self::Unauthorised { status, words },
            404 | 405 | 300..=399 => Self::Missing { status, words },
            400 if answer::is_about_model(&words) => Self::Missing { status, words },
            408 | 409 => Self::Bad { reason: "refused_by_server", words: format!("{status}: {words}"), wait },
            // No other try changes that, and the server is well.
            500 if answer::takes_no_images(&words) => {
                Self::Refused { reason: "refused_by_server", words: format!("{status}: {words}") }
            }
            429 | 503 => Self::Busy { status, words: format!("{status}: {words}"), wait },
            500.. => Self::Broken { words: format!("{status}: {words}"), wait },
            _ => Self::Refused { reason: "refused_by_server", words: format!("{status}: {words}") },
        }
    }

    /// What it means for the endpoint.
    pub(super) fn sign(&self) -> Sign<'_> {
        match self {
            Self::Answered(_) => Sign::Answered,
            Self::Refused { .. } | Self::Unauthorised { .. } | Self::Missing { .. } | Self::Bad { .. } => Sign::Alive,
            Self::Busy { status: 503, words, .. } => Sign::Overloaded(words),
            Self::Busy { words, .. } => Sign::TooMany(words),
            Self::Broken { words, .. } => Sign::Broken(words),
            Self::TimedOut => Sign::TimedOut,
            Self::Unreachable(words) => Sign::Gone(words),
            Self::Shortage(_) => Sign::None,
        }
    }
}

/// What one try says of the endpoint that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign<'a> {
    Answered,
    /// It answered, if with no caption.
    Alive,
    /// 429: it works, and has limits.
    TooMany(&'a str),
    /// 503: it has too much to do, or does not work.
    Overloaded(&'a str),
    Broken(&'a str),
    TimedOut,
    /// There is no connection.
    Gone(&'a str),
    /// Nothing: the request was given up.
    None,
}
