//! The list: which behaviour each row has, its URL, and what is expected of it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::behaviour::{Behaviour, Expected, Outcome, Site};
use crate::picture::{Pictures, sha256};
use crate::random::number;
use crate::{Mix, Options};

/// Where nobody may connect to, played by an address of our own. Whoever does is counted.
pub(crate) const TRAP: Ipv4Addr = Ipv4Addr::new(127, 66, 6, 6);
/// The host of [`Site::Unicode`], as name servers know it.
const UNICODE_HOST: &str = "xn--bcher-kva.test";

const INVALID: [&str; 13] = [
    "not a url",
    "",
    "http://",
    "https:///",
    "mailto:someone@a0.test",
    "http://[::1",
    "javascript:alert(1)",
    "//a0.test/without-a-scheme.jpg",
    "http://a b.test/photo.jpg",
    "data:image/png;base64,iVBORw0KGgo=",
    "ftp://a0.test/photo.jpg",
    "file:///etc/passwd",
    "http://a0.test:99999/photo.jpg",
];

const PRIVATE: [&str; 14] = [
    "http://10.0.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::ffff:169.254.169.254]/latest/meta-data/",
    "http://2130706433/",
    "http://0177.0.0.1/",
    "http://0x7f.1/",
    "http://127.1/photo.jpg",
    "http://[::1]/photo.jpg",
    "http://192.168.0.1:8080/admin",
    "https://172.16.0.1/",
    "http://0.0.0.0/",
    "http://[fd00::1]/",
    "http://[::]/",
    "http://[64:ff9b::a00:1]/",
];

/// One row of the list.
#[derive(Clone, Debug)]
pub struct Row {
    pub url: String,
    /// `row 12, not-found`: names the row and its behaviour.
    pub caption: String,
    /// The hash in the list, in hexadecimal; only some rows have one.
    pub sha256: Option<String>,
    pub behaviour: Behaviour,
    pub expected: Expected,
    /// The row whose URL this is.
    pub duplicate_of: Option<usize>,
}

/// Makes the list. `port` is that of the HTTP server, for hosts that only the name server knows.
pub(crate) fn rows(options: &Options, pictures: &Pictures, port: u16) -> Vec<Row> {
    let chosen = choose(options);
    let mut rows: Vec<Row> = Vec::with_capacity(chosen.len());
    for (index, behaviour) in chosen.into_iter().enumerate() {
        let row = duplicate(options.seed, &rows, behaviour).unwrap_or_else(|| {
            // Where there is nothing to repeat, it is an ordinary picture.
            let behaviour = if behaviour == Behaviour::Duplicate { Behaviour::Jpeg } else { behaviour };
            row(options, pictures, port, index, behaviour)
        });
        rows.push(row);
    }
    rows
}

/// The behaviour of every row. A list that is long enough has each at least once, spread evenly.
fn choose(options: &Options) -> Vec<Behaviour> {
    let weighed: Vec<(Behaviour, f64)> = match &options.mix {
        Mix::Web => web(options.slow_share),
        Mix::Each => Behaviour::ALL.iter().map(|&behaviour| (behaviour, 1.0)).collect(),
        Mix::Of(weights) => weights.iter().map(|&(behaviour, weight)| (behaviour, f64::from(weight))).collect(),
    };
    let possible = |b: Behaviour| (options.dns || !b.needs_dns()) && (options.tls || !b.needs_tls());
    let weighed: Vec<_> = weighed.into_iter().filter(|&(b, weight)| weight > 0.0 && possible(b)).collect();
    let total: f64 = weighed.iter().map(|(_, weight)| weight).sum();
    let every = options.urls.checked_div(weighed.len()).unwrap_or(0);
    let pick = |index: usize| {
        if every > 0 && index % every == every / 2 && index / every < weighed.len() {
            return weighed[index / every].0;
        }
        let mut left = number(options.seed, "behaviour", index as u64) as f64 / u64::MAX as f64 * total;
        let found = weighed.iter().find(|(_, weight)| {
            left -= weight;
            left < 0.0
        });
        found.map_or(Behaviour::Jpeg, |(behaviour, _)| *behaviour)
    };
    (0..options.urls).map(pick).collect()
}

