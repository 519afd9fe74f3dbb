//! `publish`: the result as a dataset of the Hugging Face Hub, or in a bucket.
//!
//! - in: shards; of a stage with several resolutions one of them, or several, each of which is then a configuration of its own
//! - out: no data. There: `data/train-00000-of-00042.parquet` and so on, the shards byte for byte, and a card, README.md, by which
//!   Python's `datasets` and the Hub show the pictures. The record says which commit it came to
//! - stale when: where to, anything that the card says, or the input changed
//! - law: rows read
//!
//! Nothing of our own says how far it is: what is there already, by its digest, is not sent again, whichever of these names it has
//! there. So a publication that was interrupted goes on, and one that is repeated does nothing. Files of an earlier publication that
//! are no longer part of it go with the last commit; nothing else there is touched.

mod card;
mod digests;
mod files;
mod hub;
mod progress;
mod provenance;
mod store;

use std::collections::BTreeMap;

use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shards::ShardError;
use shards::event::Event;
use shards::sidecar::{Section, Sidecar};

use super::dataset_card;
use crate::manifest::{Diagnostic, Parameters};
pub use crate::remote::Access;
use crate::remote::{Location, Repository, RepositoryKind, without_secrets};
use crate::stage::{
    Facts, Law, Load, NOT_SHARDS, Outcome, PUBLISHED, Partitioning, Stage, StageError, StageKind, Task,
};
use files::PublishedFile;
use progress::Progress;

/// In the details: whether nothing was sent.
const DRY_RUN: &str = "dry_run";
/// Names of files in the details of a dry run, at most.
const LISTED: usize = 1000;

/// What the card says, and where it goes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Semantics {
    /// Where to: hf://datasets/OWNER/NAME, hf://datasets/OWNER/NAME@BRANCH, or s3://BUCKET/PREFIX.
    to: String,
    /// The license, as the Hub abbreviates it: "cc-by-4.0", "apache-2.0", "other" [the card names none].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    license: Option<String>,
    /// What an "other" license is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    license_name: Option<String>,
    /// Where an "other" license can be read: a URL, or a file of the dataset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    license_link: Option<String>,
    /// Heads the card [the dataset's name].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    /// Follows the title, as Markdown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
    /// By which the Hub finds it, beside "ferrotype" [none].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    /// What it is for, in the Hub's words [text-to-image].
    #[serde(default = "default_tasks")]
    task_categories: Vec<String>,
    /// Where the images and captions are from, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sources: Vec<String>,
}

fn default_tasks() -> Vec<String> {
    vec!["text-to-image".to_owned()]
}

/// How it is sent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
struct Operations {
    /// Makes the dataset, and the branch, where there is none [true].
    #[serde(default = "yes")]
    create: bool,
    /// Whether a dataset that is made can be seen by its owners only; of one that is there, nothing changes [true].
    #[serde(default = "yes")]
    private: bool,
    /// Files on their way at a time [4].
    #[serde(default = "default_uploads")]
    uploads: usize,
    /// Files in one commit [50].
    #[serde(default = "default_files")]
    files_per_commit: usize,
    /// What the commits say [what is published, and how far it is].
    #[serde(default)]
    message: Option<String>,
    /// Times that a request is tried again, after the network or the other side failed; waits grow to half a minute [15].
    #[serde(default = "default_retries")]
    retries: u32,
    /// Makes the card (README.md in the stage's folder) and lists what would be sent, and sends nothing [false].
    #[serde(default)]
    dry_run: bool,
}

fn yes() -> bool {
    true
}
fn default_uploads() -> usize {
    4
}
fn default_files() -> usize {
    50
}
fn default_retries() -> u32 {
    15
}

/// Where it goes, understood.
enum Target {
    Hub(Repository),
    Store { bucket: String, path: String },
}

struct Publish {
    semantics: Semantics,
    operations: Operations,
    target: Target,
    access: Access,
}

/// Why something is not published, beside what the other side says.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("its input holds no shards: publish reads from a stage whose output is samples")]
    NoShards,
    #[error("its input has no rows; nothing is published, and nothing that is there was touched")]
    NoRows,
    #[error("{other} has the columns {found}, and {first} has {expected}: one dataset has one set of columns")]
    OtherColumns { first: String, expected: String, other: String, found: String },
    #[error("there is no dataset {0} that the token in HF_TOKEN may see; write create = true to have it made")]
    NoRepository(String),
    #[error("the dataset {repository} has no branch {branch}; write create = true to have it made, or another branch")]
    NoBranch { repository: String, branch: String },
    #[error("the dataset {repository} was made, and is not there; try again in a while")]
    NotMade { repository: String },
    #[error("the dataset's .gitignore leaves out {path}; take that out of it")]
    Ignored { path: String },
    #[error(
        "the dataset wants {path} in the commit itself, and it is too large for that ({bytes} bytes); its .gitattributes must \
         have the line `*.parquet filter=lfs diff=lfs merge=lfs -text`"
    )]
    NotLarge { path: String, bytes: u64 },
    #[error(
        "others have committed to {shown} {times} times while this commit was made; publish when they are done, and what is \
         there will not be sent again"
    )]
    Outrun { shown: String, times: usize },
    #[error("a thread that reads {0} has ended early")]
    Thread(String),
}

