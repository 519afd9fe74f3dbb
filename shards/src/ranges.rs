//! Where a reader of single rows gets its bytes.

use std::fmt::Debug;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use parquet::file::reader::{ChunkReader, Length};
use tokio::runtime::Handle;

use crate::ShardError;
use crate::digest::Digest;
use crate::range_cache::{self, RangeCache};
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

/// An object of a store, parts of which may be kept on this machine.
#[derive(Debug)]
pub struct StoredFile {
    /// As people write it.
    pub(crate) address: PathBuf,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) object: ObjectPath,
    pub(crate) runtime: Handle,
    pub(crate) bytes: u64,
    /// By which its parts are known in the cache.
    pub(crate) digest: Digest,
    pub(crate) cache: Option<Arc<RangeCache>>,
}

impl Ranges for StoredFile {
    fn path(&self) -> &Path {
        &self.address
    }

    fn length(&self) -> u64 {
        self.bytes
    }

    fn read(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, ShardError> {
        let keys: Vec<_> = ranges.iter().map(|range| range_cache::key(&self.digest, range.start, range.end)).collect();
        let mut found: Vec<Option<Bytes>> =
            keys.iter().map(|key| self.cache.as_ref().and_then(|cache| cache.get(key))).collect();
        let missing: Vec<usize> = (0..ranges.len()).filter(|&i| found.get(i).is_some_and(Option::is_none)).collect();
        if !missing.is_empty() {
            let wanted: Vec<Range<u64>> = missing.iter().filter_map(|&i| ranges.get(i).cloned()).collect();
            // Neighbours are asked for together, and several requests are on their way at a time.
            let fetched = self.runtime.block_on(self.store.get_ranges(&self.object, &wanted));
            let fetched = fetched.map_err(|source| ShardError::Store {
                action: "read",
                object: self.address.display().to_string(),
                source: Box::new(source),
            })?;
            for ((i, range), bytes) in missing.into_iter().zip(&wanted).zip(fetched) {
                if bytes.len() as u64 != range.end.saturating_sub(range.start) {
                    let detail = format!("it gave {} bytes for {} to {}", bytes.len(), range.start, range.end);
                    return Err(ShardError::Changed { object: self.address.display().to_string(), detail });
                }
                if let (Some(cache), Some(key)) = (&self.cache, keys.get(i)) {
                    cache.put(key, &bytes);
                }
                found[i] = Some(bytes);
            }
        }
        Ok(found.into_iter().flatten().collect())
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
