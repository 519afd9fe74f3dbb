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
    /// `token` is not in its words.
    pub(super) fn of(reply: Result<Reply, Lost>, token: Option<&str>) -> Self {
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
            return Self::of_status(reply.status, &reply.body, token, wait);
        }
        match answer::read(&reply.body, token) {
            Held::Completion(completion) => Self::Answered(completion),
            Held::Nothing { reason, words } => Self::Bad { reason, words, wait: None },
            Held::Error { status: Some(status), .. } => Self::of_status(status, &reply.body, token, None),
            Held::Error { status: None, words } => Self::Bad { reason: "bad_answer", words, wait: None },
            Held::Filtered(words) => Self::Refused { reason: "content_filter", words },
        }
    }

    fn of_status(status: u16, body: &[u8], token: Option<&str>, wait: Option<Duration>) -> Self {
        let words = answer::words(body, token);
        // What it means is read before a token is taken out, which may be a word of it.
        let means = |is_so: fn(&str) -> bool| is_so(&answer::words(body, None));
        match status {
            401 | 403 => Self::Unauthorised { status, words },
            404 | 405 | 300..=399 => Self::Missing { status, words },
            400 if means(answer::is_about_model) => Self::Missing { status, words },
            408 | 409 => Self::Bad { reason: "refused_by_server", words: format!("{status}: {words}"), wait },
            // No other try changes that, and the server is well.
            500 if means(answer::takes_no_images) => {
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
            Self::Busy { words, wait, .. } => Sign::TooMany { words, wait: *wait },
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
    /// 429: it works, and has limits. It may say for how long it is to be left alone.
    TooMany {
        words: &'a str,
        wait: Option<Duration>,
    },
    /// 503: it has too much to do, or does not work.
    Overloaded(&'a str),
    Broken(&'a str),
    TimedOut,
    /// There is no connection.
    Gone(&'a str),
    /// Nothing: the request was given up.
    None,
}
