//! What is known of one endpoint, and when it is left alone.
//!
//! An endpoint is sound as long as it answers. [`RUN`] failures with no answer between, or one failure of a request that had
//! it to itself, and it cools down: nothing is sent for a pause, then it must pass a [probe](super::health), the last part
//! of which is a question that every working server answers. So an endpoint that is open again is known to work, and what
//! then fails alone there fails by its own fault.
//!
//! One that says several times in a row that it is asked too much is asked nothing for as long as it says, or for a while that doubles.
//!
//! One that refuses what others answer is left alone, too, until it answers that question itself: it has another model, a shorter context,
//! no credit.

use std::time::Duration;

use tokio::time::Instant;

use super::limit::Limit;
use super::outcome::Sign;
use super::retry::back_off;

/// Failures with no answer between.
const RUN: u32 = 3;
/// How much of the latest answer is in the smoothed latency.
const SMOOTH: f64 = 0.1;
/// Pauses in a row after which suspects no longer wait for this endpoint.
const LONG: u32 = 3;

/// Whom a request may be in flight with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Company {
    Anyone,
    /// It was in flight when an endpoint began to fail: with others like it.
    Suspects,
    /// It has failed among suspects, or alone.
    Nobody,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Endpoint {
    pub(super) limit: Limit,
    pub(super) in_flight: usize,
    /// Of these, those that are not for anyone's company.
    suspects: usize,
    has_lonely: bool,
    /// It takes no more ordinary requests, so that it becomes free for suspects.
    pub(super) is_reserved: bool,
    run: u32,
    /// It has answered, or passed a probe.
    is_proven: bool,
    /// Requests sent.
    sent: u64,
    pub(super) cooling: Option<Cooling>,
    /// The number of the first request after the last time that it began to cool down.
    cooled_at: u64,
    pub(super) answered: u64,
    pub(super) failed: u64,
    /// Requests refused since its last answer.
    pub(super) refused: u32,
    /// Failures for being asked too much, since its last answer.
    too_many: u32,
    /// Until then it is asked nothing, so that it is not asked too much …
    quiet_until: Option<Instant>,
    /// … by requests from this one on: what was sent before says nothing new.
    quiet_from: u64,
    /// It refused what others answered, and has not answered since.
    pub(super) must_answer: bool,
    /// Smoothed, in seconds.
    pub(super) latency: f64,
    last_alive: Option<Instant>,
    /// What its last failure was.
    pub(super) words: String,
}

/// For how long an endpoint is left alone at first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pauses {
    pub(super) cool_down: Duration,
    /// Where it was asked too much, and does not say until when; doubled each time, to the longest.
    pub(super) back_off: Duration,
    pub(super) longest_back_off: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Cooling {
    pub(super) pause: Duration,
    /// This one, and those before it after which it did not work.
    pub(super) pauses: u32,
}

/// A request's place at an endpoint, from when it is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) company: Company,
    pub(super) number: u64,
    at: Instant,
    was_full: bool,
    /// Nothing else was in flight.
    was_empty: bool,
    /// It is known to work.
    was_sound: bool,
}

/// What the end of a request says about its failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Facts {
    /// It was alone on an endpoint that was known to work.
    pub(super) is_to_blame: bool,
    /// Nothing else was in flight with it.
    pub(super) was_alone: bool,
    /// The endpoint has begun to cool down since it was sent, or just now because of it.
    pub(super) has_cooled: bool,
    /// It did so just now.
    pub(super) cools_now: bool,
    /// The endpoint has answered others since it was sent.
    pub(super) others_answered: bool,
}

impl Endpoint {
    pub(super) fn new(cap: usize) -> Self {
        Self {
            limit: Limit::new(cap),
            in_flight: 0,
            suspects: 0,
            has_lonely: false,
            is_reserved: false,
            run: 0,
            is_proven: false,
            sent: 0,
            cooling: None,
            cooled_at: 0,
            answered: 0,
            failed: 0,
            refused: 0,
            too_many: 0,
            quiet_until: None,
            quiet_from: 0,
            must_answer: false,
            latency: 0.0,
            last_alive: None,
            words: String::new(),
        }
    }

    pub(super) fn has_room_for(&self, company: Company) -> bool {
        if self.cooling.is_some() || self.quiet_until().is_some() {
            return false;
        }
        match company {
            Company::Anyone => !self.is_reserved && self.suspects == 0 && self.in_flight < self.limit.now(),
            Company::Suspects => {
                self.in_flight == self.suspects && !self.has_lonely && self.in_flight < self.limit.now()
            }
            Company::Nobody => self.in_flight == 0,
        }
    }

    /// Until when it is asked nothing because it was asked too much.
    pub(super) fn quiet_until(&self) -> Option<Instant> {
        self.quiet_until.filter(|until| *until > Instant::now())
    }

    /// Suspects are in flight here.
    pub(super) fn is_on_trial(&self) -> bool {
        self.suspects > 0
    }

    /// It will soon be free for suspects.
    pub(super) fn cools_for_a_moment(&self) -> bool {
        self.cooling.is_some_and(|cooling| cooling.pauses < LONG)
    }

