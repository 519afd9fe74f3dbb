//! Names to addresses: an asynchronous resolver with a cache of its own, and the guard that judges every address before it
//! is connected to. What the guard has judged is what the connection uses, so a name that changes its answer between two
//! look-ups gains nothing.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use ipnet::IpNet;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::address::is_allowed;
use super::refusal::is_shortage;

/// Names that the cache holds.
const CACHED_NAMES: u64 = 200_000;
/// However short a name's own time to live is, a list asks for the same hosts again and again.
const SHORTEST_LIFE: Duration = Duration::from_mins(1);
const LONGEST_LIFE: Duration = Duration::from_hours(1);
/// A name server that said nothing, or that there is no such name, is asked again soon.
const LONGEST_ABSENCE: Duration = Duration::from_mins(5);
/// One question to one name server.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a name led nowhere. Found again below reqwest's own errors.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum AddressError {
    /// A run leaves alone what was refused, whatever the manifest says by then.
    #[error(
        "{0} is a private address; if that is meant: add its network to allow_networks, then `ferrotype retry MANIFEST`"
    )]
    Forbidden(IpAddr),
    #[error("the host {host} does not exist")]
    NoSuchName { host: String },
    #[error("no name server says where the host {host} is")]
    NoAnswer { host: String },
    /// It could not be asked, for want of descriptors or ports here.
    #[error("this machine could not ask a name server: {0}")]
    NoRoom(Arc<std::io::Error>),
    #[error("{0}: only http and https are fetched")]
    Scheme(String),
}

/// Refuses other schemes, and literal addresses that may not be connected to (those never reach the resolver). The URL's
/// parser has brought decimal, octal and hexadecimal forms to the usual one.
pub(super) fn check(url: &Url, allowed: &[IpNet]) -> Result<(), AddressError> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(AddressError::Scheme(url.scheme().to_owned()));
    }
    let literal = url.host_str().and_then(|h| h.trim_matches(['[', ']']).parse::<IpAddr>().ok());
    match literal {
        Some(address) if !is_allowed(address, allowed) => Err(AddressError::Forbidden(address)),
        _ => Ok(()),
    }
}

/// Resolves names for the HTTP client, guarded.
#[derive(Clone)]
pub(super) struct GuardedResolver {
    resolver: TokioResolver,
    connect_to: Arc<BTreeMap<String, SocketAddr>>,
    allowed: Arc<[IpNet]>,
    /// For all questions about a name together.
    patience: Duration,
}

