//! HTTP: one question to one server, within a time and a size.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Certificate, RequestBuilder, Url};

use super::options::{Operations, OptionsError, seconds};

/// Answers are a few kilobytes; what is longer than this is none.
const MOST_BYTES: usize = 4_000_000;
/// Servers close a connection that nobody uses, some after five seconds; it is not to be used just then.
const IDLE: Duration = Duration::from_secs(4);

/// What asks servers. Knows the token, and never shows it.
///
/// What comes back is as it was sent: a token may be any word, and a caption holds any word. Whoever shows a server's words takes the
/// [token](Client::token) out of them.
pub(super) struct Client {
    http: reqwest::Client,
    token: Option<String>,
}

/// What came back, whatever it says.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

/// Nothing came back, or not all of it.
pub(super) enum Lost {
    TimedOut,
    /// There is no connection: the server has seen nothing of it.
    Unreachable(String),
    /// It broke.
    Broken(String),
    TooLarge,
    /// This machine has no descriptor or port to spare.
    Shortage(String),
}

impl Client {
    pub(super) fn new(operations: &Operations, most_in_flight: usize) -> Result<Self, OptionsError> {
        let token = operations.api_key_env.as_deref().map(token).transpose()?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let (Some(token), Some(name)) = (&token, &operations.api_key_env) {
            let value = HeaderValue::try_from(format!("Bearer {token}"));
            let mut value = value.map_err(|_it_would_be_shown| unusable(name, "cannot be sent in a header"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("ferrotype/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .connect_timeout(seconds(operations.connect_timeout))
            .redirect(Policy::none())
            .referer(false)
            .tcp_nodelay(true)
            .http1_only()
            .pool_max_idle_per_host(most_in_flight)
            .pool_idle_timeout(IDLE)
            .no_proxy();
        if let Some(path) = &operations.trusted_certificates {
            http = http.tls_certs_merge(certificates(path)?);
        }
        let http = http.build().map_err(|error| OptionsError::new("endpoints", format!("no HTTP client: {error}")))?;
        Ok(Self { http, token })
    }

    pub(super) async fn post(&self, url: &Url, body: Bytes, within: Duration) -> Result<Reply, Lost> {
        receive(self.http.post(url.clone()).body(body), within).await
    }

    pub(super) async fn get(&self, url: &Url, within: Duration) -> Result<Reply, Lost> {
        receive(self.http.get(url.clone()), within).await
    }

    /// What is not to be shown: see [`shown`](super::answer::shown).
    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }
}

fn token(name: &str) -> Result<String, OptionsError> {
    match std::env::var(name) {
        Ok(token) if !token.trim().is_empty() => Ok(token.trim().to_owned()),
        Ok(_) => Err(unusable(name, "is empty")),
        Err(std::env::VarError::NotPresent) => Err(unusable(name, "is not set")),
        Err(std::env::VarError::NotUnicode(_)) => Err(unusable(name, "is not text")),
    }
}

fn unusable(name: &str, why: &str) -> OptionsError {
    OptionsError::new("api_key_env", format!("the environment variable {name} {why}"))
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, OptionsError> {
    let failed = |why: String| OptionsError::new("trusted_certificates", format!("{}: {why}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    Certificate::from_pem_bundle(&bytes).map_err(|error| failed(error.to_string()))
}

async fn receive(request: RequestBuilder, within: Duration) -> Result<Reply, Lost> {
    let answer = async {
        let mut response = request.send().await.map_err(|error| lost(&error))?;
        let mut body = Vec::with_capacity(response.content_length().map_or(0, |n| n.min(65_536) as usize));
        while let Some(chunk) = response.chunk().await.map_err(|error| lost(&error))? {
            if body.len() + chunk.len() > MOST_BYTES {
                return Err(Lost::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Reply { status: response.status().as_u16(), headers: std::mem::take(response.headers_mut()), body })
    };
    tokio::time::timeout(within, answer).await.unwrap_or(Err(Lost::TimedOut))
}

fn lost(error: &reqwest::Error) -> Lost {
    let cause = root_cause(error);
    if cause.downcast_ref::<std::io::Error>().is_some_and(is_shortage) {
        return Lost::Shortage(format!("this machine cannot connect: {cause}"));
    }
    if error.is_connect() {
        let why =
            if error.is_timeout() { "no connection within connect_timeout".to_owned() } else { cause.to_string() };
        return Lost::Unreachable(why);
    }
    Lost::Broken(format!("the connection broke: {cause}"))
}

/// Whether a connection failed for want of descriptors or of local ports.
fn is_shortage(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::AddrNotAvailable;
    // EMFILE and ENFILE, which have no kind of their own.
    error.kind() == AddrNotAvailable || matches!(error.raw_os_error(), Some(23 | 24))
}

/// reqwest says "error sending request"; what went wrong lies at the end of the chain.
fn root_cause(error: &reqwest::Error) -> &(dyn Error + 'static) {
    let mut cause: &(dyn Error + 'static) = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}
