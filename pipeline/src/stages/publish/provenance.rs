//! How the input came about, as far as records say: each stage with its parameters and what became of its rows. Nothing of this
//! machine is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use shards::commit::StageFolder;
use shards::digest::Digest;
use shards::sidecar::{InputDigest, Sidecar};

use crate::ledger::Ledger;
use crate::remote::without_secrets;
use crate::stage::{StageError, Task};

/// A stage that the input came through.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) stage: String,
    /// `bucket@1`
    pub(super) kind: String,
    /// Without what is of this machine.
    pub(super) parameters: Value,
    pub(super) rows_in: u64,
    pub(super) rows_out: u64,
    /// By reason, at the first try.
    pub(super) dropped: BTreeMap<String, u64>,
    /// Rows that were dropped, and came on a later try.
    pub(super) rescued: u64,
    /// How many steps before the publication, at most.
    depth: usize,
    partitions: BTreeSet<String>,
}

/// A partition that something was made from.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    partition: String,
    variant: Option<String>,
    digest: Digest,
}

/// The stages that the input of `task` came through, from the first on.
pub(super) fn trace(task: &Task) -> Result<Vec<Step>, StageError> {
    let hidden = Hidden::new(task);
    let mut steps: BTreeMap<String, Step> = BTreeMap::new();
    let mut before: BTreeMap<String, BTreeSet<Wanted>> = BTreeMap::new();
    for input in task.inputs {
        take(&mut steps, &mut before, &input.stage, &input.sidecar, 1, &hidden);
    }
    let mut depth = 1;
    while !before.is_empty() {
        depth += 1;
        task.check_cancelled()?;
        let mut further: BTreeMap<String, BTreeSet<Wanted>> = BTreeMap::new();
        for (stage, wanted) in before {
            let ledger = Ledger::read(StageFolder::new(task.folder.workdir(), &stage))?;
            let mut records: BTreeMap<&str, Vec<&Sidecar>> = BTreeMap::new();
            for record in ledger.sidecars() {
                records.entry(&record.partition).or_default().push(record);
            }
            for wanted in wanted {
                let records = records.get(wanted.partition.as_str()).into_iter().flatten();
                // Of several records of the same output the last is the one that stands.
                let record = records.filter(|record| wanted.is(record)).max_by_key(|record| record.finished_at);
                if let Some(record) = record {
                    take(&mut steps, &mut further, &stage, record, depth, &hidden);
                }
            }
        }
        before = further;
    }
    let mut steps: Vec<Step> = steps.into_values().collect();
    steps.sort_by(|a, b| b.depth.cmp(&a.depth).then_with(|| a.stage.cmp(&b.stage)));
    Ok(steps)
}

impl Wanted {
    /// `filter/part-00012` or `bucket@512/part-00012`; anything else comes from outside, or looks like it.
    fn read(input: &InputDigest) -> Option<(String, Self)> {
        let (stage, partition) = input.name.split_once('/')?;
        let (stage, variant) = stage.split_once('@').map_or((stage, None), |(stage, variant)| (stage, Some(variant)));
        let is_one = partition.starts_with("part-") && !stage.is_empty();
        let variant = variant.map(str::to_owned);
        is_one.then(|| (stage.to_owned(), Self { partition: partition.to_owned(), variant, digest: input.digest }))
    }

    fn is(&self, record: &Sidecar) -> bool {
        let digest = match &self.variant {
            Some(variant) => record.narrowed(variant).output_digest(),
            None => record.output_digest(),
        };
        digest == self.digest
    }
}

/// Adds a record to its stage's step, and what it was made from to `before`.
fn take(
    steps: &mut BTreeMap<String, Step>,
    before: &mut BTreeMap<String, BTreeSet<Wanted>>,
    stage: &str,
    record: &Sidecar,
    depth: usize,
    hidden: &Hidden,
) {
    let step = steps.entry(stage.to_owned()).or_insert_with(|| Step {
        stage: stage.to_owned(),
        kind: record.kind.clone(),
        parameters: hidden.without(&record.parameters),
        rows_in: 0,
        rows_out: 0,
        dropped: BTreeMap::new(),
        rescued: 0,
        depth,
        partitions: BTreeSet::new(),
    });
    step.depth = step.depth.max(depth);
    if step.partitions.insert(record.partition.clone()) {
        step.rows_out += record.rows_out;
        if is_another_try(&record.partition) {
            step.rescued += record.rows_out;
        } else {
            step.rows_in += record.rows_in;
            for (reason, rows) in &record.dropped {
                *step.dropped.entry(reason.clone()).or_default() += rows;
            }
        }
    }
    for (stage, wanted) in record.inputs.iter().filter_map(Wanted::read) {
        before.entry(stage).or_default().insert(wanted);
    }
}

