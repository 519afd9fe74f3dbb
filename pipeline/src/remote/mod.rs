//! Files that lie elsewhere: which there are, bringing one of them here, and ([`upload`]) bringing files of this machine there.
//!
//! A transfer to here that breaks off goes on where it was, in this process or the next, as long as the other side still has
//! the same content.

mod hub;
mod location;
mod store;
pub(crate) mod upload;
mod web;

use std::fs;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use shards::ShardError;

use crate::stage::StageError;

pub(crate) use self::location::{Entries, Entry, Location, Repository, RepositoryKind, without_secrets};

/// A folder elsewhere with more files than this is refused before they fill the memory.
const MOST_FILES: usize = 1_000_000;
/// Failures in a row without a byte gained, before a transfer is given up, where the caller does not say.
pub(crate) const FAILURES: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait of our own choice, and the longest that the other side may ask for.
const LONGEST_OWN_WAIT: Duration = Duration::from_secs(30);
const LONGEST_WAIT: Duration = Duration::from_mins(1);

type OpenStore = dyn Fn(&str) -> Result<Arc<dyn ObjectStore>, object_store::Error> + Send + Sync;

/// Why something elsewhere was not had. Holds no URL's query and no token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    /// The network, or the other side, is away; it may pass.
    #[error("{location} cannot be reached: {reason}")]
    Unreachable { location: String, reason: String },
    /// The other side answered, and said no.
    #[error("{location} cannot be fetched: {reason}")]
    Refused { location: String, reason: String },
    /// The other side answered, and does not take it.
    #[error("cannot publish to {location}: {reason}")]
    NotTaken { location: String, reason: String },
    #[error("interrupted")]
    Cancelled,
    #[error("a thread for the network could not be started: {0}")]
    Thread(io::Error),
    #[error(transparent)]
    Disk(#[from] ShardError),
}

impl From<RemoteError> for StageError {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Cancelled => Self::Cancelled,
            RemoteError::Disk(error) => error.into(),
            error => Self::failed(error),
        }
    }
}

/// How places elsewhere are reached. Has no `Debug`, since it holds a token.
pub struct Access {
    /// Of the Hugging Face Hub.
    pub endpoint: String,
    /// Sent to the endpoint, and to no other host.
    pub token: Option<String>,
    /// Opens a bucket.
    pub store: Box<OpenStore>,
}

impl Access {
    /// HF_ENDPOINT, HF_TOKEN and the AWS_… variables; the token may also stand in a file `.env` of the working directory.
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.trim().is_empty());
        let token = variable("HF_TOKEN").or_else(|| token_of(&fs::read_to_string(".env").ok()?));
        Self {
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: token.map(|token| token.trim().to_owned()),
            store: Box::new(store::open),
        }
    }
}

/// The token in the text of a `.env` file.
fn token_of(text: &str) -> Option<String> {
    let value = |line: &str| {
        let line = line.trim();
        let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
        let value = value.trim().trim_matches(['"', '\'']);
        (name.trim() == "HF_TOKEN" && !value.is_empty()).then(|| value.to_owned())
    };
    text.lines().filter_map(value).next_back()
}

/// Why something elsewhere was not had, before it is known what that means.
enum Failure {
    /// It may pass; after so long, if the other side says.
    Passing(String, Option<Duration>),
    Final(String),
    Disk(ShardError),
    Cancelled,
}

impl Failure {
    fn passing(reason: impl Into<String>) -> Self {
        Self::Passing(reason.into(), None)
    }

    /// What it means for what is at `shown`.
    fn into_error(self, shown: &str) -> RemoteError {
        let location = shown.to_owned();
        match self {
            Self::Passing(reason, _) => RemoteError::Unreachable { location, reason },
            Self::Final(reason) => RemoteError::Refused { location, reason },
            Self::Disk(error) => error.into(),
            Self::Cancelled => RemoteError::Cancelled,
        }
    }

    /// What it means for what was to be at `shown`.
    fn into_error_of_sending(self, shown: &str) -> RemoteError {
        match self {
            Self::Final(reason) => RemoteError::NotTaken { location: shown.to_owned(), reason },
            other => other.into_error(shown),
        }
    }
}

