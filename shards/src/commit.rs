//! The one commit protocol.
//!
//! ```text
//! stages/bucket/
//!     part-00012.19a3f0c2-1.parquet       data of one attempt: written, synced, closed
//!     part-00012.5b0e7f31.json            the sidecar: created only if absent; it alone commits
//!     quarantine/part-00012.19a3f0c2-1.parquet
//! ```
//!
//! A reader follows sidecars, so it never sees half a shard. Data that no sidecar names is a loser's or a dead process's
//! and is swept when the next run starts.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::ShardError;
use crate::sidecar::Sidecar;

/// Creates `path` with `bytes` unless it exists; afterwards the content survives a power failure. Returns whether this
/// call created it. The content appears all at once: it is written under another name and linked.
pub fn create_if_absent(path: &Path, bytes: &[u8]) -> Result<bool, ShardError> {
    let staged = staging_name(path);
    write_synced(&staged, bytes)?;
    let linked = fs::hard_link(&staged, path);
    let removed = fs::remove_file(&staged);
    match linked {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(e) => return Err(ShardError::io("create", path)(e)),
    }
    removed.map_err(ShardError::io("remove", &staged))?;
    sync_parent(path)?;
    Ok(true)
}

/// Replaces `path` with `bytes` in one step; a reader sees the old content or the new, never a mixture.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), ShardError> {
    let staged = staging_name(path);
    write_synced(&staged, bytes)?;
    fs::rename(&staged, path).map_err(ShardError::io("replace", path))?;
    sync_parent(path)
}

/// Makes a rename or a new name in `path`'s folder durable.
pub fn sync_parent(path: &Path) -> Result<(), ShardError> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|f| f.sync_all()).map_err(ShardError::io("sync", folder))
}

/// Creates a folder and those above it.
pub fn create_folder(path: &Path) -> Result<(), ShardError> {
    fs::create_dir_all(path).map_err(ShardError::io("create the folder", path))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), ShardError> {
    let written = File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|e| {
        // Half a staging file helps nobody, least of all on a full disk.
        let _ = fs::remove_file(path);
        ShardError::io("write", path)(e)
    })
}

fn staging_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", attempt_id()))
}

/// Unique among all processes that share the folder: time, process and a counter.
fn attempt_id() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{:x}-{:x}-{count:x}", nanos >> 10, std::process::id())
}

/// The folder of one stage in a workdir.
#[derive(Clone, Debug)]
pub struct StageFolder {
    path: PathBuf,
}

/// One try at producing a partition: names its files so that no two tries collide.
#[derive(Clone, Debug)]
pub struct Attempt {
    folder: PathBuf,
    partition: String,
    id: String,
}

/// How a commit ended.
#[derive(Debug)]
pub enum Commit {
    /// This attempt's sidecar is the partition's.
    Won,
    /// Another process committed the same fingerprint first; its record stands and this attempt's data was removed.
    Lost(Box<Sidecar>),
}

impl StageFolder {
    pub fn new(workdir: &Path, stage: &str) -> Self {
        Self { path: workdir.join("stages").join(stage) }
    }

    /// The stage folder at `path` itself.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new attempt at `partition`; creates the folders it may write to.
    pub fn attempt(&self, partition: &str) -> Result<Attempt, ShardError> {
        create_folder(&self.path.join("quarantine"))?;
        Ok(Attempt { folder: self.path.clone(), partition: partition.to_owned(), id: attempt_id() })
    }

    /// Commits: from here on the sidecar's data is the partition's output. All its files must be synced and closed.
    pub fn commit(&self, sidecar: &Sidecar) -> Result<Commit, ShardError> {
        let path = self.path.join(sidecar.file_name());
        let bytes = serde_json::to_vec_pretty(sidecar).map_err(|e| ShardError::Record {
            path: path.clone(),
            what: "sidecar",
            detail: e.to_string(),
        })?;
        sync_parent(&path)?;
        if create_if_absent(&path, &bytes)? {
            return Ok(Commit::Won);
        }
        let winner = self.read(&sidecar.file_name())?;
        let kept: HashSet<&str> = files(&winner).collect();
        for file in files(sidecar).filter(|f| !kept.contains(f)) {
            let _ = fs::remove_file(self.path.join(file));
        }
        Ok(Commit::Lost(Box::new(winner)))
    }

    /// The names of all sidecars, sorted. One listing, no reads.
    pub fn sidecar_names(&self) -> Result<Vec<String>, ShardError> {
        let mut names: Vec<String> =
            self.listing()?.into_iter().filter(|n| n.starts_with("part-") && n.ends_with(".json")).collect();
        names.sort();
        Ok(names)
    }

    /// Reads one sidecar by name.
    pub fn read(&self, name: &str) -> Result<Sidecar, ShardError> {
        let path = self.path.join(name);
        let bytes = fs::read(&path).map_err(ShardError::io("read", &path))?;
        Sidecar::parse(&bytes, &path)
    }

