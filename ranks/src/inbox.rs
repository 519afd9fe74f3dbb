//! What one rank sent, by channel, until it is asked for.
//!
//! Without a bound: whoever reads a link must never wait for a caller, or two ranks that send to each other would wait forever.
//! How much may be under way is between the callers.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A lock that outlives a panic of its holder: what it guards is changed in one go.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    channels: Mutex<HashMap<u32, VecDeque<Vec<u8>>>>,
    changed: Condvar,
}

impl Inbox {
    pub(super) fn put(&self, channel: u32, message: Vec<u8>) {
        lock(&self.channels).entry(channel).or_default().push_back(message);
        self.changed.notify_all();
    }

    /// Waits for a message, or for `ended` to say why none will come.
    pub(super) fn take<E>(&self, channel: u32, ended: impl Fn(Asked) -> Option<E>) -> Result<Vec<u8>, E> {
        let mut channels = lock(&self.channels);
        loop {
            if let Some(end) = ended(Asked::Before) {
                return Err(end);
            }
            if let Some(message) = pop(&mut channels, channel) {
                return Ok(message);
            }
            if let Some(end) = ended(Asked::WhenEmpty) {
                return Err(end);
            }
            channels = self.changed.wait(channels).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn try_take(&self, channel: u32) -> Option<Vec<u8>> {
        pop(&mut lock(&self.channels), channel)
    }

    /// Whoever waits asks again whether it is in vain.
    pub(super) fn wake(&self) {
        // Taken, so that nobody is between asking and waiting.
        drop(lock(&self.channels));
        self.changed.notify_all();
    }
}

/// When it is asked whether waiting is in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Before looking for a message.
    Before,
    /// There is none.
    WhenEmpty,
}

/// A queue that grew long is forgotten once it is empty.
fn pop(channels: &mut HashMap<u32, VecDeque<Vec<u8>>>, channel: u32) -> Option<Vec<u8>> {
    let queue = channels.get_mut(&channel)?;
    let message = queue.pop_front();
    if queue.is_empty() && queue.capacity() > 64 {
        channels.remove(&channel);
    }
    message
}
