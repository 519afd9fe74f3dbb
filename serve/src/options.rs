//! How a server is set up.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::error::ServeError;
use crate::event::Event;

/// Bounds on what a server takes in and keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Pictures that may wait. Who comes with more is told to come again later.
    pub waiting: usize,
    /// Pictures of one request; at most `waiting`, and at most `stored_pictures`.
    pub pictures: usize,
    /// Pictures made in one call of the generator.
    pub batch: usize,
    /// Steps of one picture.
    pub steps: u32,
    /// Guidance scale.
    pub guidance: f64,
    /// Characters of a prompt, and of a negative one.
    pub prompt: usize,
    /// Bytes of a request's body.
    pub body: usize,
    /// Connections served at a time; others wait unaccepted.
    pub connections: usize,
    /// Pictures kept for those who asked for a URL, the oldest dropped first.
    pub stored_pictures: usize,
    /// Bytes of those pictures.
    pub stored_bytes: usize,
    /// For a request's head, and again for its body, to come in.
    pub receive: Duration,
    /// For answers under way when the server is told to stop.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            waiting: 64,
            pictures: 8,
            batch: 4,
            steps: 500,
            guidance: 100.0,
            prompt: 4000,
            body: 64 << 10,
            connections: 256,
            stored_pictures: 256,
            stored_bytes: 256 << 20,
            receive: Duration::from_secs(20),
            grace: Duration::from_secs(10),
        }
    }
}

/// How a server is set up. The default listens on loopback only, and asks nobody for a key.
pub struct Options {
    /// Anything but a loopback address opens the server to others, so it must be asked for.
    pub address: SocketAddr,
    /// Names by which clients may call the server besides `localhost` and loopback addresses, when it listens on loopback. On
    /// another address any name will do, or none, unless some are given here; then it is these, `localhost` and IP addresses.
    pub host_names: Vec<String>,
    /// What URLs of pictures begin with, for servers behind another: `https://pictures.example/ferrotype`. Otherwise they are
    /// made of the name by which the client called.
    pub base_url: Option<String>,
    /// If there is one, the APIs want it as a bearer token. The page, `/health` and stored pictures do not.
    pub api_key: Option<String>,
    pub limits: Limits,
    /// Hears what happens; called from the generator's thread and from the server's tasks, so it must not block.
    pub observer: Box<dyn Fn(Event) + Send + Sync>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000),
            host_names: Vec::new(),
            base_url: None,
            api_key: None,
            limits: Limits::default(),
            observer: Box::new(|_| ()),
        }
    }
}

impl fmt::Debug for Options {
    /// Without the key.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Options")
            .field("address", &self.address)
            .field("host_names", &self.host_names)
            .field("base_url", &self.base_url)
            .field("has_api_key", &self.api_key.is_some())
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// All faults at once.
    pub(crate) fn check(&self) -> Result<(), ServeError> {
        let limits = &self.limits;
        let mut faults = Vec::new();
        for (name, value) in [
            ("waiting", limits.waiting),
            ("pictures", limits.pictures),
            ("batch", limits.batch),
            ("steps", limits.steps as usize),
            ("prompt", limits.prompt),
            ("body", limits.body),
            ("connections", limits.connections),
            ("stored_pictures", limits.stored_pictures),
            ("stored_bytes", limits.stored_bytes),
        ] {
            if value == 0 {
                faults.push(format!("the limit `{name}` is 0"));
            }
        }
        if !(limits.guidance.is_finite() && limits.guidance >= 0.0) {
            faults.push(format!("the limit `guidance` is {}", limits.guidance));
        }
        for (name, value) in [("waiting", limits.waiting), ("stored_pictures", limits.stored_pictures)] {
            if limits.pictures > value {
                faults.push(format!(
                    "a request's {} pictures are more than the limit `{name}`, {value}",
                    limits.pictures
                ));
            }
        }
        if self.api_key.as_ref().is_some_and(|key| key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic())) {
            faults.push("the API key must be of printable ASCII characters without spaces".to_owned());
        }
        if let Some(url) = &self.base_url
            && !(url.starts_with("http://") || url.starts_with("https://"))
        {
            faults.push(format!("the base URL \"{url}\" does not begin with http:// or https://"));
        }
        if faults.is_empty() { Ok(()) } else { Err(ServeError::Options { faults }) }
    }
}
