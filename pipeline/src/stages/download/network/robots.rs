//! What a site allows: its robots.txt (RFC 9309), and the headers by which an answer opts out.

use std::fmt;

use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use texting_robots::Robot;

/// Rules of a robots.txt beyond this size count no more (RFC 9309 asks for 500 KiB at least).
pub(super) const MOST_BYTES: usize = 512 << 10;

/// What a host's robots.txt says to us.
pub(super) enum Rules {
    Parsed(Box<Robot>),
    AllowAll,
    /// It could not be had, so nothing may be fetched; the text says why.
    Unknown(String),
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parsed(_) => "Parsed",
            Self::AllowAll => "AllowAll",
            Self::Unknown(_) => "Unknown",
        })
    }
}

impl Rules {
    /// From the answer to a request for robots.txt: one that is not there allows everything, a server that cannot say
    /// allows nothing.
    pub(super) fn of_answer(agent: &str, status: StatusCode, body: &[u8]) -> Self {
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Self::Unknown(format!("its robots.txt cannot be had: {status}"));
        }
        if !status.is_success() {
            return Self::AllowAll;
        }
        match Robot::new(agent, body) {
            Ok(robot) => Self::Parsed(Box::new(robot)),
            Err(_not_text) => Self::AllowAll,
        }
    }

    /// Why `url` may not be fetched; `None` where it may.
    pub(super) fn refuse(&self, url: &str) -> Option<String> {
        match self {
            Self::AllowAll => None,
            Self::Parsed(robot) if robot.allowed(url) => None,
            Self::Parsed(_) => Some("its robots.txt disallows it".to_owned()),
            Self::Unknown(why) => Some(why.clone()),
        }
    }
}

/// Headers by which an answer says that it is not for training.
#[derive(Clone, Debug)]
pub(super) struct OptOut {
    /// In lower case: `noai`.
    pub(super) directives: Vec<String>,
    /// Our name in `X-Robots-Tag: ferrotype: noai`, in lower case.
    pub(super) agent: String,
    pub(super) tdm_reservation: bool,
}

/// Directives whose values follow a colon, which names no agent there.
const WITH_VALUES: [&str; 4] = ["unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"];

impl OptOut {
    /// By which header an answer opts out, in words.
    pub(super) fn found(&self, headers: &HeaderMap) -> Option<String> {
        for value in headers.get_all("x-robots-tag") {
            // A byte that is no ASCII spoils one directive, not the others.
            if let Some(directive) = self.disallowed(&String::from_utf8_lossy(value.as_bytes())) {
                // img2dataset's words, and the directive.
                return Some(format!("Use of image disallowed by X-Robots-Tag directive ({directive})"));
            }
        }
        let reserved = headers.get("tdm-reservation").is_some_and(|value| value.as_bytes().trim_ascii() == b"1");
        (self.tdm_reservation && reserved).then(|| "tdm-reservation: 1".to_owned())
    }

    /// The directive of one header that concerns us. An agent's name holds for all directives until the next name. What has white
    /// space within is no name: a date has commas and colons of its own.
    fn disallowed(&self, value: &str) -> Option<String> {
        let mut for_us = true;
        for part in value.split(',') {
            let mut directive = part.trim().to_lowercase();
            if let Some((name, rest)) = directive.split_once(':')
                && !WITH_VALUES.contains(&name.trim())
                && !name.trim().contains(char::is_whitespace)
            {
                for_us = matches!(name.trim(), "*") || name.trim() == self.agent;
                directive = rest.trim().to_owned();
            }
            if for_us && self.directives.contains(&directive) {
                return Some(directive);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_count_when_they_are_meant_for_all_or_for_us() {
        let directives = ["noai", "noimageai", "noindex", "noimageindex"].map(str::to_owned).to_vec();
        let opt_out = OptOut { directives, agent: "ferrotype".into(), tdm_reservation: true };
        for value in [
            "noai",
            "nofollow, NoImageAI",
            "ferrotype: noai",
            "Ferrotype:noindex, nofollow",
            "*: noai",
            "otherbot: nofollow, ferrotype: noai",
            "unavailable_after: 25 Jun 2010 15:00:00 PST, noai",
            "unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT, noai",
            "max-image-preview: large, noindex",
        ] {
            assert!(opt_out.disallowed(value).is_some(), "{value}");
        }
        for value in [
            "",
            "nofollow",
            "otherbot: noai",
            "otherbot: nofollow, noai",
            "otherbot: unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT, noai",
            "max-snippet: 0",
            "noaix",
            ": noai",
        ] {
            assert!(opt_out.disallowed(value).is_none(), "{value}");
        }
        let mut headers = HeaderMap::new();
        headers.append("x-robots-tag", "otherbot: noai".parse().unwrap());
        assert_eq!(opt_out.found(&headers), None);
        headers.append("x-robots-tag", "noindex".parse().unwrap());
        assert!(opt_out.found(&headers).unwrap().ends_with("X-Robots-Tag directive (noindex)"));
        let mut headers = HeaderMap::new();
        headers.append("tdm-reservation", "1".parse().unwrap());
        assert!(opt_out.found(&headers).is_some());
        assert!(OptOut { tdm_reservation: false, ..opt_out }.found(&headers).is_none());
    }

    #[test]
    fn a_robots_txt_that_is_not_there_allows_and_one_that_cannot_be_had_does_not() {
        let body = b"User-agent: ferrotype\nDisallow: /private/\nUser-agent: *\nDisallow: /\n";
        let rules = Rules::of_answer("ferrotype", StatusCode::OK, body);
        assert!(rules.refuse("http://a.test/private/x.jpg").is_some());
        assert!(rules.refuse("http://a.test/public/x.jpg").is_none());
        assert!(Rules::of_answer("otherbot", StatusCode::OK, body).refuse("http://a.test/public/x.jpg").is_some());
        assert!(Rules::of_answer("ferrotype", StatusCode::NOT_FOUND, b"").refuse("http://a.test/x").is_none());
        let unknown = Rules::of_answer("ferrotype", StatusCode::SERVICE_UNAVAILABLE, b"");
        assert!(unknown.refuse("http://a.test/x").unwrap().contains("503"));
        assert!(Rules::of_answer("ferrotype", StatusCode::OK, &[0xff; 100]).refuse("http://a.test/x").is_none());
    }
}