/// What a transfer tells of itself, and whether it is to go on.
pub(crate) trait Watch: Sync {
    /// So many more bytes are here, or there.
    fn came(&self, _bytes: u64) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Nobody watches.
pub(crate) struct Unwatched;

impl Watch for Unwatched {}

/// Tries something until it succeeds, fails for good, or has failed `tries` times in a row.
async fn with_tries<T>(
    shown: &str,
    tries: u32,
    watch: &dyn Watch,
    once: impl AsyncFnMut() -> Result<T, Failure>,
) -> Result<T, RemoteError> {
    patiently(tries, watch, once).await.map_err(|failure| failure.into_error(shown))
}

/// As [`with_tries`], for callers who say what a failure means.
async fn patiently<T>(
    tries: u32,
    watch: &dyn Watch,
    mut once: impl AsyncFnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut failures = 0;
    loop {
        match once().await {
            Err(Failure::Passing(_, wait)) if failures + 1 < tries => pause(&mut failures, wait, watch).await,
            ended => return ended,
        }
        if watch.is_cancelled() {
            return Err(Failure::Cancelled);
        }
    }
}

/// The files at a location that is not on this machine, in `tries` tries at most. `shown` is for messages.
pub(crate) fn entries(location: &Location, shown: &str, access: &Access, tries: u32) -> Result<Entries, RemoteError> {
    let once = async || match location {
        Location::Local(_) => Err(Failure::Final("it is on this machine".to_owned())),
        Location::Invalid(reason) => Err(Failure::Final((*reason).to_owned())),
        Location::Http(url) => web::entries(url, access).await,
        Location::Hub { repository, path } => hub::entries(repository, path, access).await,
        Location::Store { bucket, path } => store::entries(bucket, path, access).await,
    };
    block_on(|| with_tries(shown, tries, &Unwatched, once))?
}

/// The same location with the commit that its revision is now, where it has one.
pub(crate) fn pinned(location: &Location, shown: &str, access: &Access, tries: u32) -> Result<Location, RemoteError> {
    let Location::Hub { repository, path } = location else { return Ok(location.clone()) };
    if repository.is_pinned() {
        return Ok(location.clone());
    }
    let once = async || hub::commit_of(repository, access).await;
    let revision = block_on(|| with_tries(shown, tries, &Unwatched, once))??;
    let repository = Repository { revision, ..repository.clone() };
    Ok(Location::Hub { repository, path: path.clone() })
}

/// Brings a file to the path `partial`, where a part of it may be already, or all of it; gives up after `tries` failures in a
/// row without a byte gained. Whoever has put the file to its place, or needs it no more, calls [`settled`].
pub(crate) fn fetch(
    location: &Location,
    shown: &str,
    entries: &Entries,
    entry: &Entry,
    partial: &Path,
    access: &Access,
    (tries, watch): (u32, &dyn Watch),
) -> Result<(), RemoteError> {
    let shown = if entries.is_folder { format!("{shown}/{}", entry.name) } else { shown.to_owned() };
    let inside = |path: &str| match (entries.is_folder, path.is_empty()) {
        (false, _) => path.to_owned(),
        (true, true) => entry.name.clone(),
        (true, false) => format!("{path}/{}", entry.name),
    };
    // It came whole before, and what followed (unpacking it, say) did not end: that is no reason to bring it again.
    if is_digested(entry) && is_whole(entry, partial) {
        return Ok(());
    }
    block_on(|| async {
        let (mut failures, mut farthest) = (0, length(partial));
        loop {
            let fetched = match location {
                Location::Local(_) => Err(Failure::Final("it is here already".to_owned())),
                Location::Invalid(reason) => Err(Failure::Final((*reason).to_owned())),
                Location::Http(url) => web::fetch(web::Origin::Web(url), entry, partial, access, watch).await,
                Location::Hub { repository, path } => match hub::file(repository, &inside(path), access) {
                    Ok(url) => web::fetch(web::Origin::Hub(&url), entry, partial, access, watch).await,
                    Err(failure) => Err(failure),
                },
                Location::Store { bucket, path } => {
                    store::fetch(bucket, &inside(path), entry, partial, access, watch).await
                }
            };
            // A file that comes whole and wrong again and again gets no farther.
            if length(partial) > farthest {
                (failures, farthest) = (0, length(partial));
            }
            match fetched.and_then(|()| check(entry, partial)) {
                Ok(()) => return Ok(()),
                Err(Failure::Passing(_, wait)) if failures + 1 < tries => pause(&mut failures, wait, watch).await,
                Err(failure) => return Err(failure.into_error(&shown)),
            }
            if watch.is_cancelled() {
                return Err(RemoteError::Cancelled);
            }
        }
    })?
}

/// Takes away what lies beside a partial file to go on by, once the file itself is in its place or gone.
pub(crate) fn settled(partial: &Path) {
    let _ = fs::remove_file(web::tag_path(partial));
}

/// Begins a version that is the SHA-256 of the content, or git's SHA-1 of it.
const SHA256: &str = "sha256:";
const GIT: &str = "git:";

/// Whether its version is a digest of its content, which tells a file from all others, wherever they lie.
pub(crate) fn is_digested(entry: &Entry) -> bool {
    Sum::listed(entry).is_some()
}

/// Whether a file on this machine is what was listed, as far as that can be told.
pub(crate) fn is_whole(entry: &Entry, path: &Path) -> bool {
    let is_as_long = entry.bytes.is_none_or(|bytes| bytes == length(path)) && path.is_file();
    let sum = Sum::listed(entry);
    is_as_long
        && (entry.bytes.is_some() || sum.is_some())
        && sum.is_none_or(|(sum, expected)| sum.of(path).is_ok_and(|found| found == expected))
}

/// Holds a file that has come whole to what was listed.
fn check(entry: &Entry, partial: &Path) -> Result<(), Failure> {
    let differs = |what: &str| {
        // There is nothing to go on with.
        let _ = fs::remove_file(partial);
        Err(Failure::passing(format!("what came has another {what} than what was listed")))
    };
    if entry.bytes.is_some_and(|bytes| bytes != length(partial)) {
        return differs("size");
    }
    let Some((sum, expected)) = Sum::listed(entry) else { return Ok(()) };
    let found = sum.of(partial).map_err(|error| Failure::Disk(ShardError::io("read", partial)(error)))?;
    if found == expected { Ok(()) } else { differs("digest") }
}

/// How a digest is made.
#[derive(Clone, Copy)]
enum Sum {
    Sha256,
    /// Of a blob: SHA-1 over a header and the content.
    Git,
}

impl Sum {
    /// The digest that a listing names.
    fn listed(entry: &Entry) -> Option<(Self, &str)> {
        let sha256 = entry.version.strip_prefix(SHA256).map(|digest| (Self::Sha256, digest));
        sha256.or_else(|| entry.version.strip_prefix(GIT).map(|digest| (Self::Git, digest)))
    }

