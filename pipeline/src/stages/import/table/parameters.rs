//! What a manifest says of tables: what determines the result, and how it is done.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shards::columns;

use super::super::Fault;
use super::Import;
use super::path::Path;
use crate::manifest::OneOrMore;
use crate::stage::Stage;
use crate::stages::fields::{FieldType, NamedColumns};
use crate::stages::outside::{FileKind, Places};
use picture::Check;

const FILES: FileKind = FileKind {
    key: "files",
    one: "table",
    endings: &[
        ".parquet",
        ".jsonl",
        ".jsonl.gz",
        ".jsonl.zst",
        ".json",
        ".json.gz",
        ".json.zst",
        ".csv",
        ".csv.gz",
        ".csv.zst",
        ".tsv",
        ".tsv.gz",
        ".tsv.zst",
    ],
};

/// What determines the result, of tables.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(in super::super) struct Semantics {
    /// Of tables: our columns, and where in a row they lie: { key = "id", image = "image", caption = "conversations[1].value" }.
    /// Without `key`, keys hold the file's name and the row's number; without `image`, the output has no images.
    #[serde(default)]
    pub(super) columns: BTreeMap<String, String>,
    /// Of tables: further columns under their own names: a list of them, whose types are those of the file, or each with its
    /// type, where files differ: { license = "text", score = "number" }. What is nested becomes text, as JSON.
    #[serde(default)]
    pub(super) keep: NamedColumns,
    /// Of tables: columns with one text in all rows, { class = "CC12M" }.
    #[serde(default)]
    pub(super) constants: BTreeMap<String, String>,
    /// Of tables: how images are checked: `decode` all of each, or read its `header` and look for its end [decode].
    #[serde(default)]
    pub(super) check: Check,
    /// Of tables: larger images are refused, in bytes [20 MB].
    #[serde(default = "default_bytes")]
    pub(super) max_bytes: u64,
    /// Of tsv: fields that hold tabs, line breaks or quotation marks stand in quotation marks, as in csv; pandas and Python's csv
    /// write them so [false].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) quotes: bool,
    /// Of tables: only the first so many rows of each file [all].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rows_per_file: Option<u64>,
}

/// What folders of pictures have too.
#[derive(Clone, Debug, Deserialize)]
pub(in super::super) struct Shared {
    #[serde(default)]
    source: String,
    #[serde(default = "default_pixels")]
    max_pixels: u64,
}

/// Where tables lie.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(in super::super) struct Operations {
    /// Tables in place of a folder: a folder of them (with those below it), a file, or a pattern such as "captions/*.jsonl.gz";
    /// or several. Each file is a partition.
    #[serde(default)]
    files: Option<OneOrMore>,
    /// With `from`: which of the stage's files are taken, such as "*.parquet" or "data/train-*" [all tables].
    #[serde(default)]
    include: Option<OneOrMore>,
    /// Only the first so many files [all].
    #[serde(default)]
    limit: Option<usize>,
}

fn default_bytes() -> u64 {
    20_000_000
}
fn default_pixels() -> u64 {
    100_000_000
}

/// A column of the output whose values lie in the rows.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) path: Path,
    /// As it is in the table, where nothing is said.
    pub(super) kind: Option<FieldType>,
}

/// What is taken from a table's rows.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) key: Option<Path>,
    pub(super) image: Option<Path>,
    pub(super) columns: Vec<Column>,
}

impl Shape {
    /// All that has to be there.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.key.iter().chain(&self.image).chain(self.columns.iter().map(|column| &column.path))
    }
}

/// An import of tables as its manifest wants it.
pub(super) struct Wanted {
    pub(super) semantics: Semantics,
    pub(super) source: String,
    pub(super) max_pixels: u64,
    pub(super) include: Vec<String>,
    pub(super) limit: Option<usize>,
    /// Without them, the files of the stage's input.
    pub(super) places: Option<Places>,
    pub(super) shape: Shape,
}

impl Wanted {
    pub(super) fn semantics(&self) -> Value {
        let mut semantics = serde_json::to_value(&self.semantics).unwrap_or_default();
        if let Value::Object(semantics) = &mut semantics {
            semantics.insert("source".to_owned(), json!(self.source));
            semantics.insert("max_pixels".to_owned(), json!(self.max_pixels));
            if !self.include.is_empty() {
                semantics.insert("include".to_owned(), json!(self.include));
            }
        }
        semantics
    }
}

/// Columns that hold text, whatever the table has there.
const TEXTS: [&str; 4] = [columns::CAPTION, columns::URL, columns::RECAPTION, columns::RECAPTION_SHORT];
/// Columns that rows with images have by themselves.
const OF_IMAGES: [&str; 3] = [columns::WIDTH, columns::HEIGHT, columns::SHA256];

