//! What an observer of the server hears.

use std::time::Duration;

/// How a batch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Made,
    /// Nobody waited for it any more.
    Stopped,
    /// What its clients were told.
    Failed(String),
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// Pictures joined the queue.
    Queued { pictures: usize, waiting: usize },
    /// The generator was asked for so many pictures at once.
    Batch { pictures: usize, took: Duration, outcome: Outcome },
    /// A connection could not be accepted; the server goes on after a pause.
    AcceptFailed(std::io::Error),
}
