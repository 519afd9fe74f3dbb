//! How the engine is doing.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Seconds of work after which a window is full.
const WINDOW: f64 = 10.0;

/// How the engine is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct InProcessStatus {
    /// Requests that are answered at a time; fewer than asked for once memory has run out.
    pub slots: usize,
    /// Slots in use.
    pub active: usize,
    /// Requests that are prepared, and wait for a slot.
    pub waiting: usize,
    /// Requests answered so far, and those of them that had an image.
    pub answered: u64,
    pub images: u64,
    /// Tokens so far; of requests that were begun anew, each time.
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// How often memory ran out.
    pub out_of_memory: u64,
    /// Tokens of answers made, and images answered, in a second of the last ten to twenty seconds of work.
    pub tokens_per_second: f64,
    pub images_per_second: f64,
}

/// What was done in some seconds of work.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    seconds: f64,
    tokens: u64,
    images: u64,
}

#[derive(Debug, Default)]
struct Counts {
    totals: InProcessStatus,
    before: Window,
    now: Window,
}

/// What the engine tells those who wait for it.
#[derive(Debug, Default)]
pub(super) struct Figures {
    counts: Mutex<Counts>,
    /// Why the engine has stopped.
    pub(super) fault: OnceLock<String>,
}

impl Figures {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut InProcessStatus)) {
        change(&mut self.counts().totals);
    }

    /// A step that began at `start` is done, and `tokens` of answers were made.
    pub(super) fn worked(&self, start: Instant, tokens: u64) {
        self.counts().work(start.elapsed(), tokens);
    }

    /// A request was answered, and `active` slots are still in use.
    pub(super) fn answered(&self, has_image: bool, active: usize) {
        let mut counts = self.counts();
        counts.totals.active = active;
        counts.totals.answered += 1;
        counts.totals.images += u64::from(has_image);
        counts.now.images += u64::from(has_image);
    }

    /// All but what waits, which the queue knows.
    pub(super) fn status(&self) -> InProcessStatus {
        let counts = self.counts();
        let seconds = counts.before.seconds + counts.now.seconds;
        let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        InProcessStatus {
            tokens_per_second: rate(counts.before.tokens + counts.now.tokens),
            images_per_second: rate(counts.before.images + counts.now.images),
            ..counts.totals
        }
    }
}

impl Counts {
    fn work(&mut self, time: Duration, tokens: u64) {
        self.totals.completion_tokens += tokens;
        if self.now.seconds >= WINDOW {
            self.before = std::mem::take(&mut self.now);
        }
        self.now.seconds += time.as_secs_f64();
        self.now.tokens += tokens;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_recent_work() {
        let figures = Figures::default();
        assert_eq!(figures.status().tokens_per_second, 0.0);
        for _ in 0..100 {
            figures.counts().work(Duration::from_secs(1), 5);
        }
        figures.answered(true, 3);
        figures.answered(false, 2);
        assert_eq!(figures.status().tokens_per_second, 5.0);
        for _ in 0..21 {
            figures.counts().work(Duration::from_secs(1), 90);
        }
        let status = figures.status();
        assert_eq!((status.tokens_per_second, status.answered, status.images, status.active), (90.0, 2, 1, 2));
        assert_eq!(status.completion_tokens, 100 * 5 + 21 * 90);
    }
}
