//! What is mended in an answer rather than refused: a model's thoughts and chatter before a caption, quotation marks around the
//! whole, and openings that say nothing ("The image shows …").
//!
//! Only what stands before or behind a caption is taken off, never anything within it, and the rest keeps its case. Where
//! nothing would be left, nothing is taken off, for the checks to find.

use std::fmt;

/// A caption without its wrapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleaned<'a> {
    pub text: &'a str,
    /// What was taken off, each kind once, sorted.
    pub mended: Vec<Mended>,
}

/// What was taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mended {
    /// "Sure!", "Here is a caption:", "Caption:".
    Preamble,
    /// Quotation marks around the whole, or asterisks.
    Quotes,
    /// "The image shows ", "In this picture, ".
    Opening,
    /// `<|eot_id|>`, `</s>`: the model's own end, which a server should have kept to itself.
    Tokens,
    /// All before `</think>`: what a model that thinks has said to itself, and a server did not tell from its answer.
    Thoughts,
}

impl Mended {
    /// A word to count by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preamble => "preamble",
            Self::Quotes => "quotes",
            Self::Opening => "opening",
            Self::Tokens => "tokens",
            Self::Thoughts => "thoughts",
        }
    }
}

impl fmt::Display for Mended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is left without something, if that is there.
type Step = fn(&str) -> Option<&str>;

/// Takes off what does not belong to a caption. Doing so twice changes nothing.
pub fn clean(text: &str) -> Cleaned<'_> {
    const STEPS: [(Mended, Step); 5] = [
        (Mended::Tokens, without_tokens),
        // Before the rest is looked at: a preamble of the thoughts is none of the caption.
        (Mended::Thoughts, without_thoughts),
        (Mended::Preamble, without_preamble),
        (Mended::Quotes, without_quotes),
        (Mended::Opening, without_opening),
    ];
    let mut text = text.trim();
    let mut mended = Vec::new();
    loop {
        let mut steps = STEPS.iter().filter_map(|(kind, step)| Some((*kind, step(text)?.trim())));
        let Some((kind, rest)) = steps.find(|(_, rest)| rest.contains(char::is_alphanumeric)) else { break };
        text = rest;
        mended.push(kind);
    }
    mended.sort_unstable();
    mended.dedup();
    Cleaned { text, mended }
}

fn without_tokens(text: &str) -> Option<&str> {
    const TOKENS: [&str; 9] = [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<eos>",
        "</s>",
    ];
    TOKENS.iter().find_map(|token| text.strip_suffix(token))
}

/// What follows the thoughts. Their beginning is often not there: it stands at the end of the prompt, by the model's template.
fn without_thoughts(text: &str) -> Option<&str> {
    text.rsplit_once("</think>").map(|(_thoughts, rest)| rest)
}

fn without_preamble(text: &str) -> Option<&str> {
    without_interjection(text).or_else(|| without_announcement(text)).or_else(|| without_label(text))
}

/// "Sure!", "Of course, ".
fn without_interjection(text: &str) -> Option<&str> {
    const WORDS: [&str; 7] = ["sure", "sure thing", "certainly", "of course", "absolutely", "okay", "ok"];
    let marks = |rest: &str| {
        let after = rest.trim_start_matches(['!', ',', '.', ':']);
        (after.len() < rest.len() && after.starts_with(char::is_whitespace)).then_some(rest.len() - after.len())
    };
    WORDS.iter().find_map(|word| {
        let rest = strip(text, word)?;
        rest.get(marks(rest)?..)
    })
}

/// "Here is a detailed caption of the image:", and all else that announces one, up to its colon.
fn without_announcement(text: &str) -> Option<&str> {
    const LONGEST: usize = 160;
    const STARTS: [&str; 7] = ["here is", "here's", "here’s", "here are", "below is", "this is", "the following is"];
    const ANNOUNCED: [&str; 9] =
        ["caption", "description", "sentence", "summary", "version", "distill", "distil", "response", "answer"];
    STARTS.iter().find_map(|start| strip(text, start)).filter(|rest| rest.starts_with(char::is_whitespace))?;
    let (announcement, rest) = text.split_once(':')?;
    let is_one = announcement.len() <= LONGEST && !announcement.contains(['\n', '"', '“']);
    let announcement = announcement.to_lowercase();
    (is_one && ANNOUNCED.iter().any(|word| announcement.contains(word))).then(|| rest.trim_start_matches('*'))
}

