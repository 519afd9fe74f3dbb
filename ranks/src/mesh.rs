//! Every rank linked to every other one.
//!
//! [`Mesh::join`] comes back once all are there. From then on messages go from rank to rank by channel, in order on each, and
//! the loss of any rank ends all: the first that was lost is the error of every call on every rank, from within two seconds of
//! a process that died, and within ten of one that was stopped or cut off.

use std::net::Shutdown;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::error::RankError;
use super::frame::{Control, RESERVED};
use super::inbox::{Asked, lock};
use super::join;
use super::link::{Put, Unsent};
use super::shared::{Callback, Shared};
use super::verdict::Sign;
use super::watch;
use super::world::World;

/// Longer than it takes to tell everyone that this rank failed.
const FAILING: Duration = Duration::from_secs(1);
/// As long as others may take to notice that this rank leaves.
const LEAVING: Duration = Duration::from_millis(900);
/// Longer than a verdict takes.
const VERDICT: Duration = Duration::from_secs(10);
/// As long as a failed write waits for the reader to say what it means.
const BROKEN_WRITE: Duration = Duration::from_millis(500);

/// How a mesh comes together and how long it waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshOptions {
    /// For all ranks to come.
    pub join_timeout: Duration,
    /// After which a rank of which no byte came is lost. Long enough for a burst of other work on a machine.
    pub silence: Duration,
    /// In bytes; the same on all ranks. A message's memory is taken when its first piece comes.
    pub longest_message: u64,
}

impl Default for MeshOptions {
    fn default() -> Self {
        Self { join_timeout: Duration::from_mins(2), silence: Duration::from_secs(6), longest_message: 1 << 30 }
    }
}

/// This rank's links to all others. Any thread may use it. Dropped, it [leaves](Self::leave); while a panic unwinds, it
/// [fails](Self::fail).
pub struct Mesh {
    shared: Arc<Shared>,
    watcher: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("rank", &self.shared.rank).field("size", &self.shared.size).finish_non_exhaustive()
    }
}

impl Mesh {
    /// Waits for all ranks of the world, for no longer than `options.join_timeout`. Rank 0 listens on the master port, the others
    /// on any port that is free, until all are linked: on all addresses of the machine, or only on its loopback address where
    /// `master_address` is that, written as an address.
    pub fn join(world: &World, options: MeshOptions) -> Result<Self, RankError> {
        join::join(world, options)
    }

