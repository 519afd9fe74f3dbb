//! Text to token ids and back, and chats to prompts.
//!
//! A tokenizer comes from a `tokenizer.json`, from CLIP's list of merges, or from a GGUF file; all three end as the same library's
//! object, so one type serves them all. Ids are int64, as the models take them.

mod chat;
mod clip;
mod gguf;

pub use chat::{ChatTemplate, Message, MessageInParts, Part};

use std::io::Read;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tch::Tensor;
use tokenizers::models::bpe::{Merges, Vocab};
use tokenizers::{DecoderWrapper, ModelWrapper};

use crate::ModelError;

/// A tokenizer and the file that it came from.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    largest_id: u32,
    /// What marks the end of a word in this vocabulary, where something does (CLIP's `</w>`): a space in decoded text.
    word_end: Option<String>,
}

/// Bytes of a tokenizer.json; the largest published ones have about 35 million.
const LONGEST: u64 = 256 << 20;

/// What a folder's tokenizer may be called, in the order in which it is looked for.
const IN_FOLDER: [&str; 4] =
    ["tokenizer.json", "merges.txt", "bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt"];

impl Tokenizer {
    /// Opens a `tokenizer.json`, CLIP's merges (`bpe_simple_vocab_16e6.txt`, also gzipped, or `merges.txt`, whose `vocab.json`
    /// is read if it lies beside it), a GGUF file, or a folder that holds one of the first two. The file's contents tell which
    /// it is, not its name. Truncation and padding that a `tokenizer.json` asks for are switched off.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if path.is_dir() {
            let file = IN_FOLDER.iter().map(|name| path.join(name)).find(|file| file.exists());
            return Self::open(&file.ok_or_else(|| ModelError::Record {
                path: path.to_owned(),
                what: "tokenizer folder",
                detail: format!("it has none of {}", IN_FOLDER.join(", ")),
            })?);
        }
        let mut beginning = Vec::new();
        let file = std::fs::File::open(path).map_err(ModelError::io("open", path))?;
        file.take(4).read_to_end(&mut beginning).map_err(ModelError::io("read", path))?;
        let inner = match beginning.as_slice() {
            b"GGUF" => gguf::open(path)?,
            [b'{' | b' ' | b'\t' | b'\r' | b'\n', ..] => from_json(path)?,
            _ => clip::open(path)?,
        };
        Self::new(path, inner)
    }

    fn new(path: &Path, mut inner: tokenizers::Tokenizer) -> Result<Self, ModelError> {
        guarded(path, || inner.with_truncation(None).map(drop))?;
        inner.with_padding(None);
        let largest = inner.get_vocab(true).into_values().max();
        let largest_id = largest.ok_or_else(|| refused(path, "it has no tokens"))?;
        let word_end = match (inner.get_model(), inner.get_decoder()) {
            (ModelWrapper::BPE(model), Some(DecoderWrapper::ByteLevel(_))) => model.end_of_word_suffix.clone(),
            _ => None,
        };
        let word_end = word_end.filter(|suffix| !suffix.is_empty());
        Ok(Self { path: path.to_owned(), inner, largest_id, word_end })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of tokens, added ones included.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    pub fn id_of(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// An error if the model, whose embedding has `rows` rows, has none for one of this tokenizer's ids.
    pub fn check_fits(&self, rows: i64) -> Result<(), ModelError> {
        if i64::from(self.largest_id) < rows {
            return Ok(());
        }
        let token = self.inner.id_to_token(self.largest_id).unwrap_or_default();
        let detail = format!("its largest id is {} (`{token}`), and the model has {rows} rows", self.largest_id);
        Err(refused(&self.path, format!("{detail}: it belongs to another model")))
    }

    /// The ids of a text. Special tokens that the text spells out become their ids in either case; `special_tokens` is
    /// whether those that the tokenizer puts around every text (CLIP's start and end, Gemma's `<bos>`) come as well.
    pub fn encode(&self, text: &str, special_tokens: bool) -> Result<Vec<i64>, ModelError> {
        self.encoding(text, special_tokens).map(|encoding| widened(encoding.get_ids()))
    }

    /// The text of ids. Ids beyond the vocabulary, which models with padded embeddings can emit, stand for nothing.
    pub fn decode(&self, ids: &[i64], skip_special: bool) -> Result<String, ModelError> {
        let narrow = ids.iter().map(|&id| {
            let narrow = u32::try_from(id);
            narrow.map_err(|error| refused(&self.path, format!("no token has the id {id}: {error}")))
        });
        let narrow = narrow.collect::<Result<Vec<_>, _>>()?;
        let text = guarded(&self.path, || self.inner.decode(&narrow, skip_special))?;
        Ok(match &self.word_end {
            Some(suffix) => text.replace(suffix, " ").trim().to_owned(),
            None => text,
        })
    }

    /// A text's ids with the special tokens around it, `length` of them at most. A longer text loses its end; the special
    /// tokens after it stay, as in transformers (CLIP's end of text, ModernBERT's `[SEP]`).
    pub fn encode_within(&self, text: &str, length: usize) -> Result<Vec<i64>, ModelError> {
        Ok(self.divide(text, length)?.0)
    }

    /// The end that a text loses in [`encode_within`](Self::encode_within), as its tokens spell it; empty where it loses nothing.
    pub fn beyond(&self, text: &str, length: usize) -> Result<String, ModelError> {
        let (_, beyond) = self.divide(text, length)?;
        if beyond.is_empty() { Ok(String::new()) } else { self.decode(&beyond, false) }
    }

    /// The ids of [`encode_within`](Self::encode_within), and those that are lost.
    fn divide(&self, text: &str, length: usize) -> Result<(Vec<i64>, Vec<i64>), ModelError> {
        let encoding = self.encoding(text, true)?;
        let mut ids = widened(encoding.get_ids());
        let excess = ids.len().saturating_sub(length);
        if excess == 0 {
            return Ok((ids, Vec::new()));
        }
        let special = encoding.get_special_tokens_mask();
        let opening = special.iter().take_while(|&&special| special == 1).count();
        let closing = special.iter().rev().take_while(|&&special| special == 1).count();
        let end = ids.len().saturating_sub(closing);
        let start = end.checked_sub(excess).filter(|&start| start >= opening);
        let start = start.ok_or_else(|| ModelError::Configuration {
            what: "number of tokens",
            value: length.to_string(),
            expected: format!("{} puts more special tokens than that around a text", self.path.display()),
        })?;
        let beyond = ids.drain(start..end).collect();
        Ok((ids, beyond))
    }

    /// Ids and mask of a batch, both `(batch, length)` int64: each text as [`encode_within`](Self::encode_within), then
    /// `padding` on the right; the mask is 1 at the text's tokens and 0 at the padding.
    pub fn padded(
        &self,
        texts: &[impl AsRef<str>],
        length: usize,
        padding: i64,
    ) -> Result<(Tensor, Tensor), ModelError> {
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for text in texts {
            let row = self.encode_within(text.as_ref(), length)?;
            let end = mask.len() + length;
            mask.resize(mask.len() + row.len(), 1i64);
            mask.resize(end, 0);
            ids.extend(row);
            ids.resize(end, padding);
        }
        let shape = [texts.len() as i64, length as i64];
        let tensor = |values: &[i64]| {
            Tensor::from_slice(values).f_view(shape).map_err(ModelError::torch("padding a batch of texts"))
        };
        Ok((tensor(&ids)?, tensor(&mask)?))
    }

    fn encoding(&self, text: &str, special_tokens: bool) -> Result<tokenizers::Encoding, ModelError> {
        guarded(&self.path, || self.inner.encode_fast(text, special_tokens))
    }
}

fn widened(ids: &[u32]) -> Vec<i64> {
    ids.iter().map(|&id| i64::from(id)).collect()
}

fn refused(path: &Path, detail: impl Into<String>) -> ModelError {
    ModelError::Record { path: path.to_owned(), what: "tokenizer", detail: detail.into() }
}

/// Runs the library on what a file says. It panics where some files contradict themselves (a template that names a token that
/// it does not define); that is an error about the file, as its other errors are.
fn guarded<T>(path: &Path, run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, ModelError> {
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(run));
    let outcome = outcome.unwrap_or_else(|_| Err("it contradicts itself".into()));
    outcome.map_err(|error| refused(path, error.to_string()))
}

fn from_json(path: &Path) -> Result<tokenizers::Tokenizer, ModelError> {
    let bytes = crate::read_at_most(path, LONGEST, "tokenizer")?;
    check_prefixes(path, &bytes)?;
    guarded(path, || tokenizers::Tokenizer::from_bytes(&bytes))
}

/// Where a model marks the inner pieces of words by a prefix, the library cuts that many bytes off the second half of every
/// merge without looking, into the middle of a character if need be. So it must be the prefix that is cut off.
fn check_prefixes(path: &Path, json: &[u8]) -> Result<(), ModelError> {
    #[derive(Deserialize)]
    struct File<Model> {
        model: Model,
    }
    #[derive(Deserialize)]
    struct Prefixed {
        continuing_subword_prefix: Option<String>,
    }
    #[derive(Deserialize)]
    struct Merged {
        #[serde(default)]
        merges: Vec<Merge>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Merge {
        Line(String),
        Pair([String; 2]),
    }
    let damaged = |error: serde_json::Error| refused(path, error.to_string());
    let file: File<Prefixed> = serde_json::from_slice(json).map_err(damaged)?;
    let Some(prefix) = file.model.continuing_subword_prefix.filter(|prefix| !prefix.is_empty()) else {
        return Ok(());
    };
    let file: File<Merged> = serde_json::from_slice(json).map_err(damaged)?;
    for merge in file.model.merges {
        let second = match &merge {
            Merge::Line(line) => line.split_once(' ').map_or("", |(_, second)| second),
            Merge::Pair([_, second]) => second,
        };
        if !second.starts_with(&prefix) {
            return Err(refused(path, format!("it merges `{second}`, which lacks the prefix `{prefix}`")));
        }
    }
    Ok(())
}

/// Both halves of every merge and what they make must be tokens.
fn check_merges(path: &Path, vocabulary: &Vocab, merges: &Merges) -> Result<(), ModelError> {
    for (first, second) in merges {
        let made = format!("{first}{second}");
        for token in [first, second, &made] {
            if !vocabulary.contains_key(token) {
                return Err(refused(path, format!("it merges `{first}` and `{second}`, and `{token}` is not a token")));
            }
        }
    }
    Ok(())
}

/// The character that stands for each byte in a byte-level vocabulary: itself where it is visible, else the next one from
/// U+0100 on.
fn byte_symbols() -> [char; 256] {
    let mut spare = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        visible @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => char::from(visible),
        _ => spare.next().unwrap_or_default(),
    })
}
