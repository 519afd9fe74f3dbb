//! What the threads of a mesh share: its links, what came over them, and what became of them.
//!
//! A failure has two moments. With the verdict nothing more is sent; once everyone was told, it is published, and only then do
//! callers learn of it: they may end the process at once, and it must not look as if this rank had been the first.

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::error::RankError;
use super::frame::shorten;
use super::inbox::{Inbox, lock};
use super::link::Link;
use super::mesh::MeshOptions;
use super::read;
use super::verdict::{Lost, Sign, Suspicions};

pub(super) type Callback = Box<dyn Fn(&RankError) + Send + Sync>;

pub(super) struct Shared {
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) options: MeshOptions,
    started: Instant,
    /// By rank; none for this one, and none to ranks that are yet to come.
    links: Vec<OnceLock<Link>>,
    inboxes: Vec<Inbox>,
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    /// Nothing more is to be sent: there is a verdict, or this rank leaves.
    pub(super) stop: AtomicBool,
    published: OnceLock<RankError>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) verdict: Option<Lost>,
    pub(super) suspicions: Suspicions,
    /// Suspicions that whoever decides has not been told of.
    pub(super) untold: Vec<(usize, Sign, String)>,
    pub(super) callbacks: Vec<Callback>,
    /// They have been called; whoever comes later is called at once.
    pub(super) has_called: bool,
    pub(super) leaving: bool,
    readers: Vec<JoinHandle<()>>,
}

impl Shared {
    pub(super) fn new(rank: usize, size: usize, options: MeshOptions) -> Self {
        Self {
            rank,
            size,
            options,
            started: Instant::now(),
            links: (0..size).map(|_| OnceLock::new()).collect(),
            inboxes: (0..size).map(|_| Inbox::default()).collect(),
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            published: OnceLock::new(),
        }
    }

    /// In milliseconds.
    pub(super) fn clock(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    pub(super) fn link(&self, rank: usize) -> Option<&Link> {
        self.links.get(rank)?.get()
    }

    pub(super) fn links(&self) -> impl Iterator<Item = (usize, &Link)> {
        self.links.iter().enumerate().filter_map(|(rank, link)| Some((rank, link.get()?)))
    }

    pub(super) fn inbox(&self, rank: usize) -> Result<&Inbox, RankError> {
        self.inboxes
            .get(rank)
            .ok_or_else(|| RankError::NoSuchRank { rank, among: format!("in a world of {}", self.size) })
    }

    /// From now on what comes over the stream is read and kept.
    pub(super) fn attach(self: &Arc<Self>, rank: usize, stream: TcpStream) -> Result<(), RankError> {
        let prepare = || -> std::io::Result<TcpStream> {
            stream.set_nonblocking(false)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(None)?;
            stream.set_write_timeout(None)?;
            stream.try_clone()
        };
        let input = prepare().map_err(RankError::io("set up the connection to another rank"))?;
        let slot = self.links.get(rank).ok_or_else(|| self.no_such_rank(rank))?;
        slot.set(Link::new(stream, self.clock())).map_err(|_link| RankError::Refused {
            rank,
            address: format!("rank {}", self.rank),
            reason: "there is a link to it already".to_owned(),
        })?;
        let shared = Arc::clone(self);
        let name = format!("from-rank-{rank}");
        let reader = std::thread::Builder::new().name(name).spawn(move || read::run(&shared, rank, input));
        lock(&self.state).readers.push(reader.map_err(RankError::io("start a thread"))?);
        Ok(())
    }

    pub(super) fn no_such_rank(&self, rank: usize) -> RankError {
        RankError::NoSuchRank { rank, among: format!("in a world of {}", self.size) }
    }

    pub(super) fn take_readers(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut lock(&self.state).readers)
    }

    pub(super) fn failure(&self) -> Option<&RankError> {
        self.published.get()
    }

    /// A rank looks lost, or this one is.
    pub(super) fn suspect(&self, rank: usize, sign: Sign, reason: String) {
        let mut state = lock(&self.state);
        let has_left = self.link(rank).is_some_and(|link| link.has_left.load(Ordering::Acquire));
        if state.leaving || state.verdict.is_some() || has_left {
            return;
        }
        if state.suspicions.add(rank, sign, reason.clone(), false, Instant::now()) {
            state.untold.push((rank, sign, reason));
            self.changed.notify_all();
        }
    }

    /// A rank looks lost to another one, which leaves it to this one to decide.
    pub(super) fn suspect_reported(&self, rank: usize, sign: Sign, reason: &str) {
        let mut state = lock(&self.state);
        let is_peer = self.link(rank).is_some_and(|link| !link.has_left.load(Ordering::Acquire));
        if is_peer && state.verdict.is_none() && state.suspicions.add(rank, sign, shorten(reason), true, Instant::now())
        {
            self.changed.notify_all();
        }
    }

    /// It is known which rank was lost. The first to say so is right.
    pub(super) fn judge(&self, lost: &Lost) {
        let mut state = lock(&self.state);
        if state.verdict.is_none() && !state.leaving {
            self.set_verdict(&mut state, lost);
        }
    }

    pub(super) fn set_verdict(&self, state: &mut State, lost: &Lost) {
        state.verdict = Some(Lost { rank: lost.rank, reason: shorten(&lost.reason) });
        self.stop.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Callers learn of it now.
    pub(super) fn publish(&self, error: RankError) {
        _ = self.published.set(error);
        self.wake();
    }

    /// Whoever waits looks again.
    pub(super) fn wake(&self) {
        drop(lock(&self.state));
        self.changed.notify_all();
        self.inboxes.iter().for_each(Inbox::wake);
    }

    /// Waits until `done`, but not beyond `longest`; says whether it is.
    pub(super) fn wait(&self, longest: Duration, done: impl Fn(&State) -> bool) -> bool {
        let deadline = Instant::now() + longest;
        let mut state = lock(&self.state);
        loop {
            if done(&state) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Why this rank's own calls are in vain.
    pub(super) fn ended(&self) -> Option<RankError> {
        let leaves = || self.stop.load(Ordering::Acquire) && lock(&self.state).leaving;
        self.failure().cloned().or_else(|| leaves().then_some(RankError::Left { rank: self.rank }))
    }

    pub(super) fn shut_all(&self) {
        self.links().for_each(|(_, link)| link.shut(Shutdown::Both));
    }
}
