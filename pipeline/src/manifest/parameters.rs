//! Typed reading of a table: types, ranges and unknown keys, each fault with its place.

use schemars::{JsonSchema, Schema};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::diagnostic::{Diagnostic, Place};
use super::tree::Node;

/// One text, or a list of them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a text, or a list of texts")]
pub enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    pub fn as_slice(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }
}

/// A table of a stage, or of the pipeline.
#[derive(Clone, Debug)]
pub struct Parameters {
    owner: String,
    node: Node,
    /// Of a stage: the stages that it reads from.
    inputs: Vec<String>,
}

impl Parameters {
    /// `owner` names the table in messages.
    pub fn new(owner: impl Into<String>, node: Node) -> Self {
        Self { owner: owner.into(), node, inputs: Vec::new() }
    }

    /// As those of a stage that reads from these.
    #[must_use]
    pub fn reading_from(self, inputs: Vec<String>) -> Self {
        Self { inputs, ..self }
    }

    /// The stages that its stage reads from, by name.
    pub fn inputs(&self) -> &[String] {
        &self.inputs
    }

    /// Reads the keys that `T` has; others are left to other types.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Diagnostic> {
        serde_path_to_error::deserialize(self.node.json()).map_err(|error| {
            let path = error.path().to_string();
            let parts = path.split(['.', '[', ']']).filter(|p| !p.is_empty() && *p != ".");
            let place = self.node.follow(parts).place.clone();
            let message = in_words(&error.into_inner().to_string());
            let key = if path == "." { String::new() } else { format!(" {path}:") };
            Diagnostic::new(place, format!("in {},{key} {message}", self.owner))
        })
    }

    /// Sets a key, as `--set` would.
    pub fn replace(&mut self, key: &str, value: &Value, place: &Place) {
        self.node.replace(key, value, place);
    }

    /// A fault for each key that neither `schemas` nor `others` know, at any depth.
    pub fn unknown(&self, schemas: &[Schema], others: &[String]) -> Vec<Diagnostic> {
        let mut known: Vec<String> = others.to_vec();
        known.extend(schemas.iter().flat_map(property_names));
        let mut faults = self.node.unknown_keys(&known, &self.owner);
        for schema in schemas {
            faults.extend(unknown_below(&self.node, schema.as_value(), schema.as_value(), &self.owner));
        }
        faults
    }

    /// The table below `key`, where it was written; `owner` names it in messages.
    pub(super) fn below(&self, key: &str, owner: impl Into<String>) -> Option<Self> {
        self.node.get(key).map(|node| Self::new(owner, node.clone()))
    }

    /// Whether `key` was written.
    pub fn has(&self, key: &str) -> bool {
        self.node.get(key).is_some()
    }

    /// A fault at `key`, or at the table when the key was not written.
    #[track_caller]
    pub fn fault(&self, key: &str, message: impl std::fmt::Display) -> Diagnostic {
        let place = self.node.get(key).map_or(&self.node.place, |n| &n.place).clone();
        Diagnostic::new(place, format!("in {}, {message}", self.owner))
    }
}

fn unknown_below(node: &Node, schema: &Value, root: &Value, owner: &str) -> Vec<Diagnostic> {
    let Some(properties) = resolve(schema, root).get("properties").and_then(Value::as_object) else {
        return Vec::new();
    };
    let mut faults = Vec::new();
    for (key, property) in properties {
        let Some(child) = node.get(key) else { continue };
        let owner = format!("{owner} {key}");
        if let Some(below) = resolve(property, root).get("properties").and_then(Value::as_object) {
            let known: Vec<String> = below.keys().cloned().collect();
            faults.extend(child.unknown_keys(&known, &owner));
        }
        faults.extend(unknown_below(child, property, root, &owner));
    }
    faults
}

/// Follows references, and the object among the alternatives of an optional value.
fn resolve<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    if let Some(reference) = schema.get("$ref").and_then(|r| r.as_str()) {
        let target = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
        return target.map_or(schema, |t| resolve(t, root));
    }
    let alternatives = schema.get("anyOf").and_then(|a| a.as_array());
    let object = alternatives.and_then(|a| a.iter().map(|s| resolve(s, root)).find(|s| s.get("properties").is_some()));
    object.unwrap_or(schema)
}

/// The keys of a table's schema.
pub fn property_names(schema: &Schema) -> Vec<String> {
    let properties = schema.as_value().get("properties").and_then(Value::as_object);
    properties.map(|p| p.keys().cloned().collect()).unwrap_or_default()
}

/// The name most like `written`, whatever its case, when one is like it at all.
pub fn nearest<'a>(written: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|name| (strsim::jaro_winkler(&written.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

/// serde's messages name Rust's types; people know numbers, tables and lists.
fn in_words(message: &str) -> String {
    let misfit = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    if let Some((found, expected)) = misfit.and_then(|rest| rest.rsplit_once(", expected ")) {
        return format!("found {}, expected {}", found_in_words(found), expected_in_words(expected));
    }
    for (serdes, ours) in [
        ("missing field ", "missing key "),
        ("unknown variant ", "unknown choice "),
        ("unknown field ", "unknown key "),
    ] {
        if let Some(rest) = message.strip_prefix(serdes) {
            return format!("{ours}{rest}");
        }
    }
    message.to_owned()
}

fn found_in_words(found: &str) -> String {
    let beginnings = [
        ("integer ", "number "),
        ("floating point ", "number "),
        ("string ", "text "),
        ("boolean ", ""),
        ("sequence", "a list"),
        ("map", "a table"),
        ("unit variant", "a name alone"),
    ];
    let known = beginnings.iter().find_map(|(serdes, ours)| Some((ours, found.strip_prefix(serdes)?)));
    known.map_or_else(|| found.to_owned(), |(ours, rest)| format!("{ours}{rest}"))
}

fn expected_in_words(expected: &str) -> &str {
    match expected {
        "u64" | "usize" => "a whole number, 0 or more",
        "u32" => "a whole number from 0 to 4294967295",
        "u8" => "a whole number from 0 to 255",
        "i64" => "a whole number",
        "f64" => "a number",
        "a string" | "path string" => "text in quotes",
        "a boolean" => "true or false",
        "a sequence" => "a list: [ … ]",
        "a map" => "a table: { … }",
        "string or map" => "the name of a choice, in quotes",
        "newtype variant" => "the name with its settings: { NAME = { … } }",
        "map with a single key" => "a table with one name in it: { NAME = { … } }",
        "unit" => "the name alone, in quotes",
        // The name of one of our types.
        other if other.starts_with("struct ") => "a table: { … }",
        other => other,
    }
}
