//! Which rank was lost first, so that all ranks name the same one.
//!
//! When a rank dies, those that depend on it end too, and each of them looks dead to others. So what looks lost is only a
//! suspicion at first. The lowest rank that the one who suspects still hears from decides, and tells all; the others wait for
//! its word, and say so themselves if it does not come. It is the same with a rank that fails by itself: when several do at
//! once, all name the same one.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::ranks_in_words;

/// What makes a rank look lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Sign {
    /// The connection ended.
    Closed,
    /// No byte comes.
    Silent,
    /// It says so itself.
    Failed,
}

/// How long there is to learn of another rank that was lost before. A closed connection is known to all within milliseconds;
/// silence is noticed up to a heartbeat apart.
impl Sign {
    /// When this rank noticed, and decides.
    fn own(self) -> Duration {
        Duration::from_millis(if self == Self::Failed { 0 } else { 300 })
    }

    /// When another one noticed: this rank may yet do so too.
    fn reported(self) -> Duration {
        Duration::from_millis(match self {
            Self::Failed => 0,
            Self::Closed => 600,
            Self::Silent => 1500,
        })
    }

    /// When this rank noticed, another one was to decide, and did not.
    fn unanswered(self) -> Duration {
        Duration::from_millis(match self {
            Self::Failed => 400,
            Self::Closed => 1200,
            Self::Silent => 2300,
        })
    }
}

#[derive(Clone, Debug)]
struct Suspicion {
    rank: usize,
    sign: Sign,
    reason: String,
    /// By another rank.
    is_reported: bool,
    at: Instant,
}

/// The rank that was lost, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) rank: usize,
    pub(super) reason: String,
}

/// What one rank suspects.
#[derive(Debug, Default)]
pub(super) struct Suspicions(Vec<Suspicion>);

