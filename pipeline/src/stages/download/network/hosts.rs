//! What is known of each host, and how gently it is treated: how many requests it has at a time, how many in a second (fewer
//! once it says "429"), and whether it is worth another try.

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
/// Requests in a row without an answer in time after which a host is taken for dead too: those that it has at a time, as a rule, four times
/// over. One that only pauses for a while has all of them time out together.
const SILENT_AFTER: u32 = 64;
/// As a rule, a dead host is not asked again for so long.
pub(super) const DEAD_FOR: Duration = Duration::from_mins(1);
/// Answers "429" in a row after which the whole host is left alone for the time that it asks for.
const TOO_MANY: u32 = 4;
/// Answers "429" in a row, over as long as a dead host is not asked, after which there is no use in waiting: rows then end with that answer for
/// the time that it asks for.
const HOPELESS: u32 = 16;
/// What the first "429" of a host doubles where there is no time from one request to the next, or less.
const FIRST_INTERVAL: Duration = Duration::from_millis(2);
/// Every other answer shortens what "429" has made longer by one part in so many: where it is one answer in a dozen, the pace stays as it is.
const SHORTER_BY: u32 = 16;

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
    /// Rows wait here for the pace, the first of them for its time.
    line: Semaphore,
    failures: AtomicU32,
    silences: AtomicU32,
    too_many: AtomicU32,
    others: AtomicU64,
    pub(super) robots: HostRules,
    requests: AtomicU64,
    /// Milliseconds that its answers took together.
    waited: AtomicU64,
}

#[derive(Debug)]
struct Pace {
    /// When the next request may begin.
    next: Instant,
    /// From one request to the next.
    interval: Duration,
    /// When that last became longer.
    slowed: Instant,
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

impl Limits {
    /// The least time from one request to the next.
    fn interval(&self) -> Duration {
        if self.per_second > 0.0 { Duration::from_secs_f64(1.0 / self.per_second) } else { Duration::ZERO }
    }
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

    /// How many are known.
    pub(super) fn count(&self) -> usize {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Forgets which hosts were found to be dead from `since` on, when nothing else answered either.
    pub(super) fn give_another_chance(&self, since: Instant) {
        let hosts = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.values().for_each(|host| host.gets_another_chance(since));
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
            pace: Mutex::new(Pace {
                next: Instant::now(),
                interval: limits.interval(),
                slowed: Instant::now(),
                too_many_since: None,
                verdict: None,
            }),
            line: Semaphore::new(1),
            failures: AtomicU32::new(0),
            silences: AtomicU32::new(0),
            too_many: AtomicU32::new(0),
            others: AtomicU64::new(0),
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
        // One after the other, so that whatever the host asks for meanwhile holds for all of them.
        let _first = self.line.acquire().await;
        let mut at = Instant::now();
        loop {
            if let Some(refusal) = self.verdict() {
                return Err(refusal);
            }
            at = {
                let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
                let at = pace.next.max(at);
                if at <= Instant::now() {
                    pace.next = at + pace.interval;
                    return Ok(permit);
                }
                at
            };
            sleep_until(at).await;
        }
    }

    /// What asking it last ended with, where there is no use in asking again. Rows then end as if they had tried.
    pub(super) fn verdict(&self) -> Option<Refusal> {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, refusal) = pace.verdict.as_ref()?;
        if *until > Instant::now() {
            return Some(refusal.clone());
        }
        // The counts have stayed: one more failure is enough to know it again.
        pace.verdict = None;
        None
    }

