//! Lists that lie elsewhere: which files there are, and bringing one of them here.
//!
//! A transfer that breaks off goes on where it was, in this process or the next, as long as the other side still has the
//! same content.

mod http;
mod store;

use std::fs;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use shards::ShardError;

use super::ListError;
use super::location::{Entries, Entry, Format, Location};

/// A folder elsewhere with more files than this is refused before they fill the memory.
const MOST_FILES: usize = 1_000_000;
/// Failures in a row without a byte gained, before a transfer is given up.
const FAILURES: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_mins(1);

type OpenStore = dyn Fn(&str) -> Result<Arc<dyn ObjectStore>, object_store::Error> + Send + Sync;

/// How places elsewhere are reached. Has no `Debug`, since it holds a token.
pub(super) struct Access {
    /// Of the Hugging Face Hub.
    pub(super) endpoint: String,
    /// Sent to the endpoint, and to no other host.
    pub(super) token: Option<String>,
    /// Opens a bucket.
    pub(super) store: Box<OpenStore>,
}

impl Access {
    /// HF_ENDPOINT, HF_TOKEN and the AWS_… variables.
    pub(super) fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.trim().is_empty());
        Self {
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: variable("HF_TOKEN").map(|token| token.trim().to_owned()),
            store: Box::new(store::open),
        }
    }
}

/// The error for a location that is none.
pub(super) fn invalid(shown: &str, reason: &str) -> ListError {
    ListError::Location { location: shown.to_owned(), reason: reason.to_owned() }
}

/// Why something elsewhere was not had.
enum Failure {
    /// It may pass; after so long, if the other side says.
    Passing(String, Option<Duration>),
    Final(String),
    Disk(ShardError),
    /// The folder's own error.
    List(ListError),
}

impl Failure {
    fn passing(reason: impl Into<String>) -> Self {
        Self::Passing(reason.into(), None)
    }

    /// What it means for the list at `shown`.
    fn into_error(self, shown: &str) -> ListError {
        let location = shown.to_owned();
        match self {
            Self::Passing(reason, _) => ListError::Unreachable { location, reason },
            Self::Final(reason) => ListError::Refused { location, reason },
            Self::Disk(error) => error.into(),
            Self::List(error) => error,
        }
    }
}

/// The files at a location, in `tries` tries at most. `shown` is for messages.
pub(super) fn entries(
    location: &Location,
    shown: &str,
    format: Option<Format>,
    access: &Access,
    tries: u32,
) -> Result<(Format, Entries), ListError> {
    block_on(async {
        let mut failures = 0;
        loop {
            let found = match location {
                Location::Local(path) => super::location::local_entries(path, format).map_err(Failure::List),
                Location::Invalid(reason) => Err(Failure::List(invalid(shown, reason))),
                Location::Http(url) => http::entries_of_url(url, shown, format, access).await,
                Location::Hub { repository, revision, path } => {
                    http::entries_of_hub(repository, revision, path, shown, format, access).await
                }
                Location::Store { bucket, path } => store::entries(bucket, path, shown, format, access).await,
            };
            match found {
                Ok(found) => return Ok(found),
                Err(Failure::Passing(_, wait)) if failures + 1 < tries => pause(&mut failures, wait).await,
                Err(failure) => return Err(failure.into_error(shown)),
            }
        }
    })?
}

/// Brings a file to the path `partial`, where a part of it may be already.
pub(super) fn fetch(
    location: &Location,
    shown: &str,
    entries: &Entries,
    entry: &Entry,
    partial: &Path,
    access: &Access,
) -> Result<(), ListError> {
    let shown = if entries.is_folder { format!("{shown}/{}", entry.name) } else { shown.to_owned() };
    let inside = |path: &str| match (entries.is_folder, path.is_empty()) {
        (false, _) => path.to_owned(),
        (true, true) => entry.name.clone(),
        (true, false) => format!("{path}/{}", entry.name),
    };
    block_on(async {
        let (mut failures, mut farthest) = (0, length(partial));
        loop {
            let fetched = match location {
                Location::Local(_) => Err(Failure::Final("it is here already".to_owned())),
                Location::Invalid(reason) => Err(Failure::List(invalid(&shown, reason))),
                Location::Http(url) => http::fetch(http::Origin::Web(url.clone()), entry, partial, access).await,
                Location::Hub { repository, revision, path } => {
                    match http::hub_file(repository, revision, &inside(path), access) {
                        Ok(url) => http::fetch(http::Origin::Hub(url), entry, partial, access).await,
                        Err(failure) => Err(failure),
                    }
                }
                Location::Store { bucket, path } => store::fetch(bucket, &inside(path), entry, partial, access).await,
            };
            // A file that comes whole and wrong again and again gets no farther.
            if length(partial) > farthest {
                (failures, farthest) = (0, length(partial));
            }
            match fetched.and_then(|()| check(entry, partial)) {
                Ok(()) => return Ok(()),
                Err(Failure::Passing(_, wait)) if failures + 1 < FAILURES => pause(&mut failures, wait).await,
                Err(failure) => return Err(failure.into_error(&shown)),
            }
        }
    })?
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
    let Some(expected) = entry.version.strip_prefix(SHA256) else { return Ok(()) };
    let found = sha256(partial).map_err(|error| Failure::Disk(ShardError::io("read", partial)(error)))?;
    if found == expected { Ok(()) } else { differs("digest") }
}

/// Begins a version that is the SHA-256 of the content.
const SHA256: &str = "sha256:";

fn sha256(path: &Path) -> io::Result<String> {
    use sha2::Digest as _;
    use std::fmt::Write as _;
    use std::io::Read as _;
    let mut file = fs::File::open(path)?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        hasher.update(bytes);
    }
    let mut hex = String::with_capacity(64);
    for byte in hasher.finalize() {
        let _ = write!(hex, "{byte:02x}");
    }
    Ok(hex)
}

/// A file's length; 0 when there is none.
fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Waits longer after each failure in a row, or as long as the other side asks.
async fn pause(failures: &mut u32, asked: Option<Duration>) {
    let usual = FIRST_WAIT.saturating_mul(1 << (*failures).min(6));
    *failures += 1;
    tokio::time::sleep(asked.unwrap_or(usual).min(LONGEST_WAIT)).await;
}

/// Runs a future to its end, on a thread of its own: the caller's may belong to another runtime.
fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> Result<T, ListError> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(future))
        });
        match thread.join() {
            Ok(result) => result.map_err(ListError::Thread),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