/// `part-00012r1`: of rows that part-00012 refused.
fn is_another_try(partition: &str) -> bool {
    partition.strip_prefix("part-").is_some_and(|rest| rest.contains('r'))
}

/// What is of this machine, and nobody's business.
struct Hidden {
    /// Folders that texts may name.
    folders: Vec<String>,
}

/// Longer texts are cut.
const LONGEST: usize = 2000;

impl Hidden {
    fn new(task: &Task) -> Self {
        let workdir = task.folder.workdir();
        let here = std::env::current_dir().ok();
        let home = std::env::var_os("HOME").map(std::path::PathBuf::from);
        let absolute = std::path::absolute(workdir.path("")).ok();
        let folders = [absolute, here, home].into_iter().flatten().map(|path| path.to_string_lossy().into_owned());
        let mut folders: Vec<String> = folders.chain([workdir.location()]).collect();
        for folder in &mut folders {
            folder.truncate(folder.trim_end_matches('/').len());
        }
        // The root, and names that could be words.
        folders.retain(|folder| folder.len() > 3 && folder.contains('/'));
        folders.sort_by_key(|folder| std::cmp::Reverse(folder.len()));
        Self { folders }
    }

    /// A value without what is of this machine: paths are their last part, web addresses have no secrets.
    fn without(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.text(text).into(),
            Value::Array(values) => values.iter().map(|value| self.without(value)).collect(),
            Value::Object(values) => values.iter().map(|(key, value)| (key.clone(), self.without(value))).collect(),
            other => other.clone(),
        }
    }

    fn text(&self, text: &str) -> String {
        if text.contains("://") && !text.contains(char::is_whitespace) {
            return without_secrets(text);
        }
        if is_path(text) {
            return text.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
        }
        let text = self.folders.iter().fold(text.to_owned(), |text, folder| text.replace(folder.as_str(), "…"));
        match text.char_indices().nth(LONGEST) {
            Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
            None => text,
        }
    }
}

/// Whether a text is a path of this machine.
fn is_path(text: &str) -> bool {
    if text.contains('\n') || !text.contains(['/', '\\']) {
        return false;
    }
    let begins = ["/", "~", "./", "../", "\\\\"].iter().any(|start| text.starts_with(start));
    let has_drive = text.get(1..3) == Some(":\\");
    begins || has_drive || Path::new(text).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_this_machine_is_told() {
        let hidden = Hidden { folders: vec!["/home/me".to_owned()] };
        let told = hidden.without(&serde_json::json!({
            "files": ["/home/me/data/a.parquet", "../b/", "C:\\data\\c.csv", "~/d"],
            "server": "https://me:secret@host/v1?key=secret",
            "query": "SELECT * FROM '/home/me/x.parquet' WHERE width / 2 > 5",
            "where": "width/height < 2",
            "plain": ["and/or", "l.tsv", "text/plain"],
            "number": 5,
            "long": "é".repeat(3000),
        }));
        assert_eq!(told["files"], serde_json::json!(["a.parquet", "b", "c.csv", "d"]));
        assert_eq!(told["server"], "https://host/v1");
        assert_eq!(told["query"], "SELECT * FROM '…/x.parquet' WHERE width / 2 > 5");
        assert_eq!(told["where"], "width/height < 2");
        assert_eq!(told["plain"], serde_json::json!(["and/or", "l.tsv", "text/plain"]));
        assert_eq!(told["number"], 5);
        assert_eq!(told["long"].as_str().unwrap().chars().count(), LONGEST + 1);
    }

    #[test]
    fn names_of_inputs_are_read_and_those_from_outside_are_not() {
        let read = |name: &str| {
            let input = InputDigest { name: name.to_owned(), digest: Digest::of(b"x") };
            Wanted::read(&input).map(|(stage, wanted)| (stage, wanted.partition, wanted.variant))
        };
        let expect = |stage: &str, partition: &str, variant: Option<&str>| {
            Some((stage.to_owned(), partition.to_owned(), variant.map(str::to_owned)))
        };
        assert_eq!(read("filter/part-00012"), expect("filter", "part-00012", None));
        assert_eq!(read("bucket@512/part-00012r1"), expect("bucket", "part-00012r1", Some("512")));
        assert_eq!([read("survey/3"), read("all.csv rows 0..10"), read("part-00001")], [None, None, None]);
        assert!(is_another_try("part-00012r1") && !is_another_try("part-00012"));
    }
}
