//! All endpoints: [turns](super::turns) are waited for here, and what comes of each request is noted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::EndpointStatus;
use super::client::Client;
use super::course::blames;
use super::endpoint::{Company, Endpoint, Facts, Pauses, Place};
use super::health;
use super::options::{Address, Operations, seconds};
use super::outcome::Sign;
use super::turns::{Avoid, Granted, State};
use crate::captioner::Failure;

/// Requests that an endpoint refuses before it answers any, until the fault is taken to be in how it is asked.
const REFUSED_AT_FIRST: u32 = 32;
/// As above with no answer between, where it has answered before: it came back as another, or an account is empty.
const REFUSED_IN_A_ROW: u32 = 256;

pub(super) struct Fleet {
    pub(super) addresses: Vec<Address>,
    pub(super) client: Client,
    /// The bodies of a small question, without an image and with one.
    controls: [bytes::Bytes; 2],
    /// Whether there were requests with an image.
    pub(super) shows_images: AtomicBool,
    pub(super) timeout: Duration,
    pauses: Pauses,
    pub(super) longest_cool_down: Duration,
    give_up_after: Duration,
    state: Mutex<State>,
}

impl Fleet {
    pub(super) fn new(
        addresses: Vec<Address>,
        operations: &Operations,
        client: Client,
        controls: [bytes::Bytes; 2],
    ) -> Self {
        let endpoints = addresses.iter().map(|address| Endpoint::new(address.cap)).collect();
        Self {
            addresses,
            client,
            controls,
            shows_images: AtomicBool::new(false),
            timeout: seconds(operations.timeout),
            pauses: Pauses {
                cool_down: seconds(operations.cool_down),
                back_off: seconds(operations.back_off),
                longest_back_off: seconds(operations.longest_back_off),
            },
            longest_cool_down: seconds(operations.longest_cool_down).max(seconds(operations.cool_down)),
            give_up_after: seconds(operations.give_up_after),
            state: Mutex::new(State::new(endpoints)),
        }
    }

