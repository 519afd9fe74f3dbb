//! One connection, as plain HTTP/1.1.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::counts::Inside;
use super::manner::{COUNTED, Manner, Reply};
use super::question::Question;
use super::server::Shared;

const LONGEST_HEAD: usize = 1 << 16;
const LONGEST_BODY: usize = 1 << 26;
const DRIP: Duration = Duration::from_millis(20);

/// What is looked at of a request.
#[derive(Debug, Default)]
struct Head {
    method: String,
    target: String,
    length: usize,
    authorization: Option<String>,
    wants_go_ahead: bool,
}

/// Serves a connection until one of both sides has enough.
pub(crate) async fn serve(mut socket: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(1 << 17);
    loop {
        let Some(end) = head_end(&mut socket, &mut buffer).await? else { return Ok(()) };
        let Some(head) = Head::of(buffer.get(..end).unwrap_or_default()) else {
            return socket
                .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .await;
        };
        let is_chat = head.method == "POST" && head.target == "/v1/chat/completions";
        // Counted before its body has come, as it is under way.
        let inside = is_chat.then(|| shared.counts.enter(shared.options.limit));
        if head.wants_go_ahead {
            socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let length = end + head.length.min(LONGEST_BODY);
        while buffer.len() < length {
            if socket.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        let body = buffer.get(end..length).unwrap_or_default();
        let reply = match inside {
            Some(_) => chat(shared, &head, body).await,
            None => other(shared, &head),
        };
        buffer.drain(..length);
        if !send(&mut socket, reply, inside).await? {
            return Ok(());
        }
    }
}

async fn head_end(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
    let mut looked_at = 0;
    loop {
        if let Some(at) = buffer.get(looked_at..).unwrap_or_default().windows(4).position(|end| end == b"\r\n\r\n") {
            return Ok(Some(looked_at + at + 4));
        }
        if buffer.len() > LONGEST_HEAD {
            return Ok(Some(buffer.len()));
        }
        looked_at = buffer.len().saturating_sub(3);
        if socket.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

impl Head {
    fn of(head: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(head).ok()?;
        let mut lines = text.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let mut head = Self { method: words.next()?.to_owned(), target: words.next()?.to_owned(), ..Self::default() };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => head.length = value.parse().ok()?,
                "authorization" => head.authorization = Some(value.to_owned()),
                "expect" => head.wants_go_ahead = true,
                _ => {}
            }
        }
        Some(head)
    }
}

fn whole(status: u16, body: impl Into<String>) -> Reply {
    Reply::Whole { status, header: None, body: body.into(), is_caption: false }
}

/// `/health`, `/v1/models`, and what there is not.
fn other(shared: &Shared, head: &Head) -> Reply {
    shared.counts.lock().served.probes += 1;
    match (head.method.as_str(), head.target.as_str()) {
        ("GET", "/health") => whole(200, ""),
        ("GET", "/v1/models") => {
            let model = &shared.options.model;
            whole(200, format!(r#"{{"object":"list","data":[{{"id":"{model}","object":"model"}}]}}"#))
        }
        _ => whole(404, r#"{"detail":"Not Found"}"#),
    }
}

/// The answer, after the time that it takes.
async fn chat(shared: &Shared, head: &Head, body: &[u8]) -> Reply {
    let options = &shared.options;
    if options.at_once {
        return whole(200, shared.at_once.clone());
    }
    let authorization = head.authorization.as_deref().unwrap_or_default();
    if let Some(token) = &options.token
        && authorization.strip_prefix("Bearer ") != Some(token)
    {
        return whole(401, format!(r#"{{"error":{{"message":"Incorrect API key provided: {authorization}."}}}}"#));
    }
    let Some(question) = Question::of(body) else { return whole(400, r#"{"error":"not a question"}"#) };
    if question.model != options.model {
        let model = question.model;
        return whole(
            404,
            format!(r#"{{"object":"error","message":"The model `{model}` does not exist.","code":404}}"#),
        );
    }
    if !question.has_usual_top_p() {
        return whole(
            422,
            r#"{"error":"Input validation error: `top_p` must be > 0.0 and < 1.0","error_type":"validation"}"#,
        );
    }
    shared.counts.lock().questions.entry(question.identity).or_default().asked.times += 1;
    if options.fails_at_images && question.shows_image {
        return whole(500, r#"{"error":{"message":"the image encoder is out of memory","code":500}}"#);
    }
    let was_broken = is_broken(shared, question.is_poisoned);
    if !was_broken {
        sleep(options.latency).await;
    }
    if was_broken || shared.broken_since().is_some() {
        shared.counts.lock().served.poisoned += 1;
        return whole(500, r#"{"object":"error","message":"EngineDeadError","code":500}"#);
    }
    let mut counts = shared.counts.lock();
    let known = counts.questions.entry(question.identity).or_default();
    let reply = Manner::of(options, question.identity, known.turns).reply(&question);
    known.turns += 1;
    if let Reply::Whole { is_caption: true, .. } = reply {
        known.asked.answered += 1;
        counts.served.captions += 1;
    }
    reply
}

/// Whether it answers nothing now. It recovers when nobody has asked for a while, and breaks when it is asked what it cannot
/// bear.
fn is_broken(shared: &Shared, is_poisoned: bool) -> bool {
    let mut broken = shared.broken();
    if broken.is_some_and(|last| last.elapsed() >= shared.options.recovers_after) {
        *broken = None;
    }
    let was_broken = broken.is_some();
    if was_broken || is_poisoned {
        *broken = Some(Instant::now());
    }
    was_broken
}

/// Whether there may be another request. The request is no longer in flight when the client can know of its answer.
async fn send(socket: &mut TcpStream, reply: Reply, inside: Option<Inside<'_>>) -> io::Result<bool> {
    match reply {
        Reply::Whole { status, header, body, .. } => {
            drop(inside);
            let header = header.map(|(name, value)| format!("{name}: {value}\r\n")).unwrap_or_default();
            let answer = format!(
                "HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\n{header}Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            socket.write_all(answer.as_bytes()).await?;
            return Ok(true);
        }
        Reply::Reset => {
            drop(inside);
            socket.set_zero_linger()?;
        }
        Reply::Cut(body) => {
            drop(inside);
            let half = body.get(..body.len() / 2).unwrap_or_default();
            socket.write_all(format!("{}{half}", announced(body.len())).as_bytes()).await?;
        }
        Reply::Hang => {
            gone(socket, COUNTED).await;
            drop(inside);
            gone(socket, Duration::MAX).await;
        }
        Reply::Drip(body) => {
            socket.write_all(announced(body.len() + 1_000_000).as_bytes()).await?;
            let mut inside = inside;
            let began = Instant::now();
            for byte in body.bytes().cycle() {
                socket.write_all(&[byte]).await?;
                if gone(socket, DRIP).await {
                    break;
                }
                if began.elapsed() > COUNTED {
                    inside = None;
                }
            }
            drop(inside);
        }
        Reply::Endless => {
            drop(inside);
            socket.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
            let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
            while socket.write_all(chunk.as_bytes()).await.is_ok() {}
        }
    }
    Ok(false)
}

fn announced(length: usize) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n")
}

/// Whether the client goes away within a time.
async fn gone(socket: &mut TcpStream, within: Duration) -> bool {
    let mut byte = [0];
    match timeout(within, socket.read(&mut byte)).await {
        Ok(Ok(read)) => read == 0,
        Ok(Err(_reset)) => true,
        Err(_elapsed) => false,
    }
}
