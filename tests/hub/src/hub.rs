//! The hub as tests have it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::access::Access;
use crate::faults::{Fault, Faults};
use crate::records::{Asked, Records, Side};
use crate::server::{self, Shared};
use crate::settings::Settings;
use crate::store::{Commit, Draft, File, Files, Gate, Repo, RepoKind, State};

/// Two servers on threads of their own, which stop when it is dropped.
#[derive(Debug)]
pub struct Hub {
    runtime: Option<Runtime>,
    shared: Arc<Shared>,
}

impl Hub {
    pub fn start() -> io::Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("hub").enable_all().build()?;
        let (hub_listener, hub) = server::listen([127, 0, 0, 1])?;
        // Another host, and not only another port: clients that stay on a host keep their token.
        let (cdn_listener, cdn) = server::listen([127, 0, 0, 2])?;
        let (faults, records) = (Faults::default(), Records::default());
        let shared = Arc::new(Shared { state: State::default().into(), faults, records, hub, cdn });
        let inside = runtime.enter();
        for (side, listener) in [(Side::Hub, hub_listener), (Side::Cdn, cdn_listener)] {
            runtime.spawn(server::run(TcpListener::from_std(listener)?, side, Arc::clone(&shared)));
        }
        drop(inside);
        Ok(Self { runtime: Some(runtime), shared })
    }

    /// For `HF_ENDPOINT`: no slash at its end.
    pub fn endpoint(&self) -> String {
        self.shared.endpoint()
    }

    /// The base of links to the storage.
    pub fn storage(&self) -> String {
        format!("http://{}", self.shared.cdn)
    }

    pub fn token(&self, token: &str, access: Access) {
        self.shared.state().tokens.insert(token.to_owned(), access);
    }

    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.shared.state().settings);
    }

    /// A public repository without a commit, if there is none of that name, `owner/name`.
    pub fn create(&self, kind: RepoKind, name: &str) -> Handle<'_> {
        let key = (kind, name.to_owned());
        self.shared.state().repos.entry(key.clone()).or_insert_with(|| Repo::new(kind, name));
        Handle { hub: self, key }
    }

    pub fn fault(&self, fault: Fault) {
        self.shared.faults.order(fault);
    }

    /// Every request is answered 503, for a time.
    pub fn outage(&self, time: Duration) {
        self.fault(Fault::status(503).always().lasting(time));
    }

    /// No fault is left.
    pub fn heal(&self) {
        self.shared.faults.clear();
    }

    /// No link that was given out until now is good any longer.
    pub fn expire_links(&self) {
        self.shared.state().generation += 1;
    }

    /// All requests until now, as they came.
    pub fn requests(&self) -> Vec<Asked> {
        self.shared.records.all()
    }

    /// Requests by a method that have this in their address.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.requests().iter().filter(|asked| asked.method == method && asked.path.contains(path)).count()
    }

    /// What is in a repository at a branch, tag or commit; none where there is no such thing.
    pub fn files(&self, kind: RepoKind, repo: &str, revision: &str) -> Option<BTreeMap<String, Bytes>> {
        let files = self.stored(kind, repo, revision)?;
        Some(files.into_iter().map(|(path, file)| (path, file.content)).collect())
    }

    /// The same with how it is kept.
    pub fn stored(&self, kind: RepoKind, repo: &str, revision: &str) -> Option<BTreeMap<String, File>> {
        let state = self.shared.state();
        let commit = state.repos.get(&(kind, repo.to_owned()))?.commit(revision)?;
        Some(Files::clone(&commit.files))
    }

    /// The commits of a branch, newest first.
    pub fn commits(&self, kind: RepoKind, repo: &str, revision: &str) -> Vec<Commit> {
        let state = self.shared.state();
        let Some(repo) = state.repos.get(&(kind, repo.to_owned())) else { return Vec::new() };
        repo.commit(revision).into_iter().flat_map(|commit| repo.history(commit)).cloned().collect()
    }

    /// Whether a repository is private; none where there is none.
    pub fn is_private(&self, kind: RepoKind, repo: &str) -> Option<bool> {
        self.shared.state().repos.get(&(kind, repo.to_owned())).map(|repo| repo.private)
    }

    /// sha256 of what was uploaded for a repository, whether committed or not.
    pub fn objects(&self, kind: RepoKind, repo: &str) -> Vec<String> {
        let state = self.shared.state();
        let Some(repo) = state.repos.get(&(kind, repo.to_owned())) else { return Vec::new() };
        let mut objects: Vec<_> = repo.objects.keys().cloned().collect();
        objects.sort();
        objects
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A repository that a test fills.
#[derive(Clone, Debug)]
pub struct Handle<'a> {
    hub: &'a Hub,
    key: (RepoKind, String),
}

