//! Repositories of the Hugging Face Hub, by its plain HTTP interface. Files that it keeps in its newer storage (Xet) come by the
//! same addresses.

use reqwest::header::{HeaderMap, LINK};
use reqwest::{Method, Response, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::location::{Entries, Entry, Repository};
use super::web::{Web, header, in_words};
use super::{Access, Failure, GIT, MOST_FILES, SHA256};

/// A page of a folder's listing; the Hub's have 1000 entries at most.
const LARGEST_PAGE: usize = 64 << 20;

/// What a listing says of a file or folder.
#[derive(Deserialize)]
pub(super) struct TreeEntry {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) path: String,
    #[serde(default)]
    pub(super) oid: String,
    #[serde(default)]
    pub(super) size: u64,
    pub(super) lfs: Option<Large>,
}

/// A file that is not in git itself.
#[derive(Deserialize)]
pub(super) struct Large {
    /// SHA-256 of the content.
    pub(super) oid: String,
    pub(super) size: u64,
}

impl TreeEntry {
    fn entry(self, name: String) -> Entry {
        match self.lfs {
            Some(large) => Entry { name, bytes: Some(large.size), version: format!("{SHA256}{}", large.oid) },
            None => Entry { name, bytes: Some(self.size), version: format!("{GIT}{}", self.oid) },
        }
    }
}

/// A URL below the endpoint; every part is escaped.
pub(super) fn below<'a>(access: &Access, parts: impl Iterator<Item = &'a str>) -> Result<Url, Failure> {
    let invalid = || Failure::Final(format!("HF_ENDPOINT = {} is no URL of a server", access.endpoint));
    let mut url = Url::parse(&access.endpoint).map_err(|_malformed| invalid())?;
    url.path_segments_mut().map_err(|()| invalid())?.pop_if_empty().extend(parts);
    Ok(url)
}

/// A URL of the interface about a repository.
pub(super) fn about(repository: &Repository, parts: &[&str], access: &Access) -> Result<Url, Failure> {
    let start = ["api", repository.kind.plural()].into_iter().chain(repository.name.split('/'));
    below(access, start.chain(parts.iter().copied()))
}

/// Where a file of a repository is.
pub(super) fn file(repository: &Repository, path: &str, access: &Access) -> Result<Url, Failure> {
    // Models have no folder of their own there.
    let kind = (repository.kind == super::RepositoryKind::Dataset).then_some("datasets");
    let start = kind.into_iter().chain(repository.name.split('/'));
    below(access, start.chain(["resolve", &repository.revision]).chain(path.split('/')))
}

/// The commit that a repository's revision is now.
pub(super) async fn commit_of(repository: &Repository, access: &Access) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Revision {
        sha: String,
    }
    let web = Web::open(access)?;
    let url = about(repository, &["revision", &repository.revision], access)?;
    let response = web.send(Method::GET, &url, HeaderMap::new(), true).await?;
    let Revision { sha } = json(response, "its description").await?;
    let pinned = Repository { revision: sha, ..repository.clone() };
    if pinned.is_pinned() {
        return Ok(pinned.revision);
    }
    Err(Failure::Final(format!("it says that its revision {} is no commit", repository.revision)))
}

/// The files at a path of a repository: the file itself, or those below the folder.
pub(super) async fn entries(repository: &Repository, path: &str, access: &Access) -> Result<Entries, Failure> {
    let web = Web::open(access)?;
    if !path.is_empty() {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut found = tree(&web, repository, folder, false, access).await?;
        found.retain(|entry| entry.path == path);
        match found.pop() {
            Some(entry) if entry.kind == "file" => {
                let name = path.rsplit('/').next().unwrap_or(path).to_owned();
                return Ok(Entries::of_file(entry.entry(name)));
            }
            Some(_) => {}
            None => {
                let (kind, name, revision) = (repository.kind.singular(), &repository.name, &repository.revision);
                return Err(Failure::Final(format!("the {kind} {name} has no `{path}` in {revision}")));
            }
        }
    }
    let found = tree(&web, repository, path, true, access).await?;
    let inside = |entry: TreeEntry| {
        let name = entry.path.strip_prefix(path)?.trim_start_matches('/').to_owned();
        (entry.kind == "file" && !name.is_empty()).then(|| entry.entry(name))
    };
    Ok(Entries::of_folder(found.into_iter().filter_map(inside).collect()))
}

/// What is in a folder of a repository, page by page.
pub(super) async fn tree(
    web: &Web,
    repository: &Repository,
    path: &str,
    is_deep: bool,
    access: &Access,
) -> Result<Vec<TreeEntry>, Failure> {
    let inside: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let mut url = about(repository, &[&["tree", repository.revision.as_str()], inside.as_slice()].concat(), access)?;
    if is_deep {
        url.query_pairs_mut().append_pair("recursive", "true");
    }
    let mut found: Vec<TreeEntry> = Vec::new();
    loop {
        let response = web.send(Method::GET, &url, HeaderMap::new(), true).await?;
        let next = header(&response, LINK).and_then(next_page).and_then(|next| url.join(next).ok());
        let page: Vec<TreeEntry> = json(response, "its listing").await?;
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

/// An answer of the interface; `what` it is, for the error.
pub(super) async fn json<T: DeserializeOwned>(mut response: Response, what: &str) -> Result<T, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Failure::passing(in_words(error)))? {
        if body.len() + chunk.len() > LARGEST_PAGE {
            return Err(Failure::Final(format!("{what} is larger than 64 MB")));
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).map_err(|error| Failure::Final(format!("{what} is not what the Hub gives: {error}")))
}

/// The URL in a header such as `<https://…>; rel="next"`.
fn next_page(link: &str) -> Option<&str> {
    let links = link.split(',').filter_map(|link| link.split_once('>'));
    links
        .filter(|(_, relation)| relation.contains("rel=\"next\"") || relation.contains("rel=next"))
        .find_map(|(url, _)| url.trim().strip_prefix('<'))
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
