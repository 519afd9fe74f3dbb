//! What a manifest says of an extraction: what determines the result, and how it is done.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::columns;

use crate::manifest::{Diagnostic, OneOrMore, Parameters};
use crate::stages::classes::{CLASS, CLASS_ID, Classes};
use crate::stages::fields::FieldType;
use crate::stages::outside::{FileKind, Places};
use picture::Check;

pub(super) const TARS: FileKind =
    FileKind { key: "tars", one: "tar", endings: &[".tar", ".tar.gz", ".tgz", ".tar.zst"] };

/// What determines the result.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct Semantics {
    /// First part of every key [the name of the folder of tars, or of the stage that they come from].
    #[serde(default)]
    pub(super) source: String,
    /// Which fields of a sample's JSON hold what.
    #[serde(default)]
    pub(super) columns: Columns,
    /// Further fields of the JSON as columns, each with its type: { similarity = "number", license = "text" }. Types are
    /// number, integer, boolean and text; a field that is missing, or of another type, is empty.
    #[serde(default)]
    pub(super) additional_columns: BTreeMap<String, FieldType>,
    /// How images are checked: `decode` all of each, or read its `header` and look for its end [decode].
    #[serde(default)]
    pub(super) check: Check,
    /// Larger images are refused, in bytes [20 MB].
    #[serde(default = "default_bytes")]
    pub(super) max_bytes: u64,
    /// Larger images are refused, in pixels [100 million].
    #[serde(default = "default_pixels")]
    pub(super) max_pixels: u64,
    /// Only the first so many samples of each tar [all].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) samples_per_tar: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct Columns {
    /// The field with an image's address.
    #[serde(default = "url_column")]
    pub(super) url: String,
    /// Of samples without a .txt.
    #[serde(default = "caption_column")]
    pub(super) caption: String,
}

impl Default for Columns {
    fn default() -> Self {
        Self { url: url_column(), caption: caption_column() }
    }
}

/// How it is done; changes nothing about what a shard of given tars becomes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(super) struct Operations {
    /// In place of `from`, where the tars lie: a folder (with those below it), a file, or a pattern such as "laion/000*.tar";
    /// or several.
    #[serde(default)]
    tars: Option<OneOrMore>,
    /// A JSON file with the names of classes, such as {"n01440764": "tench, Tinca tinca"}, or in torchvision's form, which has
    /// class id and name by number: columns class and class_id, and a caption for samples without one. A sample's class is what its
    /// name starts with, up to the first _, or else the name of its folder or tar.
    #[serde(default)]
    classes: Option<PathBuf>,
    /// Tars in one shard [1]. Shards that were begun keep their tars.
    #[serde(default = "default_tars")]
    pub(super) tars_per_shard: usize,
    /// Only the first so many tars, rounded up to whole shards [all].
    #[serde(default)]
    pub(super) limit: Option<usize>,
    /// Remove each tar once its samples are committed and were read again; then the shards are all there is [false].
    #[serde(default)]
    pub(super) delete_inputs: bool,
}

fn default_bytes() -> u64 {
    20_000_000
}
fn default_pixels() -> u64 {
    100_000_000
}
/// img2dataset's tars have ten thousand samples, as a shard of a download.
fn default_tars() -> usize {
    1
}
fn url_column() -> String {
    columns::URL.to_owned()
}
fn caption_column() -> String {
    columns::CAPTION.to_owned()
}

/// An extraction as its manifest wants it.
pub(super) struct Wanted {
    pub(super) semantics: Semantics,
    pub(super) operations: Operations,
    /// Without them, the tars of the stage's input.
    pub(super) places: Option<Places>,
    pub(super) classes: Option<Classes>,
}

/// Columns that every sample has.
const OURS: [&str; 7] =
    [columns::KEY, columns::IMAGE, columns::CAPTION, columns::URL, columns::WIDTH, columns::HEIGHT, columns::SHA256];

/// Keys that say which tars of a folder make which shard.
const OF_FOLDERS: [&str; 3] = ["tars_per_shard", "limit", "delete_inputs"];

impl Wanted {
    pub(super) fn read(parameters: &Parameters) -> Result<Self, Diagnostic> {
        let semantics: Semantics = parameters.read()?;
        let operations: Operations = parameters.read()?;
        let wanted = match fault(&semantics, &operations).or_else(|| fault_of_input(parameters)) {
            Some(fault) => Err(fault),
            None => Self::make(semantics, operations, parameters.inputs()),
        };
        wanted.map_err(|(key, message)| parameters.fault(key, message))
    }

    fn make(mut semantics: Semantics, operations: Operations, inputs: &[String]) -> Result<Self, Fault> {
        let places = operations.tars.as_ref().map(|tars| Places::read(tars.as_slice(), &TARS)).transpose();
        let places = places.map_err(|fault| ("tars", fault))?;
        let classes = operations.classes.as_deref().map(Classes::read).transpose();
        let classes = classes.map_err(|fault| ("classes", fault))?;
        if semantics.source.is_empty() {
            let input = || inputs.first().cloned().unwrap_or_default();
            semantics.source = places.as_ref().map_or_else(input, Places::name);
        }
        Ok(Self { semantics, operations, places, classes })
    }

    pub(super) fn semantics(&self) -> Value {
        let mut semantics = serde_json::to_value(&self.semantics).unwrap_or_default();
        if let (Value::Object(semantics), Some(classes)) = (&mut semantics, &self.classes) {
            semantics.insert("classes".to_owned(), classes.digest().to_string().into());
        }
        semantics
    }
}

/// The key, and words.
type Fault = (&'static str, String);

/// What is written of folders of tars where there are none.
fn fault_of_input(parameters: &Parameters) -> Option<Fault> {
    let input = parameters.inputs().first().filter(|_| !parameters.has("tars"))?;
    let key = OF_FOLDERS.into_iter().find(|key| parameters.has(key))?;
    Some((
        key,
        format!("{key} is for a folder of tars; it reads from {input}, and makes a shard of each partition there"),
    ))
}

/// What is wrong with the values by themselves: the key, and words.
fn fault(semantics: &Semantics, operations: &Operations) -> Option<Fault> {
    let positive = [
        ("tars_per_shard", operations.tars_per_shard as u64),
        ("limit", operations.limit.map_or(1, |limit| limit as u64)),
        ("samples_per_tar", semantics.samples_per_tar.unwrap_or(1)),
        ("max_bytes", semantics.max_bytes),
        ("max_pixels", semantics.max_pixels),
    ];
    if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
        return Some((*key, format!("{key} = 0: expected 1 or more")));
    }
    let labels: &[&str] = if operations.classes.is_some() { &[CLASS, CLASS_ID] } else { &[] };
    let is_ours = |name: &&String| OURS.iter().chain(labels).any(|ours| *ours == name.as_str());
    if let Some(name) = semantics.additional_columns.keys().find(is_ours) {
        let message = format!("additional_columns: `{name}` is a column that every sample has already");
        return Some(("additional_columns", message));
    }
    if operations.delete_inputs && semantics.samples_per_tar.is_some() {
        let message = "delete_inputs would remove samples that samples_per_tar leaves out; write only one of them";
        return Some(("delete_inputs", message.to_owned()));
    }
    None
}
