//! What a manifest says of a recaption stage.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use pipeline::manifest::{Diagnostic, OneOrMore, Parameters as Table};
use recaption::checks::Kind;
use recaption::job::StepSettings;
use recaption::ready::{ReadyColumns, ReadyError, ReadyIndex};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shards::columns;
use shards::digest::{Digest, DigestBuilder};

#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(super) struct Parameters {
    /// The column of the alt text [caption].
    #[serde(default = "default_alt")]
    alt: String,
    /// The long caption, from image and alt text. Without it the short one is made from the column recaption, or else from the alt
    /// text.
    #[serde(default)]
    long: Option<StepSettings>,
    /// The short caption, from the long one.
    #[serde(default)]
    short: Option<StepSettings>,
    /// Captions that others have made: they are taken where they are there and pass the checks.
    #[serde(default)]
    ready: Option<ReadyTable>,
    /// Where models, prompts and counts are written down [sidecar].
    #[serde(default)]
    provenance: Provenance,
    /// What becomes of a caption that names no model and that nobody has made: refuse (the manifest, or where there are ready
    /// captions the row), or pass_on, by which the alt text, or the long caption's first sentence, takes its place [refuse].
    #[serde(default)]
    without_model: WithoutModel,
}

/// Lists of captions.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
struct ReadyTable {
    /// JSON lines, plain or gzipped: a file, or several.
    files: OneOrMore,
    /// The names of their columns.
    #[serde(default)]
    columns: ReadyColumns,
}

fn default_alt() -> String {
    columns::CAPTION.to_owned()
}

/// A stage's parameters, without faults.
pub(crate) struct Recaption {
    pub(super) alt: String,
    pub(crate) long: Option<StepSettings>,
    pub(crate) short: Option<StepSettings>,
    pub(super) ready: Option<ReadyLists>,
    pub(super) provenance: Provenance,
    pub(super) without_model: WithoutModel,
}

/// Lists of captions that were there when the manifest was read.
pub(crate) struct ReadyLists {
    files: Vec<PathBuf>,
    columns: ReadyColumns,
    digest: Digest,
    /// Read when they are first needed.
    index: Mutex<Option<Arc<ReadyIndex>>>,
}

impl Recaption {
    pub(super) fn read(table: &Table) -> Result<Self, Diagnostic> {
        let Parameters { alt, mut long, mut short, ready, provenance, without_model } = table.read()?;
        let ready = ready.map(ReadyLists::read).transpose().map_err(|fault| table.fault("ready", fault))?;
        if long.is_none() && short.is_none() {
            if ready.is_none() {
                let message = "nothing says which captions are wanted: write a table `long`, `short`, or both";
                return Err(table.fault("", message));
            }
            (long, short) = (Some(StepSettings::default()), Some(StepSettings::default()));
        }
        for (key, step, kind) in [("long", &long, Kind::Long), ("short", &short, Kind::Short)] {
            let Some(step) = step else { continue };
            step.check(kind).map_err(|error| table.fault(key, format!("{key}.{error}")))?;
            if !step.has_model() && ready.is_none() && without_model == WithoutModel::Refuse {
                return Err(table.fault(
                    key,
                    format!("{key} names no model: write {key}.server = {{ endpoints = […], model = \"…\" }}, or {key}.model = {{ folder = \"…\" }}"),
                ));
            }
        }
        Ok(Self { alt, long, short, ready, provenance, without_model })
    }

    pub(super) fn semantics(&self) -> Value {
        let step = |step: &Option<StepSettings>, kind| step.as_ref().map(|step| step.semantics(kind));
        // Where all captions have a model, it says nothing.
        let lacks_one = self.long.iter().chain(&self.short).any(|step| !step.has_model());
        json!({
            "without_model": lacks_one.then_some(self.without_model),
            "alt": self.alt,
            "long": step(&self.long, Kind::Long),
            "short": step(&self.short, Kind::Short),
            "ready": self.ready.as_ref().map(|ready| json!({ "digest": ready.digest.to_string(), "columns": ready.columns })),
            "provenance": self.provenance,
        })
    }
}

impl ReadyLists {
    fn read(ReadyTable { files, columns }: ReadyTable) -> Result<Self, String> {
        let mut digest = DigestBuilder::new();
        for file in files.as_slice() {
            let of_file =
                Digest::of_file(Path::new(file)).map_err(|error| format!("ready.files: {file}: {}", causes(&error)))?;
            digest.add(of_file.to_string());
        }
        let files = files.as_slice().iter().map(PathBuf::from).collect();
        Ok(Self { files, columns, digest: digest.finish(), index: Mutex::default() })
    }

    /// Their captions by key, for all partitions; `folder` is where they are kept meanwhile.
    pub(super) fn index(&self, folder: &Path) -> Result<Arc<ReadyIndex>, ReadyError> {
        let mut kept = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = kept.as_ref() {
            return Ok(Arc::clone(index));
        }
        let new = Arc::new(ReadyIndex::read(&self.files, &self.columns, folder)?);
        Ok(Arc::clone(kept.insert(new)))
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What becomes of a caption that names no model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum WithoutModel {
    /// There is to be none.
    #[default]
    Refuse,
    /// What is there already is the caption.
    PassOn,
}

/// Where the prompts, models and counts of captions are written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Provenance {
    /// In the record of each partition.
    #[default]
    Sidecar,
    /// Also as columns of each row: caption_model, caption_prompt_digest, caption_attempts, caption_flags, prompt_tokens and
    /// completion_tokens.
    Columns,
}
