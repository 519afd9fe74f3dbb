//! What an answer says, whichever server gave it: a caption, or one of many ways to say that there is none.

use serde::Deserialize;
use serde_json::Value;

use crate::captioner::{Completion, Finish, Usage};

/// A server's words, as long as they are shown.
const MOST_WORDS: usize = 400;

/// The part of a 200 that is looked at. What is not looked at may be anything.
#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    choices: Value,
    #[serde(default)]
    usage: Value,
    #[serde(default)]
    error: Value,
}

/// What a body with status 200 holds.
#[derive(Debug, PartialEq)]
pub(crate) enum Held {
    Completion(Completion),
    /// Nothing, or not as it should be; another try may bring another.
    Nothing {
        reason: &'static str,
        words: String,
    },
    /// An error, sent as if it were an answer; with the status that it would have had.
    Error {
        status: Option<u16>,
        words: String,
    },
    /// The server would not say it.
    Filtered(String),
}

/// `token` is taken out of what is to be shown, never out of a completion: as a word of a caption it is one like any other.
pub(crate) fn read(body: &[u8], token: Option<&str>) -> Held {
    let nothing = |reason, words: String| Held::Nothing { reason, words };
    let words = || words(body, token);
    let parsed: Body = match serde_json::from_slice(body) {
        Ok(parsed) => parsed,
        Err(error) => {
            let error = shown(&error.to_string(), token);
            return nothing("bad_answer", format!("the answer is not JSON as expected ({error}): {}", words()));
        }
    };
    let choice = match &parsed.choices {
        Value::Array(choices) if !choices.is_empty() => choices.first(),
        _ if !parsed.error.is_null() || is_flat_error(body) => {
            return Held::Error { status: code(&parsed.error), words: words() };
        }
        Value::Array(_) => return nothing("empty_answer", "the answer has no choices".to_owned()),
        _ => return nothing("bad_answer", format!("the answer has no choices: {}", words())),
    };
    let choice = choice.unwrap_or(&Value::Null);
    let message = &choice["message"];
    let ending = choice["finish_reason"].as_str().unwrap_or("stop");
    let finish = match ending {
        "length" | "max_tokens" => Finish::Length,
        "content_filter" => return Held::Filtered("the server's content filter stopped the answer".to_owned()),
        "abort" | "aborted" | "cancelled" | "error" => {
            return nothing("bad_answer", format!("the server ended the answer with `{ending}`"));
        }
        _ => Finish::Stop,
    };
    if !message.is_object() {
        return nothing("bad_answer", format!("the answer's choice has no message: {}", words()));
    }
    // A model that says nothing has answered, and the caption is empty: asking the very same again would bring the same.
    let text = match text(&message["content"]) {
        Some(text) => text,
        None if message["content"].is_null() => String::new(),
        None => return nothing("bad_answer", "its content is no text".to_owned()),
    };
    if let Some(refusal) = message["refusal"].as_str().filter(|refusal| !refusal.is_empty())
        && text.trim().is_empty()
    {
        return Held::Filtered(shown(refusal, token));
    }
    Held::Completion(Completion { text, finish, usage: usage(&parsed.usage) })
}

/// Text, or parts of which some are text.
fn text(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => Some(parts.iter().filter_map(|part| part["text"].as_str()).collect()),
        _ => None,
    }
}

fn usage(usage: &Value) -> Usage {
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    Usage {
        prompt_tokens: count(&usage["prompt_tokens"]),
        completion_tokens: count(&usage["completion_tokens"]),
        cached_tokens: count(&usage["prompt_tokens_details"]["cached_tokens"]),
    }
}

fn is_flat_error(body: &[u8]) -> bool {
    serde_json::from_slice::<Value>(body).is_ok_and(|body| body["object"] == "error")
}

/// The status that an error tells by itself.
fn code(error: &Value) -> Option<u16> {
    error["code"].as_u64().and_then(|code| u16::try_from(code).ok()).filter(|code| (400..600).contains(code))
}

