//! What a site allows: its robots.txt (RFC 9309), and the headers by which an answer opts out.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use texting_robots::Robot;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::least_back_off;
use super::refusal::{Refusal, Retry};

/// Rules of a robots.txt beyond this size count no more (RFC 9309 asks for 500 KiB at least).
pub(super) const MOST_BYTES: usize = 512 << 10;
/// The reason of rows that rules keep us from, or the want of rules.
const DISALLOWED: &str = "robots_disallowed";
/// As a rule, a robots.txt that could not be had as often as a row tries is not asked for again for so long.
const MISSING_FOR: Duration = Duration::from_mins(1);

/// What a host's robots.txt says to us.
pub(super) enum Rules {
    Parsed(Box<Robot>),
    AllowAll,
}

/// The rules of one host. They are kept once there are some. While there are none, rows end without asking, but for their own
/// tries: in between, the host is asked again.
#[derive(Debug, Default)]
pub(super) struct HostRules {
    known: OnceCell<Rules>,
    missing: Mutex<Option<Missing>>,
}

/// That they could not be had.
#[derive(Debug)]
struct Missing {
    /// So many times in a row.
    times: u32,
    /// The host is not asked before then; rows end with this meanwhile.
    until: Instant,
    refusal: Refusal,
}

impl HostRules {
    /// The rules, by `ask` where they are not known. `retries` is how often a row tries again.
    pub(super) async fn get<F>(&self, retries: u32, ask: impl FnOnce() -> F) -> Result<&Rules, Refusal>
    where
        F: Future<Output = Result<Rules, Refusal>>,
    {
        let init = move || async move {
            if let Some(refusal) = self.missing() {
                return Err(refusal);
            }
            ask().await.map_err(|refusal| self.miss(refusal, retries))
        };
        self.known.get_or_try_init(init).await
    }

    /// What rows end with as long as the host is not to be asked.
    fn missing(&self) -> Option<Refusal> {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.as_ref().filter(|missing| missing.until > Instant::now()).map(|missing| missing.refusal.clone())
    }

    /// Takes note that they did not come, and of when to ask again: as soon as a row would, and when that has been in vain, much
    /// later. Returns what the row that asked ends with.
    fn miss(&self, refusal: Refusal, retries: u32) -> Refusal {
        // A connection that failed is the row's own misfortune, and soon known; so is a host that cannot be reached.
        if refusal.is_unreachable || !matches!(refusal.reason, DISALLOWED | "timed_out") {
            return refusal;
        }
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let times = missing.as_ref().map_or(0, |missing| missing.times) + 1;
        let (wait, retry) =
            if times <= retries { (least_back_off(times), refusal.retry) } else { (MISSING_FOR, Retry::No) };
        let refusal = Refusal { retry, ..refusal };
        *missing = Some(Missing { times, until: Instant::now() + wait, refusal: refusal.clone() });
        refusal
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parsed(_) => "Parsed",
            Self::AllowAll => "AllowAll",
        })
    }
}

impl Rules {
    /// From the answer to a request for robots.txt: one that is not there allows everything, a server that cannot say
    /// allows nothing.
    pub(super) fn of_answer(agent: &str, status: StatusCode, body: &[u8]) -> Result<Self, Refusal> {
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Self::cannot_be_had(&format!("its robots.txt cannot be had: {status}")));
        }
        if !status.is_success() {
            return Ok(Self::AllowAll);
        }
        Ok(match Robot::new(agent, body) {
            Ok(robot) => Self::Parsed(Box::new(robot)),
            Err(_not_text) => Self::AllowAll,
        })
    }

    /// What a row ends with where there are none, so that nothing may be fetched. Another try may find some.
    pub(super) fn cannot_be_had(why: &str) -> Refusal {
        Refusal::network(DISALLOWED, why).may_pass()
    }

    /// Refuses a `url` that may not be fetched.
    pub(super) fn judge(&self, url: &str) -> Result<(), Refusal> {
        match self {
            Self::AllowAll => Ok(()),
            Self::Parsed(robot) if robot.allowed(url) => Ok(()),
            Self::Parsed(_) => Err(Refusal::network(DISALLOWED, "its robots.txt disallows it")),
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
    use std::sync::atomic::{AtomicU32, Ordering};

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
        let judge = |agent: &str, status: StatusCode, body: &[u8], url: &str| {
            Rules::of_answer(agent, status, body).and_then(|rules| rules.judge(url))
        };
        let disallowed = judge("ferrotype", StatusCode::OK, body, "http://a.test/private/x.jpg").unwrap_err();
        assert_eq!((disallowed.reason, disallowed.retry), ("robots_disallowed", Retry::No));
        judge("ferrotype", StatusCode::OK, body, "http://a.test/public/x.jpg").unwrap();
        judge("otherbot", StatusCode::OK, body, "http://a.test/public/x.jpg").unwrap_err();
        judge("ferrotype", StatusCode::NOT_FOUND, b"", "http://a.test/x").unwrap();
        let unknown = judge("ferrotype", StatusCode::SERVICE_UNAVAILABLE, b"", "http://a.test/x").unwrap_err();
        assert_eq!((unknown.reason, unknown.retry), ("robots_disallowed", Retry::Later));
        assert!(unknown.detail.contains("503"), "{}", unknown.detail);
        judge("ferrotype", StatusCode::OK, &[0xff; 100], "http://a.test/x").unwrap();
    }

    #[tokio::test]
    async fn rules_that_did_not_come_are_asked_for_again_but_seldom() {
        let asked = &AtomicU32::new(0);
        let fail = || async move {
            asked.fetch_add(1, Ordering::Relaxed);
            Err::<Rules, Refusal>(Rules::cannot_be_had("503"))
        };
        let rules = HostRules::default();
        for _ in 0..50 {
            assert_eq!(rules.get(1, fail).await.unwrap_err().retry, Retry::Later);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1, "before a row would try again");
        tokio::time::sleep(least_back_off(1)).await;
        for _ in 0..50 {
            let refusal = rules.get(1, fail).await.unwrap_err();
            assert_eq!((refusal.reason, refusal.retry), ("robots_disallowed", Retry::No));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2, "for its other try");

        let rules = HostRules::default();
        rules.get(1, fail).await.unwrap_err();
        tokio::time::sleep(least_back_off(1)).await;
        rules.get(1, || async { Ok::<Rules, Refusal>(Rules::AllowAll) }).await.unwrap();
        rules.get(1, fail).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 3, "what is known is not asked for");

        let rules = HostRules::default();
        let broken = || async { Err::<Rules, Refusal>(Refusal::network("connection_failed", "reset").may_pass()) };
        rules.get(0, broken).await.unwrap_err();
        rules.get(0, || async { Ok::<Rules, Refusal>(Rules::AllowAll) }).await.unwrap();
    }
}
