//! The server: answers requests for the pictures of a catalogue, and plays their faults.

use std::collections::HashSet;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use axum::http::{HeaderName, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{StreamExt, stream};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, spawn_blocking, yield_now};
use tokio::time::timeout;

use crate::catalogue::{Catalogue, Entry, Found};
use crate::fault::Fault;
use crate::render::{self, RenderError};
use crate::scene::{Format, Scene};

/// How long a stalled response stays silent before the connection closes: longer than any sensible client waits.
const STALL: Duration = Duration::from_mins(10);
/// How long [`Origin::stop`] waits for answers that are under way.
const GRACE: Duration = Duration::from_secs(2);

const PAGE: &str = "<!DOCTYPE html>\n<html><head><title>Hotlinking is not allowed</title></head>\
    <body><h1>Please visit our site to see this picture.</h1></body></html>\n";

/// Why the origin could not start.
#[derive(Debug, Error)]
pub enum OriginError {
    /// The address could not be had.
    #[error("the demo origin cannot listen on {address}\nhint: {}", bind_hint(source))]
    Bind {
        /// Where it should have listened.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
}

fn bind_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            "another program uses this port; choose another with --port, or --port 0 for any free one"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 may need privileges; choose another with --port, or --port 0 for any free one"
        }
        _ => "choose another port with --port, or --port 0 for any free one",
    }
}

/// A running server. It stops when it is dropped.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    server: JoinHandle<()>,
    /// Dropping it tells the server, and every stalled response, to end.
    open: watch::Sender<()>,
}

/// What every request shares.
struct Shop {
    catalogue: Catalogue,
    /// The entries whose fault has happened and will not happen again.
    recovered: Mutex<HashSet<usize>>,
    /// One permit for each processor: more pictures at once would only share them.
    easels: Semaphore,
    /// Closed when the origin stops.
    open: watch::Receiver<()>,
}

impl Origin {
    /// Serves `catalogue` on `port` of 127.0.0.1, or on any free port where `port` is 0, until [`Origin::stop`] or drop.
    ///
    /// The server runs as tasks of the current tokio runtime, which should have threads to spare for it.
    ///
    /// # Errors
    /// [`OriginError::Bind`] where the port is taken or not allowed.
    pub async fn start(catalogue: Catalogue, port: u16) -> Result<Self, OriginError> {
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let fail = |source| OriginError::Bind { address: wanted, source };
        let listener = TcpListener::bind(wanted).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;

        let (open, closed) = watch::channel(());
        let shop = Arc::new(Shop {
            catalogue,
            recovered: Mutex::default(),
            easels: Semaphore::new(available_parallelism().map_or(1, usize::from)),
            open: closed.clone(),
        });
        let router = Router::new().fallback(answer).with_state(shop);
        let server = tokio::spawn(async move {
            // `axum::serve` retries failed accepts and returns only when it is told to stop.
            let _ = axum::serve(listener, router).with_graceful_shutdown(until_closed(closed)).await;
        });
        Ok(Self { address, server, open })
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops the server: no new connections, answers under way may finish within two seconds, stalled ones are cut off at once.
    pub async fn stop(self) {
        drop(self.open);
        // After the grace, whoever still reads slowly is left alone: its connection ends with the runtime.
        let _ = timeout(GRACE, self.server).await;
    }
}

async fn until_closed(mut open: watch::Receiver<()>) {
    // Nothing is ever sent: the only change is the sender's end.
    while open.changed().await.is_ok() {}
}

async fn answer(State(shop): State<Arc<Shop>>, method: Method, uri: Uri) -> Response {
    if method != Method::GET && method != Method::HEAD {
        return (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "GET, HEAD")]).into_response();
    }
    match shop.catalogue.find(uri.path()) {
        None => not_found(),
        Some(Found::Photograph(photograph)) => file(photograph.format, Bytes::from_static(photograph.encoded)),
        Some(Found::Moved(scene)) => match shop.render(*scene).await {
            Ok(bytes) => file(scene.format, bytes),
            Err(response) => response,
        },
        Some(Found::Listed(entry, scene)) => match shop.serve(entry, *scene).await {
            Ok(response) | Err(response) => response,
        },
    }
}

