//! Writes an answer in HTTP/1.1, in its manner.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::server::TlsStream;

use crate::counts::Inside;
use crate::reply::{Manner, Reply, half};
use crate::web::Web;

/// How long a late answer takes, and each of its pieces after the first.
pub(crate) const LATE: Duration = Duration::from_millis(200);
pub(crate) const PIECE: Duration = Duration::from_millis(20);
/// Time for what was sent to arrive and be read before the connection is reset.
pub(crate) const SETTLE: Duration = Duration::from_millis(50);
/// No client waits longer.
pub(crate) const LONGEST: Duration = Duration::from_mins(10);
/// A silent or dripping answer counts for so long as one that the client waits for: nobody gives up sooner, and when somebody
/// does is not to be seen from here before the next request comes.
pub(crate) const COUNTED: Duration = Duration::from_millis(500);
/// Between two bytes of a drip: short, so that the shortest span over which a client may measure has some.
const DROP: Duration = Duration::from_millis(100);
/// Of the odd sizes of chunks; the rest is one chunk.
const CHUNKS: [usize; 4] = [1, 300, 7, 1025];
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// What becomes of a connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It waits for another request.
    Open,
    /// It is open for those who have been here, and for everything but new pictures.
    OpenToOld,
    Close,
    /// It closes without a word of TLS.
    Cut,
    Reset,
}

/// A TCP connection, or TLS over one.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {
    const IS_TLS: bool;
    fn socket(&self) -> &TcpStream;
}

