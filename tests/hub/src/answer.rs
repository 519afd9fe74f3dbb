//! What is answered, before it goes over the wire.

use bytes::Bytes;
use serde_json::{Value, json};

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn new(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        Self { status, headers: vec![("content-type", content_type.to_owned())], body: body.into() }
    }

    pub(crate) fn json(status: u16, value: &Value) -> Self {
        Self::new(status, "application/json; charset=utf-8", value.to_string())
    }

    #[must_use]
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// A refusal as the Hub words it: its code and message are in headers, too.
    pub(crate) fn refusal(status: u16, code: Option<&str>, message: &str) -> Self {
        let mut answer = Self::json(status, &json!({"error": message})).with("x-error-message", message);
        if let Some(code) = code {
            answer = answer.with("x-error-code", code);
        }
        if status == 401 {
            answer = answer.with("www-authenticate", r#"Bearer realm="Authentication required", charset="UTF-8""#);
        }
        answer
    }

    pub(crate) fn bad_request(message: &str) -> Self {
        Self::refusal(400, None, message)
    }

    pub(crate) fn no_revision(revision: &str) -> Self {
        Self::refusal(404, Some("RevisionNotFound"), &format!("Invalid rev id: {revision}"))
    }

    pub(crate) fn no_entry(message: &str) -> Self {
        Self::refusal(404, Some("EntryNotFound"), message)
    }

    /// An error as S3 words it.
    pub(crate) fn xml(status: u16, code: &str, message: &str) -> Self {
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        );
        Self::new(status, "application/xml", text)
    }

    /// A file, or the part of it that is asked for.
    pub(crate) fn content(content: &Bytes, etag: &str, range: Option<&str>, if_range: Option<&str>) -> Self {
        let size = content.len();
        let etag = format!("\"{etag}\"");
        let is_same = if_range.is_none_or(|condition| condition == etag);
        let file = |status, body| {
            Self::new(status, "application/octet-stream", body)
                .with("etag", etag.clone())
                .with("accept-ranges", "bytes")
        };
        match range.filter(|_| is_same).and_then(|range| part(range, size)) {
            None => file(200, content.clone()),
            Some(None) => Self::xml(416, "InvalidRange", "The requested range is not satisfiable")
                .with("content-range", format!("bytes */{size}")),
            Some(Some((from, to))) => {
                file(206, content.slice(from..to)).with("content-range", format!("bytes {from}-{}/{size}", to - 1))
            }
        }
    }
}

/// Of a range, begin and end; none inside where it has nothing of the file, and none at all where it is no single range, which
/// is then ignored.
#[expect(clippy::option_option, reason = "to ignore a range and to refuse it are two things")]
fn part(range: &str, size: usize) -> Option<Option<(usize, usize)>> {
    let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
    if from.is_empty() {
        let last: usize = to.parse().ok()?;
        return Some((last > 0 && size > 0).then(|| (size.saturating_sub(last), size)));
    }
    let from: usize = from.parse().ok()?;
    let to: usize = if to.is_empty() { usize::MAX } else { to.parse().ok()? };
    if to < from {
        return None;
    }
    Some((from < size).then(|| (from, to.saturating_add(1).min(size))))
}

#[cfg(test)]
mod tests {
    use super::part;

    #[test]
    fn ranges_are_read_as_rfc_9110_has_them() {
        assert_eq!(part("bytes=0-", 10), Some(Some((0, 10))));
        assert_eq!(part("bytes=3-4", 10), Some(Some((3, 5))));
        assert_eq!(part("bytes=3-400", 10), Some(Some((3, 10))));
        assert_eq!(part("bytes=-4", 10), Some(Some((6, 10))));
        assert_eq!(part("bytes=-40", 10), Some(Some((0, 10))));
        assert_eq!(part("bytes=10-", 10), Some(None));
        assert_eq!(part("bytes=-0", 10), Some(None));
        assert_eq!(part("bytes=0-", 0), Some(None));
        assert_eq!(part("bytes=0-1,3-4", 10), None);
        assert_eq!(part("bytes=4-3", 10), None);
        assert_eq!(part("lines=0-", 10), None);
    }
}
