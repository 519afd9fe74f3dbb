//! One request's way through its tries: what it has met with, and what is to be done next.
//!
//! The row is only blamed for what it is to blame for. An endpoint that is gone or busy costs a request nothing but time.
//! One that breaks makes suspects of what was in flight; they go on in the company of suspects, then alone, and only what
//! fails [alone, on an endpoint that was just seen to work](Facts::is_to_blame), and that [more often](blames) than by
//! accident, is refused.

use std::time::Duration;

use tokio::time::Instant;

use super::endpoint::{Company, Facts};
use super::outcome::Outcome;
use super::retry::back_off;
use super::turns::Avoid;
use crate::captioner::Completion;

/// Failures alone, until a request is refused: at least, and at most.
const BLAMES: (u32, u32) = (2, 5);
/// So seldom may that be an accident.
const SELDOM: f64 = 1e-6;
/// Failures that it merely took part in, until it has to go alone.
const BROKEN: u32 = 3;
/// Failures of any kind of a server that answers others all the while. A request comes here only by very bad luck.
const MOST_BROKEN: u32 = 64;
/// Failures because a server is asked too much. It is [left alone](super::endpoint) then, so a request meets with few, unless it is too much
/// by itself.
const MOST_BUSY: u32 = 64;
/// Until this machine may have a descriptor or a port again.
const SHORTAGE: Duration = Duration::from_millis(250);

/// How often, and after which waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) attempts: u32,
    pub(super) back_off: Duration,
    pub(super) longest_back_off: Duration,
    /// For servers that are busy all the time.
    pub(super) give_up_after: Duration,
}

#[derive(Debug)]
pub(super) struct Course {
    pub(super) company: Company,
    /// Where it failed last.
    failed_at: Option<usize>,
    /// The endpoint that refused it first, and in which words: another is to say the same before it is believed.
    pub(super) refused_by: Option<(usize, String)>,
    /// Its last failure: the endpoint, and its number there.
    pub(super) broken_at: Option<(usize, u64)>,
    pub(super) sent: u32,
    pub(super) began: Instant,
    tries: u32,
    busy: u32,
    broken: u32,
    blamed: u32,
    /// Failures that were accidents, if there is an answer in the end.
    pub(super) accidents: u32,
}

/// How often a request has to fail alone until it is to blame, where `accidents` failures of requests that were answered in
/// the end came on so many `answers`. Twice where servers fail without a reason once in a thousand times.
pub(super) fn blames(accidents: u64, answers: u64) -> u32 {
    let rate = (accidents as f64 + 0.1) / ((accidents + answers) as f64 + 1.0);
    ((SELDOM.ln() / rate.ln()).ceil() as u32).clamp(BLAMES.0, BLAMES.1)
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    Done(Completion),
    Refuse {
        reason: &'static str,
        detail: String,
    },
    /// The server knows no such model, or nothing at the address.
    Missing {
        status: u16,
        words: String,
    },
    Unauthorised {
        status: u16,
        words: String,
    },
    /// This machine cannot ask.
    Stuck(String),
    /// After a wait, unless nothing at all has answered for too long.
    Again(Duration),
}

impl Course {
    pub(super) fn new() -> Self {
        Self {
            company: Company::Anyone,
            failed_at: None,
            refused_by: None,
            broken_at: None,
            sent: 0,
            began: Instant::now(),
            tries: 0,
            busy: 0,
            broken: 0,
            blamed: 0,
            accidents: 0,
        }
    }