impl Suspicions {
    /// Whether it is news, and worth telling.
    pub(super) fn add(&mut self, rank: usize, sign: Sign, reason: String, is_reported: bool, at: Instant) -> bool {
        let known = self.0.iter().any(|known| known.rank == rank && (is_reported || !known.is_reported));
        if !known {
            self.0.push(Suspicion { rank, sign, reason, is_reported, at });
        }
        !known
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn suspects(&self, rank: usize) -> bool {
        self.0.iter().any(|suspicion| suspicion.rank == rank)
    }

    /// Who decides: the lowest of the ranks that are `present` and not suspected. `own` always is one of these.
    pub(super) fn arbiter(&self, own: usize, present: &[usize]) -> usize {
        present.iter().copied().filter(|rank| !self.suspects(*rank)).min().map_or(own, |rank| rank.min(own))
    }

    /// The verdict, if it is time for one.
    pub(super) fn decide(&self, own: usize, present: &[usize], now: Instant) -> Option<Lost> {
        let decides = self.arbiter(own, present) == own;
        let is_due = |suspicion: &&Suspicion| {
            let wait = match suspicion {
                Suspicion { is_reported: true, sign, .. } => sign.reported(),
                Suspicion { sign, .. } if decides => sign.own(),
                Suspicion { sign, .. } => sign.unanswered(),
            };
            now.saturating_duration_since(suspicion.at) >= wait
        };
        self.0.iter().find(is_due)?;
        let first = self.0.iter().min_by_key(|suspicion| suspicion.at)?;
        Some(Lost { rank: first.rank, reason: self.reason(first, own, present) })
    }

    /// With the other ranks that are silent: a cut link takes many at once.
    fn reason(&self, first: &Suspicion, own: usize, present: &[usize]) -> String {
        let is_silent = |rank: &usize| {
            self.0.iter().any(|other| other.rank == *rank && other.sign == Sign::Silent && !other.is_reported)
        };
        let mut others: Vec<usize> =
            present.iter().copied().filter(|rank| *rank != first.rank && *rank != own).collect();
        let all = others.len();
        others.retain(is_silent);
        others.sort_unstable();
        let reason = &first.reason;
        if first.sign != Sign::Silent || first.is_reported || others.is_empty() {
            reason.clone()
        } else if others.len() == all {
            format!("{reason}, nor did anything from any other rank: the network of rank {own}'s machine may be cut")
        } else {
            format!("{reason}, nor did anything from {}", ranks_in_words(&others))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRESENT: [usize; 4] = [0, 1, 2, 3];

    fn after(suspicions: &Suspicions, own: usize, from: Instant, milliseconds: u64) -> Option<usize> {
        let lost = suspicions.decide(own, &PRESENT, from + Duration::from_millis(milliseconds));
        lost.map(|lost| lost.rank)
    }

    #[test]
    fn the_first_is_named_by_the_lowest_that_is_left() {
        let now = Instant::now();
        let mut suspicions = Suspicions::default();
        assert!(suspicions.add(2, Sign::Closed, "closed".into(), false, now));
        assert!(suspicions.add(3, Sign::Closed, "closed".into(), false, now + Duration::from_millis(20)));
        assert!(!suspicions.add(2, Sign::Closed, "again".into(), false, now));
        assert_eq!([suspicions.arbiter(0, &PRESENT), suspicions.arbiter(1, &PRESENT)], [0, 0]);
        assert_eq!([after(&suspicions, 0, now, 290), after(&suspicions, 0, now, 300)], [None, Some(2)]);
        assert_eq!([after(&suspicions, 1, now, 1190), after(&suspicions, 1, now, 1200)], [None, Some(2)]);
        let mut suspicions = Suspicions::default();
        suspicions.add(0, Sign::Silent, "silent".into(), false, now);
        assert_eq!([suspicions.arbiter(1, &PRESENT), suspicions.arbiter(3, &PRESENT)], [1, 1]);
        assert_eq!(suspicions.arbiter(3, &[0, 2]), 2, "1 has left");
    }

    #[test]
    fn what_another_suspects_counts_later() {
        let now = Instant::now();
        let mut suspicions = Suspicions::default();
        suspicions.add(2, Sign::Silent, "silent".into(), true, now);
        assert_eq!([after(&suspicions, 0, now, 1490), after(&suspicions, 0, now, 1500)], [None, Some(2)]);
        suspicions.add(2, Sign::Silent, "silent".into(), false, now + Duration::from_millis(500));
        assert_eq!([after(&suspicions, 0, now, 790), after(&suspicions, 0, now, 800)], [None, Some(2)]);
    }

    #[test]
    fn one_that_fails_by_itself_is_named_at_once_unless_another_was_before() {
        let now = Instant::now();
        let mut suspicions = Suspicions::default();
        suspicions.add(2, Sign::Failed, "why".into(), false, now);
        assert_eq!([after(&suspicions, 2, now, 390), after(&suspicions, 2, now, 400)], [None, Some(2)]);
        let mut suspicions = Suspicions::default();
        suspicions.add(2, Sign::Failed, "why".into(), true, now);
        assert_eq!(after(&suspicions, 0, now, 0), Some(2));
        let mut suspicions = Suspicions::default();
        suspicions.add(0, Sign::Failed, "why".into(), false, now);
        assert_eq!(after(&suspicions, 0, now, 0), Some(0));
        let mut suspicions = Suspicions::default();
        suspicions.add(3, Sign::Closed, "closed".into(), false, now);
        suspicions.add(2, Sign::Failed, "why".into(), true, now + Duration::from_millis(50));
        assert_eq!(after(&suspicions, 0, now, 50), Some(3));
    }

    #[test]
    fn a_cut_link_is_told_from_a_dead_rank() {
        let now = Instant::now();
        let mut suspicions = Suspicions::default();
        let reason = |suspicions: &Suspicions, own| {
            suspicions.decide(own, &PRESENT, now + Duration::from_secs(9)).map(|lost| lost.reason).unwrap()
        };
        suspicions.add(1, Sign::Silent, "nothing".into(), false, now);
        assert_eq!(reason(&suspicions, 0), "nothing");
        suspicions.add(3, Sign::Silent, "nothing".into(), false, now);
        assert_eq!(reason(&suspicions, 0), "nothing, nor did anything from rank 3");
        suspicions.add(2, Sign::Silent, "nothing".into(), false, now);
        assert!(reason(&suspicions, 0).contains("the network of rank 0's machine may be cut"));
    }
}
