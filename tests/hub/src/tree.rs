//! Listings, in pages.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::access::{self, Need};
use crate::answer::Answer;
use crate::git::folders;
use crate::question::{Question, is_true};
use crate::route::Place;
use crate::server::Shared;
use crate::store::{Commit, Repo};

/// Of entries on a page where each has its last commit.
const PAGE_EXPANDED: usize = 50;
const MOST_PATHS: usize = 1000;

pub(crate) fn tree(shared: &Shared, question: &Question, place: &Place<'_>) -> Result<Answer, Answer> {
    let state = shared.state();
    let repo = access::repo(&state, question, place.kind, &place.name, Need::Listing)?;
    let (revision, folder) = place.revision()?;
    let commit = repo.commit(&revision).ok_or_else(|| Answer::no_revision(&revision))?;
    let folders = folders(&commit.files);
    if !folders.contains_key(&folder) {
        let message = format!("{folder} does not exist on \"{revision}\"");
        return Err(Answer::no_entry(&message).with("x-repo-commit", &commit.oid));
    }
    let (is_recursive, is_expanded) = (question.flag("recursive"), question.flag("expand"));
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let is_listed = |path: &str| {
        let inside = path.strip_prefix(&prefix).filter(|rest| !rest.is_empty());
        inside.is_some_and(|rest| is_recursive || !rest.contains('/'))
    };
    // Folders come first.
    let names = folders.keys().map(|path| (false, path)).chain(commit.files.keys().map(|path| (true, path)));
    let names: Vec<(bool, &String)> = names.filter(|(_, path)| is_listed(path)).collect();

    let most = state.settings.page.min(if is_expanded { PAGE_EXPANDED } else { usize::MAX });
    let limit = question.query("limit").and_then(|limit| limit.parse().ok()).unwrap_or(most).clamp(1, most.max(1));
    let from = match question.query("cursor") {
        None => 0,
        Some(cursor) => after(cursor, &names).ok_or_else(|| Answer::bad_request("Invalid cursor"))?,
    };
    let page = names.get(from..).unwrap_or_default();
    let page = page.get(..limit.min(page.len())).unwrap_or_default();
    let entries: Vec<Value> =
        page.iter().filter_map(|(_, path)| entry(repo, commit, &folders, path, is_expanded)).collect();
    let mut answer = Answer::json(200, &Value::Array(entries));
    if let Some((is_file, path)) = page.last().filter(|_| from + page.len() < names.len()) {
        let cursor = URL_SAFE_NO_PAD.encode(format!("{}:{path}", u8::from(*is_file)));
        let next = format!(
            "{}{}?recursive={is_recursive}&expand={is_expanded}&limit={limit}&cursor={cursor}",
            shared.endpoint(),
            question.path
        );
        answer = answer.with("link", format!("<{next}>; rel=\"next\""));
    }
    Ok(answer)
}

/// Where the entries after a cursor begin, whether or not its own is still there.
fn after(cursor: &str, names: &[(bool, &String)]) -> Option<usize> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    let (is_file, path) = text.split_once(':')?;
    let last = (is_file == "1", &path.to_owned());
    Some(names.partition_point(|name| *name <= last))
}

pub(crate) fn paths_info(shared: &Shared, question: &Question, place: &Place<'_>) -> Result<Answer, Answer> {
    let state = shared.state();
    let repo = access::repo(&state, question, place.kind, &place.name, Need::Listing)?;
    let (revision, _) = place.revision()?;
    let commit = repo.commit(&revision).ok_or_else(|| Answer::no_revision(&revision))?;
    let fields = question.fields()?;
    let is_expanded = fields.iter().any(|(key, value)| key == "expand" && is_true(value));
    let paths: Vec<&str> =
        fields.iter().filter(|(key, _)| key == "paths").map(|(_, path)| path.trim_matches('/')).collect();
    if paths.len() > MOST_PATHS {
        return Err(Answer::refusal(413, None, "too many parameters"));
    }
    let folders = folders(&commit.files);
    let entries = paths.iter().filter(|path| !path.is_empty());
    let entries: Vec<Value> = entries.filter_map(|path| entry(repo, commit, &folders, path, is_expanded)).collect();
    Ok(Answer::json(200, &Value::Array(entries)))
}

fn entry(
    repo: &Repo,
    commit: &Commit,
    folders: &BTreeMap<String, String>,
    path: &str,
    is_expanded: bool,
) -> Option<Value> {
    let mut entry = match commit.files.get(path) {
        Some(file) => {
            let size = file.content.len();
            let mut entry = json!({"type": "file", "oid": file.oid(), "size": size, "path": path});
            if let (Some(sha256), Some(fields)) = (&file.sha256, entry.as_object_mut()) {
                let lfs = json!({"oid": sha256, "size": size, "pointerSize": file.pointer_size()});
                fields.insert("lfs".into(), lfs);
            }
            entry
        }
        None => json!({"type": "directory", "oid": folders.get(path)?, "size": 0, "path": path}),
    };
    if is_expanded && let Some(fields) = entry.as_object_mut() {
        let last = repo.last_change(commit, path);
        fields.insert("lastCommit".into(), json!({"id": last.oid, "title": last.title, "date": last.date}));
    }
    Some(entry)
}
