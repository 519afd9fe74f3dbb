//! Lists on the web and on the Hugging Face Hub, whose plain HTTP interface is used.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_RANGE, LAST_MODIFIED,
    LINK, RANGE, RETRY_AFTER,
};
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde::Deserialize;
use shards::ShardError;

use super::super::location::{Entries, Entry, Format, format_of_file, of_one_format};
use super::{Access, Failure, MOST_FILES, SHA256, length};

/// A page of a folder's listing; the Hub's have 1000 entries at most.
const LARGEST_PAGE: usize = 64 << 20;

/// Where a file is asked for.
pub(super) enum Origin {
    Web(Url),
    /// The token is sent as well.
    Hub(Url),
}

/// A client that sends a token to the endpoint only. reqwest takes the header away when a redirect leads to another host.
struct Web {
    client: Client,
    token: Option<HeaderValue>,
    endpoint: Option<Url>,
}

impl Web {
    fn open(access: &Access) -> Result<Self, Failure> {
        let client = Client::builder()
            .user_agent(concat!("ferrotype/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_mins(1))
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

    async fn send(&self, method: Method, url: &Url, headers: HeaderMap, is_hub: bool) -> Result<Response, Failure> {
        let mut request = self.client.request(method, url.clone()).headers(headers);
        let is_endpoint = self.endpoint.as_ref().is_some_and(|endpoint| endpoint.origin() == url.origin());
        if let Some(token) = self.token.as_ref().filter(|_| is_hub && is_endpoint) {
            request = request.header(AUTHORIZATION, token.clone());
        }
        let response = request.send().await.map_err(|error| Failure::passing(in_words(error)))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let passes =
            status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
        if passes {
            let wait = text(&response, RETRY_AFTER).and_then(|seconds| seconds.trim().parse().ok());
            return Err(Failure::Passing(format!("it answers {status}"), wait.map(Duration::from_secs)));
        }
        let hint = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND if is_hub => {
                "; does it exist, and may the token in HF_TOKEN read it?"
            }
            _ => "",
        };
        Err(Failure::Final(format!("it answers {status}{hint}")))
    }
}

/// An error with what is below it, and without the URL, which may hold a secret.
fn in_words(error: reqwest::Error) -> String {
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

fn text(response: &Response, name: HeaderName) -> Option<&str> {
    response.headers().get(name).and_then(|value| value.to_str().ok())
}

/// What changes with the content, if the other side says: a digest of its own, else a time.
fn version(response: &Response) -> String {
    let version = text(response, ETAG).or_else(|| text(response, LAST_MODIFIED));
    version.unwrap_or("").trim_start_matches("W/").to_owned()
}

/// The file at a URL.
pub(super) async fn entries_of_url(
    url: &Url,
    shown: &str,
    format: Option<Format>,
    access: &Access,
) -> Result<(Format, Entries), Failure> {
    let name = url.path().rsplit('/').next().unwrap_or("").to_owned();
    let format = format_of_file(shown, &name, format).map_err(Failure::List)?;
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
        _ => text(&response, CONTENT_LENGTH).and_then(|length| length.parse().ok()).filter(|&length: &u64| length > 0),
    };
    let files = vec![Entry { name, bytes, version: version(&response) }];
    Ok((format, Entries { is_folder: false, files }))
}

/// The length of the whole, of which a part was sent.
fn total(response: &Response) -> Option<u64> {
    text(response, CONTENT_RANGE)?.rsplit_once('/')?.1.trim().parse().ok()
}

#[derive(Deserialize)]
struct HubEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    oid: String,
    #[serde(default)]
    size: u64,
    lfs: Option<HubLarge>,
}

#[derive(Deserialize)]
struct HubLarge {
    /// SHA-256 of the content.
    oid: String,
    size: u64,
}

impl HubEntry {
    fn entry(self, name: String) -> Entry {
        match self.lfs {
            Some(large) => Entry { name, bytes: Some(large.size), version: format!("{SHA256}{}", large.oid) },
            None => Entry { name, bytes: Some(self.size), version: format!("git:{}", self.oid) },
        }
    }
}

/// The files at a path of a dataset repository: the file itself, or those below the folder.
pub(super) async fn entries_of_hub(
    repository: &str,
    revision: &str,
    path: &str,
    shown: &str,
    format: Option<Format>,
    access: &Access,
) -> Result<(Format, Entries), Failure> {
    let web = Web::open(access)?;
    if !path.is_empty() {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut found = tree(&web, repository, revision, folder, false, access).await?;
        found.retain(|entry| entry.path == path);
        match found.pop() {
            Some(entry) if entry.kind == "file" => {
                let name = path.rsplit('/').next().unwrap_or(path).to_owned();
                let format = format_of_file(shown, &name, format).map_err(Failure::List)?;
                return Ok((format, Entries { is_folder: false, files: vec![entry.entry(name)] }));
            }
            Some(_) => {}
            None => return Err(Failure::Final(format!("the dataset {repository} has no `{path}` in {revision}"))),
        }
    }
    let found = tree(&web, repository, revision, path, true, access).await?;
    let inside = |entry: HubEntry| {
        let name = entry.path.strip_prefix(path)?.trim_start_matches('/').to_owned();
        // The name becomes a path only on the Hub; what is hidden is left out as in local folders.
        let is_hidden = name.split('/').any(|part| part.starts_with('.'));
        (entry.kind == "file" && !name.is_empty() && !is_hidden).then(|| entry.entry(name))
    };
    let entries = found.into_iter().filter_map(inside).collect();
    let (format, files) = of_one_format(shown, entries, format).map_err(Failure::List)?;
    Ok((format, Entries { is_folder: true, files }))
}

/// A URL below the endpoint; every part is escaped.
fn below<'a>(access: &Access, parts: impl Iterator<Item = &'a str>) -> Result<Url, Failure> {
    let invalid = || Failure::Final(format!("HF_ENDPOINT = {} is no URL of a server", access.endpoint));
    let mut url = Url::parse(&access.endpoint).map_err(|_malformed| invalid())?;
    url.path_segments_mut().map_err(|()| invalid())?.pop_if_empty().extend(parts);
    Ok(url)
}

