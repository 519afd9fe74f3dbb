//! The SHA-256 of each file, by which the Hub knows it. Computed once: a file in the stage's folder remembers it by the digest
//! that our records have. It is only a cache, and may be deleted.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use shards::commit::StageFolder;
use shards::digest::Digest;

use super::files::PublishedFile;
use super::{PublishError, unreadable};
use crate::remote::digest_of;
use crate::stage::{Cancel, StageError};

const FILE: &str = "sha256.json";
const FORMAT: u32 = 1;
/// Files that are read at a time.
const AT_A_TIME: usize = 2;

#[derive(Default, Serialize, Deserialize)]
struct Known {
    format: u32,
    sha256: BTreeMap<Digest, String>,
}

/// What is known of files, and what is being found out.
pub(super) struct Digests<'a> {
    folder: &'a StageFolder,
    cancel: &'a Cancel,
    known: Mutex<Known>,
}

/// Ends the reading of a file when nobody waits for it any more.
#[derive(Default)]
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<'a> Digests<'a> {
    pub(super) fn read(folder: &'a StageFolder, cancel: &'a Cancel) -> Self {
        let bytes = folder.workdir().read(&folder.name_of(FILE)).ok().flatten();
        let known = bytes.and_then(|bytes| serde_json::from_slice::<Known>(&bytes).ok());
        let known = known.filter(|known| known.format == FORMAT).unwrap_or_default();
        Self { folder, cancel, known: Mutex::new(known) }
    }

    /// The SHA-256 of each of `files`, in hexadecimal.
    pub(super) async fn of(&self, files: &[&PublishedFile]) -> Result<Vec<String>, StageError> {
        futures::stream::iter(files).map(|file| self.of_one(file)).buffered(AT_A_TIME).try_collect().await
    }

    async fn of_one(&self, file: &PublishedFile) -> Result<String, StageError> {
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).sha256.get(&file.digest) {
            return Ok(known.clone());
        }
        let stop = Stop::default();
        let (path, flag, cancel) = (file.path.clone(), Arc::clone(&stop.0), self.cancel.clone());
        let is_over = move || flag.load(Ordering::Relaxed) || cancel.is_cancelled();
        let found = tokio::task::spawn_blocking(move || sha256(&path, is_over)).await;
        let ended = |_early| StageError::from(PublishError::Thread(file.name.clone()));
        let found = found.map_err(ended)?.map_err(unreadable(&file.path))?.ok_or(StageError::Cancelled)?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).sha256.insert(file.digest, found.clone());
        Ok(found)
    }

    /// Remembers what is known of `files`, and forgets others.
    pub(super) fn save(&self, files: &[&PublishedFile]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted: BTreeMap<Digest, String> =
            files.iter().filter_map(|file| Some((file.digest, known.sha256.get(&file.digest)?.clone()))).collect();
        *known = Known { format: FORMAT, sha256: wanted };
        if let Ok(bytes) = serde_json::to_vec(&*known) {
            // Without it, the next publication reads all files once more.
            let _ = self.folder.workdir().replace_soon(&self.folder.name_of(FILE), &bytes);
        }
    }
}

/// `None` where it was over before the end.
fn sha256(path: &Path, is_over: impl Fn() -> bool) -> std::io::Result<Option<String>> {
    digest_of(path, Sha256::new(), is_over)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &Path, content: &[u8]) -> PublishedFile {
        std::fs::write(path, content).unwrap();
        let (name, digest) = ("data/x".to_owned(), Digest::of(content));
        PublishedFile { name, path: path.to_owned(), bytes: content.len() as u64, rows: 1, digest }
    }

    #[test]
    fn a_file_is_read_once_and_its_sha256_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let stage = StageFolder::at(&folder.path().join("publish"));
        std::fs::create_dir_all(stage.path()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (one, two) = (file(&folder.path().join("1"), b"hello\n"), file(&folder.path().join("2"), b""));
        let cancel = Cancel::default();
        let digests = Digests::read(&stage, &cancel);
        let found = runtime.block_on(digests.of(&[&one, &two])).unwrap();
        assert_eq!(found[0], "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
        assert_eq!(found[1], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        digests.save(&[&one]);
        std::fs::remove_file(&one.path).unwrap();
        std::fs::remove_file(&two.path).unwrap();
        let digests = Digests::read(&stage, &cancel);
        assert_eq!(runtime.block_on(digests.of(&[&one])).unwrap(), found[..1]);
        assert!(runtime.block_on(digests.of(&[&two])).is_err(), "it was forgotten, and its file is gone");
    }

    #[test]
    fn reading_ends_when_it_is_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let (stage, cancel) = (StageFolder::at(folder.path()), Cancel::default());
        let file = file(&folder.path().join("1"), b"hello\n");
        cancel.cancel();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let ended = runtime.block_on(Digests::read(&stage, &cancel).of(&[&file]));
        assert!(matches!(ended, Err(StageError::Cancelled)));
    }
}
