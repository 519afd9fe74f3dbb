//! Answers that are none: a model that will not, cannot, or speaks of itself.

/// What no caption begins with.
const AT_THE_START: [&str; 14] = [
    "i'm sorry",
    "i am sorry",
    "i apologize",
    "my apologies",
    "sorry, ",
    "unfortunately, i",
    "unfortunately i ",
    "i cannot",
    "i can't",
    "i can not",
    "i'm unable",
    "i am unable",
    "i'm not able",
    "unable to ",
];

/// What no caption says anywhere but in quotation marks.
const ANYWHERE: [&str; 27] = [
    "i'm sorry, but",
    "i am sorry, but",
    "i apologize, but",
    "i apologize for",
    "as an ai",
    "as a language model",
    "i'm an ai",
    "i cannot assist",
    "i can't assist",
    "i cannot help",
    "i can't help with",
    "i cannot provide",
    "i can't provide",
    "i cannot describe",
    "i can't describe",
    "i cannot identify",
    "i can't identify",
    "i cannot generate",
    "i cannot see",
    "i can't see",
    "i'm unable to",
    "i am unable to",
    "i'm not able to",
    "i am not able to",
    "cannot fulfill",
    "no image was provided",
    "please provide the image",
];

/// Whether a caption, folded and without its quotations, refuses.
pub(super) fn is_refusal(folded: &str) -> bool {
    let start = folded.trim_start_matches(|c: char| !c.is_alphanumeric());
    AT_THE_START.iter().any(|phrase| start.starts_with(phrase))
        || ANYWHERE.iter().any(|phrase| contains_at_a_word(folded, phrase))
}

/// Whether `phrase` is there, from the start of a word to the end of one.
pub(super) fn contains_at_a_word(text: &str, phrase: &str) -> bool {
    let is_letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices(phrase).any(|(at, _)| {
        let before = text.get(..at).and_then(|before| before.chars().next_back());
        let after = text.get(at + phrase.len()..).and_then(|after| after.chars().next());
        let goes_on = is_letter(after) && is_letter(phrase.chars().next_back());
        !is_letter(before) && !goes_on
    })
}