    /// After a try as number `number` at `endpoint`. [`blames`] make a request one to be refused.
    pub(super) fn next(
        &mut self,
        outcome: Outcome,
        facts: Facts,
        (endpoint, number): (usize, u64),
        patience: &Patience,
        blames: u32,
    ) -> Next {
        self.sent += 1;
        self.failed_at = Some(endpoint);
        self.broken_at = None;
        let own = |tries: u32| back_off(patience.back_off, patience.longest_back_off, tries);
        match outcome {
            Outcome::Answered(completion) => Next::Done(completion),
            Outcome::Refused { reason, words } => Next::Refuse { reason, detail: words },
            Outcome::Unauthorised { status, words } => Next::Unauthorised { status, words },
            Outcome::Missing { status, words } => Next::Missing { status, words },
            Outcome::Bad { reason, words, wait } => self.tried(reason, &words, wait, patience),
            Outcome::TimedOut if facts.others_answered => {
                self.tried("timed_out", "no answer in time, while others had theirs", None, patience)
            }
            Outcome::TimedOut => {
                self.broke(facts, (endpoint, number), ("timed_out", "no answer in time"), own(1), blames)
            }
            Outcome::Broken { words, wait } => {
                let wait = wait.unwrap_or_else(|| own(self.broken + 1));
                self.broke(facts, (endpoint, number), ("poisoned", &words), wait, blames)
            }
            Outcome::Busy { words, wait, .. } => {
                self.busy += 1;
                if self.busy >= MOST_BUSY && self.began.elapsed() > patience.give_up_after {
                    let detail = format!("servers that answer others were busy {} times: {words}", self.busy);
                    return Next::Refuse { reason: "server_busy", detail };
                }
                if facts.has_cooled {
                    self.company = self.company.max(Company::Suspects);
                }
                Next::Again(wait.unwrap_or_else(|| own(self.busy)))
            }
            // It cools down; whoever is there is asked.
            Outcome::Unreachable(_) => Next::Again(Duration::ZERO),
            Outcome::Shortage(words) if self.began.elapsed() > patience.give_up_after => Next::Stuck(words),
            Outcome::Shortage(_) => Next::Again(SHORTAGE),
        }
    }

    /// Where it should not go next.
    pub(super) fn avoid(&self) -> Option<Avoid> {
        let refused_by = self.refused_by.as_ref().map(|(endpoint, _)| Avoid::Strictly(*endpoint));
        refused_by.or(self.failed_at.map(Avoid::Rather))
    }

    /// The server works, and this was no answer.
    fn tried(&mut self, reason: &'static str, words: &str, wait: Option<Duration>, patience: &Patience) -> Next {
        self.tries += 1;
        if self.tries >= patience.attempts {
            return Next::Refuse { reason, detail: format!("{words} (the last of {} tries)", self.tries) };
        }
        let wait = wait.unwrap_or_else(|| back_off(patience.back_off, patience.longest_back_off, self.tries));
        Next::Again(wait)
    }

