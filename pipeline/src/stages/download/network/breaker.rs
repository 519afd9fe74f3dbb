//! Tells a list full of dead links from a network that has gone: when nothing at all answers any more, rows are not to blame.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::Url;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::refusal::Refusal;

/// One dead host with many rows says nothing about the network.
const HOSTS: usize = 16;
/// While other requests are under way, an answer may yet come.
const SILENCE: Duration = Duration::from_secs(5);

/// Suspects when so many tries in a row have reached no host. Whether it is right is for a [probe](super::Network) to say.
#[derive(Debug)]
pub(super) struct Breaker {
    /// 0: never.
    after: usize,
    silence: Duration,
    failed: Mutex<Failed>,
    suspected: Notify,
}

#[derive(Debug)]
struct Failed {
    tries: usize,
    hosts: HashSet<String>,
    last_answer: Instant,
    /// A URL that something answered to.
    good: Option<Url>,
    last: String,
}

impl Breaker {
    pub(super) fn new(after: usize) -> Self {
        let last_answer = Instant::now();
        let failed = Failed { tries: 0, hosts: HashSet::new(), last_answer, good: None, last: String::new() };
        Self { after, silence: SILENCE, failed: Mutex::new(failed), suspected: Notify::new() }
    }

    /// Something answered at `url`, whatever it said.
    pub(super) fn answered(&self, url: &Url) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.last_answer = Instant::now();
        if failed.tries > 0 || failed.good.is_none() {
            failed.tries = 0;
            failed.hosts.clear();
            failed.good = Some(url.clone());
        }
    }

    /// A URL that something answered to, if anything ever did.
    pub(super) fn good(&self) -> Option<Url> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).good.clone()
    }

    /// `host` could not be reached.
    pub(super) fn unreachable(&self, host: &str, refusal: &Refusal) {
        if self.after == 0 {
            return;
        }
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.tries += 1;
        if failed.hosts.len() < HOSTS {
            failed.hosts.insert(host.to_owned());
        }
        failed.last = format!("{}: {}", refusal.reason, refusal.detail);
        drop(failed);
        if self.suspicion(true).is_some() {
            self.suspected.notify_waiters();
        }
    }

    /// What looks like a dead network; with `in_silence`, only when no answer has come for a while either, as long as others
    /// may be on their way.
    pub(super) fn suspicion(&self, in_silence: bool) -> Option<NetworkGone> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let looks_gone = self.after > 0 && failed.tries >= self.after && failed.hosts.len() >= HOSTS;
        let is_silent = !in_silence || failed.last_answer.elapsed() >= self.silence;
        (looks_gone && is_silent).then(|| NetworkGone { tries: failed.tries, last: failed.last.clone() })
    }

    /// Ends when there is a suspicion.
    pub(super) async fn wait(&self) -> NetworkGone {
        loop {
            let suspected = self.suspected.notified();
            if let Some(gone) = self.suspicion(true) {
                return gone;
            }
            suspected.await;
        }
    }
}

/// Nothing answers any more.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "the network seems to be gone: the last {tries} tries, at many hosts, reached none ({last}). Nothing of this partition \
     is kept and no row is blamed; run again when names resolve and hosts answer (ferrotype doctor looks at that). If the \
     list is really that dead, set stop_when_unreachable = 0"
)]
pub(in super::super) struct NetworkGone {
    tries: usize,
    last: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    fn breaker(after: usize) -> Breaker {
        Breaker { silence: SHORT, ..Breaker::new(after) }
    }

    fn url() -> Url {
        Url::parse("http://a.test/").unwrap()
    }

    fn refusal() -> Refusal {
        Refusal::network("connection_failed", "no route")
    }

    #[tokio::test]
    async fn it_suspects_when_nothing_answers_any_more() {
        let breaker = breaker(50);
        tokio::time::sleep(SHORT).await;
        for n in 0..49 {
            breaker.unreachable(&format!("host{n}"), &refusal());
        }
        assert!(breaker.suspicion(true).is_none());
        breaker.unreachable("host50", &refusal());
        assert!(breaker.wait().await.to_string().contains("no route"));
    }

    #[tokio::test]
    async fn one_answer_one_dead_host_or_a_short_silence_are_no_suspicion() {
        let answered = breaker(50);
        tokio::time::sleep(SHORT).await;
        for n in 0..500 {
            answered.unreachable(&format!("host{n}"), &refusal());
            if n % 40 == 0 {
                answered.answered(&url());
                tokio::time::sleep(SHORT).await;
            }
        }
        assert!(answered.suspicion(true).is_none());
        let one_host = breaker(50);
        let never = breaker(0);
        let at_once = Breaker::new(50);
        for n in 0..500 {
            at_once.unreachable(&format!("host{n}"), &refusal());
        }
        tokio::time::sleep(SHORT).await;
        for n in 0..500 {
            one_host.unreachable("host", &refusal());
            never.unreachable(&format!("host{n}"), &refusal());
        }
        assert!(
            one_host.suspicion(true).is_none() && never.suspicion(true).is_none() && at_once.suspicion(true).is_none()
        );
        assert!(at_once.suspicion(false).is_some() && never.suspicion(false).is_none());
    }
}
