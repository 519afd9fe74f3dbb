//! Files by their names.

use crate::access::{self, Need};
use crate::answer::Answer;
use crate::links;
use crate::question::{Question, encoded};
use crate::route::Place;
use crate::server::Shared;
use crate::store::{Commit, File, State};

/// A file at a revision.
fn find<'a>(
    state: &'a State,
    question: &Question,
    place: &Place<'_>,
) -> Result<(&'a Commit, &'a File, String), Answer> {
    let repo = access::repo(state, question, place.kind, &place.name, Need::Content)?;
    let (revision, path) = place.revision()?;
    let commit = repo.commit(&revision).ok_or_else(|| Answer::no_revision(&revision))?;
    let absent = || Answer::no_entry("Entry not found").with("x-repo-commit", &commit.oid);
    Ok((commit, commit.files.get(&path).ok_or_else(absent)?, path))
}

/// The small file itself, or where it is; of a large one, a link to the storage.
pub(crate) fn resolve(shared: &Shared, question: &Question, place: &Place<'_>) -> Result<Answer, Answer> {
    let state = shared.state();
    let (commit, file, path) = find(&state, question, place)?;
    let location = if let Some(sha256) = &file.sha256 {
        let name = path.rsplit('/').next().unwrap_or_default();
        let disposition = format!("inline; filename*=UTF-8''{}; filename=\"{name}\";", encoded(name));
        let object = crate::cdn::path(sha256);
        let base = format!("http://{}", shared.cdn);
        Some((302, links::sign(&state, &base, "GET", &object, &[("response-content-disposition", &disposition)])))
    } else {
        let (kind, name, oid) = (place.kind.name(), &place.name, &commit.oid);
        let (path, etag) = (encoded(&path), encoded(&format!("\"{}\"", file.etag())));
        // By the query, caches in between tell apart what was asked for.
        let asked = question.path.replace('/', "%2F");
        let cached = format!("/api/resolve-cache/{kind}s/{name}/{oid}/{path}?{asked}=&etag={etag}");
        state.settings.redirects_small.then_some((307, cached))
    };
    let answer = match location {
        Some((status, location)) => {
            let body =
                format!("{} to {location}", if status == 302 { "Found. Redirecting" } else { "Temporary redirect" });
            let etag = format!("\"{}\"", file.etag());
            Answer::new(status, "text/plain; charset=utf-8", body)
                .with("location", location)
                .with("x-linked-etag", etag)
                .with("x-linked-size", file.content.len().to_string())
                .with("accept-ranges", "bytes")
        }
        None => content(question, file),
    };
    Ok(answer.with("x-repo-commit", &commit.oid))
}

/// A small file, by a commit.
pub(crate) fn cached(shared: &Shared, question: &Question, place: &Place<'_>) -> Result<Answer, Answer> {
    let state = shared.state();
    let (commit, file, _) = find(&state, question, place)?;
    Ok(content(question, file).with("x-repo-commit", &commit.oid))
}

fn content(question: &Question, file: &File) -> Answer {
    Answer::content(&file.content, &file.etag(), question.header("range"), question.header("if-range"))
}
