//! Links that are good by themselves, for one method and a while.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::answer::Answer;
use crate::git::sha256;
use crate::question::{Question, encoded};
use crate::store::State;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn signature(state: &State, method: &str, path: &str, fields: &[(String, String)]) -> String {
    sha256(format!("{} {method} {path} {fields:?}", state.generation).as_bytes())
}

/// An address at a base, with the fields of its query.
pub(crate) fn sign(state: &State, base: &str, method: &str, path: &str, fields: &[(&str, &str)]) -> String {
    let expires = (now() + state.settings.link_lifetime.as_secs()).to_string();
    let mut fields: Vec<_> = fields.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    fields.push(("Expires".to_owned(), expires));
    let signature = signature(state, method, path, &fields);
    fields.push(("Signature".to_owned(), signature));
    let query: Vec<_> = fields.iter().map(|(key, value)| format!("{key}={}", encoded(value))).collect();
    format!("{base}{path}?{}", query.join("&"))
}

/// Whether a question came by a link that is still good. One for reading is good for HEAD, too.
pub(crate) fn check(state: &State, question: &Question) -> Result<(), Answer> {
    let method = if question.method == "HEAD" { "GET" } else { question.method.as_str() };
    let Some(((_, given), fields)) = question.query.split_last().filter(|((key, _), _)| key == "Signature") else {
        return Err(Answer::xml(403, "AccessDenied", "Access Denied"));
    };
    let expires: u64 = question.query("Expires").and_then(|at| at.parse().ok()).unwrap_or(0);
    if now() >= expires {
        return Err(Answer::xml(403, "AccessDenied", "Request has expired"));
    }
    if *given != signature(state, method, &question.path, fields) {
        return Err(Answer::xml(403, "SignatureDoesNotMatch", "The request signature does not match"));
    }
    Ok(())
}
