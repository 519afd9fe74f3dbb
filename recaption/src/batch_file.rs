//! Files for `vllm run-batch`, and for whoever else takes OpenAI's batches: one request a line, one result a line.
//!
//! A request is known by its partition and its question's key, so reading results is filling a cache, in any order.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::captioner::{Captioner, Completion, Failure, Request};
use crate::journal::{CacheKey, Entry};
use crate::lines::Lines;
use crate::server::{Bodies, Held, Semantics, read_answer, words_of_answer};

/// Longest line of results: an answer, and whatever a server says besides it.
const LONGEST_RESULT: usize = 16 << 20;
/// Of a `custom_id` that is none of ours, so many characters are shown.
const MOST_SHOWN: usize = 120;

/// What a request is known by: `part-00012/<key>`, the partition whose journal its answer is for, and its question.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId {
    pub partition: String,
    pub key: CacheKey,
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.partition, self.key)
    }
}

/// The text is no [`BatchId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a partition and a question's key, such as part-00012/5b0e…")]
pub struct InvalidBatchId;

impl FromStr for BatchId {
    type Err = InvalidBatchId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (partition, key) = text.split_once('/').ok_or(InvalidBatchId)?;
        // It names a folder.
        let is_name = partition.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if partition.is_empty() || !is_name {
            return Err(InvalidBatchId);
        }
        let key = key.parse().map_err(|_invalid| InvalidBatchId)?;
        Ok(Self { partition: partition.to_owned(), key })
    }
}

/// Who answers by way of files, as far as a job has to know: it is asked for nothing, and its requests are written down.
#[derive(Clone, Debug)]
pub struct Batch {
    identity: String,
    bodies: Bodies,
}

impl Batch {
    /// Whose answers are those of servers with these options.
    pub fn new(semantics: &Semantics) -> Self {
        Self { identity: semantics.identity(), bodies: Bodies::new(semantics) }
    }

    /// A request's body, as it would be sent to a server. Fails where its image is none.
    pub async fn body(&self, request: &Request) -> Result<Vec<u8>, Failure> {
        self.bodies.of(request).await
    }
}

#[async_trait]
impl Captioner for Batch {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn capacity(&self) -> usize {
        1
    }

    async fn complete(&self, _request: Request) -> Result<Completion, Failure> {
        Err(Failure::Unavailable("its answers come from files".to_owned()))
    }
}

