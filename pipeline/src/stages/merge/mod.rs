//! `merge`: columns of a table, such as captions, for the samples whose key it names.
//!
//! - in: shards of samples; and shards without images, the table
//! - out: the samples with the table's columns, in their order and their partitions
//! - stale when: a parameter or its own input changed, or what the table says of its rows
//! - law: in = matched + unmatched; with `unmatched = "drop"` the latter are refused (`unmatched`)
//!
//! A survey joins keys with keys and then orders the table's columns as the samples lie ([`join`]; with a cluster, [`distributed`]);
//! each partition attaches its own.
//! No image enters the join. Both keep to the stage's `memory` (1 GB unless the manifest says otherwise) and spill the rest to
//! the folder for temporary files (`TMPDIR`). A sample has at most one row of the table: a key that is there twice is an error. Several
//! samples may have the same row (names of classes).

mod attach;
mod distributed;
mod files;
mod join;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::columns;
use shards::event::Event;
use shards::reader::Shard;

use crate::manifest::{Diagnostic, Parameters};
use crate::stage::{Input, Law, MATCHED, Outcome, Partitioning, Stage, StageError, StageKind, Task, as_it_is};

/// Bytes of memory for the join where the manifest does not say.
const MEMORY: u64 = 1_000_000_000;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Merge {
    /// The samples' column, and the table's, whose values are compared as text: { id = "key" } [{ key = "key" }].
    #[serde(default = "keys")]
    on: BTreeMap<String, String>,
    /// Columns of the table to take: a list, or { recaption = "caption_llava" } with other names for them [all but its key].
    #[serde(default)]
    columns: Wanted,
    /// Columns of the samples that take the place of what is missing: { recaption = "caption" } [none].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    fallback: BTreeMap<String, String>,
    /// Texts of the table that count as missing, as does an empty one: what a model left where it failed [none].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    treat_as_missing: Vec<String>,
    /// What becomes of samples that the table does not name [keep].
    #[serde(default)]
    unmatched: Unmatched,
    /// Let the table's columns take the place of those that samples have already [false].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    replace: bool,
}

fn keys() -> BTreeMap<String, String> {
    [(columns::KEY.to_owned(), columns::KEY.to_owned())].into()
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a list of columns, or a table { NEW_NAME = \"COLUMN\" }")]
enum Wanted {
    #[default]
    All,
    Listed(Vec<String>),
    Renamed(BTreeMap<String, String>),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Unmatched {
    /// They stay, with fallbacks or empty columns.
    #[default]
    Keep,
    /// They are refused.
    Drop,
    /// The first ends the run.
    Fail,
}

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "merge",
        version: 1,
        about: "Joins columns of a table, such as captions, to samples by key.",
        inputs: (2, 2),
        schemas: || vec![schema_for!(Merge)],
        rehearse: as_it_is,
        build: |parameters| build(parameters).map(|merge| Box::new(merge) as Box<dyn Stage>),
    }
}

fn build(parameters: &Parameters) -> Result<Merge, Diagnostic> {
    let merge: Merge = parameters.read()?;
    if merge.on.len() != 1 {
        let message = format!("on has {} pairs of columns: write one, such as {{ id = \"key\" }}", merge.on.len());
        return Err(parameters.fault("on", message));
    }
    if let Some(names) = merge.names() {
        if names.is_empty() {
            return Err(parameters.fault("columns", "columns is empty: there would be nothing to merge"));
        }
        if let Some((name, _)) = names.iter().find(|(name, _)| NEVER.contains(&name.as_str())) {
            return Err(parameters.fault("columns", format!("columns: {name} cannot come from a table")));
        }
        if let Some(name) = merge.fallback.keys().find(|name| !names.iter().any(|(known, _)| known == *name)) {
            let message = format!("fallback: {name} is none of the columns that are merged");
            return Err(parameters.fault("fallback", message));
        }
    }
    Ok(merge)
}

/// What makes a row the sample that it is.
const NEVER: [&str; 3] = [columns::KEY, columns::IMAGE, columns::CHECKSUM];

/// A column of the table, and its name among the samples'.
#[derive(Clone, Debug)]
struct Taken {
    name: String,
    of_table: String,
    kind: DataType,
}

/// What is joined, once the shards are known.
struct Joined {
    /// The samples' column, and the table's.
    on: [String; 2],
    kinds: [DataType; 2],
    taken: Vec<Taken>,
}

impl Merge {
    fn names(&self) -> Option<Vec<(String, String)>> {
        match &self.columns {
            Wanted::All => None,
            Wanted::Listed(names) => Some(names.iter().map(|name| (name.clone(), name.clone())).collect()),
            Wanted::Renamed(names) => Some(names.iter().map(|(name, of)| (name.clone(), of.clone())).collect()),
        }
    }