    /// It answered, whatever it said, after `waited`.
    pub(super) fn answered(&self, waited: Duration) {
        if self.failures.swap(0, Ordering::Relaxed) + self.silences.swap(0, Ordering::Relaxed) > 0 {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.verdict = pace.verdict.take().filter(|(_, refusal)| !refusal.is_unreachable);
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.waited.fetch_add(waited.as_millis() as u64, Ordering::Relaxed);
    }

    /// It could not be connected to.
    pub(super) fn unreachable(&self, refusal: &Refusal) {
        self.fails(&self.failures, DEAD_AFTER, refusal);
    }

    /// It took a request, and did not answer in time.
    pub(super) fn silent(&self, refusal: &Refusal) {
        self.fails(&self.silences, SILENT_AFTER, refusal);
    }

    fn fails(&self, in_a_row: &AtomicU32, most: u32, refusal: &Refusal) {
        if in_a_row.fetch_add(1, Ordering::Relaxed) + 1 >= most {
            let refusal = Refusal { is_unreachable: true, ..refusal.clone() };
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.verdict = Some((Instant::now() + self.limits.dead_for, refusal));
        }
    }

    fn gets_another_chance(&self, since: Instant) {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = |until: Instant| until >= since + self.limits.dead_for;
        if pace.verdict.as_ref().is_some_and(|(until, refusal)| refusal.is_unreachable && is_new(*until)) {
            pace.verdict = None;
            self.failures.store(0, Ordering::Relaxed);
            self.silences.store(0, Ordering::Relaxed);
        }
    }

    /// It said "429" to a request that was sent at `sent`: it is asked half as often from now on. Requests that were on their way then
    /// say nothing about the new pace.
    pub(super) fn slow_down(&self, sent: Instant) {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        if sent < pace.slowed {
            return;
        }
        // Not so few that it takes long to know it for hopeless.
        let longest = self.limits.interval().max(self.limits.dead_for / HOPELESS);
        pace.slowed = Instant::now();
        pace.interval = (pace.interval.max(FIRST_INTERVAL) * 2).min(longest);
        pace.next = pace.next.max(pace.slowed + pace.interval);
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

    /// Its answer, whatever it was, is not "429".
    pub(super) fn says_something_else(&self) {
        self.others.fetch_add(1, Ordering::Relaxed);
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let (shorter, least) = (pace.interval.saturating_sub(pace.interval / SHORTER_BY), self.limits.interval());
        pace.interval = if shorter > least.max(FIRST_INTERVAL) { shorter } else { least };
        if self.too_many.swap(0, Ordering::Relaxed) > 0 {
            pace.too_many_since = None;
            pace.verdict = pace.verdict.take().filter(|(_, refusal)| refusal.is_unreachable);
        }
    }

    /// How often it has said something else.
    pub(super) fn others(&self) -> u64 {
        self.others.load(Ordering::Relaxed)
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
        host.says_something_else();
        assert!(host.verdict().is_none());
        host.asks_to_wait(SOON, &too_many(SOON));
        assert!(host.verdict().is_none(), "another answer clears its name");
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

    #[tokio::test]
    async fn one_that_does_not_answer_is_dead_too_until_it_does() {
        let host = Host::new("a", Limits { dead_for: DEAD_FOR, ..limits(1, 0.0) });
        let silence = Refusal::network("timed_out", "no answer in time");
        for _ in 1..SILENT_AFTER {
            host.silent(&silence);
            assert!(host.verdict().is_none());
        }
        host.silent(&silence);
        let verdict = host.verdict().unwrap();
        assert_eq!((verdict.reason, verdict.is_unreachable), ("timed_out", true));
        host.answered(Duration::ZERO);
        host.silent(&silence);
        assert!(host.verdict().is_none(), "an answer clears its name");
    }

    #[tokio::test]
    async fn what_was_dead_only_while_nothing_answered_gets_another_chance() {
        let hosts = Hosts::new(Limits { dead_for: DEAD_FOR, ..limits(1, 0.0) });
        let kill = |name: &str| (0..DEAD_AFTER).for_each(|_| hosts.get(name).unreachable(&refused()));
        kill("before");
        tokio::time::sleep(Duration::from_millis(2)).await;
        let since = Instant::now();
        kill("since");
        hosts.give_another_chance(since);
        assert!(hosts.get("before").verdict().is_some() && hosts.get("since").verdict().is_none());
        hosts.get("since").unreachable(&refused());
        assert!(hosts.get("since").verdict().is_none(), "as if it had not failed before");
    }

    #[tokio::test]
    async fn too_many_requests_make_it_slower_and_other_answers_faster_again() {
        let host = Host::new("a", Limits { dead_for: DEAD_FOR, ..limits(100, 50.0) });
        let milliseconds = || host.pace.lock().unwrap().interval.as_millis();
        let sent = Instant::now();
        tokio::time::sleep(Duration::from_millis(2)).await;
        host.slow_down(sent);
        host.slow_down(sent);
        assert_eq!(milliseconds(), 40, "the second was on its way with the first");
        drop((host.turn().await, host.turn().await));
        assert!(sent.elapsed() >= Duration::from_millis(80), "{:?}", sent.elapsed());
        host.slow_down(Instant::now());
        assert_eq!(milliseconds(), 80);
        (0..20).for_each(|_| host.slow_down(Instant::now()));
        assert_eq!(milliseconds(), 3750, "it is still asked");
        (0..200).for_each(|_| host.says_something_else());
        assert_eq!(milliseconds(), 20, "its limit stays");

        let without_limit = Host::new("a", Limits { dead_for: DEAD_FOR, ..limits(100, 0.0) });
        without_limit.slow_down(Instant::now());
        assert_eq!(without_limit.pace.lock().unwrap().interval, 2 * FIRST_INTERVAL);
        (0..20).for_each(|_| without_limit.says_something_else());
        assert_eq!(without_limit.pace.lock().unwrap().interval, Duration::ZERO);
    }

    #[tokio::test]
    async fn rows_that_wait_for_their_time_wait_longer_when_it_asks_for_that() {
        let host = Arc::new(Host::new("a", limits(2, 20.0)));
        drop(host.turn().await);
        let waiting = Arc::clone(&host);
        let waiting = tokio::spawn(async move { waiting.turn().await.map(drop) });
        tokio::task::yield_now().await;
        let (started, wait) = (Instant::now(), Duration::from_millis(300));
        (0..TOO_MANY).for_each(|_| host.asks_to_wait(wait, &too_many(wait)));
        waiting.await.unwrap().unwrap();
        assert!(started.elapsed() >= wait, "{:?}", started.elapsed());
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
