//! What can lie behind a URL, and what a correct downloader makes of it.

/// What a correct downloader reports for a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The picture is kept: its size in pixels, and the SHA-256 of the bytes as served, in hexadecimal.
    Kept { width: u32, height: u32, sha256: String },
    /// The row is refused, for this reason.
    Refused(&'static str),
}

impl Expected {
    /// The word by which rows are counted: a reason, or `kept`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Kept { .. } => "kept",
            Self::Refused(reason) => reason,
        }
    }
}

/// Which hosts a behaviour lives on. Those that would make a downloader think ill of a whole host have hosts of their own, so
/// that what is expected of the others does not depend on who came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// `a0.test` …: HTTP/1.1, and nothing wrong with the host.
    Main,
    /// `slow0.test` …: rows that take as long as the client allows.
    Slow,
    /// `busy0.test` …: says "429".
    Busy,
    /// `reset0.test` …: connections end before an answer.
    Reset,
    /// `refused0.test` …: nobody listens.
    Refused,
    /// `bücher.test`, as a person writes it.
    Unicode,
    /// `robots0.test`: its robots.txt disallows some of it.
    Robots,
    /// `robotsdown0.test`: its robots.txt answers 503.
    RobotsDown,
    /// `s0.test` …: TLS, h2 or HTTP/1.1.
    Tls,
    /// `t0.test` …: TLS, HTTP/1.1 only.
    TlsOld,
    /// `r123.goaway.test`: TLS, and a host for each row, since ending a connection ends whatever else is on it.
    TlsOwn,
    /// `wrongname0.test`: TLS with a certificate for other names.
    TlsWrongName,
    /// `plain0.test`: https in the URL, and no TLS behind it.
    TlsAbsent,
    /// A name of the row's own that only the name server knows; the URL carries the port.
    Dns(&'static str),
    /// Not on a host of ours.
    Nowhere,
}

/// How a row ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Kept,
    Refused(&'static str),
    /// Refused if the downloader was told to follow robots.txt.
    RefusedByRobots,
    /// Refused if the downloader was told to compare hashes.
    RefusedByHash,
}

/// What its picture is, where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Jpeg,
    Png,
    Webp,
    Gif,
    LargeJpeg,
}

