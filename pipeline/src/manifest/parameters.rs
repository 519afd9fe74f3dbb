//! Typed reading of a table: types, ranges and unknown keys, each fault with its place.

use schemars::Schema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::diagnostic::Diagnostic;
use super::tree::Node;

/// A table of a stage, or of the pipeline.
#[derive(Clone, Debug)]
pub struct Parameters {
    owner: String,
    node: Node,
}

impl Parameters {
    /// `owner` names the table in messages.
    pub fn new(owner: impl Into<String>, node: Node) -> Self {
        Self { owner: owner.into(), node }
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

    /// A fault at `key`, or at the table when the key was not written.
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

/// The name most like `written`, when one is like it at all.
pub fn nearest<'a>(written: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|name| (strsim::jaro_winkler(written, name), name))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

/// serde's messages name Rust's types; people know numbers.
fn in_words(message: &str) -> String {
    let words = [
        ("expected u64", "expected a whole number, 0 or more"),
        ("expected u32", "expected a whole number from 0 to 4294967295"),
        ("expected u8", "expected a whole number from 0 to 255"),
        ("expected usize", "expected a whole number, 0 or more"),
        ("expected i64", "expected a whole number"),
        ("expected f64", "expected a number"),
        ("expected a string", "expected text in quotes"),
        ("invalid type: ", "found "),
        ("invalid value: ", "found "),
        ("floating point ", "number "),
        ("integer ", "number "),
        ("missing field", "missing key"),
        ("unknown variant", "unknown choice"),
    ];
    words.iter().fold(message.to_owned(), |text, (from, to)| text.replace(from, to))
}
