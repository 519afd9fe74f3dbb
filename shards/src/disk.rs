//! The changes that are made to a local disk. Each is durable when it returns, unless it says otherwise, and each is a point
//! where a test can let it fail (see [`crate::fault`]).

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::ShardError;
use crate::fault::{self, Fault, Operation, point};

/// Creates `path` with `bytes` unless it exists; afterwards the content survives a power failure. Returns whether this
/// call created it. The content appears all at once: it is written under another name and linked.
pub fn create_if_absent(path: &Path, bytes: &[u8]) -> Result<bool, ShardError> {
    let staged = staging_name(path);
    write_synced(&staged, bytes)?;
    let linked = link_if_absent(&staged, path);
    let removed = point(Operation::Remove).and_then(|()| fs::remove_file(&staged));
    if !linked.map_err(ShardError::io("create", path))? {
        return Ok(false);
    }
    // A staging file that stays is swept later.
    drop(removed);
    // A name that may not survive a power failure is taken back: its creator is told that there is none, and may clear away
    // what the file speaks of.
    sync_parent(path).inspect_err(|_| drop(remove(path)))?;
    Ok(true)
}

/// As [`create_if_absent`], all at once, but not durable: for claims, which a power failure ends anyway.
pub(crate) fn claim(path: &Path, bytes: &[u8]) -> Result<bool, ShardError> {
    let staged = staging_name(path);
    let written = point(Operation::Write).and_then(|()| fs::write(&staged, bytes));
    let linked = written.and_then(|()| link_if_absent(&staged, path));
    let _ = point(Operation::Remove).and_then(|()| fs::remove_file(&staged));
    linked.map_err(ShardError::io("create", path))
}

/// Gives the file at `staged`, to which nobody else links, the name `path` too, unless that exists. Returns whether this call
/// gave it.
fn link_if_absent(staged: &Path, path: &Path) -> io::Result<bool> {
    match point(Operation::Link).and_then(|()| fs::hard_link(staged, path)) {
        Ok(()) => Ok(true),
        // Where an NFS server's answer is lost, the client asks again, and what it is told of may be its own link.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(is_same_file(staged, path)),
        Err(error) => Err(error),
    }
}

/// Whether two names are of one file, which equal contents do not say.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let file = |path: &Path| fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
    file(one).is_some_and(|found| file(other) == Some(found))
}

/// Replaces `path` with `bytes` in one step; a reader sees the old content or the new, never a mixture.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), ShardError> {
    let staged = staging_name(path);
    write_synced(&staged, bytes)?;
    rename(&staged, path)?;
    sync_parent(path)
}

/// As [`replace`], but not durable: for heartbeats, which are written anew every few seconds.
pub(crate) fn replace_soon(path: &Path, bytes: &[u8]) -> Result<(), ShardError> {
    let staged = staging_name(path);
    let written = point(Operation::Write).and_then(|()| fs::write(&staged, bytes));
    written.map_err(ShardError::io("write", &staged))?;
    rename(&staged, path)
}

/// Moves a file within its file system. Durable once the folder is synced.
pub fn rename(from: &Path, to: &Path) -> Result<(), ShardError> {
    point(Operation::Rename).and_then(|()| fs::rename(from, to)).map_err(ShardError::io("replace", to))
}

/// Gives a file of this file system another name, which must not exist. Durable once the folder is synced.
pub fn link(from: &Path, to: &Path) -> Result<(), ShardError> {
    point(Operation::Link).and_then(|()| fs::hard_link(from, to)).map_err(ShardError::io("link", to))
}

/// Removes a file; one that is gone already is no error.
pub fn remove(path: &Path) -> Result<(), ShardError> {
    match point(Operation::Remove).and_then(|()| fs::remove_file(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ShardError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Makes a rename or a new name in `path`'s folder durable.
pub fn sync_parent(path: &Path) -> Result<(), ShardError> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = point(Operation::Sync).and_then(|()| fs::File::open(folder)).and_then(|f| f.sync_all());
    synced.map_err(ShardError::io("sync", folder))
}

/// Creates a folder and those above it.
pub fn create_folder(path: &Path) -> Result<(), ShardError> {
    if path.is_dir() {
        return Ok(());
    }
    let created = point(Operation::CreateFolder).and_then(|()| fs::create_dir_all(path));
    created.map_err(ShardError::io("create the folder", path))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), ShardError> {
    let written = File::create_new(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync()
    });
    written.map_err(|e| {
        // Half a staging file helps nobody, least of all on a full disk.
        let _ = fs::remove_file(path);
        ShardError::io("write", path)(e)
    })
}

/// `.NAME.<unique>` beside `path`.
pub(crate) fn staging_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", unique()))
}

/// Hexadecimal digits, unique among all processes that share a folder: time, process and a counter.
pub fn unique() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{:x}{:06x}{count:x}", nanos >> 10, std::process::id())
}

/// A new file whose writes and syncs are points.
#[derive(Debug)]
pub(crate) struct File(fs::File);

impl File {
    pub(crate) fn create_new(path: &Path) -> io::Result<Self> {
        point(Operation::Create)?;
        fs::File::create_new(path).map(Self)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        point(Operation::Sync)?;
        self.0.sync_all()
    }
}

impl Write for File {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match fault::strike(Operation::Write) {
            None => self.0.write(buffer),
            Some(Fault::End) => {
                let _ = self.0.write_all(buffer.get(..buffer.len() / 2).unwrap_or_default());
                std::process::abort()
            }
            Some(fault) => Err(fault.error()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creation_is_exclusive_among_threads() {
        let workdir = tempfile::tempdir().unwrap();
        let path = workdir.path().join("claim");
        let winners: usize = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8)
                .map(|i| {
                    scope.spawn({
                        let path = &path;
                        move || create_if_absent(path, &[i]).unwrap()
                    })
                })
                .collect();
            tries.into_iter().filter_map(|t| t.join().unwrap().then_some(())).count()
        });
        assert_eq!(winners, 1);
        assert_eq!(fs::read_dir(workdir.path()).unwrap().count(), 1, "staging files are gone");
    }

    #[test]
    fn a_link_whose_answer_was_lost_is_ours_and_another_file_is_not() {
        let workdir = tempfile::tempdir().unwrap();
        let [staged, ours, theirs] = [".claim.1", "ours", "theirs"].map(|name| workdir.path().join(name));
        fs::write(&staged, b"runner").unwrap();
        // What the first try did, as the second finds it.
        fs::hard_link(&staged, &ours).unwrap();
        assert!(link_if_absent(&staged, &ours).unwrap());
        // The same content says nothing: one runner may try twice.
        fs::write(&theirs, b"runner").unwrap();
        assert!(!link_if_absent(&staged, &theirs).unwrap());
        assert!(!claim(&theirs, b"runner").unwrap() && !create_if_absent(&theirs, b"runner").unwrap());
        assert!(link_if_absent(&staged, &workdir.path().join("new")).unwrap());
        assert!(link_if_absent(&workdir.path().join("gone"), &workdir.path().join("other")).is_err());
    }
}
