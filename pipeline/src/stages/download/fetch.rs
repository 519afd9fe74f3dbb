//! One URL to one image, with retries.

use std::collections::hash_map::RandomState;
use std::fmt::Display;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use ipnet::IpNet;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, StatusCode, Url};

use super::super::samples::sha256;
use super::client::{AddressError, address_error, check};
use crate::decode::{DecodeError, decode};

/// The longest wait that a server may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// An image that arrived.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) bytes: Vec<u8>,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) sha256: String,
    /// What happened on the way: `redirected`, `recovered from http_500`.
    pub(super) observed: Vec<String>,
}

/// Why a row has no image.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// `http_404`, `timed_out`, `truncated`, `connection_failed`, `unresolvable_host`, `forbidden_address`, `invalid_url`,
    /// `opted_out`, `too_large`, `too_many_pixels`, `not_an_image`, `damaged_image`
    pub(super) reason: &'static str,
    /// img2dataset's word.
    pub(super) status: &'static str,
    pub(super) detail: String,
    retry: Retry,
}

/// Whether another try may have another end.
#[derive(Clone, Copy, Debug)]
enum Retry {
    No,
    /// After a back-off of our own.
    Later,
    /// After the time that the server asked for.
    After(Duration),
}

impl Refusal {
    fn network(reason: &'static str, detail: impl Display) -> Self {
        Self { reason, status: "failed_to_download", detail: format!("{detail}"), retry: Retry::No }
    }

    fn image(reason: &'static str, detail: impl Display) -> Self {
        Self { reason, status: "failed_to_resize", detail: format!("{detail}"), retry: Retry::No }
    }

    fn may_pass(self) -> Self {
        Self { retry: Retry::Later, ..self }
    }
}

#[derive(Debug)]
pub(super) struct Fetcher {
    pub(super) client: Client,
    pub(super) allowed: Vec<IpNet>,
    pub(super) max_bytes: u64,
    pub(super) max_pixels: u64,
    /// In lower case.
    pub(super) directives: Vec<String>,
    pub(super) retries: u32,
}

impl Fetcher {
    /// Fetches and checks one image.
    pub(super) async fn fetch(&self, url: &str) -> Result<Fetched, Refusal> {
        let parsed = Url::parse(url).map_err(|error| Refusal::network("invalid_url", error))?;
        if let Err(error) = check(&parsed, &self.allowed) {
            return Err(of_address(&error));
        }
        let mut observed = Vec::new();
        let mut tries = 0;
        let bytes = loop {
            match self.try_once(&parsed, &mut observed).await {
                Ok(bytes) => break bytes,
                Err(refusal) => {
                    let wait = match refusal.retry {
                        Retry::Later if tries < self.retries => back_off(tries + 1),
                        Retry::After(wait) if tries < self.retries => wait.min(LONGEST_WAIT),
                        _ => return Err(refusal),
                    };
                    tries += 1;
                    observed.push(format!("recovered from {}", refusal.reason));
                    tokio::time::sleep(wait).await;
                }
            }
        };
        let most_pixels = self.max_pixels;
        let checked = tokio::task::spawn_blocking(move || {
            let image = decode(&bytes, most_pixels).map_err(|error| of_image(&error))?;
            let sha256 = sha256(&bytes);
            Ok(Fetched { width: image.width(), height: image.height(), bytes, sha256, observed })
        });
        checked
            .await
            .unwrap_or_else(|error| Err(Refusal::image("damaged_image", format!("its decoder failed: {error}"))))
    }

    async fn try_once(&self, url: &Url, observed: &mut Vec<String>) -> Result<Vec<u8>, Refusal> {
        let mut response = self.client.get(url.clone()).send().await.map_err(|error| of_request(&error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(of_status(status, response.headers()));
        }
        if let Some(directive) = self.opt_out(response.headers()) {
            return Err(Refusal::network("opted_out", format!("X-Robots-Tag: {directive}")));
        }
        let too_large = |bytes: u64| {
            Refusal::network("too_large", format!("{bytes} bytes or more; {} are allowed", self.max_bytes))
        };
        if let Some(length) = response.content_length().filter(|&n| n > self.max_bytes) {
            return Err(too_large(length));
        }
        if response.url() != url && !observed.iter().any(|o| o == "redirected") {
            observed.push("redirected".to_owned());
        }
        let expected = response.content_length();
        let mut bytes = Vec::with_capacity(expected.unwrap_or(0).min(1 << 20) as usize);
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => return Ok(bytes),
                Err(error) if error.is_timeout() => return Err(of_request(&error)),
                Err(_) => {
                    let expected = expected.map_or_else(|| "more".to_owned(), |n| n.to_string());
                    let detail = format!("the connection closed after {} of {expected} bytes", bytes.len());
                    return Err(Refusal::network("truncated", detail).may_pass());
                }
            }
            if bytes.len() as u64 > self.max_bytes {
                return Err(too_large(bytes.len() as u64));
            }
        }
    }

    /// The directive by which an answer opts out. `agent: noai` addresses one agent; ours is met by every such line.
    fn opt_out(&self, headers: &HeaderMap) -> Option<String> {
        let values = headers.get_all("x-robots-tag").iter().filter_map(|value| value.to_str().ok());
        let mut directives = values.flat_map(|value| value.split([',', ':'])).map(|d| d.trim().to_lowercase());
        directives.find(|directive| self.directives.contains(directive))
    }
}

/// 0.25 s, 0.5 s, 1 s …, each up to half as long again at random, so that many waiting rows do not come back together.
fn back_off(tries: u32) -> Duration {
    let random = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
    Duration::from_secs_f64(0.125 * f64::from(1u32 << tries.min(8)) * (1.0 + 0.5 * random)).min(LONGEST_WAIT)
}

fn of_address(error: &AddressError) -> Refusal {
    let reason = match error {
        AddressError::Forbidden(_) => "forbidden_address",
        AddressError::Unresolvable { .. } => "unresolvable_host",
        AddressError::Scheme(_) => "invalid_url",
    };
    Refusal::network(reason, error)
}

fn of_request(error: &reqwest::Error) -> Refusal {
    if let Some(address) = address_error(error) {
        return of_address(address);
    }
    if error.is_timeout() {
        return Refusal::network("timed_out", "no complete answer in time").may_pass();
    }
    if error.is_redirect() {
        return Refusal::network("bad_redirect", root_cause(error));
    }
    Refusal::network("connection_failed", root_cause(error)).may_pass()
}

/// reqwest says "error sending request"; what went wrong lies at the end of the chain.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn of_status(status: StatusCode, headers: &HeaderMap) -> Refusal {
    let reason = match status.as_u16() {
        401 => "http_401",
        403 => "http_403",
        404 => "http_404",
        408 => "http_408",
        410 => "http_410",
        429 => "http_429",
        451 => "http_451",
        500 => "http_500",
        502 => "http_502",
        503 => "http_503",
        504 => "http_504",
        300..=399 => "http_3xx",
        400..=499 => "http_4xx",
        _ => "http_5xx",
    };
    let refusal = Refusal::network(reason, status);
    if !(status.is_server_error() || matches!(status.as_u16(), 408 | 429)) {
        return refusal;
    }
    let seconds = headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|v| v.trim().parse().ok());
    let retry = seconds.map_or(Retry::Later, |seconds| Retry::After(Duration::from_secs(seconds)));
    Refusal { retry, ..refusal }
}

fn of_image(error: &DecodeError) -> Refusal {
    Refusal::image(error.reason(), error)
}
