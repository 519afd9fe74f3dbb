//! A request, taken apart.

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use serde_json::Value;

use crate::answer::Answer;

#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) method: Method,
    /// As it came: still encoded, and without the query.
    pub(crate) path: String,
    /// Of the path, decoded each by itself: `refs%2Fpr%2F1` is one.
    pub(crate) segments: Vec<String>,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Question {
    pub(crate) fn new(method: Method, uri: &Uri, headers: HeaderMap) -> Self {
        let segments = uri.path().split('/').skip(1).map(|segment| decoded(segment, false)).collect();
        let query = pairs(uri.query().unwrap_or_default());
        Self { method, path: uri.path().to_owned(), segments, query, headers, body: Bytes::new() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.query(name).is_some_and(is_true)
    }

    pub(crate) fn json(&self) -> Result<Value, Answer> {
        serde_json::from_slice(&self.body).map_err(|error| Answer::bad_request(&format!("Invalid JSON: {error}")))
    }

    /// The fields of a form, or of an object in JSON.
    pub(crate) fn fields(&self) -> Result<Vec<(String, String)>, Answer> {
        if self.header("content-type").is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded")) {
            return Ok(pairs(&String::from_utf8_lossy(&self.body)));
        }
        let value = self.json()?;
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let fields = value.as_object().into_iter().flatten().flat_map(|(key, value)| match value {
            Value::Array(items) => items.iter().map(|item| (key.clone(), text(item))).collect(),
            other => vec![(key.clone(), text(other))],
        });
        Ok(fields.collect())
    }

    /// Path and query in plain text, which faults are looked for in.
    pub(crate) fn text(&self) -> String {
        let query = self.query.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&");
        format!("/{}?{query}", self.segments.join("/"))
    }
}

pub(crate) fn is_true(value: &str) -> bool {
    matches!(value, "1" | "true" | "True")
}

fn pairs(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decoded(key, true), decoded(value, true)))
        .collect()
}

fn decoded(text: &str, is_form: bool) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let code =
            bytes.get(at + 1..at + 3).filter(|_| byte == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(code) = code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            plain.push(code);
            at += 3;
        } else {
            plain.push(if is_form && byte == b'+' { b' ' } else { byte });
            at += 1;
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// With everything encoded that has a meaning in an address, but for slashes.
pub(crate) fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
