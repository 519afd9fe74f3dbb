//! Rows that a stage refused, to be tried again.
//!
//! ```text
//! stages/download/retry/
//!     part-00012r1.5b0e7f31.<unique>.parquet    the rows: key, url, caption
//!     part-00012r1.5b0e7f31.json                the record, created last; 5b0e7f31 is the partition they were refused by
//! ```
//!
//! A list makes one more partition of its stage, `part-00012r1`, which flows downstream like any other: no row changes its
//! key, and nothing that was made is made again. When the stage itself changes, its partitions are made anew and the lists
//! of the old ones count no more.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use serde::{Deserialize, Serialize};
use shards::digest::Digest;
use shards::disk::unique;
use shards::reader::Shard;
use shards::sidecar::{DataFile, InputDigest};
use shards::writer::ShardWriter;
use shards::{ShardError, columns};

use crate::condition;
use crate::plan::PlannedStage;
use crate::stage::{Cancel, StageError};

const FORMAT: u32 = 1;
const FOLDER: &str = "retry";

/// A list of rows to try again.
#[derive(Clone, Debug)]
pub struct RetryList {
    /// The partition that it makes: `part-00012r1`.
    pub name: String,
    record: Record,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    format: u32,
    /// The source's partition that refused the rows, itself or in an earlier retry.
    base: String,
    base_fingerprint: Digest,
    number: usize,
    condition: String,
    /// Why they were refused: rows by reason.
    reasons: BTreeMap<String, u64>,
    data: DataFile,
}

impl RetryList {
    pub(crate) fn digest(&self) -> InputDigest {
        InputDigest {
            name: format!("{} of {}", self.record.condition, self.record.base),
            digest: self.record.data.digest,
        }
    }

    pub fn rows(&self) -> u64 {
        self.record.data.rows
    }

    /// Why its rows were refused before: how many for each reason.
    pub fn reasons(&self) -> &BTreeMap<String, u64> {
        &self.record.reasons
    }

    /// The rows, relative to the stage's folder.
    pub fn file(&self) -> &DataFile {
        &self.record.data
    }

    /// Whether a file of the stage's folder is this list's: its rows, or its record.
    pub(crate) fn has(&self, file: &str) -> bool {
        file == self.record.data.file || file == format!("{}.json", stem(&self.name, &self.record.base_fingerprint))
    }
}

/// What the names of a list's files begin with, relative to the stage's folder. `name` is that of the partition that it makes.
fn stem(name: &str, base_fingerprint: &Digest) -> String {
    format!("{FOLDER}/{name}.{}", base_fingerprint.short())
}

/// The lists that concern the stage's partitions as they are now, in their order.
pub(crate) fn lists(stage: &PlannedStage) -> Result<Vec<RetryList>, ShardError> {
    let workdir = stage.folder.workdir();
    let entries = workdir.list(&stage.folder.name_of(FOLDER), false)?;
    let names: Vec<String> = entries
        .into_iter()
        .filter(|entry| entry.name.ends_with(".json"))
        .map(|entry| stage.folder.name_of(&format!("{FOLDER}/{}", entry.name)))
        .collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let current: BTreeMap<String, Digest> = stage
        .sources
        .iter()
        .enumerate()
        .map(|(number, source)| {
            let input = InputDigest { name: source.name.clone(), digest: source.digest };
            (crate::plan::partition_name(number), stage.fingerprint(&[input]))
        })
        .collect();
    let mut lists = Vec::new();
    for (name, bytes) in names.iter().zip(workdir.read_all(&names)?) {
        let Some(bytes) = bytes else { continue };
        let damaged =
            |detail: String| ShardError::Record { path: name.into(), what: "list of rows to try again", detail };
        let record: Record = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if record.format > FORMAT {
            return Err(damaged(format!("it has format {}, this version knows up to {FORMAT}", record.format)));
        }
        if current.get(&record.base) == Some(&record.base_fingerprint) {
            lists.push(RetryList { name: format!("{}r{}", record.base, record.number), record });
        }
    }
    lists.sort_by(|a, b| (&a.record.base, a.record.number).cmp(&(&b.record.base, b.record.number)));
    Ok(lists)
}

/// What [`prepare`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Refused rows, not counting those that a later try has passed or still waits for.
    pub refused: u64,
    /// Those of them that meet the condition.
    pub rows: u64,
    /// New partitions.
    pub partitions: usize,
}

/// Whether `condition` can be one; the error says what is wrong with it.
pub fn check_condition(condition: &str) -> Result<(), String> {
    condition::check_syntax(condition)
}

/// Writes lists of the stage's refused rows that meet `condition`, an SQL condition over the quarantine's columns (key, url,
/// caption, reason, status, error_message). A new plan has them as partitions. With `dry_run` it only counts.
pub fn prepare(stage: &PlannedStage, condition: &str, dry_run: bool, cancel: &Cancel) -> Result<Prepared, StageError> {
    let mut prepared = Prepared::default();
    for (number, partition) in stage.partitions.iter().take(stage.sources.len()).enumerate() {
        if cancel.is_cancelled() {
            return Err(StageError::Cancelled);
        }
        let Some(sidecar) = partition.sidecar() else { continue };
        let Some(refused) = open_rows(stage, number)? else { continue };
        prepared.refused += refused.num_rows() as u64;
        let meets = condition::rows_that_meet(condition, &refused)?;
        let chosen = arrow::compute::filter_record_batch(&refused, &meets.into())
            .map_err(ShardError::arrow(&stage.folder.path()))?;
        if chosen.num_rows() == 0 {
            continue;
        }
        let earlier = stage.retries.iter().filter(|list| list.record.base == partition.name);
        let record_number = earlier.map(|list| list.record.number).max().unwrap_or(0) + 1;
        prepared.rows += chosen.num_rows() as u64;
        prepared.partitions += 1;
        if !dry_run {
            write(stage, &partition.name, sidecar.fingerprint, record_number, condition, &chosen)?;
        }
    }
    Ok(prepared)
}

