//! Who asks, and repositories that come and go.

use serde_json::{Value, json};

use crate::access::{self, anonymous, asker, read_only};
use crate::answer::Answer;
use crate::question::Question;
use crate::server::Shared;
use crate::store::{Draft, File, Files, Repo, RepoKind, State};

pub(crate) fn whoami(shared: &Shared, question: &Question) -> Result<Answer, Answer> {
    let state = shared.state();
    let access = asker(&state, question)?.ok_or_else(anonymous)?;
    let role = if access.may_write { "write" } else { "read" };
    let organizations: Vec<_> = access.organizations.iter().map(|name| json!({"type": "org", "name": name})).collect();
    Ok(Answer::json(
        200,
        &json!({
            "type": "user",
            "id": format!("user-{}", access.user),
            "name": access.user,
            "fullname": access.user,
            "isPro": false,
            "orgs": organizations,
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": role}},
        }),
    ))
}

/// Which repository `create` and `delete` are about, if the asker may.
fn target(state: &State, question: &Question) -> Result<(Value, String, (RepoKind, String)), Answer> {
    let access = asker(state, question)?.ok_or_else(anonymous)?;
    if !access.may_write {
        return Err(read_only());
    }
    let body = question.json()?;
    let text = |key| body.get(key).and_then(Value::as_str);
    let name =
        text("name").filter(|name| !name.is_empty()).ok_or_else(|| Answer::bad_request("\"name\" is required"))?;
    let kind = match text("type") {
        None => RepoKind::Model,
        Some(word) => RepoKind::ALL
            .into_iter()
            .find(|kind| kind.name() == word)
            .ok_or_else(|| Answer::bad_request("\"type\" must be one of [model, dataset, space]"))?,
    };
    let namespace = text("organization").unwrap_or(&access.user);
    if !access.owns(namespace) {
        let message =
            format!("You don't have the rights to create a {} under the namespace \"{namespace}\"", kind.name());
        return Err(Answer::refusal(403, None, &message));
    }
    let (user, full_name) = (access.user.clone(), format!("{namespace}/{name}"));
    Ok((body, user, (kind, full_name)))
}

pub(crate) fn create(shared: &Shared, question: &Question) -> Result<Answer, Answer> {
    let mut state = shared.state();
    let (body, user, key) = target(&state, question)?;
    let (kind, name) = (key.0, key.1.clone());
    let url = format!("{}/{}{name}", shared.endpoint(), kind.prefix());
    if state.repos.contains_key(&key) {
        let message = format!("You already created this {} repo", kind.name());
        let body = json!({"error": message, "url": url, "id": name, "name": name});
        return Err(Answer::json(409, &body).with("x-error-message", message));
    }
    let mut repo = Repo::new(kind, &name);
    repo.private = match body.get("visibility").and_then(Value::as_str) {
        Some(visibility) => visibility == "private",
        None => body.get("private").and_then(Value::as_bool).unwrap_or(false),
    };
    state.repos.insert(key.clone(), repo);
    let mut files = Files::new();
    if state.settings.commits_gitattributes {
        files.insert(".gitattributes".to_owned(), File::plain(state.settings.gitattributes().into()));
    }
    let draft = Draft { author: &user, title: "initial commit", description: "", files };
    state.commit(&key, "refs/heads/main", draft);
    Ok(Answer::json(200, &json!({"url": url, "name": name, "id": format!("repo-{name}")})))
}

pub(crate) fn delete(shared: &Shared, question: &Question) -> Result<Answer, Answer> {
    let mut state = shared.state();
    let (_, _, key) = target(&state, question)?;
    access::repo(&state, question, key.0, &key.1, access::Need::Write)?;
    state.repos.remove(&key);
    Ok(Answer::json(200, &json!({})))
}