/// Where a file of a dataset repository is.
pub(super) fn hub_file(repository: &str, revision: &str, path: &str, access: &Access) -> Result<Url, Failure> {
    let start = ["datasets"].into_iter().chain(repository.split('/'));
    below(access, start.chain(["resolve", revision]).chain(path.split('/')))
}

/// What is in a folder of a dataset repository, page by page.
async fn tree(
    web: &Web,
    repository: &str,
    revision: &str,
    path: &str,
    is_deep: bool,
    access: &Access,
) -> Result<Vec<HubEntry>, Failure> {
    let start = ["api", "datasets"].into_iter().chain(repository.split('/'));
    let parts = start.chain(["tree", revision]).chain(path.split('/').filter(|part| !part.is_empty()));
    let mut url = below(access, parts)?;
    if is_deep {
        url.query_pairs_mut().append_pair("recursive", "true");
    }
    let mut found: Vec<HubEntry> = Vec::new();
    loop {
        let mut response = web.send(Method::GET, &url, HeaderMap::new(), true).await?;
        let next = text(&response, LINK).and_then(next_page).and_then(|next| url.join(next).ok());
        let mut page = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| Failure::passing(in_words(error)))? {
            if page.len() + chunk.len() > LARGEST_PAGE {
                return Err(Failure::Final("a page of its listing is larger than 64 MB".to_owned()));
            }
            page.extend_from_slice(&chunk);
        }
        let page: Vec<HubEntry> = serde_json::from_slice(&page)
            .map_err(|error| Failure::Final(format!("its listing is not what the Hub gives: {error}")))?;
        let is_empty = page.is_empty();
        found.extend(page);
        if found.len() > MOST_FILES {
            return Err(Failure::Final(format!("it has more than {MOST_FILES} files")));
        }
        match next {
            Some(next) if !is_empty => url = next,
            _ => return Ok(found),
        }
    }
}

