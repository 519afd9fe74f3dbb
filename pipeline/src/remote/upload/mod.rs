//! Bringing files of this machine to a place elsewhere: a dataset of the Hugging Face Hub, or a bucket.
//!
//! Large files go to the Hub as git-lfs has it: it says which it lacks and where to send them ([`lfs`]), and a commit then
//! names them by their SHA-256 ([`commit`]). What it has is never sent again, whoever sent it.

mod bucket;
mod commit;
mod lfs;

use std::future::Future;
use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::stream::{Stream, try_unfold};
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode, Url};
use serde_json::Value;
use shards::ShardError;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

pub(crate) use self::bucket::Bucket;
pub(crate) use self::commit::{Change, Committed, Content, Head, Mode, git_sha1};
pub(crate) use self::lfs::Large;

use super::web::{Web, header, in_words, wait_asked};
use super::{Access, Failure, RemoteError, Repository, Watch, patiently};

/// What is read of a file, and on its way, at a time.
const BLOCK: u64 = 256 << 10;
/// An upload of which nothing goes through for so long has broken down.
const STILL: Duration = Duration::from_mins(2);
/// A question, a commit among them, is answered by then.
const LONGEST_ANSWER: Duration = Duration::from_mins(5);
/// What is shown of the other side's words, in letters.
const SHOWN: usize = 300;
/// A refusal's words are read up to here.
const LARGEST_REFUSAL: usize = 64 << 10;

/// A dataset of the Hub, for publishing to.
pub(crate) struct Hub<'a> {
    access: &'a Access,
    repository: &'a Repository,
    shown: &'a str,
    tries: u32,
    watch: &'a dyn Watch,
    reading: Web,
    sending: Web,
}

/// An answer that asking again does not change.
struct Refusal {
    status: StatusCode,
    /// The Hub's own word for it.
    code: String,
    message: String,
}

impl<'a> Hub<'a> {
    /// `shown` is for messages. Whatever may pass is tried `tries` times.
    pub(crate) fn open(
        repository: &'a Repository,
        shown: &'a str,
        access: &'a Access,
        tries: u32,
        watch: &'a dyn Watch,
    ) -> Result<Self, RemoteError> {
        let web = |web: Result<Web, Failure>| web.map_err(|failure| failure.into_error_of_sending(shown));
        let (reading, sending) = (web(Web::open(access))?, web(Web::for_sending(access))?);
        Ok(Self { access, repository, shown, tries, watch, reading, sending })
    }

    /// Tries something as often as it may be tried.
    async fn tried<T>(&self, mut once: impl AsyncFnMut() -> Result<T, Failure>) -> Result<T, RemoteError> {
        let once = async || unless_cancelled(self.watch, once()).await?;
        let ended = patiently(self.tries, self.watch, once).await;
        ended.map_err(|failure| failure.into_error_of_sending(self.shown))
    }

    fn not_taken(&self, reason: impl Into<String>) -> RemoteError {
        Failure::Final(reason.into()).into_error_of_sending(self.shown)
    }

