//! What is answered for a row, apart from how HTTP/1.1 or h2 puts it.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::Reason;

use crate::behaviour::{Behaviour, Kind};
use crate::picture;
use crate::web::Web;

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Without those that say where the body ends.
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
    /// The row whose picture goes out in whole.
    pub(crate) picture: Option<usize>,
    pub(crate) manner: Manner,
}

/// How an answer goes out. What only one version of HTTP can do is an ordinary answer in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// In whole, with its length.
    Whole,
    /// The same, after `103 Early Hints`.
    Hinted,
    /// In three pieces, after a while.
    Pieces,
    /// In chunks of odd sizes, with extensions and a trailer.
    Chunks,
    /// The end of the connection ends it.
    UntilClose {
        http10: bool,
    },
    /// The end of the connection ends it, and TLS does not say so.
    UntilCut,
    /// In whole; then the connection closes, which nobody said.
    ThenClose,
    /// In whole; the connection closes when it is used for a picture that has not been asked for before.
    ThenCloseLater,
    /// In whole; the connection says GOAWAY.
    GoAway,
    /// Nothing, for as long as the client waits.
    Silence,
    HalfThenSilence,
    /// A byte now and then.
    Drip,
    /// The connection is reset before anything.
    Reset,
    /// Half; then the connection is reset, or the stream for this reason.
    HalfThenReset(Reason),
    HalfThenClose,
    /// Half; then GOAWAY for this reason, and the connection closes.
    HalfThenGoAway(Reason),
    ChunksWithoutLast,
    /// All, and then a chunk size that is none.
    ChunksThen(&'static str),
    /// All, announced as so many bytes; then the connection closes.
    Announced(u64),
    /// All of it, and zeros until the client has enough: in chunks, or announced as so many bytes.
    Endless {
        announced: Option<u64>,
    },
    /// With a megabyte of headers: one, or many.
    HugeHeaders {
        one: bool,
    },
    /// The body alone, without a status line.
    Bare,
}

/// What stands in for HTTP. No client can take any of it for the beginning of an answer.
const NOT_HTTP: [&[u8]; 10] = [
    b"SSH-2.0-OpenSSH_9.6p1 Debian-3\r\n",
    b"<html><body>Welcome to the router.</body></html>\n",
    b"220 mail.test ESMTP ready\r\n",
    b"\x15\x03\x01\x00\x02\x02\x28",
    b"ICY 200 OK\r\nContent-Type: audio/mpeg\r\n\r\n",
    b"{\"error\": \"upgrade required\"}\n",
    b"HTTP/1.1 fine OK\r\n\r\n",
    b"HTTP/7.3 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nthis is no header\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
];
const NO_CHUNK_SIZE: [&str; 3] = ["zz", "-1", "fffffffffffffffff1"];
const SERVER_ERRORS: [u16; 4] = [500, 502, 503, 504];
/// By which a stream or connection is ended. NO_ERROR looks like an end, but the length tells it from one.
const REASONS: [Reason; 4] = [Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::NO_ERROR, Reason::ENHANCE_YOUR_CALM];
const UNKNOWN_ENCODINGS: [&str; 3] = ["br", "zstd", "x-picture"];
const TEN_GIGABYTES: u64 = 10_000_000_000;

/// What a row's picture is for its behaviour.
pub(crate) fn picture_of(behaviour: Behaviour, bytes: Vec<u8>) -> Vec<u8> {
    match behaviour {
        Behaviour::HtmlInComment => picture::with_page_in_comment(&bytes),
        Behaviour::HtmlAppended => picture::with_page_after(&bytes),
        Behaviour::GifScript => picture::with_script(&bytes),
        Behaviour::HugePng => picture::claiming_much_png(&bytes),
        Behaviour::HugeJpeg => picture::claiming_much_jpeg(&bytes),
        Behaviour::CutJpeg => half(&bytes).to_vec(),
        _ => bytes,
    }
}

/// The first half.
pub(crate) fn half(bytes: &[u8]) -> &[u8] {
    bytes.get(..bytes.len() / 2).unwrap_or_default()
}

impl Reply {
    /// A status with a few words.
    pub(crate) fn status(status: u16) -> Self {
        let body = format!("This is a {status}.\n").into();
        let headers = vec![("Content-Type", "text/plain".to_owned())];
        Self { status, headers, body, picture: None, manner: Manner::Whole }
    }

    /// The picture of a row.
    pub(crate) fn picture(web: &Web, row: usize, behaviour: Behaviour) -> Self {
        let media_type = match behaviour.kind() {
            Kind::Jpeg | Kind::LargeJpeg => "image/jpeg",
            Kind::Png => "image/png",
            Kind::Webp => "image/webp",
            Kind::Gif => "image/gif",
        };
        let picture = web.pictures.of(behaviour.kind(), row);
        Self {
            status: 200,
            headers: vec![("Content-Type", media_type.to_owned())],
            body: picture_of(behaviour, picture.bytes).into(),
            picture: Some(row),
            manner: Manner::Whole,
        }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.into()));
        self
    }

    fn manner(self, manner: Manner) -> Self {
        Self { manner, ..self }
    }

    /// The same in another manner, in which nobody gets the picture.
    fn lost(self, manner: Manner) -> Self {
        Self { manner, picture: None, ..self }
    }

    /// The same with another body.
    fn body(self, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), picture: None, ..self }
    }
}

