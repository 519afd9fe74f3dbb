//! The ways of answering, and which of them a question meets with.

use std::time::{Duration, SystemTime};

use super::Options;
use super::question::{Identity, Question, caption};
use crate::random::number;

/// In which manner a question is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Caption,
    /// 429 with `Retry-After` in seconds: 0 or 1.
    TooManySeconds,
    /// 429 with `Retry-After` until a date: now.
    TooManyDate,
    /// 429 with `retry-after-ms`.
    TooManyMilliseconds,
    /// 429, and not a word about when.
    TooMany,
    Unavailable,
    /// 408.
    RequestTimeout,
    /// 500, for no reason.
    ServerError,
    /// The connection is reset before anything.
    Reset,
    /// It ends within the answer.
    Cut,
    /// Nothing, for as long as the client waits.
    Hang,
    /// A byte now and then.
    Drip,
    /// An answer without an end.
    Endless,
    /// 200, and no JSON.
    NotJson,
    /// 200, and JSON of another kind.
    OtherJson,
    /// 200, with an error in it.
    ErrorIn200,
    EmptyChoices,
    NullContent,
    /// The caption is cut: `finish_reason` is `length`.
    Length,
    /// The caption is there, in parts; no usage.
    Parts,
    /// 400 with `{"error":{"message":…}}`.
    BadRequest,
    /// 403, as moderation says it.
    Forbidden,
    /// 400 with `{"object":"error","message":…}`.
    BadRequestFlat,
    /// 413 with `{"error":"…"}`.
    TooLarge,
    /// 422 in plain text.
    Unprocessable,
    /// 404, though the model is there.
    NotFound,
    /// The filter that some services have.
    Filtered,
}

/// What goes over the wire.
pub(crate) enum Reply {
    Whole { status: u16, header: Option<(&'static str, String)>, body: String, is_caption: bool },
    Reset,
    Cut(String),
    Hang,
    Drip(String),
    Endless,
}

impl Manner {
    /// For a question that was answered `before` times, in whatever manner; a server that is broken or gone does not count.
    pub fn of(options: &Options, identity: Identity, before: u32) -> Self {
        if before >= options.most_misbehaviour {
            return Self::Caption;
        }
        let draw = number(options.seed, "manner", identity.0 ^ u64::from(before)) as f64 / u64::MAX as f64;
        let mut sum = 0.0;
        for (manner, rate) in &options.rates {
            sum += rate;
            if draw < sum {
                return *manner;
            }
        }
        Self::Caption
    }

    pub(crate) fn reply(self, question: &Question) -> Reply {
        let error = |status: u16, words: &str| {
            let body = format!(r#"{{"error":{{"message":"{words}","type":"error","param":null,"code":{status}}}}}"#);
            Reply::Whole { status, header: None, body, is_caption: false }
        };
        let with = |reply, name, value: String| match reply {
            Reply::Whole { status, body, is_caption, .. } => {
                Reply::Whole { status, header: Some((name, value)), body, is_caption }
            }
            other => other,
        };
        let plain =
            |status: u16, body: &str| Reply::Whole { status, header: None, body: body.to_owned(), is_caption: false };
        let paid = |content: &str, ending: &str, usage: &str| {
            let body = completion(content, ending, usage);
            Reply::Whole { status: 200, header: None, body, is_caption: true }
        };
        let identity = question.identity;
        let text = caption(identity);
        let usage = usage(identity);
        match self {
            Self::Caption => paid(&format!("\"{text}\""), "\"stop\"", &usage),
            Self::TooManySeconds => with(error(429, "too many"), "Retry-After", (identity.0 % 2).to_string()),
            Self::TooManyDate => {
                with(error(429, "too many"), "Retry-After", httpdate::fmt_http_date(SystemTime::now()))
            }
            Self::TooManyMilliseconds => with(error(429, "too many"), "retry-after-ms", "5".to_owned()),
            Self::TooMany => error(429, "too many"),
            Self::Unavailable => plain(503, "no healthy upstream"),
            Self::RequestTimeout => error(408, "too slow"),
            Self::ServerError => error(500, "internal"),
            Self::Reset => Reply::Reset,
            Self::Cut => Reply::Cut(completion(&format!("\"{text}\""), "\"stop\"", &usage)),
            Self::Hang => Reply::Hang,
            Self::Drip => Reply::Drip(completion(&format!("\"{text}\""), "\"stop\"", &usage)),
            Self::Endless => Reply::Endless,
            Self::NotJson => plain(200, "<html><body>Welcome</body></html>"),
            Self::OtherJson => plain(200, r#"{"choices":{"text":7},"usage":[]}"#),
            Self::ErrorIn200 => plain(200, r#"{"object":"error","message":"it did not work","code":null}"#),
            Self::EmptyChoices => plain(200, r#"{"choices":[],"usage":null}"#),
            Self::NullContent => paid("null", "\"stop\"", &usage),
            Self::Length => paid(&format!("\"{text}\""), "\"length\"", &usage),
            Self::Parts => paid(&format!(r#"[{{"type":"text","text":"{text}"}}]"#), "null", "null"),
            Self::BadRequest => error(400, "this image is not for us"),
            Self::Forbidden => error(403, "flagged by moderation"),
            Self::BadRequestFlat => {
                plain(400, r#"{"object":"error","message":"too long for us","type":"BadRequestError","code":400}"#)
            }
            Self::TooLarge => plain(413, r#"{"error":"too large for us"}"#),
            Self::Unprocessable => plain(422, "cannot be processed"),
            Self::NotFound => plain(404, r#"{"detail":"Not Found"}"#),
            Self::Filtered => paid("null", "\"content_filter\"", &usage),
        }
    }
}

/// What a server that does not misbehave answers to a request's body; nothing to one that it does not understand.
pub fn completion_of(body: &[u8]) -> Option<String> {
    let question = Question::of(body).filter(Question::has_usual_top_p)?;
    match Manner::Caption.reply(&question) {
        Reply::Whole { body, .. } => Some(body),
        _ => None,
    }
}

fn completion(content: &str, ending: &str, usage: &str) -> String {
    format!(
        r#"{{"id":"chat-1","object":"chat.completion","choices":[{{"index":0,"message":{{"role":"assistant","content":{content},"reasoning_content":"Let me see."}},"finish_reason":{ending}}}],"usage":{usage}}}"#
    )
}

fn usage(identity: Identity) -> String {
    let prompt = 500 + identity.0 % 100;
    format!(
        r#"{{"prompt_tokens":{prompt},"completion_tokens":12,"total_tokens":{},"prompt_tokens_details":{{"cached_tokens":40}}}}"#,
        prompt + 12
    )
}

/// For so long a request that is never answered is counted as in flight: by then, whoever waits no longer has gone.
pub(crate) const COUNTED: Duration = Duration::from_millis(100);
