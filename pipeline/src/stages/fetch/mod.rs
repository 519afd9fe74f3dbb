//! `fetch`: files from the Hugging Face Hub, from URLs or an object store, as they are.
//!
//! - in: files elsewhere; each becomes a partition
//! - out: the same bytes (with `unpack`, what is packed in them). No shards: `import`, `extract` and `index` read them, by the
//!   names that they had
//! - stale when: a file's content changed, by what its place says of it (a digest on the Hub, an ETag elsewhere)
//! - law: files read
//!
//! Each plan asks the place what it holds; where it cannot be reached, it is taken to hold what it did. A branch of the Hub is
//! followed: it means one commit for a whole run, and files that a newer commit did not change stay. What came is held to the
//! digest that the Hub lists. A transfer that breaks off, or whose process ends, goes on where it was; a file that came whole
//! waits for its place and does not come again, unless it proves damaged and its place lists no digest that it could be held to.

mod listing;
mod transfer;
mod unpack;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shards::ShardError;
use shards::commit::StageFolder;
use shards::digest::Digest;
use shards::sidecar::Sidecar;

use self::listing::{Listed, Listing};
pub use self::transfer::fetch_into;
use self::transfer::{Partial, Progress, Transfer};
use self::unpack::UnpackError;
use crate::ledger::Ledger;
use crate::manifest::{Diagnostic, OneOrMore, Parameters};
use crate::remote::{self, Access, Location, without_secrets};
use crate::stage::{
    FILES, Facts, Law, Load, NAMES, NOT_SHARDS, Outcome, Partitioning, Source, Stage, StageError, StageKind, Task,
};

/// What determines the result, beside the files themselves.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Semantics {
    /// Keep what is in archives in their place: of .gz and .zst the content, of .tar (also .tar.gz, .tgz, .tar.zst) the files.
    /// Tars of samples are better left whole, for `extract` [false].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unpack: bool,
}

/// Which files, and how they are brought.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
struct Operations {
    /// Where the files are: hf://datasets/OWNER/NAME, hf://datasets/OWNER/NAME@REVISION/FOLDER, hf://OWNER/NAME of a model,
    /// https://…, s3://BUCKET/FOLDER; or several.
    url: OneOrMore,
    /// Only files whose path matches one of these, such as "data/*.parquet"; a star stands for any letters, slashes too [all].
    #[serde(default)]
    include: Option<OneOrMore>,
    /// Not files whose path matches one of these [none].
    #[serde(default)]
    exclude: Option<OneOrMore>,
    /// Only the first so many files, by their paths [all].
    #[serde(default)]
    limit: Option<usize>,
    /// Files that are brought at a time [4].
    #[serde(default = "default_in_flight")]
    in_flight: usize,
    /// Failures in a row, without a byte gained, after which a file is given up; waits between them grow to 16 seconds [12].
    #[serde(default = "default_tries")]
    tries: u32,
}

fn default_in_flight() -> usize {
    4
}
/// A hub that is away for a minute is waited for.
fn default_tries() -> u32 {
    12
}

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "fetch",
        version: 1,
        about: "Brings files from the Hugging Face Hub, from URLs or an object store.",
        inputs: (0, 0),
        schemas: || vec![schema_for!(Semantics), schema_for!(Operations)],
        // Two, so that what runs beside each other later does so now.
        rehearse: |_, _| vec![("limit", 2.into())],
        build: |parameters| Ok(Box::new(build(parameters)?)),
    }
}

fn build(parameters: &Parameters) -> Result<Fetch, Diagnostic> {
    let (semantics, operations): (Semantics, Operations) = (parameters.read()?, parameters.read()?);
    let mut locations = Vec::new();
    for written in operations.url.as_slice() {
        let shown = without_secrets(written);
        match Location::parse(written) {
            Location::Invalid(reason) => {
                return Err(parameters.fault("url", format!("url: {shown} is no place of files: {reason}")));
            }
            Location::Local(_) => {
                let message = format!("url: {shown} is a path of this machine; what is here needs no fetching");
                return Err(parameters.fault("url", message));
            }
            location => locations.push((shown, location)),
        }
    }
    if locations.is_empty() {
        return Err(parameters.fault("url", "url is an empty list"));
    }
    let positive = [
        ("limit", operations.limit.unwrap_or(1)),
        ("in_flight", operations.in_flight),
        ("tries", operations.tries as usize),
    ];
    if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
        return Err(parameters.fault(key, format!("{key} = 0: expected 1 or more")));
    }
    let listing = Listing::new(locations, operations.include.as_ref(), operations.exclude.as_ref(), operations.limit);
    let progress = Progress::default();
    Ok(Fetch {
        semantics,
        operations,
        listing,
        access: Access::from_environment(),
        planned: Mutex::default(),
        progress,
    })
}

struct Fetch {
    semantics: Semantics,
    operations: Operations,
    listing: Listing,
    access: Access,
    /// As of the last plan.
    planned: Mutex<Option<Arc<Planned>>>,
    progress: Progress,
}

/// In a record's details: the place that its file is from, as it may be shown.
const SOURCE: &str = "source";

/// The files that a plan found, and those that are here already.
struct Planned {
    files: Vec<Listed>,
    /// By the digest of their source: what earlier plans brought, maybe as partitions of other numbers.
    here: HashMap<Digest, Sidecar>,
}

impl Stage for Fetch {
    fn semantics(&self) -> Value {
        serde_json::to_value(&self.semantics).unwrap_or_default()
    }

    fn partitioning(&self) -> Partitioning {
        Partitioning::Source
    }

    fn law(&self) -> Law {
        Law::Reads
    }

