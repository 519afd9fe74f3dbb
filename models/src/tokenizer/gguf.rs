//! The tokenizer that a GGUF file describes: byte-level BPE (`tokenizer.ggml.model = "gpt2"`), as transformers builds it, so that
//! ids are the same as there.
//!
//! One difference to llama.cpp follows. For `smollm` and `starcoder` that cuts text into single digits before anything else;
//! transformers splits as GPT-2 does. Only white space before a digit comes out differently: the line break pair of
//! `"\n\n1."` is two tokens here and one there.
//!
//! Of models for which llama.cpp takes a word that is a token for that token, whatever merges come to, words are taken so here, too,
//! as these models' own `tokenizer.json` asks for.

use std::collections::HashSet;
use std::path::Path;

use serde_json::json;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::{byte_symbols, check_merges, guarded, refused};
use crate::ModelError;
use crate::weights::GgufMetadata;

/// The key of how text is split before any merge.
const PRE: &str = "tokenizer.ggml.pre";

/// Values of `tokenizer.ggml.pre` for which text is split as GPT-2 does, which is the library's default.
const AS_GPT_2: [&str; 8] = ["default", "gpt-2", "smollm", "starcoder", "refact", "command-r", "olmo", "phi-2"];

/// Values of `tokenizer.ggml.pre` with a pattern of their own: names, pattern.
const BY_PATTERN: [(&[&str], &str); 4] = [
    (
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "dbrx", "smaug-bpe", "lfm2"],
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        &["qwen2", "deepseek-r1-qwen", "megrez"],
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        &["tekken"],
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    (
        &["gpt-4o", "llama4"],
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
];

/// Values of `tokenizer.ggml.pre` for which a word that is a token is that token, whatever merges come to.
const WHOLE_WORDS: [&str; 8] = ["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken"];

/// ggml's numbers for kinds of tokens.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Tokens with a role, which are special whatever their kind.
const ROLES: [&str; 4] = ["bos", "eos", "unknown", "padding"];

pub(super) fn open(path: &Path) -> Result<tokenizers::Tokenizer, ModelError> {
    let metadata = GgufMetadata::open(path)?;
    let model = metadata.str("tokenizer.ggml.model")?;
    if model != "gpt2" {
        let detail = format!("its tokenizer.ggml.model is `{model}`, and only byte-level BPE, `gpt2`, is read");
        return Err(refused(path, detail));
    }
    let pre = if metadata.get(PRE).is_some() { metadata.str(PRE)? } else { "default" };
    let pre_tokenizer = pre_tokenizer(path, pre)?;
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;

    let mut special = Vec::new();
    let mut plain = Vec::new();
    if metadata.get("tokenizer.ggml.token_type").is_some() {
        let kinds = metadata.integers("tokenizer.ggml.token_type")?;
        if kinds.len() != tokens.len() {
            return Err(refused(path, format!("it has {} tokens, and kinds for {}", tokens.len(), kinds.len())));
        }
        for (kind, &token) in kinds.into_iter().zip(&tokens) {
            match kind {
                CONTROL => special.push(token),
                USER_DEFINED => plain.push(token),
                _ => {}
            }
        }
    }
    for role in ROLES {
        special.extend(token_of(path, &metadata, &tokens, role)?.map(|(token, _)| token));
    }
    let begin = around(path, &metadata, &tokens, "bos")?;
    let end = around(path, &metadata, &tokens, "eos")?;

    let symbols = byte_symbols();
    let alphabet: HashSet<char> = symbols.into_iter().collect();
    let added: HashSet<&str> = special.iter().chain(&plain).copied().collect();
    // Added tokens are found in a text as they are written. Some converters leave others in plain letters, too; the model knows
    // bytes only.
    let spelling = |token: &str| {
        if added.contains(token) || token.chars().all(|symbol| alphabet.contains(&symbol)) {
            return token.to_owned();
        }
        token.bytes().filter_map(|byte| symbols.get(usize::from(byte))).collect()
    };
    let vocabulary: Vocab = (0u32..).zip(&tokens).map(|(id, token)| (spelling(token), id)).collect();
    let merges = metadata.strings("tokenizer.ggml.merges")?.into_iter().map(|line| {
        let halves = line.split_once(' ').filter(|(_, second)| !second.contains(' '));
        let (first, second) = halves.ok_or_else(|| refused(path, format!("`{line}` is not two tokens to merge")))?;
        Ok((first.to_owned(), second.to_owned()))
    });
    let merges = merges.collect::<Result<Merges, ModelError>>()?;
    check_merges(path, &vocabulary, &merges)?;

    guarded(path, || {
        let model = BPE::builder().vocab_and_merges(vocabulary, merges).ignore_merges(WHOLE_WORDS.contains(&pre));
        let model = model.build()?;
        let mut tokenizer = tokenizers::Tokenizer::new(model);
        tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        if begin.is_some() || end.is_some() {
            tokenizer.with_post_processor(Some(template(begin, end)?));
        }
        tokenizer.add_special_tokens(special.into_iter().map(|token| AddedToken::from(token, true)))?;
        tokenizer.add_tokens(plain.into_iter().map(|token| AddedToken::from(token, false).normalized(false)))?;
        Ok(tokenizer)
    })
}

/// The one that is called `name`.
fn pre_tokenizer(path: &Path, name: &str) -> Result<PreTokenizerWrapper, ModelError> {
    if AS_GPT_2.contains(&name) {
        return Ok(ByteLevel::new(false, true, true).into());
    }
    let Some((_, pattern)) = BY_PATTERN.iter().find(|(names, _)| names.contains(&name)) else {
        let known: Vec<&str> =
            AS_GPT_2.iter().chain(BY_PATTERN.iter().flat_map(|(names, _)| *names)).copied().collect();
        return Err(refused(path, format!("its {PRE} is `{name}`; those that are read are {}", known.join(", "))));
    };
    guarded(path, || {
        let words = Split::new(SplitPattern::Regex((*pattern).to_owned()), SplitDelimiterBehavior::Isolated, false)?;
        Ok(Sequence::new(vec![words.into(), ByteLevel::new(false, true, false).into()]).into())
    })
}

/// The token with a role, and its id, if the file names one.
fn token_of<'a>(
    path: &Path,
    metadata: &GgufMetadata,
    tokens: &[&'a str],
    role: &str,
) -> Result<Option<(&'a str, u64)>, ModelError> {
    let key = format!("tokenizer.ggml.{role}_token_id");
    if metadata.get(&key).is_none() {
        return Ok(None);
    }
    let id = metadata.u64(&key)?;
    let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
    let token = token.ok_or_else(|| refused(path, format!("its {key} is {id}, of {} tokens", tokens.len())))?;
    Ok(Some((token, id)))
}

/// The token that goes before (`bos`) or after (`eos`) every text, if the file asks for one.
fn around<'a>(
    path: &Path,
    metadata: &GgufMetadata,
    tokens: &[&'a str],
    role: &str,
) -> Result<Option<(&'a str, u64)>, ModelError> {
    let key = format!("tokenizer.ggml.add_{role}_token");
    if metadata.get(&key).is_some() && metadata.bool(&key)? { token_of(path, metadata, tokens, role) } else { Ok(None) }
}

fn template(begin: Option<(&str, u64)>, end: Option<(&str, u64)>) -> serde_json::Result<TemplateProcessing> {
    let special = |token: &(&str, u64), sequence: u32| json!({"SpecialToken": {"id": token.0, "type_id": sequence}});
    let text = |name: &str, sequence: u32| {
        let before = begin.iter().map(|token| special(token, sequence));
        let itself = json!({"Sequence": {"id": name, "type_id": sequence}});
        let after = end.iter().map(|token| special(token, sequence));
        before.chain([itself]).chain(after).collect::<Vec<_>>()
    };
    let tokens = begin
        .iter()
        .chain(&end)
        .map(|(token, id)| ((*token).to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})));
    let pair = [text("A", 0), text("B", 1)].concat();
    serde_json::from_value(json!({
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": pair,
        "special_tokens": tokens.collect::<serde_json::Map<_, _>>(),
    }))
}
