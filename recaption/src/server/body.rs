//! A request's body. The image is most of it: its base64 goes straight to where it is sent from.

use std::num::NonZero;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::image::{Image, prepare};
use super::options::Semantics;
use crate::captioner::{Failure, Request, Sampling};

/// A top_p that leaves out next to nothing.
const ALL_BUT_1: f64 = 0.9999;

/// Writes bodies for one model.
#[derive(Clone, Debug)]
pub struct Bodies {
    /// `{"model":"…","messages":[`
    head: Vec<u8>,
    extra: Map<String, Value>,
    /// `,"key":value` for each of them.
    tail: Vec<u8>,
    max_side: u32,
    /// How many images are decoded at a time: more would take memory, not time.
    decoding: Arc<Semaphore>,
}

impl Bodies {
    pub fn new(semantics: &Semantics) -> Self {
        let mut head = br#"{"model":"#.to_vec();
        json(&mut head, &semantics.model);
        head.extend_from_slice(br#","messages":["#);
        let mut tail = Vec::new();
        for (key, value) in &semantics.extra {
            member(&mut tail, key, value);
        }
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let decoding = Arc::new(Semaphore::new(threads));
        Self { head, extra: semantics.extra.clone(), tail, max_side: semantics.max_side, decoding }
    }

    /// The body that asks `request`, on one line. Fails where its image is none.
    pub async fn of(&self, request: &Request) -> Result<Vec<u8>, Failure> {
        Ok(self.write(request, self.image(request).await?.as_ref()))
    }

    /// A request's image, as it is sent.
    pub(super) async fn image(&self, request: &Request) -> Result<Option<Image>, Failure> {
        match &request.image {
            Some(bytes) => Ok(Some(prepare(Arc::clone(bytes), self.max_side, &self.decoding).await?)),
            None => Ok(None),
        }
    }

    /// The body that asks `request`, whose image has become `image`.
    pub(super) fn write(&self, request: &Request, image: Option<&Image>) -> Vec<u8> {
        let base64 = image.map_or(0, base64_length);
        let words = request.prompt.len() + request.system.as_ref().map_or(0, String::len);
        let mut body = Vec::with_capacity(self.head.len() + self.tail.len() + base64 + words + words / 8 + 320);
        body.extend_from_slice(&self.head);
        if let Some(system) = &request.system {
            body.extend_from_slice(br#"{"role":"system","content":"#);
            json(&mut body, system);
            body.extend_from_slice(b"},");
        }
        message(&mut body, image, &request.prompt);
        body.push(b']');
        self.sampling(&mut body, request.sampling);
        body.extend_from_slice(&self.tail);
        body.push(b'}');
        body
    }

    fn sampling(&self, body: &mut Vec<u8>, sampling: Sampling) {
        let Sampling { temperature, top_p, max_tokens, seed } = sampling;
        let draws = self.extra.get("temperature").map_or(temperature > 0.0, |given| given.as_f64() != Some(0.0));
        // TGI refuses 1. Left out, it is not 1 everywhere: vLLM takes what the model's generation_config says, which matters as soon as
        // tokens are drawn.
        let top_p = match (draws, top_p < 1.0) {
            (_, true) => Some(top_p),
            (true, false) => Some(ALL_BUT_1),
            (false, false) => None,
        };
        let mut ours = |key: &str, value: &dyn Fn(&mut Vec<u8>)| {
            if !self.extra.contains_key(key) {
                value(body);
            }
        };
        ours("temperature", &|body| member(body, "temperature", &temperature));
        if let Some(top_p) = top_p {
            ours("top_p", &|body| member(body, "top_p", &top_p));
        }
        ours("max_tokens", &|body| member(body, "max_tokens", &max_tokens));
        ours("seed", &|body| member(body, "seed", &seed));
    }
}

/// A question so small that any server that works at all answers it at once. With an image, only one that can look at images
/// does.
pub(super) fn control(model: &str, with_image: bool) -> Vec<u8> {
    let mut body = br#"{"model":"#.to_vec();
    json(&mut body, model);
    body.extend_from_slice(br#","messages":["#);
    let image = if with_image { grey() } else { None };
    message(&mut body, image.as_ref(), "Say yes.");
    body.extend_from_slice(br#"],"temperature":0.0,"max_tokens":1}"#);
    body
}

/// A small image; large enough for models that want a few patches of any.
fn grey() -> Option<Image> {
    let image = image::RgbImage::from_pixel(64, 64, image::Rgb([128; 3]));
    let bytes = picture::encode(&image, picture::Format::Jpeg, 90).ok()?;
    Some(Image { bytes: bytes.into(), media_type: "image/jpeg" })
}

/// What the user says, and shows.
fn message(body: &mut Vec<u8>, image: Option<&Image>, prompt: &str) {
    body.extend_from_slice(br#"{"role":"user","content":"#);
    let Some(image) = image else {
        json(body, prompt);
        return body.push(b'}');
    };
    body.extend_from_slice(br#"[{"type":"image_url","image_url":{"url":"data:"#);
    body.extend_from_slice(image.media_type.as_bytes());
    body.extend_from_slice(b";base64,");
    let start = body.len();
    body.resize(start + base64_length(image), b'=');
    // It fits: that is how much base64 is made of so many bytes.
    if let Some(space) = body.get_mut(start..)
        && STANDARD.encode_slice(&image.bytes, space).is_err()
    {
        body.truncate(start);
    }
    body.extend_from_slice(br#""}},{"type":"text","text":"#);
    json(body, prompt);
    body.extend_from_slice(b"}]}");
}

fn base64_length(image: &Image) -> usize {
    image.bytes.len().div_ceil(3) * 4
}

fn member(out: &mut Vec<u8>, key: &str, value: &impl Serialize) {
    out.push(b',');
    json(out, key);
    out.push(b':');
    json(out, value);
}

fn json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    let start = out.len();
    // Text, numbers and values of JSON can always be written as such, and memory takes all of it.
    if serde_json::to_writer(&mut *out, value).is_err() {
        out.truncate(start);
        out.extend_from_slice(b"null");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn semantics(extra: Value) -> Semantics {
        let Value::Object(extra) = extra else { panic!("no object") };
        Semantics { model: "a \"model\"".to_owned(), extra, ..Semantics::default() }
    }

    fn request(system: Option<&str>) -> Request {
        Request {
            system: system.map(str::to_owned),
            prompt: "What is \"this\"?\n\u{1f5bc}".to_owned(),
            image: None,
            sampling: Sampling { temperature: 0.25, seed: u64::MAX, ..Sampling::default() },
        }
    }

    #[test]
    fn a_body_with_an_image_and_one_without() {
        for length in [0, 1, 2, 3, 50_000] {
            let bytes: Vec<u8> = (0..length).map(|n| (n * 7) as u8).collect();
            let image = Image { bytes: bytes.clone().into(), media_type: "image/png" };
            let bodies = Bodies::new(&semantics(json!({ "seed": null, "chat_template_kwargs": { "think": false } })));
            let body = bodies.write(&request(Some("Be \\ brief.")), Some(&image));
            let body: Value = serde_json::from_slice(&body).unwrap();
            let url = format!("data:image/png;base64,{}", STANDARD.encode(&bytes));
            assert_eq!(
                body,
                json!({
                    "model": "a \"model\"",
                    "messages": [
                        { "role": "system", "content": "Be \\ brief." },
                        { "role": "user", "content": [
                            { "type": "image_url", "image_url": { "url": url } },
                            { "type": "text", "text": "What is \"this\"?\n\u{1f5bc}" },
                        ] },
                    ],
                    "temperature": 0.25, "top_p": 0.9999, "max_tokens": 300,
                    "seed": null, "chat_template_kwargs": { "think": false },
                })
            );
        }
        let body: Value =
            serde_json::from_slice(&Bodies::new(&semantics(json!({}))).write(&request(None), None)).unwrap();
        assert_eq!(body["messages"], json!([{ "role": "user", "content": "What is \"this\"?\n\u{1f5bc}" }]));
        assert_eq!(body["seed"], json!(u64::MAX));
        let control = |with_image| serde_json::from_slice::<Value>(&control("m\"", with_image)).unwrap();
        assert_eq!(control(false)["messages"][0]["content"], "Say yes.");
        let shown = control(true);
        let url = shown["messages"][0]["content"][0]["image_url"]["url"].as_str().unwrap();
        let bytes = STANDARD.decode(url.strip_prefix("data:image/jpeg;base64,").unwrap()).unwrap();
        assert_eq!(picture::decode(&bytes, 1 << 20).unwrap().dimensions(), (64, 64));
    }

    /// TGI refuses every request whose top_p is not below 1.
    #[test]
    fn top_p_is_left_out_where_nothing_is_drawn_and_below_1_where_something_is() {
        let of = |extra: Value, temperature: f64, top_p: f64| {
            let request = Request { sampling: Sampling { temperature, top_p, ..Sampling::default() }, ..request(None) };
            let body = Bodies::new(&semantics(extra)).write(&request, None);
            serde_json::from_slice::<Value>(&body).unwrap().get("top_p").cloned()
        };
        let Sampling { temperature, top_p, .. } = Sampling::default();
        assert_eq!(of(json!({}), temperature, top_p), None);
        assert_eq!(of(json!({}), 0.7, 1.0), Some(json!(0.9999)));
        assert_eq!(of(json!({ "temperature": 0.7 }), 0.0, 1.0), Some(json!(0.9999)));
        assert_eq!(of(json!({ "temperature": 0 }), 0.7, 1.0), None);
        assert_eq!((of(json!({}), 0.7, 0.5), of(json!({}), 0.0, 0.5)), (Some(json!(0.5)), Some(json!(0.5))));
        assert_eq!(of(json!({ "top_p": 1 }), 0.7, 1.0), Some(json!(1)), "what is written is sent");
    }
}
