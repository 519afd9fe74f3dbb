//! A question, as far as it decides the answer.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::POISON;
use crate::random::mix;

/// What is asked about which image: the same for the same image and prompt, however often it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(pub u64);

/// The identity of a question: what the user says, and the image as it is sent.
pub fn identity(prompt: &str, image: Option<&[u8]>) -> Identity {
    let hash = |seed: u64, bytes: &[u8]| {
        let mut chunks = bytes.chunks_exact(8);
        let whole = chunks.by_ref().filter_map(|chunk| chunk.try_into().ok().map(u64::from_le_bytes));
        let hash = whole.fold(mix(seed ^ bytes.len() as u64), |hash, word| mix(hash ^ word));
        chunks.remainder().iter().fold(hash, |hash, byte| mix(hash ^ u64::from(*byte)))
    };
    Identity(hash(hash(1, prompt.as_bytes()), image.unwrap_or_default()))
}

/// What a server says about it.
pub fn caption(identity: Identity) -> String {
    format!("A picture of the number {:016x}, in oil on canvas.", identity.0)
}

pub(crate) struct Question {
    pub(crate) identity: Identity,
    pub(crate) model: String,
    pub(crate) shows_image: bool,
    pub(crate) is_poisoned: bool,
    pub(crate) top_p: Option<f64>,
}

impl Question {
    /// Whether a server answers it that knows only `top_p` between 0 and 1, without them: TGI.
    pub(crate) fn has_usual_top_p(&self) -> bool {
        self.top_p.is_none_or(|top_p| top_p > 0.0 && top_p < 1.0)
    }

    /// `None` where it is not what a chat completion is asked with.
    pub(crate) fn of(body: &[u8]) -> Option<Self> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let model = body["model"].as_str()?.to_owned();
        let top_p = body["top_p"].as_f64();
        let content = &body["messages"].as_array()?.iter().find(|message| message["role"] == "user")?["content"];
        if let Some(prompt) = content.as_str() {
            let identity = identity(prompt, None);
            return Some(Self { identity, model, shows_image: false, is_poisoned: false, top_p });
        }
        let parts = content.as_array()?;
        let part = |kind: &str| parts.iter().find(|part| part["type"] == kind);
        let prompt = part("text")?["text"].as_str()?;
        let url = part("image_url")?["image_url"]["url"].as_str()?;
        let (_, base64) = url.strip_prefix("data:image/")?.split_once(";base64,")?;
        let image = STANDARD.decode(base64).ok()?;
        let is_poisoned = image.windows(POISON.len()).any(|window| window == POISON);
        Some(Self { identity: identity(prompt, Some(&image)), model, shows_image: true, is_poisoned, top_p })
    }
}