/// The rows that source partition `number` refused and that no later try has passed or waits for; `None` without any.
fn open_rows(stage: &PlannedStage, number: usize) -> Result<Option<RecordBatch>, StageError> {
    let Some(base) = stage.partitions.get(number) else { return Ok(None) };
    let Some(mut open) = quarantine(stage, base.sidecar().and_then(|s| s.quarantine.as_ref()))? else {
        return Ok(None);
    };
    for (list, partition) in stage.retries.iter().zip(stage.partitions.iter().skip(stage.sources.len())) {
        if list.record.base != base.name {
            continue;
        }
        let listed = read(stage, list.file(), &[columns::KEY])?;
        let keys: std::collections::HashSet<String> =
            texts(&listed, columns::KEY).flatten().map(str::to_owned).collect();
        let stays: Vec<bool> =
            texts(&open, columns::KEY).map(|key| key.is_none_or(|key| !keys.contains(key))).collect();
        let path = stage.folder.path();
        open = arrow::compute::filter_record_batch(&open, &stays.into()).map_err(ShardError::arrow(&path))?;
        if let Some(again) = quarantine(stage, partition.sidecar().and_then(|s| s.quarantine.as_ref()))? {
            open =
                arrow::compute::concat_batches(&again.schema(), [&open, &again]).map_err(ShardError::arrow(&path))?;
        }
    }
    Ok(Some(open))
}

fn texts<'a>(batch: &'a RecordBatch, column: &str) -> Box<dyn Iterator<Item = Option<&'a str>> + 'a> {
    match batch.column_by_name(column).and_then(|array| array.as_any().downcast_ref::<StringArray>()) {
        Some(texts) => Box::new(texts.iter()),
        None => Box::new(std::iter::empty()),
    }
}

fn quarantine(stage: &PlannedStage, file: Option<&DataFile>) -> Result<Option<RecordBatch>, StageError> {
    let names =
        [columns::KEY, columns::URL, columns::CAPTION, columns::REASON, columns::STATUS, columns::ERROR_MESSAGE];
    file.map(|file| read(stage, file, &names)).transpose()
}

fn read(stage: &PlannedStage, file: &DataFile, names: &[&str]) -> Result<RecordBatch, StageError> {
    let path = stage.fetch(file)?;
    let shard = Shard::open(&path)?;
    let batches = shard.batches(Some(names), 65_536)?.collect::<Result<Vec<_>, _>>()?;
    let fields = names.iter().map(|name| Field::new(*name, DataType::Utf8, false));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let columns = |batch: &RecordBatch| -> Result<RecordBatch, arrow::error::ArrowError> {
        let arrays = names.iter().map(|name| batch.column_by_name(name).cloned());
        let arrays = arrays
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| arrow::error::ArrowError::SchemaError("a column of the quarantine is missing".to_owned()))?;
        RecordBatch::try_new(Arc::clone(&schema), arrays)
    };
    let batches = batches.iter().map(columns).collect::<Result<Vec<_>, _>>().map_err(ShardError::arrow(&path))?;
    Ok(arrow::compute::concat_batches(&schema, &batches).map_err(ShardError::arrow(&path))?)
}

fn write(
    stage: &PlannedStage,
    base: &str,
    base_fingerprint: Digest,
    number: usize,
    condition: &str,
    rows: &RecordBatch,
) -> Result<(), StageError> {
    let stem = stem(&format!("{base}r{number}"), &base_fingerprint);
    let folder = stage.folder.path().join(FOLDER);
    shards::disk::create_folder(&folder)?;
    // A name of its own: another process may be making the list of this number, and the record of one of them stands.
    let file = format!("{stem}.{}.parquet", unique());
    let path = stage.folder.path().join(&file);
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    texts(rows, columns::REASON).flatten().for_each(|reason| *reasons.entry(reason.to_owned()).or_default() += 1);
    let positions = [columns::KEY, columns::URL, columns::CAPTION].map(|name| rows.schema().index_of(name));
    let positions = positions.into_iter().collect::<Result<Vec<_>, _>>().map_err(ShardError::arrow(&path))?;
    let rows = rows.project(&positions).map_err(ShardError::arrow(&path))?;
    let mut writer = ShardWriter::create(&path, &rows.schema())?;
    writer.write(&rows)?;
    let data = DataFile { file, ..writer.finish()? };
    let workdir = stage.folder.workdir();
    let name = stage.folder.name_of(&data.file);
    workdir.publish(&name)?;
    let (base, condition) = (base.to_owned(), condition.to_owned());
    let record = Record { format: FORMAT, base, base_fingerprint, number, condition, reasons, data };
    let bytes = serde_json::to_vec_pretty(&record).map_err(StageError::failed)?;
    if !workdir.create_if_absent(&stage.folder.name_of(&format!("{stem}.json")), &bytes)? {
        let _ = workdir.remove(&name);
        return Err(StageError::failed(format!(
            "another process is making a list of {} to try again; run retry again",
            record.base
        )));
    }
    Ok(())
}