    /// Asks the Hub something; the token goes along.
    async fn ask(
        &self,
        url: &Url,
        (kind, body): (&'static str, Vec<u8>),
    ) -> Result<Result<Response, Refusal>, Failure> {
        let request = self.sending.request(Method::POST, url).timeout(LONGEST_ANSWER);
        let request =
            request.header(CONTENT_TYPE, kind).header(ACCEPT, if kind == LFS { LFS } else { JSON }).body(body);
        self.answer(self.sending.signed(request, url)).await
    }

    async fn answer(&self, request: RequestBuilder) -> Result<Result<Response, Refusal>, Failure> {
        let response = request.send().await.map_err(|error| Failure::passing(in_words(error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(Ok(response));
        }
        let wait = wait_asked(&response);
        let refusal = self.refusal(response).await;
        let passes = status.is_server_error()
            || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            // It makes one repository at a time for an account.
            || (status == StatusCode::CONFLICT && refusal.message.contains("conflicting operation is in progress"));
        if passes {
            return Err(Failure::Passing(refusal.in_words(), wait));
        }
        Ok(Err(refusal))
    }

    async fn refusal(&self, mut response: Response) -> Refusal {
        let status = response.status();
        let said = |name| header(&response, HeaderName::from_static(name)).map(str::to_owned);
        let (code, message) = (said("x-error-code"), said("x-error-message"));
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = response.chunk().await {
            if body.len() + chunk.len() > LARGEST_REFUSAL {
                break;
            }
            body.extend_from_slice(&chunk);
        }
        // Of the Hub: an object with its words. Stores answer in XML, which holds more of the request than anybody should see.
        let in_body = serde_json::from_slice::<Value>(&body).ok().and_then(|body| {
            let words = ["error", "message"].iter().find_map(|key| body.get(key)?.as_str());
            words.map(str::to_owned)
        });
        let message = self.without_token(&message.or(in_body).unwrap_or_default());
        Refusal { status, code: code.unwrap_or_default(), message }
    }

    /// The other side's words, short, on one line, and without the token, should it repeat that.
    fn without_token(&self, words: &str) -> String {
        let words = match &self.access.token {
            Some(token) if !token.is_empty() => words.replace(token.as_str(), "(token)"),
            _ => words.to_owned(),
        };
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        words.chars().take(SHOWN).collect()
    }

    /// What a refusal means for `what` was asked.
    fn refused(&self, what: &str, refusal: &Refusal) -> Failure {
        let owner = self.repository.name.split('/').next().unwrap_or_default();
        let about_room = ["storage", "quota"].iter().any(|word| refusal.message.to_lowercase().contains(word));
        let hint = match refusal.status {
            StatusCode::UNAUTHORIZED => "; is the token in HF_TOKEN right, and still good?".to_owned(),
            StatusCode::PAYMENT_REQUIRED | StatusCode::FORBIDDEN if about_room => {
                format!("; make room for {owner}, see https://huggingface.co/settings/billing")
            }
            StatusCode::FORBIDDEN => format!(
                "; the token in HF_TOKEN must have write access to what is {owner}'s, see https://huggingface.co/settings/tokens"
            ),
            StatusCode::NOT_FOUND => "; does the dataset exist, and may the token in HF_TOKEN see it?".to_owned(),
            StatusCode::PAYLOAD_TOO_LARGE => {
                "; that is more than it takes at once: make files_per_commit smaller, or the shards".to_owned()
            }
            _ => String::new(),
        };
        Failure::Final(format!("{what}: {}{hint}", refusal.in_words()))
    }

    /// Sends a part of a file.
    async fn send(
        &self,
        url: &Url,
        headers: &HeaderMap,
        (path, offset, bytes): (&Path, u64, u64),
    ) -> Result<Result<Response, Refusal>, Failure> {
        let pulse = Arc::new(Pulse::default());
        let body = Body::wrap_stream(blocks(path.to_owned(), offset, bytes, Arc::clone(&pulse)));
        // With a length, since stores take nothing without.
        let request = self.sending.request(Method::PUT, url).headers(headers.clone());
        let request = request.header(CONTENT_LENGTH, bytes).body(body);
        let mut told = 0;
        let mut tell = || {
            let sent = pulse.sent.load(Ordering::Relaxed);
            self.watch.came(sent - told);
            std::mem::replace(&mut told, sent) != sent
        };
        let stands_still = async {
            let mut since = Instant::now();
            while since.elapsed() < STILL {
                tokio::time::sleep(Duration::from_millis(200)).await;
                if tell() {
                    since = Instant::now();
                }
            }
        };
        let answered = tokio::select! {
            biased;
            answered = self.answer(request) => answered,
            () = stands_still => Err(Failure::passing("nothing went through for two minutes")),
        };
        tell();
        if let Some(fault) = pulse.fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(Failure::Disk(ShardError::io("read", path)(fault)));
        }
        answered
    }
}

impl Refusal {
    fn in_words(&self) -> String {
        let Self { status, message, .. } = self;
        if message.is_empty() { format!("it answers {status}") } else { format!("it answers {status} ({message})") }
    }

    fn is(&self, code: &str) -> bool {
        self.code == code
    }
}

const JSON: &str = "application/json";
const LFS: &str = "application/vnd.git-lfs+json";
const LINES: &str = "application/x-ndjson";

/// A body of JSON, and its kind.
fn json(kind: &'static str, value: &Value) -> (&'static str, Vec<u8>) {
    (kind, value.to_string().into_bytes())
}

/// Headers as the other side wants them; those that are none are left out.
fn headers<'h>(wanted: impl Iterator<Item = (&'h String, &'h Value)>) -> HeaderMap {
    let header = |(name, value): (&String, &Value)| {
        Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value.as_str()?).ok()?))
    };
    wanted.filter_map(header).filter(|(name, _)| name != CONTENT_LENGTH).collect()
}

