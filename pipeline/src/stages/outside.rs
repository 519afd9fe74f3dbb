//! Large files from outside: where they lie, and what tells them apart.
//!
//! A file is known by the name of its place's folder and its path below that (`laion/00000.tar`), so that a dataset may move as
//! a whole. Its digest is of its size, its first and last 64 KiB and 16 blocks of 4 KiB between: to plan over terabytes, not
//! all of them can be read. A tar that is written anew has other sizes in its headers, or another end, and is seen, and so is a
//! parquet file, whose footer is at its end; one in which somebody changed bytes in place, at the same size and outside these
//! blocks, is not. Times are not in the digest: copies keep it. They only say when it has to be computed again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use shards::digest::{Digest, DigestBuilder};
use shards::disk;
use shards::reader::Shard;

use crate::stage::{StageError, Task};

/// What files are looked for.
#[derive(Debug)]
pub(super) struct FileKind {
    /// The key of the manifest that says where.
    pub(super) key: &'static str,
    /// What one is called.
    pub(super) one: &'static str,
    /// How names end, in small letters.
    pub(super) endings: &'static [&'static str],
}

impl FileKind {
    pub(super) fn is_one(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        self.endings.iter().any(|ending| name.ends_with(ending))
    }
}

/// Why files cannot be had.
#[derive(Debug, thiserror::Error)]
enum OutsideError {
    #[error("no {} is at {place}; {}s are files that end in {}", .kind.one, .kind.one, in_a_row(.kind.endings))]
    None { place: String, kind: &'static FileKind },
    #[error(
        "{} and {} are both {name}, folder and file: rename one of the folders, or {}s could not be told apart",
        .first.display(), .second.display(), .kind.one
    )]
    SameName { name: String, first: PathBuf, second: PathBuf, kind: &'static FileKind },
}

/// `.tar, .tar.gz or .tgz`
pub(super) fn in_a_row(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [others @ .., last] => format!("{} or {last}", others.join(", ")),
    }
}

const EDGE: u64 = 64 << 10;
const PROBES: u64 = 16;
const PROBE: u64 = 4 << 10;

/// A folder, and which of its files are meant.
#[derive(Clone, Debug)]
struct Place {
    kind: &'static FileKind,
    folder: PathBuf,
    /// The folder's own name.
    name: String,
    which: Which,
}

#[derive(Clone, Debug)]
enum Which {
    /// Those of the folder and the folders below it.
    All,
    /// Those of the folder itself that match a pattern.
    Matching(String),
    One(String),
}

/// Where files lie.
#[derive(Clone, Debug)]
pub(super) struct Places(Vec<Place>);

/// A file as it lies there.
#[derive(Clone, Debug)]
struct Found {
    path: PathBuf,
    state: State,
}

/// What the file system says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) bytes: u64,
    /// Nanoseconds since 1970.
    pub(super) modified: u64,
}

/// A file of a plan.
#[derive(Clone, Debug)]
pub(super) struct OutsideFile {
    pub(super) name: String,
    /// Where it lies; `None` when it is gone, and only remembered.
    pub(super) path: Option<PathBuf>,
    pub(super) state: State,
    pub(super) digest: Digest,
}

impl OutsideFile {
    /// Its name without folders.
    pub(super) fn file_name(&self) -> &str {
        file_name(&self.name)
    }

    /// The fingerprint says which bytes these are: an error where it is another file by now.
    pub(super) fn expect_unchanged(&self) -> Result<(), StageError> {
        let path = self.path.clone().unwrap_or_default();
        let now = look(&path).map_err(StageError::io("look at", &path))?;
        if now == self.state { Ok(()) } else { Err(StageError::Changed { path }) }
    }

    /// The rows of a parquet file, to judge how much there is to do. One that cannot be read counts as empty: whoever makes
    /// something of it says why, and nothing else need wait for that.
    pub(super) fn parquet_rows(&self) -> u64 {
        self.path.as_deref().and_then(|path| Shard::open(path).ok()).map_or(0, |shard| shard.rows())
    }
}

