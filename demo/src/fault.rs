//! The ways in which a URL of the catalogue misbehaves.

use std::fmt;

/// What goes wrong with a URL. Each kind stands for something that happens to every crawl of the web.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The server answers 404.
    NotFound,
    /// The server answers 500 the first time it is asked, then serves the picture.
    ServerErrorOnce,
    /// The server answers 429 with `Retry-After: 1` the first time it is asked, then serves the picture.
    TooManyRequestsOnce,
    /// The server answers 302 and names another URL of the same host, where the picture is.
    Redirect,
    /// Headers and some bytes arrive, then nothing for ten minutes.
    Stalled,
    /// `Content-Length` promises more than arrives before the connection closes.
    Truncated,
    /// Status 200 and `Content-Type: image/jpeg`, but the body is an HTML page.
    HtmlPage,
    /// A JPEG with a sound header whose entropy-coded data is cut short and damaged; all the bytes that `Content-Length` promises arrive.
    CorruptJpeg,
    /// The picture is served, with `X-Robots-Tag: noai`.
    NoAi,
    /// The host name does not resolve.
    UnresolvableHost,
}

impl Fault {
    /// Every kind, in the order of declaration.
    pub const ALL: [Fault; 10] = [
        Fault::NotFound,
        Fault::ServerErrorOnce,
        Fault::TooManyRequestsOnce,
        Fault::Redirect,
        Fault::Stalled,
        Fault::Truncated,
        Fault::HtmlPage,
        Fault::CorruptJpeg,
        Fault::NoAi,
        Fault::UnresolvableHost,
    ];

    /// The stable name, in snake case, for reports and tests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Fault::NotFound => "not_found",
            Fault::ServerErrorOnce => "server_error_once",
            Fault::TooManyRequestsOnce => "too_many_requests_once",
            Fault::Redirect => "redirect",
            Fault::Stalled => "stalled",
            Fault::Truncated => "truncated",
            Fault::HtmlPage => "html_page",
            Fault::CorruptJpeg => "corrupt_jpeg",
            Fault::NoAi => "no_ai",
            Fault::UnresolvableHost => "unresolvable_host",
        }
    }

    /// Whether the picture cannot be had, however often and patiently a well-behaved client asks. A client that respects
    /// `X-Robots-Tag` may not keep a [`Fault::NoAi`] picture, so it counts as lost.
    #[must_use]
    pub const fn is_lost(self) -> bool {
        !matches!(self, Fault::ServerErrorOnce | Fault::TooManyRequestsOnce | Fault::Redirect)
    }

    /// Whether only a JPEG can have this fault.
    pub(crate) const fn needs_jpeg(self) -> bool {
        matches!(self, Fault::HtmlPage | Fault::CorruptJpeg)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
