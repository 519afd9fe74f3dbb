//! The prompts of the two stages.

use std::collections::BTreeSet;

use shards::digest::{Digest, DigestBuilder};

use super::template::Template;
use super::value::tame;

/// The name by which templates know a row's original caption.
pub const ALT: &str = "alt";
/// The name of the long caption in the second prompt.
pub const CAPTION: &str = "caption";

const LONG: &str = "\
Write a detailed but succinct caption of this image. Describe its objects and any text in it, and quote important text exactly. \
Its alt text on the web was \"{alt}\": a hint that may be unrelated, so use only what the image confirms. \
Answer with nothing but the caption.";

const LONG_WITHOUT_ALT: &str = "\
Write a detailed but succinct caption of this image. Describe its objects and any text in it, and quote important text exactly. \
Answer with nothing but the caption.";

const SHORT: &str = "\
Distil this caption of an image to one sentence of at most 40 words that names what matters most. \
Answer with nothing but the sentence.\n\nCaption: {caption}";

/// One stage's prompt: what is asked of rows that have an alt text, and of those that have none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    pub template: Template,
    /// For rows whose alt text is empty; without it they are asked by `template`, with nothing in its place.
    pub without_alt: Option<Template>,
}

impl Prompt {
    /// The default of the first stage: needs `{alt}`.
    pub fn long() -> Self {
        Self { template: own(LONG), without_alt: Some(own(LONG_WITHOUT_ALT)) }
    }

    /// The default of the second stage: needs `{caption}`, the long one.
    pub fn short() -> Self {
        Self { template: own(SHORT), without_alt: None }
    }

    /// The columns whose values either template needs, sorted; whether a row has an alt text counts as one.
    pub fn columns(&self) -> BTreeSet<&str> {
        let mut columns = self.template.columns();
        if let Some(other) = &self.without_alt {
            columns.extend(other.columns());
            columns.insert(ALT);
        }
        columns
    }

    /// The prompt of one row.
    pub fn render<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> String {
        match &self.without_alt {
            Some(other) if tame(value(ALT).unwrap_or_default()).is_empty() => other.render(value),
            _ => self.template.render(value),
        }
    }

    /// Both templates' own words: see [`Template::instructions`].
    pub fn instructions(&self) -> impl Iterator<Item = &str> {
        self.template.instructions().chain(self.without_alt.iter().flat_map(Template::instructions))
    }

    /// Changes when anything changes that either template says.
    pub fn digest(&self) -> Digest {
        let digest = DigestBuilder::new().part(self.template.as_str());
        self.without_alt.iter().fold(digest, |digest, other| digest.part(other.as_str())).finish()
    }
}

/// One of our own templates. A test reads them all; if one were not readable, it would be asked as it stands.
fn own(text: &str) -> Template {
    Template::parse(text).unwrap_or_else(|_never| Template::literal(text))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