impl Shop {
    /// Answers for a URL of the list. Both results are answers; the error is one that rendering made necessary.
    async fn serve(&self, entry: &Entry, scene: Scene) -> Result<Response, Response> {
        match entry.fault() {
            Some(Fault::NotFound) => return Ok(not_found()),
            Some(Fault::ServerErrorOnce) if self.is_first(entry) => {
                return Ok((StatusCode::INTERNAL_SERVER_ERROR, "Try again.\n").into_response());
            }
            Some(Fault::TooManyRequestsOnce) if self.is_first(entry) => {
                return Ok((StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "1")], "Slow down.\n").into_response());
            }
            Some(Fault::Redirect) => {
                let target = entry.moved_path().unwrap_or_default();
                return Ok((StatusCode::FOUND, [(LOCATION, target)]).into_response());
            }
            Some(Fault::HtmlPage) => return Ok(file(scene.format, Bytes::from_static(PAGE.as_bytes()))),
            _ => {}
        }
        let bytes = self.render(scene).await?;
        Ok(match entry.fault() {
            Some(Fault::Stalled) => begin(scene.format, &bytes, End::Stall(self.open.clone())),
            Some(Fault::Truncated) => begin(scene.format, &bytes, End::Close),
            Some(Fault::CorruptJpeg) => file(scene.format, render::corrupt(bytes.into()).into()),
            Some(Fault::NoAi) => {
                ([(HeaderName::from_static("x-robots-tag"), "noai")], file(scene.format, bytes)).into_response()
            }
            _ => file(scene.format, bytes),
        })
    }

    /// Whether the entry is asked for the first time.
    fn is_first(&self, entry: &Entry) -> bool {
        self.recovered.lock().unwrap_or_else(PoisonError::into_inner).insert(entry.index())
    }

    /// The bytes of a scene, or the answer that says why there are none.
    async fn render(&self, scene: Scene) -> Result<Bytes, Response> {
        let _easel = self.easels.acquire().await.map_err(failure)?;
        let rendered: Result<Vec<u8>, RenderError> =
            spawn_blocking(move || render::encode(&scene)).await.map_err(failure)?;
        rendered.map(Bytes::from).map_err(failure)
    }
}

/// A real fault of this server. It says "501", which no planted fault says, so that a report cannot mistake one for the other.
fn failure(error: impl std::error::Error) -> Response {
    (StatusCode::NOT_IMPLEMENTED, format!("the demo origin failed: {error}\n")).into_response()
}

fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "There is nothing here.\n").into_response()
}

fn file(format: Format, bytes: Bytes) -> Response {
    ([(CONTENT_TYPE, format.media_type())], bytes).into_response()
}

/// What happens after the part of a body that does arrive.
enum End {
    /// The connection closes.
    Close,
    /// Nothing, until the time is up or the origin stops.
    Stall(watch::Receiver<()>),
}

/// An answer that announces all of `bytes` and sends the first 45 % of them.
fn begin(format: Format, bytes: &Bytes, end: End) -> Response {
    let headers = [(CONTENT_TYPE, format.media_type().to_owned()), (CONTENT_LENGTH, bytes.len().to_string())];
    let part: Result<Bytes, Infallible> = Ok(bytes.slice(..bytes.len() * 45 / 100));
    let rest = stream::once(async move {
        match end {
            // The pause lets the connection send what it has: an error drops whatever still waits.
            End::Close => yield_now().await,
            End::Stall(open) => {
                let _ = timeout(STALL, until_closed(open)).await;
            }
        }
        Err::<Bytes, io::Error>(io::ErrorKind::ConnectionAborted.into())
    });
    let body = stream::iter([part]).map(|part| part.map_err(|never| match never {})).chain(rest);
    (headers, Body::from_stream(body)).into_response()
}
