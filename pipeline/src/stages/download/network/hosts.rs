//! What is known of each host, and how gently it is treated: how many requests it has at a time, how many in a second, and
//! whether it is worth another try.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use super::refusal::{Refusal, Retry};
use super::robots::HostRules;

/// Hosts that are remembered; above it, those that nobody asks at the moment are forgotten.
const REMEMBERED: usize = 100_000;
/// Failed connections in a row after which a host is taken for dead.
const DEAD_AFTER: u32 = 8;
/// As a rule, a dead host is not asked again for so long.
pub(super) const DEAD_FOR: Duration = Duration::from_mins(1);
/// Answers "429" in a row after which the whole host is left alone for the time that it asks for.
const TOO_MANY: u32 = 4;
/// Answers "429" in a row, over as long as a dead host is not asked, after which there is no use in waiting: rows then end with that answer for
/// the time that it asks for.
const HOPELESS: u32 = 64;

/// How one host is treated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Requests at a time.
    pub(super) in_flight: usize,
    /// Requests begun in a second; 0 is without limit.
    pub(super) per_second: f64,
    /// For so long a dead host is not asked again; one that says nothing but "429" is waited for as long.
    pub(super) dead_for: Duration,
}

/// All hosts.
#[derive(Debug)]
pub(super) struct Hosts {
    limits: Limits,
    by_name: Mutex<HashMap<String, Arc<Host>>>,
}

/// One host, by name and port.
#[derive(Debug)]
pub(super) struct Host {
    name: String,
    permits: Arc<Semaphore>,
    limits: Limits,
    pace: Mutex<Pace>,
    failures: AtomicU32,
    too_many: AtomicU32,
    pub(super) robots: HostRules,
    requests: AtomicU64,
    /// Milliseconds that its answers took together.
    waited: AtomicU64,
}

#[derive(Debug)]
struct Pace {
    /// When the next request may begin.
    next: Instant,
    /// Since when it says nothing but "429".
    too_many_since: Option<Instant>,
    /// Until when there is no use in asking it, and what rows end with meanwhile.
    verdict: Option<(Instant, Refusal)>,
}

/// How slow a host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Slow {
    pub(in super::super) host: String,
    pub(in super::super) requests: u64,
    pub(in super::super) milliseconds: u64,
}

impl Hosts {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, by_name: Mutex::default() }
    }

    pub(super) fn get(&self, name: &str) -> Arc<Host> {
        let mut hosts = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = hosts.get(name) {
            return Arc::clone(host);
        }
        if hosts.len() >= REMEMBERED {
            hosts.retain(|_, host| Arc::strong_count(host) > 1);
        }
        let host = Arc::new(Host::new(name, self.limits));
        hosts.insert(name.to_owned(), Arc::clone(&host));
        host
    }

    /// The hosts whose answers take longest, of those that were asked more than twice.
    pub(super) fn slowest(&self, most: usize) -> Vec<Slow> {
        let hosts = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let mut slow: Vec<Slow> = hosts.values().filter_map(|host| host.slowness()).collect();
        slow.sort_by(|a, b| b.milliseconds.cmp(&a.milliseconds).then_with(|| a.host.cmp(&b.host)));
        slow.truncate(most);
        slow
    }
}

