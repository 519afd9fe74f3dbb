//! The server, from its start to its end, and back.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Instant;

use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Options;
use super::connection;
use super::counts::{Counts, Served};
use super::manner::{Manner, Reply};
use super::question::{Identity, Question};

/// A caption server that misbehaves. It has threads of its own, so that what blocks may use it, and stops when it is dropped.
pub struct CaptionServer {
    /// Ended without waiting when the server goes away; see [`Drop`].
    runtime: Option<Runtime>,
    shared: Arc<Shared>,
    address: SocketAddr,
    running: Mutex<Option<Running>>,
}

/// Ends all tasks of a run when it is dropped.
struct Running {
    _stop: watch::Sender<()>,
    /// Closed when the last of them has ended.
    ended: mpsc::Receiver<()>,
}

pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) counts: Counts,
    /// The answer of a server that looks at nothing.
    pub(crate) at_once: String,
    /// When it was last asked anything since it broke.
    broken: Mutex<Option<Instant>>,
}

impl Shared {
    pub(crate) fn broken(&self) -> MutexGuard<'_, Option<Instant>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn broken_since(&self) -> Option<Instant> {
        *self.broken()
    }
}

impl CaptionServer {
    /// Listens on a port of its own at 127.0.0.1.
    pub fn start(options: Options) -> io::Result<Self> {
        // As many as there may be; with fewer, connections wait.
        let _ = rlimit::increase_nofile_limit(u64::MAX);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(std::thread::available_parallelism().map_or(1, usize::from).min(2))
            .thread_name("captions")
            .enable_all()
            .build()?;
        let question = Question {
            identity: Identity(0),
            model: String::new(),
            shows_image: false,
            is_poisoned: false,
            top_p: None,
        };
        let at_once = match Manner::Caption.reply(&question) {
            Reply::Whole { body, .. } => body,
            _ => String::new(),
        };
        let shared = Arc::new(Shared { options, counts: Counts::default(), at_once, broken: Mutex::default() });
        let mut server = Self {
            runtime: Some(runtime),
            shared,
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            running: Mutex::default(),
        };
        server.address = server.listen()?;
        Ok(server)
    }

    /// The base URL, which ends in /v1.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// What it has served.
    pub fn served(&self) -> Served {
        self.shared.counts.served()
    }

    /// As if it were killed: connections break, and there are no new ones.
    pub fn kill(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Running { _stop: stop, ended }) = running {
            drop(stop);
            // Nothing is ever sent: this waits until the other ends are gone.
            _ = ended.recv();
        }
        *self.shared.broken() = None;
    }

    /// On the same port again.
    pub fn restart(&self) -> io::Result<()> {
        self.kill();
        self.listen().map(|_address| ())
    }

    fn listen(&self) -> io::Result<SocketAddr> {
        let Some(runtime) = &self.runtime else { return Err(io::ErrorKind::NotConnected.into()) };
        let listener = TcpListener::bind(self.address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = watch::channel(());
        let (alive, ended) = mpsc::channel();
        let _inside = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        runtime.spawn(run(listener, Arc::clone(&self.shared), stopped, alive));
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(Running { _stop: stop, ended });
        Ok(address)
    }
}

impl Drop for CaptionServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Until `stopped` closes. `alive` is dropped when everything has ended.
async fn run(
    listener: tokio::net::TcpListener,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<()>,
    alive: mpsc::Sender<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _closed = stopped.changed() => break,
            _ended = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => {
                let Ok((socket, _)) = accepted else { continue };
                drop(socket.set_nodelay(true));
                shared.counts.lock().served.connections += 1;
                let shared = Arc::clone(&shared);
                connections.spawn(async move { drop(connection::serve(socket, &shared).await) });
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
    drop(alive);
}