/// Reads what was written; `inputs` are the stages that it reads from.
pub(in super::super) fn build(
    shared: Shared,
    semantics: Semantics,
    operations: Operations,
    inputs: &[String],
) -> Result<Box<dyn Stage>, Fault> {
    let Shared { source, max_pixels } = shared;
    let Operations { files, include, limit } = operations;
    let positive = [
        ("max_bytes", semantics.max_bytes),
        ("max_pixels", max_pixels),
        ("rows_per_file", semantics.rows_per_file.unwrap_or(1)),
        ("limit", limit.map_or(1, |limit| limit as u64)),
    ];
    if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
        return Err((key, format!("{key} = 0: expected 1 or more")));
    }
    let shape = shape(&semantics)?;
    match &files {
        Some(_) if include.is_some() => {
            return Err((
                "include",
                "include is for tables that a stage fetched; files may be a pattern itself".to_owned(),
            ));
        }
        None if limit.is_some() => {
            return Err(("limit", "limit is for files; how much there is of a stage, that stage says".to_owned()));
        }
        _ => {}
    }
    let places = files.map(|files| Places::read(files.as_slice(), &FILES)).transpose();
    let places = places.map_err(|fault| ("files", fault))?;
    let source = match (&places, inputs.first()) {
        _ if !source.is_empty() => source,
        (Some(places), _) => places.name(),
        (None, input) => input.cloned().unwrap_or_default(),
    };
    let include = include.map(|include| include.as_slice().to_vec()).unwrap_or_default();
    Ok(Box::new(Import::new(Wanted { semantics, source, max_pixels, include, limit, places, shape })))
}

/// The names of the output's columns so far.
struct Taken(BTreeSet<String>);

impl Taken {
    fn add(&mut self, key: &'static str, name: &str) -> Result<(), Fault> {
        if !name.is_empty() && self.0.insert(name.to_owned()) {
            return Ok(());
        }
        Err((key, format!("{key}: `{name}` is a column that every row has already")))
    }
}

fn shape(semantics: &Semantics) -> Result<Shape, Fault> {
    let mut paths = BTreeMap::new();
    for (name, written) in &semantics.columns {
        let path = Path::parse(written).map_err(|fault| ("columns", format!("columns.{name}: {fault}")))?;
        paths.insert(name.as_str(), path);
    }
    let (key, image) = (paths.remove(columns::KEY), paths.remove(columns::IMAGE));
    let mut taken = Taken([columns::KEY, columns::IMAGE, columns::CHECKSUM].map(str::to_owned).into());
    if image.is_some() {
        taken.0.extend(OF_IMAGES.map(str::to_owned));
    }
    let mut all = Vec::new();
    for (name, path) in paths {
        taken.add("columns", name)?;
        let kind = TEXTS.contains(&name).then_some(FieldType::Text);
        all.push(Column { name: name.to_owned(), path, kind });
    }
    if image.is_some() {
        // Written whether they were asked for or not.
        taken.0.extend([columns::CAPTION, columns::URL].map(str::to_owned));
    }
    let kept = semantics.keep.all().into_iter();
    let kept: Vec<Column> = kept.map(|(name, kind)| Column { path: Path::of_column(&name), name, kind }).collect();
    for column in &kept {
        taken.add("keep", &column.name)?;
    }
    for name in semantics.constants.keys() {
        taken.add("constants", name)?;
    }
    // By it, other tables of the same source can be joined.
    if let Some(path) = &key
        && taken.0.insert(path.own_name().to_owned())
    {
        all.push(Column { name: path.own_name().to_owned(), path: path.clone(), kind: Some(FieldType::Text) });
    }
    all.extend(kept);
    if all.is_empty() && key.is_none() && image.is_none() {
        let message =
            "nothing of the tables would come out: write columns = { key = \"…\", caption = \"…\" }, or keep = [ … ]";
        return Err(("columns", message.to_owned()));
    }
    Ok(Shape { key, image, columns: all })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape_of(json: &str) -> Result<Shape, Fault> {
        shape(&serde_json::from_str(json).unwrap())
    }

    fn names(json: &str) -> Vec<String> {
        shape_of(json).unwrap().columns.into_iter().map(|column| column.name).collect()
    }

    #[test]
    fn the_column_of_the_key_stays_under_its_own_name_once() {
        assert_eq!(
            names(r#"{"columns": {"key": "id", "image": "image", "recaption": "c[1].value"}, "keep": ["license"]}"#),
            ["recaption", "id", "license"]
        );
        assert_eq!(names(r#"{"columns": {"key": "key", "recaption": "caption_llava"}}"#), ["recaption"]);
        assert_eq!(names(r#"{"columns": {"key": "meta.id"}, "keep": {"id": "integer"}}"#), ["id"]);
        // Of images, it is there already.
        assert_eq!(names(r#"{"columns": {"key": "url", "image": "image"}}"#), [""; 0]);
    }

    #[test]
    fn columns_that_cannot_be_are_refused_by_their_key() {
        for (json, key) in [
            (r#"{"columns": {"key": "id", "image": "i", "width": "w"}}"#, "columns"),
            (r#"{"columns": {"key": "id", "checksum": "c"}}"#, "columns"),
            (r#"{"columns": {"key": "id[", "caption": "c"}}"#, "columns"),
            (r#"{"columns": {"key": "id", "caption": "c"}, "keep": ["caption"]}"#, "keep"),
            (r#"{"columns": {"key": "id", "image": "i"}, "keep": ["url"]}"#, "keep"),
            (r#"{"columns": {"key": "id"}, "keep": ["a", "a"]}"#, "keep"),
            (r#"{"keep": ["a"], "constants": {"a": "b"}}"#, "constants"),
            (r#"{"constants": {"a": "b"}}"#, "columns"),
        ] {
            assert_eq!(shape_of(json).unwrap_err().0, key, "{json}");
        }
        assert_eq!(names(r#"{"columns": {"key": "key"}, "keep": ["width", "caption"]}"#), ["width", "caption"]);
    }
}