/// The URL in a header such as `<https://…>; rel="next"`.
fn next_page(link: &str) -> Option<&str> {
    let links = link.split(',').filter_map(|link| link.split_once('>'));
    links
        .filter(|(_, relation)| relation.contains("rel=\"next\"") || relation.contains("rel=next"))
        .find_map(|(url, _)| url.trim().strip_prefix('<'))
}

/// Brings what is missing of a file, in one try.
pub(super) async fn fetch(origin: Origin, entry: &Entry, partial: &Path, access: &Access) -> Result<(), Failure> {
    let (url, is_hub) = match origin {
        Origin::Web(url) => (url, false),
        Origin::Hub(url) => (url, true),
    };
    let web = Web::open(access)?;
    let tag_path = tag_path(partial);
    // Without a mark of the content there is no telling whether what follows belongs to what is here.
    let tag = fs::read_to_string(&tag_path).ok().filter(|tag| !tag.is_empty() && length(partial) > 0);
    let have = if tag.is_some() { length(partial) } else { 0 };
    if have > 0 && entry.bytes == Some(have) {
        return Ok(());
    }
    let mut headers = HeaderMap::new();
    let range = HeaderValue::try_from(format!("bytes={have}-")).ok();
    if let Some((tag, range)) = tag.as_ref().and_then(|tag| HeaderValue::from_str(tag).ok()).zip(range) {
        headers.insert(IF_RANGE, tag);
        headers.insert(RANGE, range);
    }
    let mut response = web.send(Method::GET, &url, headers, is_hub).await?;
    let again = |reason: &str| {
        let _ = fs::remove_file(partial);
        Err(Failure::passing(reason))
    };
    let failed = |error| Failure::Disk(ShardError::io("write", partial)(error));
    let (expected, file) = match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let start = text(&response, CONTENT_RANGE).and_then(|range| range.trim().strip_prefix("bytes "));
            let start = start.and_then(|range| range.split('-').next()?.trim().parse::<u64>().ok());
            if start != Some(have) {
                return again("it sent another part than was asked for");
            }
            (total(&response), OpenOptions::new().append(true).open(partial))
        }
        StatusCode::OK => {
            let strong = text(&response, ETAG).filter(|tag| tag.starts_with('"'));
            let tag = strong.or_else(|| text(&response, LAST_MODIFIED)).unwrap_or("");
            // The mark is never newer than the content that it stands beside.
            let _ = fs::remove_file(partial);
            fs::write(&tag_path, tag).map_err(|error| Failure::Disk(ShardError::io("write", &tag_path)(error)))?;
            (response.content_length(), File::create(partial))
        }
        _ => return again("it says that it has less than came before"),
    };
    let mut file = file.map_err(failed)?;
    while let Some(chunk) = response.chunk().await.map_err(|error| Failure::passing(in_words(error)))? {
        file.write_all(&chunk).map_err(failed)?;
    }
    if expected.is_some_and(|expected| expected > length(partial)) {
        return Err(Failure::passing("the transfer broke off"));
    }
    file.sync_all().map_err(failed)?;
    let _ = fs::remove_file(tag_path);
    Ok(())
}

/// The file beside a partial one that holds the mark of its content.
fn tag_path(partial: &Path) -> PathBuf {
    let mut name = partial.file_name().unwrap_or_default().to_owned();
    name.push(".tag");
    partial.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_among_links() {
        assert_eq!(next_page("<http://h/a?x=1>; rel=\"next\""), Some("http://h/a?x=1"));
        assert_eq!(next_page("<http://h/z>; rel=\"last\", <http://h/b>; rel=\"next\""), Some("http://h/b"));
        assert_eq!(next_page("<http://h/z>; rel=\"last\""), None);
    }
}
