//! The storage behind signed links.

use bytes::Bytes;
use md5::{Digest, Md5};

use crate::answer::Answer;
use crate::git::{hex, sha256};
use crate::links;
use crate::question::Question;
use crate::server::Shared;
use crate::store::State;

/// Of an object.
pub(crate) fn path(sha256: &str) -> String {
    format!("/repos/{}/{sha256}", sha256.get(..2).unwrap_or_default())
}

/// As S3 has it, which is not what the Hub says of the same file.
pub(crate) fn etag(content: &[u8]) -> String {
    hex(&Md5::digest(content))
}

pub(crate) fn answer(shared: &Shared, question: &Question) -> Answer {
    let mut state = shared.state();
    inner(&mut state, question).unwrap_or_else(|refusal| refusal)
}

fn inner(state: &mut State, question: &Question) -> Result<Answer, Answer> {
    if question.header("authorization").is_some() {
        let message = "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string \
                       parameter or the Authorization header should be specified";
        return Err(Answer::xml(400, "InvalidArgument", message));
    }
    links::check(state, question)?;
    let object = question.segments.last().map(String::as_str).unwrap_or_default();
    match question.method.as_str() {
        "GET" | "HEAD" => {
            let content = state.repos.values().find_map(|repo| repo.objects.get(object));
            let content = content.ok_or_else(|| Answer::xml(404, "NoSuchKey", "The specified key does not exist."))?;
            let answer =
                Answer::content(content, &etag(content), question.header("range"), question.header("if-range"));
            let disposition = question.query("response-content-disposition").unwrap_or("inline");
            Ok(answer.with("content-disposition", disposition))
        }
        "PUT" => put(state, question, object),
        _ => Err(Answer::xml(405, "MethodNotAllowed", "The specified method is not allowed against this resource.")),
    }
}

/// An object, or a part of one.
fn put(state: &mut State, question: &Question, object: &str) -> Result<Answer, Answer> {
    if question.header("transfer-encoding").is_some() {
        let message = "A header you provided implies functionality that is not implemented";
        return Err(Answer::xml(501, "NotImplemented", message));
    }
    if question.header("content-length").is_none() {
        return Err(Answer::xml(411, "MissingContentLength", "You must provide the Content-Length HTTP header."));
    }
    let id = question.query("uploadId").unwrap_or_default();
    let gone = || Answer::xml(404, "NoSuchUpload", "The specified upload does not exist.");
    let upload = state.uploads.get_mut(id).ok_or_else(gone)?;
    let content: Bytes = question.body.clone();
    let etag = etag(&content);
    if let Some(number) = question.query("partNumber") {
        let number = number.parse().map_err(|_not_a_number| gone())?;
        upload.parts.insert(number, (etag.clone(), content));
    } else {
        if sha256(&content) != object || content.len() != upload.size {
            return Err(Answer::xml(400, "BadDigest", "The content is not what was announced"));
        }
        let key = upload.repo.clone();
        // Kept, as the client may not have seen this answer and put it again.
        if let Some(repo) = state.repos.get_mut(&key) {
            repo.objects.insert(object.to_owned(), content);
        }
    }
    Ok(Answer::new(200, "application/xml", Bytes::new()).with("etag", format!("\"{etag}\"")))
}
