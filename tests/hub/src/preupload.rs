//! What is asked before an upload: how each file goes there.

use serde_json::{Value, json};

use crate::access::{self, Need};
use crate::answer::Answer;
use crate::question::Question;
use crate::route::Place;
use crate::server::Shared;
use crate::settings::Settings;
use crate::store::Files;

/// Whether a file belongs in the large file storage: by its size, or by its name.
pub(crate) fn is_large(settings: &Settings, files: &Files, path: &str, size: usize) -> bool {
    if size == 0 {
        return false;
    }
    let by_name = match files.get(".gitattributes") {
        Some(attributes) => {
            let text = String::from_utf8_lossy(&attributes.content).into_owned();
            let patterns = text.lines().filter(|line| line.contains("filter=lfs"));
            patterns.filter_map(|line| line.split_whitespace().next()).any(|pattern| is_match(pattern, path))
        }
        None => settings.lfs_endings.iter().any(|ending| path.ends_with(ending)),
    };
    by_name || size >= settings.lfs_from
}

/// A pattern of `.gitignore` or `.gitattributes`, with stars only: for names anywhere, or for whole paths if it has a slash.
fn is_match(pattern: &str, path: &str) -> bool {
    let (pattern, is_folder) = pattern.strip_suffix('/').map_or((pattern, false), |pattern| (pattern, true));
    let parts: Vec<&str> = path.split('/').collect();
    if pattern.contains('/') {
        let pattern = pattern.trim_start_matches('/');
        return glob(pattern, path) || glob(&format!("{pattern}/*"), path);
    }
    // A folder's name matches with all that is in it.
    let names = if is_folder { parts.get(..parts.len() - 1).unwrap_or_default() } else { &parts };
    names.iter().any(|name| glob(pattern, name))
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            ends.filter_map(|at| rest.get(at..)).any(|rest| glob(after, rest))
        }),
    }
}

pub(crate) fn preupload(shared: &Shared, question: &Question, place: &Place<'_>) -> Result<Answer, Answer> {
    let state = shared.state();
    let need = if question.flag("create_pr") { Need::Propose } else { Need::Write };
    let repo = access::repo(&state, question, place.kind, &place.name, need)?;
    let (revision, _) = place.revision()?;
    let commit = repo.commit(&revision).ok_or_else(|| Answer::no_revision(&revision))?;
    let body = question.json()?;
    let committed = commit.files.get(".gitignore").map(|file| String::from_utf8_lossy(&file.content).into_owned());
    let ignore = body.get("gitIgnore").and_then(Value::as_str).map(str::to_owned).or(committed).unwrap_or_default();
    let patterns: Vec<&str> =
        ignore.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let asked =
        body.get("files").and_then(Value::as_array).ok_or_else(|| Answer::bad_request("\"files\" is required"))?;
    let mut files = Vec::new();
    for file in asked {
        let path = file.get("path").and_then(Value::as_str).filter(|path| !path.is_empty());
        let size = file.get("size").and_then(Value::as_u64);
        let sample = file.get("sample").and_then(Value::as_str);
        let (Some(path), Some(size), Some(_)) = (path, size, sample) else {
            return Err(Answer::bad_request("Each of \"files\" needs a path, a size and a sample"));
        };
        let mode = if is_large(&state.settings, &commit.files, path, size as usize) { "lfs" } else { "regular" };
        let should_ignore = patterns.iter().any(|pattern| is_match(pattern, path));
        let mut told = json!({"path": path, "uploadMode": mode, "shouldIgnore": should_ignore});
        if let (Some(known), Some(fields)) = (commit.files.get(path), told.as_object_mut()) {
            fields.insert("oid".into(), known.etag().into());
        }
        files.push(told);
    }
    Ok(Answer::json(200, &json!({"files": files, "commitOid": commit.oid})))
}

#[cfg(test)]
mod tests {
    use super::is_match;

    #[test]
    fn patterns_match_as_git_matches_them() {
        assert!(is_match("*.tar", "a/b.tar"));
        assert!(!is_match("*.tar", "a/b.tar.txt"));
        assert!(is_match("*.tar.*", "a/b.tar.gz"));
        assert!(is_match("cache/", "a/cache/b.txt"));
        assert!(!is_match("cache/", "a/cache"));
        assert!(is_match("cache", "a/cache"));
        assert!(is_match("/a/*.txt", "a/b.txt"));
        assert!(is_match("a/b", "a/b/c"));
        assert!(!is_match("a/b", "c/a/b"));
    }
}
