//! Files at URLs, those of the Hugging Face Hub among them.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use reqwest::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_RANGE, LAST_MODIFIED,
    RANGE, RETRY_AFTER,
};
use reqwest::{Client, ClientBuilder, Method, RequestBuilder, Response, StatusCode, Url};
use shards::ShardError;

use super::location::{Entries, Entry};
use super::{Access, Failure, Watch, length};

/// Where a file is asked for.
pub(super) enum Origin<'a> {
    Web(&'a Url),
    /// The token is sent as well.
    Hub(&'a Url),
}

/// A client that sends a token to the endpoint only. reqwest takes the header away when a redirect leads to another host.
pub(super) struct Web {
    client: Client,
    token: Option<HeaderValue>,
    endpoint: Option<Url>,
}

impl Web {
    pub(super) fn open(access: &Access) -> Result<Self, Failure> {
        Self::over(Client::builder().read_timeout(Duration::from_mins(1)), access)
    }

    /// One that sends what takes its time: reqwest counts that as waiting for the answer. The caller watches over it.
    pub(super) fn for_sending(access: &Access) -> Result<Self, Failure> {
        Self::over(Client::builder(), access)
    }

    fn over(client: ClientBuilder, access: &Access) -> Result<Self, Failure> {
        let client = client
            .user_agent(concat!("ferrotype/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .build()
            .map_err(|error| Failure::Final(in_words(error)))?;
        let token = match &access.token {
            Some(token) => {
                let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                    .map_err(|_secret| Failure::Final("HF_TOKEN holds characters that no token has".to_owned()))?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        Ok(Self { client, token, endpoint: Url::parse(&access.endpoint).ok() })
    }

    /// Sends a request, and the token where it is for the Hub.
    pub(super) async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        is_hub: bool,
    ) -> Result<Response, Failure> {
        let request = self.request(method, url).headers(headers);
        self.answer(if is_hub { self.signed(request, url) } else { request }, is_hub).await
    }

    /// A request with the token, if it goes to the Hub.
    pub(super) fn signed(&self, request: RequestBuilder, url: &Url) -> RequestBuilder {
        let is_endpoint = self.endpoint.as_ref().is_some_and(|endpoint| endpoint.origin() == url.origin());
        match self.token.as_ref().filter(|_| is_endpoint) {
            Some(token) => request.header(AUTHORIZATION, token.clone()),
            None => request,
        }
    }

    pub(super) fn request(&self, method: Method, url: &Url) -> RequestBuilder {
        self.client.request(method, url.clone())
    }

    /// What a request is answered, where that is no refusal.
    pub(super) async fn answer(&self, request: RequestBuilder, is_hub: bool) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| Failure::passing(in_words(error)))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let passes =
            status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
        if passes {
            return Err(Failure::Passing(format!("it answers {status}"), wait_asked(&response)));
        }
        let hint = if is_hub { self.hint(&response) } else { "" };
        Err(Failure::Final(format!("it answers {status}{hint}")))
    }

    /// What to do about a refusal of the Hub.
    fn hint(&self, response: &Response) -> &'static str {
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or("");
        let status = response.status();
        match (code, self.token.is_some()) {
            ("GatedRepo", false) => "; it is gated: ask for access on its page, and set HF_TOKEN to your token",
            ("GatedRepo", true) => "; it is gated, and the token in HF_TOKEN has no access: ask for it on its page",
            ("RevisionNotFound", _) => "; it has no such revision",
            ("EntryNotFound", _) => "; it has no such file in this revision",
            _ if status == StatusCode::UNAUTHORIZED && self.token.is_some() => {
                "; does it exist, and is the token in HF_TOKEN right?"
            }
            _ if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) => {
                "; does it exist, and may the token in HF_TOKEN read it?"
            }
            _ => "",
        }
    }
}

/// An error with what is below it, and without the URL, which may hold a secret.
pub(super) fn in_words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut words = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        words.push_str(": ");
        words.push_str(&error.to_string());
        below = error.source();
    }
    words
}

pub(super) fn header(response: &Response, name: HeaderName) -> Option<&str> {
    response.headers().get(name).and_then(|value| value.to_str().ok())
}

/// How long the other side asks to wait: in seconds, until a time, or as the Hub does where there were too many requests.
pub(super) fn wait_asked(response: &Response) -> Option<Duration> {
    let text = header(response, RETRY_AFTER).map(str::trim);
    let seconds = text.and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let until = || httpdate::parse_http_date(text?).ok()?.duration_since(SystemTime::now()).ok();
    // `"api";r=0;t=55`
    let limit = || {
        header(response, HeaderName::from_static("ratelimit"))?
            .split(';')
            .find_map(|part| part.trim().strip_prefix("t=")?.parse().ok())
    };
    let reset = || limit().filter(|_| response.status() == StatusCode::TOO_MANY_REQUESTS).map(Duration::from_secs);
    seconds.or_else(until).or_else(reset)
}

