//! What a repository is.

use serde_json::{Value, json};

use crate::access::{self, Need};
use crate::answer::Answer;
use crate::question::Question;
use crate::route::Place;
use crate::server::Shared;
use crate::store::{Commit, Gate, Repo, RepoKind};

pub(crate) fn info(shared: &Shared, question: &Question, place: &Place<'_>) -> Result<Answer, Answer> {
    let state = shared.state();
    let repo = access::repo(&state, question, place.kind, &place.name, Need::Info)?;
    let revision = if place.rest.is_empty() { "main".to_owned() } else { place.revision()?.0 };
    let commit = repo.commit(&revision).ok_or_else(|| Answer::no_revision(&revision))?;
    let whole = whole(repo, commit, question.flag("blobs"));
    let wanted: Vec<&str> = question
        .query
        .iter()
        .filter(|(key, _)| key == "expand" || key == "expand[]")
        .map(|(_, value)| value.as_str())
        .collect();
    if wanted.is_empty() {
        return Ok(Answer::json(200, &whole));
    }
    let fields = whole.as_object().into_iter().flatten();
    let fields = fields.filter(|(key, _)| matches!(key.as_str(), "_id" | "id") || wanted.contains(&key.as_str()));
    let some = fields.map(|(key, value)| (key.clone(), value.clone()));
    Ok(Answer::json(200, &Value::Object(some.collect())))
}

fn whole(repo: &Repo, commit: &Commit, with_blobs: bool) -> Value {
    let siblings: Vec<Value> = commit
        .files
        .iter()
        .map(|(path, file)| {
            let mut sibling = json!({"rfilename": path});
            if with_blobs && let Some(fields) = sibling.as_object_mut() {
                fields.insert("size".into(), file.content.len().into());
                fields.insert("blobId".into(), file.oid().into());
                if let Some(sha256) = &file.sha256 {
                    let (size, pointer_size) = (file.content.len(), file.pointer_size());
                    fields.insert("lfs".into(), json!({"sha256": sha256, "size": size, "pointerSize": pointer_size}));
                }
            }
            sibling
        })
        .collect();
    let first = repo.history(commit).last().unwrap_or(commit);
    let gated = if repo.gate == Gate::Open { json!(false) } else { json!("manual") };
    let used: usize = repo.objects.values().map(bytes::Bytes::len).sum();
    let mut info = json!({
        "_id": format!("repo-{}", repo.name),
        "id": repo.name,
        "author": repo.owner(),
        "sha": commit.oid,
        "createdAt": first.date,
        "lastModified": commit.date,
        "private": repo.private,
        "gated": gated,
        "disabled": false,
        "downloads": 0,
        "likes": 0,
        "tags": ["region:us"],
        "usedStorage": used,
        "siblings": siblings,
    });
    if repo.kind == RepoKind::Model
        && let Some(fields) = info.as_object_mut()
    {
        fields.insert("modelId".into(), repo.name.clone().into());
    }
    info
}
