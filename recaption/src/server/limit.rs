//! How many requests an endpoint has at a time: as many as it answers sooner together than one after the other.

use std::time::Duration;

/// With which a new endpoint begins.
const START: f64 = 4.0;
/// Windows of fewer answers say nothing about latency.
const FEWEST: usize = 4;
/// Twice as many requests may take 2^0.7 times as long each: answers then still come 23 % faster.
const EXPONENT: f64 = 0.7;
/// By which more has to come out for a higher limit to be better.
const GAIN: f64 = 1.05;
/// By which a window's latency may be off, by chance.
const NOISE: f64 = 1.1;
/// Differences below it say nothing, in seconds.
const SLACK: f64 = 0.002;
/// Windows after which what was best is found out anew, from half the limit: servers and captions change.
const AGE: u32 = 64;

/// A limit that looks for the knee: a window is as many answers as there may be requests; it doubles with each window to the
/// `threshold`, then grows by one, for as long as [latency holds](Limit::holds).
#[derive(Clone, Debug)]
pub(super) struct Limit {
    now: f64,
    cap: f64,
    threshold: f64,
    window: Window,
    best: Option<Best>,
    /// Windows since it was looked for from the beginning.
    age: u32,
    /// Requests that were sent before this one have already been taken as a reason to shrink.
    shrunk_at: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    answers: usize,
    seconds: f64,
    /// Answers to requests that filled the limit.
    full: usize,
}

/// The limit at which most came out.
#[derive(Clone, Copy, Debug)]
struct Best {
    limit: f64,
    seconds: f64,
}

impl Limit {
    pub(super) fn new(cap: usize) -> Self {
        let cap = cap.max(1) as f64;
        Self { now: START.min(cap), cap, threshold: cap, window: Window::default(), best: None, age: 0, shrunk_at: 0 }
    }

    pub(super) fn now(&self) -> usize {
        self.now as usize
    }

    /// An answer came. `was_full` when its request was one of as many as there may be; `carefully` when too many at once may
    /// do harm, so that the limit is not to be doubled.
    pub(super) fn answered(&mut self, latency: Duration, was_full: bool, carefully: bool) {
        self.window.answers += 1;
        self.window.seconds += latency.as_secs_f64();
        self.window.full += usize::from(was_full);
        if self.window.answers < self.now() {
            return;
        }
        let window = std::mem::take(&mut self.window);
        let seconds = window.seconds / window.answers as f64;
        let holds = window.answers < FEWEST || self.holds(seconds);
        if window.full * 2 < window.answers {
            return;
        }
        self.age += 1;
        if self.age >= AGE {
            self.age = 0;
            self.best = None;
            self.threshold = self.now.max(2.0);
            self.now = (self.now / 2.0).max(START.min(self.now));
        } else if holds {
            let more = if self.now < self.threshold && !carefully { self.now } else { 1.0 };
            self.now = (self.now + more).min(self.cap);
        } else if let Some(best) = self.best {
            self.now = (self.now * 0.9).max(best.limit.min(self.now));
            self.threshold = self.now.max(2.0);
        }
    }

    /// Whether a window's mean latency is no more than the limit is worth; it is remembered where it is better than that.
    fn holds(&mut self, seconds: f64) -> bool {
        let Some(best) = &mut self.best else {
            self.best = Some(Best { limit: self.now, seconds });
            return true;
        };
        let more = (self.now / best.limit).max(1.0);
        let holds = seconds <= best.seconds * more.powf(EXPONENT) * NOISE + SLACK;
        let gain = self.now * best.seconds / (best.limit * seconds).max(f64::MIN_POSITIVE);
        if gain > if self.now > best.limit { GAIN } else { 1.0 } {
            *best = Best { limit: self.now, seconds };
        }
        holds
    }

    /// A request that was sent as number `sent` was one too many; `next` is the number of the next one.
    pub(super) fn shrink(&mut self, factor: f64, sent: u64, next: u64) {
        if sent < self.shrunk_at {
            return;
        }
        self.shrunk_at = next;
        self.now = (self.now * factor).max(1.0);
        self.threshold = self.now.max(2.0);
        self.window = Window::default();
    }

    /// From one again, fast to half of where it was.
    pub(super) fn restart(&mut self) {
        self.threshold = (self.now / 2.0).max(self.threshold / 4.0).max(2.0);
        self.now = 1.0;
        self.window = Window::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Windows of answers from a server that serves `slots` at a time, and lets others wait.
    fn windows(limit: &mut Limit, slots: f64, count: usize) {
        for _ in 0..count {
            let seconds = (limit.now() as f64 / slots).max(1.0);
            for _ in 0..limit.now() {
                limit.answered(Duration::from_secs_f64(seconds), true, false);
            }
        }
    }

    #[test]
    fn it_grows_to_the_cap_where_latency_holds() {
        let mut limit = Limit::new(50);
        assert_eq!(limit.now(), 4);
        windows(&mut limit, 1000.0, 4);
        assert_eq!(limit.now(), 50);
        assert_eq!(Limit::new(2).now(), 2);
    }

    #[test]
    fn it_stays_near_what_the_server_serves_at_a_time() {
        for slots in [8.0, 20.0, 100.0] {
            let mut limit = Limit::new(1000);
            windows(&mut limit, slots, 20);
            for _ in 0..500 {
                windows(&mut limit, slots, 1);
                let now = limit.now() as f64;
                assert!(now >= slots * 0.45 && now <= slots * 2.5, "{slots}: {now}");
            }
        }
    }

    #[test]
    fn it_does_not_grow_while_nobody_asks_for_more() {
        let mut limit = Limit::new(50);
        (0..100).for_each(|_| limit.answered(Duration::from_secs(1), false, false));
        assert_eq!(limit.now(), 4);
    }

    #[test]
    fn it_shrinks_once_for_what_was_sent_together_and_starts_again_from_one() {
        let mut limit = Limit::new(64);
        windows(&mut limit, 1000.0, 10);
        limit.shrink(0.5, 100, 164);
        limit.shrink(0.5, 163, 170);
        assert_eq!(limit.now(), 32);
        limit.shrink(0.5, 164, 180);
        assert_eq!(limit.now(), 16);
        limit.restart();
        assert_eq!(limit.now(), 1);
        windows(&mut limit, 1000.0, 4);
        assert_eq!(limit.now(), 9, "1, 2, 4, 8, 9");
        limit.restart();
        (0..3).for_each(|_| limit.answered(Duration::from_secs(1), true, true));
        assert_eq!(limit.now(), 3, "carefully");
        (0..40).for_each(|n| limit.shrink(0.1, 1000 + n, 1001 + n));
        assert_eq!(limit.now(), 1);
    }
}
