//! Commits over HTTP: a line of JSON for each thing that changes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::access::{self, Need, asker};
use crate::answer::Answer;
use crate::question::Question;
use crate::route::Place;
use crate::server::Shared;
use crate::settings::Settings;
use crate::store::{Draft, File, Files, Repo};

pub(crate) fn commit(shared: &Shared, question: &Question, place: &Place<'_>) -> Result<Answer, Answer> {
    let mut state = shared.state();
    let is_proposal = question.flag("create_pr");
    let need = if is_proposal { Need::Propose } else { Need::Write };
    let repo = access::repo(&state, question, place.kind, &place.name, need)?;
    let (revision, _) = place.revision()?;
    let parent = repo.commit(&revision).ok_or_else(|| Answer::no_revision(&revision))?;
    let reference = repo.reference(&revision).filter(|name| !name.starts_with("refs/tags/"));
    let reference = match (is_proposal, reference) {
        (true, _) => {
            let numbers = repo.refs.keys().filter_map(|name| name.strip_prefix("refs/pr/")?.parse::<u64>().ok());
            Some(format!("refs/pr/{}", numbers.max().unwrap_or(0) + 1))
        }
        (false, reference) => reference,
    };
    let reference = reference.ok_or_else(|| Answer::bad_request("Commits go to a branch"))?;

    let text = std::str::from_utf8(&question.body).map_err(|_not_text| Answer::bad_request("The body is not UTF-8"))?;
    let mut header = None;
    let mut files = Files::clone(&parent.files);
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let line: Value = serde_json::from_str(line)
            .map_err(|error| Answer::bad_request(&format!("Line {number} is not JSON: {error}")))?;
        let (key, value) = (line.get("key").and_then(Value::as_str), line.get("value").unwrap_or(&Value::Null));
        match key {
            Some("header") if header.is_none() => header = Some(value.clone()),
            Some(key) if header.is_some() => change(repo, &state.settings, &mut files, key, value)?,
            _ => return Err(Answer::bad_request("The first line is the header, and the only one")),
        }
    }
    let header = header.ok_or_else(|| Answer::bad_request("There is no header"))?;
    let words = |key| header.get(key).and_then(Value::as_str).unwrap_or_default();
    let (title, description) = (words("summary"), words("description"));
    if title.is_empty() {
        return Err(Answer::bad_request("\"summary\" is required"));
    }
    let expected = header.get("parentCommit").and_then(Value::as_str);
    if expected.is_some_and(|expected| expected != parent.oid) {
        return Err(Answer::refusal(412, None, "A commit has happened since. Please refresh and try again."));
    }

    let author = asker(&state, question)?.map(|access| access.user.clone()).unwrap_or_default();
    if is_proposal {
        let parent = parent.oid.clone();
        if let Some(repo) = state.repos.get_mut(&place.key()) {
            repo.refs.insert(reference.clone(), parent);
        }
    }
    let draft = Draft { author: &author, title, description, files };
    let oid = state.commit(&place.key(), &reference, draft).unwrap_or_default();
    let page = format!("{}/{}{}", shared.endpoint(), place.kind.prefix(), place.name);
    let mut told = json!({
        "success": true,
        "commitOid": oid,
        "commitUrl": format!("{page}/commit/{oid}"),
        "hookOutput": "",
    });
    if let (Some(number), Some(fields)) =
        (reference.strip_prefix("refs/pr/").filter(|_| is_proposal), told.as_object_mut())
    {
        fields.insert("pullRequestUrl".into(), format!("{page}/discussions/{number}").into());
    }
    Ok(Answer::json(200, &told))
}

/// What one line does to the files.
fn change(repo: &Repo, settings: &Settings, files: &mut Files, key: &str, value: &Value) -> Result<(), Answer> {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let path = text("path").filter(|path| is_path(path));
    let path = path.ok_or_else(|| Answer::bad_request(&format!("\"{key}\" needs a valid path")))?;
    match key {
        "file" => {
            let content = text("content").unwrap_or_default();
            let content = match text("encoding") {
                Some("base64") => STANDARD
                    .decode(content)
                    .map_err(|error| Answer::bad_request(&format!("{path} is not base64: {error}")))?,
                None | Some("utf-8") => content.as_bytes().to_vec(),
                Some(other) => return Err(Answer::bad_request(&format!("There is no encoding {other}"))),
            };
            if content.len() >= settings.lfs_from {
                return Err(rejected("it contains files larger than a regular file may be", path));
            }
            files.insert(path.to_owned(), File::plain(content.into()));
        }
        "lfsFile" => {
            let oid = text("oid").unwrap_or_default();
            let content = repo.objects.get(oid).cloned();
            let size = value.get("size").and_then(Value::as_u64);
            let is_same = |content: &Bytes| size.is_none_or(|size| size == content.len() as u64);
            let content = content.filter(is_same).filter(|_| text("algo") == Some("sha256"));
            let absent = || rejected("an LFS pointer pointed to a file that does not exist", path);
            files.insert(path.to_owned(), File::large(content.ok_or_else(absent)?));
        }
        "deletedFile" => {
            let absent = || Answer::no_entry(&format!("A file with this name doesn't exist: {path}"));
            files.remove(path).ok_or_else(absent)?;
        }
        "deletedFolder" => {
            let (folder, before) = (format!("{}/", path.trim_end_matches('/')), files.len());
            files.retain(|path, _| !path.starts_with(&folder));
            if files.len() == before {
                return Err(Answer::no_entry(&format!("A folder with this name doesn't exist: {path}")));
            }
        }
        "copyFile" => {
            let revision = text("srcRevision").unwrap_or_default();
            let source = text("srcPath").unwrap_or_default();
            let there = match repo.commit(revision) {
                Some(commit) => commit.files.get(source),
                None => files.get(source).filter(|_| revision.is_empty()),
            };
            let absent = || Answer::no_entry(&format!("A file with this name doesn't exist: {source}"));
            let copy = there.cloned().ok_or_else(absent)?;
            files.insert(path.to_owned(), copy);
        }
        other => return Err(Answer::bad_request(&format!("There is no operation {other}"))),
    }
    Ok(())
}

fn rejected(reason: &str, path: &str) -> Answer {
    Answer::bad_request(&format!("Your push was rejected because {reason}. Offending files: - {path}"))
}

fn is_path(path: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && !matches!(name, "." | ".." | ".git");
    path.strip_suffix('/').unwrap_or(path).split('/').all(is_name)
}
