//! The large file storage as the Hub speaks of it: what is there, where the rest goes, and whether it has come.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use serde_json::{Map, Value, json};

use crate::access::{self, Need};
use crate::answer::Answer;
use crate::git::sha256;
use crate::links;
use crate::question::Question;
use crate::route::Place;
use crate::server::Shared;
use crate::store::{RepoKind, State};

/// One that has begun.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(crate) repo: (RepoKind, String),
    pub(crate) oid: String,
    pub(crate) size: usize,
    /// By number, from 1: etag and content.
    pub(crate) parts: BTreeMap<usize, (String, Bytes)>,
    part_size: usize,
}

fn answer(status: u16, value: &Value) -> Answer {
    Answer::new(status, "application/vnd.git-lfs+json", value.to_string())
}

pub(crate) fn batch(shared: &Shared, question: &Question, place: &Place<'_>) -> Result<Answer, Answer> {
    let mut state = shared.state();
    let body = question.json()?;
    let is_upload = match body.get("operation").and_then(Value::as_str) {
        Some("upload") => true,
        Some("download") => false,
        _ => return Err(Answer::bad_request("\"operation\" must be upload or download")),
    };
    let need = match (is_upload, body.get("ref")) {
        (false, _) => Need::Content,
        // What goes into a proposal has no reference yet.
        (true, None) => Need::Propose,
        (true, Some(_)) => Need::Write,
    };
    access::repo(&state, question, place.kind, &place.name, need)?;
    if body.get("hash_algo").is_some_and(|algorithm| algorithm != "sha256") {
        return Err(Answer::bad_request("\"hash_algo\" must be sha256"));
    }
    let transfers = body.get("transfers").and_then(Value::as_array);
    let has_parts = transfers.is_some_and(|transfers| transfers.iter().any(|name| name == "multipart"));
    let objects = body.get("objects").and_then(Value::as_array).cloned().unwrap_or_default();
    let objects: Vec<Value> = objects
        .iter()
        .map(|object| {
            let oid = object.get("oid").and_then(Value::as_str).unwrap_or_default();
            let size = object.get("size").and_then(Value::as_u64);
            let is_name = oid.len() == 64 && oid.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            let fault = |code: u16, message: &str| {
                json!({"oid": oid, "size": size.unwrap_or(0), "error": {"code": code, "message": message}})
            };
            let Some(size) = size.filter(|_| is_name) else { return fault(422, "Invalid oid or size") };
            let there = state.repos.get(&place.key()).and_then(|repo| repo.objects.get(oid));
            match (is_upload, there.is_some()) {
                (true, true) => json!({"oid": oid, "size": size}),
                (true, false) => {
                    let actions = upload(shared, &mut state, place, oid, size as usize, has_parts);
                    json!({"oid": oid, "size": size, "authenticated": true, "actions": actions})
                }
                (false, true) => {
                    let base = format!("http://{}", shared.cdn);
                    let href = links::sign(&state, &base, "GET", &crate::cdn::path(oid), &[]);
                    let actions = json!({"download": {"href": href}});
                    json!({"oid": oid, "size": size, "authenticated": true, "actions": actions})
                }
                (false, false) => fault(404, "Object does not exist on the server"),
            }
        })
        .collect();
    let transfer = if is_upload && has_parts { "multipart" } else { "basic" };
    Ok(answer(200, &json!({"transfer": transfer, "objects": objects})))
}

/// What a client is to do with an object that is not there.
fn upload(shared: &Shared, state: &mut State, place: &Place<'_>, oid: &str, size: usize, has_parts: bool) -> Value {
    let (over, part_size) = (state.settings.multipart_over, state.settings.part_size.max(1));
    let id = format!("upload-{}", state.number());
    let (storage, path) = (format!("http://{}", shared.cdn), crate::cdn::path(oid));
    let upload = if has_parts && size > over {
        let mut header = Map::from_iter([("chunk_size".to_owned(), part_size.to_string().into())]);
        for number in 1..=size.div_ceil(part_size) {
            let fields = [("uploadId", id.as_str()), ("partNumber", &number.to_string())];
            let href = links::sign(state, &storage, "PUT", &path, &fields);
            header.insert(format!("{number:05}"), href.into());
        }
        let fields = [("uploadId", id.as_str())];
        let href = links::sign(state, &shared.endpoint(), "POST", "/api/complete_multipart", &fields);
        json!({"href": href, "header": header})
    } else {
        json!({"href": links::sign(state, &storage, "PUT", &path, &[("uploadId", &id)])})
    };
    let parts = BTreeMap::new();
    state.uploads.insert(id, Upload { repo: place.key(), oid: oid.to_owned(), size, parts, part_size });
    let repo = format!("{}/{}{}.git", shared.endpoint(), place.kind.prefix(), place.name);
    json!({"upload": upload, "verify": {"href": format!("{repo}/info/lfs/objects/verify")}})
}

/// All parts have come. The link is enough: there is no token.
pub(crate) fn complete(shared: &Shared, question: &Question) -> Result<Answer, Answer> {
    let mut state = shared.state();
    links::check(&state, question)?;
    let id = question.query("uploadId").unwrap_or_default();
    let upload = state.uploads.get(id).ok_or_else(|| Answer::refusal(404, None, "No such upload"))?;
    let body = question.json()?;
    let named = body.get("parts").and_then(Value::as_array).cloned().unwrap_or_default();
    let expected = upload.size.div_ceil(upload.part_size);
    if named.len() != expected {
        return Err(Answer::bad_request(&format!("There are {expected} parts, and {} were named", named.len())));
    }
    let mut content = BytesMut::new();
    for (number, part) in (1..).zip(&named) {
        let is_number = part.get("partNumber").and_then(Value::as_u64) == Some(number as u64);
        let etag = part.get("etag").and_then(Value::as_str).unwrap_or_default().trim_matches('"');
        match upload.parts.get(&number) {
            Some((known, bytes)) if is_number && known == etag => {
                let is_last = number == expected;
                if bytes.len() != upload.part_size && !is_last {
                    return Err(Answer::bad_request(&format!("Part {number} has {} bytes", bytes.len())));
                }
                content.extend_from_slice(bytes);
            }
            _ => return Err(Answer::bad_request(&format!("Part {number} has not come, or has another etag"))),
        }
    }
    let is_same = body.get("oid").and_then(Value::as_str) == Some(&upload.oid);
    if !is_same || content.len() != upload.size || sha256(&content) != upload.oid {
        return Err(Answer::bad_request("The content is not what was announced"));
    }
    let (key, oid) = (upload.repo.clone(), upload.oid.clone());
    // The upload is kept, as the client may not see this answer and ask again.
    if let Some(repo) = state.repos.get_mut(&key) {
        repo.objects.insert(oid, content.freeze());
    }
    Ok(answer(200, &json!({"success": true})))
}

pub(crate) fn verify(shared: &Shared, question: &Question, place: &Place<'_>) -> Result<Answer, Answer> {
    let state = shared.state();
    let repo = access::repo(&state, question, place.kind, &place.name, Need::Propose)?;
    let body = question.json()?;
    let oid = body.get("oid").and_then(Value::as_str).unwrap_or_default();
    let content = repo.objects.get(oid).ok_or_else(|| Answer::refusal(404, None, "Object does not exist"))?;
    if body.get("size").and_then(Value::as_u64) != Some(content.len() as u64) {
        return Err(Answer::refusal(422, None, &format!("The object has {} bytes", content.len())));
    }
    Ok(answer(200, &json!({})))
}
