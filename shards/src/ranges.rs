//! Where a reader of single rows gets its bytes.

use std::fmt::Debug;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use parquet::file::reader::{ChunkReader, Length};

use crate::ShardError;
use crate::shared_file::SharedFile;

/// A file of which parts are read, by several threads at once.
pub trait Ranges: Debug + Send + Sync {
    /// Its path or address, for messages.
    fn path(&self) -> &Path;

    /// Bytes in all.
    fn length(&self) -> u64;

    /// The bytes of each range, in their order. A range past the end is an error.
    fn read(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, ShardError>;

    /// The bytes of one range.
    fn read_one(&self, range: Range<u64>) -> Result<Bytes, ShardError> {
        Ok(self.read(std::slice::from_ref(&range))?.pop().unwrap_or_default())
    }
}

/// A file of this machine.
#[derive(Debug)]
pub struct LocalFile {
    path: PathBuf,
    file: SharedFile,
}

impl LocalFile {
    pub fn open(path: &Path) -> Result<Self, ShardError> {
        let file = File::open(path).and_then(SharedFile::new).map_err(ShardError::io("open", path))?;
        Ok(Self { path: path.to_owned(), file })
    }
}

impl Ranges for LocalFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn length(&self) -> u64 {
        self.file.len()
    }

    fn read(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, ShardError> {
        let read = |range: &Range<u64>| {
            let length = range.end.saturating_sub(range.start);
            self.file.get_bytes(range.start, usize::try_from(length).unwrap_or(usize::MAX))
        };
        ranges.iter().map(read).collect::<Result<_, _>>().map_err(ShardError::parquet(&self.path))
    }
}
