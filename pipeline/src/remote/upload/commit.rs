//! Commits to a repository of the Hub, and what is to be known before one.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use sha1::Digest as _;

use super::{Hub, JSON, LINES};
use crate::remote::hub::{self, TreeEntry, about, below};
use crate::remote::{RemoteError, Repository};

/// The Hub answers no question about more files than so many.
const AT_ONCE: usize = 256;

/// Where a branch is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// At this commit.
    At(String),
    NoRepository,
    NoBranch,
}

/// What a file of a repository holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// SHA-256 of a large file; SHA-1, as git has it, of one that is in git.
    pub(crate) digest: String,
    pub(crate) bytes: u64,
}

/// How a repository takes a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// To be sent ahead, and named in the commit.
    Large,
    /// In the commit itself.
    Small,
    /// It would leave the file out (.gitignore).
    Ignored,
}

/// A change that a commit makes.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Large { path: String, sha256: String, bytes: u64 },
    Small { path: String, content: Vec<u8> },
    Delete { path: String },
}

/// How a commit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    /// As this commit.
    As(String),
    /// Somebody else has committed meanwhile: look again.
    Outrun,
}

/// The SHA-1 by which git names a content.
pub(crate) fn git_sha1(content: &[u8]) -> String {
    let mut hasher = sha1::Sha1::new();
    hasher.update(format!("blob {}\0", content.len()));
    hasher.update(content);
    hasher.finalize().iter().fold(String::with_capacity(40), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

impl Change {
    fn line(&self) -> Value {
        match self {
            Self::Large { path, sha256, bytes } => json!({
                "key": "lfsFile",
                "value": { "path": path, "algo": "sha256", "oid": sha256, "size": bytes },
            }),
            Self::Small { path, content } => json!({
                "key": "file",
                "value": { "content": STANDARD.encode(content), "path": path, "encoding": "base64" },
            }),
            Self::Delete { path } => json!({ "key": "deletedFile", "value": { "path": path } }),
        }
    }
}

impl Hub<'_> {
    pub(crate) async fn head(&self) -> Result<Head, RemoteError> {
        #[derive(Deserialize)]
        struct Revision {
            sha: String,
        }
        self.tried(async || {
            let url = about(self.repository, &["revision", &self.repository.revision], self.access)?;
            let answer = self.answer(self.reading.signed(self.reading.request(Method::GET, &url), &url)).await?;
            match answer {
                Ok(response) => {
                    let Revision { sha } = hub::json(response, "its description").await?;
                    Ok(Head::At(sha))
                }
                Err(refusal) if refusal.is("RevisionNotFound") => Ok(Head::NoBranch),
                Err(refusal) if refusal.status == StatusCode::NOT_FOUND => Ok(Head::NoRepository),
                Err(refusal) => Err(self.refused("it does not say where its branch is", &refusal)),
            }
        })
        .await
    }

    /// Makes the repository; that it is there already is no error.
    pub(crate) async fn create(&self, private: bool) -> Result<(), RemoteError> {
        let (owner, name) = self.repository.name.split_once('/').unwrap_or(("", &self.repository.name));
        let kind = self.repository.kind.singular();
        let wish = json!({ "name": name, "organization": owner, "type": kind, "private": private });
        self.tried(async || {
            let url = below(self.access, ["api", "repos", "create"].into_iter())?;
            match self.ask(&url, super::json(JSON, &wish)).await? {
                Ok(_) => Ok(()),
                Err(refusal) if refusal.status == StatusCode::CONFLICT => Ok(()),
                Err(refusal) => Err(self.refused("the dataset cannot be made", &refusal)),
            }
        })
        .await
    }

    /// Makes the branch, from the main one; that it is there already is no error.
    pub(crate) async fn create_branch(&self) -> Result<(), RemoteError> {
        self.tried(async || {
            let url = about(self.repository, &["branch", &self.repository.revision], self.access)?;
            match self.ask(&url, super::json(JSON, &json!({}))).await? {
                Ok(_) => Ok(()),
                Err(refusal) if refusal.status == StatusCode::CONFLICT => Ok(()),
                Err(refusal) => Err(self.refused("the branch cannot be made", &refusal)),
            }
        })
        .await
    }

    /// The files of a folder (at any depth) and of the root, at a commit.
    pub(crate) async fn files(&self, commit: &str, folder: &str) -> Result<BTreeMap<String, Content>, RemoteError> {
        let at = Repository { revision: commit.to_owned(), ..self.repository.clone() };
        let mut found = self.list(&at, "", false).await?;
        if found.iter().any(|entry| entry.kind == "directory" && entry.path == folder) {
            found.extend(self.list(&at, folder, true).await?);
        }
        let content = |TreeEntry { path, oid, size, lfs, .. }| {
            let content = match lfs {
                Some(large) => Content { digest: large.oid, bytes: large.size },
                None => Content { digest: oid, bytes: size },
            };
            (path, content)
        };
        Ok(found.into_iter().filter(|entry| entry.kind == "file").map(content).collect())
    }

    async fn list(&self, at: &Repository, path: &str, is_deep: bool) -> Result<Vec<TreeEntry>, RemoteError> {
        self.tried(async || hub::tree(&self.reading, at, path, is_deep, self.access).await).await
    }

    /// How the repository takes files, of each its path there, its first bytes and its size. The token must be good for writing.
    pub(crate) async fn modes(&self, files: &[(&str, Vec<u8>, u64)]) -> Result<Vec<Mode>, RemoteError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct File {
            path: String,
            upload_mode: String,
            #[serde(default)]
            should_ignore: bool,
        }
        #[derive(Deserialize)]
        struct Answer {
            files: Vec<File>,
        }
        let mut modes = Vec::with_capacity(files.len());
        for files in files.chunks(AT_ONCE) {
            let ask_for = |(path, sample, bytes): &(&str, Vec<u8>, u64)| json!({ "path": path, "sample": STANDARD.encode(sample), "size": bytes });
            let question = json!({ "files": files.iter().map(ask_for).collect::<Vec<_>>() });
            let answer: Answer = self
                .tried(async || {
                    let url = about(self.repository, &["preupload", &self.repository.revision], self.access)?;
                    match self.ask(&url, super::json(JSON, &question)).await? {
                        Ok(response) => hub::json(response, "its answer about files to come").await,
                        Err(refusal) => Err(self.refused("it takes no files", &refusal)),
                    }
                })
                .await?;
            for (path, _, bytes) in files {
                let Some(file) = answer.files.iter().find(|file| file.path == *path) else {
                    return Err(self.not_taken(format!("it does not say how it takes {path}")));
                };
                modes.push(match file.upload_mode.as_str() {
                    _ if file.should_ignore => Mode::Ignored,
                    // A file without bytes cannot be sent ahead.
                    "lfs" if *bytes > 0 => Mode::Large,
                    _ => Mode::Small,
                });
            }
        }
        Ok(modes)
    }

    /// Commits on top of the commit `parent`.
    pub(crate) async fn commit(
        &self,
        parent: &str,
        (summary, description): (&str, &str),
        changes: &[Change],
    ) -> Result<Committed, RemoteError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Answer {
            commit_oid: String,
        }
        let header = json!({
            "key": "header",
            "value": { "summary": summary, "description": description, "parentCommit": parent },
        });
        let lines: Vec<String> =
            std::iter::once(header).chain(changes.iter().map(Change::line)).map(|line| format!("{line}\n")).collect();
        let body = lines.concat().into_bytes();
        self.tried(async || {
            let url = about(self.repository, &["commit", &self.repository.revision], self.access)?;
            match self.ask(&url, (LINES, body.clone())).await? {
                Ok(response) => {
                    let Answer { commit_oid } = hub::json(response, "its answer to a commit").await?;
                    Ok(Committed::As(commit_oid))
                }
                Err(refusal) if refusal.status == StatusCode::PRECONDITION_FAILED => Ok(Committed::Outrun),
                Err(refusal) => Err(self.refused("it does not take the commit", &refusal)),
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_has_the_name_that_git_gives_it() {
        // `git hash-object`
        assert_eq!(git_sha1(b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(git_sha1(b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
    }

    #[test]
    fn changes_are_written_as_the_hub_reads_them() {
        let small = Change::Small { path: "README.md".into(), content: b"hi".to_vec() };
        assert_eq!(
            small.line().to_string(),
            r#"{"key":"file","value":{"content":"aGk=","path":"README.md","encoding":"base64"}}"#
        );
        let large = Change::Large { path: "data/a".into(), sha256: "0f".into(), bytes: 7 };
        assert_eq!(
            large.line().to_string(),
            r#"{"key":"lfsFile","value":{"path":"data/a","algo":"sha256","oid":"0f","size":7}}"#
        );
        let gone = Change::Delete { path: "data/b".into() };
        assert_eq!(gone.line().to_string(), r#"{"key":"deletedFile","value":{"path":"data/b"}}"#);
    }
}
