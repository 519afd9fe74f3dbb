//! One connection of HTTP/1.1.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::answer::{End, Wire, write};
use crate::web::{Asked, Web};

/// A connection that nobody uses ends after this time: longer than any client keeps one, so that it never closes under a
/// request.
pub(crate) const IDLE: Duration = Duration::from_mins(2);
const LONGEST_REQUEST: usize = 1 << 16;
const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const NOT_ALLOWED: &[u8] =
    b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
enum Received<'a> {
    Request {
        host: &'a str,
        target: &'a str,
        is_last: bool,
    },
    /// To be answered with this, and with the end of the connection.
    Wrong(&'static [u8]),
}

/// Serves a connection until one of both sides has enough.
pub(crate) async fn serve<S: Wire>(mut wire: S, web: &Web) {
    let mut buffer = Vec::with_capacity(1024);
    let mut is_open_to_new = true;
    let end = loop {
        let Ok(Some(length)) = receive(&mut wire, &mut buffer).await else { return };
        let end = match parse(buffer.get(..length).unwrap_or_default()) {
            Received::Wrong(answer) => match wire.write_all(answer).await {
                Ok(()) => End::Close,
                Err(_gone) => return,
            },
            Received::Request { host, target, is_last } => {
                let inside = web.counts.request(host);
                if !is_open_to_new && web.is_new_picture(target) {
                    break End::Close;
                }
                if !web.options.latency.is_zero() {
                    sleep(web.options.latency).await;
                }
                let reply = web.reply(&Asked { host, target, is_tls: S::IS_TLS });
                match write(&mut wire, web, &reply, inside).await {
                    Ok(End::Open | End::OpenToOld) if is_last => End::Close,
                    Ok(end) => end,
                    Err(_gone) => return,
                }
            }
        };
        match end {
            End::Open => {}
            End::OpenToOld => is_open_to_new = false,
            End::Close | End::Cut | End::Reset => break end,
        }
        buffer.drain(..length);
    };
    match end {
        End::Reset => drop(wire.socket().set_zero_linger()),
        End::Cut => {}
        _ => drop(wire.shutdown().await),
    }
}

/// Reads until the head of a request is in `buffer`; its length. `None` where the client has gone.
async fn receive<S: Wire>(wire: &mut S, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
    let mut looked_at = 0;
    loop {
        if let Some(at) = buffer.get(looked_at..).unwrap_or_default().windows(4).position(|end| end == b"\r\n\r\n") {
            return Ok(Some(looked_at + at + 4));
        }
        // TLS, or anything else that is no method: it is judged as it is.
        let is_text = buffer.first().is_none_or(u8::is_ascii_uppercase);
        if !is_text || buffer.len() > LONGEST_REQUEST {
            return Ok(Some(buffer.len()));
        }
        looked_at = buffer.len().saturating_sub(3);
        match timeout(IDLE, wire.read_buf(buffer)).await {
            Ok(Ok(0)) | Err(_) => return Ok(None),
            Ok(read) => read?,
        };
    }
}

fn parse(head: &[u8]) -> Received<'_> {
    let Some(lines) = std::str::from_utf8(head).ok().and_then(|text| text.strip_suffix("\r\n\r\n")) else {
        return Received::Wrong(BAD_REQUEST);
    };
    let mut lines = lines.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    // A space, a fragment or a letter beyond ASCII has no business in a request.
    let target = target.filter(|t| t.starts_with('/') && !t.contains('#') && t.bytes().all(|b| b.is_ascii_graphic()));
    let (Some(method), Some(target), Some(version @ ("HTTP/1.1" | "HTTP/1.0")), None) =
        (method, target, version, words.next())
    else {
        return Received::Wrong(BAD_REQUEST);
    };
    let (mut host, mut is_last) = ("", version == "HTTP/1.0");
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("host") {
            host = value.trim();
        } else if name.eq_ignore_ascii_case("connection") {
            is_last |= value.trim().eq_ignore_ascii_case("close");
        }
    }
    match (method, host) {
        (_, "") => Received::Wrong(BAD_REQUEST),
        ("GET", _) => Received::Request { host, target, is_last },
        _ => Received::Wrong(NOT_ALLOWED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_line_with_a_host() {
        let text = b"GET /a?b HTTP/1.1\r\nhost: A.test:80\r\nConnection: Close\r\n\r\n";
        assert_eq!(parse(text), Received::Request { host: "A.test:80", target: "/a?b", is_last: true });
        for wrong in [
            "GET /a HTTP/1.1\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\n",
            "",
        ] {
            assert_eq!(parse(wrong.as_bytes()), Received::Wrong(BAD_REQUEST), "{wrong}");
        }
        assert_eq!(parse(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"), Received::Wrong(NOT_ALLOWED));
    }
}
