//! Names of what can be wrong with a caption, and what is done about each.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is wrong with a caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Flag {
    /// There is none: no letter and no digit, or "None", "null", "N/A".
    Empty,
    /// The model's answer was cut at its longest.
    Cut,
    /// It refuses, or speaks of itself: "I'm sorry, but …", "As an AI …".
    Refusal,
    /// Chatter around the caption, or a model's thoughts, that could not be mended.
    Preamble,
    /// It is the alt text again.
    EchoAlt,
    /// It is the prompt again.
    EchoPrompt,
    /// It denies too much: " no text", " other objects", " additional objects", " no objects ", "alt-text".
    RepeatedPhrases,
    /// It ends in a loop.
    RepeatedSuffix,
    /// Too many of its runs of words are there more than once.
    NgramRepetition,
    /// It compresses too well.
    Compression,
    /// It has too few different words.
    FewWords,
    /// It has too few characters.
    TooShort,
    /// It has too many words for a short caption.
    TooManyWords,
    /// It has too many sentences for a short caption.
    ManySentences,
    /// It is in another language.
    LanguageDrift,
}

impl Flag {
    pub const ALL: [Self; 15] = [
        Self::Empty,
        Self::Cut,
        Self::Refusal,
        Self::Preamble,
        Self::EchoAlt,
        Self::EchoPrompt,
        Self::RepeatedPhrases,
        Self::RepeatedSuffix,
        Self::NgramRepetition,
        Self::Compression,
        Self::FewWords,
        Self::TooShort,
        Self::TooManyWords,
        Self::ManySentences,
        Self::LanguageDrift,
    ];

    /// As it is written in manifests, columns and counts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Cut => "cut",
            Self::Refusal => "refusal",
            Self::Preamble => "preamble",
            Self::EchoAlt => "echo_alt",
            Self::EchoPrompt => "echo_prompt",
            Self::RepeatedPhrases => "repeated_phrases",
            Self::RepeatedSuffix => "repeated_suffix",
            Self::NgramRepetition => "ngram_repetition",
            Self::Compression => "compression",
            Self::FewWords => "few_words",
            Self::TooShort => "too_short",
            Self::TooManyWords => "too_many_words",
            Self::ManySentences => "many_sentences",
            Self::LanguageDrift => "language_drift",
        }
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no check.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is no check; known are {}", Flag::ALL.map(Flag::name).join(", "))]
pub struct UnknownFlag {
    name: String,
}

impl FromStr for Flag {
    type Err = UnknownFlag;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|flag| flag.name() == name).ok_or_else(|| UnknownFlag { name: name.to_owned() })
    }
}

/// What is done about a flag. Later ones are stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The caption is taken; the flag is recorded.
    Accept,
    /// The model is asked again, with a temperature above 0 and another seed.
    Retry,
    /// Something else takes the caption's place: the alt text that of a long one, the long one's first sentence that of a
    /// short one.
    FallBack,
    /// The row is refused.
    Quarantine,
}

/// What is done about each flag, by the check's name; `retry` where it is not named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Policies(pub BTreeMap<Flag, Policy>);

impl Policies {
    /// A model may do better with another seed, whatever was wrong; one that still does not is not let into the captions.
    pub const DEFAULT: Policy = Policy::Retry;

    /// What is done about one flag.
    pub fn of(&self, flag: Flag) -> Policy {
        self.0.get(&flag).copied().unwrap_or(Self::DEFAULT)
    }

    /// What is done about a caption: the strongest policy of its flags.
    pub fn decide(&self, flags: &[Flag]) -> Policy {
        flags.iter().map(|flag| self.of(*flag)).max().unwrap_or(Policy::Accept)
    }

    /// What is done when there is no more attempt: what was to be tried again falls back.
    pub fn decide_finally(&self, flags: &[Flag]) -> Policy {
        match self.decide(flags) {
            Policy::Retry => Policy::FallBack,
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::Checks;

    #[test]
    fn names_are_the_same_everywhere() {
        for flag in Flag::ALL {
            assert_eq!(serde_json::to_value(flag).unwrap(), flag.name());
            assert_eq!(flag.name().parse(), Ok(flag));
        }
        assert!(Flag::ALL.is_sorted(), "the order of flags is that of their declaration");
        let about = serde_json::to_value(schemars::schema_for!(Checks)).unwrap();
        let about = about["properties"]["policies"]["description"].as_str().unwrap();
        for flag in Flag::ALL {
            assert!(about.contains(flag.name()), "{flag} is no key of policies by its description: {about}");
        }
        let error = "refusals".parse::<Flag>().unwrap_err().to_string();
        assert!(error.starts_with("`refusals` is no check; known are empty, cut, refusal,"), "{error}");
    }

    #[test]
    fn the_strongest_policy_decides() {
        let policies: Policies =
            serde_json::from_str(r#"{"refusal": "quarantine", "echo_alt": "accept", "cut": "fall_back"}"#).unwrap();
        let cases = [
            (&[][..], Policy::Accept, Policy::Accept),
            (&[Flag::EchoAlt], Policy::Accept, Policy::Accept),
            (&[Flag::EchoAlt, Flag::TooShort], Policy::Retry, Policy::FallBack),
            (&[Flag::TooShort, Flag::Cut], Policy::FallBack, Policy::FallBack),
            (&[Flag::Refusal, Flag::Cut, Flag::Empty], Policy::Quarantine, Policy::Quarantine),
        ];
        for (flags, now, finally) in cases {
            assert_eq!((policies.decide(flags), policies.decide_finally(flags)), (now, finally), "{flags:?}");
        }
        for unknown in [r#"{"refusals": "retry"}"#, r#"{"refusal": "drop"}"#] {
            let error = serde_json::from_str::<Policies>(unknown).unwrap_err().to_string();
            assert!(error.contains("expected one of `"), "{error}");
        }
    }
}
