//! Why a row has no image, in words that do not depend on timing: the same answers give the same rows in quarantine.

use std::error::Error;
use std::fmt::Display;
use std::io::ErrorKind;
use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::dns::AddressError;

/// Why a row has no image.
#[derive(Clone, Debug)]
pub(in super::super) struct Refusal {
    /// One of a small set of words, by which refused rows are counted: `http_404`, `timed_out`, `too_slow`, `truncated`,
    /// `bad_answer`, `connection_failed`, `unresolvable_host`, `forbidden_address`, `invalid_url`, `bad_redirect`,
    /// `opted_out`, `robots_disallowed`, `too_large`, `empty`, `hash_mismatch`, and those of pictures.
    pub(in super::super) reason: &'static str,
    /// img2dataset's word.
    pub(in super::super) status: &'static str,
    pub(in super::super) detail: String,
    pub(super) retry: Retry,
    /// Nothing came back from the host: no connection, or no address for its name. Or it was not even asked, as it lately did
    /// not answer at all.
    pub(super) is_unreachable: bool,
}

/// Whether another try may have another end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    No,
    /// After a back-off of our own.
    Later,
    /// After the time that the server asked for.
    After(Duration),
    /// Once the host is asked less often, or after the time that it asked for. It has answered others so many times by now: as
    /// long as it does, it is the pace that failed, and not the row's try.
    TooMany {
        wait: Option<Duration>,
        others: u64,
    },
    /// As soon as this machine has a descriptor or a port again: it is not the row's try that failed.
    WhenThereIsRoom,
}

impl Refusal {
    pub(in super::super) fn network(reason: &'static str, detail: impl Display) -> Self {
        Self {
            reason,
            status: "failed_to_download",
            detail: detail.to_string(),
            retry: Retry::No,
            is_unreachable: false,
        }
    }

    pub(in super::super) fn picture(reason: &'static str, detail: impl Display) -> Self {
        Self { reason, status: "failed_to_resize", detail: detail.to_string(), retry: Retry::No, is_unreachable: false }
    }

    /// No answer in time, of a host that was connected to.
    pub(super) fn is_silence(&self) -> bool {
        self.reason == "timed_out"
    }

    pub(super) fn may_pass(self) -> Self {
        Self { retry: Retry::Later, ..self }
    }

    /// It says of the host that nothing can be had from it at all.
    fn unreachable(self) -> Self {
        Self { is_unreachable: true, ..self }
    }

    pub(super) fn of_address(error: &AddressError) -> Self {
        match error {
            AddressError::Forbidden(_) => Self::network("forbidden_address", error),
            AddressError::Scheme(_) => Self::network("invalid_url", error),
            AddressError::NoSuchName { .. } => Self::network("unresolvable_host", error).unreachable(),
            AddressError::NoRoom(_) => {
                Self { retry: Retry::WhenThereIsRoom, ..Self::network("unresolvable_host", error) }
            }
            // The name server may answer another time.
            AddressError::NoAnswer { .. } => Self::network("unresolvable_host", error).may_pass().unreachable(),
        }
    }

    /// What became of a request that brought no answer. `url` is what was asked for.
    pub(super) fn of_request(error: &reqwest::Error) -> Self {
        if let Some(address) = find::<AddressError>(error) {
            return Self::of_address(address);
        }
        if let Some(shortage) = find::<std::io::Error>(error).filter(|error| is_shortage(error)) {
            let refusal = Self::network("connection_failed", format!("this machine could not connect: {shortage}"));
            return Self { retry: Retry::WhenThereIsRoom, ..refusal };
        }
        if error.is_timeout() && error.is_connect() {
            return Self::network("connection_failed", "no connection within connect_timeout").may_pass().unreachable();
        }
        if error.is_timeout() {
            return Self::network("timed_out", "no answer in time").may_pass();
        }
        if let Some(http) = find::<hyper::Error>(error)
            && http.is_parse()
        {
            return Self::network("bad_answer", format!("what came back is not HTTP: {http}"));
        }
        if error.is_builder() {
            return Self::network("invalid_url", root_cause(error));
        }
        if error.is_connect() {
            return Self::network("connection_failed", root_cause(error)).may_pass().unreachable();
        }
        Self::network("connection_failed", format!("the connection broke before an answer: {}", root_cause(error)))
            .may_pass()
    }

    /// A body that broke off. `expected` is its announced length.
    pub(super) fn of_body(error: &reqwest::Error, expected: Option<u64>) -> Self {
        if let Some(chunk) = find::<std::io::Error>(error)
            && matches!(chunk.kind(), ErrorKind::InvalidInput | ErrorKind::InvalidData)
        {
            return Self::network("bad_answer", format!("its body is not HTTP: {chunk}"));
        }
        Self::cut_short(expected)
    }

    /// A body that ended before its end.
    pub(super) fn cut_short(expected: Option<u64>) -> Self {
        let expected = expected.map_or_else(|| "its end".to_owned(), |n| format!("all of its {n} bytes"));
        Self::network("truncated", format!("the connection closed before {expected} had come")).may_pass()
    }

    /// An answer that is neither a picture nor a redirect.
    pub(super) fn of_status(status: StatusCode, headers: &HeaderMap) -> Self {
        let reason = match status.as_u16() {
            401 => "http_401",
            403 => "http_403",
            404 => "http_404",
            408 => "http_408",
            410 => "http_410",
            429 => "http_429",
            451 => "http_451",
            500 => "http_500",
            502 => "http_502",
            503 => "http_503",
            504 => "http_504",
            200..=299 => "http_2xx",
            300..=399 => "http_3xx",
            400..=499 => "http_4xx",
            _ => "http_5xx",
        };
        // As Python's urllib has it, whose words img2dataset passes on.
        let (code, words) = (status.as_u16(), status.canonical_reason().unwrap_or_default());
        let refusal = Self::network(reason, format!("HTTP Error {code}: {words}"));
        if !(status.is_server_error() || matches!(status.as_u16(), 408 | 429)) {
            return refusal;
        }
        let retry = retry_after(headers, SystemTime::now()).map_or(Retry::Later, Retry::After);
        Self { retry, ..refusal }
    }
}

/// The wait that a server asks for: in seconds, or until a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// Whether a connection failed for want of descriptors (of this process or of the system) or of local ports.
pub(super) fn is_shortage(error: &std::io::Error) -> bool {
    let shortages = [libc::EMFILE, libc::ENFILE, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| shortages.contains(&code))
}

/// The error of type `E` somewhere below an error.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// reqwest says "error sending request"; what went wrong lies at the end of the chain.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_asked_for_in_seconds_or_until_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let after = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:42 GMT"), Some(Duration::from_secs(5)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(after("Sat, 06 Nov 1993 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
        assert_eq!(after("-3"), None);
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let retry = |status: u16| Refusal::of_status(StatusCode::from_u16(status).unwrap(), &HeaderMap::new()).retry;
        for status in [408, 429, 500, 502, 503, 504, 520] {
            assert_eq!(retry(status), Retry::Later, "{status}");
        }
        for status in [204, 304, 400, 401, 403, 404, 410, 451] {
            assert_eq!(retry(status), Retry::No, "{status}");
        }
    }
}
