//! Encoded images that wait until all of a partition are there, in a file without a name.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use shards::bucket::BucketSize;

use crate::stage::StageError;

/// Where an image waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spooled {
    pub(super) size: BucketSize,
    /// Its position in the partition's input.
    pub(super) row: u64,
    at: u64,
    pub(super) length: usize,
}

/// The images of a partition.
pub(super) struct Spool {
    file: File,
    folder: PathBuf,
    images: Vec<Spooled>,
    end: u64,
    buffer: Vec<u8>,
}

impl Spool {
    /// One on the disk of `folder`; it goes away by itself.
    pub(super) fn create(folder: &Path) -> Result<Self, StageError> {
        let file = tempfile::tempfile_in(folder).map_err(StageError::io("create a file in", folder))?;
        Ok(Self { file, folder: folder.to_owned(), images: Vec::new(), end: 0, buffer: Vec::new() })
    }

    pub(super) fn push(&mut self, size: BucketSize, row: u64, bytes: &[u8]) -> Result<(), StageError> {
        self.file.write_all_at(bytes, self.end).map_err(StageError::io("set images aside in", &self.folder))?;
        self.images.push(Spooled { size, row, at: self.end, length: bytes.len() });
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// All of them by bucket, and within a bucket in the order of the input.
    pub(super) fn sorted(&self) -> Vec<Spooled> {
        let mut sorted = self.images.clone();
        sorted.sort_unstable();
        sorted
    }

    pub(super) fn read(&mut self, spooled: &Spooled) -> Result<&[u8], StageError> {
        self.buffer.resize(spooled.length, 0);
        let read = self.file.read_exact_at(&mut self.buffer, spooled.at);
        read.map_err(StageError::io("read images set aside in", &self.folder))?;
        Ok(&self.buffer)
    }
}
