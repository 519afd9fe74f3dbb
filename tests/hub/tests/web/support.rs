//! A client that does nothing by itself: no redirects, no repetitions.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderMap;
use hub::{Access, Hub};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body))
    }

    pub(crate) fn code(&self) -> (u16, Option<&str>) {
        (self.status, self.header("x-error-code"))
    }
}

pub(crate) struct Client {
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
    endpoint: String,
    pub(crate) token: Option<&'static str>,
}

/// A hub with tokens of me, and of others.
pub(crate) fn start() -> (Hub, Client) {
    let hub = Hub::start().unwrap();
    hub.token("hf_write", Access::write("me").member("lab"));
    hub.token("hf_read", Access::read("me"));
    hub.token("hf_other", Access::write("other"));
    hub.token("hf_friend", Access::read("friend").granted("me/gated"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let endpoint = hub.endpoint();
    (hub, Client { runtime, http, endpoint, token: Some("hf_write") })
}

impl Client {
    /// An address that begins with a slash is at the hub; others are whole.
    pub(crate) fn ask(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Result<Got, String> {
        self.ask_as(self.token, method, url, headers, body)
    }

    fn ask_as(
        &self,
        token: Option<&str>,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Result<Got, String> {
        let is_hub = url.starts_with('/');
        let url = if is_hub { format!("{}{url}", self.endpoint) } else { url.to_owned() };
        let mut request = self.http.request(method.parse().unwrap(), url).body(body);
        if let Some(token) = token.filter(|_| is_hub) {
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.runtime.block_on(async {
            let response = request.send().await.map_err(|error| format!("no answer: {error}"))?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            let body = response.bytes().await.map_err(|error| format!("no body: {error}"))?;
            Ok(Got { status, headers, body })
        })
    }

    pub(crate) fn get(&self, url: &str) -> Got {
        self.ask("GET", url, &[], "").unwrap()
    }

    pub(crate) fn get_as(&self, token: Option<&str>, url: &str) -> Got {
        self.ask_as(token, "GET", url, &[], "").unwrap()
    }

    pub(crate) fn head(&self, url: &str) -> Got {
        self.ask("HEAD", url, &[], "").unwrap()
    }

    pub(crate) fn post(&self, url: &str, body: &Value) -> Got {
        self.ask("POST", url, &[("content-type", "application/json")], body.to_string()).unwrap()
    }

    pub(crate) fn put(&self, url: &str, body: Vec<u8>) -> Got {
        self.ask("PUT", url, &[], body).unwrap()
    }

    /// Follows redirects as the Hub's clients do: to the storage without the token.
    pub(crate) fn download(&self, url: &str) -> Got {
        let got = self.get(url);
        match got.header("location").filter(|_| got.status / 100 == 3) {
            Some(location) => self.get(location),
            None => got,
        }
    }

    /// A commit to main of a dataset; the header comes from a summary.
    pub(crate) fn commit(&self, repo: &str, query: &str, header: &Value, changes: &[(&str, Value)]) -> Got {
        let mut lines = json!({"key": "header", "value": header}).to_string() + "\n";
        for (key, value) in changes {
            lines += &(json!({"key": key, "value": value}).to_string() + "\n");
        }
        let url = format!("/api/datasets/{repo}/commit/main{query}");
        self.ask("POST", &url, &[("content-type", "application/x-ndjson")], lines).unwrap()
    }

    /// What the storage is to do with objects.
    pub(crate) fn batch(&self, repo: &str, transfers: &[&str], contents: &[&[u8]]) -> Value {
        let objects: Vec<Value> =
            contents.iter().map(|content| json!({"oid": sha256(content), "size": content.len()})).collect();
        let body = json!({"operation": "upload", "transfers": transfers, "objects": objects, "hash_algo": "sha256",
            "ref": {"name": "main"}});
        let got = self.post(&format!("/datasets/{repo}.git/info/lfs/objects/batch"), &body);
        assert_eq!(got.status, 200, "{:?}", got.body);
        got.json()
    }
}

pub(crate) fn sha256(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    hash.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

pub(crate) fn regular(path: &str, content: &[u8]) -> (&'static str, Value) {
    ("file", json!({"path": path, "content": STANDARD.encode(content), "encoding": "base64"}))
}

pub(crate) fn large(path: &str, content: &[u8]) -> (&'static str, Value) {
    ("lfsFile", json!({"path": path, "algo": "sha256", "oid": sha256(content), "size": content.len()}))
}

pub(crate) fn summary(text: &str) -> Value {
    json!({"summary": text, "description": ""})
}

/// Bytes that no two places of share.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    (0..length as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}
