//! Where a partition's answers lie: in the stage's folder, and of a workdir on a store, there as well.

use std::path::PathBuf;
use std::time::Duration;

use pipeline::stage::StageError;
use recaption::journal::{Cache, Grouping, Hook, Journal, Others, read_folder, read_segment};
use shards::commit::StageFolder;

/// The folder of journals, in the stage's.
const JOURNALS: &str = "captions";
/// On a store each group of answers is an object of its own.
pub(super) const GROUPS_ON_A_STORE: Grouping = Grouping { entries: 512, wait: Duration::from_secs(3) };

/// The journals of one partition.
pub(super) struct Journals<'a> {
    folder: &'a StageFolder,
    /// On this machine.
    path: PathBuf,
    /// In the workdir.
    name: String,
}

impl<'a> Journals<'a> {
    pub(super) fn of(folder: &'a StageFolder, partition: &str) -> Self {
        let path = folder.path().join(JOURNALS).join(partition);
        Self { folder, path, name: folder.name_of(&format!("{JOURNALS}/{partition}")) }
    }

    /// Those of `former` partitions, which may hold answers for rows of others; nothing where there are none.
    ///
    /// Each process that uses them looks through all of them once, so what is no such partition must not be among them: workers that begin
    /// while others write would read each other's journals over and over. Records of this stage would not do to tell. One of an earlier
    /// fingerprint is there after each change of a prompt or a filter, which moves no row; and none is there of what was under way when a run
    /// was killed. So the engine goes by how the source divided its rows.
    pub(super) fn of_former(folder: &StageFolder, former: &[String]) -> Option<Others> {
        (!former.is_empty()).then(|| Others::new(folder.workdir(), folder.name_of(JOURNALS), former.to_vec()))
    }

    /// A segment for the answers of `attempt`, and those of all others.
    pub(super) fn open(&self, attempt: &str) -> Result<(Journal, Cache), StageError> {
        let workdir = self.folder.workdir();
        if !workdir.is_remote() {
            return Journal::open(&self.path, attempt).map_err(StageError::failed);
        }
        let hook: Hook = {
            let (workdir, name, attempt) = (workdir.clone(), self.name.clone(), attempt.to_owned());
            let mut group = 0;
            Box::new(move |bytes| {
                group += 1;
                let stored = workdir.create_if_absent(&format!("{name}/{attempt}-{group:06}.jsonl"), bytes);
                stored.map(drop).map_err(std::io::Error::other)
            })
        };
        let opened = Journal::open_with(&self.path, attempt, GROUPS_ON_A_STORE, Some(hook));
        let (journal, mut cache) = opened.map_err(StageError::failed)?;
        self.read_store(&mut cache)?;
        Ok((journal, cache))
    }

    /// The answers of all attempts.
    pub(super) fn read(&self) -> Result<Cache, StageError> {
        let mut cache = read_folder(&self.path).map_err(StageError::failed)?;
        if self.folder.workdir().is_remote() {
            self.read_store(&mut cache)?;
        }
        Ok(cache)
    }

    fn read_store(&self, cache: &mut Cache) -> Result<(), StageError> {
        let (workdir, name) = (self.folder.workdir(), &self.name);
        for entry in workdir.list(name, false)? {
            let Some(bytes) = workdir.read(&format!("{name}/{}", entry.name))? else { continue };
            // Read from memory: it cannot fail.
            let _ = read_segment(bytes.as_slice(), |key, entry| cache.insert(key, entry));
        }
        Ok(())
    }

    /// Adds a whole segment, which must be new. It is durable when this returns.
    pub(super) fn add(&self, attempt: &str, segment: &[u8]) -> Result<(), StageError> {
        let name = format!("{}/{attempt}.jsonl", self.name);
        if !self.folder.workdir().create_if_absent(&name, segment)? {
            return Err(StageError::failed(format!("{name} is there already")));
        }
        Ok(())
    }
}
