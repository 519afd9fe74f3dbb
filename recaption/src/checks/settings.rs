//! Thresholds, and the judgement of one caption by all checks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chatter::{has_preamble, likeness};
use super::flag::{Flag, Policies};
use super::refusal::is_refusal;
use super::repetition::{compression, distinct_words, repeated_phrases, repeated_runs, repeated_suffix};
use super::sentences::{sentences, words};
use super::text::{Text, hashed_words};
use super::{Instructions, Language};
use crate::captioner::Finish;

/// When a caption is flagged, and what is done about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Checks {
    /// How often a caption may say " no text", " other objects", " additional objects", " no objects " and "alt-text", all
    /// together [5].
    pub repeated_phrases: usize,
    /// Fewest different words [3].
    pub few_words: usize,
    /// How long the longest suffix of the last 128 characters may be that is also found earlier among them [70].
    pub repeated_suffix: usize,
    /// The largest share of a caption's runs of four words that may be there more than once [0.25].
    pub ngram_repetition: f64,
    /// How many times smaller zlib may make a caption [2.4].
    pub compression: f64,
    /// How alike caption and alt text may be, by the share of their words that both have [0.9].
    pub echo_alt: f64,
    /// Fewest characters [16].
    pub too_short: usize,
    /// Most words of a short caption [40].
    pub too_many_words: usize,
    /// Most sentences of a short caption [1].
    pub many_sentences: usize,
    /// The language of captions: en, de, es, fr, it, nl, pt, ru, ja, ko, zh or any [en].
    pub language: Language,
    /// The largest share of letters that may be of another script, outside of quotation marks [0.2].
    pub language_drift: f64,
    /// What is done about a flag: accept, retry, fall_back or quarantine [retry for each; when there are no more attempts, fall
    /// back]. Keys are the checks: empty, cut, refusal, preamble, echo_alt, echo_prompt, repeated_phrases, repeated_suffix,
    /// ngram_repetition, compression, few_words, too_short, too_many_words, many_sentences, language_drift.
    pub policies: Policies,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            repeated_phrases: 5,
            few_words: 3,
            repeated_suffix: 70,
            ngram_repetition: 0.25,
            compression: 2.4,
            echo_alt: 0.9,
            too_short: 16,
            too_many_words: 40,
            many_sentences: 1,
            language: Language::En,
            language_drift: 0.2,
            policies: Policies::default(),
        }
    }
}

/// Which of the two captions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Long,
    Short,
}

/// What else a caption is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub kind: Kind,
    pub finish: Finish,
    /// The row's original caption; may be empty.
    pub alt: &'a str,
    pub instructions: &'a Instructions,
}

/// Words of a run that may not be there twice too often.
const NGRAM: usize = 4;

impl Checks {
    /// All that is wrong with a caption, sorted. To be asked about what [`captions::clean`] left: what it mends is flagged
    /// here, except for openings.
    ///
    /// A caption that is not there at all is only [`Flag::Empty`], and [`Flag::Cut`] if it was.
    pub fn judge(&self, caption: &str, context: &Context) -> Vec<Flag> {
        let is_cut = context.finish == Finish::Length;
        if is_empty(caption) {
            return if is_cut { vec![Flag::Empty, Flag::Cut] } else { vec![Flag::Empty] };
        }
        let text = Text::new(caption);
        let is_short = context.kind == Kind::Short;
        let verdicts = [
            (Flag::Cut, is_cut),
            (Flag::Refusal, is_refusal(&text.folded)),
            (Flag::Preamble, has_preamble(text.raw, &text.folded)),
            (Flag::EchoAlt, likeness(&text.words, &hashed_words(context.alt)) >= self.echo_alt),
            (Flag::EchoPrompt, context.instructions.are_in(&text.words)),
            (Flag::RepeatedPhrases, repeated_phrases(text.raw) > self.repeated_phrases),
            (Flag::RepeatedSuffix, repeated_suffix(text.raw) > self.repeated_suffix),
            (Flag::NgramRepetition, repeated_runs(&text.words, NGRAM) > self.ngram_repetition),
            (Flag::Compression, compression(text.raw) > self.compression),
            (Flag::FewWords, distinct_words(&text.words, self.few_words) < self.few_words),
            (Flag::TooShort, text.raw.trim().chars().take(self.too_short).count() < self.too_short),
            (Flag::TooManyWords, is_short && words(text.raw) > self.too_many_words),
            (Flag::ManySentences, is_short && sentences(text.raw) > self.many_sentences),
            (Flag::LanguageDrift, self.language.has_drifted(&text.unquoted, &text.folded, self.language_drift)),
        ];
        verdicts.into_iter().filter_map(|(flag, is_so)| is_so.then_some(flag)).collect()
    }
}

/// Whether a caption says nothing, or the words by which programs say that.
fn is_empty(caption: &str) -> bool {
    const NOTHING: [&str; 8] = ["none", "null", "nil", "n/a", "nan", "undefined", "empty", "no caption"];
    let text = caption.trim_matches(|c: char| !c.is_alphanumeric());
    text.is_empty() || NOTHING.iter().any(|nothing| nothing.eq_ignore_ascii_case(text))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
