//! A row's value as it may stand in a prompt.
//!
//! What the web wrote may not speak for the prompt: control characters and invisible ones are taken out, what a chat model would
//! take for one of its special tokens is broken by a space, and a value is cut at [`LONGEST_VALUE`].

use std::borrow::Cow;

/// Characters of one value that go into a prompt.
pub const LONGEST_VALUE: usize = 2000;

/// A value as it may stand in a prompt.
pub(super) fn tame(value: &str) -> Cow<'_, str> {
    let value = value.trim();
    let is_tame = |c: char| !c.is_control() && !is_invisible(c) && !matches!(c, '<' | '[' | '\u{2028}' | '\u{2029}');
    if value.len() <= LONGEST_VALUE && !value.contains("  ") && value.chars().all(is_tame) {
        return Cow::Borrowed(value);
    }
    let mut tamed = String::with_capacity(value.len().min(4 * LONGEST_VALUE) + 16);
    let mut previous = ' ';
    // What is taken out is first, so that nothing can hide behind it.
    let visible = value.chars().filter(|c| !is_invisible(*c) && (c.is_whitespace() || !c.is_control()));
    for character in visible.take(LONGEST_VALUE) {
        let is_break = character.is_control() || matches!(character, '\u{2028}' | '\u{2029}');
        let character = if is_break { ' ' } else { character };
        let is_run = character == ' ' && previous == ' ';
        if !is_run {
            tamed.push(character);
        }
        previous = character;
    }
    Cow::Owned(without_special_tokens(tamed.trim_end()))
}

/// Bidirectional overrides, zero-width spaces and tags: nobody sees them, and a model reads them. The joiners that emoji and
/// some scripts are written with stay.
pub(super) fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Puts a space into `<image>`, `<|im_start|>`, `</s>`, `[INST]` and their like.
fn without_special_tokens(text: &str) -> String {
    const LONGEST: usize = 40;
    let mut broken = String::with_capacity(text.len() + 8);
    for (at, character) in text.char_indices() {
        broken.push(character);
        let rest = || text.get(at + 1..).unwrap_or_default();
        let inner = |end: char| {
            let stops = |c: char| c == end || c == character || c.is_whitespace();
            let (inner, last) = rest().chars().take(LONGEST).enumerate().find(|(_, c)| stops(*c))?;
            (last == end && inner > 0).then(|| rest().chars().take(inner))
        };
        let is_token = match character {
            '<' => inner('>').is_some(),
            '[' => inner(']').is_some_and(|mut name| name.all(|c| c.is_ascii_uppercase() || matches!(c, '_' | '/'))),
            _ => false,
        };
        if is_token {
            broken.push(' ');
        }
    }
    broken
}