/// What a server says went wrong: `{"error":{"message":…}}`, `{"error":"…"}`, `{"message":…}`, `{"detail":…}`, or text; without
/// `token`.
pub(crate) fn words(body: &[u8], token: Option<&str>) -> String {
    let parsed: Value = serde_json::from_slice(body).unwrap_or_default();
    let known = [&parsed["error"]["message"], &parsed["error"], &parsed["message"], &parsed["detail"]];
    let found = known.into_iter().find_map(|value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(_) | Value::Object(_) => Some(value.to_string()),
        _ => None,
    });
    let text = found.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    shown(&text, token)
}

/// A server's words as they may be shown: short, and without `token`, for servers repeat what they were sent.
pub(super) fn shown(words: &str, token: Option<&str>) -> String {
    match token {
        // Before they are cut, or a part of it could be left.
        Some(token) if words.contains(token) => shorten(&words.replace(token, "<token>")),
        _ => shorten(words),
    }
}

/// On one line, and not too long.
fn shorten(text: &str) -> String {
    let mut short = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !short.is_empty() {
            short.push(' ');
        }
        short.extend(word.chars().take(MOST_WORDS));
        if let Some((end, _)) = short.char_indices().nth(MOST_WORDS) {
            short.truncate(end);
            short.push('…');
            break;
        }
    }
    if short.is_empty() { "it says nothing".to_owned() } else { short }
}

/// The names that an answer to GET /v1/models lists, as they are there; to be shown by [`shown`].
pub(super) fn models(body: &[u8]) -> Option<Vec<String>> {
    let parsed: Value = serde_json::from_slice(body).ok()?;
    let list = parsed["data"].as_array()?;
    Some(list.iter().filter_map(|model| model["id"].as_str()).map(str::to_owned).collect())
}

/// Whether words say that there is no such model.
pub(super) fn is_about_model(words: &str) -> bool {
    let words = words.to_lowercase();
    words.contains("model")
        && ["not exist", "not found", "no such model", "unknown model"].iter().any(|w| words.contains(w))
}

