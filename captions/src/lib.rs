//! Captions as texts, whoever wrote them: what is taken off them because it says nothing about the picture. Knows no models.

mod clean;

use std::borrow::Cow;

pub use clean::{Cleaned, Mended, clean};

/// Raised when [`clean`], and with it [`tidy`], comes to leave something else of the same text. 2: a model's thoughts are taken off.
pub const VERSION: u32 = 2;

/// A caption as a training wants it: without its wrapping and an opening that says nothing (see [`clean`]), its first letter a
/// capital. "In this artwork, a cat sleeps" becomes "Artwork of a cat sleeps", as in the reference system: that it is one is
/// worth keeping.
pub fn tidy(caption: &str) -> Cow<'_, str> {
    const ARTWORK: &str = "in this artwork, ";
    let text = clean(caption).text;
    let start = text.get(..ARTWORK.len()).filter(|start| start.eq_ignore_ascii_case(ARTWORK));
    if let Some(rest) = start.and_then(|start| text.get(start.len()..)).filter(|rest| !rest.is_empty()) {
        return format!("Artwork of {rest}").into();
    }
    match text.chars().next() {
        Some(first) if first.is_lowercase() => {
            let rest = text.get(first.len_utf8()..).unwrap_or_default();
            first.to_uppercase().chain(rest.chars()).collect::<String>().into()
        }
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_go_at_the_start_only_and_the_rest_keeps_its_case() {
        for (caption, expected) in [
            ("The image shows a dog. The image shows a CAT.", "A dog. The image shows a CAT."),
            ("THE IMAGE SHOWS iPhones", "IPhones"),
            ("In this artwork, a Cat sleeps", "Artwork of a Cat sleeps"),
            ("in this artwork, ", "In this artwork,"),
            ("élan vital", "Élan vital"),
            ("ßa", "SSa"),
            ("Two dogs", "Two dogs"),
            ("Hm. </think>two dogs", "Two dogs"),
            ("", ""),
        ] {
            assert_eq!(tidy(caption), expected, "{caption:?}");
        }
    }
}
