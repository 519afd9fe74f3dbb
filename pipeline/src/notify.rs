//! Tells someone how a run ended: one POST of JSON to the manifest's `notify` address.
//!
//! The address may hold a token, so nothing here shows more of it than scheme and host. Nobody depends on the delivery: an
//! error is for a note, and the run's outcome stands.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode, Url};
use serde::Serialize;
use shards::event::RunOutcome;

use crate::plan::{Plan, PlannedStage, Totals};

/// Two tries and the pause between them end within ten seconds, whatever the other side does.
const TRIES: u32 = 2;
const TIMEOUT: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_secs(1);

/// Where to send. Shown as scheme and host.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint(Url);

impl Endpoint {
    /// Reads an http or https address; the error says what is wrong with it, without repeating it.
    pub fn parse(address: &str) -> Result<Self, InvalidEndpoint> {
        let url = Url::parse(address.trim()).map_err(|error| InvalidEndpoint::Malformed(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(InvalidEndpoint::Scheme(url.scheme().to_owned()));
        }
        Ok(Self(url))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.0.scheme(), self.0.host_str().unwrap_or_default())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

/// Why a text is no [`Endpoint`].
#[derive(Debug, thiserror::Error)]
pub enum InvalidEndpoint {
    #[error("notify is not a web address ({0})")]
    Malformed(String),
    #[error("notify is a {0} address; only http and https are spoken")]
    Scheme(String),
}

/// Why nobody was told.
#[derive(Debug, thiserror::Error)]
#[error("{endpoint} was not told how the run ended: {reason}")]
pub struct NotifyError {
    pub endpoint: Endpoint,
    pub reason: String,
}

/// What is sent.
#[derive(Debug, Serialize)]
pub struct Message {
    pub pipeline: String,
    pub workdir: String,
    pub outcome: RunOutcome,
    pub seconds: f64,
    pub host: String,
    pub process: u32,
    pub stages: Vec<StageCounts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What is committed of a stage. A row that was tried again counts once.
#[derive(Debug, Serialize)]
pub struct StageCounts {
    pub stage: String,
    pub partitions: usize,
    pub committed: usize,
    pub rows_in: u64,
    pub rows_out: u64,
    pub dropped: BTreeMap<String, u64>,
}

impl Message {
    /// About a run of `plan` by this process that has just ended.
    pub fn new(plan: &Plan, outcome: RunOutcome, took: Duration, error: Option<String>) -> Self {
        Self {
            pipeline: plan.name.clone(),
            workdir: plan.workdir.to_string(),
            outcome,
            seconds: took.as_secs_f64(),
            host: shards::lease::host_name(),
            process: std::process::id(),
            stages: plan.stages.iter().map(StageCounts::of).collect(),
            error,
        }
    }

    /// Delivers the message. Blocks for ten seconds at most; must not be called from asynchronous code.
    pub fn send(&self, endpoint: &Endpoint) -> Result<(), NotifyError> {
        let failed = |reason: String| NotifyError { endpoint: endpoint.clone(), reason };
        let body = serde_json::to_vec(self).map_err(|error| failed(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let delivered = runtime.block_on(deliver(&endpoint.0, body));
        // A name that is still being looked up would hold up an ordinary shutdown.
        runtime.shutdown_background();
        delivered.map_err(failed)
    }
}

impl StageCounts {
    fn of(stage: &PlannedStage) -> Self {
        let Totals { rows_in, rows_out, dropped, .. } = stage.totals();
        let (partitions, committed) = (stage.partitions.len(), stage.committed().count());
        Self { stage: stage.name.clone(), partitions, committed, rows_in, rows_out, dropped }
    }
}

async fn deliver(url: &Url, body: Vec<u8>) -> Result<(), String> {
    let client = Client::builder()
        .user_agent(concat!("ferrotype/", env!("CARGO_PKG_VERSION")))
        .timeout(TIMEOUT)
        // The address may be a secret: nobody else is given what is meant for it.
        .redirect(Policy::none())
        .build()
        .map_err(in_words)?;
    let mut last = String::new();
    for tries in 1..=TRIES {
        if tries > 1 {
            tokio::time::sleep(PAUSE).await;
        }
        let request = client.post(url.clone()).header(CONTENT_TYPE, "application/json").body(body.clone());
        last = match request.send().await.map(|response| response.status()) {
            Ok(status) if status.is_success() => return Ok(()),
            Ok(status) if may_pass(status) => format!("it answered {status}, {TRIES} times"),
            Ok(status) => return Err(format!("it answered {status}")),
            Err(error) => in_words(error),
        };
    }
    Err(last)
}

fn may_pass(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

/// The cause farthest down: reqwest's own words repeat the address.
fn in_words(error: reqwest::Error) -> String {
    let timed_out = error.is_timeout();
    let error = error.without_url();
    let mut cause: &dyn Error = &error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    if timed_out { format!("no answer within {} s", TIMEOUT.as_secs()) } else { cause.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_as_scheme_and_host_only() {
        let endpoint =
            Endpoint::parse("https://user:secret@hooks.example.com:8443/services/T0/SECRET?key=SECRET").unwrap();
        assert_eq!(endpoint.to_string(), "https://hooks.example.com");
        assert_eq!(format!("{endpoint:?}"), "Endpoint(https://hooks.example.com)");
        for bad in ["hooks.example.com/SECRET", "ftp://host/SECRET", "https://", ""] {
            let reason = Endpoint::parse(bad).unwrap_err().to_string();
            assert!(!reason.contains("SECRET"), "{reason}");
        }
    }
}
