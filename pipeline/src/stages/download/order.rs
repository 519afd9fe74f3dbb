//! Rows in the list's order, whatever order their answers came in. What has to wait for an earlier row stays in memory up to
//! a limit and goes to a file without a name above it: one slow host cannot fill the memory, and nothing stops meanwhile.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::network::{Refusal, Share};
use super::row::Picture;

/// What became of a row.
pub(super) type RowResult = Result<Picture, Refusal>;

/// Puts rows in order.
pub(super) struct InOrder {
    next: usize,
    waiting: BTreeMap<usize, Waiting>,
    /// Bytes of pictures that wait in memory.
    held: u64,
    most_held: u64,
    folder: PathBuf,
    spool: Option<File>,
    spooled: u64,
}

enum Waiting {
    Here(Box<RowResult>, Option<Share>),
    /// The picture without its bytes, which lie in the spool.
    Spooled(Box<Picture>, u64, usize),
}

impl InOrder {
    /// Holds up to `most_held` bytes; the rest goes to a file in `folder`.
    pub(super) fn new(most_held: u64, folder: PathBuf) -> Self {
        Self { next: 0, waiting: BTreeMap::new(), held: 0, most_held, folder, spool: None, spooled: 0 }
    }

    /// Takes a row that has ended, with the memory that it may hold.
    pub(super) fn push(&mut self, row: usize, result: RowResult, share: Option<Share>) -> io::Result<()> {
        let waiting = match result {
            Ok(mut picture) if row != self.next && self.held + picture.bytes.len() as u64 > self.most_held => {
                let bytes = std::mem::take(&mut picture.bytes);
                let at = self.spooled;
                self.spool()?.write_all_at(&bytes, at)?;
                self.spooled += bytes.len() as u64;
                Waiting::Spooled(Box::new(picture), at, bytes.len())
            }
            result => {
                self.held += result.as_ref().map_or(0, |picture| picture.bytes.len() as u64);
                Waiting::Here(Box::new(result), share)
            }
        };
        self.waiting.insert(row, waiting);
        Ok(())
    }

    /// The next row, if it has ended.
    pub(super) fn pop(&mut self) -> io::Result<Option<(usize, RowResult, Option<Share>)>> {
        let Some(waiting) = self.waiting.remove(&self.next) else { return Ok(None) };
        let row = self.next;
        self.next += 1;
        Ok(Some(match waiting {
            Waiting::Here(result, share) => {
                self.held -= result.as_ref().as_ref().map_or(0, |picture| picture.bytes.len() as u64);
                (row, *result, share)
            }
            Waiting::Spooled(mut picture, at, length) => {
                let mut bytes = vec![0; length];
                self.spool()?.read_exact_at(&mut bytes, at)?;
                picture.bytes = bytes;
                (row, Ok(*picture), None)
            }
        }))
    }

    fn spool(&mut self) -> io::Result<&File> {
        if self.spool.is_none() {
            self.spool = Some(tempfile::tempfile_in(&self.folder)?);
        }
        self.spool.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn picture(row: usize) -> RowResult {
        if row.is_multiple_of(5) {
            return Err(Refusal::network("http_404", row));
        }
        Ok(Picture { bytes: vec![row as u8; row * 7 % 50], width: row as u32, ..Picture::default() })
    }

    proptest! {
        #[test]
        fn rows_come_out_as_they_went_in(order in Just((0..60usize).collect::<Vec<_>>()).prop_shuffle(), most in 0u64..500) {
            let folder = tempfile::tempdir().unwrap();
            let mut rows = InOrder::new(most, folder.path().to_owned());
            let mut came = 0;
            for row in order {
                rows.push(row, picture(row), None).unwrap();
                prop_assert!(rows.held <= most + 50);
                while let Some((row, result, _)) = rows.pop().unwrap() {
                    prop_assert_eq!(row, came);
                    match (result, picture(row)) {
                        (Ok(a), Ok(b)) => prop_assert_eq!((a.bytes, a.width), (b.bytes, b.width)),
                        (Err(a), Err(b)) => prop_assert_eq!(a.detail, b.detail),
                        _ => prop_assert!(false),
                    }
                    came += 1;
                }
            }
            prop_assert_eq!((came, rows.held), (60, 0));
            prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
