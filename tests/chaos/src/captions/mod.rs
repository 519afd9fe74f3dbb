//! A caption server that misbehaves as caption servers do, for tests of whoever asks them.
//!
//! It speaks `/health`, `/v1/models` and `/v1/chat/completions`. A caption is a function of what is asked ([`caption`]), so
//! that a test can tell whether each row got its own; and for each [`Identity`] it counts how often it was asked and how often
//! it answered ([`Served`]), so that a test can tell whether anything was paid for twice. What the strictest of real servers
//! refuses, it refuses too: TGI wants a `top_p` between 0 and 1, without them.
//!
//! ```no_run
//! # fn main() -> std::io::Result<()> {
//! use chaos::captions::{CaptionServer, Manner, Options};
//! let server = CaptionServer::start(Options { rates: vec![(Manner::Reset, 0.05)], ..Options::default() })?;
//! let endpoints = format!("endpoints = [\"{}\"]", server.url());
//! // … run it …
//! assert_eq!(server.served().over_limit, 0);
//! # Ok(())
//! # }
//! ```

mod connection;
mod counts;
mod manner;
mod question;
mod server;

use std::time::Duration;

pub use counts::{Asked, Served};
pub use manner::{Manner, completion_of};
pub use question::{Identity, caption, identity};
pub use server::CaptionServer;

/// Bytes in an image that break the server.
pub const POISON: &[u8] = b"<poison>";

/// What a caption server is like.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// The one that it has. Asked for another, it answers 404.
    pub model: String,
    /// What it wants to see as `Authorization: Bearer …`; without it, it answers 401 and repeats what it saw.
    pub token: Option<String>,
    /// Shares of the questions that are answered in these manners, from 0 to 1; of all others, a caption.
    pub rates: Vec<(Manner, f64)>,
    /// A question is answered with a caption when it was answered otherwise so many times.
    pub most_misbehaviour: u32,
    /// How long a caption takes.
    pub latency: Duration,
    /// More requests than these at a time are counted as too many.
    pub limit: usize,
    /// Once it has been asked about an image with [`POISON`], every answer is 500 until nobody has asked for so long.
    pub recovers_after: Duration,
    /// Whatever shows an image is answered with 500; questions in words are not.
    pub fails_at_images: bool,
    /// It looks at nothing and answers at once, for measuring whoever asks.
    pub at_once: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            model: "captioner".to_owned(),
            token: None,
            rates: Vec::new(),
            most_misbehaviour: 2,
            latency: Duration::from_millis(2),
            limit: usize::MAX,
            recovers_after: Duration::from_millis(60),
            fails_at_images: false,
            at_once: false,
        }
    }
}
