//! Captions of lists by their keys, for lists that are too long for memory.

use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::BuildHasher;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{LineFault, Ready, ReadyCaptions, ReadyColumns, ReadyError};

/// What lists hold, read once. In memory there are 16 bytes of each row; its captions are in a file without a name, which goes
/// away with this.
#[derive(Debug)]
pub struct ReadyIndex {
    folder: PathBuf,
    file: File,
    hashes: RandomState,
    /// Of each row, the hash of its key and where its captions lie: ascending.
    places: Vec<(u64, u64)>,
}

impl ReadyIndex {
    /// Reads `lists`, whose captions are kept in `folder`. A row without captions is as if it were not there; of rows of one key the
    /// last one counts.
    ///
    /// # Errors
    /// A list that cannot be read, the first line that is wrong, or no room in `folder`.
    pub fn read(lists: &[PathBuf], columns: &ReadyColumns, folder: &Path) -> Result<Self, ReadyError> {
        let failed = |source| ReadyError::Keep { folder: folder.to_owned(), source };
        let file = std::fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder)).map_err(failed)?;
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        let (hashes, mut places, mut at) = (RandomState::new(), Vec::new(), 0);
        for list in lists {
            for row in Ready::open(list, columns.clone())? {
                let row = match row {
                    Err(ReadyError::Line { fault: LineFault::Empty, .. }) => continue,
                    row => row?,
                };
                let bytes = serde_json::to_vec(&row).unwrap_or_default();
                places.push((hashes.hash_one(&row.key), at));
                let length = (bytes.len() as u64).to_le_bytes();
                writer.write_all(&length).and_then(|()| writer.write_all(&bytes)).map_err(failed)?;
                at += (length.len() + bytes.len()) as u64;
            }
        }
        let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
        places.sort_unstable();
        Ok(Self { folder: folder.to_owned(), file, hashes, places })
    }

    /// The captions of a key, if there are some.
    pub fn get(&self, key: &str) -> Result<Option<ReadyCaptions>, ReadyError> {
        let hash = self.hashes.hash_one(key);
        let end = self.places.partition_point(|(of, _)| *of <= hash);
        let of_hash = self.places.iter().take(end).rev().take_while(|(of, _)| *of == hash);
        for (_, at) in of_hash {
            let row = self.row(*at).map_err(|source| ReadyError::Keep { folder: self.folder.clone(), source })?;
            if row.key == key {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    fn row(&self, at: u64) -> std::io::Result<ReadyCaptions> {
        let mut length = [0; 8];
        self.file.read_exact_at(&mut length, at)?;
        let mut bytes = vec![0; u64::from_le_bytes(length) as usize];
        self.file.read_exact_at(&mut bytes, at + length.len() as u64)?;
        Ok(serde_json::from_slice(&bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_captions_the_last_ones_of_all_lists() {
        let folder = tempfile::tempdir().unwrap();
        let lists = [0..300, 200..500].map(|rows| {
            let path = folder.path().join(format!("{}.jsonl", rows.start));
            let line = |n: i32| format!("{{\"key\":\"{n}\",\"caption_llava\":\"{n} of {}\"}}\n", rows.start);
            std::fs::write(
                &path,
                rows.clone().map(line).collect::<String>() + "{\"key\":\"7\",\"caption_llava\":\"\"}\n",
            )
            .unwrap();
            path
        });
        let kept = folder.path().join("kept");
        let mut index = ReadyIndex::read(&lists, &ReadyColumns::default(), &kept).unwrap();
        assert_eq!(kept.read_dir().unwrap().count(), 0, "a file without a name");
        let check = |index: &ReadyIndex| {
            for n in 0..500 {
                let long = index.get(&n.to_string()).unwrap().unwrap().long.unwrap();
                assert_eq!(long, format!("{n} of {}", if n < 200 { 0 } else { 200 }));
            }
            assert_eq!(index.get("500").unwrap(), None);
        };
        check(&index);
        // Keys of one hash are told apart.
        let hash = index.hashes.hash_one("3");
        let at = |key: &str| {
            let of = index.hashes.hash_one(key);
            index.places.iter().position(|(hash, _)| *hash == of).unwrap()
        };
        let (three, four) = (index.places[at("3")], index.places[at("4")]);
        index.places = vec![(hash, three.1), (hash, four.1)];
        index.places.sort_unstable();
        assert_eq!(index.get("3").unwrap().unwrap().key, "3");
        assert_eq!(ReadyIndex::read(&[], &ReadyColumns::default(), &kept).unwrap().get("3").unwrap(), None);
    }
}
