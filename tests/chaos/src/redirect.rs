//! Where rows redirect to.

use crate::behaviour::{Behaviour, Site};
use crate::reply::Reply;
use crate::rows::{host, path, private_address};
use crate::web::{Asked, Web};

const STATUSES: [u16; 5] = [301, 302, 303, 307, 308];
/// The last of three redirects leads here.
const MOVED: &str = "moved/photo.jpg?size=large&v=2";
/// Another host, or the same over TLS.
const THERE: &str = "there.jpg";

/// What is no URL, or `None` for no word where to.
const NOWHERE: [Option<&str>; 5] = [
    None,
    Some("http://"),
    Some("http://[::1"),
    Some("https://a b.test/photo.jpg"),
    Some("http://a0.test:99999/photo.jpg"),
];

const SCHEMES: [&str; 5] = [
    "file:///etc/passwd",
    "ftp://a0.test/photo.jpg",
    "data:image/png;base64,iVBORw0KGgo=",
    "javascript:alert(1)",
    "gopher://a0.test/1",
];

/// The redirect that a row answers with, if it does. `rest` is what follows the row in the path, with the query.
pub(crate) fn redirect(
    web: &Web,
    (row, behaviour, choice): (usize, Behaviour, usize),
    rest: &str,
    asked: &Asked<'_>,
) -> Option<Reply> {
    let status = STATUSES[choice % STATUSES.len()];
    let path = path(behaviour, row);
    let main = web.options.hosts;
    let to = |location: String| Some(moved(status, choice).with("Location", location));
    match behaviour {
        Behaviour::RedirectChain => match rest {
            MOVED => None,
            "second" => Some(moved(302, choice).with("Location", "third?from=second")),
            "third?from=second" => Some(moved(307, choice).with("Location", format!("{path}/{MOVED}"))),
            "photo.jpg" => {
                let scheme = if asked.is_tls { "https" } else { "http" };
                Some(moved(301, choice).with("Location", format!("{scheme}://{}{path}/second", asked.host)))
            }
            _ => Some(Reply::status(404)),
        },
        Behaviour::RedirectHost if rest != THERE => {
            to(format!("http://{}{path}/{THERE}", host(Site::Main, row + 1, main)))
        }
        Behaviour::RedirectTls if rest != THERE => to(format!("https://{}{path}/{THERE}", host(Site::Tls, row, main))),
        Behaviour::RedirectLoop => to(format!("{path}/{rest}")),
        Behaviour::RedirectEndless => {
            let hops = rest.parse().unwrap_or(0_u64);
            to(format!("{path}/{}", hops.saturating_add(1)))
        }
        Behaviour::RedirectNowhere => match NOWHERE[choice % NOWHERE.len()] {
            Some(location) => to(location.to_owned()),
            None => Some(moved(status, choice)),
        },
        Behaviour::RedirectPrivate => to(private_address(choice, web.port)),
        Behaviour::RedirectScheme => to(SCHEMES[choice % SCHEMES.len()].to_owned()),
        _ => None,
    }
}

/// With a page that nobody reads, or without.
fn moved(status: u16, choice: usize) -> Reply {
    let reply = Reply::status(status);
    if (choice / 8).is_multiple_of(2) { reply } else { Reply { body: bytes::Bytes::new(), ..reply } }
}