/// The files that the last plan found, in their order. One that came since would move those of all partitions behind it.
#[derive(Debug, Default)]
pub(super) struct PlannedFiles(Mutex<Option<Arc<Vec<OutsideFile>>>>);

impl PlannedFiles {
    pub(super) fn set(&self, files: Vec<OutsideFile>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(files));
    }

    /// All of them.
    pub(super) fn all(&self, task: &Task) -> Result<Arc<Vec<OutsideFile>>, StageError> {
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        files.ok_or_else(|| StageError::NotPlanned { partition: task.partition.to_owned() })
    }

    /// The one of a partition.
    pub(super) fn of(&self, task: &Task) -> Result<OutsideFile, StageError> {
        let file = self.all(task)?.get(task.number).cloned();
        file.ok_or_else(|| StageError::NotPlanned { partition: task.partition.to_owned() })
    }
}

pub(super) fn file_name(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

impl Places {
    /// Folders, files and patterns as they were written; a fault in words.
    pub(super) fn read(written: &[String], kind: &'static FileKind) -> Result<Self, String> {
        if written.is_empty() {
            return Err(format!("{} is an empty list", kind.key));
        }
        written.iter().map(|text| Place::read(text, kind)).collect::<Result<_, _>>().map(Self)
    }

    /// The places as they were written, from the root on.
    pub(super) fn absolute(&self) -> Vec<String> {
        let absolute = |place: &Place| {
            let path = place.in_words();
            std::path::absolute(&path).map_or(path, |path| path.to_string_lossy().into_owned())
        };
        self.0.iter().map(absolute).collect()
    }

    /// The name of the first folder.
    pub(super) fn name(&self) -> String {
        self.0.first().map_or("files", |place| place.name.as_str()).to_owned()
    }

    /// A file's name below its folder, where all places are in folders of one name; else as it is.
    pub(super) fn within<'name>(&self, name: &'name str) -> &'name str {
        let folder = self.0.first().map_or("", |place| place.name.as_str());
        let below = name.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
        below.filter(|_| self.0.iter().all(|place| place.name == folder)).unwrap_or(name)
    }

    /// All files that are there, by name.
    fn find(&self) -> Result<BTreeMap<String, Found>, StageError> {
        let mut found: BTreeMap<String, Found> = BTreeMap::new();
        for place in &self.0 {
            for (name, path) in place.list()? {
                let state = match look(&path) {
                    Ok(state) => state,
                    // Another run may just have removed it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(StageError::io("look at", &path)(error)),
                };
                match found.get(&name) {
                    Some(other) if !is_same(&other.path, &path) => {
                        let (first, second) = (other.path.clone(), path);
                        let same = OutsideError::SameName { name, first, second, kind: place.kind };
                        return Err(StageError::failed(same));
                    }
                    Some(_) => {}
                    None => drop(found.insert(name, Found { path, state })),
                }
            }
        }
        Ok(found)
    }

    /// All files that are there, by name, each with its digest. `memory` is a folder to remember digests in. An error when there
    /// is none at some place, unless some that are `remembered` are gone.
    pub(super) fn files(
        &self,
        memory: &Path,
        remembered: &[&str],
    ) -> Result<BTreeMap<String, OutsideFile>, StageError> {
        let found = self.find()?;
        let empty = self.0.iter().find(|place| !found.keys().any(|name| place.is_for(name)));
        if let Some(empty) = empty
            && remembered.iter().all(|name| found.contains_key(*name))
        {
            return Err(StageError::failed(OutsideError::None { place: empty.in_words(), kind: empty.kind }));
        }
        Known::read(memory).complete(found, memory)
    }
}

fn is_same(a: &Path, b: &Path) -> bool {
    a == b || fs::canonicalize(a).ok().zip(fs::canonicalize(b).ok()).is_some_and(|(a, b)| a == b)
}