/// What changes with the content, if the other side says: a digest of its own, else a time.
fn version(response: &Response) -> String {
    let version = header(response, ETAG).or_else(|| header(response, LAST_MODIFIED));
    version.unwrap_or("").trim_start_matches("W/").to_owned()
}

/// The file at a URL.
pub(super) async fn entries(url: &Url, access: &Access) -> Result<Entries, Failure> {
    let name = url.path().rsplit('/').next().unwrap_or("").to_owned();
    let web = Web::open(access)?;
    let response = match web.send(Method::HEAD, url, HeaderMap::new(), false).await {
        // Some servers, and links that are signed for reading, refuse to be asked for the headers alone.
        Err(Failure::Final(_)) => {
            let one = HeaderMap::from_iter([(RANGE, HeaderValue::from_static("bytes=0-0"))]);
            web.send(Method::GET, url, one, false).await?
        }
        other => other?,
    };
    let bytes = match response.status() {
        StatusCode::PARTIAL_CONTENT => total(&response),
        // Some servers say 0 to everybody who asks for the headers alone.
        _ => {
            header(&response, CONTENT_LENGTH).and_then(|length| length.parse().ok()).filter(|&length: &u64| length > 0)
        }
    };
    Ok(Entries::of_file(Entry { name, bytes, version: version(&response) }))
}

/// The length of the whole, of which a part was sent.
fn total(response: &Response) -> Option<u64> {
    header(response, CONTENT_RANGE)?.rsplit_once('/')?.1.trim().parse().ok()
}

/// Brings what is missing of a file, in one try. The mark of its content stays beside it until [`super::settled`]: a file that
/// came whole may have to wait for another run.
pub(super) async fn fetch(
    origin: Origin<'_>,
    entry: &Entry,
    partial: &Path,
    access: &Access,
    watch: &dyn Watch,
) -> Result<(), Failure> {
    let (url, is_hub) = match origin {
        Origin::Web(url) => (url, false),
        Origin::Hub(url) => (url, true),
    };
    let web = Web::open(access)?;
    let tag_path = tag_path(partial);
    // Without a mark of the content there is no telling whether what follows belongs to what is here.
    let tag = fs::read_to_string(&tag_path).ok().filter(|tag| !tag.is_empty() && length(partial) > 0);
    let have = if tag.is_some() { length(partial) } else { 0 };
    // What was listed without a version may be another file by now, which only its mark can tell.
    if have > 0 && entry.bytes == Some(have) && !entry.version.is_empty() {
        return Ok(());
    }
    let mut headers = HeaderMap::new();
    let range = HeaderValue::try_from(format!("bytes={have}-")).ok();
    if let Some((tag, range)) = tag.as_ref().and_then(|tag| HeaderValue::from_str(tag).ok()).zip(range) {
        headers.insert(IF_RANGE, tag);
        headers.insert(RANGE, range);
    }
    let mut response = web.send(Method::GET, url, headers, is_hub).await?;
    let again = |reason: &str| {
        let _ = fs::remove_file(partial);
        Err(Failure::passing(reason))
    };
    let failed = |error| Failure::Disk(ShardError::io("write", partial)(error));
    let (expected, file) = match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let start = header(&response, CONTENT_RANGE).and_then(|range| range.trim().strip_prefix("bytes "));
            let start = start.and_then(|range| range.split('-').next()?.trim().parse::<u64>().ok());
            if start != Some(have) {
                return again("it sent another part than was asked for");
            }
            (total(&response), OpenOptions::new().append(true).open(partial))
        }
        StatusCode::OK => {
            let strong = header(&response, ETAG).filter(|tag| tag.starts_with('"'));
            let tag = strong.or_else(|| header(&response, LAST_MODIFIED)).unwrap_or("");
            // The mark is never newer than the content that it stands beside.
            let _ = fs::remove_file(partial);
            fs::write(&tag_path, tag).map_err(|error| Failure::Disk(ShardError::io("write", &tag_path)(error)))?;
            (response.content_length(), File::create(partial))
        }
        // Nothing follows what came: it was whole.
        StatusCode::RANGE_NOT_SATISFIABLE if have > 0 && total(&response) == Some(have) => return Ok(()),
        _ => return again("it says that it has less than came before"),
    };
    let mut file = file.map_err(failed)?;
    while let Some(chunk) = response.chunk().await.map_err(|error| Failure::passing(in_words(error)))? {
        file.write_all(&chunk).map_err(failed)?;
        watch.came(chunk.len() as u64);
        if watch.is_cancelled() {
            return Err(Failure::Cancelled);
        }
    }
    if expected.is_some_and(|expected| expected > length(partial)) {
        return Err(Failure::passing("the transfer broke off"));
    }
    file.sync_all().map_err(failed)
}

/// The file beside a partial one that holds the mark of its content.
pub(super) fn tag_path(partial: &Path) -> PathBuf {
    let mut name = partial.file_name().unwrap_or_default().to_owned();
    name.push(".tag");
    partial.with_file_name(name)
}
