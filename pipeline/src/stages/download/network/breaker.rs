//! Tells a list full of dead links from a network that has gone: when nothing at all answers any more, rows are not to blame.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::Url;
use tokio::time::{Instant, sleep};

use super::LOOK;
use super::refusal::{Refusal, Retry};

/// Before anything has answered, one dead host with many rows says nothing about the network: there are to be so many, or all.
const HOSTS: usize = 16;
/// Hosts that answered and are remembered, to be asked again.
const GOOD: usize = 8;
/// While other requests are under way, an answer may yet come.
const SILENCE: Duration = Duration::from_secs(5);

/// Suspects when so many tries in a row have reached no host. Whether it is right is for a [probe](super::Network) to say: one
/// dead host may have many rows.
#[derive(Debug)]
pub(super) struct Breaker {
    /// 0: never.
    after: usize,
    silence: Duration,
    failed: Mutex<Failed>,
}

#[derive(Debug)]
struct Failed {
    tries: usize,
    hosts: HashSet<String>,
    /// How many hosts are known, whether they answered or not.
    known: usize,
    /// Whether any of them has a name. Where a name server says of all that there is none, it has answered.
    has_name: bool,
    last_answer: Instant,
    /// URLs that something answered to, each on another host, the latest last.
    good: Vec<Url>,
    /// What was tried last, and what it ended with.
    bad: Option<Url>,
    last: String,
}

impl Breaker {
    pub(super) fn new(after: usize) -> Self {
        let failed = Failed {
            tries: 0,
            hosts: HashSet::new(),
            known: 0,
            has_name: false,
            last_answer: Instant::now(),
            good: Vec::new(),
            bad: None,
            last: String::new(),
        };
        Self { after, silence: SILENCE, failed: Mutex::new(failed) }
    }

    /// Something answered at `url`, whatever it said.
    pub(super) fn answered(&self, url: &Url) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.last_answer = Instant::now();
        if failed.tries > 0 || failed.good.len() < GOOD {
            failed.tries = 0;
            failed.hosts.clear();
            failed.has_name = false;
            failed.good.retain(|good| good.origin() != url.origin());
            failed.good.push(url.clone());
            if failed.good.len() > GOOD {
                failed.good.remove(0);
            }
        }
    }

    /// URLs that something answered to. If nothing ever did: the one that was tried last.
    pub(super) fn candidates(&self) -> Vec<Url> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.good.is_empty() { failed.bad.iter().cloned().collect() } else { failed.good.clone() }
    }

    pub(super) fn last_answer(&self) -> Instant {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).last_answer
    }

    /// `url` on `host`, one of so many `known` ones, could not be reached, or was not even asked for because of that.
    pub(super) fn unreachable(&self, url: &Url, host: &str, known: usize, refusal: &Refusal) {
        if self.after == 0 {
            return;
        }
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.tries += 1;
        failed.known = known;
        failed.has_name |= refusal.retry != Retry::No;
        if failed.hosts.len() < HOSTS {
            failed.hosts.insert(host.to_owned());
        }
        failed.bad = Some(url.clone());
        failed.last = format!("{}: {}", refusal.reason, refusal.detail);
    }

    /// What looks like a dead network; with `in_silence`, only when no answer has come for a while either, as long as others
    /// may be on their way.
    pub(super) fn suspicion(&self, in_silence: bool) -> Option<NetworkGone> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let enough = if failed.has_name { HOSTS.min(failed.known) } else { HOSTS };
        let are_enough = !failed.good.is_empty() || failed.hosts.len() >= enough;
        let looks_gone = self.after > 0 && failed.tries >= self.after && are_enough;
        let is_silent = !in_silence || failed.last_answer.elapsed() >= self.silence;
        (looks_gone && is_silent).then(|| NetworkGone { tries: failed.tries, last: failed.last.clone() })
    }

    /// Ends when there is a suspicion, in silence.
    pub(super) async fn wait(&self) -> NetworkGone {
        loop {
            if let Some(gone) = self.suspicion(true) {
                return gone;
            }
            sleep(LOOK).await;
        }
    }
}

