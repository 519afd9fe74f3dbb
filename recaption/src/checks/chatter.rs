//! Talk around a caption, and answers that say the question again.

use std::collections::HashSet;

use super::refusal::contains_at_a_word;
use super::text::{hashed_words, runs};
use crate::prompt::Prompt;
use captions::{Mended, clean};

/// Words in a row that are a prompt's own and no caption's.
const ECHO: usize = 8;

/// What a prompt says by itself, for recognising it in an answer. The values in it are no part of that: a short caption may well
/// repeat the long one.
#[derive(Clone, Debug, Default)]
pub struct Instructions(HashSet<u64>);

impl Instructions {
    pub fn of(prompt: &Prompt) -> Self {
        Self::new(prompt.instructions())
    }

    /// Those of a text in pieces, between which there are values.
    pub fn new<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Self {
        Self(pieces.into_iter().flat_map(|piece| runs(&hashed_words(piece), ECHO)).collect())
    }

    /// Whether a caption has eight words in a row from here.
    pub(super) fn are_in(&self, words: &[u64]) -> bool {
        !self.0.is_empty() && runs(words, ECHO).iter().any(|run| self.0.contains(run))
    }
}

/// How alike two texts are, by the words that both have, however often: 0 to 1 (Dice's coefficient). In any order, for alt texts
/// are often but lists.
pub(super) fn likeness(one: &[u64], other: &[u64]) -> f64 {
    if one.is_empty() || other.is_empty() {
        return 0.0;
    }
    let sorted = |words: &[u64]| {
        let mut words = words.to_vec();
        words.sort_unstable();
        words
    };
    let (one, other) = (sorted(one), sorted(other));
    let (mut rest, mut common) = (other.as_slice(), 0_usize);
    for word in &one {
        while let [first, after @ ..] = rest
            && first < word
        {
            rest = after;
        }
        if let [first, after @ ..] = rest
            && first == word
        {
            rest = after;
            common += 1;
        }
    }
    2.0 * common as f64 / (one.len() + other.len()) as f64
}

/// What an answer begins with that speaks of itself.
const AT_THE_START: [&str; 9] = [
    "i'll ",
    "i will ",
    "i can see ",
    "let me describe",
    "let me provide",
    "based on the image",
    "based on the provided",
    "based on the alt",
    "sure",
];
/// The first words of an announcement, if one of [`ANNOUNCED`] comes soon after.
const ANNOUNCING: [&str; 5] = ["here is ", "here's ", "here are ", "below is ", "this is "];
const ANNOUNCED: [&str; 7] =
    [" caption", " description", " sentence", " summary", " version", " distill", " rewritten"];
/// What an answer says anywhere that speaks of itself.
const ANYWHERE: [&str; 9] = [
    "let me know if",
    "i hope this",
    "feel free to",
    "is there anything else",
    "would you like me to",
    "word count:",
    "this caption is",
    "this caption describes",
    "note: the caption",
];

/// Of thoughts that have no end, or nothing behind it.
const THOUGHTS: [&str; 2] = ["<think>", "</think>"];

/// Whether there is chatter around a caption, or thoughts: what could be mended and was not, and what could not.
pub(super) fn has_preamble(caption: &str, folded: &str) -> bool {
    const SOON: usize = 80;
    let could_be_mended = clean(caption).mended.iter().any(|mended| *mended != Mended::Opening);
    let begins = || {
        let start = AT_THE_START.iter().find_map(|start| folded.strip_prefix(start));
        // "Sure" begins chatter as a word of its own, not "surely".
        start.is_some_and(|rest| {
            !folded.starts_with("sure") || rest.starts_with([',', '!', '.', ':']) || rest.is_empty()
        })
    };
    let announces = || {
        let rest = ANNOUNCING.iter().find_map(|start| folded.strip_prefix(start));
        let soon = |rest: &str, at: usize| rest.char_indices().nth(SOON).is_none_or(|(end, _)| at < end);
        rest.is_some_and(|rest| ANNOUNCED.iter().any(|word| rest.find(word).is_some_and(|at| soon(rest, at))))
    };
    let is_announcement = || folded.trim_end_matches('*').ends_with(':');
    let talks = || ANYWHERE.iter().any(|phrase| contains_at_a_word(folded, phrase));
    let thinks = || THOUGHTS.iter().any(|mark| caption.contains(mark));
    could_be_mended || begins() || announces() || is_announcement() || talks() || thinks()
}