    pub(super) fn start(shared: Arc<Shared>) -> Result<Self, RankError> {
        let watched = Arc::clone(&shared);
        let watcher = std::thread::Builder::new().name("ranks-watch".to_owned()).spawn(move || watch::run(&watched));
        Ok(Self { shared, watcher: Some(watcher.map_err(RankError::io("start a thread"))?) })
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub fn rank(&self) -> usize {
        self.shared.rank
    }

    pub fn size(&self) -> usize {
        self.shared.size
    }

    /// In bytes, see [`MeshOptions::longest_message`].
    pub fn longest_message(&self) -> u64 {
        self.shared.options.longest_message
    }

    /// Sends a message. It may block for as long as the network takes, but not for the receiver to ask for it: how many messages
    /// may wait there is between the callers. Channels end at 0xffff_ff00.
    pub fn send(&self, to: usize, channel: u32, message: &[u8]) -> Result<(), RankError> {
        self.send_parts(to, channel, &[message])
    }

    /// Sends the parts as one message.
    pub fn send_parts(&self, to: usize, channel: u32, parts: &[&[u8]]) -> Result<(), RankError> {
        let shared = &*self.shared;
        let inbox = shared.inbox(to)?;
        let length = parts.iter().map(|part| part.len() as u64).sum();
        let limit = shared.options.longest_message;
        if channel >= RESERVED {
            return Err(RankError::Channel { channel, end: RESERVED });
        }
        if length > limit {
            return Err(RankError::TooLong { rank: to, length, limit });
        }
        if let Some(error) = shared.ended() {
            return Err(error);
        }
        if to == shared.rank {
            inbox.put(channel, parts.concat());
            return Ok(());
        }
        let link = shared.link(to).ok_or_else(|| shared.no_such_rank(to))?;
        let has_left = || link.has_left.load(Ordering::Acquire);
        if has_left() {
            return Err(RankError::Left { rank: to });
        }
        match link.send(channel, parts, &shared.stop) {
            Ok(()) => return Ok(()),
            Err(Unsent::Stopped) => {}
            // The peer left, or was lost: what was read from it tells which. A link that only reads is of no use either.
            Err(Unsent::Broken(error)) => {
                shared.wait(BROKEN_WRITE, |state| state.verdict.is_some() || state.leaving || has_left());
                shared.suspect(
                    to,
                    Sign::Closed,
                    format!("cannot send to it ({error}); it ended, crashed or was killed"),
                );
            }
        }
        shared.wait(VERDICT, |state| shared.failure().is_some() || state.leaving || has_left());
        Err(shared.ended().unwrap_or(RankError::Left { rank: to }))
    }

    /// The next message of a rank on a channel, once it comes.
    pub fn receive(&self, from: usize, channel: u32) -> Result<Vec<u8>, RankError> {
        let shared = &*self.shared;
        shared.inbox(from)?.take(channel, |asked| match asked {
            Asked::Before => shared.ended(),
            Asked::WhenEmpty => self.is_gone(from),
        })
    }

    /// The next message of a rank on a channel, if it has come.
    pub fn try_receive(&self, from: usize, channel: u32) -> Result<Option<Vec<u8>>, RankError> {
        let inbox = self.shared.inbox(from)?;
        if let Some(error) = self.shared.ended() {
            return Err(error);
        }
        // In this order: what it sent before it left counts.
        let gone = self.is_gone(from);
        match (inbox.try_take(channel), gone) {
            (None, Some(error)) => Err(error),
            (message, _) => Ok(message),
        }
    }

    fn is_gone(&self, rank: usize) -> Option<RankError> {
        let has_left = self.shared.link(rank).is_some_and(|link| link.has_left.load(Ordering::Acquire));
        has_left.then_some(RankError::Left { rank })
    }

    /// The first rank that was lost, if one was.
    pub fn failure(&self) -> Option<RankError> {
        self.shared.failure().cloned()
    }

    /// Called once, on a thread of its own, when a rank is lost; at once where one already is.
    pub fn on_failure(&self, callback: Callback) {
        {
            let mut state = lock(&self.shared.state);
            if !state.has_called {
                state.callbacks.push(callback);
                return;
            }
        }
        let is_published = |_: &_| self.shared.failure().is_some();
        if self.shared.wait(Duration::from_secs(1), is_published)
            && let Some(error) = self.shared.failure()
        {
            callback(error);
        }
    }

    /// Runs `work` on a thread of its own, and comes back with what it gives, or as soon as a rank is lost. For what waits for other ranks
    /// beside this mesh and cannot be told to stop: once a rank is lost, the thread is left to itself, with all that `work` holds.
    pub fn unless_lost<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, RankError> {
        let (sender, first) = std::sync::mpsc::channel();
        let lost = sender.clone();
        // Whoever comes second finds nobody who listens any more.
        self.on_failure(Box::new(move |error| _ = lost.send(Err(error.clone()))));
        let thread = std::thread::Builder::new().name("ranks-work".to_owned());
        let work = move || _ = sender.send(Ok(catch_unwind(AssertUnwindSafe(work))));
        thread.spawn(work).map_err(RankError::io("start a thread"))?;
        match first.recv() {
            Ok(Ok(result)) => Ok(result.unwrap_or_else(|panic| resume_unwind(panic))),
            Ok(Err(error)) => Err(error),
            // The mesh drops its callbacks only with itself.
            Err(_) => Err(self.fail("a thread of its own ended early")),
        }
    }

    /// As [`failure`](Self::failure), but gives one a while to become known. For an error that may come from another rank's
    /// loss, such as one of a connection beside this mesh: silence is noticed only after [`MeshOptions::silence`].
    pub fn wait_for_failure(&self, longest: Duration) -> Option<RankError> {
        self.shared.wait(longest, |state| self.shared.failure().is_some() || state.leaving);
        self.failure()
    }

    /// This rank ends with an error of its own: all others end with that. Comes back when they were told, with what they were
    /// told, which is another rank's failure if that was first. An error that another rank's loss may have caused is better
    /// [waited out](Self::wait_for_failure) first.
    pub fn fail(&self, reason: &str) -> RankError {
        let rank = self.shared.rank;
        let reason = format!("it failed: {reason}");
        self.shared.suspect(rank, Sign::Failed, reason.clone());
        self.shared.wait(FAILING, |state| self.shared.failure().is_some() || state.leaving);
        self.failure().unwrap_or(RankError::PeerLost { rank, reason })
    }

    /// This rank is done. Others may go on among themselves; whoever still waits for this one gets an error. Everything sent
    /// before arrives. Takes up to a second where others do not notice.
    pub fn leave(&self) {
        let shared = &*self.shared;
        let deadline = Instant::now() + LEAVING;
        let is_lost = {
            let mut state = lock(&shared.state);
            if std::mem::replace(&mut state.leaving, true) {
                return;
            }
            shared.stop.store(true, Ordering::Release);
            state.verdict.as_ref().map(|lost| lost.rank)
        };
        shared.wake();
        if is_lost.is_some() {
            shared.wait(LEAVING, |_| shared.failure().is_some());
        } else {
            self.say_goodbye(deadline);
        }
        // Closed earlier, a socket would throw away what it has not sent.
        shared.wait(deadline.saturating_duration_since(Instant::now()), |_| {
            shared.links().all(|(rank, link)| Some(rank) == is_lost || link.has_ended.load(Ordering::Acquire))
        });
    }

    fn say_goodbye(&self, deadline: Instant) {
        let frame = Control::Goodbye.frame();
        let mut waiting: Vec<_> =
            self.shared.links().filter(|(_, link)| link.is_live()).map(|(_, link)| (link, Put::Busy)).collect();
        loop {
            waiting.retain_mut(|(link, put)| {
                *put = match *put {
                    Put::Busy => link.put(&frame),
                    _ => link.flush().when_in_line(),
                };
                if matches!(put, Put::Busy | Put::Waits) {
                    return true;
                }
                link.shut(Shutdown::Write);
                false
            });
            if waiting.is_empty() || Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fail("it panicked");
        }
        self.leave();
        self.shared.shut_all();
        let readers = self.shared.take_readers();
        // A thread that panicked has been seen to: its link counts as ended.
        readers.into_iter().chain(self.watcher.take()).for_each(|thread| _ = thread.join());
    }
}
