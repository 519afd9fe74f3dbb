//! Large files, as git-lfs has it: which of them the Hub lacks, and where to send them.
//!
//! A file goes in one request, or in parts, as the Hub says. A part that breaks off is sent again, not the whole. The addresses
//! are good for a while only; when one is no longer, the Hub is asked again.

use std::collections::BTreeMap;
use std::path::Path;

use reqwest::Url;
use reqwest::header::{ETAG, HeaderMap};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Hub, LFS, Refusal, headers};
use crate::remote::hub::below;
use crate::remote::web::header;
use crate::remote::{Failure, RemoteError, hub};

/// The Hub answers no question about more files than so many.
const AT_ONCE: usize = 256;
/// How often it is asked for new addresses of one file.
const RENEWALS: usize = 3;

/// A file of this machine, as git-lfs knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Large<'a> {
    pub(crate) path: &'a Path,
    pub(crate) sha256: &'a str,
    pub(crate) bytes: u64,
}

/// Where to send a file, and whom to tell.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Orders {
    upload: Option<Order>,
    verify: Option<Order>,
}

#[derive(Clone, Debug, Deserialize)]
struct Order {
    href: String,
    #[serde(default)]
    header: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    actions: Option<Orders>,
    error: Option<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

/// How a try at a file ended.
enum Sent {
    Whole,
    /// The place it was to go to refuses it; a new address may help.
    Refused(Refusal),
}

impl Hub<'_> {
    /// Those of `files` that the Hub does not have, by their places in the list, and where they are to go.
    pub(crate) async fn lacks(&self, files: &[Large<'_>]) -> Result<Vec<(usize, Orders)>, RemoteError> {
        let mut lacking = Vec::new();
        for (start, files) in (0..).step_by(AT_ONCE).zip(files.chunks(AT_ONCE)) {
            let Batch { objects } = self.batch(files).await?;
            for object in objects {
                if let Some(Fault { code, message }) = object.error {
                    let (oid, message) = (&object.oid, self.without_token(&message));
                    return Err(self.not_taken(format!("it does not take the file {oid} ({code}: {message})")));
                }
                let place = files.iter().position(|file| file.sha256 == object.oid);
                if let (Some(place), Some(orders)) = (place, object.actions.filter(|orders| orders.upload.is_some())) {
                    lacking.push((start + place, orders));
                }
            }
        }
        Ok(lacking)
    }

    async fn batch(&self, files: &[Large<'_>]) -> Result<Batch, RemoteError> {
        let objects: Vec<Value> = files.iter().map(|file| json!({ "oid": file.sha256, "size": file.bytes })).collect();
        let question = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": objects,
            "hash_algo": "sha256",
            "ref": { "name": self.repository.revision },
        });
        let git = format!("{}.git", self.repository.name);
        let parts = [self.repository.kind.plural()].into_iter().chain(git.split('/'));
        self.tried(async || {
            let url = below(self.access, parts.clone().chain(["info", "lfs", "objects", "batch"]))?;
            match self.ask(&url, super::json(LFS, &question)).await? {
                Ok(response) => hub::json(response, "its answer about large files").await,
                Err(refusal) => Err(self.refused("it cannot be asked about large files", &refusal)),
            }
        })
        .await
    }

    /// Sends a file that the Hub lacks.
    pub(crate) async fn put(&self, file: Large<'_>, mut orders: Orders) -> Result<(), RemoteError> {
        let mut renewals = 0;
        loop {
            let Sent::Refused(refusal) = self.put_once(file, &orders).await? else { return Ok(()) };
            renewals += 1;
            if renewals > RENEWALS {
                let (name, words) = (file.path.display(), refusal.in_words());
                return Err(self.not_taken(format!("the place where it wants {name} does not take it: {words}")));
            }
            match self.lacks(&[file]).await?.pop() {
                Some((_, new)) => orders = new,
                None => return Ok(()),
            }
        }
    }

    async fn put_once(&self, file: Large<'_>, orders: &Orders) -> Result<Sent, RemoteError> {
        let Some(upload) = &orders.upload else { return Ok(Sent::Whole) };
        let url = self.address(&upload.href)?;
        let said = upload.header.clone().unwrap_or_default();
        let sent = match said.get("chunk_size") {
            Some(size) => self.put_in_parts(file, &url, &said, size).await?,
            None => self.put_part(&url, &headers(said.iter()), file.path, (0, file.bytes)).await?.map(drop),
        };
        if let Err(refusal) = sent {
            return Ok(Sent::Refused(refusal));
        }
        if let Some(verify) = &orders.verify {
            let url = self.address(&verify.href)?;
            let words = json!({ "oid": file.sha256, "size": file.bytes });
            if let Err(refusal) = self.tell(&url, &words).await? {
                return Ok(Sent::Refused(refusal));
            }
        }
        Ok(Sent::Whole)
    }

    async fn put_in_parts(
        &self,
        file: Large<'_>,
        url: &Url,
        said: &BTreeMap<String, Value>,
        size: &Value,
    ) -> Result<Result<(), Refusal>, RemoteError> {
        let size = size.as_u64().or_else(|| size.as_str()?.trim().parse().ok()).filter(|size| *size > 0);
        let numbered = |(name, address): (&String, &Value)| Some((name.parse().ok()?, address.as_str()?.to_owned()));
        let addresses: BTreeMap<u64, String> = said.iter().filter_map(numbered).collect();
        let Some(size) = size.filter(|size| file.bytes.div_ceil(*size) == addresses.len() as u64) else {
            let (name, bytes, parts) = (file.path.display(), file.bytes, addresses.len());
            return Err(self.not_taken(format!("it wants the {bytes} bytes of {name} in {parts} parts of an odd size")));
        };
        let mut parts = Vec::with_capacity(addresses.len());
        for (offset, (number, address)) in (0..).step_by(size as usize).zip(addresses) {
            let range = (offset, size.min(file.bytes - offset));
            match self.put_part(&self.address(&address)?, &HeaderMap::new(), file.path, range).await? {
                Ok(tag) => parts.push(json!({ "partNumber": number, "etag": tag })),
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
        self.tell(url, &json!({ "oid": file.sha256, "parts": parts })).await
    }

    /// Sends a range of a file; the answer is the place's mark for it.
    async fn put_part(
        &self,
        url: &Url,
        headers: &HeaderMap,
        path: &Path,
        (offset, bytes): (u64, u64),
    ) -> Result<Result<String, Refusal>, RemoteError> {
        self.tried(async || {
            let answer = self.send(url, headers, (path, offset, bytes)).await?;
            Ok(answer.map(|response| header(&response, ETAG).unwrap_or_default().to_owned()))
        })
        .await
    }

    async fn tell(&self, url: &Url, words: &Value) -> Result<Result<(), Refusal>, RemoteError> {
        self.tried(async || Ok(self.ask(url, super::json(LFS, words)).await?.map(drop))).await
    }

    fn address(&self, href: &str) -> Result<Url, RemoteError> {
        let url = Url::parse(href).ok().filter(|url| matches!(url.scheme(), "https" | "http"));
        url.ok_or_else(|| {
            Failure::Final("it wants a file where none can be sent".to_owned()).into_error_of_sending(self.shown)
        })
    }
}
