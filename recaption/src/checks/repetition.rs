//! Captions that go round in circles.

use std::collections::HashSet;
use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;

use super::text::runs;

const PHRASES: [&str; 5] = [" no text", " other objects", " additional objects", " no objects ", "alt-text"];

/// How often a caption says what a model says that has nothing to say; capitals count as such.
pub(super) fn repeated_phrases(caption: &str) -> usize {
    PHRASES.iter().map(|phrase| caption.matches(phrase).count()).sum()
}

/// Different words, up to `most`.
pub(super) fn distinct_words(words: &[u64], most: usize) -> usize {
    let mut seen = HashSet::new();
    let mut words = words.iter();
    while seen.len() < most {
        let Some(word) = words.next() else { break };
        seen.insert(word);
    }
    seen.len()
}

/// The characters at a caption's end that are looked at for a loop.
const END: usize = 128;

/// How long the longest suffix of the caption's last 128 characters is that also occurs earlier in those, where the two may
/// overlap. A loop of p characters that fills them all gives 128 - p.
pub(super) fn repeated_suffix(caption: &str) -> usize {
    let last: Vec<char> = caption.chars().rev().take(END).collect();
    // Read backwards, suffixes are prefixes, and an earlier occurrence lies `shift` further.
    let common = |shift: usize| last.iter().zip(last.iter().skip(shift)).take_while(|(a, b)| a == b).count();
    (1..last.len()).map(common).max().unwrap_or(0)
}

/// Fewest words, in runs, that a share of repeated runs says anything about.
const FEWEST_RUNS: usize = 8;

/// The share of a caption's runs of `length` words that were there before, 0 to 1.
pub(super) fn repeated_runs(words: &[u64], length: usize) -> f64 {
    let mut runs = runs(words, length);
    let all = runs.len();
    if all < FEWEST_RUNS {
        return 0.0;
    }
    runs.sort_unstable();
    runs.dedup();
    1.0 - runs.len() as f64 / all as f64
}

/// Shorter texts compress badly, whatever they say.
const FEWEST_BYTES: usize = 100;

/// How many times smaller zlib makes the caption, as Whisper judges transcripts.
pub(super) fn compression(caption: &str) -> f64 {
    if caption.len() < FEWEST_BYTES {
        return 1.0;
    }
    let mut encoder = ZlibEncoder::new(Vec::with_capacity(caption.len()), Compression::default());
    let compressed = encoder.write_all(caption.as_bytes()).and_then(|()| encoder.finish());
    compressed.map_or(1.0, |compressed| caption.len() as f64 / compressed.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_loop_at_the_end_is_as_long_as_it_repeats() {
        let loops = |period: &str, times: usize| period.repeat(times);
        let cases = [
            (String::new(), 0),
            ("a".to_owned(), 0),
            ("abcab".to_owned(), 2),
            ("abab".to_owned(), 2),
            ("x".repeat(500), 127),
            (loops("no text, ", 40), 119),
            (loops("0123456789", 2), 10),
            (format!("{}!", "x".repeat(200)), 0),
            ("é".repeat(128), 127),
        ];
        for (caption, expected) in cases {
            assert_eq!(repeated_suffix(&caption), expected, "{caption}");
        }
    }

    proptest! {
        #[test]
        fn the_repeated_suffix_is_what_its_definition_says(caption in "[ab]{0,140}") {
            let last: Vec<char> = caption.chars().skip(caption.chars().count().saturating_sub(END)).collect();
            let is_repeated = |length: usize| {
                let (suffix, before) = (&last[last.len() - length..], &last[..last.len() - 1]);
                before.windows(length).any(|window| window == suffix)
            };
            let longest = (1..last.len()).rev().find(|length| is_repeated(*length)).unwrap_or(0);
            prop_assert_eq!(repeated_suffix(&caption), longest);
        }
    }
}
