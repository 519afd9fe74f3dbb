//! Sentences and words of a caption, and the short caption that is made of a long one without a model.

use super::text::{is_word_by_itself, quotation};

/// What ends in a full stop without ending a sentence.
const ABBREVIATIONS: [&str; 40] = [
    "approx", "ave", "blvd", "bros", "capt", "cf", "co", "col", "corp", "dept", "dr", "ed", "est", "etc", "fig", "ft",
    "gen", "gov", "hon", "inc", "jr", "lt", "ltd", "mr", "mrs", "ms", "mt", "no", "nos", "prof", "rd", "rep", "rev",
    "sen", "sgt", "sr", "st", "ste", "vol", "vs",
];

/// Words, as they are counted against a limit: what stands between spaces and has a letter or a digit. Scripts that are written
/// without spaces have a word a character.
pub fn words(text: &str) -> usize {
    let of_token = |token: &str| {
        let single = token.chars().filter(|c| is_word_by_itself(*c)).count();
        let has_other = token.chars().any(|c| c.is_alphanumeric() && !is_word_by_itself(c));
        single + usize::from(has_other)
    };
    text.split_whitespace().map(of_token).sum()
}

/// Sentences. A full stop within a quotation, a number or an abbreviation ("St.", "U.S.", "J. Smith") ends none, nor does one
/// before a small letter; a line break ends one.
pub fn sentences(text: &str) -> usize {
    Ends::of(text).count()
}

/// The first sentence.
pub fn first_sentence(text: &str) -> &str {
    let end = Ends::of(text).next().unwrap_or(text.len());
    text.get(..end).unwrap_or(text).trim()
}

/// The first `most` words, without what would trail behind them.
pub fn cut_words(text: &str, most: usize) -> &str {
    let text = text.trim();
    let mut counted = 0;
    let mut end = 0;
    for piece in text.split_inclusive(char::is_whitespace) {
        counted += words(piece);
        if counted > most {
            let trails = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | ':' | '-' | '–' | '—');
            return text.get(..end).unwrap_or(text).trim_end_matches(trails);
        }
        end += piece.len();
    }
    text
}

/// What a short caption falls back to: the long one's first sentence, of which `most` words stay.
pub fn short_of(long: &str, most: usize) -> &str {
    cut_words(first_sentence(long), most)
}

/// The places where a text's sentences end, in bytes.
struct Ends<'a> {
    text: &'a str,
    at: usize,
    /// Where the sentence began that is being looked through.
    start: usize,
    /// Whether it says anything yet.
    has_words: bool,
}

impl<'a> Ends<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, at: 0, start: 0, has_words: false }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn end(&mut self) -> Option<usize> {
        self.start = self.at;
        std::mem::take(&mut self.has_words).then_some(self.at)
    }

    /// Whether the full stop at `at` belongs to an abbreviation.
    fn is_abbreviation(&self, at: usize) -> bool {
        let before = self.text.get(self.start..at).unwrap_or_default();
        let word = before.rsplit(|c: char| !c.is_alphanumeric() && c != '.').next().unwrap_or_default();
        let mut letters = word.chars();
        let is_initial = matches!((letters.next(), letters.next()), (Some(letter), None) if letter.is_uppercase());
        let is_dotted = word.contains('.') && word.split('.').all(|part| part.chars().count() == 1);
        let is_known = || ABBREVIATIONS.iter().any(|known| known.eq_ignore_ascii_case(word));
        is_initial || (is_dotted && !word.contains(|c: char| c.is_ascii_digit())) || is_known()
    }
}

impl Iterator for Ends<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        while let Some(character) = self.rest().chars().next() {
            let at = self.at;
            let before = self.text.get(..at).and_then(|before| before.chars().next_back());
            self.at += character.len_utf8();
            if let Some(end) = quotation(character, before, self.rest()) {
                self.at += end;
                self.has_words = true;
                continue;
            }
            match character {
                '\n' | '。' | '！' | '？' => {
                    if let Some(end) = self.end() {
                        return Some(end);
                    }
                }
                '.' | '!' | '?' | '…' => {
                    let marks = |c: char| matches!(c, '.' | '!' | '?' | '…' | ')' | ']' | '"' | '”' | '’' | '*');
                    let after = self.rest().trim_start_matches(marks);
                    let next = after.trim_start().chars().next();
                    let is_spaced = after.is_empty() || after.starts_with(char::is_whitespace);
                    let goes_on = next.is_some_and(char::is_lowercase);
                    let is_abbreviation = character == '.' && next.is_some() && self.is_abbreviation(at);
                    if is_spaced && !goes_on && !is_abbreviation {
                        self.at = self.text.len() - after.len();
                        if let Some(end) = self.end() {
                            return Some(end);
                        }
                    }
                }
                other => self.has_words |= other.is_alphanumeric(),
            }
        }
        self.end()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sentences_are_counted_as_people_do() {
        let cases = [
            ("", 0),
            ("...", 0),
            ("A dog", 1),
            ("A dog.", 1),
            ("A dog runs. A cat sits.", 2),
            ("A dog!? A cat…", 2),
            ("A dog runs.\n\nA cat sits.", 2),
            ("A dog\nA cat", 2),
            ("Dr. Smith walks down St. James St. in the U.S. Army.", 1),
            ("J. R. R. Tolkien at 3.5 m, approx. 5 ft. tall, vs. another.", 1),
            ("A can of No. 7 paint at 9 a.m. today.", 1),
            ("A sign reads \"Stop. Look. Listen.\" near a road.", 1),
            ("A sign reads ‘Stop. Look.’ near a road.", 1),
            ("A page of www.example.com is open.", 1),
            ("A dog (brown.) A cat.", 2),
            ("It is 5. The dog runs.", 2),
            ("犬が走る。猫が座る。", 2),
        ];
        for (text, expected) in cases {
            assert_eq!(sentences(text), expected, "{text}");
        }
    }

    #[test]
    fn a_short_caption_is_the_start_of_a_long_one() {
        let cases = [
            ("Dr. Who runs. A cat.", 40, "Dr. Who runs."),
            ("A dog, a cat, and a bird.", 4, "A dog, a cat"),
            ("A dog — a cat.", 2, "A dog"),
            ("A \"Go. Now.\" sign. More.", 40, "A \"Go. Now.\" sign."),
            ("", 40, ""),
            ("  A dog", 1, "A"),
        ];
        for (long, most, expected) in cases {
            assert_eq!(short_of(long, most), expected, "{long}");
        }
        assert_eq!(words("A black-and-white dog — 3 m, 東京 !"), 7);
    }

    proptest! {
        #[test]
        fn what_is_cut_is_a_start_with_as_many_words(text in any::<String>(), most in 0_usize..9) {
            let cut = cut_words(&text, most);
            prop_assert!(text.trim().starts_with(cut));
            prop_assert!(words(cut) <= most);
            prop_assert!(text.contains(first_sentence(&text)));
            prop_assert!(sentences(first_sentence(&text)) <= 1);
        }
    }
}