    /// A small question by which a server shows that it can do what is asked of it: one that fails at images only must not
    /// pass for one that works, or every image would be taken for poisoned.
    pub(super) fn control(&self) -> bytes::Bytes {
        let [without_image, with_image] = &self.controls;
        if self.shows_images.load(Ordering::Relaxed) { with_image.clone() } else { without_image.clone() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a request may be sent. `is_first` when it was not sent before.
    pub(super) async fn turn(
        self: &Arc<Self>,
        company: Company,
        avoid: Option<Avoid>,
        is_first: bool,
    ) -> Result<Permit, Failure> {
        let (turn, received) = oneshot::channel();
        let (id, granted) = {
            let mut state = self.state();
            if let Some(why) = self.silence(&state) {
                return Err(Failure::Unavailable(why));
            }
            let id = state.wait(company, avoid, is_first, turn);
            (id, state.grant())
        };
        self.hand_out(granted);
        let mut place_in_queue = InQueue { fleet: self, company, id, is_over: false };
        let received = received.await;
        place_in_queue.is_over = true;
        match received {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(why)) => Err(Failure::Unavailable(why)),
            Err(_never) => Err(Failure::Cancelled),
        }
    }

    /// Gives turns to those that wait for them. Those that no longer do give theirs back.
    fn hand_out(self: &Arc<Self>, granted: Granted) {
        for (waiting, endpoint, place) in granted {
            let permit = Permit { fleet: Arc::clone(self), endpoint, place: Some(place) };
            drop(waiting.send(Ok(permit)));
        }
    }

    fn leave(self: &Arc<Self>, endpoint: usize, place: Place, sign: Sign<'_>) -> Facts {
        let (facts, quiet, granted) = {
            let mut state = self.state();
            match sign {
                Sign::Answered | Sign::Alive => state.is_heard(),
                Sign::None => {}
                _ => state.is_silent(self.timeout),
            }
            let Some(of) = state.endpoints.get_mut(endpoint) else { return Facts::default() };
            let before = of.quiet_until();
            let facts = of.leave(place, sign, self.pauses);
            let quiet = of.quiet_until().filter(|until| before != Some(*until));
            (facts, quiet, state.grant())
        };
        if let Some(until) = quiet {
            self.go_on_at(until);
        }
        if facts.cools_now {
            health::cool(Arc::downgrade(self), endpoint);
        }
        self.hand_out(granted);
        facts
    }

    /// Gives turns when an endpoint may be asked again that is asked nothing until then.
    fn go_on_at(self: &Arc<Self>, until: Instant) {
        let fleet = Arc::downgrade(self);
        // Requests are made on a runtime, so their ends are there too.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            tokio::time::sleep_until(until).await;
            if let Some(fleet) = fleet.upgrade() {
                let granted = fleet.state().grant();
                fleet.hand_out(granted);
            }
        });
    }

    /// Whether an endpoint has begun to cool down since its request of this number.
    pub(super) fn has_cooled_since(&self, endpoint: usize, number: u64) -> bool {
        self.state().endpoints.get(endpoint).is_some_and(|endpoint| endpoint.has_cooled_since(number))
    }

    /// The pause of an endpoint that cools down.
    pub(super) fn pause(&self, endpoint: usize) -> Option<Duration> {
        self.state().endpoints.get(endpoint)?.cooling.map(|cooling| cooling.pause)
    }

    /// It has passed its probe.
    pub(super) fn reopen(self: &Arc<Self>, endpoint: usize) {
        let granted = {
            let mut state = self.state();
            state.is_heard();
            if let Some(endpoint) = state.endpoints.get_mut(endpoint) {
                endpoint.reopen();
            }
            state.grant()
        };
        self.hand_out(granted);
    }

    /// It has not. Where that was the last hope, nobody waits any longer.
    pub(super) fn cool_on(self: &Arc<Self>, endpoint: usize, words: String) {
        let mut state = self.state();
        state.is_silent(self.timeout);
        if let Some(endpoint) = state.endpoints.get_mut(endpoint) {
            endpoint.cool_on(words, self.longest_cool_down);
        }
        // Suspects wait for it only so long.
        let granted = state.grant();
        let silence = self.silence(&state);
        let hopeless = if silence.is_some() { std::mem::take(&mut state.queues) } else { Default::default() };
        drop(state);
        self.hand_out(granted);
        for waiting in hopeless.into_iter().flatten() {
            _ = waiting.turn.send(Err(silence.clone().unwrap_or_default()));
        }
    }

    /// Why there is no use in waiting, if there is none: no endpoint can be asked, and none has answered for long.
    fn silence(&self, state: &State) -> Option<String> {
        let since = state.silence.map(|s| s.since).filter(|since| since.elapsed() > self.give_up_after)?;
        state.endpoints.iter().all(|endpoint| endpoint.cooling.is_some()).then(|| self.describe(state, since))
    }

    /// Why a request is not to be sent again, if nothing has answered for long.
    pub(super) fn has_been_silent(&self) -> Option<String> {
        let state = self.state();
        let since = state.silence.map(|s| s.since).filter(|since| since.elapsed() > self.give_up_after)?;
        Some(self.describe(&state, since))
    }

    /// Why a request was not answered, if no other was since `began`.
    pub(super) fn silence_since(&self, began: Instant) -> Option<String> {
        let state = self.state();
        let is_silent = state.last_answer.is_none_or(|at| at < began);
        is_silent.then(|| self.describe(&state, began))
    }

    fn describe(&self, state: &State, since: Instant) -> String {
        let each: Vec<String> = self
            .addresses
            .iter()
            .zip(&state.endpoints)
            .map(|(address, endpoint)| {
                let words = if endpoint.words.is_empty() { "not asked" } else { &endpoint.words };
                format!("{}: {words}", address.base)
            })
            .collect();
        format!(
            "no caption server has answered for {:.0} s ({}). Start one, or correct `endpoints`, and run again: nothing that \
             was answered is lost",
            since.elapsed().as_secs_f64(),
            each.join("; "),
        )
    }

    /// An endpoint refused a request: how many it has refused in a row, where that is no longer the requests' fault.
    pub(super) fn refused(&self, endpoint: usize) -> Option<u32> {
        let mut state = self.state();
        let endpoint = state.endpoints.get_mut(endpoint)?;
        endpoint.refused += 1;
        let most = if endpoint.answered > 0 { REFUSED_IN_A_ROW } else { REFUSED_AT_FIRST };
        (endpoint.refused >= most).then_some(endpoint.refused)
    }

    /// Whether what an endpoint refused can be asked of another.
    pub(super) fn has_others(&self, endpoint: usize) -> bool {
        self.state().is_open_beside(endpoint)
    }

    /// Another endpoint has answered what this one refused with `words`.
    pub(super) fn is_contradicted(self: &Arc<Self>, endpoint: usize, words: &str) {
        let granted = {
            let mut state = self.state();
            let Some(of) = state.endpoints.get_mut(endpoint) else { return };
            if !of.is_contradicted(words, self.pauses.cool_down) {
                return;
            }
            state.grant()
        };
        health::cool(Arc::downgrade(self), endpoint);
        self.hand_out(granted);
    }

    /// An endpoint says with `words` that it cannot be asked so. Whether that says something of it alone: it has never answered, and
    /// others have. It is left alone then until it answers the small question.
    pub(super) fn is_another(self: &Arc<Self>, endpoint: usize, words: &str) -> bool {
        let granted = {
            let mut state = self.state();
            if !state.endpoints.iter().any(|endpoint| endpoint.answered > 0) {
                return false;
            }
            let Some(of) = state.endpoints.get_mut(endpoint).filter(|endpoint| endpoint.answered == 0) else {
                return false;
            };
            of.is_another(words, self.pauses.cool_down).then(|| state.grant())
        };
        if let Some(granted) = granted {
            health::cool(Arc::downgrade(self), endpoint);
            self.hand_out(granted);
        }
        true
    }

    /// Whether an endpoint has to answer the small question, to be asked again.
    pub(super) fn must_answer(&self, endpoint: usize) -> bool {
        self.state().endpoints.get(endpoint).is_some_and(|endpoint| endpoint.must_answer)
    }

    /// A request was answered after so many failures by no fault of its own.
    pub(super) fn were_accidents(&self, accidents: u32) {
        if accidents > 0 {
            self.state().accidents += u64::from(accidents);
        }
    }

    /// How often a request has to fail alone, to be blamed.
    pub(super) fn blames(&self) -> u32 {
        let state = self.state();
        blames(state.accidents, state.endpoints.iter().map(|endpoint| endpoint.answered).sum())
    }

    /// Whether an endpoint has ever answered.
    pub(super) fn has_answered(&self, endpoint: usize) -> bool {
        self.state().endpoints.get(endpoint).is_some_and(|endpoint| endpoint.answered > 0)
    }

    pub(super) fn status(&self) -> Vec<EndpointStatus> {
        let state = self.state();
        let each = self.addresses.iter().zip(&state.endpoints);
        each.map(|(address, endpoint)| EndpointStatus {
            url: address.base.clone(),
            in_flight: endpoint.in_flight,
            limit: endpoint.limit.now(),
            answered: endpoint.answered,
            failed: endpoint.failed,
            latency: Duration::try_from_secs_f64(endpoint.latency).unwrap_or_default(),
            cooling: endpoint
                .cooling
                .map(|cooling| cooling.pause)
                .or(endpoint.quiet_until().map(|at| at.duration_since(Instant::now()))),
            is_resting: endpoint.cooling.is_some(),
            last_failure: endpoint.words.clone(),
        })
        .collect()
    }
}

/// Leaves the queue when it is dropped before its turn.
struct InQueue<'a> {
    fleet: &'a Arc<Fleet>,
    company: Company,
    id: u64,
    is_over: bool,
}

impl Drop for InQueue<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            let granted = {
                let mut state = self.fleet.state();
                state.no_longer_wait(self.company, self.id);
                state.grant()
            };
            self.fleet.hand_out(granted);
        }
    }
}

/// The right to have a request in flight at an endpoint, until it [ends](Permit::end) or is dropped.
pub(super) struct Permit {
    fleet: Arc<Fleet>,
    pub(super) endpoint: usize,
    place: Option<Place>,
}

impl Permit {
    /// The request's number at the endpoint.
    pub(super) fn number(&self) -> u64 {
        self.place.map_or(0, |place| place.number)
    }

    pub(super) fn end(mut self, sign: Sign<'_>) -> Facts {
        match self.place.take() {
            Some(place) => self.fleet.leave(self.endpoint, place, sign),
            None => Facts::default(),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.fleet.leave(self.endpoint, place, Sign::None);
        }
    }
}

#[cfg(test)]
mod tests;
