//! Publishing to the Hub: a commit for so many files at a time, each when its files are there; the card, and what goes, with the
//! last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use shards::event::Event;

use super::dataset_card::FILE;
use super::digests::Digests;
use super::files::{FOLDER, PublishedFile, is_ours};
use super::progress::Progress;
use super::{Publish, PublishError, unreadable};
use crate::remote::upload::{Change, Committed, Content, Head, Hub, Large, Mode, git_sha1};
use crate::remote::{Repository, block_on};
use crate::stage::{StageError, Task};

/// Times that a commit is made anew because somebody else was faster.
const RACES: usize = 5;
/// What the Hub wants to see of a file to say how it takes it.
const SAMPLE: usize = 512;
/// Larger files are not for a commit itself.
const LARGEST_SMALL: u64 = 10 << 20;

/// Publishes `files` and the card; what is to be known of it afterwards.
pub(super) fn publish(
    stage: &Publish,
    repository: &Repository,
    files: &[&PublishedFile],
    card: &str,
    task: &Task,
    progress: &Progress,
) -> Result<BTreeMap<String, Value>, StageError> {
    let shown = stage.shown();
    let tries = stage.operations.retries.saturating_add(1);
    let digests = Digests::read(task.folder, task.cancel);
    let published = block_on(|| async {
        let hub = Hub::open(repository, &shown, &stage.access, tries, progress)?;
        let mut publication = Publication {
            hub,
            stage,
            repository,
            shown: &shown,
            files,
            card,
            task,
            progress,
            digests: &digests,
            head: String::new(),
            there: BTreeMap::new(),
            files_sent: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
            files_removed: 0,
            commits: 0,
        };
        let made = publication.make().await;
        made.map(|()| publication.details())
    });
    // Of a publication that failed, too: the next does not read its files again.
    digests.save(files);
    published?
}

struct Publication<'a> {
    hub: Hub<'a>,
    stage: &'a Publish,
    repository: &'a Repository,
    shown: &'a str,
    files: &'a [&'a PublishedFile],
    card: &'a str,
    task: &'a Task<'a>,
    progress: &'a Progress<'a>,
    digests: &'a Digests<'a>,
    /// The branch's commit, as far as we know.
    head: String,
    /// What is in it: our files, the card, and what else is in the same folders.
    there: BTreeMap<String, Content>,
    files_sent: AtomicU64,
    bytes_sent: AtomicU64,
    files_removed: u64,
    commits: u64,
}