/// Whether it says that its model takes no images, which llama.cpp says with 500.
pub(super) fn takes_no_images(words: &str) -> bool {
    words.to_lowercase().contains("image input is not supported")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(text: &str, finish: Finish, usage: [u64; 3]) -> Held {
        let [prompt_tokens, completion_tokens, cached_tokens] = usage;
        let usage = Usage { prompt_tokens, completion_tokens, cached_tokens };
        Held::Completion(Completion { text: text.to_owned(), finish, usage })
    }

    #[test]
    fn captions_come_in_several_forms() {
        for (body, expected) in [
            (
                r#"{"id":"1","choices":[{"index":0,"message":{"role":"assistant","content":"A cat.","reasoning_content":"Hm."},
                "finish_reason":"stop"}],"usage":{"prompt_tokens":600,"completion_tokens":3,"total_tokens":603,
                "prompt_tokens_details":{"cached_tokens":64}}}"#,
                completion("A cat.", Finish::Stop, [600, 3, 64]),
            ),
            (
                r#"{"choices":[{"message":{"content":[{"type":"text","text":"A "},{"type":"x"},{"type":"text","text":"cat."}]}}]}"#,
                completion("A cat.", Finish::Stop, [0; 3]),
            ),
            (
                r#"{"choices":[{"message":{"content":"A c"},"finish_reason":"length"}],"usage":{"prompt_tokens":-1,
                "prompt_tokens_details":null},"error":null}"#,
                completion("A c", Finish::Length, [0; 3]),
            ),
            (
                r#"{"choices":[{"message":{"content":null},"finish_reason":"length"}]}"#,
                completion("", Finish::Length, [0; 3]),
            ),
            (
                r#"{"choices":[{"message":{"content":null},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,
                "completion_tokens":1}}"#,
                completion("", Finish::Stop, [9, 1, 0]),
            ),
            (r#"{"choices":[{"message":{"content":" \n"}}]}"#, completion(" \n", Finish::Stop, [0; 3])),
        ] {
            assert_eq!(read(body.as_bytes(), None), expected, "{body}");
        }
    }

    #[test]
    fn what_is_none_has_a_reason() {
        for (body, reason) in [
            ("", "bad_answer"),
            ("<html>", "bad_answer"),
            ("[]", "bad_answer"),
            ("{}", "bad_answer"),
            (r#"{"choices":"none"}"#, "bad_answer"),
            (r#"{"choices":[]}"#, "empty_answer"),
            (r#"{"choices":[7]}"#, "bad_answer"),
            (r#"{"choices":[{"text":"A cat."}]}"#, "bad_answer"),
            (r#"{"choices":[{"message":{"content":7}}]}"#, "bad_answer"),
            (r#"{"choices":[{"message":{"content":"A"},"finish_reason":"abort"}]}"#, "bad_answer"),
        ] {
            assert!(matches!(read(body.as_bytes(), None), Held::Nothing { reason: r, .. } if r == reason), "{body}");
        }
        for content in ["null", "\"\""] {
            let filtered = format!(r#"{{"choices":[{{"message":{{"content":{content},"refusal":"No."}}}}]}}"#);
            assert_eq!(read(filtered.as_bytes(), None), Held::Filtered("No.".to_owned()));
        }
    }

    #[test]
    fn errors_have_several_forms_too() {
        for (body, status, words) in [
            (r#"{"error":{"message":"Too many.","code":429}}"#, Some(429), "Too many."),
            (r#"{"error":"Out of memory"}"#, None, "Out of memory"),
            (
                r#"{"object":"error","message":"No\n  such thing.","type":"BadRequestError","code":400}"#,
                None,
                "No such thing.",
            ),
        ] {
            let expected = Held::Error { status, words: words.to_owned() };
            assert_eq!(read(body.as_bytes(), None), expected, "{body}");
        }
        let words = |body: &[u8]| words(body, None);
        assert_eq!(words(br#"{"detail":[{"loc":["body"]}]}"#), r#"[{"loc":["body"]}]"#);
        assert_eq!(words(b"  Bad\r\n\r\nGateway\x1b[31m "), "Bad Gateway [31m");
        assert_eq!(words(b"\xff\xfe"), "\u{fffd}\u{fffd}");
        assert_eq!(words(b""), "it says nothing");
        assert_eq!(words(&b"x".repeat(100_000)).chars().count(), MOST_WORDS);
        assert_eq!(words(&b"x ".repeat(100_000)).chars().count(), MOST_WORDS + 1);
        assert!(is_about_model("The model `x` does not exist.") && !is_about_model("Not Found"));
        assert!(takes_no_images("image input is not supported - hint: you may need to provide the mmproj"));
        assert_eq!(models(br#"{"data":[{"id":"a"},{"id":"b"}]}"#), Some(vec!["a".to_owned(), "b".to_owned()]));
    }

    /// For a server that asks for none, people name one that is a word like any other, or a number.
    #[test]
    fn a_token_is_taken_out_of_what_is_shown_and_of_nothing_else() {
        let of = |content: &str| format!(r#"{{"created":1712341234,"choices":[{{"message":{content}}}]}}"#);
        let caption = of(r#"{"content":"A test tube, 1 of 12."}"#);
        for token in ["test", "1", "content"] {
            let expected = completion("A test tube, 1 of 12.", Finish::Stop, [0; 3]);
            assert_eq!(read(caption.as_bytes(), Some(token)), expected, "{token}");
        }
        let refusal = of(r#"{"content":null,"refusal":"Not for test 1."}"#);
        assert_eq!(read(refusal.as_bytes(), Some("1")), Held::Filtered("Not for test <token>.".to_owned()));
        // One that JSON writes in another way, and one that would be cut.
        assert_eq!(words(br#"{"error":{"message":"No a\"b here.","code":1}}"#, Some("a\"b")), "No <token> here.");
        let long = format!("{} secret", "x".repeat(MOST_WORDS - 4));
        assert!(
            words(long.as_bytes(), Some("secret")).ends_with(" <to…"),
            "{}",
            words(long.as_bytes(), Some("secret"))
        );
        let Held::Nothing { words, .. } = read(br#""Bearer secret""#, Some("secret")) else {
            panic!("it is no answer")
        };
        assert!(words.contains("Bearer <token>") && !words.contains("secret"), "{words}");
    }
}
