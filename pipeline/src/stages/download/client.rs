//! The HTTP client: names are resolved here, and every address is judged before it is connected to.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};

use super::Operations;
use super::address::is_allowed;

/// Redirects that are followed in a row.
const REDIRECTS: usize = 5;

/// Why a name led nowhere. Found again below reqwest's own errors.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum AddressError {
    #[error("{0} is a private address; add its network to allow_networks if that is meant")]
    Forbidden(IpAddr),
    #[error("the host {host} does not resolve: {reason}")]
    Unresolvable { host: String, reason: String },
    #[error("{0}: only http and https are fetched")]
    Scheme(String),
}

pub(super) fn build(
    operations: &Operations,
    connect_to: &BTreeMap<String, SocketAddr>,
    allowed: &[IpNet],
) -> Result<Client, reqwest::Error> {
    let judged = allowed.to_vec();
    let redirects = Policy::custom(move |attempt| {
        if attempt.previous().len() > REDIRECTS {
            return attempt.error(format!("more than {REDIRECTS} redirects"));
        }
        match check(attempt.url(), &judged) {
            Ok(()) => attempt.follow(),
            Err(error) => attempt.error(error),
        }
    });
    let resolver = Resolver { connect_to: connect_to.clone(), allowed: allowed.to_vec() };
    Client::builder()
        .user_agent(&operations.user_agent)
        .timeout(Duration::from_secs_f64(operations.timeout))
        .redirect(redirects)
        .dns_resolver(Arc::new(resolver))
        // A proxy would make the connections, out of reach of the address guard.
        .no_proxy()
        .build()
}

/// Refuses other schemes, and literal addresses that may not be connected to (those never reach the resolver).
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

struct Resolver {
    connect_to: BTreeMap<String, SocketAddr>,
    allowed: Vec<IpNet>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_lowercase();
        let fixed = self.connect_to.get(&host).copied();
        let allowed = self.allowed.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> = match fixed {
                Some(address) => vec![address],
                None => tokio::net::lookup_host((host.as_str(), 0))
                    .await
                    .map_err(|error| AddressError::Unresolvable { host: host.clone(), reason: error.to_string() })?
                    .collect(),
            };
            // One private address among public ones is a rebinding attempt or a mistake; either way it is not used.
            let (good, bad): (Vec<_>, Vec<_>) = found.into_iter().partition(|a| is_allowed(a.ip(), &allowed));
            match (good.is_empty(), bad.first()) {
                (true, Some(address)) => Err(AddressError::Forbidden(address.ip()).into()),
                (true, None) => Err(AddressError::Unresolvable { host, reason: "no addresses".to_owned() }.into()),
                (false, _) => Ok(Box::new(good.into_iter()) as Addrs),
            }
        })
    }
}

/// The [`AddressError`] somewhere below an error.
pub(super) fn address_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a AddressError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<AddressError>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