impl From<PublishError> for StageError {
    fn from(error: PublishError) -> Self {
        Self::failed(error)
    }
}

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "publish",
        version: 1,
        about: "Publishes shards as a dataset of the Hugging Face Hub, or in a bucket.",
        inputs: (1, 16),
        schemas: || vec![schema_for!(Semantics), schema_for!(Operations)],
        rehearse: |_, _| vec![(DRY_RUN, true.into())],
        build: |parameters| build(parameters, Access::from_environment()),
    }
}

/// A stage that reaches places elsewhere by `access`.
pub fn build(parameters: &Parameters, access: Access) -> Result<Box<dyn Stage>, Diagnostic> {
    let semantics: Semantics = parameters.read()?;
    let operations: Operations = parameters.read()?;
    let target = target(&semantics.to)
        .map_err(|reason| parameters.fault("to", format!("to = {}: {reason}", without_secrets(&semantics.to))))?;
    if let Some((key, reason)) = odd(&semantics, &operations) {
        return Err(parameters.fault(key, reason));
    }
    Ok(Box::new(Publish { semantics, operations, target, access }))
}

fn target(to: &str) -> Result<Target, &'static str> {
    match Location::parse(to) {
        Location::Hub { repository, .. } if repository.kind == RepositoryKind::Model => {
            Err("that is a model; write hf://datasets/OWNER/NAME")
        }
        Location::Hub { path, .. } if !path.is_empty() => {
            Err("a dataset is a whole repository; write hf://datasets/OWNER/NAME")
        }
        Location::Hub { repository, .. }
            if repository.is_pinned() || repository.revision.starts_with("refs/convert/") =>
        {
            Err("that is no branch; write hf://datasets/OWNER/NAME, or hf://datasets/OWNER/NAME@BRANCH")
        }
        Location::Hub { repository, .. } => Ok(Target::Hub(repository)),
        Location::Store { path, .. } if path.is_empty() => {
            Err("a publication has a folder of its own; write s3://BUCKET/PREFIX")
        }
        Location::Store { bucket, path } => Ok(Target::Store { bucket, path }),
        Location::Invalid(reason) if to.starts_with("s3://") => Err(reason),
        _ => Err("write hf://datasets/OWNER/NAME, hf://datasets/OWNER/NAME@BRANCH, or s3://BUCKET/PREFIX"),
    }
}

/// The first key that is not as it must be, and why.
fn odd(semantics: &Semantics, operations: &Operations) -> Option<(&'static str, String)> {
    let is_word = |text: &str| {
        let is_of_it = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-.".contains(letter);
        !text.is_empty() && text.chars().all(is_of_it)
    };
    let Semantics { license, license_name, license_link, title, tags, task_categories, .. } = semantics;
    if let Some(license) = license.as_ref().filter(|license| !is_word(license)) {
        return Some((
            "license",
            format!("license = {license:?}: expected the Hub's word for it, such as \"cc-by-4.0\" or \"other\""),
        ));
    }
    if (license_name.is_some() || license_link.is_some()) && license.as_deref() != Some("other") {
        let key = if license_name.is_some() { "license_name" } else { "license_link" };
        return Some((key, format!("{key} is for license = \"other\"")));
    }
    if title.as_ref().is_some_and(|title| title.trim().is_empty() || title.contains('\n')) {
        return Some(("title", "title: expected one line".to_owned()));
    }
    if let Some(task) = task_categories.iter().find(|task| !is_word(task)) {
        return Some((
            "task_categories",
            format!("task_categories holds {task:?}: expected words such as \"text-to-image\""),
        ));
    }
    if tags.iter().any(|tag| tag.trim().is_empty() || tag.contains('\n')) {
        return Some(("tags", "tags holds one that is empty, or of several lines".to_owned()));
    }
    if !(1..=64).contains(&operations.uploads) {
        return Some(("uploads", format!("uploads = {}: expected 1 to 64", operations.uploads)));
    }
    if !(1..=1000).contains(&operations.files_per_commit) {
        return Some((
            "files_per_commit",
            format!("files_per_commit = {}: expected 1 to 1000", operations.files_per_commit),
        ));
    }
    None
}

impl Publish {
    /// Where it goes, as it may be shown.
    fn shown(&self) -> String {
        match &self.target {
            Target::Hub(Repository { name, revision, .. }) if revision == "main" => format!("hf://datasets/{name}"),
            Target::Hub(Repository { name, revision, .. }) => format!("hf://datasets/{name}@{revision}"),
            Target::Store { bucket, path } => format!("s3://{bucket}/{path}"),
        }
    }

