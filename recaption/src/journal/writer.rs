//! Appending to a journal, by groups that become durable together.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use shards::disk::{create_folder, sync_parent};
use tokio::sync::oneshot;

use super::JournalError;
use super::entry::{CacheKey, Entry, LONGEST_LINE, line};
use super::segment::{Cache, read_folder, segment_path};

/// How many answers become durable together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouping {
    /// A group of so many is written at once …
    pub entries: usize,
    /// … and a smaller one when its first answer has waited so long.
    pub wait: Duration,
}

impl Default for Grouping {
    /// An answer takes seconds to make, so it may well wait for some milliseconds. What waits when a worker is killed is paid for
    /// again, so no longer than that.
    fn default() -> Self {
        Self { entries: 64, wait: Duration::from_millis(5) }
    }
}

/// Gets the bytes of each group once they are durable here, before any of its answers counts as durable. They are a segment by
/// themselves, so where a workdir lies on a store they can be put there as one; until that is done, answers are not durable.
pub type Hook = Box<dyn FnMut(&[u8]) -> io::Result<()> + Send>;

/// One attempt's segment, open for appending.
///
/// The file is made with its first answer: an attempt that finds all answers in the cache leaves none. When this is dropped, what
/// was appended is made durable first.
#[derive(Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    queue: Mutex<Queue>,
    changed: Condvar,
    durable: AtomicU64,
}

/// Who waits for an answer to be durable.
type Waiting = oneshot::Sender<Result<(), JournalError>>;

/// What waits to be written. Each append waits for its answer to leave it, so it holds no more than there are rows at work.
#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    waiting: Vec<Waiting>,
    /// When the first of them came.
    since: Option<Instant>,
    is_closed: bool,
    /// Why nothing more is written.
    failure: Option<JournalError>,
}

impl Journal {
    /// Reads what all attempts have answered, and begins the segment of `attempt`, which must be new.
    ///
    /// Blocks on the disk.
    pub fn open(folder: &Path, attempt: &str) -> Result<(Self, Cache), JournalError> {
        Self::open_with(folder, attempt, Grouping::default(), None)
    }

    /// As [`Journal::open`], with groups of another size, and a hook for each.
    pub fn open_with(
        folder: &Path,
        attempt: &str,
        grouping: Grouping,
        hook: Option<Hook>,
    ) -> Result<(Self, Cache), JournalError> {
        let path = segment_path(folder, attempt)?;
        create_durably(folder)?;
        let cache = read_folder(folder)?;
        if path.exists() {
            return Err(JournalError::io("create", &path)(io::ErrorKind::AlreadyExists.into()));
        }
        let create = {
            let path = path.clone();
            move || -> Result<Box<dyn Segment>, JournalError> {
                let file = File::create_new(&path).map_err(JournalError::io("create", &path))?;
                sync_parent(&path)?;
                Ok(Box::new(file))
            }
        };
        Ok((Self::start(path, grouping, hook, create)?, cache))
    }

    fn start(
        path: PathBuf,
        grouping: Grouping,
        hook: Option<Hook>,
        create: impl FnOnce() -> Result<Box<dyn Segment>, JournalError> + Send + 'static,
    ) -> Result<Self, JournalError> {
        let shared =
            Arc::new(Shared { path, queue: Mutex::default(), changed: Condvar::new(), durable: AtomicU64::new(0) });
        let writer = Writer { shared: Arc::clone(&shared), grouping, hook, create: Some(create), segment: None };
        let thread = std::thread::Builder::new().name("journal".to_owned()).spawn(move || writer.run());
        let writer = thread.map_err(JournalError::io("start a thread for", &shared.path))?;
        Ok(Self { shared, writer: Some(writer) })
    }

    /// Where the segment lies, once it has an answer.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// How many answers are durable.
    pub fn durable(&self) -> u64 {
        self.shared.durable.load(Ordering::Acquire)
    }

    /// Appends an answer; done when it is durable. Whether or not anyone waits for that, it will be written.
    ///
    /// After an error nothing more is written: see [`JournalError::Io`].
    pub async fn append(&self, key: &CacheKey, entry: &Entry) -> Result<(), JournalError> {
        let done = self.push(key, entry)?;
        done.await.unwrap_or_else(|_gone| Err(JournalError::Closed { path: self.shared.path.clone() }))
    }