    /// Removes what dead or losing attempts left: data files that none of `sidecars` names, and staging files. Only for a
    /// process that holds the workdir's lease. Returns how many files went.
    pub fn sweep<'a>(&self, sidecars: impl Iterator<Item = &'a Sidecar>) -> Result<usize, ShardError> {
        let kept: HashSet<&str> = sidecars.flat_map(files).collect();
        let mut swept = 0;
        for name in self.listing()? {
            let orphan = name.starts_with("part-") && name.ends_with(".parquet") && !kept.contains(name.as_str());
            if orphan || name.starts_with(".part-") {
                let path = self.path.join(&name);
                fs::remove_file(&path).map_err(ShardError::io("remove", &path))?;
                swept += 1;
            }
        }
        let quarantine = Self { path: self.path.join("quarantine") };
        for name in quarantine.listing()? {
            if !kept.contains(format!("quarantine/{name}").as_str()) {
                let path = quarantine.path.join(&name);
                fs::remove_file(&path).map_err(ShardError::io("remove", &path))?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    fn listing(&self) -> Result<Vec<String>, ShardError> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(ShardError::io("list", &self.path)(e)),
        };
        entries
            .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_, _>>()
            .map_err(ShardError::io("list", &self.path))
    }
}

fn files(sidecar: &Sidecar) -> impl Iterator<Item = &str> {
    sidecar.data.iter().chain(&sidecar.quarantine).map(|f| f.file.as_str())
}

impl Attempt {
    /// Where this attempt's data goes: `part-00012.<attempt>.parquet`.
    pub fn data(&self) -> PathBuf {
        self.folder.join(format!("{}.{}.parquet", self.partition, self.id))
    }

    /// Where this attempt's refused rows go.
    pub fn quarantine(&self) -> PathBuf {
        self.folder.join("quarantine").join(format!("{}.{}.parquet", self.partition, self.id))
    }

    /// Removes whatever this attempt wrote. For attempts that failed or were cancelled.
    pub fn abandon(&self) {
        for path in [self.data(), self.quarantine()] {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::digest::Digest;
    use crate::sidecar::{DataFile, FORMAT};

    fn sidecar(file: &str) -> Sidecar {
        Sidecar {
            format: FORMAT,
            stage: "bucket".into(),
            kind: "bucket@1".into(),
            partition: "part-00000".into(),
            fingerprint: Digest::of(b"one"),
            parameters: serde_json::json!({}),
            inputs: Vec::new(),
            data: vec![DataFile { file: file.into(), digest: Digest::of(b"data"), bytes: 4, rows: 1 }],
            quarantine: None,
            rows_in: 1,
            rows_out: 1,
            dropped: BTreeMap::new(),
            observed: BTreeMap::new(),
            sections: Vec::new(),
            details: BTreeMap::new(),
            finished_at: 0,
            seconds: 0.0,
            version: "test".into(),
        }
    }

    #[test]
    fn the_first_sidecar_stands_and_the_losers_data_goes() {
        let workdir = tempfile::tempdir().unwrap();
        let folder = StageFolder::new(workdir.path(), "bucket");
        let [first, second] = [(); 2].map(|()| {
            let attempt = folder.attempt("part-00000").unwrap();
            fs::write(attempt.data(), b"data").unwrap();
            attempt.data().file_name().unwrap().to_string_lossy().into_owned()
        });
        assert!(matches!(folder.commit(&sidecar(&first)).unwrap(), Commit::Won));
        let Commit::Lost(winner) = folder.commit(&sidecar(&second)).unwrap() else { panic!("two winners") };
        assert_eq!(winner.data[0].file, first);
        assert!(folder.path().join(&first).exists());
        assert!(!folder.path().join(&second).exists());
    }

    #[test]
    fn sweeping_removes_what_no_sidecar_names_and_keeps_the_rest() {
        let workdir = tempfile::tempdir().unwrap();
        let folder = StageFolder::new(workdir.path(), "bucket");
        let attempt = folder.attempt("part-00000").unwrap();
        fs::write(attempt.data(), b"data").unwrap();
        let kept = sidecar(&attempt.data().file_name().unwrap().to_string_lossy());
        folder.commit(&kept).unwrap();
        let dead = folder.attempt("part-00001").unwrap();
        fs::write(dead.data(), b"half").unwrap();
        fs::write(dead.quarantine(), b"half").unwrap();
        fs::write(folder.path().join(".part-00001.x.json.1"), b"half").unwrap();
        fs::write(folder.path().join("ledger.json"), b"{}").unwrap();
        assert_eq!(folder.sweep([kept].iter()).unwrap(), 3);
        assert!(attempt.data().exists() && folder.path().join("ledger.json").exists());
        assert_eq!(folder.sidecar_names().unwrap().len(), 1);
    }

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
}