/// "Caption:", "**Short caption:**", "## Description:".
fn without_label(text: &str) -> Option<&str> {
    const LABELS: [&str; 7] = ["caption", "description", "summary", "sentence", "answer", "output", "response"];
    const BEFORE: [&str; 12] = [
        "the",
        "a",
        "short",
        "long",
        "concise",
        "detailed",
        "distilled",
        "final",
        "image",
        "brief",
        "succinct",
        "revised",
    ];
    let marks = |text: &'_ str| text.len() - text.trim_start_matches(['#', '*', ' ']).len();
    let mut rest = text.get(marks(text)..)?;
    while let Some(shorter) = BEFORE.iter().find_map(|word| strip(rest, word)?.strip_prefix([' ', '-'])) {
        rest = shorter;
    }
    let rest = LABELS.iter().find_map(|label| strip(rest, label))?;
    let rest = rest.trim_start_matches('*').strip_prefix(':')?;
    Some(rest.trim_start_matches('*'))
}

/// The text within quotation marks, if they are around the whole and not around two parts of it.
fn without_quotes(text: &str) -> Option<&str> {
    const PAIRS: [(&str, &str); 8] =
        [("\"", "\""), ("“", "”"), ("'", "'"), ("‘", "’"), ("«", "»"), ("「", "」"), ("`", "`"), ("**", "**")];
    PAIRS.iter().find_map(|(open, close)| {
        let inner = text.strip_prefix(open)?.strip_suffix(close)?;
        is_whole(inner, open, close).then_some(inner)
    })
}

/// Whether the marks around `inner` belong together: the first mark within it does not close what the outer one opened.
fn is_whole(inner: &str, open: &str, close: &str) -> bool {
    let is_letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let mut depth = 0_u32;
    let mut at = 0;
    while let Some(rest) = inner.get(at..).filter(|rest| !rest.is_empty()) {
        let (before, after) = (inner.get(..at).unwrap_or_default().chars().next_back(), rest.chars().next());
        let mark = if rest.starts_with(close) { close } else { open };
        let follows = rest.strip_prefix(mark).and_then(|rest| rest.chars().next());
        if !rest.starts_with(mark) || (is_letter(before) && is_letter(follows)) {
            at += after.map_or(1, char::len_utf8);
            continue;
        }
        let opens = if open == close {
            depth == 0 && before.is_none_or(|c| c.is_whitespace() || matches!(c, '(' | '[' | '\\' | '—' | '-'))
        } else {
            mark == open
        };
        match (opens, depth) {
            (true, _) => depth += 1,
            (false, 0) => return false,
            (false, _) => depth -= 1,
        }
        at += mark.len();
    }
    depth == 0
}

const ARTICLES: [&str; 2] = ["the", "this"];
const NOUNS: [&str; 4] = ["image", "picture", "photo", "photograph"];

/// "The image shows a dog" without all before "a dog".
fn without_opening(text: &str) -> Option<&str> {
    const SHOWS: [&str; 20] = [
        "shows",
        "depicts",
        "features",
        "displays",
        "presents",
        "portrays",
        "captures",
        "contains",
        "showcases",
        "illustrates",
        "is showing",
        "is depicting",
        "is of",
        "is a picture of",
        "is a photo of",
        "is an image of",
        "appears to show",
        "appears to depict",
        "appears to be",
        "seems to show",
    ];
    const OF: [&str; 4] = ["of", "showing", "depicting", "featuring"];
    let subject = |text| noun(after(text, &ARTICLES)?);
    let shows = subject(text).and_then(|rest| after(rest, &SHOWS));
    shows.or_else(|| within(text)).or_else(|| {
        // A photo is a style, which is worth keeping; an image is none.
        let rest = after(text, &["an image", "a picture"])?;
        after(rest, &OF)
    })
}

/// "In this image, ", "In the picture we can see ".
fn within(text: &str) -> Option<&str> {
    const SEE: [&str; 5] = ["we can see", "we see", "you can see", "one can see", "i can see"];
    let rest = after(after(text, &["in"])?, &ARTICLES)?;
    let (rest, is_ended) = NOUNS.iter().find_map(|noun| {
        let rest = strip(rest, noun)?;
        let ended = rest.strip_prefix(',');
        let rest = ended.unwrap_or(rest);
        rest.starts_with(char::is_whitespace).then(|| (rest.trim_start(), ended.is_some()))
    })?;
    after(rest, &SEE).or(is_ended.then_some(rest))
}

fn noun(text: &str) -> Option<&str> {
    let text = after(text, &["provided", "given", "attached"]).unwrap_or(text);
    after(text, &NOUNS)
}

/// What follows one of `words` and white space.
fn after<'a>(text: &'a str, words: &[&str]) -> Option<&'a str> {
    words.iter().find_map(|word| {
        let rest = strip(text, word)?;
        rest.starts_with(char::is_whitespace).then(|| rest.trim_start())
    })
}