    fn facts(&self) -> Facts {
        [(NOT_SHARDS.to_owned(), FILES.into())].into()
    }

    fn load(&self) -> Load {
        Load::Network(self.operations.in_flight)
    }

    fn sources_after(&self, ledger: &Ledger) -> Result<Vec<Source>, StageError> {
        let files = self.listing.files(ledger.folder(), &self.access)?;
        let source = |file: &Listed| Source { name: file.name_and_version(), digest: file.digest(), rows: 1 };
        let sources = files.iter().map(source).collect();
        let mut here = HashMap::new();
        let is_of_these_settings = |sidecar: &&Sidecar| *sidecar.parameters == self.semantics();
        for sidecar in ledger.sidecars().filter(is_of_these_settings) {
            if let [input] = sidecar.inputs.as_slice() {
                here.insert(input.digest, sidecar.clone());
            }
        }
        *self.planned.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(Planned { files, here }));
        Ok(sources)
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let file = planned.as_ref().and_then(|planned| planned.files.get(task.number));
        let Some((planned, file)) = planned.as_ref().zip(file) else {
            return Err(StageError::NotPlanned { partition: task.partition.to_owned() });
        };
        // Its own, asked for again, is brought again.
        let others = planned.here.get(&file.digest()).filter(|sidecar| sidecar.partition != task.partition);
        let others = others.filter(|sidecar| file.may_be_from(sidecar.details.get(SOURCE).and_then(Value::as_str)));
        let is_here = others.map(|sidecar| take_over(sidecar, task));
        let (data, names) = match is_here.transpose()?.flatten() {
            Some(taken) => taken,
            None => self.bring(file, task)?,
        };
        task.tally.good(1);
        self.progress.tell(task);
        let rows_out = data.iter().map(|file| file.rows).sum();
        let details = [(NAMES.to_owned(), json!(names)), (SOURCE.to_owned(), file.place().into())].into();
        Ok(Outcome { data, rows_in: 1, rows_out, details, ..Outcome::default() })
    }
}

/// Files of a partition, with the names that they had.
type Brought = (Vec<shards::sidecar::DataFile>, Vec<String>);

impl Fetch {
    fn bring(&self, file: &Listed, task: &Task) -> Result<Brought, StageError> {
        let transfer = Transfer { access: &self.access, tries: self.operations.tries, progress: &self.progress, task };
        let partial = transfer.bring(file)?;
        let placed = self.place(&partial, file.name(), task);
        // Where the place lists its digest, a damaged file is just what the place has; else it may come whole another time.
        if placed.as_ref().err().is_none_or(|error| is_damage(error) && !remote::is_digested(&file.entry)) {
            partial.remove();
        }
        placed
    }

    /// Makes a file that came what the partition consists of.
    fn place(&self, partial: &Partial, name: &str, task: &Task) -> Result<Brought, StageError> {
        if self.semantics.unpack
            && let Some(unpacked) = unpack::unpack(partial, name, task)?
        {
            return Ok(unpacked);
        }
        let adopted = shards::data_file::adopt(partial.path(), &task.attempt.with_ending(0, &ending(name)))?;
        Ok((vec![adopted], vec![name.to_owned()]))
    }
}

/// Whether it says that a file that came, or what is packed in it, cannot be read as what its name says.
fn is_damage(error: &StageError) -> bool {
    match error {
        StageError::Shard(ShardError::Parquet { .. } | ShardError::Io { action: "read", .. }) => true,
        StageError::Failed(error) => matches!(error.downcast_ref(), Some(UnpackError::Damaged { .. })),
        _ => false,
    }
}

/// Takes over what an earlier plan brought as another partition: a file that came in between gave all behind it another
/// number. `None` where it is not there any more.
fn take_over(sidecar: &Sidecar, task: &Task) -> Result<Option<Brought>, StageError> {
    let names = sidecar.details.get(NAMES).and_then(Value::as_array).into_iter().flatten();
    let names: Vec<String> = names.filter_map(|name| Some(name.as_str()?.to_owned())).collect();
    let mut data = Vec::new();
    for (number, (file, name)) in sidecar.data.iter().zip(&names).enumerate() {
        let Ok(from) = task.folder.fetch(file) else { return Ok(None) };
        if !from.exists() {
            return Ok(None);
        }
        data.push(shards::data_file::link(&from, file, &task.attempt.with_ending(number, &ending(name)))?);
    }
    Ok(Some((data, names)))
}

/// The ending of the file here, by the name that it had: parquet is read as such, and records end in .json.
fn ending(name: &str) -> String {
    let file = name.rsplit('/').next().unwrap_or(name);
    let ending = file.split_once('.').map_or("", |(_, ending)| ending).to_ascii_lowercase();
    if ending.ends_with("parquet") {
        return "parquet".to_owned();
    }
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '.';
    let is_fit = !ending.is_empty() && ending.len() <= 16 && ending.chars().all(is_plain);
    if is_fit && !ending.ends_with("json") { ending } else { "data".to_owned() }
}

/// Where parts of files wait for the rest, in the stage's folder on this machine.
fn partial_folder(folder: &StageFolder) -> std::path::PathBuf {
    folder.path().join("partial")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_never_those_of_records() {
        for (name, expected) in [
            ("data/train-00000-of-00010.parquet", "parquet"),
            ("a.snappy.parquet", "parquet"),
            ("train.jsonl.gz", "jsonl.gz"),
            ("config.json", "data"),
            ("README", "data"),
            ("x.Y Z", "data"),
            ("0001.TAR", "tar"),
        ] {
            assert_eq!(ending(name), expected, "{name}");
        }
    }
}