/// The usual weights, with `slow_share` of all rows slow.
fn web(slow_share: f64) -> Vec<(Behaviour, f64)> {
    let sum = |slow: bool| -> f64 {
        Behaviour::ALL.iter().filter(|b| b.is_slow() == slow).map(|b| f64::from(b.weight())).sum()
    };
    let (slow, quick) = (sum(true), sum(false));
    let share = slow_share.clamp(0.0, 1.0);
    let factor = |b: Behaviour| if b.is_slow() { share / slow } else { (1.0 - share) / quick };
    Behaviour::ALL.iter().map(|&b| (b, f64::from(b.weight()) * factor(b))).collect()
}

/// An earlier picture once more.
fn duplicate(seed: u64, rows: &[Row], behaviour: Behaviour) -> Option<Row> {
    if behaviour != Behaviour::Duplicate || rows.is_empty() {
        return None;
    }
    let candidate = |n: u64| number(seed, "duplicate", rows.len() as u64 * 64 + n) as usize % rows.len();
    let of = (0..64).map(candidate).find(|&of| rows[of].behaviour == Behaviour::Jpeg)?;
    let caption = caption(rows.len(), behaviour);
    Some(Row { caption, behaviour, duplicate_of: Some(of), ..rows[of].clone() })
}

fn caption(index: usize, behaviour: Behaviour) -> String {
    format!("row {index}, {}", behaviour.slug())
}

fn row(options: &Options, pictures: &Pictures, port: u16, index: usize, behaviour: Behaviour) -> Row {
    let kept = || {
        let picture = pictures.of(behaviour.kind(), index);
        let bytes = crate::reply::picture_of(behaviour, picture.bytes);
        Expected::Kept { width: picture.width, height: picture.height, sha256: sha256(&bytes) }
    };
    let refused_if = |asked: bool, reason| if asked { Expected::Refused(reason) } else { kept() };
    let expected = match behaviour.outcome() {
        Outcome::Kept => kept(),
        Outcome::Refused(reason) => Expected::Refused(reason),
        Outcome::RefusedByRobots => refused_if(options.robots_txt, "robots_disallowed"),
        Outcome::RefusedByHash => refused_if(options.verify_hash, "hash_mismatch"),
    };
    let given = number(options.seed, "given hash", index as u64).is_multiple_of(2);
    let hash = match &expected {
        _ if behaviour == Behaviour::HashMismatch => Some(sha256(b"what was there once")),
        Expected::Kept { sha256, .. } if given => Some(sha256.clone()),
        _ => None,
    };
    Row {
        url: url(options, port, index, behaviour),
        caption: caption(index, behaviour),
        sha256: hash,
        behaviour,
        expected,
        duplicate_of: None,
    }
}

fn url(options: &Options, port: u16, row: usize, behaviour: Behaviour) -> String {
    let choice = number(options.seed, "url", row as u64) as usize;
    match behaviour {
        Behaviour::InvalidUrl => return INVALID[choice % INVALID.len()].to_owned(),
        Behaviour::PrivateAddress => return private_address(choice, port),
        _ => {}
    }
    let host = host(behaviour.site(), row, options.hosts);
    let scheme = if behaviour.needs_tls() && behaviour != Behaviour::RedirectTls { "https" } else { "http" };
    let port = if behaviour.needs_dns() { format!(":{port}") } else { String::new() };
    let path = path(behaviour, row);
    match behaviour {
        Behaviour::OddSpaces => format!("{scheme}://{host}{port}{path}/a  photo of {row}.jpg"),
        Behaviour::OddUnicode => format!("{scheme}://{host}{port}{path}/фото naïve ☕.jpg?müde=ja"),
        Behaviour::OddPercent => format!("{scheme}://{host}{port}{path}/100%/%zz/%2e%2e/%C3%A9%2F.jpg"),
        Behaviour::OddQuery => {
            format!("{scheme}://{host}{port}{path}/x/../photo.jpg?w=1024&h=768&f=a|b{{c}}'d&sig={choice:x}#top")
        }
        Behaviour::OddCapitals => format!("  HTTP://{}{port}{path}/PHOTO.JPG ", host.to_uppercase()),
        Behaviour::OddHost => format!("{scheme}://bücher.test{port}{path}/photo.jpg"),
        _ => format!("{scheme}://{host}{port}{path}/photo.jpg"),
    }
}

/// The beginning of a row's paths.
pub(crate) fn path(behaviour: Behaviour, row: usize) -> String {
    format!("/{}/{row}", behaviour.slug())
}