/// Nothing answers any more.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "the network seems to be gone: the last {tries} tries reached no host ({last}). Nothing of this partition is kept and \
     no row is blamed; run again when names resolve and hosts answer (ferrotype doctor looks at that). If the list is \
     really that dead, set stop_when_unreachable = 0"
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

    /// A try at a host of so many.
    fn fails(breaker: &Breaker, host: &str, known: usize) {
        breaker.unreachable(&url(), host, known, &Refusal::network("connection_failed", "no route").may_pass());
    }

    #[tokio::test]
    async fn it_suspects_when_nothing_answers_any_more() {
        let breaker = breaker(50);
        tokio::time::sleep(SHORT).await;
        for n in 0..49 {
            fails(&breaker, &format!("host{n}"), 500);
        }
        assert!(breaker.suspicion(true).is_none());
        fails(&breaker, "host50", 500);
        assert!(breaker.wait().await.to_string().contains("no route"));
    }

    #[tokio::test]
    async fn it_suspects_too_when_there_are_few_hosts() {
        let (all, some, answered) = (breaker(50), breaker(50), breaker(50));
        answered.answered(&url());
        tokio::time::sleep(SHORT).await;
        for n in 0..50 {
            let host = format!("host{}", n % 2);
            fails(&all, &host, 2);
            fails(&some, &host, 3);
            fails(&answered, &host, 3);
        }
        assert!(all.suspicion(true).is_some());
        assert!(some.suspicion(true).is_none(), "the third may yet answer");
        assert!(answered.suspicion(true).is_some(), "what answered before is to be asked");

        let nameless = breaker(50);
        let no_such_name = Refusal::network("unresolvable_host", "no such name");
        tokio::time::sleep(SHORT).await;
        (0..50).for_each(|_| nameless.unreachable(&url(), "host0", 1, &no_such_name));
        assert!(nameless.suspicion(true).is_none(), "the name server has answered");
    }

    #[test]
    fn hosts_that_answered_are_to_be_asked_again_or_else_the_one_that_failed() {
        let breaker = breaker(50);
        let at = |host: usize| Url::parse(&format!("http://host{host}.test/a.jpg")).unwrap();
        breaker.unreachable(&at(99), "host99.test:80", 1, &Refusal::network("connection_failed", "no route"));
        assert_eq!(breaker.candidates(), [at(99)], "where nothing has answered");
        for host in [0, 1, 0] {
            breaker.answered(&at(host));
        }
        assert_eq!(breaker.candidates(), [at(1), at(0)]);
        for host in 2..40 {
            breaker.answered(&at(host));
        }
        let first: Vec<Url> = [1, 0].into_iter().chain(2..GOOD).map(at).collect();
        assert_eq!(breaker.candidates(), first, "as long as all is well");
        fails(&breaker, "host99.test:80", 40);
        breaker.answered(&at(40));
        assert_eq!(breaker.candidates().last(), Some(&at(40)));
        assert_eq!(breaker.candidates().len(), GOOD);
    }

    #[tokio::test]
    async fn one_answer_one_dead_host_or_a_short_silence_are_no_suspicion() {
        let answered = breaker(50);
        tokio::time::sleep(SHORT).await;
        for n in 0..500 {
            fails(&answered, &format!("host{n}"), 500);
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
            fails(&at_once, &format!("host{n}"), 500);
        }
        tokio::time::sleep(SHORT).await;
        for n in 0..500 {
            fails(&one_host, "host", 500);
            fails(&never, &format!("host{n}"), 500);
        }
        assert!(
            one_host.suspicion(true).is_none() && never.suspicion(true).is_none() && at_once.suspicion(true).is_none()
        );
        assert!(at_once.suspicion(false).is_some() && never.suspicion(false).is_none());
    }
}
