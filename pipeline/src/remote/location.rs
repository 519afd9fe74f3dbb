//! Where something lies elsewhere, and which files that comes to.

use std::path::PathBuf;

use reqwest::Url;
use serde::{Deserialize, Serialize};

/// What kind of repository the Hugging Face Hub is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RepositoryKind {
    Dataset,
    Model,
}

impl RepositoryKind {
    /// As the Hub's interface calls it.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Dataset => "datasets",
            Self::Model => "models",
        }
    }

    pub(crate) fn singular(self) -> &'static str {
        match self {
            Self::Dataset => "dataset",
            Self::Model => "model",
        }
    }
}

/// A repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repository {
    pub(crate) kind: RepositoryKind,
    /// `owner/name`
    pub(crate) name: String,
    /// A branch, a tag, or the id of a commit.
    pub(crate) revision: String,
}

impl Repository {
    /// Whether the revision is the id of a commit, which never means anything else.
    pub(crate) fn is_pinned(&self) -> bool {
        self.revision.len() == 40 && self.revision.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

/// Where a file, or a folder of files, is.
#[derive(Clone, Debug)]
pub(crate) enum Location {
    Local(PathBuf),
    Http(Url),
    /// `hf://datasets/<owner>/<name>[@<revision>]/<path>`, or `hf://<owner>/<name>…` of a model.
    Hub {
        repository: Repository,
        path: String,
    },
    /// `s3://<bucket>/<path>`
    Store {
        bucket: String,
        path: String,
    },
    /// None of these; why.
    Invalid(&'static str),
}

impl Location {
    pub(crate) fn parse(text: &str) -> Self {
        if let Some(rest) = text.strip_prefix("hf://") {
            return Self::hub(rest).unwrap_or(Self::Invalid(
                "write hf://datasets/OWNER/NAME/PATH or hf://datasets/OWNER/NAME@REVISION/PATH (of a model: hf://OWNER/NAME)",
            ));
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Self::Invalid("it names no bucket: write s3://BUCKET/PATH");
            }
            return Self::Store { bucket: bucket.to_owned(), path: path.trim_matches('/').to_owned() };
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            return Url::parse(text).map_or(Self::Invalid("it is no valid URL"), Self::Http);
        }
        if text.contains("://") {
            return Self::Invalid("expected a path, hf://…, s3://…, https://… or http://…");
        }
        if text.is_empty() { Self::Invalid("it is empty") } else { Self::Local(PathBuf::from(text)) }
    }

    fn hub(rest: &str) -> Option<Self> {
        let (kind, rest) = match rest.split_once('/')? {
            ("datasets", rest) => (RepositoryKind::Dataset, rest),
            ("models", rest) => (RepositoryKind::Model, rest),
            ("spaces", _) => return None,
            _ => (RepositoryKind::Model, rest),
        };
        let mut parts = rest.splitn(3, '/');
        let (owner, name, path) = (parts.next()?, parts.next()?, parts.next().unwrap_or(""));
        let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
        let (mut revision, mut path) = (revision.replace("%2F", "/"), path.to_owned());
        if revision == "refs" {
            // `refs/convert/parquet` and `refs/pr/1` are revisions with slashes.
            let mut parts = path.splitn(3, '/');
            revision = format!("refs/{}/{}", parts.next()?, parts.next()?);
            path = parts.next().unwrap_or("").to_owned();
        }
        let path = path.trim_matches('/').to_owned();
        let is_whole = !owner.is_empty() && !name.is_empty() && !revision.is_empty();
        let repository = Repository { kind, name: format!("{owner}/{name}"), revision };
        is_whole.then_some(Self::Hub { repository, path })
    }

    /// The last part of its path.
    pub(crate) fn name(&self) -> String {
        let last = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or("").to_owned();
        match self {
            Self::Local(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            Self::Http(url) => last(url.path()),
            Self::Hub { path, repository } => last(if path.is_empty() { &repository.name } else { path }),
            Self::Store { path, bucket } => last(if path.is_empty() { bucket } else { path }),
            Self::Invalid(_) => String::new(),
        }
    }
}

/// A location as it may be shown: what can hold a secret is left out.
pub(crate) fn without_secrets(location: &str) -> String {
    let Some((scheme, rest)) = location.split_once("://") else { return location.to_owned() };
    let rest = rest.split(['?', '#']).next().unwrap_or("");
    let (host, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
    // `hf://datasets/owner/name@revision` has its @ behind the host, a password before it.
    let host = host.rsplit('@').next().unwrap_or("");
    path.map_or_else(|| format!("{scheme}://{host}"), |path| format!("{scheme}://{host}/{path}"))
}

/// A file at a location, before anything of it is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Relative to the location, with `/` between folders; the file's own name where the location is a file.
    pub(crate) name: String,
    pub(crate) bytes: Option<u64>,
    /// Changes when the content does: a time of modification, an ETag, an object's digest.
    pub(crate) version: String,
}

/// The files of a location.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entries {
    pub(crate) is_folder: bool,
    /// Sorted by name.
    pub(crate) files: Vec<Entry>,
}

impl Entries {
    /// The files of a folder, none of which is hidden.
    pub(super) fn of_folder(mut files: Vec<Entry>) -> Self {
        files.retain(|entry| !entry.name.split('/').any(|part| part.starts_with('.')));
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Self { is_folder: true, files }
    }

    /// The location itself.
    pub(super) fn of_file(entry: Entry) -> Self {
        Self { is_folder: false, files: vec![entry] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_told_apart_and_shown_without_secrets() {
        let hub = |text: &str| match Location::parse(text) {
            Location::Hub { repository, path } => {
                Some((repository.kind.singular(), repository.name, repository.revision, path))
            }
            _ => None,
        };
        let expect = |kind, name: &str, revision: &str, path: &str| {
            Some((kind, name.to_owned(), revision.to_owned(), path.to_owned()))
        };
        assert_eq!(hub("hf://datasets/a/b/c/d.csv"), expect("dataset", "a/b", "main", "c/d.csv"));
        assert_eq!(hub("hf://datasets/a/b"), expect("dataset", "a/b", "main", ""));
        assert_eq!(hub("hf://datasets/a/b@v1/c/"), expect("dataset", "a/b", "v1", "c"));
        let converted = expect("dataset", "a/b", "refs/convert/parquet", "d");
        assert_eq!(hub("hf://datasets/a/b@refs/convert/parquet/d"), converted);
        assert_eq!(hub("hf://datasets/a/b@refs%2Fpr%2F1/d"), expect("dataset", "a/b", "refs/pr/1", "d"));
        assert_eq!(hub("hf://a/b/c"), expect("model", "a/b", "main", "c"));
        assert_eq!(hub("hf://models/a/b@v2"), expect("model", "a/b", "v2", ""));
        assert!(matches!(Location::parse("s3://b/x/"), Location::Store { path, .. } if path == "x"));
        assert!(matches!(Location::parse("a/b.csv"), Location::Local(_)));
        for bad in ["hf://a", "hf://datasets/a", "hf://spaces/a/b", "s3:///x", "ftp://x/y.csv", "", "https://"] {
            assert!(matches!(Location::parse(bad), Location::Invalid(_)), "{bad}");
        }
        assert_eq!(without_secrets("https://me:pw@host/a.csv?sig=1#x"), "https://host/a.csv");
        assert_eq!(without_secrets("hf://datasets/a/b@v1/c"), "hf://datasets/a/b@v1/c");
        assert_eq!(Location::parse("https://h/a/l.csv.gz?x=/y").name(), "l.csv.gz");
    }

    #[test]
    fn the_id_of_a_commit_is_told_from_a_branch() {
        let repository = |revision: &str| Repository {
            kind: RepositoryKind::Dataset,
            name: "a/b".to_owned(),
            revision: revision.to_owned(),
        };
        assert!(repository("0123456789abcdef0123456789abcdef01234567").is_pinned());
        assert!(!repository("main").is_pinned() && !repository(&"g".repeat(40)).is_pinned());
    }
}
