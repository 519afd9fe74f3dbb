//! One connection of h2.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::answer::{COUNTED, LATE, LONGEST, PIECE, SETTLE, given};
use crate::http1::IDLE;
use crate::reply::{Manner, Reply, half};
use crate::web::{Asked, Web};

/// Requests that a client may have under way on one connection.
const STREAMS: u32 = 100;

/// Serves a connection until one of both sides has enough.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(wire: S, web: &Arc<Web>) {
    let handshake = h2::server::Builder::new().max_concurrent_streams(STREAMS).handshake::<_, Bytes>(wire);
    let Ok(Ok(mut connection)) = timeout(IDLE, handshake).await else { return };
    // An answer that ends its connection says so here.
    let (end, mut ended) = mpsc::channel::<Reason>(1);
    loop {
        let accepted = tokio::select! {
            accepted = timeout(IDLE, connection.accept()) => accepted,
            Some(reason) = ended.recv() => {
                connection.abrupt_shutdown(reason);
                continue;
            }
        };
        let Ok(Some(Ok((request, mut respond)))) = accepted else { return };
        if request.method() != http::Method::GET {
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        let host = request.uri().authority().map_or(String::new(), ToString::to_string);
        let target = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let reply = web.reply(&Asked { host: &host, target, is_tls: true });
        if reply.manner == Manner::GoAway {
            connection.graceful_shutdown();
        }
        let (web, end) = (Arc::clone(web), end.clone());
        tokio::spawn(async move {
            // Whoever does not want the answer any more needs none.
            let _ = answer(&web, &host, reply, respond, end).await;
        });
    }
}

async fn answer(
    web: &Web,
    host: &str,
    reply: Reply,
    mut respond: SendResponse<Bytes>,
    end: mpsc::Sender<Reason>,
) -> Result<(), h2::Error> {
    let inside = web.counts.request(host);
    sleep(web.options.latency).await;
    let body = reply.body.clone();
    let half = body.slice(..half(&body).len());
    match reply.manner {
        Manner::Silence => {
            if timeout(COUNTED, poll_fn(|context| respond.poll_reset(context))).await.is_err() {
                drop(inside);
                let _ = timeout(LONGEST, poll_fn(|context| respond.poll_reset(context))).await;
            }
            return Ok(());
        }
        Manner::Reset => {
            drop(inside);
            respond.send_reset(Reason::INTERNAL_ERROR);
            return Ok(());
        }
        Manner::Pieces => sleep(LATE).await,
        _ => {}
    }
    let response = head(&reply);
    match reply.manner {
        Manner::HalfThenSilence | Manner::Drip => {
            let mut stream = begin(&mut respond, response, half)?;
            if timeout(COUNTED, poll_fn(|context| stream.poll_reset(context))).await.is_err() {
                drop(inside);
                let _ = timeout(LONGEST, poll_fn(|context| stream.poll_reset(context))).await;
            }
        }
        Manner::HalfThenReset(reason) => {
            let mut stream = begin(&mut respond, response, half)?;
            sleep(SETTLE).await;
            drop(inside);
            stream.send_reset(reason);
        }
        Manner::HalfThenClose => {
            let mut stream = begin(&mut respond, response, half)?;
            sleep(SETTLE).await;
            drop(inside);
            stream.send_reset(Reason::INTERNAL_ERROR);
        }
        Manner::HalfThenGoAway(reason) => {
            let _stream = begin(&mut respond, response, half)?;
            sleep(SETTLE).await;
            drop(inside);
            // Nobody listens where the connection has gone.
            let _ = end.send(reason).await;
            // The stream is held until the connection has ended: dropped before, it would be reset by itself.
            sleep(SETTLE).await;
        }
        Manner::Pieces => {
            let rest = body.slice(half.len()..);
            let mut stream = begin(&mut respond, response, half)?;
            sleep(2 * PIECE).await;
            given(web, &reply, inside);
            stream.send_data(rest, true)?;
        }
        _ => {
            given(web, &reply, inside);
            let mut stream = respond.send_response(response, body.is_empty())?;
            if !body.is_empty() {
                stream.send_data(body, true)?;
            }
        }
    }
    Ok(())
}

fn begin(
    respond: &mut SendResponse<Bytes>,
    response: http::Response<()>,
    part: Bytes,
) -> Result<SendStream<Bytes>, h2::Error> {
    let mut stream = respond.send_response(response, false)?;
    stream.send_data(part, false)?;
    Ok(stream)
}

/// With the length that the body is to have, whatever comes of it.
fn head(reply: &Reply) -> http::Response<()> {
    let mut builder = http::Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        builder = builder.header(*name, value);
    }
    if reply.status != 204 {
        builder = builder.header("Content-Length", reply.body.len());
    }
    // All of them are ours, and well-formed.
    builder.body(()).unwrap_or_default()
}
