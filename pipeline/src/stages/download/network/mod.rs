//! One URL to the bytes behind it. All partitions of a stage share one [`Network`]: its threads, connections, names, limits
//! per host and memory, and its judgement of whether there is a network at all.
//!
//! A row waits for its host's turn first and for a connection second, so that rows of a slow host keep none from the others.

mod address;
mod body;
mod breaker;
mod budget;
mod dns;
mod hosts;
mod refusal;
mod robots;
mod tries;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use ipnet::IpNet;
use reqwest::header::LOCATION;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Response, StatusCode, Url};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use self::body::{BodyLimits, Meter};
use self::breaker::Breaker;
use self::budget::Budget;
use self::dns::{GuardedResolver, check};
use self::hosts::{Host, Hosts, Limits};
use self::refusal::Retry;
use self::robots::{OptOut, Rules};
use self::tries::Tries;
use super::parameters::{Operations, Semantics};
pub(super) use breaker::NetworkGone;
pub(super) use budget::Share;
pub(super) use hosts::Slow;
pub(super) use refusal::Refusal;

/// Redirects that are followed in a row.
const REDIRECTS: usize = 5;
/// The longest wait that a server may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Descriptors that are not for connections: files, name servers, the program's own.
const OTHERS: u64 = 256;
/// How often it is looked whether anything answers, when nothing does.
const LOOK: Duration = Duration::from_millis(250);

/// Why there is no network to begin with.
#[derive(Debug, thiserror::Error)]
pub(super) enum NetworkError {
    #[error("cannot start the network's threads: {0}")]
    Threads(std::io::Error),
    #[error("cannot read trusted_certificates = {path:?}: {reason}")]
    Certificates { path: PathBuf, reason: String },
    #[error("cannot set up the HTTP client: {0}")]
    Client(reqwest::Error),
    #[error("cannot set up the name resolver: {0}")]
    Resolver(hickory_resolver::net::NetError),
}

/// What fetches.
pub(super) struct Network {
    /// Ended without waiting when the stage goes away; see [`Drop`].
    runtime: Option<Runtime>,
    client: Client,
    resolver: GuardedResolver,
    allowed: Vec<IpNet>,
    hosts: Hosts,
    connections: Semaphore,
    breaker: Breaker,
    /// One row at a time asks whether anything answers.
    probe: Semaphore,
    budget: Budget,
    meter: Meter,
    body: BodyLimits,
    opt_out: OptOut,
    robots_txt: bool,
    first_byte: Duration,
    total: Duration,
    retries: u32,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) bytes: Vec<u8>,
    /// The memory of its bytes, to be held as long as they are.
    pub(super) share: Share,
    /// What happened on the way: `redirected`, `recovered from http_500`.
    pub(super) observed: Vec<String>,
}