/// A URL that must not be connected to.
pub(crate) fn private_address(choice: usize, port: u16) -> String {
    match choice % 4 {
        0 => format!("http://{TRAP}:{port}/secret.jpg"),
        1 => format!("http://{}:{port}/secret.jpg", u32::from(TRAP)),
        _ => PRIVATE[choice / 4 % PRIVATE.len()].to_owned(),
    }
}

/// The host of a row.
pub(crate) fn host(site: Site, row: usize, main: usize) -> String {
    let (prefix, count) = match site {
        Site::Main => ("a", main.max(1)),
        Site::Slow => ("slow", 8),
        Site::Busy => ("busy", 8),
        Site::Reset => ("reset", 8),
        Site::Refused => ("refused", 4),
        Site::Robots => ("robots", 1),
        Site::RobotsDown => ("robotsdown", 1),
        Site::Tls => ("s", 8),
        Site::TlsOld => ("t", 4),
        Site::TlsWrongName => ("wrongname", 1),
        Site::TlsAbsent => ("plain", 1),
        Site::Unicode | Site::Nowhere => return UNICODE_HOST.to_owned(),
        Site::TlsOwn => return format!("r{row}.goaway.test"),
        Site::Dns(prefix) => return format!("{prefix}-{row}.test"),
    };
    format!("{prefix}{}.test", crate::random::mix(row as u64) as usize % count)
}

/// The hosts of `rows` that have a port of their own to be connected to, with their sites.
pub(crate) fn hosts(rows: &[Row], main: usize) -> BTreeSet<(String, bool, bool)> {
    let mut hosts = BTreeSet::new();
    for (index, row) in rows.iter().enumerate().filter(|(_, row)| row.duplicate_of.is_none()) {
        let site = row.behaviour.site();
        let tls = matches!(site, Site::Tls | Site::TlsOld | Site::TlsOwn | Site::TlsWrongName);
        if !matches!(site, Site::Nowhere | Site::Dns(_)) {
            hosts.insert((host(site, index, main), tls, site == Site::Refused));
        }
        match row.behaviour {
            Behaviour::RedirectHost => hosts.insert((host(Site::Main, index + 1, main), false, false)),
            Behaviour::RedirectTls => hosts.insert((host(Site::Tls, index, main), true, false)),
            _ => false,
        };
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(options: &Options) -> Vec<Row> {
        rows(options, &Pictures::new(options.seed).unwrap(), 4321)
    }

    #[test]
    fn the_list_follows_from_its_options_and_has_everything_in_it() {
        let options = Options { urls: 2000, ..Options::default() };
        let rows = list(&options);
        assert_eq!(format!("{rows:?}"), format!("{:?}", list(&options)));
        let urls = |rows: &[Row]| rows.iter().map(|row| row.url.clone()).collect::<Vec<_>>();
        assert_ne!(urls(&rows), urls(&list(&Options { seed: 99, ..options.clone() })));
        let found: BTreeSet<Behaviour> = rows.iter().map(|row| row.behaviour).collect();
        assert_eq!(found.len(), Behaviour::ALL.len());
        let slow = rows.iter().filter(|row| row.behaviour.is_slow()).count();
        assert!((5..50).contains(&slow), "{slow}");
        let kept = rows.iter().filter(|row| matches!(row.expected, Expected::Kept { .. })).count();
        assert!((1000..1700).contains(&kept), "{kept}");
        for row in rows.iter().filter(|row| row.duplicate_of.is_some()) {
            assert_eq!(row.url, rows[row.duplicate_of.unwrap()].url);
        }
    }

    #[test]
    fn what_cannot_be_had_is_left_out_and_what_is_asked_for_is_expected() {
        let options = Options { urls: 3000, dns: false, tls: false, ..Options::default() };
        assert!(list(&options).iter().all(|row| !row.behaviour.needs_dns() && !row.behaviour.needs_tls()));
        let only = Options { urls: 40, mix: Mix::Of(vec![(Behaviour::HashMismatch, 1)]), ..Options::default() };
        assert!(list(&only).iter().all(|row| row.expected == Expected::Refused("hash_mismatch")));
        let unasked = list(&Options { verify_hash: false, ..only });
        assert!(unasked.iter().all(|row| row.expected.word() == "kept"));
    }

    #[test]
    fn slugs_are_different() {
        let slugs: BTreeSet<&str> = Behaviour::ALL.iter().map(|behaviour| behaviour.slug()).collect();
        assert_eq!(slugs.len(), Behaviour::ALL.len());
    }
}