    fn broke(
        &mut self,
        facts: Facts,
        at: (usize, u64),
        (reason, words): (&'static str, &str),
        wait: Duration,
        blames: u32,
    ) -> Next {
        self.broken += 1;
        self.blamed += u32::from(facts.is_to_blame);
        self.accidents += u32::from(facts.is_to_blame || facts.others_answered);
        if self.blamed >= blames {
            let detail = format!("a server that works fails whenever it is asked this, and this alone: {words}");
            return Next::Refuse { reason, detail };
        }
        if self.broken >= MOST_BROKEN {
            return Next::Refuse { reason: "server_errors", detail: format!("{} failures: {words}", self.broken) };
        }
        self.company = match self.company {
            _ if facts.was_alone || self.broken >= BROKEN => Company::Nobody,
            Company::Anyone if facts.has_cooled => Company::Suspects,
            Company::Suspects | Company::Nobody => Company::Nobody,
            Company::Anyone => {
                // Others may be about to fail with it.
                self.broken_at = Some(at);
                return Next::Again(wait);
            }
        };
        // It waits for its turn, and that is long enough.
        Next::Again(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        attempts: 3,
        back_off: Duration::from_millis(100),
        longest_back_off: Duration::from_secs(1),
        give_up_after: Duration::from_mins(10),
    };
    const TOGETHER: Facts =
        Facts { is_to_blame: false, was_alone: false, has_cooled: true, cools_now: false, others_answered: false };
    const ALONE: Facts = Facts { is_to_blame: true, was_alone: true, ..TOGETHER };

    fn broken() -> Outcome {
        Outcome::Broken { words: "500: it burns".to_owned(), wait: None }
    }

    #[test]
    fn only_what_fails_alone_and_twice_is_poisoned() {
        let mut course = Course::new();
        let mut next = |outcome, facts| {
            let next = course.next(outcome, facts, (0, 1), &PATIENCE, 2);
            (next, course.company)
        };
        let again = Next::Again(Duration::ZERO);
        assert_eq!(next(broken(), TOGETHER), (again, Company::Suspects));
        for _ in 0..5 {
            assert_eq!(next(broken(), TOGETHER), (Next::Again(Duration::ZERO), Company::Nobody));
            // Alone on an endpoint of which nobody knows whether it works.
            let unknown = Facts { is_to_blame: false, ..ALONE };
            assert_eq!(next(Outcome::TimedOut, unknown), (Next::Again(Duration::ZERO), Company::Nobody));
        }
        assert_eq!(next(broken(), ALONE).0, Next::Again(Duration::ZERO));
        let (end, _) = next(broken(), ALONE);
        assert!(matches!(&end, Next::Refuse { reason: "poisoned", detail } if detail.contains("it burns")), "{end:?}");
    }

    #[test]
    fn the_more_accidents_there_are_the_more_it_takes_to_be_blamed() {
        let needed: Vec<u32> = [(0, 0), (0, 20), (0, 1000), (1, 1000), (20, 1000), (50, 1000), (900, 1000)]
            .map(|(a, n)| blames(a, n))
            .into();
        assert_eq!(needed, [5, 3, 2, 3, 4, 5, 5]);
    }

    #[test]
    fn one_failure_while_others_are_answered_is_an_accident() {
        let mut course = Course::new();
        let facts = Facts { others_answered: true, has_cooled: false, ..TOGETHER };
        for _ in 1..BROKEN {
            let next = course.next(broken(), facts, (7, 12), &PATIENCE, 2);
            assert!(matches!(next, Next::Again(wait) if !wait.is_zero()), "{next:?}");
            assert_eq!((course.company, course.broken_at), (Company::Anyone, Some((7, 12))));
        }
        course.next(broken(), facts, (7, 12), &PATIENCE, 2);
        assert_eq!(course.company, Company::Nobody);
        let mut next = course.next(broken(), facts, (7, 12), &PATIENCE, 2);
        for _ in 0..MOST_BROKEN {
            next = course.next(broken(), facts, (7, 12), &PATIENCE, 2);
        }
        assert!(matches!(next, Next::Refuse { reason: "server_errors", .. }), "it has an end");
    }

    #[test]
    fn bad_answers_are_counted_and_busy_servers_are_not() {
        let mut course = Course::new();
        let bad = || Outcome::Bad { reason: "empty_answer", words: "nothing".to_owned(), wait: None };
        let busy = || Outcome::Busy { status: 429, words: "429".to_owned(), wait: Some(Duration::from_secs(7)) };
        let mut next =
            |outcome| course.next(outcome, Facts { others_answered: true, ..Facts::default() }, (0, 1), &PATIENCE, 2);
        assert!(matches!(next(bad()), Next::Again(_)));
        for _ in 0..20 {
            assert_eq!(next(busy()), Next::Again(Duration::from_secs(7)));
            assert_eq!(next(Outcome::Unreachable("refused".to_owned())), Next::Again(Duration::ZERO));
        }
        assert!(matches!(next(Outcome::TimedOut), Next::Again(_)));
        let end = next(bad());
        let detail = "nothing (the last of 3 tries)".to_owned();
        assert_eq!(end, Next::Refuse { reason: "empty_answer", detail });
        // Only what is asked for again and again, and for long, is too much by itself.
        let mut course = Course::new();
        let patience = Patience { give_up_after: Duration::ZERO, ..PATIENCE };
        for _ in 1..MOST_BUSY {
            let next = course.next(busy(), Facts::default(), (0, 1), &patience, 2);
            assert_eq!(next, Next::Again(Duration::from_secs(7)));
        }
        let end = course.next(busy(), Facts::default(), (0, 1), &patience, 2);
        assert!(matches!(end, Next::Refuse { reason: "server_busy", .. }), "{end:?}");
    }
}
