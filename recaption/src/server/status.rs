//! How an endpoint is doing, for whoever watches.

use std::time::Duration;

use serde::Serialize;

/// One endpoint, at the moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndpointStatus {
    /// Its base URL.
    pub url: String,
    pub in_flight: usize,
    /// How many may be in flight, as long as it answers as it does.
    pub limit: usize,
    /// Captions that came.
    pub answered: u64,
    /// Tries that failed by the server's fault, or for want of an answer.
    pub failed: u64,
    /// Of its answers, smoothed.
    pub latency: Duration,
    /// For how long it is left alone, if it is, from one look at it to the next, or because it was asked too much.
    pub cooling: Option<Duration>,
    /// Whether that is until it works again. One that was only asked too much works.
    pub is_resting: bool,
    /// What its last failure was, in words; "" when there was none.
    pub last_failure: String,
}