impl Handle<'_> {
    fn change<T>(&self, change: impl FnOnce(&mut Repo) -> T) -> Option<T> {
        self.hub.shared.state().repos.get_mut(&self.key).map(change)
    }

    #[must_use]
    pub fn private(self) -> Self {
        self.change(|repo| repo.private = true);
        self
    }

    /// Only those who have been let in can read its files. What they are can be listed by everybody, as on the Hub now.
    #[must_use]
    pub fn gated(self) -> Self {
        self.change(|repo| repo.gate = Gate::Content);
        self
    }

    /// Nor can the files be listed, as on the Hub until 2024.
    #[must_use]
    pub fn gated_listings(self) -> Self {
        self.change(|repo| repo.gate = Gate::Listings);
        self
    }

    /// Adds files, or replaces them, in a commit after what the branch is at, if it is there; the oid of the commit. A name such
    /// as `refs/convert/parquet` is taken as it is. What is large and what is not is decided as for uploads.
    pub fn commit<P: Into<String>, C: Into<Bytes>>(
        &self,
        branch: &str,
        files: impl IntoIterator<Item = (P, C)>,
    ) -> String {
        self.edit(branch, |all, settings| {
            for (path, content) in files {
                let (path, content) = (path.into(), content.into());
                let is_large = crate::preupload::is_large(settings, all, &path, content.len());
                all.insert(path, if is_large { File::large(content) } else { File::plain(content) });
            }
        })
    }

    /// A commit without some files.
    pub fn delete(&self, branch: &str, paths: &[&str]) -> String {
        self.edit(branch, |all, _| all.retain(|path, _| !paths.contains(&path.as_str())))
    }

    fn edit(&self, branch: &str, edit: impl FnOnce(&mut Files, &Settings)) -> String {
        let mut state = self.hub.shared.state();
        let reference = if branch.starts_with("refs/") { branch.to_owned() } else { format!("refs/heads/{branch}") };
        let at = state.repos.get(&self.key).and_then(|repo| repo.commit(&reference));
        let mut files = at.map(|commit| Files::clone(&commit.files)).unwrap_or_default();
        edit(&mut files, &state.settings);
        let draft = Draft { author: "test", title: "By the test", description: "", files };
        state.commit(&self.key, &reference, draft).unwrap_or_default()
    }

    /// A tag, or whatever else `name` is the whole name of, at a branch, tag or commit.
    #[must_use]
    pub fn tag(self, name: &str, revision: &str) -> Self {
        let reference = if name.starts_with("refs/") { name.to_owned() } else { format!("refs/tags/{name}") };
        self.change(|repo| {
            if let Some(oid) = repo.commit(revision).map(|commit| commit.oid.clone()) {
                repo.refs.insert(reference, oid);
            }
        });
        self
    }

    /// The branch is at another commit.
    pub fn move_to(&self, branch: &str, oid: &str) {
        self.change(|repo| repo.refs.insert(format!("refs/heads/{branch}"), oid.to_owned()));
    }
}