/// What follows `start`, in capitals or not.
fn strip<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(start.len())?;
    head.eq_ignore_ascii_case(start).then_some(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wrappings_are_taken_off() {
        use Mended::{Opening, Preamble, Quotes, Thoughts, Tokens};
        let cases: &[(&str, &str, &[Mended])] = &[
            (" A dog. \n", "A dog.", &[]),
            ("The image shows a dog", "a dog", &[Opening]),
            ("The image shows A dog", "A dog", &[Opening]),
            ("This image depicts two cats.", "two cats.", &[Opening]),
            ("THE PICTURE FEATURES a car", "a car", &[Opening]),
            ("In this image, a man runs.", "a man runs.", &[Opening]),
            ("In the image we can see a tree.", "a tree.", &[Opening]),
            ("In this picture, we see a tree.", "a tree.", &[Opening]),
            ("The provided image showcases\na tree.", "a tree.", &[Opening]),
            ("An image of a tree.", "a tree.", &[Opening]),
            ("\"A dog runs.\"", "A dog runs.", &[Quotes]),
            ("“A dog’s bowl.”", "A dog’s bowl.", &[Quotes]),
            ("'A dog's bowl.'", "A dog's bowl.", &[Quotes]),
            ("\"A sign reads \"STOP\" here.\"", "A sign reads \"STOP\" here.", &[Quotes]),
            ("**A dog.**", "A dog.", &[Quotes]),
            ("Here is a detailed caption for the image:\n\nA dog.", "A dog.", &[Preamble]),
            ("Here's the distilled sentence: \"A dog.\"", "A dog.", &[Preamble, Quotes]),
            (
                "Sure! Here is a caption: \"The image shows a dog.\"<|eot_id|>",
                "a dog.",
                &[Preamble, Quotes, Opening, Tokens],
            ),
            ("**Short Caption:** A dog.", "A dog.", &[Preamble]),
            ("Caption: A dog.", "A dog.", &[Preamble]),
            ("One-sentence caption: A dog.", "One-sentence caption: A dog.", &[]),
            ("Sure, a dog.</s>", "a dog.", &[Preamble, Tokens]),
            ("Okay, the user wants a caption. </think>\n\nA dog runs.", "A dog runs.", &[Thoughts]),
            ("<think>\n\n</think>\n\nA dog.", "A dog.", &[Thoughts]),
            (
                "<think>Hm.</think> No. </think>\nSure! \"The image shows a dog.\"<|im_end|>",
                "a dog.",
                &[Preamble, Quotes, Opening, Tokens, Thoughts],
            ),
            // What only looks like a wrapping.
            ("\"STOP\" is on one sign and on another \"GO\"", "\"STOP\" is on one sign and on another \"GO\"", &[]),
            ("“STOP” and “GO”", "“STOP” and “GO”", &[]),
            ("'STOP' and 'GO'", "'STOP' and 'GO'", &[]),
            ("A dog. The image shows a cat.", "A dog. The image shows a cat.", &[]),
            ("The imageshows a dog", "The imageshows a dog", &[]),
            ("The image of a saint hangs on a wall.", "The image of a saint hangs on a wall.", &[]),
            ("A photo of a tree.", "A photo of a tree.", &[]),
            ("Here is a sign that reads: stop", "Here is a sign that reads: stop", &[]),
            ("Surely a dog.", "Surely a dog.", &[]),
            ("Description of a dog: large.", "Description of a dog: large.", &[]),
            // It thinks to the end.
            ("<think>A dog", "<think>A dog", &[]),
            // Nothing would be left.
            ("A dog.</think>\n", "A dog.</think>", &[]),
            ("A dog.</think><|im_end|>", "A dog.</think>", &[Tokens]),
            ("Caption:", "Caption:", &[]),
            ("Here is a caption:", "Here is a caption:", &[]),
            ("\"\"", "\"\"", &[]),
            ("The image shows ", "The image shows", &[]),
            ("An image", "An image", &[]),
            ("", "", &[]),
        ];
        for (text, expected, mended) in cases {
            let cleaned = clean(text);
            assert_eq!((cleaned.text, cleaned.mended.as_slice()), (*expected, *mended), "{text:?}");
        }
    }

    /// Texts that are made of what is looked for.
    fn pieces() -> impl Strategy<Value = String> {
        let pieces = [
            "The image shows ",
            "In this image, ",
            "we can see ",
            "\"",
            "'",
            "“",
            "”",
            "**",
            "`",
            "a dog",
            "Sure! ",
            "Caption: ",
            "Here is a caption",
            ": ",
            "\n",
            " ",
            "</s>",
            "<think>",
            "</think>",
            "ß",
            "İ",
        ];
        proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn cleaning_is_idempotent_and_takes_only_from_the_ends(text in prop_oneof![any::<String>(), pieces()]) {
            let cleaned = clean(&text);
            prop_assert!(text.contains(cleaned.text));
            let again = clean(cleaned.text);
            prop_assert_eq!(again.text, cleaned.text);
            prop_assert!(again.mended.is_empty());
            prop_assert_eq!(cleaned.text.contains(char::is_alphanumeric), text.contains(char::is_alphanumeric));
        }
    }
}