impl GuardedResolver {
    /// Asks `nameservers`, or those that this machine is set up with. Must be called within a tokio runtime.
    pub(super) fn new(
        nameservers: &[SocketAddr],
        connect_to: &BTreeMap<String, SocketAddr>,
        allowed: &[IpNet],
        patience: Duration,
    ) -> Result<Self, NetError> {
        let mut builder = if nameservers.is_empty() {
            // A machine without any set-up may still have names in its hosts file, or hosts of connect_to.
            TokioResolver::builder_tokio().unwrap_or_else(|_none| {
                TokioResolver::builder_with_config(ResolverConfig::default(), TokioRuntimeProvider::default())
            })
        } else {
            let servers = nameservers.iter().map(|address| {
                let mut server = NameServerConfig::udp_and_tcp(address.ip());
                server.connections.iter_mut().for_each(|connection| connection.port = address.port());
                server
            });
            let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options = builder.options_mut();
        options.cache_size = CACHED_NAMES;
        options.positive_min_ttl = Some(SHORTEST_LIFE);
        options.positive_max_ttl = Some(LONGEST_LIFE);
        options.negative_min_ttl = Some(SHORTEST_LIFE);
        options.negative_max_ttl = Some(LONGEST_ABSENCE);
        options.timeout = PATIENCE;
        options.attempts = 2;
        options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
        // Thousands of rows ask at a time.
        options.max_active_requests = 4096;
        // Names of a list are whole; this machine's own search domains are none of its business.
        options.ndots = 0;
        let resolver = builder.build()?;
        Ok(Self { resolver, connect_to: Arc::new(connect_to.clone()), allowed: allowed.into(), patience })
    }

    /// Forgets what names were found to mean.
    pub(super) fn forget(&self) {
        self.resolver.clear_cache();
    }

    /// The addresses of `host` that may be connected to, if a name server says so before patience ends.
    pub(super) async fn addresses_in_time(&self, host: &str) -> Result<Vec<SocketAddr>, AddressError> {
        let found = tokio::time::timeout(self.patience, self.addresses(host)).await;
        found.unwrap_or_else(|_elapsed| Err(AddressError::NoAnswer { host: host.to_owned() }))
    }

    async fn addresses(&self, host: &str) -> Result<Vec<SocketAddr>, AddressError> {
        let found: Vec<SocketAddr> = match self.connect_to.get(host) {
            Some(address) => vec![*address],
            None => self.look_up(host).await?,
        };
        // One private address among public ones is a rebinding attempt or a mistake; either way it is not used.
        let (good, bad): (Vec<_>, Vec<_>) = found.into_iter().partition(|a| is_allowed(a.ip(), &self.allowed));
        match (good.is_empty(), bad.first()) {
            (true, Some(address)) => Err(AddressError::Forbidden(address.ip())),
            (true, None) => Err(AddressError::NoSuchName { host: host.to_owned() }),
            (false, _) => Ok(good),
        }
    }

    async fn look_up(&self, host: &str) -> Result<Vec<SocketAddr>, AddressError> {
        let full = format!("{}.", host.trim_end_matches('.'));
        match self.resolver.lookup_ip(full).await {
            Ok(found) => Ok(found.iter().map(|address| SocketAddr::new(address, 0)).collect()),
            Err(error) if error.is_nx_domain() => Err(AddressError::NoSuchName { host: host.to_owned() }),
            Err(error) if error.is_no_records_found() && !is_failure(&error) => {
                Err(AddressError::NoSuchName { host: host.to_owned() })
            }
            Err(NetError::Io(error)) if is_shortage(&error) => Err(AddressError::NoRoom(error)),
            Err(NetError::Proto(_)) => Err(AddressError::NoSuchName { host: host.to_owned() }),
            Err(_) => Err(AddressError::NoAnswer { host: host.to_owned() }),
        }
    }
}

/// Whether a name server answered that it cannot answer (SERVFAIL, REFUSED), which says nothing about the name.
fn is_failure(error: &NetError) -> bool {
    use hickory_resolver::net::DnsError;
    use hickory_resolver::proto::op::ResponseCode;
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            !matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
        }
        _ => true,
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let found = resolver.addresses_in_time(&name.as_str().to_lowercase()).await;
            let addresses = found.map_err(Box::<dyn Error + Send + Sync>::from)?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_address_is_refused_with_all_that_is_to_be_done_where_it_is_meant() {
        let error = check(&Url::parse("http://127.0.0.1/x.jpg").unwrap(), &[]).unwrap_err().to_string();
        assert!(error.starts_with("127.0.0.1 is a private address"), "{error}");
        assert!(error.contains("allow_networks") && error.ends_with("then `ferrotype retry MANIFEST`"), "{error}");
    }

    #[test]
    fn private_addresses_are_seen_through_every_spelling() {
        for url in [
            "http://127.0.0.1/x.jpg",
            "http://2130706433/",
            "http://0177.0.0.1/",
            "http://0x7f.1/",
            "http://127.1/",
            "http://[::ffff:169.254.169.254]/latest/meta-data",
            "http://[::1]:80/",
            "https://10.0.0.1/",
        ] {
            let error = check(&Url::parse(url).unwrap(), &[]).unwrap_err();
            assert!(matches!(error, AddressError::Forbidden(_)), "{url}: {error}");
        }
        for url in ["ftp://example.com/x", "file:///etc/passwd", "data:image/png;base64,AAAA"] {
            assert!(matches!(check(&Url::parse(url).unwrap(), &[]), Err(AddressError::Scheme(_))), "{url}");
        }
        assert!(check(&Url::parse("http://example.com/").unwrap(), &[]).is_ok());
    }
}
