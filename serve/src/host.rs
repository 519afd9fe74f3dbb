//! By what name a client called: against pages that come to a loopback server by a name of their own (DNS rebinding), and
//! for the URLs of pictures.

use std::net::{IpAddr, SocketAddr};

use axum::http::uri::Authority;
use axum::http::{HeaderMap, header};

use crate::error::ApiError;

/// The name, with its port, that a request was sent to: the Host header, parsed. None where there is none or it is none.
pub(crate) fn called(headers: &HeaderMap) -> Option<Authority> {
    let mut values = headers.get_all(header::HOST).iter();
    let authority: Authority = values.next()?.to_str().ok()?.parse().ok()?;
    // Two are one too many, and what comes before an @ is not part of a name.
    (values.next().is_none() && !authority.as_str().contains('@')).then_some(authority)
}

/// Refuses names that are not the server's own.
pub(crate) fn check(headers: &HeaderMap, address: SocketAddr, names: &[String]) -> Result<(), ApiError> {
    let takes_any = !address.ip().is_loopback() && names.is_empty();
    let Some(authority) = called(headers) else {
        // HTTP/1.0 has no such header, and probes of load balancers speak it.
        if takes_any && !headers.contains_key(header::HOST) {
            return Ok(());
        }
        let sent = headers.get(header::HOST).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        return Err(ApiError::ForeignHost(sent.unwrap_or_default()));
    };
    let host = authority.host();
    let ip = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).parse::<IpAddr>().ok();
    let is_own = match ip {
        // A page cannot come by an address other than its own server's.
        Some(ip) => !address.ip().is_loopback() || ip.is_loopback() || ip == address.ip(),
        None => {
            host.eq_ignore_ascii_case("localhost")
                || names.iter().any(|name| name.eq_ignore_ascii_case(host))
                || takes_any
        }
    };
    if is_own { Ok(()) } else { Err(ApiError::ForeignHost(host.to_owned())) }
}

/// Refuses requests from other servers' pages. A browser says whose page it is; others have no such header.
pub(crate) fn check_origin(headers: &HeaderMap, base_url: Option<&str>) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let is_called = origin.split_once("://").is_some_and(|(_, authority)| {
        called(headers).is_some_and(|called| called.as_str().eq_ignore_ascii_case(authority))
    });
    // Behind another server, the page's name is that one's.
    let is_base = base_url.is_some_and(|base| {
        base.strip_prefix(origin).is_some_and(|path| !origin.is_empty() && (path.is_empty() || path.starts_with('/')))
    });
    if is_called || is_base { Ok(()) } else { Err(ApiError::ForeignOrigin) }
}

/// The URL of a stored picture.
pub(crate) fn picture_url(headers: &HeaderMap, address: SocketAddr, base_url: Option<&str>, name: &str) -> String {
    match base_url {
        Some(base) => format!("{}/pictures/{name}.png", base.trim_end_matches('/')),
        None => match called(headers) {
            Some(called) => format!("http://{called}/pictures/{name}.png"),
            None => format!("http://{address}/pictures/{name}.png"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn only_own_names_are_answered() {
        let loopback: SocketAddr = "127.0.0.1:8000".parse().unwrap();
        let open: SocketAddr = "0.0.0.0:8000".parse().unwrap();
        let names = ["pictures.example".to_owned()];
        for (host, address, names, expected) in [
            ("localhost", loopback, &[][..], true),
            ("LOCALHOST:8000", loopback, &[], true),
            ("127.0.0.1:8000", loopback, &[], true),
            ("127.0.0.1:9", loopback, &[], true),
            ("[::1]:8000", loopback, &[], true),
            ("192.0.2.7", loopback, &[], false),
            ("pictures.example", loopback, &[], false),
            ("pictures.example:8000", loopback, &names, true),
            ("localhost.evil.example", loopback, &names, false),
            ("127.0.0.1.evil.example", loopback, &[], false),
            ("evil.example@127.0.0.1", loopback, &[], false),
            ("127.0.0.1@evil.example", loopback, &[], false),
            ("", loopback, &[], false),
            ("a b", loopback, &[], false),
            ("anything.example", open, &[], true),
            ("a b", open, &[], false),
            ("192.0.2.7:8000", open, &[], true),
            ("192.0.2.7:8000", open, &names, true),
            ("anything.example", open, &names, false),
            ("pictures.example", open, &names, true),
        ] {
            assert_eq!(check(&headers(header::HOST, host), address, names).is_ok(), expected, "{host} at {address}");
        }
        let nameless = |address, names: &[String]| check(&HeaderMap::new(), address, names).is_ok();
        assert_eq!((nameless(loopback, &[]), nameless(open, &[]), nameless(open, &names)), (false, true, false));
    }

    #[test]
    fn other_pages_are_refused() {
        for (origin, base, expected) in [
            (Some("http://localhost:8000"), None, true),
            (Some("http://localhost:9000"), None, false),
            (Some("http://evil.example"), None, false),
            (Some("null"), None, false),
            (Some(""), Some("https://pictures.example/a"), false),
            (Some("https://pictures.example"), Some("https://pictures.example/a"), true),
            (Some("https://pictures.exam"), Some("https://pictures.example/a"), false),
            (None, None, true),
        ] {
            let mut sent = headers(header::HOST, "localhost:8000");
            if let Some(origin) = origin {
                sent.insert(header::ORIGIN, origin.parse().unwrap());
            }
            assert_eq!(check_origin(&sent, base).is_ok(), expected, "{origin:?} {base:?}");
        }
    }
}