    /// As [`Journal::append`], for threads that may block.
    pub fn append_blocking(&self, key: &CacheKey, entry: &Entry) -> Result<(), JournalError> {
        let done = self.push(key, entry)?;
        done.blocking_recv().unwrap_or_else(|_gone| Err(JournalError::Closed { path: self.shared.path.clone() }))
    }

    fn push(&self, key: &CacheKey, entry: &Entry) -> Result<oneshot::Receiver<Result<(), JournalError>>, JournalError> {
        let line = line(key, entry);
        if line.len() > LONGEST_LINE {
            return Err(JournalError::TooLong { bytes: line.len() });
        }
        let (done, is_done) = oneshot::channel();
        let mut queue = self.shared.queue();
        if let Some(failure) = &queue.failure {
            return Err(failure.clone());
        }
        queue.bytes.extend(line);
        queue.waiting.push(done);
        queue.since.get_or_insert_with(Instant::now);
        drop(queue);
        self.shared.changed.notify_one();
        Ok(is_done)
    }

    /// Makes all answers durable and closes the segment. Returns its path, if it has any answer. Blocks on the disk.
    pub fn close(mut self) -> Result<Option<PathBuf>, JournalError> {
        self.finish();
        if let Some(failure) = &self.shared.queue().failure {
            return Err(failure.clone());
        }
        Ok((self.durable() > 0).then(|| self.shared.path.clone()))
    }

    fn finish(&mut self) {
        self.shared.queue().is_closed = true;
        self.shared.changed.notify_one();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has dropped all who waited, who know of it by that.
            let _ = writer.join();
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing is done to a queue that could be half done.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that a journal writes to.
trait Segment: Send {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
}

impl Segment for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The thread that writes.
struct Writer<C> {
    shared: Arc<Shared>,
    grouping: Grouping,
    hook: Option<Hook>,
    create: Option<C>,
    segment: Option<Box<dyn Segment>>,
}

impl<C: FnOnce() -> Result<Box<dyn Segment>, JournalError>> Writer<C> {
    fn run(mut self) {
        while let Some((bytes, waiting)) = self.next_group() {
            let written = self.write(&bytes);
            match &written {
                Ok(()) => drop(self.shared.durable.fetch_add(waiting.len() as u64, Ordering::AcqRel)),
                Err(failure) => self.shared.queue().failure = Some(failure.clone()),
            }
            for done in waiting {
                // Who no longer waits need not be told.
                let _ = done.send(written.clone());
            }
            if written.is_err() {
                return;
            }
        }
    }

    /// Waits for a group; there is none when the journal is closed and all is written.
    fn next_group(&self) -> Option<(Vec<u8>, Vec<Waiting>)> {
        let mut queue = self.shared.queue();
        loop {
            let left = queue.since.map(|since| self.grouping.wait.saturating_sub(since.elapsed()));
            let is_due = left.is_some_and(|left| left.is_zero()) || queue.waiting.len() >= self.grouping.entries;
            if !queue.waiting.is_empty() && (is_due || queue.is_closed) {
                queue.since = None;
                return Some((std::mem::take(&mut queue.bytes), std::mem::take(&mut queue.waiting)));
            }
            if queue.is_closed {
                return None;
            }
            let changed = &self.shared.changed;
            queue = match left {
                None => changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(left) => changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), JournalError> {
        if let Some(create) = self.create.take() {
            self.segment = Some(create()?);
        }
        let path = &self.shared.path;
        if let Some(segment) = &mut self.segment {
            segment.write(bytes).map_err(JournalError::io("write", path))?;
            segment.sync().map_err(JournalError::io("sync", path))?;
        }
        if let Some(hook) = &mut self.hook {
            hook(bytes).map_err(JournalError::io("hand on what was written to", path))?;
        }
        Ok(())
    }
}

impl<C> Drop for Writer<C> {
    /// Nobody waits for a writer that is gone.
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        if std::thread::panicking() {
            queue.failure.get_or_insert_with(|| JournalError::Closed { path: self.shared.path.clone() });
        }
        let failure = queue.failure.clone();
        for done in std::mem::take(&mut queue.waiting) {
            if let Some(failure) = &failure {
                let _ = done.send(Err(failure.clone()));
            }
        }
    }
}

/// Creates a folder and those above it, so that they survive a power failure.
fn create_durably(folder: &Path) -> Result<(), JournalError> {
    let new: Vec<&Path> =
        folder.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.is_dir()).collect();
    create_folder(folder)?;
    for path in new.into_iter().rev() {
        sync_parent(path)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