/// How far the body of a request is.
#[derive(Default)]
struct Pulse {
    sent: AtomicU64,
    /// Why the file could not be read.
    fault: Mutex<Option<io::Error>>,
}

/// A part of a file, block by block.
fn blocks(
    path: PathBuf,
    offset: u64,
    bytes: u64,
    pulse: Arc<Pulse>,
) -> impl Stream<Item = io::Result<Vec<u8>>> + Send + 'static {
    try_unfold((None::<File>, bytes), move |(file, left)| {
        let (path, pulse) = (path.clone(), Arc::clone(&pulse));
        async move {
            if left == 0 {
                return Ok(None);
            }
            match next_block(file, &path, offset, left).await {
                Ok((file, block)) => {
                    let length = block.len() as u64;
                    pulse.sent.fetch_add(length, Ordering::Relaxed);
                    Ok(Some((block, (Some(file), left - length))))
                }
                Err(error) => {
                    let kind = error.kind();
                    *pulse.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    Err(kind.into())
                }
            }
        }
    })
}

async fn next_block(file: Option<File>, path: &Path, offset: u64, left: u64) -> io::Result<(File, Vec<u8>)> {
    let mut file = if let Some(file) = file {
        file
    } else {
        let mut file = File::open(path).await?;
        file.seek(SeekFrom::Start(offset)).await?;
        file
    };
    let mut block = vec![0; left.min(BLOCK) as usize];
    file.read_exact(&mut block).await?;
    Ok((file, block))
}

/// Does something until it is done, or until the watcher wants no more of it.
async fn unless_cancelled<T>(watch: &dyn Watch, work: impl Future<Output = T>) -> Result<T, Failure> {
    let cancelled = async {
        while !watch.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        biased;
        () = cancelled => Err(Failure::Cancelled),
        done = work => Ok(done),
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;
    use crate::remote::{RepositoryKind, Unwatched};

    #[test]
    fn a_part_of_a_file_is_that_part_and_a_file_that_ends_early_is_a_fault() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..600_000u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(file.path(), &content).unwrap();
        let read = |offset, bytes| {
            let pulse = Arc::new(Pulse::default());
            let stream = blocks(file.path().to_owned(), offset, bytes, Arc::clone(&pulse));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            (runtime.block_on(stream.try_collect::<Vec<_>>()), pulse)
        };
        let (blocks, pulse) = read(1000, 500_000);
        let blocks = blocks.unwrap();
        assert_eq!(blocks.concat(), content[1000..501_000]);
        assert!(blocks.iter().all(|block| block.len() as u64 <= BLOCK) && blocks.len() == 2);
        assert_eq!(pulse.sent.load(Ordering::Relaxed), 500_000);
        let (none, _) = read(5, 0);
        assert!(none.unwrap().is_empty());
        let (torn, pulse) = read(500_000, 200_000);
        assert_eq!(torn.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(pulse.fault.lock().unwrap().is_some());
    }

    #[test]
    fn the_other_sides_words_are_short_and_never_hold_the_token() {
        let access = Access {
            endpoint: "http://localhost".to_owned(),
            token: Some("hf_secret".to_owned()),
            store: Box::new(|_| Ok(Arc::new(object_store::memory::InMemory::new()))),
        };
        let repository =
            Repository { kind: RepositoryKind::Dataset, name: "me/pets".to_owned(), revision: "main".to_owned() };
        let hub = Hub::open(&repository, "hf://datasets/me/pets", &access, 1, &Unwatched).ok().unwrap();
        assert_eq!(hub.without_token("no\n hf_secret,  no"), "no (token), no");
        assert_eq!(hub.without_token(&"é".repeat(1000)).chars().count(), SHOWN);
        let refusal = |status, message: &str| Refusal { status, code: String::new(), message: message.to_owned() };
        let words = |status, message: &str| match hub.refused("cannot commit", &refusal(status, message)) {
            Failure::Final(words) => words,
            _ => String::new(),
        };
        assert!(words(StatusCode::FORBIDDEN, "").contains("write access to what is me's"));
        assert!(words(StatusCode::FORBIDDEN, "Private storage limit reached").contains("settings/billing"));
        assert!(words(StatusCode::PAYLOAD_TOO_LARGE, "").contains("files_per_commit"));
        let odd = words(StatusCode::IM_A_TEAPOT, "short and stout");
        assert_eq!(odd, "cannot commit: it answers 418 I'm a teapot (short and stout)");
    }
}
