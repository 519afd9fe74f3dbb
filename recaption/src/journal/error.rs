//! What can go wrong with a journal.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shards::ShardError;

/// What can go wrong with a journal.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk refused. When it is a write or a sync that failed, the journal has stopped: what is in the segment behind the
    /// last durable answer is unknown, so nothing more goes there. A new attempt begins a new segment.
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: Arc<io::Error> },
    /// A folder or a file could not be made, or not be made durable, or a store does not say what it has.
    #[error(transparent)]
    Disk(Arc<ShardError>),
    /// An attempt cannot be a file's name.
    #[error("`{0}` names no attempt: expected letters, digits, `-`, `_` and `.`, but no `.` in front")]
    Attempt(String),
    /// An answer that could not be read back.
    #[error("an answer of {bytes} bytes is longer than a journal's line may be, {} MB", super::entry::LONGEST_LINE >> 20)]
    TooLong { bytes: usize },
    /// The journal was closed before this answer came.
    #[error("the journal {path} is closed")]
    Closed { path: PathBuf },
}

impl JournalError {
    /// For `map_err` on file operations.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source: Arc::new(source) }
    }

    /// Whether the disk was full.
    pub fn is_full_disk(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

impl From<ShardError> for JournalError {
    fn from(error: ShardError) -> Self {
        Self::Disk(Arc::new(error))
    }
}