impl Host {
    fn new(name: &str, limits: Limits) -> Self {
        Self {
            name: name.to_owned(),
            permits: Arc::new(Semaphore::new(limits.in_flight)),
            limits,
            pace: Mutex::new(Pace { next: Instant::now(), too_many_since: None, verdict: None }),
            failures: AtomicU32::new(0),
            too_many: AtomicU32::new(0),
            robots: HostRules::default(),
            requests: AtomicU64::new(0),
            waited: AtomicU64::new(0),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Waits for this host's turn. The permit is held while it is asked. Rows may wait here in their thousands: a verdict that falls
    /// meanwhile ends all of them.
    pub(super) async fn turn(&self) -> Result<Option<OwnedSemaphorePermit>, Refusal> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        if let Some(refusal) = self.verdict() {
            return Err(refusal);
        }
        let at = {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let at = pace.next.max(now);
            if self.limits.per_second > 0.0 {
                pace.next = at + Duration::from_secs_f64(1.0 / self.limits.per_second);
            }
            at
        };
        if at > Instant::now() {
            sleep_until(at).await;
            if let Some(refusal) = self.verdict() {
                return Err(refusal);
            }
        }
        Ok(permit)
    }

    /// What asking it last ended with, where there is no use in asking again. Rows then end as if they had tried.
    pub(super) fn verdict(&self) -> Option<Refusal> {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, refusal) = pace.verdict.as_ref()?;
        if *until > Instant::now() {
            return Some(refusal.clone());
        }
        if refusal.is_unreachable {
            // One more failure is enough to know it again. Where it asked to wait, that count has stayed.
            self.failures.store(DEAD_AFTER - 1, Ordering::Relaxed);
        }
        pace.verdict = None;
        None
    }

    /// It answered, whatever it said, after `waited`.
    pub(super) fn answered(&self, waited: Duration) {
        self.failures.store(0, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.waited.fetch_add(waited.as_millis() as u64, Ordering::Relaxed);
    }

    /// It could not be connected to.
    pub(super) fn unreachable(&self, refusal: &Refusal) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= DEAD_AFTER {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.verdict = Some((Instant::now() + self.limits.dead_for, refusal.clone()));
        }
    }

    /// It answered with `refusal`, which asks for fewer requests: for none during `wait`.
    pub(super) fn asks_to_wait(&self, wait: Duration, refusal: &Refusal) {
        let in_a_row = self.too_many.fetch_add(1, Ordering::Relaxed) + 1;
        let now = Instant::now();
        let until = now + wait;
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *pace.too_many_since.get_or_insert(now);
        if in_a_row < TOO_MANY {
            return;
        }
        pace.next = pace.next.max(until);
        if in_a_row >= HOPELESS && now - since >= self.limits.dead_for {
            pace.verdict = Some((until, Refusal { retry: Retry::No, ..refusal.clone() }));
        }
    }

    /// It gave what it was asked for.
    pub(super) fn serves(&self) {
        if self.too_many.swap(0, Ordering::Relaxed) > 0 {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.too_many_since = None;
            pace.verdict = pace.verdict.take().filter(|(_, refusal)| refusal.is_unreachable);
        }
    }