    fn of(self, path: &Path) -> io::Result<String> {
        use sha1::Digest as _;
        let digest = match self {
            Self::Sha256 => digest_of(path, sha2::Sha256::new(), || false),
            Self::Git => {
                let mut hasher = sha1::Sha1::new();
                hasher.update(format!("blob {}\0", length(path)));
                digest_of(path, hasher, || false)
            }
        };
        Ok(digest?.unwrap_or_default())
    }
}

/// What a hasher makes of a file's bytes, in hexadecimal; `None` where it was over before the end.
pub(crate) fn digest_of<D: sha2::Digest>(
    path: &Path,
    mut hasher: D,
    is_over: impl Fn() -> bool,
) -> io::Result<Option<String>> {
    use std::fmt::Write as _;
    use std::io::Read as _;
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        if is_over() {
            return Ok(None);
        }
        let read = file.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        hasher.update(bytes);
    }
    let mut hex = String::with_capacity(64);
    for byte in hasher.finalize() {
        let _ = write!(hex, "{byte:02x}");
    }
    Ok(Some(hex))
}

/// A file's length; 0 when there is none.
fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Waits longer after each failure in a row, or as long as the other side asks. By chance a little less, so that those who
/// failed together do not come back together.
async fn pause(failures: &mut u32, asked: Option<Duration>, watch: &dyn Watch) {
    let usual = FIRST_WAIT.saturating_mul(1 << (*failures).min(7)).min(LONGEST_OWN_WAIT);
    let usual = usual.mul_f64(1.0 - f64::from(RandomState::new().hash_one(0) as u32 % 256) / 512.0);
    *failures += 1;
    let mut left = asked.unwrap_or(usual).min(LONGEST_WAIT);
    while !left.is_zero() && !watch.is_cancelled() {
        let step = left.min(Duration::from_millis(200));
        tokio::time::sleep(step).await;
        left -= step;
    }
}

/// Runs a future to its end, on a thread of its own: the caller's may belong to another runtime.
pub(crate) fn block_on<T: Send, F: Future<Output = T>>(begin: impl FnOnce() -> F + Send) -> Result<T, RemoteError> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(begin()))
        });
        match thread.join() {
            Ok(result) => result.map_err(RemoteError::Thread),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_of_an_env_file_is_the_last_that_it_names() {
        let text = "# HF_TOKEN=no\nOTHER=1\nexport HF_TOKEN=\"hf_a\"\nHF_TOKEN = 'hf_b'\nHF_TOKEN=\n";
        assert_eq!(token_of(text).as_deref(), Some("hf_b"));
        assert_eq!(token_of("HF_TOKENS=x"), None);
    }

    #[test]
    fn a_file_without_a_digest_that_came_whole_is_not_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let partial = folder.path().join("x");
        fs::write(&partial, "whole\n").unwrap();
        fs::write(web::tag_path(&partial), "\"1\"").unwrap();
        let access = Access { endpoint: String::new(), token: None, store: Box::new(store::open) };
        let fetched = |version: &str| {
            let entry = Entry { name: "x".into(), bytes: Some(6), version: version.into() };
            // Nobody listens there.
            let location = Location::parse("http://127.0.0.1:9/x");
            fetch(&location, "x", &Entries::of_file(entry.clone()), &entry, &partial, &access, (1, &Unwatched))
        };
        fetched("\"1\"").unwrap();
        assert!(fetched("").is_err(), "it may be another one by now");
    }

    #[test]
    fn files_are_held_to_the_digests_that_the_hub_lists() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "hello\n").unwrap();
        let entry = |version: &str| Entry { name: "a".into(), bytes: Some(6), version: version.into() };
        // `git hash-object` and `sha256sum` of the same.
        let git = entry("git:ce013625030ba8dba906f756967f9e9ca394464a");
        let sha256 = entry("sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
        assert!(check(&git, file.path()).is_ok() && check(&sha256, file.path()).is_ok());
        let other = entry("git:0000000000000000000000000000000000000000");
        assert!(matches!(check(&other, file.path()), Err(Failure::Passing(..))));
        assert!(!file.path().exists(), "there is nothing to go on with");
    }
}