macro_rules! behaviours {
    ($($(#[$doc:meta])* $name:ident $slug:literal $weight:literal $kind:ident $site:expr, $outcome:expr;)*) => {
        /// What lies behind a URL.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Behaviour {
            $($(#[$doc])* $name,)*
        }

        impl Behaviour {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name in URLs.
            pub fn slug(self) -> &'static str {
                match self { $(Self::$name => $slug,)* }
            }

            /// How common it is on this web: of about a thousand rows.
            pub fn weight(self) -> u32 {
                match self { $(Self::$name => $weight,)* }
            }

            pub(crate) fn kind(self) -> Kind {
                match self { $(Self::$name => Kind::$kind,)* }
            }

            pub(crate) fn site(self) -> Site {
                match self { $(Self::$name => $site,)* }
            }

            pub(crate) fn outcome(self) -> Outcome {
                match self { $(Self::$name => $outcome,)* }
            }
        }
    };
}

use Outcome::{Kept, Refused, RefusedByHash, RefusedByRobots};
use Site::{Busy, Dns, Main, Nowhere, Reset, Robots, RobotsDown, Slow, Tls, TlsAbsent, TlsOld, TlsOwn, TlsWrongName};

behaviours! {
    // Pictures.
    /// A JPEG. Kept.
    Jpeg "jpeg" 300 Jpeg Main, Kept;
    /// A PNG. Kept.
    Png "png" 60 Png Main, Kept;
    /// A WebP. Kept.
    Webp "webp" 50 Webp Main, Kept;
    /// A GIF. Kept.
    Gif "gif" 30 Gif Main, Kept;
    /// A JPEG of some hundred kilobytes. Kept.
    LargeJpeg "large-jpeg" 8 LargeJpeg Main, Kept;
    /// The URL of an earlier row again. Kept.
    Duplicate "duplicate" 10 Jpeg Nowhere, Kept;
    /// A JPEG with a page of HTML in its comment: a valid image is a valid image. Kept.
    HtmlInComment "html-in-comment" 4 Jpeg Main, Kept;
    /// A JPEG with HTML after its end. Kept.
    HtmlAppended "html-appended" 4 Jpeg Main, Kept;
    /// A GIF that a browser would also run as a script. Kept.
    GifScript "gif-script" 4 Gif Main, Kept;

    // Unusual, and right.
    /// Compressed by gzip, though nobody asked for that. Kept: what counts are the bytes inside.
    Gzip "gzip" 8 Png Main, Kept;
    /// Sent in chunks of odd sizes, with extensions and a trailer. Kept.
    Chunked "chunked" 20 Jpeg Main, Kept;
    /// No length: the end of the connection ends it, as in HTTP/1.0. Kept.
    UntilClose "until-close" 8 Jpeg Main, Kept;
    /// `103 Early Hints` comes before the answer. Kept.
    EarlyHints "early-hints" 4 Jpeg Main, Kept;
    /// Comes after a fifth of a second, in three pieces. Kept.
    Late "late" 8 Jpeg Main, Kept;
    /// The connection closes after the answer, though the answer does not say so: right away, or when it is used again (for an
    /// ordinary picture that has not been asked for before, so no row meets it twice; the request counts). Kept.
    KeepAliveClosed "keep-alive-closed" 8 Jpeg Main, Kept;
    /// A JPEG that says text/html. Kept: the bytes decide.
    WrongType "wrong-type" 4 Jpeg Main, Kept;

    // Odd URLs.
    /// Spaces in its path. Kept.
    OddSpaces "odd-spaces" 4 Jpeg Main, Kept;
    /// Letters beyond ASCII in its path and query. Kept.
    OddUnicode "odd-unicode" 4 Jpeg Main, Kept;
    /// Percent signs, some of which introduce nothing. Kept.
    OddPercent "odd-percent" 4 Jpeg Main, Kept;
    /// A long query, a fragment, dots in its path. Kept.
    OddQuery "odd-query" 4 Jpeg Main, Kept;
    /// SCHEME and HOST in capitals, spaces around. Kept.
    OddCapitals "odd-capitals" 4 Jpeg Main, Kept;
    /// A host name beyond ASCII. Kept.
    OddHost "odd-host" 4 Jpeg Site::Unicode, Kept;

    // Statuses.
    /// 404. `http_404`.
    NotFound "not-found" 60 Jpeg Main, Refused("http_404");
    /// 410. `http_410`.
    Gone "gone" 8 Jpeg Main, Refused("http_410");
    /// 403. `http_403`.
    Forbidden "forbidden" 15 Jpeg Main, Refused("http_403");
    /// 401. `http_401`.
    Unauthorised "unauthorised" 4 Jpeg Main, Refused("http_401");
    /// 451. `http_451`.
    Unlawful "unlawful" 2 Jpeg Main, Refused("http_451");
    /// 418. `http_4xx`.
    Teapot "teapot" 1 Jpeg Main, Refused("http_4xx");
    /// 500, 502, 503 or 504 once. Kept.
    ServerErrorOnce "server-error-once" 8 Jpeg Main, Kept;
    /// 500, always. `http_500`.
    ServerError "server-error" 2 Jpeg Main, Refused("http_500");
    /// 503, always. `http_503`.
    Unavailable "unavailable" 4 Jpeg Main, Refused("http_503");
    /// 503 once, with Retry-After as a date one second away. Kept.
    UnavailableUntil "unavailable-until" 3 Jpeg Main, Kept;
    /// 429 once, with Retry-After: 1. Kept.
    TooManyOnce "too-many-once" 3 Jpeg Busy, Kept;
    /// 429, always. `http_429`.
    TooMany "too-many" 2 Jpeg Busy, Refused("http_429");

    // Redirects.
    /// Three redirects: absolute, relative, and to another path with a query. Kept.
    RedirectChain "redirect-chain" 10 Jpeg Main, Kept;
    /// To another host. Kept.
    RedirectHost "redirect-host" 10 Jpeg Main, Kept;
    /// To https. Kept.
    RedirectTls "redirect-tls" 6 Jpeg Main, Kept;
    /// To itself. `bad_redirect`.
    RedirectLoop "redirect-loop" 3 Jpeg Main, Refused("bad_redirect");
    /// To ever new URLs. `bad_redirect`.
    RedirectEndless "redirect-endless" 3 Jpeg Main, Refused("bad_redirect");
    /// Without a word where to, or to something that is no URL. `bad_redirect`.
    RedirectNowhere "redirect-nowhere" 3 Jpeg Main, Refused("bad_redirect");
    /// To a private address, however it is spelled, or to the trap. `forbidden_address`.
    RedirectPrivate "redirect-private" 6 Jpeg Main, Refused("forbidden_address");
    /// To file:, ftp:, data: … `invalid_url`, as for the same URL in a list: what stands there is nothing to fetch.
    RedirectScheme "redirect-scheme" 4 Jpeg Main, Refused("invalid_url");

    // Silence.
    /// No answer at all. `timed_out`.
    StallBeforeHeaders "stall-before-headers" 1 Jpeg Slow, Refused("timed_out");
    /// Half of the body, then nothing. `timed_out`.
    StallInBody "stall-in-body" 1 Jpeg Slow, Refused("timed_out");
    /// No answer to the first request. Kept.
    StallOnce "stall-once" 1 Jpeg Slow, Kept;
    /// A byte now and then. `too_slow`.
    Drip "drip" 1 Jpeg Slow, Refused("too_slow");

    // Connections that end.
    /// Reset before an answer, always. `connection_failed`.
    ResetBeforeHeaders "reset-before-headers" 3 Jpeg Reset, Refused("connection_failed");
    /// Reset before an answer, once. Kept.
    ResetBeforeHeadersOnce "reset-before-headers-once" 3 Jpeg Main, Kept;
    /// Reset in the middle of the body, always. `truncated`.
    ResetInBody "reset-in-body" 2 Jpeg Main, Refused("truncated");
    /// Reset in the middle of the body, once. Kept.
    ResetInBodyOnce "reset-in-body-once" 4 Jpeg Main, Kept;
    /// Closed in the middle of the body, always. `truncated`.
    Truncated "truncated" 4 Jpeg Main, Refused("truncated");
    /// Chunks without the last one. `truncated`.
    ChunkedTruncated "chunked-truncated" 3 Jpeg Main, Refused("truncated");
    /// All of the picture, and a Content-Length beyond it; then it closes. `truncated`: nobody can know that nothing is missing.
    LengthTooLong "length-too-long" 3 Jpeg Main, Refused("truncated");
    /// Content-Length is less than what comes. `damaged_image`: the picture is cut where it is said to end.
    LengthTooShort "length-too-short" 3 Jpeg Main, Refused("damaged_image");
    /// Nobody listens. `connection_failed`.
    ConnectionRefused "connection-refused" 8 Jpeg Site::Refused, Refused("connection_failed");

    // What is not HTTP.
    /// Something else in place of a status line. `bad_answer`.
    NotHttp "not-http" 3 Jpeg Main, Refused("bad_answer");
    /// A chunk size that is no number. `bad_answer`.
    ChunkedGarbage "chunked-garbage" 3 Jpeg Main, Refused("bad_answer");
    /// A megabyte of headers. `bad_answer`.
    HugeHeaders "huge-headers" 1 Jpeg Main, Refused("bad_answer");
    /// Content-Encoding: gzip, of something that breaks off. `bad_answer`.
    GzipDamaged "gzip-damaged" 2 Png Main, Refused("bad_answer");
    /// A Content-Encoding that nobody asked for. `bad_answer`.
    UnknownEncoding "unknown-encoding" 2 Png Main, Refused("bad_answer");

    // Too much.
    /// Chunks without end. `too_large`.
    Endless "endless" 1 Jpeg Main, Refused("too_large");
    /// Content-Length: ten gigabytes. `too_large`.
    LengthHuge "length-huge" 2 Jpeg Main, Refused("too_large");
    /// A quarter of a megabyte of gzip that holds 256 MiB. `too_large`.
    GzipBomb "gzip-bomb" 1 Jpeg Main, Refused("too_large");
    /// A PNG whose header says 60,000 × 60,000. `too_many_pixels`.
    HugePng "huge-png" 2 Png Main, Refused("too_many_pixels");
    /// A JPEG whose header says 60,000 × 60,000. `too_many_pixels`.
    HugeJpeg "huge-jpeg" 2 Jpeg Main, Refused("too_many_pixels");

    // What is no picture, or is broken.
    /// 200, or 204, and no bytes. `empty`.
    Empty "empty" 4 Jpeg Main, Refused("empty");
    /// A page that says image/jpeg. `not_an_image`.
    Html "html" 20 Jpeg Main, Refused("not_an_image");
    /// A page that begins with "GIF89a". `damaged_image`: by its first bytes it is a GIF, and nothing after them is.
    HtmlAsGif "html-as-gif" 2 Jpeg Main, Refused("damaged_image");
    /// A JPEG with garbage among its codes. `damaged_image`, unless only headers are looked at.
    CorruptJpeg "corrupt-jpeg" 4 Jpeg Main, Refused("damaged_image");
    /// A PNG with a flipped bit. `damaged_image`, unless only headers are looked at.
    CorruptPng "corrupt-png" 4 Png Main, Refused("damaged_image");
    /// Half a JPEG, sent in whole. `damaged_image`.
    CutJpeg "cut-jpeg" 4 Jpeg Main, Refused("damaged_image");

    // Refusals.
    /// `X-Robots-Tag: noai`. `opted_out`.
    NoAi "no-ai" 6 Jpeg Main, Refused("opted_out");
    /// `X-Robots-Tag: ferrotype: noai`. `opted_out`.
    NoAiForUs "no-ai-for-us" 3 Jpeg Main, Refused("opted_out");
    /// `X-Robots-Tag: otherbot: noai`. Kept: it is not meant for us.
    NoAiForOthers "no-ai-for-others" 3 Jpeg Main, Kept;
    /// `tdm-reservation: 1`. `opted_out`.
    TdmReserved "tdm-reserved" 3 Jpeg Main, Refused("opted_out");
    /// `tdm-reservation: 0`. Kept.
    TdmAllowed "tdm-allowed" 3 Jpeg Main, Kept;
    /// In a folder that the host's robots.txt disallows. `robots_disallowed` where that is asked for, else kept.
    RobotsDisallowed "robots-disallowed" 4 Jpeg Robots, RefusedByRobots;
    /// In another folder of the same host. Kept.
    RobotsAllowed "robots-allowed" 4 Jpeg Robots, Kept;
    /// The host's robots.txt answers 503. `robots_disallowed` where that is asked for, else kept.
    RobotsUnavailable "robots-unavailable" 2 Jpeg RobotsDown, RefusedByRobots;
    /// The list's hash is of other bytes. `hash_mismatch` where that is asked for, else kept.
    HashMismatch "hash-mismatch" 6 Jpeg Main, RefusedByHash;

    // URLs that lead nowhere.
    /// Not a URL, or not one of http or https. `invalid_url`.
    InvalidUrl "invalid-url" 6 Jpeg Nowhere, Refused("invalid_url");
    /// A private address, however it is spelled, or the trap. `forbidden_address`.
    PrivateAddress "private-address" 6 Jpeg Nowhere, Refused("forbidden_address");

    // TLS.
    /// Over TLS, by h2 where the client can. Kept.
    TlsJpeg "tls-jpeg" 60 Jpeg Tls, Kept;
    /// Over TLS, by h2 where the client can. Kept.
    TlsPng "tls-png" 15 Png Tls, Kept;
    /// Over TLS, by HTTP/1.1. Kept.
    TlsHttp1 "tls-http1" 15 Jpeg TlsOld, Kept;
    /// 404 over h2. `http_404`.
    TlsNotFound "tls-not-found" 6 Jpeg Tls, Refused("http_404");
    /// The stream is reset (h2), or the connection (HTTP/1.1), in the middle of the body, always. `truncated`, whatever reason
    /// is given: with NO_ERROR it looks like an end, but the length says otherwise.
    TlsReset "tls-reset" 2 Jpeg Tls, Refused("truncated");
    /// The same, once. Kept.
    TlsResetOnce "tls-reset-once" 3 Jpeg Tls, Kept;
    /// The connection says GOAWAY and finishes what it has begun. Kept.
    TlsGoAway "tls-go-away" 3 Jpeg Tls, Kept;
    /// The connection says GOAWAY and closes in the middle of the body, once. Kept.
    TlsGoAwayAbrupt "tls-go-away-abrupt" 2 Jpeg TlsOwn, Kept;
    /// Without a length, and the connection ends without TLS saying so. `truncated`: anybody on the way may have cut it.
    TlsCut "tls-cut" 2 Jpeg TlsOld, Refused("truncated");
    /// A certificate for other names. `connection_failed`.
    TlsWrongHost "tls-wrong-host" 2 Jpeg TlsWrongName, Refused("connection_failed");
    /// No TLS where the URL promises it. `connection_failed`.
    TlsMissing "tls-missing" 2 Jpeg TlsAbsent, Refused("connection_failed");

    // Names.
    /// A name that only the name server knows. Kept.
    DnsJpeg "dns-jpeg" 30 Jpeg Dns("d"), Kept;
    /// No such name. `unresolvable_host`.
    DnsNoName "dns-no-name" 15 Jpeg Dns("nx"), Refused("unresolvable_host");
    /// The name server answers SERVFAIL. `unresolvable_host`.
    DnsFailure "dns-failure" 2 Jpeg Dns("servfail"), Refused("unresolvable_host");
    /// The name server says nothing. `unresolvable_host`.
    DnsSilence "dns-silence" 1 Jpeg Dns("silent"), Refused("unresolvable_host");
    /// A name that leads to a private address. `forbidden_address`.
    DnsPrivate "dns-private" 4 Jpeg Dns("private"), Refused("forbidden_address");
    /// A name with a private address among its addresses. Kept, over the other one.
    DnsMixed "dns-mixed" 3 Jpeg Dns("mixed"), Kept;
    /// A name that leads here when it is asked for first, and to the trap from then on. Kept: the address that was judged is the
    /// one that is used. A downloader that asks again and says `forbidden_address` is not to blame, but one that goes there is.
    DnsRebinding "dns-rebinding" 4 Jpeg Dns("rebind"), Kept;
}

impl Behaviour {
    /// Whether a client waits for it as long as it can.
    pub fn is_slow(self) -> bool {
        matches!(self.site(), Slow) || self == Self::DnsSilence
    }

    /// Whether it goes over TLS.
    pub fn needs_tls(self) -> bool {
        matches!(self.site(), Tls | TlsOld | TlsOwn | TlsWrongName | TlsAbsent) || self == Self::RedirectTls
    }

    /// Whether its host is known to the name server only.
    pub fn needs_dns(self) -> bool {
        matches!(self.site(), Dns(_))
    }

    /// Whether the first request for it fails and later ones do not.
    pub fn recovers(self) -> bool {
        matches!(
            self,
            Self::ServerErrorOnce
                | Self::UnavailableUntil
                | Self::TooManyOnce
                | Self::StallOnce
                | Self::ResetBeforeHeadersOnce
                | Self::ResetInBodyOnce
                | Self::TlsResetOnce
                | Self::TlsGoAwayAbrupt
        )
    }
}
