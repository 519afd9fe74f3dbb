//! Files mapped into memory.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};

use crate::ModelError;

/// A file of weights, mapped read-only.
#[derive(Debug)]
pub(super) struct Mapping {
    map: Mmap,
    path: PathBuf,
}

impl Mapping {
    #[expect(unsafe_code, reason = "memory maps are unsafe by nature: see the comment")]
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(ModelError::io("open", path))?;
        // SAFETY: the map is read-only and private to this process. A file that is cut short while it is mapped ends the
        // process by SIGBUS, as in every program that maps weights; they are written under a temporary name and renamed, so
        // that does not happen to files that are in place.
        let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io("map", path))?;
        Ok(Self { map, path: path.to_owned() })
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// The whole file.
    pub(super) fn all(&self) -> &[u8] {
        &self.map
    }

    /// The bytes of a range, when all of it lies within the file.
    pub(super) fn bytes(&self, range: Range<usize>) -> Option<&[u8]> {
        self.map.get(range)
    }

    /// Lets the pages of a range go, which otherwise count as this process's memory until something else needs it. Reading
    /// them again brings them back.
    #[expect(unsafe_code, reason = "memmap2 marks the advice unsafe for writable maps")]
    pub(super) fn forget(&self, range: Range<usize>) {
        // SAFETY: the map is read-only and backed by a file: dropped pages are read again, with the same contents. Failure
        // costs memory, nothing else.
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
    }

    /// An error about this file.
    pub(super) fn damaged(&self, what: &'static str, detail: impl Into<String>) -> ModelError {
        ModelError::Record { path: self.path.clone(), what, detail: detail.into() }
    }
}