impl Place {
    fn read(text: &str, kind: &'static FileKind) -> Result<Self, String> {
        let FileKind { key, one, .. } = kind;
        if text.contains("://") {
            return Err(format!(
                "{key}: {text} is not on this machine; fetch the {one}s first, or mount the store they are on"
            ));
        }
        let path = Path::new(text);
        let (folder, which) = if path.is_dir() {
            (path, Which::All)
        } else {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let exists = path.exists();
            if !exists && !name.contains(['*', '?']) && !kind.is_one(&name) {
                return Err(format!("{key}: there is no {text}"));
            }
            let which = if !exists && name.contains(['*', '?']) { Which::Matching(name) } else { Which::One(name) };
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            (folder.unwrap_or(Path::new(".")), which)
        };
        if let Err(error) = fs::read_dir(folder) {
            return Err(format!("{key}: the folder {} cannot be read: {error}", folder.display()));
        }
        let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let name = absolute.file_name().map_or_else(|| "files".to_owned(), |name| name.to_string_lossy().into_owned());
        Ok(Self { kind, folder: folder.to_owned(), name, which })
    }

    /// Names and paths of what is there.
    fn list(&self) -> Result<Vec<(String, PathBuf)>, StageError> {
        let mut found = Vec::new();
        match &self.which {
            Which::One(file) => found.push((file.clone(), self.folder.join(file))),
            Which::Matching(pattern) => {
                self.look(false, &mut found)?;
                found.retain(|(name, _)| matches(pattern, name));
            }
            Which::All => self.look(true, &mut found)?,
        }
        Ok(found.into_iter().map(|(name, path)| (format!("{}/{name}", self.name), path)).collect())
    }

    /// Looks for files of its kind in its folder, and in those below it where it goes deep.
    fn look(&self, deep: bool, found: &mut Vec<(String, PathBuf)>) -> Result<(), StageError> {
        let walked = walk(&self.folder, &mut |name, path, metadata| {
            if !metadata.is_some_and(fs::Metadata::is_dir) && self.kind.is_one(name) {
                found.push((name.to_owned(), path.to_owned()));
            }
            deep
        });
        walked.map_err(not_listed)
    }

    /// Whether a file of this name is one of this place.
    fn is_for(&self, name: &str) -> bool {
        let name = name.strip_prefix(&self.name).and_then(|rest| rest.strip_prefix('/'));
        name.is_some_and(|name| match &self.which {
            Which::All => true,
            Which::Matching(pattern) => matches(pattern, name),
            Which::One(file) => file == name,
        })
    }

    fn in_words(&self) -> String {
        match &self.which {
            Which::All => self.folder.display().to_string(),
            Which::Matching(file) | Which::One(file) => self.folder.join(file).display().to_string(),
        }
    }
}

/// What is shown of what is in a folder: its name below that, with `/` between folders, its path, and what it is; `None` where it is a
/// link that leads nowhere, or has gone. Of a folder, the answer says whether to enter it.
type Visit<'a> = dyn FnMut(&str, &Path, Option<&fs::Metadata>) -> bool + 'a;

/// Shows all that is in a folder. Links are followed, and each folder is entered once, however many links lead to it: one that is in the
/// tree without a link by that name, another by that of the first link. An error comes with the folder that it is about.
pub(super) fn walk(folder: &Path, visit: &mut Visit) -> Result<(), (PathBuf, io::Error)> {
    let mut entered = BTreeSet::new();
    // Links come after the whole of the tree, else a new one could give other names to what is in it.
    let mut links = VecDeque::from([(folder.to_owned(), String::new())]);
    while let Some((folder, prefix)) = links.pop_front() {
        walk_below(&folder, &prefix, &mut entered, &mut links, visit)?;
    }
    Ok(())
}

