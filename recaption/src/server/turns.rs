//! Whose turn it is, and where: what the fleet knows, behind its lock.
//!
//! Requests wait in three queues, by [whom they may be in flight with](Company). Those for nobody's company go first, to an
//! endpoint that has nothing in flight; then suspects, to one that has only suspects; then all others, to the endpoint that
//! is least loaded for its limit. Where suspects wait and no endpoint is about to be free for them, one is reserved: it takes
//! nothing else until it is. What one endpoint refused waits for another, in whatever company, and those behind it wait with it: an
//! endpoint that refuses at once is always free, and would be given all there is.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::endpoint::{Company, Endpoint, Place};
use super::fleet::Permit;
use super::retry::LONGEST as LONGEST_WAIT;

pub(super) struct State {
    pub(super) endpoints: Vec<Endpoint>,
    /// By company: anyone, suspects, nobody.
    pub(super) queues: [VecDeque<Waiting>; 3],
    /// Of the next one that waits.
    pub(super) next: u64,
    pub(super) last_answer: Option<Instant>,
    pub(super) silence: Option<Silence>,
    /// Failures of requests that were answered in the end.
    pub(super) accidents: u64,
}

/// Nothing at all has answered, though something was asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Silence {
    pub(super) since: Instant,
    last_asked: Instant,
}

/// Where a request should not go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Avoid {
    /// If there is room at another endpoint.
    Rather(usize),
    /// As long as another endpoint is open.
    Strictly(usize),
}

pub(super) struct Waiting {
    pub(super) id: u64,
    pub(super) avoid: Option<Avoid>,
    pub(super) turn: Reply,
}

/// Takes a permit, or why there will be none.
pub(super) type Reply = oneshot::Sender<Result<Permit, String>>;

/// Places that are taken, to be handed out when the state is no longer locked: one that nobody takes is given back.
pub(super) type Granted = Vec<(Reply, usize, Place)>;

impl State {
    pub(super) fn new(endpoints: Vec<Endpoint>) -> Self {
        Self { endpoints, queues: Default::default(), next: 0, last_answer: None, silence: None, accidents: 0 }
    }

    /// Lets a request wait; the number by which it is known. One that was sent before goes before the others.
    pub(super) fn wait(&mut self, company: Company, avoid: Option<Avoid>, is_first: bool, turn: Reply) -> u64 {
        let id = self.next;
        self.next += 1;
        let waiting = Waiting { id, avoid, turn };
        let queue = &mut self.queues[company as usize];
        if is_first {
            queue.push_back(waiting);
        } else {
            queue.push_front(waiting);
        }
        id
    }

    pub(super) fn no_longer_wait(&mut self, company: Company, id: u64) {
        self.queues[company as usize].retain(|waiting| waiting.id != id);
    }

    pub(super) fn is_heard(&mut self) {
        self.silence = None;
        self.last_answer = Some(Instant::now());
    }

    /// Something was asked, and did not answer.
    pub(super) fn is_silent(&mut self, timeout: Duration) {
        let now = Instant::now();
        let silence = self.silence.get_or_insert(Silence { since: now, last_asked: now });
        // While nobody asks, nobody can answer.
        if silence.last_asked.elapsed() > timeout + LONGEST_WAIT {
            silence.since = now;
        }
        silence.last_asked = now;
    }

    /// Gives out what is free.
    pub(super) fn grant(&mut self) -> Granted {
        let mut granted = Vec::new();
        while let Some((company, endpoint)) = self.next_turn() {
            let Some(waiting) = self.queues[company as usize].pop_front() else { break };
            if waiting.turn.is_closed() {
                continue;
            }
            let Some(of) = self.endpoints.get_mut(endpoint) else { break };
            granted.push((waiting.turn, endpoint, of.enter(company)));
        }
        granted
    }

    /// The first of the queue that may go on, and where to.
    fn next_turn(&mut self) -> Option<(Company, usize)> {
        let [ordinary, suspects, lonely] = &self.queues;
        let first_ordinary = ordinary.front().map(|waiting| waiting.avoid);
        let suspect = lonely.front().map(|waiting| (Company::Nobody, waiting.avoid));
        let suspect = suspect.or(suspects.front().map(|waiting| (Company::Suspects, waiting.avoid)));
        if let Some((company, avoid)) = suspect {
            // Rather one that suspects are at than one that others could use.
            let free = self.others_than(avoid).filter(|at| self.has_room(*at, company));
            if let Some(endpoint) = free.max_by_key(|at| self.endpoints.get(*at).map(Endpoint::is_on_trial)) {
                return Some((company, endpoint));
            }
            self.reserve(avoid);
        } else {
            self.endpoints.iter_mut().for_each(|endpoint| endpoint.is_reserved = false);
        }
        let avoid = first_ordinary?;
        let free = self.others_than(avoid).filter(|at| self.has_room(*at, Company::Anyone));
        let best = free.min_by(|a, b| {
            let load = |at: usize| {
                let load = self.endpoints.get(at).map_or(0.0, |e| e.in_flight as f64 / e.limit.now().max(1) as f64);
                (avoid == Some(Avoid::Rather(at)), load)
            };
            let (a, b) = (load(*a), load(*b));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
        })?;
        Some((Company::Anyone, best))
    }

    /// The endpoints without the one to be strictly avoided, unless no other is open.
    fn others_than(&self, avoid: Option<Avoid>) -> impl Iterator<Item = usize> {
        (0..self.endpoints.len()).filter(move |at| avoid != Some(Avoid::Strictly(*at)) || !self.is_open_beside(*at))
    }

    /// Whether another endpoint is open, if not free.
    pub(super) fn is_open_beside(&self, endpoint: usize) -> bool {
        self.endpoints.iter().enumerate().any(|(at, of)| at != endpoint && of.cooling.is_none())
    }

    fn has_room(&self, endpoint: usize, company: Company) -> bool {
        self.endpoints.get(endpoint).is_some_and(|endpoint| endpoint.has_room_for(company))
    }

    /// Sees to it that an endpoint becomes free for suspects, one that the first of them may go to.
    fn reserve(&mut self, avoid: Option<Avoid>) {
        let becomes_free = |e: &Endpoint| e.is_reserved || e.is_on_trial() || e.cools_for_a_moment();
        if self.others_than(avoid).any(|at| self.endpoints.get(at).is_some_and(becomes_free)) {
            return;
        }
        let in_flight = |at: usize| self.endpoints.get(at).filter(|e| e.cooling.is_none()).map(|e| e.in_flight);
        let least = self.others_than(avoid).filter_map(|at| Some((in_flight(at)?, at))).min();
        if let Some(endpoint) = least.and_then(|(_, at)| self.endpoints.get_mut(at)) {
            endpoint.is_reserved = true;
        }
    }
}
