//! CLIP's tokenizer from its list of merges, as transformers builds it.
//!
//! OpenAI's own code repairs the text first (`ftfy`, HTML entities); transformers does not, and neither does this: curly quotes
//! stay curly.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{Lowercase, NFC, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::{byte_symbols, check_merges, guarded, refused};
use crate::ModelError;

/// The merges that count, so that there are 49408 tokens: 512 for bytes, these, and two special ones. The published file goes
/// on after them.
const MERGES: usize = 48894;
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
const WORD_END: &str = "</w>";
const SPLIT: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The published file has three megabytes.
const MAXIMUM_LENGTH: u64 = 64 << 20;

pub(super) fn open(path: &Path) -> Result<tokenizers::Tokenizer, ModelError> {
    let merges = merges(path, &text(path)?)?;
    let beside = path.with_file_name("vocab.json");
    let vocabulary: Vocab = if path.file_name().is_some_and(|name| name == "merges.txt") && beside.exists() {
        let bytes = crate::read_at_most(&beside, MAXIMUM_LENGTH, "tokenizer")?;
        let ids: HashMap<String, u32> =
            serde_json::from_slice(&bytes).map_err(|error| refused(&beside, error.to_string()))?;
        ids.into_iter().collect()
    } else {
        (0u32..).zip(tokens(&merges)).map(|(id, token)| (token, id)).collect()
    };
    check_merges(path, &vocabulary, &merges)?;
    let id = |token: &str| {
        let id = vocabulary.get(token).copied();
        id.ok_or_else(|| {
            refused(&beside, format!("it has no `{token}`; of merges beside a vocab.json, only CLIP's are read"))
        })
    };
    let (start, end) = (id(START)?, id(END)?);
    guarded(path, || {
        let model = BPE::builder()
            .vocab_and_merges(vocabulary, merges)
            .end_of_word_suffix(WORD_END.to_owned())
            .unk_token(END.to_owned())
            .build()?;
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?;
        let words = Split::new(SplitPattern::Regex(SPLIT.to_owned()), SplitDelimiterBehavior::Removed, true)?;
        let around = RobertaProcessing::new((END.to_owned(), end), (START.to_owned(), start));
        let mut tokenizer = tokenizers::Tokenizer::new(model);
        tokenizer.with_normalizer(Some(Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()])))?;
        let bytes = ByteLevel::new(false, true, true);
        tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![words.into(), bytes.into()])));
        tokenizer.with_post_processor(Some(around.trim_offsets(false).add_prefix_space(false)));
        tokenizer.with_decoder(Some(bytes));
        tokenizer.add_special_tokens([AddedToken::from(START, true), AddedToken::from(END, true)])?;
        Ok(tokenizer)
    })
}

/// The vocabulary, in the order of its ids: every byte, every byte at the end of a word, what each merge makes, the special
/// tokens.
fn tokens(merges: &Merges) -> impl Iterator<Item = String> {
    let mut symbols = byte_symbols();
    symbols.sort_unstable();
    let inner = symbols.into_iter().map(String::from);
    let last = symbols.into_iter().map(|symbol| format!("{symbol}{WORD_END}"));
    let merged = merges.iter().map(|(first, second)| format!("{first}{second}"));
    inner.chain(last).chain(merged).chain([START.to_owned(), END.to_owned()])
}

fn merges(path: &Path, text: &str) -> Result<Merges, ModelError> {
    let mut lines = text.lines();
    if !lines.next().is_some_and(|line| line.contains("#version")) {
        let expected = "no tokenizer.json, no GGUF file, and no list of merges, whose first line names its `#version`";
        return Err(refused(path, format!("it is {expected}")));
    }
    let lines = lines.filter(|line| !line.is_empty()).take(MERGES);
    let pairs = lines.map(|line| {
        let mut parts = line.split_whitespace();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(first), Some(second), None) => Ok((first.to_owned(), second.to_owned())),
            _ => Err(refused(path, format!("`{line}` is not two tokens to merge"))),
        }
    });
    pairs.collect()
}

/// The file's text, unpacked if it is gzipped.
fn text(path: &Path) -> Result<String, ModelError> {
    let bytes = crate::read_at_most(path, MAXIMUM_LENGTH, "tokenizer")?;
    let bytes = if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut unpacked = Vec::new();
        let mut decoder = GzDecoder::new(bytes.as_slice()).take(MAXIMUM_LENGTH + 1);
        decoder.read_to_end(&mut unpacked).map_err(|error| refused(path, format!("it does not unpack: {error}")))?;
        unpacked
    } else {
        bytes
    };
    if bytes.len() as u64 > MAXIMUM_LENGTH {
        return Err(refused(path, format!("it is longer than {} megabytes", MAXIMUM_LENGTH >> 20)));
    }
    String::from_utf8(bytes).map_err(|error| refused(path, format!("it is not UTF-8: {error}")))
}