    /// Holds the parameters to the columns that there are.
    fn resolve(&self, samples: &[Input], table: &[Input]) -> Result<Joined, StageError> {
        let (samples, table) = (schema_of(samples, "samples")?, schema_of(table, "table")?);
        let on = self.on.iter().next().map(|(a, b)| [a.clone(), b.clone()]).unwrap_or_default();
        let key = |side: &Side, name: &str| -> Result<DataType, StageError> {
            let kind = side.kind(name)?;
            match kind {
                DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Ok(kind),
                _ if kind.is_integer() => Ok(kind),
                kind => Err(MergeError::Key { side: side.what, column: name.to_owned(), kind }.into()),
            }
        };
        let kinds = [key(&samples, &on[0])?, key(&table, &on[1])?];
        let names = self.names().unwrap_or_else(|| {
            let fields = table.schema.fields().iter().map(|field| field.name().clone());
            // The key of a table's row is no property of the sample.
            let left_out = |name: &String| *name == on[1] || NEVER.contains(&name.as_str());
            fields.filter(|name| !left_out(name)).map(|name| (name.clone(), name)).collect()
        });
        let taken = names.into_iter().map(|(name, of_table)| -> Result<Taken, StageError> {
            let kind = table.kind(&of_table)?;
            if samples.schema.index_of(&name).is_ok() && !self.replace {
                return Err(MergeError::Exists { column: name }.into());
            }
            if let Some(fallback) = self.fallback.get(&name) {
                let own = samples.kind(fallback)?;
                if own != kind {
                    return Err(MergeError::Fallback { column: name, kind, fallback: fallback.clone(), own }.into());
                }
            }
            Ok(Taken { name, of_table, kind })
        });
        let taken = taken.collect::<Result<Vec<_>, _>>()?;
        if taken.is_empty() {
            return Err(MergeError::Nothing.into());
        }
        Ok(Joined { on, kinds, taken })
    }
}

impl Joined {
    /// A key of each side, for people who wonder why the table names no sample; `None` where one side has none.
    fn strangers(&self, samples: &[Input], table: &[Input]) -> Result<Option<String>, StageError> {
        let [of_samples, of_table] = &self.on;
        let (Some(sample), Some(row)) = (first_key(samples, of_samples)?, first_key(table, of_table)?) else {
            return Ok(None);
        };
        Ok(Some(format!(
            "the table names none of the samples: their first {of_samples} is {sample}, and its first {of_table} is {row}. Keys begin with the \
             `source` of the stage that made them, which has to be the same on both sides; to compare other columns, write \
             on = {{ SAMPLES_COLUMN = \"TABLES_COLUMN\" }}"
        )))
    }
}

/// The first value of a column of some inputs, as it is compared.
fn first_key(inputs: &[Input], column: &str) -> Result<Option<String>, StageError> {
    for file in inputs.iter().filter(|input| input.sidecar.rows_out > 0).flat_map(Input::files) {
        for batch in Shard::open(&file)?.batches(Some(&[column]), 64)? {
            let values = cast(batch?.column(0), &DataType::Utf8).map_err(StageError::failed)?;
            let first = values.as_string_opt::<i32>().and_then(|values| values.iter().flatten().next());
            if let Some(first) = first {
                return Ok(Some(first.to_owned()));
            }
        }
    }
    Ok(None)
}

/// The schema of an input's first shard with rows, which the others are like, since one stage made them.
fn schema_of(inputs: &[Input], what: &'static str) -> Result<Side, StageError> {
    let with_rows = inputs.iter().find(|input| input.sidecar.rows_out > 0);
    let file = with_rows.or(inputs.first()).and_then(|input| input.files().next());
    let file = file.ok_or_else(|| StageError::failed(format!("the {what} have no shard; make the input again")))?;
    Ok(Side { what, schema: Arc::clone(Shard::open(&file)?.schema()) })
}

struct Side {
    what: &'static str,
    schema: Arc<Schema>,
}

impl Side {
    fn kind(&self, name: &str) -> Result<DataType, StageError> {
        let field = self.schema.field_with_name(name).ok().map(Field::data_type);
        field.cloned().ok_or_else(|| {
            let known = self.schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ");
            MergeError::NoColumn { side: self.what, column: name.to_owned(), known }.into()
        })
    }
}

/// Why nothing can be merged.
#[derive(Debug, thiserror::Error)]
enum MergeError {
    #[error("the {side} have no column {column}; they have {known}")]
    NoColumn { side: &'static str, column: String, known: String },
    #[error("the column {column} of the {side} is {kind}; keys are texts or whole numbers")]
    Key { side: &'static str, column: String, kind: DataType },
    #[error(
        "the samples have a column {column} already: give the table's another name in columns, or write replace = true"
    )]
    Exists { column: String },
    #[error("fallback: {column} is {kind}, but {fallback} is {own}; both have to be alike")]
    Fallback { column: String, kind: DataType, fallback: String, own: DataType },
    #[error("the table has no column but its key")]
    Nothing,
    #[error("the table has the key {key} twice, in {first} and {second}; a sample can have one row of it")]
    Twice { key: String, first: String, second: String },
    #[error("the sample {key} ({partition}, row {row}) is not named by the table, and unmatched is \"fail\"")]
    Unmatched { key: String, partition: String, row: u64 },
}

impl From<MergeError> for StageError {
    fn from(error: MergeError) -> Self {
        Self::failed(error)
    }
}

impl Stage for Merge {
    fn semantics(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn partitioning(&self) -> Partitioning {
        Partitioning::Joined
    }

    fn law(&self) -> Law {
        Law::Joins
    }

    fn asks_a_cluster(&self) -> bool {
        true
    }

    fn survey(&self, task: &Task) -> Result<Outcome, StageError> {
        let (samples, table) = sides(task);
        let joined = self.resolve(samples, table)?;
        let outcome = join::survey(&joined, samples, table, task)?;
        if outcome.observed.get(MATCHED) == Some(&0)
            && let Some(text) = joined.strangers(samples, table)?
        {
            task.events.send(Event::Note { stage: task.stage.to_owned(), text });
        }
        Ok(outcome)
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        attach::attach(self, task)
    }
}

/// The partitions of the samples, and those of the table.
fn sides<'a>(task: &'a Task) -> (&'a [Input], &'a [Input]) {
    task.inputs.split_at(task.inputs.partition_point(|input| input.position == 0))
}
