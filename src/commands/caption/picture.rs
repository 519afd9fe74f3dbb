//! What came of one picture, in words and as JSON.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use recaption::Usage as Tokens;
use recaption::checks::{Flag, Policy};
use recaption::job::{Caption, Captioned, RowEnd, Source};
use recaption::trial::{Answer, Tried};
use serde_json::{Value, json};

use crate::words::{duration, of, size};

/// One picture, tried.
pub(super) struct Picture {
    path: PathBuf,
    bytes: usize,
    /// Or why it cannot be read.
    tried: Result<Tried, String>,
}

impl Picture {
    pub(super) fn new(path: &Path, bytes: usize, tried: Tried) -> Self {
        Self { path: path.to_owned(), bytes, tried: Ok(tried) }
    }

    pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        Self { path: path.to_owned(), bytes: 0, tried: Err(format!("cannot be read: {error}")) }
    }

    /// Whether a run would have refused its row.
    pub(super) fn has_failed(&self) -> bool {
        !matches!(&self.tried, Ok(Tried { end: RowEnd::Captioned(_), .. }))
    }

    /// All answers that it was given.
    pub(super) fn answers(&self) -> impl Iterator<Item = &Answer> {
        self.tried.iter().flat_map(|tried| tried.long.iter().chain(&tried.short))
    }

    pub(super) fn json(&self) -> Value {
        let path = self.path.to_string_lossy();
        let tried = match &self.tried {
            Ok(tried) => tried,
            Err(error) => return json!({ "image": path, "error": error }),
        };
        let (captioned, refused) = ends(&tried.end);
        let refused = refused.map(|(reason, detail)| json!({ "reason": reason, "detail": detail }));
        json!({
            "image": path,
            "bytes": self.bytes,
            "seconds": tried.seconds,
            "long": step_json(captioned.long.as_ref(), &tried.long),
            "short": step_json(captioned.short.as_ref(), &tried.short),
            "refused": refused,
        })
    }

    pub(super) fn in_words(&self) -> String {
        let path = self.path.display();
        let tried = match &self.tried {
            Ok(tried) => tried,
            Err(error) => return format!("{path}\n  failed: {error}\n\n"),
        };
        let mut text = format!("{path}  ({}, {})\n", size(self.bytes as f64), duration(tried.seconds));
        let (captioned, refused) = ends(&tried.end);
        let long = ("long", captioned.long.as_ref(), &tried.long, "the alt text");
        let short = ("short", captioned.short.as_ref(), &tried.short, "the beginning of the long caption");
        for (name, caption, answers, other) in [long, short] {
            if let Some(caption) = caption {
                step_in_words(&mut text, name, caption, answers, other);
            }
        }
        if let Some((reason, detail)) = refused {
            let _ = writeln!(text, "  failed: {reason}: {}", printable(detail));
        }
        text.push('\n');
        text
    }
}

fn ends(end: &RowEnd) -> (&Captioned, Option<(&'static str, &str)>) {
    match end {
        RowEnd::Captioned(captioned) => (captioned, None),
        RowEnd::Refused { reason, detail, before } => (before, Some((reason, detail))),
    }
}

fn step_json(caption: Option<&Caption>, answers: &[Answer]) -> Value {
    let Some(caption) = caption else { return Value::Null };
    let (tokens, seconds) = sum(answers);
    let each = answers.iter().map(|answer| {
        json!({ "text": answer.completion.text, "finish": answer.completion.finish, "flags": names(&answer.flags),
                "policy": answer.policy, "seconds": answer.seconds })
    });
    let source = match caption.source {
        Source::Model => "model",
        Source::Ready => "ready",
        Source::FallBack => "fall_back",
        Source::PassedOn => "passed_on",
        Source::Refused => "refused",
    };
    json!({
        "caption": (caption.source != Source::Refused).then_some(&caption.text),
        "source": source,
        "flags": names(&caption.flags),
        "mended": caption.mended.iter().map(|mended| mended.name()).collect::<Vec<_>>(),
        "attempts": answers.len(),
        "seconds": seconds,
        "prompt_tokens": tokens.prompt_tokens,
        "completion_tokens": tokens.completion_tokens,
        "tokens_per_second": rate(tokens, seconds),
        "answers": each.collect::<Vec<_>>(),
    })
}

fn step_in_words(text: &mut String, name: &str, caption: &Caption, answers: &[Answer], other: &str) {
    let outcome = match caption.source {
        Source::Model if caption.flags.is_empty() => "no flags".to_owned(),
        Source::Model | Source::Ready | Source::PassedOn => format!("taken, with flags: {}", listed(&caption.flags)),
        Source::FallBack => format!("no answer was good enough ({}): {other} in its place", listed(&caption.flags)),
        Source::Refused if answers.is_empty() => "no answer".to_owned(),
        Source::Refused => format!("the row would be refused: {}", listed(&caption.flags)),
    };
    let _ = writeln!(
        text,
        "  {name:<6} {}",
        if caption.text.is_empty() { "–".to_owned() } else { printable(&caption.text) }
    );
    // Of a single answer that was taken, everything is said already.
    if answers.len() > 1 || caption.source != Source::Model {
        for (n, answer) in answers.iter().enumerate() {
            let last = n + 1 == answers.len();
            let then = match answer.policy {
                Policy::Accept => "",
                Policy::Retry if last => ": no more attempts",
                Policy::Retry => ": asked again",
                Policy::FallBack => ": falls back",
                Policy::Quarantine => ": refused",
            };
            let (flags, words) = (listed(&answer.flags), printable(&answer.completion.text));
            let _ = writeln!(text, "         answer {} ({}; {flags}{then}): {words}", n + 1, duration(answer.seconds));
        }
    }
    let (tokens, seconds) = sum(answers);
    let _ = writeln!(text, "         {outcome}; {}", cost(answers.len(), tokens, seconds));
}

/// `2 answers, 1.8 s, 1224 prompt and 29 completion tokens, 16.1 tokens/s`
pub(super) fn cost(answers: usize, tokens: Tokens, seconds: f64) -> String {
    let mut text = format!(
        "{}, {seconds:.2} s, {} prompt and {} completion tokens",
        of(answers, "answer"),
        tokens.prompt_tokens,
        tokens.completion_tokens
    );
    if let Some(rate) = rate(tokens, seconds) {
        let _ = write!(text, ", {rate:.1} tokens/s");
    }
    text
}

/// Completion tokens a second.
fn rate(tokens: Tokens, seconds: f64) -> Option<f64> {
    (tokens.completion_tokens > 0 && seconds > 0.0).then(|| tokens.completion_tokens as f64 / seconds)
}

fn sum(answers: &[Answer]) -> (Tokens, f64) {
    let mut tokens = Tokens::default();
    for answer in answers {
        tokens += answer.completion.usage;
    }
    (tokens, answers.iter().map(|answer| answer.seconds).sum())
}

fn names(flags: &[Flag]) -> Vec<&'static str> {
    flags.iter().map(|flag| flag.name()).collect()
}

fn listed(flags: &[Flag]) -> String {
    if flags.is_empty() { "no flags".to_owned() } else { names(flags).join(", ") }
}

/// What a model says is printed, and does nothing else to a terminal.
fn printable(text: &str) -> String {
    let lines = text.trim().replace('\n', "\n         ");
    lines.chars().filter(|c| *c == '\n' || !c.is_control()).collect()
}
