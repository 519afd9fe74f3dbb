//! Whether a caption is in the language that was asked for.
//!
//! By its letters where scripts differ, and by small words where they do not. Nothing is learnt here: it finds a model that
//! went over to another language, not a loanword.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The language that captions are expected in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Language {
    /// Whatever comes; nothing drifts.
    Any,
    #[default]
    En,
    De,
    Es,
    Fr,
    It,
    Nl,
    Pt,
    Ru,
    Ja,
    Ko,
    Zh,
}

/// Small words of the languages that share the Latin script.
const SMALL_WORDS: [(Language, &[&str]); 7] = [
    (
        Language::En,
        &[
            "the", "and", "of", "with", "is", "are", "on", "in", "to", "at", "from", "its", "his", "her", "by", "for",
            "that", "this", "an", "while", "which", "has", "as", "it", "there", "a",
        ],
    ),
    (
        Language::De,
        &[
            "der", "die", "das", "und", "ist", "mit", "ein", "eine", "einem", "einer", "auf", "von", "dem", "den",
            "zu", "im", "sich", "sind", "auch", "vor",
        ],
    ),
    (
        Language::Es,
        &[
            "el", "la", "los", "las", "y", "es", "una", "un", "con", "en", "del", "por", "que", "se", "sobre", "para",
            "de", "está",
        ],
    ),
    (
        Language::Fr,
        &[
            "le", "la", "les", "et", "est", "une", "un", "des", "du", "avec", "dans", "sur", "qui", "au", "pour",
            "sont", "de", "il",
        ],
    ),
    (
        Language::It,
        &[
            "il", "la", "gli", "e", "è", "una", "un", "con", "di", "che", "del", "della", "sono", "per", "sul", "nel",
            "sulla",
        ],
    ),
    (
        Language::Nl,
        &[
            "de", "het", "een", "en", "is", "met", "van", "op", "in", "dat", "zijn", "niet", "voor", "naar", "aan",
            "wordt",
        ],
    ),
    (
        Language::Pt,
        &["o", "os", "as", "e", "é", "uma", "um", "com", "em", "do", "da", "que", "no", "na", "para", "está", "de"],
    ),
];

impl Language {
    fn is_latin(self) -> bool {
        SMALL_WORDS.iter().any(|(language, _)| *language == self)
    }

    /// Whether captions in this language are written with `letter`.
    fn has(self, letter: char) -> bool {
        match self {
            Self::Any => true,
            Self::Ru => matches!(letter, '\u{400}'..='\u{52f}'),
            Self::Zh => is_chinese(letter),
            Self::Ja => {
                is_chinese(letter)
                    || matches!(letter, '\u{3040}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}' | '\u{ff66}'..='\u{ff9f}')
            }
            Self::Ko => matches!(letter, '\u{1100}'..='\u{11ff}' | '\u{3130}'..='\u{318f}' | '\u{ac00}'..='\u{d7af}'),
            _ => matches!(letter, 'a'..='z' | 'A'..='Z' | 'ª' | 'º' | 'À'..='\u{2af}' | '\u{1e00}'..='\u{1eff}'
                | '\u{2c60}'..='\u{2c7f}' | '\u{a720}'..='\u{a7ff}' | '\u{fb00}'..='\u{fb06}' | '\u{ff21}'..='\u{ff5a}'),
        }
    }

    /// Whether a caption is in another language: more than `foreign` of its letters are of another script, or small words of
    /// another language are more than twice as many as its own. `unquoted` and `folded` are the caption without quotations.
    pub(super) fn has_drifted(self, unquoted: &str, folded: &str, foreign: f64) -> bool {
        self.has_other_letters(unquoted, foreign) || (self.is_latin() && self.has_other_words(folded))
    }

    fn has_other_letters(self, unquoted: &str, foreign: f64) -> bool {
        /// Fewer are a symbol, a unit, a name.
        const FEWEST: usize = 5;
        let letters = || unquoted.chars().filter(|c| c.is_alphabetic());
        let others = letters().filter(|letter| !self.has(*letter)).count();
        others >= FEWEST && others as f64 > foreign * letters().count() as f64
    }

    fn has_other_words(self, folded: &str) -> bool {
        /// Fewer words, and fewer small ones among them, say nothing.
        const FEWEST: (usize, usize) = (8, 3);
        let mut counts = [0_usize; SMALL_WORDS.len()];
        let mut all = 0;
        for word in folded.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()) {
            all += 1;
            for (count, (_, words)) in counts.iter_mut().zip(SMALL_WORDS) {
                *count += usize::from(words.contains(&word));
            }
        }
        let of = |is_own: bool| {
            let counts = counts.iter().zip(SMALL_WORDS).filter(|(_, (language, _))| (*language == self) == is_own);
            counts.map(|(count, _)| *count).max().unwrap_or(0)
        };
        let (own, other) = (of(true), of(false));
        all >= FEWEST.0 && other >= FEWEST.1 && other > 2 * own
    }
}

fn is_chinese(letter: char) -> bool {
    matches!(letter, '\u{3005}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{3ffff}')
}
