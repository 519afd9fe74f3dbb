//! Which address is whose.

use http::Method;
use serde_json::json;

use crate::answer::Answer;
use crate::question::Question;
use crate::server::Shared;
use crate::store::RepoKind;
use crate::{access, commit, create, info, lfs, preupload, refs, resolve, tree};

/// A repository, and what of it is asked for.
pub(crate) struct Place<'a> {
    pub(crate) kind: RepoKind,
    pub(crate) name: String,
    /// After the word that says what is wanted.
    pub(crate) rest: &'a [String],
}

impl<'a> Place<'a> {
    pub(crate) fn key(&self) -> (RepoKind, String) {
        (self.kind, self.name.clone())
    }

    /// The revision, and the path after it. `refs/pr/1` may be encoded as one segment or be three.
    pub(crate) fn revision(&self) -> Result<(String, String), Answer> {
        let (revision, rest): (String, &'a [String]) = match self.rest {
            [refs, kind, name, rest @ ..] if refs == "refs" => (format!("refs/{kind}/{name}"), rest),
            [revision, rest @ ..] if !revision.is_empty() => (revision.clone(), rest),
            _ => return Err(Answer::bad_request("There is no revision in the address")),
        };
        Ok((revision, rest.join("/").trim_matches('/').to_owned()))
    }
}

/// What the Hub answers.
pub(crate) fn answer(shared: &Shared, question: &Question) -> Answer {
    let result = match question.segments.as_slice() {
        [api, rest @ ..] if api == "api" => api_answer(shared, question, rest),
        [prefix, owner, name, rest @ ..] if RepoKind::of_plural(prefix).is_some() => {
            let kind = RepoKind::of_plural(prefix).unwrap_or(RepoKind::Model);
            file_answer(shared, question, kind, owner, name, rest)
        }
        [owner, name, rest @ ..] => file_answer(shared, question, RepoKind::Model, owner, name, rest),
        _ => Err(nothing()),
    };
    // All answers say how much may still be asked for.
    let limit = if question.path.contains("/resolve/") { "resolvers" } else { "api" };
    result
        .unwrap_or_else(|refusal| refusal)
        .with("ratelimit", format!("\"{limit}\";r=2999;t=172"))
        .with("ratelimit-policy", format!("\"fixed window\";\"{limit}\";q=3000;w=300"))
}

fn nothing() -> Answer {
    Answer::refusal(404, None, "Sorry, we can't find the page you are looking for.")
}

fn file_answer(
    shared: &Shared,
    question: &Question,
    kind: RepoKind,
    owner: &str,
    name: &str,
    rest: &[String],
) -> Result<Answer, Answer> {
    let words: Vec<&str> = rest.iter().map(String::as_str).collect();
    let is_read = question.method == Method::GET || question.method == Method::HEAD;
    let is_post = question.method == Method::POST;
    let place = |name: &str, from: usize| {
        let rest = rest.get(from..).unwrap_or_default();
        Place { kind, name: format!("{owner}/{name}"), rest }
    };
    match (name.strip_suffix(".git"), words.as_slice()) {
        (None, ["resolve", ..]) if is_read => resolve::resolve(shared, question, &place(name, 1)),
        (Some(name), ["info", "lfs", "objects", "batch"]) if is_post => lfs::batch(shared, question, &place(name, 4)),
        (Some(name), ["info", "lfs", "objects", "verify"]) if is_post => lfs::verify(shared, question, &place(name, 4)),
        _ => Err(nothing()),
    }
}

fn api_answer(shared: &Shared, question: &Question, rest: &[String]) -> Result<Answer, Answer> {
    let words: Vec<&str> = rest.iter().map(String::as_str).collect();
    match (question.method.as_str(), words.as_slice()) {
        ("GET", ["whoami-v2"]) => create::whoami(shared, question),
        ("POST", ["repos", "create"]) => create::create(shared, question),
        ("DELETE", ["repos", "delete"]) => create::delete(shared, question),
        ("POST", ["validate-yaml"]) => Ok(Answer::json(200, &json!({"errors": [], "warnings": []}))),
        ("POST", ["complete_multipart"]) => lfs::complete(shared, question),
        ("GET" | "HEAD", ["resolve-cache", plural, owner, name, ..]) => {
            let kind = RepoKind::of_plural(plural).ok_or_else(nothing)?;
            let rest = rest.get(4..).unwrap_or_default();
            resolve::cached(shared, question, &Place { kind, name: format!("{owner}/{name}"), rest })
        }
        (method, [plural, owner, name, tail @ ..]) => {
            let kind = RepoKind::of_plural(plural).ok_or_else(nothing)?;
            let after = rest.get(4..).unwrap_or_default();
            let place = Place { kind, name: format!("{owner}/{name}"), rest: after };
            match (method, tail.first().copied()) {
                ("GET", None | Some("revision")) => info::info(shared, question, &place),
                ("GET", Some("auth-check")) => {
                    let need = if tail.len() > 1 { access::Need::Write } else { access::Need::Content };
                    let state = shared.state();
                    access::repo(&state, question, kind, &place.name, need)?;
                    Ok(Answer::json(200, &json!({})))
                }
                ("GET", Some("tree")) => tree::tree(shared, question, &place),
                ("POST", Some("paths-info")) => tree::paths_info(shared, question, &place),
                ("GET", Some("refs")) => refs::refs(shared, question, &place),
                ("GET", Some("commits")) => refs::commits(shared, question, &place),
                ("POST" | "DELETE", Some("branch")) => refs::branch(shared, question, &place),
                ("POST" | "DELETE", Some("tag")) => refs::tag(shared, question, &place),
                ("POST", Some("preupload")) => preupload::preupload(shared, question, &place),
                ("POST", Some("commit")) => commit::commit(shared, question, &place),
                _ => Err(nothing()),
            }
        }
        _ => Err(nothing()),
    }
}