impl Network {
    pub(super) fn new(
        semantics: &Semantics,
        operations: &Operations,
        connect_to: &BTreeMap<String, SocketAddr>,
        nameservers: &[SocketAddr],
        allowed: &[IpNet],
    ) -> Result<Self, NetworkError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(std::thread::available_parallelism().map_or(1, usize::from).min(8))
            .thread_name("network")
            .enable_all()
            .build()
            .map_err(NetworkError::Threads)?;
        let total = Duration::from_secs_f64(operations.timeout);
        let phase = |seconds: Option<f64>| seconds.map_or(total, Duration::from_secs_f64).min(total);
        let resolver = {
            let _inside = runtime.enter();
            // Less than a connection has: a name server's silence is not to be taken for the host's.
            let patience =
                phase(Some(operations.connect_timeout)).min(phase(operations.first_byte_timeout)).mul_f64(0.75);
            GuardedResolver::new(nameservers, connect_to, allowed, patience).map_err(NetworkError::Resolver)?
        };
        let mut client = Client::builder()
            .user_agent(&operations.user_agent)
            .connect_timeout(phase(Some(operations.connect_timeout)))
            // Followed here, where each hop is judged like a URL of the list.
            .redirect(Policy::none())
            .referer(false)
            .dns_resolver(Arc::new(resolver.clone()))
            .tcp_nodelay(true)
            // A proxy would make the connections, out of reach of the address guard.
            .no_proxy();
        let room = Room::of(operations.in_flight, operations.per_host.in_flight);
        client = client.pool_idle_timeout(room.idle_for).pool_max_idle_per_host(room.idle_per_host);
        if let Some(path) = &operations.trusted_certificates {
            client = client.tls_certs_merge(certificates(path)?);
        }
        Ok(Self {
            client: client.build().map_err(NetworkError::Client)?,
            resolver,
            runtime: Some(runtime),
            allowed: allowed.to_vec(),
            hosts: Hosts::new(Limits {
                in_flight: operations.per_host.in_flight,
                per_second: operations.per_host.per_second,
                dead_for: hosts::DEAD_FOR,
            }),
            connections: Semaphore::new(room.connections),
            breaker: Breaker::new(operations.stop_when_unreachable),
            probe: Semaphore::new(1),
            budget: Budget::new(operations.buffer_bytes),
            meter: Meter::new(operations.bytes_per_second),
            body: BodyLimits { most_bytes: semantics.max_bytes, min_bytes_per_second: operations.min_bytes_per_second },
            opt_out: OptOut {
                directives: semantics.disallowed_header_directives.iter().map(|d| d.to_lowercase()).collect(),
                agent: semantics.user_agent_token.to_lowercase(),
                tdm_reservation: semantics.tdm_reservation,
            },
            robots_txt: semantics.robots_txt,
            first_byte: phase(operations.first_byte_timeout),
            total,
            retries: operations.retries,
        })
    }

    /// Where its tasks run.
    pub(super) fn handle(&self) -> Handle {
        match &self.runtime {
            Some(runtime) => runtime.handle().clone(),
            // Only while it is dropped.
            None => Handle::current(),
        }
    }

    /// Bytes of bodies that have come.
    pub(super) fn bytes(&self) -> u64 {
        self.meter.bytes()
    }

    pub(super) fn slowest(&self, most: usize) -> Vec<Slow> {
        self.hosts.slowest(most)
    }

    /// Ends when there is no use in going on.
    pub(super) async fn gone(&self) -> NetworkGone {
        loop {
            let suspicion = self.breaker.wait().await;
            if !self.something_answers().await {
                return suspicion;
            }
        }
    }

    /// What is to be asked before rows are blamed for good: failures may come faster than a silence is noticed.
    pub(super) async fn is_gone_at_the_end(&self) -> Option<NetworkGone> {
        let suspicion = self.breaker.suspicion(false)?;
        if self.something_answers().await { None } else { Some(suspicion) }
    }

    /// Asks hosts that answered before once more, their names looked up anew: a list may have many dead hosts in a row, but what
    /// answered a while ago does not answer only where names or the network are gone. If something answers, what was dead only
    /// since nothing did is asked again too.
    async fn something_answers(&self) -> bool {
        let since = self.breaker.last_answer();
        self.resolver.forget();
        let urls = self.breaker.candidates();
        let mut asked = FuturesUnordered::new();
        for url in &urls {
            asked.push(self.answers(url));
        }
        while let Some(answer) = asked.next().await {
            if let Some(url) = answer {
                self.hosts.give_another_chance(since);
                self.breaker.answered(url);
                return true;
            }
        }
        false
    }

    /// `url`, if its host answers.
    async fn answers<'a>(&self, url: &'a Url) -> Option<&'a Url> {
        let started = Instant::now();
        if let Some(name) = url.domain() {
            self.resolver.addresses_in_time(&name.to_lowercase()).await.ok()?;
        }
        let robots_txt = url.join("/robots.txt").ok()?;
        timeout(self.total, self.client.get(robots_txt).send()).await.ok()?.ok()?;
        self.host_of(url).answered(started.elapsed());
        Some(url)
    }

    /// Ends when something answers. Where nothing does, the run ends before it; see [`Network::gone`].
    async fn wait_for_an_answer(&self) {
        let _probe = self.probe.acquire().await;
        while self.breaker.suspicion(false).is_some() && !self.something_answers().await {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What lies behind `url`, with as many tries as it takes. With `is_held`, a row waits while nothing answers at all.
    pub(super) async fn fetch(&self, url: &str, is_held: bool) -> Result<Answer, Refusal> {
        let url = Url::parse(url.trim()).map_err(|error| Refusal::network("invalid_url", error))?;
        let mut observed = Vec::new();
        let (mut tries, mut has_waited) = (Tries::default(), false);
        loop {
            let refusal = match self.try_once(&url, &mut observed).await {
                Ok((bytes, share)) => return Ok(Answer { bytes, share, observed }),
                Err(refusal) => refusal,
            };
            match tries.wait(refusal.retry, self.retries) {
                Some(wait) => {
                    if refusal.retry != Retry::WhenThereIsRoom {
                        note(&mut observed, format!("recovered from {}", refusal.reason));
                    }
                    tokio::time::sleep(wait).await;
                }
                // While nothing answers at all, a row is not to blame. Afterwards it is as if it had not been tried.
                None if is_held && refusal.is_unreachable && !has_waited && self.breaker.suspicion(false).is_some() => {
                    self.wait_for_an_answer().await;
                    (tries, has_waited) = (Tries::default(), true);
                }
                None => return Err(refusal),
            }
        }
    }

    async fn try_once(&self, url: &Url, observed: &mut Vec<String>) -> Result<(Vec<u8>, Share), Refusal> {
        let mut url = url.clone();
        let mut left = self.total;
        for _ in 0..=REDIRECTS {
            let host = self.host(&url)?;
            let _turn = host.turn().await.inspect_err(|refusal| self.count_unreachable(&url, &host, refusal))?;
            self.judge_by_robots(&url, &host).await?;
            let _connection = self.connections.acquire().await;
            let started = Instant::now();
            let response = self.ask(&url, &host, left).await?;
            left = left.saturating_sub(started.elapsed());
            let status = response.status();
            if status != StatusCode::TOO_MANY_REQUESTS {
                host.says_something_else();
            }
            if let Some(next) = redirect(&response, &url)? {
                note(observed, "redirected".to_owned());
                url = next;
                continue;
            }
            if !status.is_success() {
                let refusal = Refusal::of_status(status, response.headers());
                if status == StatusCode::TOO_MANY_REQUESTS {
                    let wait = match refusal.retry {
                        Retry::After(wait) => Some(wait.min(LONGEST_WAIT)),
                        _ => None,
                    };
                    host.slow_down(started);
                    host.asks_to_wait(wait.unwrap_or(Duration::from_secs(1)), &refusal);
                    return Err(Refusal { retry: Retry::TooMany { wait, others: host.others() }, ..refusal });
                }
                return Err(refusal);
            }
            if let Some(header) = self.opt_out.found(response.headers()) {
                return Err(Refusal::network("opted_out", header));
            }
            return body::read(response, left, self.body, &self.budget, &self.meter).await;
        }
        Err(Refusal::network("bad_redirect", format!("more than {REDIRECTS} redirects")))
    }

    fn host_of(&self, url: &Url) -> Arc<Host> {
        let (name, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
        self.hosts.get(&format!("{name}:{port}"))
    }

    /// The host of a URL that may be fetched.
    fn host(&self, url: &Url) -> Result<Arc<Host>, Refusal> {
        check(url, &self.allowed).map_err(|error| Refusal::of_address(&error))?;
        let host = self.host_of(url);
        match host.verdict() {
            Some(refusal) => {
                self.count_unreachable(url, &host, &refusal);
                Err(refusal)
            }
            None => Ok(host),
        }
    }

    /// Counts what ended so because its host cannot be reached.
    fn count_unreachable(&self, url: &Url, host: &Host, refusal: &Refusal) {
        if refusal.is_unreachable {
            self.breaker.unreachable(url, host.name(), self.hosts.count(), refusal);
        }
    }

    /// One request, to its headers.
    async fn ask(&self, url: &Url, host: &Host, left: Duration) -> Result<Response, Refusal> {
        let started = Instant::now();
        let sent = timeout(left.min(self.first_byte), self.client.get(url.clone()).send()).await;
        let refusal = match sent {
            Ok(Ok(response)) => {
                // The resolver has judged it; this is the last look.
                if let Some(address) = response.remote_addr()
                    && !address::is_allowed(address.ip(), &self.allowed)
                {
                    return Err(Refusal::of_address(&dns::AddressError::Forbidden(address.ip())));
                }
                host.answered(started.elapsed());
                self.breaker.answered(url);
                return Ok(response);
            }
            Ok(Err(error)) => Refusal::of_request(&error),
            Err(_elapsed) => Refusal::network("timed_out", "no answer in time").may_pass(),
        };
        if refusal.is_unreachable {
            host.unreachable(&refusal);
            self.count_unreachable(url, host, &refusal);
        } else if refusal.is_silence() && started.elapsed() >= self.first_byte / 2 {
            // What redirects leave of a row's time may be too short for any host.
            host.silent(&refusal);
        }
        Err(refusal)
    }

    async fn judge_by_robots(&self, url: &Url, host: &Host) -> Result<(), Refusal> {
        if !self.robots_txt {
            return Ok(());
        }
        host.robots.get(self.retries, || self.robots_of(url)).await?.judge(url.as_str())
    }

    /// The robots.txt of the host that `url` is on.
    async fn robots_of(&self, url: &Url) -> Result<Rules, Refusal> {
        let mut url = url.join("/robots.txt").map_err(|error| Refusal::network("invalid_url", error))?;
        for _ in 0..=REDIRECTS {
            let host = self.host(&url)?;
            let mut response = self.ask(&url, &host, self.total).await?;
            if let Ok(Some(next)) = redirect(&response, &url) {
                url = next;
                continue;
            }
            let mut body = Vec::new();
            let read = async {
                while let Ok(Some(chunk)) = response.chunk().await
                    && body.len() < robots::MOST_BYTES
                {
                    body.extend_from_slice(&chunk);
                }
            };
            if timeout(self.total, read).await.is_err() {
                return Err(Rules::cannot_be_had("its robots.txt did not come in time"));
            }
            body.truncate(robots::MOST_BYTES);
            return Rules::of_answer(&self.opt_out.agent, response.status(), &body);
        }
        Ok(Rules::AllowAll)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Takes note of something that happened to a row, once.
fn note(observed: &mut Vec<String>, what: String) {
    if !observed.contains(&what) {
        observed.push(what);
    }
}

/// Where an answer sends us.
fn redirect(response: &Response, url: &Url) -> Result<Option<Url>, Refusal> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let bad = |detail: String| Refusal::network("bad_redirect", detail);
    let location = response.headers().get(LOCATION).ok_or_else(|| bad("it does not say where to".to_owned()))?;
    let text = String::from_utf8_lossy(location.as_bytes());
    let next = url.join(&text).map_err(|error| bad(format!("`{text}`: {error}")))?;
    Ok(Some(next))
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, NetworkError> {
    let failed = |reason: String| NetworkError::Certificates { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    Certificate::from_pem_bundle(&bytes).map_err(|error| failed(error.to_string()))
}

/// What connections there may be. A list has more hosts than a process has descriptors, so those that nobody uses are closed
/// soon, and at once where descriptors are few.
struct Room {
    connections: usize,
    idle_per_host: usize,
    idle_for: Duration,
}

impl Room {
    fn of(wanted: usize, per_host: usize) -> Self {
        // Where the limit cannot be known there is none, or none of this kind.
        let allowed = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(u64::MAX).saturating_sub(OTHERS);
        if allowed >= 4 * wanted as u64 && allowed >= 4096 {
            return Self { connections: wanted, idle_per_host: per_host, idle_for: Duration::from_secs(2) };
        }
        let connections = wanted.min((allowed / 4).max(8) as usize);
        Self { connections, idle_per_host: 1, idle_for: Duration::from_millis(200) }
    }
}

/// 0.25 s, 0.5 s, 1 s …, each up to half as long again at random, so that many waiting rows do not come back together.
fn back_off(tries: u32) -> Duration {
    let random = RandomState::new().hash_one(tries) as f64 / u64::MAX as f64;
    least_back_off(tries).mul_f64(1.0 + 0.5 * random).min(LONGEST_WAIT)
}

/// The shortest of its back-offs: what is over by then, every row finds over that was refused because of it.
fn least_back_off(tries: u32) -> Duration {
    Duration::from_secs_f64(0.125 * f64::from(1u32 << tries.min(8))).min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests;