    fn slowness(&self) -> Option<Slow> {
        let requests = self.requests.load(Ordering::Relaxed);
        let milliseconds = self.waited.load(Ordering::Relaxed).checked_div(requests).filter(|_| requests > 2)?;
        Some(Slow { host: self.name.clone(), requests, milliseconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(60);

    fn limits(in_flight: usize, per_second: f64) -> Limits {
        Limits { in_flight, per_second, dead_for: SOON }
    }

    /// No connection.
    fn refused() -> Refusal {
        Refusal { is_unreachable: true, ..Refusal::network("connection_failed", "refused") }
    }

    fn too_many(wait: Duration) -> Refusal {
        Refusal { retry: Retry::After(wait), ..Refusal::network("http_429", "HTTP Error 429: Too Many Requests") }
    }

    #[tokio::test]
    async fn a_host_has_so_many_requests_in_a_second_and_so_many_at_a_time() {
        let hosts = Hosts::new(limits(100, 200.0));
        let host = hosts.get("a");
        let started = Instant::now();
        for _ in 0..21 {
            drop(host.turn().await);
        }
        assert!(started.elapsed() >= Duration::from_millis(100), "{:?}", started.elapsed());

        let few = Hosts::new(limits(2, 0.0)).get("b");
        let held = [few.turn().await, few.turn().await];
        assert!(tokio::time::timeout(SOON, few.turn()).await.is_err());
        drop(held);
        assert!(few.turn().await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_dead_host_is_known_for_a_while_and_then_asked_again() {
        let host = Host::new("a", limits(1, 0.0));
        let refusal = refused();
        for _ in 1..DEAD_AFTER {
            host.unreachable(&refusal);
            assert!(host.verdict().is_none());
        }
        host.unreachable(&refusal);
        assert_eq!(host.verdict().unwrap().detail, "refused");
        tokio::time::sleep(SOON).await;
        assert!(host.verdict().is_none(), "it gets another chance");
        host.unreachable(&refusal);
        assert!(host.verdict().is_some(), "and is dead at once when it fails");
        tokio::time::sleep(SOON).await;
        assert!(host.verdict().is_none());
        host.answered(Duration::ZERO);
        host.unreachable(&refusal);
        assert!(host.verdict().is_none(), "an answer clears its name");
    }

    #[tokio::test]
    async fn one_that_says_too_many_requests_again_and_again_is_left_alone() {
        let host = Host::new("a", limits(1, 0.0));
        let wait = Duration::from_millis(300);
        for _ in 1..TOO_MANY {
            host.asks_to_wait(wait, &too_many(wait));
        }
        let started = Instant::now();
        drop(host.turn().await);
        assert!(started.elapsed() < wait);
        host.asks_to_wait(wait, &too_many(wait));
        drop(host.turn().await);
        assert!(started.elapsed() >= wait);
    }

    #[tokio::test]
    async fn one_that_says_nothing_but_too_many_requests_is_not_waited_for() {
        let host = Host::new("a", limits(2, 0.0));
        for _ in 0..HOPELESS {
            host.asks_to_wait(SOON, &too_many(SOON));
            assert!(host.verdict().is_none(), "a burst says little");
        }
        tokio::time::sleep(SOON).await;
        host.asks_to_wait(SOON, &too_many(SOON));
        let verdict = host.verdict().unwrap();
        assert_eq!((verdict.reason, verdict.retry), ("http_429", Retry::No));
        assert_eq!(host.turn().await.unwrap_err().reason, "http_429");
        tokio::time::sleep(SOON).await;
        assert!(host.verdict().is_none(), "it gets another chance");
        host.unreachable(&refused());
        assert!(host.verdict().is_none(), "which is no failed connection");
        host.asks_to_wait(SOON, &too_many(SOON));
        assert!(host.verdict().is_some(), "and is hopeless at once when it says so again");
        host.serves();
        assert!(host.verdict().is_none());
        host.asks_to_wait(SOON, &too_many(SOON));
        assert!(host.verdict().is_none(), "what it serves clears its name");
    }

    #[tokio::test]
    async fn rows_that_wait_when_a_verdict_falls_end_with_it() {
        let host = Arc::new(Host::new("a", limits(2, 0.0)));
        let held = [host.turn().await, host.turn().await];
        let waiting = Arc::clone(&host);
        let waiting = tokio::spawn(async move { waiting.turn().await.map(drop) });
        tokio::task::yield_now().await;
        let long = Duration::from_secs(30);
        for _ in 1..HOPELESS {
            host.asks_to_wait(long, &too_many(long));
        }
        tokio::time::sleep(SOON).await;
        host.asks_to_wait(long, &too_many(long));
        drop(held);
        let ended = tokio::time::timeout(long / 3, waiting).await.unwrap().unwrap();
        assert_eq!(ended.unwrap_err().reason, "http_429");
    }

    #[test]
    fn the_slowest_are_named() {
        let hosts = Hosts::new(limits(1, 0.0));
        for (name, milliseconds, times) in [("fast", 5, 9), ("slow", 500, 3), ("rare", 9000, 2)] {
            (0..times).for_each(|_| hosts.get(name).answered(Duration::from_millis(milliseconds)));
        }
        let names: Vec<String> = hosts.slowest(5).into_iter().map(|slow| slow.host).collect();
        assert_eq!(names, ["slow", "fast"]);
    }
}
