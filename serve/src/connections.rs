//! Connections: so many at a time, each with time limits.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::event::Event;
use crate::options::Options;

/// After a failed accept: mostly files that must be closed by others first.
const PAUSE: Duration = Duration::from_millis(100);
/// A client whose machine is gone, or that does not read its answer, is given up after so long.
const SILENCE: Duration = Duration::from_mins(1);

/// Those that are open. Dropping this cuts them.
#[derive(Debug)]
pub(crate) struct Connections {
    open: JoinSet<()>,
    /// Set when they shall end after the answers under way.
    ending: watch::Sender<bool>,
}

/// Accepts and serves connections until `until` is ready. Those that are open then stay so.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    options: &Arc<Options>,
    until: impl Future<Output = ()> + Send,
) -> Connections {
    let slots = Arc::new(Semaphore::new(options.limits.connections));
    let mut connections = Connections { open: JoinSet::new(), ending: watch::Sender::new(false) };
    let mut until = std::pin::pin!(until);
    loop {
        let accepted = tokio::select! {
            () = &mut until => return connections,
            // What has ended is taken off the list at once, so the list is no longer than there are slots.
            Some(_) = connections.open.join_next() => continue,
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((stream, slot)) => {
                let receive = options.limits.receive;
                let connection = answer(stream, router.clone(), receive, connections.ending.subscribe());
                connections.open.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) => {
                (options.observer)(Event::AcceptFailed(error));
                sleep(PAUSE).await;
            }
        }
    }
}

impl Connections {
    /// Lets answers under way end, `within` so long; then cuts what is left.
    pub(crate) async fn finish(&mut self, within: Duration) {
        self.ending.send_replace(true);
        let all = async { while self.open.join_next().await.is_some() {} };
        // Either way: what is late is cut next.
        let _ = timeout(within, all).await;
        self.open.shutdown().await;
    }
}

/// The next connection, once there is a slot for it.
async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, slot))
}

async fn answer(stream: TcpStream, router: Router, receive: Duration, mut ending: watch::Receiver<bool>) {
    // Without these options, a connection still works.
    let _ = stream.set_nodelay(true);
    let _ = notice_silence(&stream);
    // Only HTTP/1: a connection whose first bytes told the version would have no time limit for them.
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(receive);
    let service = TowerToHyperService::new(router);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    // How it ends is the client's affair: it left, or sent what is no HTTP and was told so.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = ending.wait_for(|is_ending| *is_ending) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(SILENCE / 3).with_interval(SILENCE / 6))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(SILENCE))?;
    Ok(())
}
