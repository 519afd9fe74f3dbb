//! A question's key, its answer, and the line that holds both.
//!
//! ```text
//! {"crc":"89abcdef","answer":{"key":"…","text":"…","finish":"stop","usage":{…}}}
//! {"crc":"01234567","answer":{"key":"…","reason":"poisoned","detail":"…"}}
//! ```
//!
//! The checksum is of the bytes of `answer`; all around them is always the same.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shards::digest::{Digest, DigestBuilder, InvalidDigest};

use crate::captioner::{Completion, Sampling};

/// Longest line. Answers are a few kilobytes; what is longer was not written by a journal.
pub const LONGEST_LINE: usize = 4 << 20;

/// What a question is known by: the same question to the same model has the same key, and nothing else has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CacheKey(Digest);

/// All that an answer depends on.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Of the image's bytes as stored.
    pub image: Option<Digest>,
    pub system: Option<&'a str>,
    /// As rendered: alt text and all.
    pub prompt: &'a str,
    /// See [`crate::Captioner::identity`].
    pub identity: &'a str,
    /// How the image is shown to the model: its size, its tiles, whether it is encoded again.
    pub image_mode: &'a str,
    pub sampling: Sampling,
}

impl CacheKey {
    pub fn of(question: &Question) -> Self {
        let Question { image, system, prompt, identity, image_mode, sampling } = question;
        let Sampling { temperature, top_p, max_tokens, seed } = sampling;
        // A part that is not there differs from one that is empty.
        let optional = |digest: DigestBuilder, part: Option<&[u8]>| match part {
            Some(part) => digest.part([1]).part(part),
            None => digest.part([0]),
        };
        let digest = DigestBuilder::new().part("caption 1");
        let digest = optional(digest, image.map(|image| image.seed()).as_ref().map(<[u8; 32]>::as_slice));
        let digest = optional(digest, system.map(str::as_bytes)).part(prompt).part(identity).part(image_mode);
        // Adding 0 makes of -0 the 0 that it equals.
        let digest = digest.part((temperature + 0.0).to_le_bytes()).part((top_p + 0.0).to_le_bytes());
        Self(digest.part(max_tokens.to_le_bytes()).part(seed.to_le_bytes()).finish())
    }
}

impl CacheKey {
    /// Its first bytes: enough to look for it by.
    pub(super) fn prefix(&self) -> u64 {
        self.0.seed().first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for CacheKey {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// What came of a question: both are paid for, and neither is asked again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Entry {
    Completion(Completion),
    /// See [`crate::Failure::Refused`].
    Refused {
        reason: String,
        detail: String,
    },
}

impl Entry {
    /// Whether this answer takes the place of `other` to the same question, which was read before it.
    pub fn is_better_than(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Completion(_), Self::Refused { .. }))
    }
}

#[derive(Serialize, Deserialize)]
struct Answer<E> {
    key: CacheKey,
    #[serde(flatten)]
    entry: E,
}

const BEFORE_CHECKSUM: &[u8] = b"{\"crc\":\"";
const BEFORE_ANSWER: &[u8] = b"\",\"answer\":";
const BEFORE_KEY: &[u8] = b"{\"key\":\"";
/// Digits of a key.
const KEY: usize = 64;

/// The line of an answer, with its end.
pub(super) fn line(key: &CacheKey, entry: &Entry) -> Vec<u8> {
    // Of these types there is none that JSON cannot hold; a line that were empty would be read as none.
    let answer = serde_json::to_vec(&Answer { key: *key, entry }).unwrap_or_default();
    let mut line = Vec::with_capacity(answer.len() + 32);
    line.extend(BEFORE_CHECKSUM);
    line.extend(format!("{:08x}", crc32fast::hash(&answer)).as_bytes());
    line.extend(BEFORE_ANSWER);
    line.extend(answer);
    line.extend(b"}\n");
    line
}

/// The answer in a line without its end, if it is whole.
pub(super) fn parse(line: &[u8]) -> Option<(CacheKey, Entry)> {
    let line = line.strip_prefix(BEFORE_CHECKSUM)?;
    let (checksum, line) = line.split_at_checked(8)?;
    let answer = line.strip_prefix(BEFORE_ANSWER)?.strip_suffix(b"}")?;
    let checksum = u32::from_str_radix(std::str::from_utf8(checksum).ok()?, 16).ok()?;
    if checksum != crc32fast::hash(answer) {
        return None;
    }
    let Answer { key, entry } = serde_json::from_slice(answer).ok()?;
    Some((key, entry))
}

/// The key in a line, of which nothing else is looked at: whether it is whole says [`parse`].
pub(super) fn key_of(line: &[u8]) -> Option<CacheKey> {
    let (_checksum, line) = line.strip_prefix(BEFORE_CHECKSUM)?.split_at_checked(8)?;
    let key = line.strip_prefix(BEFORE_ANSWER)?.strip_prefix(BEFORE_KEY)?.get(..KEY)?;
    std::str::from_utf8(key).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_all_of_a_question() {
        let image = Some(Digest::of(b"image"));
        let question = Question {
            image,
            system: None,
            prompt: "p",
            identity: "model",
            image_mode: "pad",
            sampling: Sampling::default(),
        };
        let sampling = Sampling::default();
        let others = [
            Question { image: None, ..question },
            Question { image: Some(Digest::of(b"other")), ..question },
            Question { system: Some(""), ..question },
            Question { prompt: "q", ..question },
            Question { identity: "other", ..question },
            Question { image_mode: "anyres", ..question },
            Question { sampling: Sampling { temperature: 0.5, ..sampling }, ..question },
            Question { sampling: Sampling { top_p: 0.5, ..sampling }, ..question },
            Question { sampling: Sampling { max_tokens: 5, ..sampling }, ..question },
            Question { sampling: Sampling { seed: 5, ..sampling }, ..question },
        ];
        let keys: std::collections::HashSet<_> = others.iter().chain([&question]).map(CacheKey::of).collect();
        assert_eq!(keys.len(), others.len() + 1);
        let zero = Question { sampling: Sampling { temperature: -0.0, ..sampling }, ..question };
        let key = CacheKey::of(&question);
        assert_eq!((CacheKey::of(&zero), key.to_string().parse().ok()), (key, Some(key)));
    }
}