/// Shows what can be reached without links to folders; of those, tells where they are, and what names below them begin with.
fn walk_below(
    folder: &Path,
    prefix: &str,
    entered: &mut BTreeSet<PathBuf>,
    links: &mut VecDeque<(PathBuf, String)>,
    visit: &mut Visit,
) -> Result<(), (PathBuf, io::Error)> {
    let failed = |error: io::Error| (folder.to_owned(), error);
    if !entered.insert(folder.canonicalize().map_err(failed)?) {
        return Ok(());
    }
    let all = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut all = all.map_err(failed)?;
    all.sort_by_key(fs::DirEntry::file_name);
    for found in all {
        let (name, path) = (format!("{prefix}{}", found.file_name().to_string_lossy()), found.path());
        let metadata = fs::metadata(&path).ok();
        if !visit(&name, &path, metadata.as_ref()) || !metadata.is_some_and(|metadata| metadata.is_dir()) {
            continue;
        }
        let prefix = format!("{name}/");
        if path.is_symlink() {
            links.push_back((path, prefix));
        } else {
            walk_below(&path, &prefix, entered, links, visit)?;
        }
    }
    Ok(())
}

/// For `map_err` on [`walk`].
pub(super) fn not_listed((folder, error): (PathBuf, io::Error)) -> StageError {
    StageError::io("list", &folder)(error)
}

/// Whether `name` is as `pattern` says, in which `*` stands for any letters and `?` for one.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let [pattern, name] = [pattern, name].map(|text| text.chars().collect::<Vec<_>>());
    let (mut p, mut n) = (0, 0);
    // After the last star, and what it stands for up to now.
    let mut back: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                p += 1;
                back = Some((p, n));
            }
            Some(letter) if *letter == '?' || name.get(n) == Some(letter) => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((after, taken)) = back else { return false };
                back = Some((after, taken + 1));
                (p, n) = (after, taken + 1);
            }
        }
    }
    pattern.get(p..).is_some_and(|rest| rest.iter().all(|letter| *letter == '*'))
}

/// What the file system says of a file.
pub(super) fn look(path: &Path) -> io::Result<State> {
    fs::metadata(path).map(|metadata| State::of(&metadata))
}

impl State {
    pub(super) fn of(metadata: &fs::Metadata) -> Self {
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self { bytes: metadata.len(), modified: modified.map_or(0, |time| time.as_nanos() as u64) }
    }
}

/// The digest of a file of this size: see the top of this file.
pub(super) fn digest(path: &Path, bytes: u64) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut digest = DigestBuilder::new().part(bytes.to_le_bytes());
    for (offset, length) in blocks(bytes) {
        file.seek(SeekFrom::Start(offset))?;
        let mut block = Vec::with_capacity(length as usize);
        file.by_ref().take(length).read_to_end(&mut block)?;
        digest.add(&block);
    }
    Ok(digest.finish())
}

/// Offsets and lengths of what is read for a digest.
fn blocks(bytes: u64) -> Vec<(u64, u64)> {
    let between = bytes.saturating_sub(2 * EDGE);
    if between <= PROBES * PROBE {
        return vec![(0, bytes)];
    }
    let probes = (0..PROBES).map(|i| (EDGE + i * (between / PROBES), PROBE));
    std::iter::once((0, EDGE)).chain(probes).chain([(bytes - EDGE, EDGE)]).collect()
}

/// Digests of files as they were when they were computed, so that a plan does not read them all again. Only a cache.
#[derive(Default, Serialize, Deserialize)]
struct Known {
    format: u32,
    /// By path.
    files: BTreeMap<String, Seen>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    bytes: u64,
    modified: u64,
    digest: Digest,
}

impl Known {
    const FORMAT: u32 = 2;

    fn file(memory: &Path) -> PathBuf {
        memory.join("known.json")
    }

    fn read(memory: &Path) -> Self {
        // What is damaged, or of another version, is computed anew.
        let known = fs::read(Self::file(memory)).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        known.filter(|known| known.format == Self::FORMAT).unwrap_or_default()
    }

