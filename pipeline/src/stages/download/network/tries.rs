//! How often a row is tried, and what it waits for in between.

use std::time::Duration;

use super::refusal::Retry;
use super::{LONGEST_WAIT, back_off};

/// How long, and how often, it is waited for descriptors or ports when they have run out.
const ROOM: (Duration, u32) = (Duration::from_millis(250), 240);
/// Answers "429" after which a row ends whatever its host says to others: it may say so to this URL alone.
const TOO_MANY: u32 = 8;

/// The tries of one row.
#[derive(Debug, Default)]
pub(super) struct Tries {
    failed: u32,
    without_room: u32,
    too_many: u32,
    /// How often its host had answered others when it last said "429" to this row.
    others: u64,
}

impl Tries {
    /// How long to wait after a try before the next one. None where there is to be none: so many `retries` may fail.
    pub(super) fn wait(&mut self, retry: Retry, retries: u32) -> Option<Duration> {
        match retry {
            Retry::No => None,
            Retry::WhenThereIsRoom => {
                self.without_room += 1;
                (self.without_room <= ROOM.1).then_some(ROOM.0)
            }
            Retry::Later => self.fail(retries).then(|| back_off(self.failed)),
            Retry::After(wait) => self.fail(retries).then_some(wait.min(LONGEST_WAIT)),
            Retry::TooMany { wait, others } => {
                let answers_others = std::mem::replace(&mut self.others, others) < others;
                if retries == 0 || self.too_many == TOO_MANY {
                    return None;
                }
                if !answers_others && !self.fail(retries) {
                    return None;
                }
                self.too_many += 1;
                // A second and a bit at first.
                Some(wait.unwrap_or_else(|| back_off(self.too_many + 2)).min(LONGEST_WAIT))
            }
        }
    }

    /// Counts a try that failed; whether there may be another.
    fn fail(&mut self, retries: u32) -> bool {
        self.failed += 1;
        self.failed <= retries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_tried_again_as_often_as_it_may() {
        let mut tries = Tries::default();
        assert_eq!(tries.wait(Retry::After(Duration::from_hours(1)), 2), Some(LONGEST_WAIT));
        assert!(tries.wait(Retry::WhenThereIsRoom, 2).is_some(), "which is no try of its own");
        assert!(tries.wait(Retry::Later, 2).is_some());
        assert_eq!(tries.wait(Retry::Later, 2), None);
        assert_eq!(Tries::default().wait(Retry::No, 2), None);
    }

    #[test]
    fn too_many_requests_are_no_try_of_a_row_as_long_as_others_are_answered() {
        let too_many = |others: u64| Retry::TooMany { wait: None, others };
        let mut alone = Tries::default();
        assert!(alone.wait(too_many(0), 1).is_some());
        assert_eq!(alone.wait(too_many(0), 1), None, "the host answers nobody");

        let mut among_others = Tries::default();
        let waits: Vec<Duration> = (1..=8).map_while(|others| among_others.wait(too_many(others), 1)).collect();
        assert_eq!(waits.len(), 8);
        assert!(waits[0] >= Duration::from_secs(1) && waits[0] < Duration::from_secs(2), "{waits:?}");
        assert!(waits.is_sorted() && waits[7] == LONGEST_WAIT, "{waits:?}");
        assert_eq!(among_others.wait(too_many(9), 1), None, "nor for ever");
        assert_eq!(Tries::default().wait(too_many(1), 0), None, "nor where nothing is to be tried again");
        let wait = Some(Duration::from_secs(7));
        assert_eq!(Tries::default().wait(Retry::TooMany { wait, others: 1 }, 1), wait);
    }
}