impl Wire for TcpStream {
    const IS_TLS: bool = false;
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Wire for TlsStream<TcpStream> {
    const IS_TLS: bool = true;
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// Counts an answer as given: to be called before its last byte is written, since whoever has it may ask again, or look at
/// the counts, before the writer goes on.
pub(crate) fn given(web: &Web, reply: &Reply, inside: Inside<'_>) {
    if let Some(row) = reply.picture {
        web.counts.picture(row);
    }
    drop(inside);
}

/// Writes `reply`. `inside` is held while the client has to wait for it.
pub(crate) async fn write<S: Wire>(wire: &mut S, web: &Web, reply: &Reply, inside: Inside<'_>) -> io::Result<End> {
    let body = &reply.body[..];
    match reply.manner {
        Manner::Silence => return silence(wire, inside).await,
        Manner::Reset => return Ok(End::Reset),
        Manner::Bare => {
            given(web, reply, inside);
            put(wire, &[body]).await?;
            return Ok(End::Close);
        }
        Manner::Pieces => {
            let (start, rest) = body.split_at(body.len() / 3);
            let (middle, end) = rest.split_at(rest.len() / 2);
            sleep(LATE).await;
            put(wire, &[&head(reply, &length(body.len())), start]).await?;
            sleep(PIECE).await;
            put(wire, &[middle]).await?;
            sleep(PIECE).await;
            given(web, reply, inside);
            put(wire, &[end]).await?;
            return Ok(End::Open);
        }
        Manner::HalfThenSilence => {
            put(wire, &[&head(reply, &length(body.len())), half(body)]).await?;
            return silence(wire, inside).await;
        }
        Manner::Drip => {
            put(wire, &[&head(reply, &length(body.len()))]).await?;
            let until = Instant::now() + COUNTED;
            let mut inside = Some(inside);
            for byte in body.chunks(1) {
                sleep(DROP).await;
                inside = inside.filter(|_| Instant::now() < until);
                put(wire, &[byte]).await?;
            }
            return Ok(End::Close);
        }
        Manner::HalfThenReset(_) | Manner::HalfThenGoAway(_) => {
            put(wire, &[&head(reply, &length(body.len())), half(body)]).await?;
            sleep(SETTLE).await;
            return Ok(End::Reset);
        }
        _ => given(web, reply, inside),
    }
    // From here on the client may have enough before all is written.
    match reply.manner {
        Manner::Hinted => {
            let hints = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n";
            put(wire, &[hints, &head(reply, &length(body.len())), body]).await?;
        }
        Manner::Chunks => {
            put(wire, &[&head(reply, CHUNKED), &chunks(body), b"0;last=1\r\nX-Trailer: end\r\n\r\n"]).await?;
        }
        Manner::ChunksWithoutLast => {
            put(wire, &[&head(reply, CHUNKED), &chunks(body)]).await?;
            return Ok(End::Close);
        }
        Manner::ChunksThen(size) => {
            put(wire, &[&head(reply, CHUNKED), &chunks(body), size.as_bytes(), b"\r\n"]).await?;
            return Ok(End::Close);
        }
        Manner::UntilClose { http10: true } => {
            let head = head(reply, "");
            let rest = head.strip_prefix(b"HTTP/1.1").unwrap_or(&head);
            put(wire, &[b"HTTP/1.0", rest, body]).await?;
            return Ok(End::Close);
        }
        Manner::UntilClose { http10: false } => {
            put(wire, &[&head(reply, CLOSE), body]).await?;
            return Ok(End::Close);
        }
        Manner::UntilCut => {
            put(wire, &[&head(reply, CLOSE), body]).await?;
            return Ok(End::Cut);
        }
        Manner::HalfThenClose => {
            put(wire, &[&head(reply, &length(body.len())), half(body)]).await?;
            return Ok(End::Close);
        }
        Manner::Announced(bytes) => {
            // That it closes is said, so that what comes beyond the length is nobody's next answer.
            let framing = format!("{CLOSE}Content-Length: {bytes}\r\n");
            put(wire, &[&head(reply, &framing), body]).await?;
            return Ok(End::Close);
        }
        Manner::Endless { announced } => {
            // It ends when the client does.
            let _ = timeout(LONGEST, flood(wire, reply, announced)).await;
            return Ok(End::Reset);
        }
        Manner::HugeHeaders { one } => {
            put(wire, &[&head(reply, &huge(one)), body]).await?;
            return Ok(End::Close);
        }
        _ => put(wire, &[&head(reply, &length(body.len())), body]).await?,
    }
    Ok(match reply.manner {
        Manner::ThenClose => End::Close,
        Manner::ThenCloseLater => End::OpenToOld,
        _ => End::Open,
    })
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
const CLOSE: &str = "Connection: close\r\n";

fn length(bytes: usize) -> String {
    format!("Content-Length: {bytes}\r\n")
}

/// Status line and headers. `framing` are those that say where the body ends.
fn head(reply: &Reply, framing: &str) -> Vec<u8> {
    let status = http::StatusCode::from_u16(reply.status).ok();
    let phrase = status.and_then(|status| status.canonical_reason()).unwrap_or("Unknown");
    let mut head = format!("HTTP/1.1 {} {phrase}\r\n", reply.status);
    for (name, value) in &reply.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    // No body, and no word about it.
    if reply.status != 204 {
        head.push_str(framing);
    }
    head.push_str("\r\n");
    head.into_bytes()
}

fn chunks(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() + 128);
    let mut rest = body;
    for (n, size) in CHUNKS.into_iter().chain([usize::MAX]).enumerate() {
        let (chunk, after) = rest.split_at(size.min(rest.len()));
        if !chunk.is_empty() {
            bytes.extend(format!("{:X};n={n};note=\"odd size\"\r\n", chunk.len()).into_bytes());
            bytes.extend(chunk);
            bytes.extend(b"\r\n");
        }
        rest = after;
    }
    bytes
}

fn huge(one: bool) -> String {
    const MEGABYTE: usize = 1 << 20;
    if one {
        return format!("X-Padding: {}\r\n", "a".repeat(MEGABYTE));
    }
    (0..MEGABYTE / 256).fold(String::with_capacity(MEGABYTE + 256), |mut text, n| {
        let _ = write!(text, "X-Padding-{n:05}: {:a<237}\r\n", "");
        text
    })
}

/// The body, and zeros until nobody takes them any more.
async fn flood<S: Wire>(wire: &mut S, reply: &Reply, announced: Option<u64>) -> io::Result<()> {
    if let Some(bytes) = announced {
        put(wire, &[&head(reply, &format!("Content-Length: {bytes}\r\n")), &reply.body]).await?;
        let mut left = bytes.saturating_sub(reply.body.len() as u64);
        while left > 0 {
            let part = left.min(ZEROS.len() as u64);
            wire.write_all(&ZEROS[..part as usize]).await?;
            left -= part;
        }
        return Ok(());
    }
    put(wire, &[&head(reply, CHUNKED), &chunks(&reply.body)]).await?;
    let chunk = [format!("{:x}\r\n", ZEROS.len()).as_bytes(), &ZEROS[..], b"\r\n"].concat();
    loop {
        wire.write_all(&chunk).await?;
    }
}

/// Says nothing until the client has gone.
async fn silence<S: Wire>(wire: &mut S, inside: Inside<'_>) -> io::Result<End> {
    if timeout(COUNTED, gone(wire)).await.is_err() {
        drop(inside);
        let _ = timeout(LONGEST, gone(wire)).await;
    }
    Ok(End::Close)
}

/// Ends when the client has gone.
async fn gone<S: Wire>(wire: &mut S) {
    let mut ignored = [0; 256];
    while matches!(wire.read(&mut ignored).await, Ok(bytes) if bytes > 0) {}
}

/// Writes all parts, in one piece where they are small.
async fn put<S: Wire>(wire: &mut S, parts: &[&[u8]]) -> io::Result<()> {
    match parts {
        [one] => wire.write_all(one).await?,
        _ => wire.write_all(&parts.concat()).await?,
    }
    wire.flush().await
}
