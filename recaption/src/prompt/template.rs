//! Templates over a row's columns. A value goes in once and is never looked into again, so braces in an alt text are braces.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shards::digest::Digest;

use super::value::tame;

/// Text with columns' names in braces, such as `{caption}`. `{{` and `}}` stand for braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(String),
}

/// What is wrong with a template, and where: a line and a character of it, both counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{fault} at line {line}, character {character} of the template; a column's name in braces, such as {{caption}} or {{alt}}, \
     stands for its value, and {{{{ and }}}} for braces"
)]
pub struct TemplateError {
    pub fault: TemplateFault,
    pub line: usize,
    pub character: usize,
}

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateFault {
    #[error("a brace is opened and never closed")]
    Open,
    #[error("a brace is closed that was never opened")]
    Closed,
    #[error("the braces hold no name")]
    Nameless,
    #[error("`{0}` is no column's name (letters, digits, `_`, `-` and `.`)")]
    Name(String),
    #[error("there is nothing to ask")]
    Empty,
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let fail = |at: usize, fault| Err(place(text, at, fault));
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut characters = text.char_indices().peekable();
        while let Some((at, character)) = characters.next() {
            let is_doubled = matches!(character, '{' | '}') && characters.next_if(|(_, c)| *c == character).is_some();
            match character {
                '}' if !is_doubled => return fail(at, TemplateFault::Closed),
                '{' if !is_doubled => {
                    let mut name = String::new();
                    loop {
                        match characters.next() {
                            Some((_, '}')) => break,
                            None | Some((_, '{')) => return fail(at, TemplateFault::Open),
                            Some((_, c)) => name.push(c),
                        }
                    }
                    if name.is_empty() {
                        return fail(at, TemplateFault::Nameless);
                    }
                    if !name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.')) {
                        return fail(at, TemplateFault::Name(name.chars().take(60).collect()));
                    }
                    if !literal.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Value(name));
                }
                other => literal.push(other),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        if text.trim().is_empty() {
            return fail(0, TemplateFault::Empty);
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// Text without values, whatever braces it holds.
    pub(super) fn literal(text: &str) -> Self {
        Self { text: text.to_owned(), parts: vec![Part::Text(text.to_owned())] }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The columns whose values it needs, sorted.
    pub fn columns(&self) -> BTreeSet<&str> {
        let values = self.parts.iter().filter_map(|part| match part {
            Part::Value(name) => Some(name.as_str()),
            Part::Text(_) => None,
        });
        values.collect()
    }

    /// Its own words, without values: what a model is told, in pieces.
    pub fn instructions(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Value(_) => None,
        })
    }

    /// The prompt of one row. A column without a value is empty.
    pub fn render<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> String {
        let mut prompt = String::with_capacity(self.text.len() + 512);
        for part in &self.parts {
            match part {
                Part::Text(text) => prompt.push_str(text),
                Part::Value(name) => prompt.push_str(&tame(value(name).unwrap_or_default())),
            }
        }
        prompt
    }

    /// Changes when anything changes that it says.
    pub fn digest(&self) -> Digest {
        Digest::of(self.text.as_bytes())
    }
}

fn place(text: &str, at: usize, fault: TemplateFault) -> TemplateError {
    let before = text.get(..at).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let character = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    TemplateError { fault, line, character }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Template {
    fn schema_name() -> Cow<'static, str> {
        "Template".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A prompt with columns' names in braces, such as {caption} or {alt}; {{ and }} stand for braces."
        })
    }
}
