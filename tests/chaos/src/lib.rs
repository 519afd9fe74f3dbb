//! A web on loopback that misbehaves in every way the web does, for tests of the download.
//!
//! An [`Origin`] makes a list of URLs from a seed and serves what lies behind them: over HTTP/1.1, h2 and TLS, with a name
//! server of its own. For each row it knows what a correct downloader makes of it ([`Row::expected`]), and it counts what it
//! was asked for ([`Served`]).
//!
//! ```no_run
//! # fn main() -> std::io::Result<()> {
//! let origin = chaos::Origin::start(chaos::Options { urls: 2000, ..Default::default() })?;
//! let keys = origin.manifest_keys(std::path::Path::new("/tmp/chaos"))?;
//! let manifest = format!("[stage.download]\nuses = \"download\"\n{keys}");
//! // … run it …
//! assert_eq!(origin.served().trapped, 0);
//! # Ok(())
//! # }
//! ```
//!
//! A second server, in [`captions`], misbehaves as caption servers do.
//!
//! It needs a machine on which all of 127.0.0.0/8 is loopback, as on Linux: it plays the web on one address and, on another,
//! what must not be connected to.

mod answer;
mod behaviour;
pub mod captions;
mod counts;
mod http1;
mod http2;
mod names;
mod origin;
mod picture;
mod random;
mod redirect;
mod reply;
mod rows;
mod tls;
mod web;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use behaviour::{Behaviour, Expected};
pub use counts::Served;
pub use origin::Origin;
pub use rows::Row;

/// What an origin is like. The same options make the same list, but for the port in URLs of hosts that only the name server
/// knows.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each says of one thing whether it is there")]
pub struct Options {
    pub seed: u64,
    /// Rows of the list.
    pub urls: usize,
    /// Ordinary hosts, over which most rows are spread.
    pub hosts: usize,
    /// Which behaviours there are, and how many of each.
    pub mix: Mix,
    /// Share of the rows that take as long as a client waits, from 0 to 1; only for [`Mix::Web`].
    pub slow_share: f64,
    /// Rows on hosts that only the name server knows, and that name server.
    pub dns: bool,
    /// Rows over TLS, and servers for them.
    pub tls: bool,
    /// Whether the downloader is told to follow robots.txt.
    pub robots_txt: bool,
    /// Whether the downloader is told to compare with the hashes in the list.
    pub verify_hash: bool,
    /// Every answer waits so long, as if it came from far away.
    pub latency: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            urls: 1000,
            hosts: 64,
            mix: Mix::Web,
            slow_share: 0.004,
            dns: true,
            tls: true,
            robots_txt: true,
            verify_hash: true,
            latency: Duration::ZERO,
        }
    }
}

/// Which behaviours a list has. One with at least as many rows as behaviours has each of them.
#[derive(Clone, Debug)]
pub enum Mix {
    /// As on the web: most rows are pictures, and everything else occurs.
    Web,
    /// As many of each.
    Each,
    /// These, by weight.
    Of(Vec<(Behaviour, u32)>),
}
