//! TOML as a tree in which everything knows where it was written.

use std::collections::BTreeMap;
use std::path::Path;

use toml_edit::{Document, Item};

use super::diagnostic::{Diagnostic, Diagnostics, Place};
use super::parameters::nearest;

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Node {
    pub place: Place,
    pub value: Value,
}

/// TOML's values. Dates are kept as text: no stage has one.
#[derive(Clone, Debug)]
pub enum Value {
    Table(Table),
    Array(Vec<Node>),
    Text(String),
    Whole(i64),
    Real(f64),
    Truth(bool),
}

/// Sorted by key; the order of stages comes from their `from`.
pub(super) type Table = BTreeMap<String, Node>;

impl Node {
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Table(table) => table.get(key),
            _ => None,
        }
    }

    /// The node at a path of keys and array positions, as far as it leads.
    pub fn follow<'a>(&self, path: impl Iterator<Item = &'a str>) -> &Self {
        let mut node = self;
        for part in path {
            let next = match &node.value {
                Value::Table(table) => table.get(part),
                Value::Array(items) => part.parse::<usize>().ok().and_then(|i| items.get(i)),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node
    }

    /// One fault for each key that is not in `known`.
    pub fn unknown_keys(&self, known: &[String], owner: &str) -> Vec<Diagnostic> {
        let Value::Table(table) = &self.value else { return Vec::new() };
        let unknown = table.iter().filter(|(key, _)| !known.contains(key));
        unknown
            .map(|(key, node)| {
                let fault = Diagnostic::new(node.place.clone(), format!("unknown key `{key}` in {owner}"));
                match nearest(key, known.iter().map(String::as_str)) {
                    Some(name) => fault.hint(format!("did you mean `{name}`?")),
                    None => fault.hint(format!("known keys: {}", known.join(", "))),
                }
            })
            .collect()
    }

    /// Sets a key of a table.
    pub(super) fn replace(&mut self, key: &str, value: &serde_json::Value, place: &Place) {
        if let Value::Table(table) = &mut self.value {
            table.insert(key.to_owned(), Self::of_json(value, place));
        }
    }

    fn of_json(value: &serde_json::Value, place: &Place) -> Self {
        let value = match value {
            serde_json::Value::Object(map) => {
                Value::Table(map.iter().map(|(key, value)| (key.clone(), Self::of_json(value, place))).collect())
            }
            serde_json::Value::Array(items) => {
                Value::Array(items.iter().map(|item| Self::of_json(item, place)).collect())
            }
            serde_json::Value::Bool(truth) => Value::Truth(*truth),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(whole) => Value::Whole(whole),
                None => Value::Real(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Value::Text(text.clone()),
            serde_json::Value::Null => Value::Text(String::new()),
        };
        Self { place: place.clone(), value }
    }

    /// As JSON, without places.
    pub fn json(&self) -> serde_json::Value {
        match &self.value {
            Value::Table(table) => table.iter().map(|(key, node)| (key.clone(), node.json())).collect(),
            Value::Array(items) => items.iter().map(Self::json).collect(),
            Value::Text(text) => text.as_str().into(),
            Value::Whole(number) => (*number).into(),
            Value::Real(number) => {
                serde_json::Number::from_f64(*number).map_or_else(|| number.to_string().into(), Into::into)
            }
            Value::Truth(truth) => (*truth).into(),
        }
    }
}

/// Parses TOML text; a syntax error names its line.
pub(super) fn parse(text: &str, file: &Path) -> Result<Node, Diagnostics> {
    let line_of = |offset: usize| text.get(..offset).map_or(0, |before| before.matches('\n').count() + 1);
    let place = |offset: Option<usize>| Place::File { file: file.to_owned(), line: offset.map_or(0, line_of) };
    let document = Document::parse(text).map_err(|error| {
        let message = error.message().trim().replace('\n', "; ");
        Diagnostics::from(Diagnostic::new(
            place(error.span().map(|s| s.start)),
            format!("is not valid TOML: {message}"),
        ))
    })?;
    Ok(convert(document.as_item(), place(None), &place))
}

fn convert(item: &Item, own: Place, place: &dyn Fn(Option<usize>) -> Place) -> Node {
    let at_key = |table: &dyn toml_edit::TableLike, key: &str, item: &Item| {
        let span = table.key(key).and_then(toml_edit::Key::span).or_else(|| item.span());
        place(span.map(|s| s.start))
    };
    if let Some(table) = item.as_table_like() {
        let entries =
            table.iter().map(|(key, child)| (key.to_owned(), convert(child, at_key(table, key, child), place)));
        return Node { place: own, value: Value::Table(entries.collect()) };
    }
    if let Some(tables) = item.as_array_of_tables() {
        let nodes = tables.iter().map(|table| {
            let here = place(table.span().map(|s| s.start));
            convert(&Item::Table(table.clone()), here, place)
        });
        return Node { place: own, value: Value::Array(nodes.collect()) };
    }
    let value = item.as_value().map_or_else(|| Value::Text(String::new()), |v| convert_value(v, place));
    Node { place: own, value }
}

fn convert_value(value: &toml_edit::Value, place: &dyn Fn(Option<usize>) -> Place) -> Value {
    match value {
        toml_edit::Value::String(text) => Value::Text(text.value().clone()),
        toml_edit::Value::Integer(number) => Value::Whole(*number.value()),
        toml_edit::Value::Float(number) => Value::Real(*number.value()),
        toml_edit::Value::Boolean(truth) => Value::Truth(*truth.value()),
        toml_edit::Value::Datetime(when) => Value::Text(when.value().to_string()),
        toml_edit::Value::Array(items) => {
            let nodes = items
                .iter()
                .map(|item| Node { place: place(item.span().map(|s| s.start)), value: convert_value(item, place) });
            Value::Array(nodes.collect())
        }
        toml_edit::Value::InlineTable(table) => {
            let nodes = table.iter().map(|(key, item)| {
                let here = place(item.span().map(|s| s.start));
                (key.to_owned(), Node { place: here, value: convert_value(item, place) })
            });
            Value::Table(nodes.collect())
        }
    }
}

/// Applies `a.b.c=VALUE`; a value that is not TOML is taken as text.
pub(super) fn set(root: &mut Node, text: &str) -> Result<(), Diagnostic> {
    let here = Place::set(text);
    let Some((path, value)) = text.split_once('=') else {
        return Err(Diagnostic::new(here, "has no `=`").hint("write --set stage.NAME.KEY=VALUE"));
    };
    let parsed = value.trim().parse::<toml_edit::Value>();
    let value = parsed.map_or_else(
        |_not_toml| Value::Text(value.trim().to_owned()),
        |value| convert_value(&value, &|_| Place::set(text)),
    );
    let mut node = root;
    for key in path.trim().split('.') {
        let Value::Table(table) = &mut node.value else {
            return Err(Diagnostic::new(here, format!("`{key}` lies below something that is not a table")));
        };
        let empty = Node { place: here.clone(), value: Value::Table(Table::new()) };
        node = table.entry(key.trim().to_owned()).or_insert(empty);
    }
    *node = Node { place: here, value };
    Ok(())
}

/// Replaces `{workdir}`, `{env:NAME}` and the names in `[vars]` in every text. Other braces stay.
pub(super) fn substitute(root: &mut Node) -> Vec<Diagnostic> {
    let mut variables: BTreeMap<String, String> = BTreeMap::new();
    let mut faults = Vec::new();
    if let Some(Value::Table(vars)) = root.get("vars").map(|n| &n.value) {
        for (name, node) in vars {
            match &node.value {
                Value::Text(text) => {
                    variables.insert(name.clone(), text.clone());
                }
                Value::Whole(number) => {
                    variables.insert(name.clone(), number.to_string());
                }
                _ => faults
                    .push(Diagnostic::new(node.place.clone(), format!("vars.{name} must be text or a whole number"))),
            }
        }
    }
    // The workdir may use variables, and everything else may use the workdir. What is wrong here is found again below.
    if let Value::Table(table) = &mut root.value
        && let Some(pipeline) = table.get_mut("pipeline")
    {
        walk(pipeline, &variables, &mut Vec::new());
        if let Some(Value::Text(workdir)) = pipeline.get("workdir").map(|n| &n.value) {
            variables.insert("workdir".to_owned(), workdir.clone());
        }
    }
    walk(root, &variables, &mut faults);
    faults
}

fn walk(node: &mut Node, variables: &BTreeMap<String, String>, faults: &mut Vec<Diagnostic>) {
    match &mut node.value {
        Value::Table(table) => table.values_mut().for_each(|n| walk(n, variables, faults)),
        Value::Array(items) => items.iter_mut().for_each(|n| walk(n, variables, faults)),
        Value::Text(text) => {
            for (name, value) in variables {
                *text = text.replace(&format!("{{{name}}}"), value);
            }
            let mut replaced = String::new();
            let mut rest = text.as_str();
            while let Some((before, reference)) = rest.split_once("{env:")
                && let Some((name, after)) = reference.split_once('}')
            {
                let Ok(value) = std::env::var(name) else {
                    let fault = Diagnostic::new(node.place.clone(), format!("the environment has no variable {name}"));
                    faults.push(fault.hint(format!("set {name}, or replace {{env:{name}}}")));
                    return;
                };
                replaced += before;
                replaced += &value;
                rest = after;
            }
            replaced += rest;
            *text = replaced;
        }
        _ => {}
    }
}
