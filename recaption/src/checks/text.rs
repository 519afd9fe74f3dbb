//! A caption as the checks see it.

/// A caption, looked through once.
pub(super) struct Text<'a> {
    pub(super) raw: &'a str,
    /// What stands outside of quotation marks, since signs in an image may say anything, in any language.
    pub(super) unquoted: String,
    /// The same in small letters, with `'` for `’` and single spaces.
    pub(super) folded: String,
    /// Its words in small letters, hashed.
    pub(super) words: Vec<u64>,
}

impl<'a> Text<'a> {
    pub(super) fn new(raw: &'a str) -> Self {
        let unquoted = unquoted(raw);
        let folded = folded(&unquoted);
        Self { raw, folded, unquoted, words: hashed_words(raw) }
    }
}

/// In small letters, with `'` for `’` and single spaces.
fn folded(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !folded.is_empty() {
            folded.push(' ');
        }
        for character in word.chars() {
            match character {
                '’' => folded.push('\''),
                c if c.is_ascii() => folded.push(c.to_ascii_lowercase()),
                c => folded.extend(c.to_lowercase()),
            }
        }
    }
    folded
}

/// Longest quotation, in characters: a mark that stands alone does not make a quotation of all that follows.
const LONGEST_QUOTATION: usize = 500;

/// `text` with a space in place of each quotation.
pub(super) fn unquoted(text: &str) -> String {
    let mut rest = text;
    let mut previous = None;
    let mut unquoted = String::with_capacity(text.len());
    while let Some(character) = rest.chars().next() {
        let (_, after) = rest.split_at(character.len_utf8());
        if let Some(end) = quotation(character, previous, after) {
            unquoted.push(' ');
            rest = after.get(end..).unwrap_or_default();
            previous = Some(' ');
        } else {
            unquoted.push(character);
            rest = after;
            previous = Some(character);
        }
    }
    unquoted
}

/// Where the quotation ends that `mark` opens between `before` and `after`, if it opens one.
pub(super) fn quotation(mark: char, before: Option<char>, after: &str) -> Option<usize> {
    let closing = match mark {
        '"' => '"',
        '“' | '„' => '”',
        '‘' => '’',
        '«' => '»',
        '「' => '」',
        '『' => '』',
        '\'' if before.is_none_or(|c| !c.is_alphanumeric()) => '\'',
        _ => return None,
    };
    let mut characters = after.char_indices().take(LONGEST_QUOTATION).peekable();
    while let Some((at, character)) = characters.next() {
        // German closes with what English opens with.
        let is_closing = character == closing || (mark == '„' && character == '“');
        let is_apostrophe =
            matches!(closing, '\'' | '’') && characters.peek().is_some_and(|(_, next)| next.is_alphanumeric());
        if is_closing && !is_apostrophe {
            return Some(at + character.len_utf8());
        }
    }
    None
}

/// The words of a text, each as the hash of its small letters. A word is a run of letters and digits, with apostrophes and
/// hyphens within it; scripts that are written without spaces have a word a character.
pub(super) fn hashed_words(text: &str) -> Vec<u64> {
    let mut words = Vec::with_capacity(text.len() / 5);
    let mut word: Option<u64> = None;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if is_word_by_itself(character) {
            words.extend(word.take());
            words.push(mix(START, character));
        } else if character.is_alphanumeric() {
            let hash = word.unwrap_or(START);
            word = Some(if character.is_ascii() {
                mix(hash, character.to_ascii_lowercase())
            } else {
                character.to_lowercase().fold(hash, mix)
            });
        } else if matches!(character, '\'' | '’' | '-') && characters.peek().is_some_and(|c| c.is_alphanumeric()) {
            word = word.map(|hash| mix(hash, if character == '-' { '-' } else { '\'' }));
        } else {
            words.extend(word.take());
        }
    }
    words.extend(word);
    words
}

/// Chinese and Japanese.
pub(super) fn is_word_by_itself(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{3ffff}')
}

/// FNV-1a, a character at a time.
const START: u64 = 0xcbf2_9ce4_8422_2325;

fn mix(hash: u64, character: char) -> u64 {
    (hash ^ u64::from(u32::from(character))).wrapping_mul(0x0000_0100_0000_01b3)
}

/// The hashes of all runs of `length` words, unsorted.
pub(super) fn runs(words: &[u64], length: usize) -> Vec<u64> {
    let hash = |run: &[u64]| {
        run.iter().fold(START, |hash, word| (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95))
    };
    words.windows(length.max(1)).map(hash).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotations_are_left_out() {
        let cases = [
            (r#"A sign says "I cannot" here"#, "A sign says   here"),
            ("A sign says 'I can't' here", "A sign says   here"),
            ("“Привет” and «мир» and 「東京」", "  and   and  "),
            ("„Halt“ and „Halt”", "  and  "),
            ("A dog's and the dogs' bowl", "A dog's and the dogs' bowl"),
            (r#"A 5" screen"#, r#"A 5" screen"#),
            ("the '90s", "the '90s"),
        ];
        for (text, expected) in cases {
            assert_eq!(unquoted(text), expected, "{text}");
        }
        let alone = format!("\"{}\"", "x".repeat(2 * LONGEST_QUOTATION));
        assert_eq!(unquoted(&alone), alone);
    }

    #[test]
    fn words_are_counted_as_people_do() {
        let cases = [
            ("", 0),
            ("A dog's black-and-white bowl.", 4),
            ("-- ' a - b '", 2),
            ("東京タワー is tall", 7),
            ("été ÉTÉ", 2),
            ("3.5 m", 3),
        ];
        for (text, count) in cases {
            assert_eq!(hashed_words(text).len(), count, "{text}");
        }
        let words = hashed_words("Dog’s DOG'S été ÉTÉ");
        assert!(words.windows(2).step_by(2).all(|pair| pair[0] == pair[1]));
    }
}
