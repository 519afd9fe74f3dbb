//! What the hub holds: repositories, their commits, and objects of the large file storage.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use crate::access::Access;
use crate::git::{hex, object, pointer, sha256};
use crate::lfs::Upload;
use crate::settings::Settings;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RepoKind {
    Model,
    Dataset,
    Space,
}

impl RepoKind {
    pub(crate) const ALL: [Self; 3] = [Self::Model, Self::Dataset, Self::Space];

    /// As `api/repos/create` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
            Self::Space => "space",
        }
    }

    /// Before the name of a repository, in the address of its page.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
            Self::Space => "spaces/",
        }
    }

    /// As the API has it in paths: `models`, `datasets`, `spaces`.
    pub(crate) fn of_plural(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| word.strip_suffix('s') == Some(kind.name()))
    }
}

/// A file of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub content: Bytes,
    /// Of one that lies in the large file storage.
    pub sha256: Option<String>,
    object: [u8; 20],
}

impl File {
    pub(crate) fn plain(content: Bytes) -> Self {
        let object = object("blob", &content);
        Self { content, sha256: None, object }
    }

    pub(crate) fn large(content: Bytes) -> Self {
        let sha256 = sha256(&content);
        let object = object("blob", pointer(&sha256, content.len()).as_bytes());
        Self { content, sha256: Some(sha256), object }
    }

    /// The oid of what git holds: of the pointer, for a large file.
    pub fn oid(&self) -> String {
        hex(&self.object)
    }

    pub fn is_lfs(&self) -> bool {
        self.sha256.is_some()
    }

    /// What the Hub gives as its `ETag`, without quotes.
    pub fn etag(&self) -> String {
        self.sha256.clone().unwrap_or_else(|| self.oid())
    }

    pub(crate) fn object(&self) -> &[u8; 20] {
        &self.object
    }

    pub(crate) fn pointer_size(&self) -> usize {
        self.sha256.as_ref().map_or(0, |sha256| pointer(sha256, self.content.len()).len())
    }
}

pub(crate) type Files = BTreeMap<String, File>;

/// A commit is never changed.
#[derive(Clone, Debug)]
pub struct Commit {
    pub oid: String,
    pub parent: Option<String>,
    pub title: String,
    pub description: String,
    pub author: String,
    pub(crate) date: String,
    pub(crate) files: Arc<Files>,
}

/// Who may see what of a repository without asking for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Gate {
    #[default]
    Open,
    /// Files cannot be read.
    Content,
    /// Nor listed. What the repository is can be asked by everybody.
    Listings,
}

#[derive(Debug)]
pub(crate) struct Repo {
    pub(crate) kind: RepoKind,
    /// `owner/name`.
    pub(crate) name: String,
    pub(crate) private: bool,
    pub(crate) gate: Gate,
    /// By their whole names, such as `refs/heads/main`.
    pub(crate) refs: BTreeMap<String, String>,
    pub(crate) commits: HashMap<String, Commit>,
    /// What was uploaded for it, committed or not.
    pub(crate) objects: HashMap<String, Bytes>,
}

impl Repo {
    pub(crate) fn new(kind: RepoKind, name: &str) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            private: false,
            gate: Gate::Open,
            refs: BTreeMap::new(),
            commits: HashMap::new(),
            objects: HashMap::new(),
        }
    }

    pub(crate) fn owner(&self) -> &str {
        self.name.split_once('/').map_or("", |(owner, _)| owner)
    }

    /// The whole name of a branch, tag or other reference.
    pub(crate) fn reference(&self, revision: &str) -> Option<String> {
        let names = [revision.to_owned(), format!("refs/heads/{revision}"), format!("refs/tags/{revision}")];
        names.into_iter().find(|name| self.refs.contains_key(name))
    }

    pub(crate) fn commit(&self, revision: &str) -> Option<&Commit> {
        let named = self.reference(revision).and_then(|name| self.refs.get(&name));
        self.commits.get(named.map_or(revision, String::as_str))
    }

    /// From a commit back to the first.
    pub(crate) fn history<'a>(&'a self, commit: &'a Commit) -> impl Iterator<Item = &'a Commit> {
        std::iter::successors(Some(commit), |commit| commit.parent.as_ref().and_then(|oid| self.commits.get(oid)))
    }

    /// The commit that made what a path, of a file or of a folder, is at another.
    pub(crate) fn last_change<'a>(&'a self, commit: &'a Commit, path: &str) -> &'a Commit {
        let folder = format!("{path}/");
        let at = |commit: &'a Commit| {
            let files = commit.files.iter().filter(|(name, _)| *name == path || name.starts_with(&folder));
            files.map(|(name, file)| (name, file.object())).collect::<Vec<_>>()
        };
        let now = at(commit);
        self.history(commit).take_while(|commit| at(commit) == now).last().unwrap_or(commit)
    }
}

/// What a commit is made of.
pub(crate) struct Draft<'a> {
    pub(crate) author: &'a str,
    pub(crate) title: &'a str,
    pub(crate) description: &'a str,
    pub(crate) files: Files,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) settings: Settings,
    pub(crate) repos: BTreeMap<(RepoKind, String), Repo>,
    pub(crate) tokens: HashMap<String, Access>,
    pub(crate) uploads: HashMap<String, Upload>,
    /// Links of an earlier generation are no longer good.
    pub(crate) generation: u64,
    numbers: u64,
}

impl State {
    /// One that was not given before.
    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// A commit after what the reference is at, to which the reference moves. The same calls on a new hub give the same oids.
    pub(crate) fn commit(&mut self, key: &(RepoKind, String), reference: &str, draft: Draft<'_>) -> Option<String> {
        let number = self.number();
        let repo = self.repos.get_mut(key)?;
        let parent = repo.refs.get(reference).cloned();
        for file in draft.files.values() {
            if let Some(sha256) = &file.sha256 {
                repo.objects.insert(sha256.clone(), file.content.clone());
            }
        }
        let tree = crate::git::folders(&draft.files).remove("").unwrap_or_default();
        let text = format!("tree {tree}\nparent {parent:?}\nnumber {number}\n\n{}\n{}", draft.title, draft.description);
        let oid = hex(&object("commit", text.as_bytes()));
        let commit = Commit {
            oid: oid.clone(),
            parent,
            title: draft.title.to_owned(),
            description: draft.description.to_owned(),
            author: draft.author.to_owned(),
            date: date(number),
            files: Arc::new(draft.files),
        };
        repo.commits.insert(oid.clone(), commit);
        repo.refs.insert(reference.to_owned(), oid.clone());
        Some(oid)
    }
}

/// So many seconds into 2024. It does not tell the time, so that runs are the same.
fn date(number: u64) -> String {
    let (day, hour, minute, second) = (number / 86400 % 31 + 1, number / 3600 % 24, number / 60 % 60, number % 60);
    format!("2024-01-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z")
}
