//! The two servers: connections, requests, and the order in which things happen to them.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use http::header::AUTHORIZATION;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::answer::Answer;
use crate::body::Outgoing;
use crate::faults::{Damage, Faults};
use crate::question::Question;
use crate::records::{Asked, Records, Side};
use crate::store::State;
use crate::{cdn, route};

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    pub(crate) faults: Faults,
    pub(crate) records: Records,
    pub(crate) hub: SocketAddr,
    pub(crate) cdn: SocketAddr,
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of the Hub, without a slash at its end.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.hub)
    }
}

/// There is no answer: the connection is closed.
#[derive(Debug)]
struct Gone;

impl fmt::Display for Gone {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the connection is closed, as the test ordered or as the client did")
    }
}

impl std::error::Error for Gone {}

/// Accepts connections for as long as the runtime lives.
pub(crate) async fn run(listener: TcpListener, side: Side, shared: Arc<Shared>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            // Out of descriptors, most likely: some may be free in a moment.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        drop(socket.set_nodelay(true));
        let shared = Arc::clone(&shared);
        let service = service_fn(move |request| answer(request, side, Arc::clone(&shared)));
        // It ends in an error where a test has ordered one.
        tokio::spawn(async move { drop(http1::Builder::new().serve_connection(TokioIo::new(socket), service).await) });
    }
}

async fn answer(request: Request<Incoming>, side: Side, shared: Arc<Shared>) -> Result<Response<Outgoing>, Gone> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let mut headers = parts.headers.clone();
    let has_authorization = headers.remove(AUTHORIZATION).is_some();
    let mut question = Question::new(parts.method, &parts.uri, parts.headers);
    let number = shared.records.add(Asked {
        side,
        method: question.method.to_string(),
        path,
        has_authorization,
        range: question.header("range").map(str::to_owned),
        headers,
        status: None,
        received: 0,
        sent: 0,
    });
    let fate = shared.faults.fate(side, &question);
    question.body = received(body, fate.cut_request, &shared, number).await?;
    tokio::time::sleep(fate.late).await;
    for (kind, repo, branch, to) in fate.moves {
        if let Some(repo) = shared.state().repos.get_mut(&(kind, repo)) {
            repo.refs.insert(format!("refs/heads/{branch}"), to);
        }
    }
    let answer = fate.refusal.unwrap_or_else(|| match side {
        Side::Hub => route::answer(&shared, &question).with("x-request-id", format!("Root=1-{number:08x}")),
        Side::Cdn => cdn::answer(&shared, &question),
    });
    let is_head = question.method == Method::HEAD;
    let is_content = !is_head && !answer.body.is_empty() && matches!(answer.status, 200 | 206);
    let damage = if is_content { shared.faults.damage(side, &question) } else { Damage::default() };
    shared.records.update(number, |asked| asked.status = Some(answer.status));
    Ok(response(answer, is_head, damage, shared, number))
}

/// The body of a request, or as much of it as is wanted.
async fn received(mut body: Incoming, most: Option<u64>, shared: &Shared, number: usize) -> Result<Bytes, Gone> {
    let mut all = BytesMut::new();
    while most.is_none_or(|most| (all.len() as u64) < most) {
        let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        match frame.transpose() {
            Ok(Some(frame)) => {
                if let Ok(data) = frame.into_data() {
                    all.extend_from_slice(&data);
                    shared.records.update(number, |asked| asked.received = all.len() as u64);
                }
            }
            Ok(None) => break,
            Err(_broken) => return Err(Gone),
        }
    }
    if most.is_some_and(|most| all.len() as u64 >= most) { Err(Gone) } else { Ok(all.freeze()) }
}

fn response(
    mut answer: Answer,
    is_head: bool,
    damage: Damage,
    shared: Arc<Shared>,
    number: usize,
) -> Response<Outgoing> {
    answer.body.truncate(damage.short.unwrap_or(u64::MAX) as usize);
    let length = answer.body.len();
    let content = if is_head { Bytes::new() } else { answer.body };
    let mut response = Response::new(Outgoing::new(content, damage, shared, number));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    for (name, value) in answer.headers {
        // Paths in messages may be in any script.
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            headers.append(name, value);
        }
    }
    headers.insert("content-length", HeaderValue::from(length));
    response
}

/// On a port of its own.
pub(crate) fn listen(address: [u8; 4]) -> io::Result<(std::net::TcpListener, SocketAddr)> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::from(address), 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}