    fn title(&self) -> &str {
        let place = match &self.target {
            Target::Hub(repository) => &repository.name,
            Target::Store { path, .. } => path,
        };
        self.semantics.title.as_deref().unwrap_or_else(|| place.rsplit('/').next().unwrap_or(place))
    }
}

impl Stage for Publish {
    fn semantics(&self) -> Value {
        let mut semantics = serde_json::to_value(&self.semantics).unwrap_or_default();
        // A dry run is not what a publication is.
        if self.operations.dry_run
            && let Some(keys) = semantics.as_object_mut()
        {
            keys.insert(DRY_RUN.to_owned(), true.into());
        }
        semantics
    }

    fn partitioning(&self) -> Partitioning {
        Partitioning::Whole
    }

    fn law(&self) -> Law {
        Law::Reads
    }

    fn facts(&self) -> Facts {
        [(NOT_SHARDS.to_owned(), PUBLISHED.into())].into()
    }

    fn load(&self) -> Load {
        Load::Network(1)
    }

    fn obstacle(&self) -> Option<String> {
        let lacks_token =
            matches!(self.target, Target::Hub(_)) && self.access.token.is_none() && !self.operations.dry_run;
        lacks_token.then(|| {
            "publishing to the Hub needs a token, and there is none; set HF_TOKEN, or write HF_TOKEN=… in a file .env here \
             (https://huggingface.co/settings/tokens makes one that may write)"
                .to_owned()
        })
    }

    fn accepts(&self, earlier: &Sidecar) -> bool {
        let now = self.semantics();
        let is_same = |key: &str| earlier.parameters.get(key) == now.get(key);
        is_same("to") && is_same(DRY_RUN)
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let configurations = files::configurations(task)?;
        let card = card::write(self, &configurations, &provenance::trace(task)?);
        dataset_card::replace(task.folder, &card)?;
        if configurations.iter().any(|configuration| dataset_card::features(&configuration.schema).is_none()) {
            let text = "a column is of a type that Hugging Face has no name for, so the card does not say that images are pictures: \
                        readers write dataset.cast_column(\"image\", datasets.Image())";
            task.events.send(Event::Note { stage: task.stage.to_owned(), text: text.to_owned() });
        }
        let files: Vec<&PublishedFile> = configurations.iter().flat_map(|configuration| &configuration.files).collect();
        let (rows, bytes) =
            (files.iter().map(|file| file.rows).sum(), files.iter().map(|file| file.bytes).sum::<u64>());
        let mut details = BTreeMap::from([
            ("to".to_owned(), Value::from(self.shown())),
            ("files".to_owned(), files.len().into()),
            ("bytes".to_owned(), bytes.into()),
        ]);
        if self.operations.dry_run {
            let listed = files.iter().take(LISTED).map(|file| json!({ "file": file.name, "bytes": file.bytes }));
            details.insert(DRY_RUN.to_owned(), true.into());
            details.insert("would_publish".to_owned(), listed.collect::<Vec<_>>().into());
            task.tally.good(rows);
            let text = format!(
                "a dry run: {} files ({}) would go to {}, and nothing was sent",
                files.len(),
                card::size_in_words(bytes),
                self.shown()
            );
            task.events.send(Event::Note { stage: task.stage.to_owned(), text });
        } else {
            let progress = Progress::new(task, files.len());
            details.extend(match &self.target {
                Target::Hub(repository) => hub::publish(self, repository, &files, &card, task, &progress)?,
                Target::Store { bucket, path } => store::publish(self, (bucket, path), &files, &card, task, &progress)?,
            });
        }
        let sections = vec![self.section(&details)];
        details.insert("card".to_owned(), card.into());
        Ok(Outcome { rows_in: rows, rows_out: rows, sections, details, ..Outcome::default() })
    }
}

impl Publish {
    /// What the report shows.
    fn section(&self, details: &BTreeMap<String, Value>) -> Section {
        let shown = |key: &str| {
            let value = details.get(key)?;
            Some(vec![key.replace('_', " "), value.as_str().map_or_else(|| value.to_string(), str::to_owned)])
        };
        let places = ["to", "url", "commit"];
        let counts = ["files", "bytes", "files_sent", "bytes_sent", "files_copied", "files_removed", DRY_RUN];
        let rows = places.into_iter().chain(counts).filter_map(shown).collect();
        let header = vec![self.title().to_owned(), String::new()];
        Section::Table { title: "Published".to_owned(), header, rows }
    }
}

/// For errors of files that are read ahead of sending.
fn unreadable(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> StageError {
    let failed = ShardError::io("read", path);
    move |error| failed(error).into()
}