    fn complete(
        &self,
        found: BTreeMap<String, Found>,
        memory: &Path,
    ) -> Result<BTreeMap<String, OutsideFile>, StageError> {
        let with_digest = |(name, Found { path, state }): (String, Found)| -> Result<OutsideFile, StageError> {
            let seen = self.files.get(&*path.to_string_lossy());
            let seen = seen.filter(|seen| (seen.bytes, seen.modified) == (state.bytes, state.modified));
            let digest = match seen {
                Some(seen) => seen.digest,
                None => digest(&path, state.bytes).map_err(StageError::io("read", &path))?,
            };
            Ok(OutsideFile { name, path: Some(path), state, digest })
        };
        let files: Vec<OutsideFile> = found.into_par_iter().map(with_digest).collect::<Result<_, _>>()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // A file that was changed just now may change again within the same tick of its clock.
        let settled = now.saturating_sub(Duration::from_secs(2)).as_nanos() as u64;
        let seen = files.iter().filter(|file| file.state.modified < settled).filter_map(|file| {
            let State { bytes, modified } = file.state;
            Some((file.path.as_ref()?.to_string_lossy().into_owned(), Seen { bytes, modified, digest: file.digest }))
        });
        let new = Self { format: Self::FORMAT, files: seen.collect() };
        if new.files != self.files
            && let Ok(bytes) = serde_json::to_vec(&new)
        {
            // Without it, the next plan takes longer.
            let _ = disk::create_folder(memory).and_then(|()| disk::replace(&Self::file(memory), &bytes));
        }
        Ok(files.into_iter().map(|file| (file.name.clone(), file)).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_and_each_folder_is_entered_once() {
        static KIND: FileKind = FileKind { key: "tars", one: "tar", endings: &[".tar"] };
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("tars/more")).unwrap();
        fs::create_dir(path("elsewhere")).unwrap();
        fs::write(path("tars/more/b.tar"), "b").unwrap();
        fs::write(path("elsewhere/c.tar"), "c").unwrap();
        symlink(path("elsewhere"), path("tars/linked")).unwrap();
        symlink(path("elsewhere/c.tar"), path("tars/a.tar")).unwrap();
        symlink(path("tars"), path("tars/more/back")).unwrap();
        // To folders that are in the tree anyway: beside them, before them and through another link.
        symlink(path("tars/more"), path("tars/current")).unwrap();
        fs::create_dir(path("tars/first")).unwrap();
        symlink(path("tars/more"), path("tars/first/more")).unwrap();
        symlink(path("elsewhere"), path("tars/more/again")).unwrap();
        symlink(path("nowhere"), path("tars/gone.tar")).unwrap();
        let names = |written: String| {
            let places = Places::read(&[written], &KIND).unwrap();
            places.find().unwrap().into_keys().collect::<Vec<_>>()
        };
        let tars = path("tars").display().to_string();
        assert_eq!(names(tars.clone()), ["tars/a.tar", "tars/linked/c.tar", "tars/more/b.tar"]);
        assert_eq!(names(format!("{tars}/*.tar")), ["tars/a.tar"]);
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, name) in [("*.tar", "00.tar"), ("*", ""), ("0?.t*r", "00.tar"), ("*a*b", "aabab"), ("a**", "a")] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("*.tar", "00.tar.gz"), ("?", ""), ("", "a"), ("a?", "a"), ("*b", "ba"), ("00", "0")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        assert!(!matches(&format!("{}b", "*a".repeat(200)), &"a".repeat(2000)), "in no time");
    }

    #[test]
    fn small_files_are_read_whole_and_large_ones_at_both_ends_and_between() {
        assert_eq!(blocks(0), [(0, 0)]);
        assert_eq!(blocks(192 << 10), [(0, 192 << 10)]);
        let blocks = blocks((192 << 10) + 1);
        assert_eq!((blocks.len(), blocks[0], blocks[17]), (18, (0, EDGE), ((128 << 10) + 1, EDGE)));
        assert!(blocks.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
    }
}