    pub(super) fn enter(&mut self, company: Company) -> Place {
        let was_empty = self.in_flight == 0;
        self.in_flight += 1;
        self.suspects += usize::from(company > Company::Anyone);
        self.has_lonely |= company == Company::Nobody;
        self.sent += 1;
        Place {
            company,
            number: self.sent,
            at: Instant::now(),
            was_full: self.in_flight >= self.limit.now(),
            was_empty,
            was_sound: self.is_proven && self.run == 0,
        }
    }

    /// A request has come to its end, with `sign`.
    pub(super) fn leave(&mut self, place: Place, sign: Sign<'_>, pauses: Pauses) -> Facts {
        self.in_flight = self.in_flight.saturating_sub(1);
        if place.company > Company::Anyone {
            self.suspects = self.suspects.saturating_sub(1);
        }
        if place.company == Company::Nobody {
            self.has_lonely = false;
        }
        let others_answered = self.last_alive.is_some_and(|at| at > place.at);
        let was_alone = place.was_empty && self.sent == place.number;
        let (sent, next) = (place.number, self.sent + 1);
        let is_old = sent < self.cooled_at;
        let mut cools_now = false;
        match sign {
            Sign::Answered | Sign::Alive => {
                self.run = 0;
                self.is_proven = true;
                self.last_alive = Some(Instant::now());
                if sign == Sign::Answered {
                    self.answered += 1;
                    self.refused = 0;
                    self.too_many = 0;
                    self.must_answer = false;
                    let latency = place.at.elapsed();
                    let weight = if self.answered == 1 { 1.0 } else { SMOOTH };
                    self.latency += weight * (latency.as_secs_f64() - self.latency);
                    self.limit.answered(latency, place.was_full, place.company > Company::Anyone);
                }
            }
            Sign::TooMany { words, wait } => {
                self.fails(words);
                self.limit.shrink(0.7, sent, next);
                self.too_many += u32::from(sent >= self.quiet_from);
                if self.too_many >= RUN {
                    let own = || back_off(pauses.back_off, pauses.longest_back_off, self.too_many - RUN + 1);
                    let until = Instant::now() + wait.unwrap_or_else(own);
                    self.quiet_until = self.quiet_until.max(Some(until));
                    self.quiet_from = next;
                }
            }
            Sign::Overloaded(words) => {
                self.fails(words);
                self.limit.shrink(0.5, sent, next);
                self.run += u32::from(!is_old);
                cools_now = self.run >= RUN && !is_old;
            }
            Sign::TimedOut => {
                self.fails("no answer in time");
                self.limit.shrink(0.5, sent, next);
                if !others_answered && !is_old {
                    self.run += 1;
                    cools_now = self.run >= RUN || was_alone;
                }
            }
            Sign::Broken(words) => {
                self.fails(words);
                if !is_old {
                    self.run += 1;
                    cools_now = self.run >= RUN || was_alone;
                }
            }
            Sign::Gone(words) => {
                self.fails(words);
                cools_now = true;
            }
            Sign::None => {}
        }
        cools_now &= self.cooling.is_none();
        if cools_now {
            self.cool(pauses.cool_down);
        }
        let has_cooled = sent < self.cooled_at;
        Facts {
            is_to_blame: was_alone && place.was_sound && !others_answered,
            was_alone,
            has_cooled,
            cools_now,
            others_answered,
        }
    }

    fn cool(&mut self, pause: Duration) {
        self.cooling = Some(Cooling { pause, pauses: 1 });
        self.cooled_at = self.sent + 1;
        self.is_proven = false;
        self.is_reserved = false;
    }

    /// Another has answered what this one refused with `words`. Whether it cools down now, for `pause`: once may be moderation's whim.
    pub(super) fn is_contradicted(&mut self, words: &str, pause: Duration) -> bool {
        if self.refused < RUN || self.cooling.is_some() {
            return false;
        }
        self.stand_aside(format!("it refuses what others answer ({words})"), pause);
        true
    }

    /// Leaves it alone until it answers the small question.
    fn stand_aside(&mut self, words: String, pause: Duration) {
        self.words = words;
        self.refused = 0;
        self.must_answer = true;
        self.cool(pause);
    }

    /// It has never answered, and says with `words` that it cannot be asked so, as others can. Whether it cools down now.
    pub(super) fn is_another(&mut self, words: &str, pause: Duration) -> bool {
        if self.answered > 0 || self.cooling.is_some() {
            return false;
        }
        self.stand_aside(words.to_owned(), pause);
        true
    }

    fn fails(&mut self, words: &str) {
        self.failed += 1;
        words.clone_into(&mut self.words);
    }

    /// Whether it has begun to cool down since the request of this number.
    pub(super) fn has_cooled_since(&self, number: u64) -> bool {
        number < self.cooled_at
    }

    /// It did not pass the probe.
    pub(super) fn cool_on(&mut self, words: String, longest: Duration) {
        self.words = words;
        if let Some(cooling) = &mut self.cooling {
            cooling.pause = cooling.pause.saturating_mul(2).min(longest);
            cooling.pauses = cooling.pauses.saturating_add(1);
        }
    }

    /// It passed the probe.
    pub(super) fn reopen(&mut self) {
        self.cooling = None;
        self.run = 0;
        self.is_proven = true;
        self.last_alive = Some(Instant::now());
        self.limit.restart();
    }
}