impl Publication<'_> {
    async fn make(&mut self) -> Result<(), StageError> {
        self.head = self.find_or_create().await?;
        // Also says, before any file is read, whether the token may write.
        let card_mode = self.hub.modes(&[(FILE, sample_of(self.card.as_bytes()), self.card.len() as u64)]).await?;
        if card_mode.contains(&Mode::Ignored) {
            return Err(PublishError::Ignored { path: FILE.to_owned() }.into());
        }
        self.look().await?;
        let files = self.files;
        let groups: Vec<&[&PublishedFile]> = files.chunks(self.stage.operations.files_per_commit).collect();
        let mut sha256 = match groups.first() {
            Some(group) => self.digests.of(group).await?,
            None => Vec::new(),
        };
        for (n, group) in groups.iter().enumerate() {
            let next: &[&PublishedFile] = groups.get(n + 1).copied().unwrap_or_default();
            // While files are on their way, those after them are read.
            let (changes, following) =
                futures::future::try_join(self.send(group, &sha256), self.digests.of(next)).await?;
            self.commit(changes, n + 1 == groups.len(), (n + 1, groups.len())).await?;
            self.progress.there(group.len(), group.iter().map(|file| file.rows).sum());
            sha256 = following;
        }
        Ok(())
    }

    fn details(&self) -> BTreeMap<String, Value> {
        let Self { stage, repository, head, .. } = self;
        let endpoint = stage.access.endpoint.trim_end_matches('/');
        let url = match repository.revision.as_str() {
            "main" => format!("{endpoint}/datasets/{}", repository.name),
            branch => format!("{endpoint}/datasets/{}/tree/{branch}", repository.name),
        };
        let details = [
            ("repository", json!(repository.name)),
            ("branch", json!(repository.revision)),
            ("commit", json!(head)),
            ("url", json!(url)),
            ("commits", json!(self.commits)),
            ("files_sent", json!(self.files_sent.load(Ordering::Relaxed))),
            ("bytes_sent", json!(self.bytes_sent.load(Ordering::Relaxed))),
            ("files_removed", json!(self.files_removed)),
        ];
        details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The commit that the branch is at; the dataset and the branch are made where they may be.
    async fn find_or_create(&self) -> Result<String, StageError> {
        let Repository { name, revision, .. } = self.repository;
        let operations = &self.stage.operations;
        let mut head = self.hub.head().await?;
        if head == Head::NoRepository {
            if !operations.create {
                return Err(PublishError::NoRepository(name.clone()).into());
            }
            self.hub.create(operations.private).await?;
            let who = if operations.private { "private" } else { "public" };
            self.note(format!("made the {who} dataset {name}"));
            head = self.hub.head().await?;
        }
        let may_make = operations.create && revision != "main" && !revision.starts_with("refs/");
        if head == Head::NoBranch && may_make {
            self.hub.create_branch().await?;
            self.note(format!("made the branch {revision} of the dataset {name}"));
            head = self.hub.head().await?;
        }
        match head {
            Head::At(commit) => Ok(commit),
            Head::NoRepository => Err(PublishError::NotMade { repository: name.clone() }.into()),
            Head::NoBranch => Err(PublishError::NoBranch { repository: name.clone(), branch: revision.clone() }.into()),
        }
    }

    fn note(&self, text: String) {
        self.task.events.send(Event::Note { stage: self.task.stage.to_owned(), text });
    }

    async fn look(&mut self) -> Result<(), StageError> {
        self.there = self.hub.files(&self.head, FOLDER).await?;
        Ok(())
    }

    fn has(&self, path: &str, digest: &str) -> bool {
        self.there.get(path).is_some_and(|content| content.digest == digest)
    }

    /// Sends what the Hub does not have of some files; the changes that make them part of the dataset.
    async fn send(&self, files: &[&PublishedFile], sha256: &[String]) -> Result<Vec<Change>, StageError> {
        let wanted = files.iter().zip(sha256);
        let wanted: Vec<(&PublishedFile, &String)> = wanted
            .map(|(file, sha256)| (*file, sha256))
            .filter(|(file, sha256)| !self.has(&file.name, sha256))
            .collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut samples = Vec::with_capacity(wanted.len());
        for (file, _) in &wanted {
            samples.push((file.name.as_str(), sample(file).await?, file.bytes));
        }
        let modes = self.hub.modes(&samples).await?;
        let (mut changes, mut large) = (Vec::with_capacity(wanted.len()), Vec::new());
        for ((file, sha256), mode) in wanted.into_iter().zip(modes) {
            let (path, bytes) = (file.name.clone(), file.bytes);
            changes.push(match mode {
                Mode::Large => {
                    large.push(Large { path: &file.path, sha256, bytes });
                    Change::Large { path, sha256: sha256.clone(), bytes }
                }
                Mode::Small if bytes <= LARGEST_SMALL => {
                    let content = tokio::fs::read(&file.path).await.map_err(unreadable(&file.path))?;
                    Change::Small { path, content }
                }
                Mode::Small => return Err(PublishError::NotLarge { path, bytes }.into()),
                Mode::Ignored => return Err(PublishError::Ignored { path }.into()),
            });
        }
        // The same content twice is sent once.
        large.sort_by_key(|file| file.sha256);
        large.dedup_by_key(|file| file.sha256);
        let lacks = self.hub.lacks(&large).await?;
        let puts = lacks.into_iter().filter_map(|(place, orders)| Some((*large.get(place)?, orders)));
        let puts = puts.map(|(file, orders)| async move {
            self.hub.put(file, orders).await?;
            self.files_sent.fetch_add(1, Ordering::Relaxed);
            self.bytes_sent.fetch_add(file.bytes, Ordering::Relaxed);
            Ok::<(), StageError>(())
        });
        let uploads = self.stage.operations.uploads;
        futures::stream::iter(puts).buffer_unordered(uploads).try_collect::<Vec<()>>().await?;
        Ok(changes)
    }

    /// Commits what of `changes` is not there; and with the last of them the card, and what is no longer part of it.
    async fn commit(
        &mut self,
        mut changes: Vec<Change>,
        is_last: bool,
        (number, count): (usize, usize),
    ) -> Result<(), StageError> {
        if is_last {
            changes.push(Change::Small { path: FILE.to_owned(), content: self.card.as_bytes().to_vec() });
        }
        for _ in 0..RACES {
            changes.retain(|change| !self.is_made(change));
            let removed = if is_last { self.no_longer_part() } else { Vec::new() };
            let all: Vec<Change> = changes
                .iter()
                .cloned()
                .chain(removed.iter().map(|path| Change::Delete { path: path.clone() }))
                .collect();
            if all.is_empty() {
                return Ok(());
            }
            let summary = match &self.stage.operations.message {
                Some(message) => message.clone(),
                None if count == 1 => format!("Publish {}", self.stage.title()),
                None => format!("Publish {} ({number} of {count})", self.stage.title()),
            };
            let description = concat!("By ferrotype ", env!("CARGO_PKG_VERSION"), ".");
            match self.hub.commit(&self.head, (&summary, description), &all).await? {
                Committed::As(commit) => {
                    self.head = commit;
                    self.commits += 1;
                    self.files_removed += removed.len() as u64;
                    for change in &all {
                        self.note_change(change);
                    }
                    return Ok(());
                }
                Committed::Outrun => {
                    self.head = self.find_or_create().await?;
                    self.look().await?;
                }
            }
        }
        Err(PublishError::Outrun { shown: self.shown.to_owned(), times: RACES }.into())
    }

    /// Whether a change would change nothing.
    fn is_made(&self, change: &Change) -> bool {
        match change {
            Change::Large { path, sha256, .. } => self.has(path, sha256),
            Change::Small { path, content } => self.has(path, &git_sha1(content)),
            Change::Delete { path } => !self.there.contains_key(path),
        }
    }

    fn note_change(&mut self, change: &Change) {
        let (path, content) = match change {
            Change::Large { path, sha256, bytes } => (path, Content { digest: sha256.clone(), bytes: *bytes }),
            Change::Small { path, content } => {
                (path, Content { digest: git_sha1(content), bytes: content.len() as u64 })
            }
            Change::Delete { path } => {
                self.there.remove(path);
                return;
            }
        };
        self.there.insert(path.clone(), content);
    }

    /// Files of an earlier publication.
    fn no_longer_part(&self) -> Vec<String> {
        let kept: BTreeSet<&str> = self.files.iter().map(|file| file.name.as_str()).collect();
        self.there.keys().filter(|path| is_ours(path) && !kept.contains(path.as_str())).cloned().collect()
    }
}

fn sample_of(content: &[u8]) -> Vec<u8> {
    content.get(..SAMPLE).unwrap_or(content).to_vec()
}

async fn sample(file: &PublishedFile) -> Result<Vec<u8>, StageError> {
    use tokio::io::AsyncReadExt as _;
    let read = async {
        let mut sample = Vec::with_capacity(SAMPLE);
        tokio::fs::File::open(&file.path).await?.take(SAMPLE as u64).read_to_end(&mut sample).await?;
        Ok::<_, std::io::Error>(sample)
    };
    read.await.map_err(unreadable(&file.path))
}