/// Writes one request: `body` is that of a chat completion, on one line.
///
/// `vllm run-batch` reads a whole file into memory, images and all, so a job is better cut into files of some thousands.
pub fn write_request(out: &mut impl Write, id: &BatchId, body: &[u8]) -> io::Result<()> {
    write!(out, r#"{{"custom_id":"{id}","method":"POST","url":"/v1/chat/completions","body":"#)?;
    out.write_all(body)?;
    out.write_all(b"}\n")
}

/// A line of results that is no answer.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of {name}: {fault}")]
pub struct BatchError {
    /// The file's, for messages.
    pub name: String,
    /// From 1.
    pub line: u64,
    pub fault: BatchFault,
}

/// Why a line of results is no answer.
#[derive(Debug, thiserror::Error)]
pub enum BatchFault {
    /// Nothing more is read.
    #[error("cannot be read: {0}")]
    Read(#[source] io::Error),
    #[error("is longer than {} MB", LONGEST_RESULT >> 20)]
    TooLong,
    #[error("is no result of a batch: {0}")]
    Malformed(String),
    #[error("has the custom_id `{0}`, which no request of ours has")]
    Unknown(String),
    /// The request got no answer, and is to be made again.
    #[error("the server says: {words}")]
    Failed { id: BatchId, status: Option<u16>, words: String },
    /// It got an answer without a caption, and is to be made again.
    #[error("{words}")]
    Nothing { id: BatchId, reason: &'static str, words: String },
}

impl BatchFault {
    /// A word to count by.
    pub fn reason(&self) -> String {
        let word = match self {
            Self::Read(_) => "unreadable",
            Self::TooLong => "too_long",
            Self::Malformed(_) => "malformed",
            Self::Unknown(_) => "unknown_id",
            Self::Failed { status: Some(status), .. } => return format!("status_{status}"),
            Self::Failed { status: None, .. } => "failed",
            Self::Nothing { reason, .. } => reason,
        };
        word.to_owned()
    }
}

/// The results of a batch: each line an answer, or an error of its own. Empty lines are none.
pub struct Results<R> {
    lines: Lines<R>,
    name: String,
    is_at_end: bool,
}

impl<R: Read> Results<R> {
    /// `name` is the file's, for messages.
    pub fn new(file: R, name: &str) -> Self {
        Self { lines: Lines::new(file, LONGEST_RESULT), name: name.to_owned(), is_at_end: false }
    }

    /// The number of the line that came last, from 1.
    pub fn line(&self) -> u64 {
        self.lines.number()
    }
}

impl<R: Read> Iterator for Results<R> {
    type Item = Result<(BatchId, Entry), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let name = &self.name;
        let fail = |line, fault| Some(Err(BatchError { name: name.clone(), line, fault }));
        while !self.is_at_end {
            let line = match self.lines.next() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(error) => {
                    self.is_at_end = true;
                    return fail(self.lines.number() + 1, BatchFault::Read(error));
                }
            };
            let number = line.number;
            let Some(bytes) = line.bytes else { return fail(number, BatchFault::TooLong) };
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            return match result(bytes) {
                Ok(answer) => Some(Ok(answer)),
                Err(fault) => fail(number, fault),
            };
        }
        None
    }
}

#[derive(Deserialize)]
struct ResultLine {
    custom_id: String,
    #[serde(default)]
    response: Value,
    #[serde(default)]
    error: Value,
}

fn result(line: &[u8]) -> Result<(BatchId, Entry), BatchFault> {
    let line: ResultLine = serde_json::from_slice(line).map_err(|error| BatchFault::Malformed(error.to_string()))?;
    let Ok(id) = line.custom_id.parse::<BatchId>() else {
        let shown = line.custom_id.chars().filter(|c| !c.is_control()).take(MOST_SHOWN).collect();
        return Err(BatchFault::Unknown(shown));
    };
    let status = line.response["status_code"].as_u64().and_then(|status| u16::try_from(status).ok());
    // Old versions of vLLM put the completion where others put what holds it.
    let body = if line.response["choices"].is_array() { &line.response } else { &line.response["body"] };
    let body_bytes = body.to_string().into_bytes();
    if !line.error.is_null() {
        let words = words_of_answer(json!({ "error": line.error }).to_string().as_bytes(), None);
        return Err(BatchFault::Failed { id, status, words });
    }
    if body.is_null() {
        return Err(BatchFault::Failed { id, status, words: "nothing".to_owned() });
    }
    if status.is_some_and(|status| status != 200) {
        return Err(BatchFault::Failed { id, status, words: words_of_answer(&body_bytes, None) });
    }
    // Files know no token.
    match read_answer(&body_bytes, None) {
        Held::Completion(completion) => Ok((id, Entry::Completion(completion))),
        Held::Filtered(detail) => Ok((id, Entry::Refused { reason: "content_filter".to_owned(), detail })),
        Held::Error { status, words } => Err(BatchFault::Failed { id, status, words }),
        Held::Nothing { reason, words } => Err(BatchFault::Nothing { id, reason, words }),
    }
}

#[cfg(test)]
mod tests {
    use shards::digest::Digest;

    use super::*;
    use crate::captioner::{Finish, Sampling, Usage};

    fn id() -> BatchId {
        format!("part-00012/{}", Digest::of(b"question")).parse().unwrap()
    }

    fn read(lines: &str) -> Vec<Result<(BatchId, Entry), String>> {
        Results::new(lines.as_bytes(), "results.jsonl")
            .map(|result| result.map_err(|error| error.to_string()))
            .collect()
    }

    #[test]
    fn an_id_leads_to_a_partition_and_a_question() {
        let text = id().to_string();
        assert_eq!((text.len(), text.parse()), ("part-00012/".len() + 64, Ok(id())));
        let key = id().key;
        for other in
            [key.to_string(), format!("/{key}"), format!("../{key}"), format!("a/b/{key}"), format!("part-0/{key}0")]
        {
            assert_eq!(other.parse::<BatchId>(), Err(InvalidBatchId), "{other}");
        }
    }

    #[tokio::test]
    async fn a_request_is_a_line() {
        let semantics = Semantics { model: "m".to_owned(), ..Semantics::default() };
        let batch = Batch::new(&semantics);
        let request = Request { system: None, prompt: "a\nb".to_owned(), image: None, sampling: Sampling::default() };
        let body = batch.body(&request).await.unwrap();
        assert_eq!(body, Bodies::new(&semantics).of(&request).await.unwrap());
        let mut file = Vec::new();
        write_request(&mut file, &id(), &body).unwrap();
        write_request(&mut file, &id(), &body).unwrap();
        let lines: Vec<_> = file.strip_suffix(b"\n").unwrap().split(|byte| *byte == b'\n').collect();
        assert_eq!(lines.len(), 2);
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["messages"], json!([{ "role": "user", "content": "a\nb" }]));
        let expected =
            json!({ "custom_id": id().to_string(), "method": "POST", "url": "/v1/chat/completions", "body": body });
        assert_eq!(serde_json::from_slice::<Value>(lines[0]).unwrap(), expected);
        let bad = Request { image: Some((*b"<html>").into()), ..request };
        assert!(matches!(batch.body(&bad).await, Err(Failure::Refused { reason: "bad_image", .. })));
    }

    #[test]
    fn results_come_in_two_forms() {
        let completion = json!({
            "id": "c", "model": "m", "object": "chat.completion",
            "choices": [{ "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": "A dog." } }],
            "usage": { "prompt_tokens": 700, "completion_tokens": 3, "prompt_tokens_details": { "cached_tokens": 5 } },
        });
        let id = id().to_string();
        let new = json!({
            "id": "vllm-1", "custom_id": id, "error": null,
            "response": { "status_code": 200, "request_id": "r", "body": completion },
        });
        let old = json!({ "id": "vllm-1", "custom_id": id, "response": completion, "error": null });
        let usage = Usage { prompt_tokens: 700, completion_tokens: 3, cached_tokens: 5 };
        let entry = Entry::Completion(Completion { text: "A dog.".to_owned(), finish: Finish::Stop, usage });
        let expected = Ok((super::tests::id(), entry));
        assert_eq!(read(&format!("{new}\n\n{old}")), [expected.clone(), expected]);
        let cut = new.to_string().replace("\"stop\"", "\"length\"");
        let found = read(&cut).pop().unwrap().unwrap().1;
        assert!(matches!(found, Entry::Completion(Completion { finish: Finish::Length, .. })));
        // Who says nothing has answered: the row is not asked again by every file that follows.
        let blank = new.to_string().replace("\"A dog.\"", "null");
        let found = read(&blank).pop().unwrap().unwrap().1;
        assert!(matches!(found, Entry::Completion(Completion { text, .. }) if text.is_empty()));
        let filtered = new.to_string().replace("\"stop\"", "\"content_filter\"");
        assert!(matches!(read(&filtered).pop().unwrap().unwrap().1, Entry::Refused { .. }));
    }

    #[test]
    fn a_line_that_is_no_answer_says_why() {
        let id = id().to_string();
        let result = |response: Value, error: Value| {
            json!({ "custom_id": id, "response": response, "error": error }).to_string()
        };
        let body = |status: u64, body: Value| result(json!({ "status_code": status, "body": body }), Value::Null);
        let cases = [
            ("{".to_owned(), "malformed", "is no result of a batch: EOF"),
            (json!({ "id": 1 }).to_string(), "malformed", "is no result of a batch: missing field `custom_id`"),
            (json!({ "custom_id": "request-1" }).to_string(), "unknown_id", "has the custom_id `request-1`"),
            (result(Value::Null, Value::Null), "failed", "the server says: nothing"),
            (
                result(json!({ "status_code": 400 }), json!({ "message": "too\nlong" })),
                "status_400",
                "the server says: too long",
            ),
            (result(Value::Null, json!("out of memory")), "failed", "the server says: out of memory"),
            (body(500, json!({ "error": { "message": "gone" } })), "status_500", "the server says: gone"),
            (body(200, json!({ "object": "error", "message": "no" })), "failed", "the server says: no"),
            (body(200, json!({ "choices": [] })), "empty_answer", "the answer has no choices"),
            (
                result(json!({ "choices": [{ "text": "A dog." }] }), Value::Null),
                "bad_answer",
                "the answer's choice has no message",
            ),
        ];
        for (line, reason, words) in &cases {
            let lines = format!("\n{line}");
            let found = Results::new(lines.as_bytes(), "results.jsonl").next().unwrap().unwrap_err();
            assert_eq!(found.fault.reason(), *reason, "{found}");
            let found = found.to_string();
            assert!(found.starts_with(&format!("line 2 of results.jsonl: {words}")), "{found}");
        }
        let whole = cases.iter().map(|(line, ..)| line.as_str()).collect::<Vec<_>>().join("\n");
        assert_eq!(read(&whole).len(), cases.len(), "each is an error of its own");
    }
}
