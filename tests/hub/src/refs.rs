//! Branches, tags, and the commits behind them.

use http::Method;
use serde_json::{Value, json};

use crate::access::{self, Need};
use crate::answer::Answer;
use crate::question::Question;
use crate::route::Place;
use crate::server::Shared;
use crate::store::Repo;

/// Of commits on a page.
const PAGE: usize = 50;

pub(crate) fn refs(shared: &Shared, question: &Question, place: &Place<'_>) -> Result<Answer, Answer> {
    let state = shared.state();
    let repo = access::repo(&state, question, place.kind, &place.name, Need::Info)?;
    let mut told = json!({
        "branches": of(repo, "refs/heads/"),
        "converts": of(repo, "refs/convert/"),
        "tags": of(repo, "refs/tags/"),
    });
    if question.flag("include_prs")
        && let Some(fields) = told.as_object_mut()
    {
        fields.insert("pullRequests".into(), of(repo, "refs/pr/"));
    }
    Ok(Answer::json(200, &told))
}

fn of(repo: &Repo, prefix: &str) -> Value {
    let named = repo.refs.iter().filter_map(|(name, oid)| Some((name.strip_prefix(prefix)?, name, oid)));
    named.map(|(short, name, oid)| json!({"name": short, "ref": name, "targetCommit": oid})).collect()
}

pub(crate) fn commits(shared: &Shared, question: &Question, place: &Place<'_>) -> Result<Answer, Answer> {
    let state = shared.state();
    let repo = access::repo(&state, question, place.kind, &place.name, Need::Listing)?;
    let (revision, _) = place.revision()?;
    let commit = repo.commit(&revision).ok_or_else(|| Answer::no_revision(&revision))?;
    let page: usize = question.query("p").and_then(|page| page.parse().ok()).unwrap_or(0);
    let most = state.settings.page.clamp(1, PAGE);
    let all: Vec<Value> = repo
        .history(commit)
        .map(|commit| {
            json!({
                "id": commit.oid,
                "title": commit.title,
                "message": commit.description,
                "authors": [{"user": commit.author}],
                "date": commit.date,
            })
        })
        .collect();
    let shown: Vec<&Value> = all.iter().skip(page.saturating_mul(most)).take(most).collect();
    let mut answer = Answer::json(200, &json!(shown)).with("x-total-count", all.len().to_string());
    if all.len() > page.saturating_add(1).saturating_mul(most) {
        let next = format!("{}{}?p={}", shared.endpoint(), question.path, page + 1);
        answer = answer.with("link", format!("<{next}>; rel=\"next\""));
    }
    Ok(answer)
}

/// The branch is in the address, and where it begins in the body.
pub(crate) fn branch(shared: &Shared, question: &Question, place: &Place<'_>) -> Result<Answer, Answer> {
    let name = place.rest.join("/");
    let from = if question.body.is_empty() { Value::Null } else { question.json()? };
    let from = from.get("startingPoint").and_then(Value::as_str).unwrap_or("main").to_owned();
    change(shared, question, place, &format!("refs/heads/{name}"), &from)
}

/// What is tagged is in the address, and the tag in the body; to delete one, the tag is in the address.
pub(crate) fn tag(shared: &Shared, question: &Question, place: &Place<'_>) -> Result<Answer, Answer> {
    let word = place.rest.join("/");
    if question.method == Method::DELETE {
        return change(shared, question, place, &format!("refs/tags/{word}"), "");
    }
    let body = question.json()?;
    let name = body.get("tag").and_then(Value::as_str).unwrap_or_default();
    change(shared, question, place, &format!("refs/tags/{name}"), &word)
}

fn change(
    shared: &Shared,
    question: &Question,
    place: &Place<'_>,
    reference: &str,
    from: &str,
) -> Result<Answer, Answer> {
    let mut state = shared.state();
    let repo = access::repo(&state, question, place.kind, &place.name, Need::Write)?;
    let is_there = repo.refs.contains_key(reference);
    let oid = repo.commit(from).map(|commit| commit.oid.clone());
    let repo = state.repos.get_mut(&place.key()).ok_or_else(|| Answer::no_revision(reference))?;
    if question.method == Method::DELETE {
        repo.refs.remove(reference).ok_or_else(|| Answer::no_revision(reference))?;
    } else if is_there {
        return Err(Answer::refusal(409, None, &format!("Reference already exists: {reference}")));
    } else {
        repo.refs.insert(reference.to_owned(), oid.ok_or_else(|| Answer::no_revision(from))?);
    }
    Ok(Answer::json(200, &json!({})))
}
