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
//! of the old ones count no more. Nor does one when the same partition is made again and refuses other rows: it may hold by
//! now what the list would bring a second time.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use serde::{Deserialize, Serialize};
use shards::digest::Digest;
use shards::disk::unique;
use shards::reader::Shard;
use shards::sidecar::{DataFile, InputDigest, Sidecar};
use shards::writer::ShardWriter;
use shards::{ShardError, columns};

use crate::condition;
use crate::plan::{PartitionState, PlannedPartition, PlannedStage};
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
    /// The partitions that refused them last, the source's own or earlier retries, each with the digest of what it refused.
    /// Lists of earlier versions do not say.
    #[serde(default)]
    drawn_from: Vec<InputDigest>,
    data: DataFile,
}

impl RetryList {
    pub(crate) fn digest(&self) -> InputDigest {
        InputDigest {
            name: format!("{} of {}", self.record.condition, self.record.base),
            digest: self.record.data.digest,
        }
    }

    /// 1 for the first list of a source's partition, and more for each after it, which may hold rows of those before it.
    pub(crate) fn number(&self) -> usize {
        self.record.number
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

/// The lists that concern the stage's partitions as they are now, in their order; and for each of these partitions the last number
/// that a list of it has, whether or not that one still counts.
pub(crate) fn lists(stage: &PlannedStage) -> Result<(Vec<RetryList>, BTreeMap<String, usize>), ShardError> {
    let workdir = stage.folder.workdir();
    let entries = workdir.list(&stage.folder.name_of(FOLDER), false)?;
    let names: Vec<String> = entries
        .into_iter()
        .filter(|entry| entry.name.ends_with(".json"))
        .map(|entry| stage.folder.name_of(&format!("{FOLDER}/{}", entry.name)))
        .collect();
    let mut lists = Vec::new();
    let mut last_numbers = BTreeMap::new();
    if names.is_empty() {
        return Ok((lists, last_numbers));
    }
    let mut records = Vec::new();
    for (name, bytes) in names.iter().zip(workdir.read_all(&names)?) {
        let Some(bytes) = bytes else { continue };
        let damaged =
            |detail: String| ShardError::Record { path: name.into(), what: "list of rows to try again", detail };
        let record: Record = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if record.format > FORMAT {
            return Err(damaged(format!("it has format {}, this version knows up to {FORMAT}", record.format)));
        }
        records.push(record);
    }
    records.sort_by(|a, b| (&a.base, a.number).cmp(&(&b.base, b.number)));
    // Partitions that are there. What one refuses that is to be made again is not known.
    let mut made: BTreeMap<String, Arc<Sidecar>> = BTreeMap::new();
    for (number, source) in stage.sources.iter().enumerate() {
        let input = InputDigest { name: source.name.clone(), digest: source.digest };
        let name = crate::plan::partition_name(number);
        if let PartitionState::UpToDate(sidecar) = stage.state(&name, &[input]) {
            made.insert(name, sidecar);
        }
    }
    for record in records {
        if made.get(&record.base).is_none_or(|base| base.fingerprint != record.base_fingerprint) {
            continue;
        }
        last_numbers.insert(record.base.clone(), record.number);
        let still_refuses = |from: &InputDigest| {
            let refused = made.get(&from.name).and_then(|sidecar| sidecar.quarantine.as_ref());
            refused.is_some_and(|file| file.digest == from.digest)
        };
        if !record.drawn_from.iter().all(still_refuses) {
            continue;
        }
        let list = RetryList { name: format!("{}r{}", record.base, record.number), record };
        if let PartitionState::UpToDate(sidecar) = stage.state(&list.name, &[list.digest()]) {
            made.insert(list.name.clone(), sidecar);
        }
        lists.push(list);
    }
    Ok((lists, last_numbers))
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
        let path = stage.folder.path();
        let (mut chosen, mut drawn_from) = (Vec::new(), Vec::new());
        for (from, refused) in open_rows(stage, number)? {
            prepared.refused += refused.num_rows() as u64;
            let meets = condition::rows_that_meet(condition, &refused)?;
            let meeting =
                arrow::compute::filter_record_batch(&refused, &meets.into()).map_err(ShardError::arrow(&path))?;
            if meeting.num_rows() > 0 {
                chosen.push(meeting);
                drawn_from.push(from);
            }
        }
        let Some(first) = chosen.first() else { continue };
        let chosen = arrow::compute::concat_batches(&first.schema(), &chosen).map_err(ShardError::arrow(&path))?;
        prepared.rows += chosen.num_rows() as u64;
        prepared.partitions += 1;
        if !dry_run {
            // As of the plan: of two processes that try again at once, one is to find that the number is taken.
            let number = stage.last_retries.get(&partition.name).map_or(1, |last| last + 1);
            write(stage, sidecar, number, condition, drawn_from, &chosen)?;
        }
    }
    Ok(prepared)
}

/// The rows that source partition `number` refused and that no later try has passed or waits for, by what refused them last.
fn open_rows(stage: &PlannedStage, number: usize) -> Result<Vec<(InputDigest, RecordBatch)>, StageError> {
    let Some(base) = stage.partitions.get(number) else { return Ok(Vec::new()) };
    let Some(refused) = quarantine(stage, base)? else { return Ok(Vec::new()) };
    let mut open = vec![refused];
    for (list, partition) in stage.retries.iter().zip(stage.partitions.iter().skip(stage.sources.len())) {
        if list.record.base != base.name {
            continue;
        }
        let listed = read(stage, list.file(), &[columns::KEY])?;
        let keys: HashSet<String> = texts(&listed, columns::KEY).flatten().map(str::to_owned).collect();
        for (_, rows) in &mut open {
            let stays: Vec<bool> =
                texts(rows, columns::KEY).map(|key| key.is_none_or(|key| !keys.contains(key))).collect();
            *rows = arrow::compute::filter_record_batch(rows, &stays.into())
                .map_err(ShardError::arrow(&stage.folder.path()))?;
        }
        open.extend(quarantine(stage, partition)?);
    }
    Ok(open)
}

fn texts<'a>(batch: &'a RecordBatch, column: &str) -> Box<dyn Iterator<Item = Option<&'a str>> + 'a> {
    match batch.column_by_name(column).and_then(|array| array.as_any().downcast_ref::<StringArray>()) {
        Some(texts) => Box::new(texts.iter()),
        None => Box::new(std::iter::empty()),
    }
}

/// The rows that a partition refused, and what they are known by.
fn quarantine(
    stage: &PlannedStage,
    partition: &PlannedPartition,
) -> Result<Option<(InputDigest, RecordBatch)>, StageError> {
    let Some(file) = partition.sidecar().and_then(|sidecar| sidecar.quarantine.as_ref()) else { return Ok(None) };
    let names =
        [columns::KEY, columns::URL, columns::CAPTION, columns::REASON, columns::STATUS, columns::ERROR_MESSAGE];
    let from = InputDigest { name: partition.name.clone(), digest: file.digest };
    Ok(Some((from, read(stage, file, &names)?)))
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
    base: &Sidecar,
    number: usize,
    condition: &str,
    drawn_from: Vec<InputDigest>,
    rows: &RecordBatch,
) -> Result<(), StageError> {
    let stem = stem(&format!("{}r{number}", base.partition), &base.fingerprint);
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
    let (base, base_fingerprint, condition) = (base.partition.clone(), base.fingerprint, condition.to_owned());
    let record = Record { format: FORMAT, base, base_fingerprint, number, condition, reasons, drawn_from, data };
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
