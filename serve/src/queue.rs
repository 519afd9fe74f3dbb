//! The pictures that wait: bounded, first come first served, and like with like in batches.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::ApiError;
use crate::generator::PictureRequest;
use crate::order::{Failure, Job, Order, Standing, Ticket};

/// The share of the newest batch in the time that a picture is thought to take.
const NEWEST: f64 = 0.3;

/// Between the clients' tasks, which put orders in and take them out, and the generator's thread, which takes batches.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    /// A job came, or the queue was closed.
    changed: Condvar,
    /// Pictures that may wait.
    bound: usize,
    /// Pictures of a batch.
    batch: usize,
    /// Of a batch together.
    most_pixels: u64,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Job>,
    /// Pictures with the generator.
    sampling: usize,
    is_closed: bool,
    /// What is being made is to be given up.
    is_stopped: bool,
    /// Roughly, of one picture; 0 before the first.
    seconds: f64,
}

/// Numbers for `/health`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) waiting: usize,
    pub(crate) sampling: usize,
    pub(crate) is_closed: bool,
}

impl Queue {
    pub(crate) fn new(bound: usize, batch: usize, most_pixels: u64) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), bound, batch, most_pixels }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets an order in, whole or not at all. Returns its ticket, and how many pictures wait now.
    pub(crate) fn order(self: &Arc<Self>, requests: Vec<PictureRequest>) -> Result<(Ticket, usize), ApiError> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(ApiError::ShuttingDown);
        }
        let (pictures, waiting) = (requests.len(), state.waiting.len());
        if waiting + pictures > self.bound {
            // At least as many as do not fit must have left the queue by then.
            let seconds = state.seconds * (waiting + pictures - self.bound) as f64;
            let retry_after = (seconds.ceil() as u64).clamp(1, 600);
            return Err(ApiError::QueueFull { pictures, waiting, most: self.bound, retry_after });
        }
        let (ticket, jobs) = Ticket::new(requests, Arc::clone(self));
        state.waiting.extend(jobs);
        state.tell_positions();
        self.changed.notify_one();
        Ok((ticket, state.waiting.len()))
    }

    /// Takes out what still waits of an order whose client has left.
    pub(crate) fn leave(&self, order: &Arc<Order>) {
        let mut state = self.lock();
        let before = state.waiting.len();
        state.waiting.retain(|job| !Arc::ptr_eq(&job.order, order));
        if state.waiting.len() < before {
            state.tell_positions();
        }
    }

    /// Waits for the next batch: the first picture and those like it, in their order. None once the queue is closed.
    pub(crate) fn next_batch(&self) -> Option<Vec<Job>> {
        let mut state = self.lock();
        loop {
            if state.is_closed {
                return None;
            }
            if let Some(first) = state.waiting.pop_front() {
                let batch = self.fill(first, &mut state.waiting);
                state.sampling = batch.len();
                for job in &batch {
                    job.set(Standing::Sampling { step: 0, of: job.request.steps });
                }
                state.tell_positions();
                return Some(batch);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn fill(&self, first: Job, waiting: &mut VecDeque<Job>) -> Vec<Job> {
        let pixels = u64::from(first.request.width) * u64::from(first.request.height);
        let fit = usize::try_from(self.most_pixels / pixels.max(1)).unwrap_or(usize::MAX);
        let mut room = self.batch.min(fit).saturating_sub(1);
        let mut batch = vec![first];
        for job in std::mem::take(waiting) {
            if room > 0 && batch.first().is_some_and(|first| are_alike(&first.request, &job.request)) {
                batch.push(job);
                room -= 1;
            } else {
                waiting.push_back(job);
            }
        }
        batch
    }

    /// The generator has done with a batch. `took` only where it made all of it.
    pub(crate) fn done(&self, pictures: usize, took: Option<Duration>) {
        let mut state = self.lock();
        state.sampling = 0;
        state.tell_positions();
        if let Some(took) = took {
            let seconds = took.as_secs_f64() / pictures.max(1) as f64;
            state.seconds =
                if state.seconds > 0.0 { state.seconds + NEWEST * (seconds - state.seconds) } else { seconds };
        }
    }

    /// Lets nobody in any more, and tells those who wait. What is being made is made.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        for job in state.waiting.drain(..) {
            job.set(Standing::Done(Err(Failure::ShuttingDown)));
        }
        self.changed.notify_all();
    }

    /// Closes, and gives up what is being made at its next step.
    pub(crate) fn stop(&self) {
        self.close();
        self.lock().is_stopped = true;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.lock().is_stopped
    }

    pub(crate) fn load(&self) -> Load {
        let state = self.lock();
        Load { waiting: state.waiting.len(), sampling: state.sampling, is_closed: state.is_closed }
    }
}

impl State {
    fn tell_positions(&self) {
        for (position, job) in self.waiting.iter().enumerate() {
            job.set(Standing::Waiting { ahead: self.sampling + position });
        }
    }
}

/// Whether two pictures can be made in one batch: they may differ in their prompts and seeds only.
fn are_alike(one: &PictureRequest, other: &PictureRequest) -> bool {
    one.width == other.width
        && one.height == other.height
        && one.steps == other.steps
        && one.guidance == other.guidance
        && one.sampler == other.sampler
        && one.shift == other.shift
}