/// The answer for a row that redirects nowhere. `choice` is a number of the row's own, and `is_first` whether it was not asked
/// for before.
pub(crate) fn reply(web: &Web, row: usize, behaviour: Behaviour, choice: usize, is_first: bool) -> Reply {
    use Behaviour as B;
    if let Some(status) = status(behaviour, choice).filter(|_| is_first || !behaviour.recovers()) {
        return status;
    }
    let reply = Reply::picture(web, row, behaviour);
    if behaviour.recovers() && !is_first {
        return reply;
    }
    let length = reply.body.len() as u64;
    let reason = REASONS[choice % REASONS.len()];
    match behaviour {
        B::Gzip => match picture::gzip(&reply.body) {
            Ok(packed) => Reply { body: packed.into(), ..reply }.with("Content-Encoding", "gzip"),
            Err(_never) => Reply::status(501),
        },
        B::GzipDamaged => match picture::gzip(&reply.body) {
            Ok(packed) => reply.body(half(&packed).to_vec()).with("Content-Encoding", "gzip"),
            Err(_never) => Reply::status(501),
        },
        B::UnknownEncoding => {
            let encoding = UNKNOWN_ENCODINGS[choice % UNKNOWN_ENCODINGS.len()];
            reply.with("Content-Encoding", encoding)
        }
        B::GzipBomb => reply.body(web.pictures.bomb.clone()).with("Content-Encoding", "gzip"),
        B::WrongType => reply.with("Content-Type", "text/html; charset=utf-8"),
        B::Html => reply.body(picture::page()),
        B::HtmlAsGif => reply.body(picture::page_as_gif()).with("Content-Type", "image/gif"),
        B::CorruptJpeg => {
            let corrupt = picture::corrupt_jpeg(&reply.body, row);
            reply.body(corrupt)
        }
        B::CorruptPng => {
            let corrupt = picture::corrupt_png(&reply.body);
            reply.body(corrupt)
        }
        B::Empty => Reply { status: if choice.is_multiple_of(2) { 200 } else { 204 }, ..reply.body(Bytes::new()) },
        B::NoAi => reply.with("X-Robots-Tag", "noai"),
        B::NoAiForUs => reply.with("X-Robots-Tag", "ferrotype: noai"),
        B::NoAiForOthers => reply.with("X-Robots-Tag", "otherbot: noai"),
        B::TdmReserved => reply.with("tdm-reservation", "1"),
        B::TdmAllowed => reply.with("tdm-reservation", "0"),
        B::Chunked => reply.manner(Manner::Chunks),
        B::UntilClose => reply.manner(Manner::UntilClose { http10: choice.is_multiple_of(2) }),
        B::EarlyHints => reply.manner(Manner::Hinted),
        B::Late => reply.manner(Manner::Pieces),
        B::KeepAliveClosed if choice.is_multiple_of(2) => reply.manner(Manner::ThenClose),
        B::KeepAliveClosed => reply.manner(Manner::ThenCloseLater),
        B::TlsGoAway => reply.manner(Manner::GoAway),
        B::TlsCut => reply.lost(Manner::UntilCut),
        B::StallBeforeHeaders | B::StallOnce => reply.lost(Manner::Silence),
        B::StallInBody => reply.lost(Manner::HalfThenSilence),
        B::Drip => reply.lost(Manner::Drip),
        B::ResetBeforeHeaders | B::ResetBeforeHeadersOnce => reply.lost(Manner::Reset),
        B::ResetInBody | B::ResetInBodyOnce | B::TlsReset | B::TlsResetOnce => {
            reply.lost(Manner::HalfThenReset(reason))
        }
        B::TlsGoAwayAbrupt => reply.lost(Manner::HalfThenGoAway(reason)),
        B::Truncated => reply.lost(Manner::HalfThenClose),
        B::ChunkedTruncated => reply.lost(Manner::ChunksWithoutLast),
        B::ChunkedGarbage => reply.lost(Manner::ChunksThen(NO_CHUNK_SIZE[choice % NO_CHUNK_SIZE.len()])),
        B::LengthTooLong => reply.lost(Manner::Announced(length + 1000)),
        B::LengthTooShort => reply.lost(Manner::Announced(length * 2 / 3)),
        B::LengthHuge => reply.lost(Manner::Endless { announced: Some(TEN_GIGABYTES) }),
        B::Endless => reply.lost(Manner::Endless { announced: None }),
        B::HugeHeaders => reply.lost(Manner::HugeHeaders { one: choice.is_multiple_of(2) }),
        B::NotHttp => reply.body(NOT_HTTP[choice % NOT_HTTP.len()]).manner(Manner::Bare),
        _ => reply,
    }
}

/// The answer of a behaviour that is a status.
fn status(behaviour: Behaviour, choice: usize) -> Option<Reply> {
    use Behaviour as B;
    let status = match behaviour {
        B::NotFound | B::TlsNotFound => 404,
        B::Gone => 410,
        B::Forbidden => 403,
        B::Unauthorised => 401,
        B::Unlawful => 451,
        B::Teapot => 418,
        B::ServerErrorOnce => SERVER_ERRORS[choice % SERVER_ERRORS.len()],
        B::ServerError => 500,
        B::Unavailable | B::UnavailableUntil => 503,
        B::TooManyOnce | B::TooMany => 429,
        _ => return None,
    };
    let reply = Reply::status(status);
    Some(match behaviour {
        B::UnavailableUntil => {
            let until = SystemTime::now() + Duration::from_secs(1);
            reply.with("Retry-After", httpdate::fmt_http_date(until))
        }
        B::TooManyOnce => reply.with("Retry-After", "1"),
        _ => reply,
    })
}
