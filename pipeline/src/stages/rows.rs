//! What stages that leave rows out have in common: a partition's rows, numbered through all its files, copied or passed over.

use arrow::array::{Array, BooleanArray, RecordBatch, UInt64Array};
use shards::ShardError;
use shards::reader::Shard;
use shards::writer::ShardWriter;

use crate::stage::{Input, Outcome, StageError, Task};

/// In a survey's files, and in no other: the number of a row within its partition.
pub(super) const ROW: &str = "row";

/// The shards of a partition, in order.
pub(super) fn open<'a>(inputs: impl IntoIterator<Item = &'a Input>) -> Result<Vec<Shard>, StageError> {
    inputs.into_iter().flat_map(Input::files).map(|file| Ok(Shard::open(&file)?)).collect()
}

/// Rows of all these inputs.
pub(super) fn of(inputs: &[Input]) -> u64 {
    inputs.iter().flat_map(|input| &input.sidecar.data).map(|file| file.rows).sum()
}

/// How many rows they have together.
pub(super) fn count(shards: &[Shard]) -> usize {
    shards.iter().map(|shard| shard.rows() as usize).sum()
}

/// Copies the rows that `keep` (one truth a row) says to the attempt's data, images and all, and shows the others to
/// `left_out`: their shard, their batch and their place in it. The outcome has no reasons yet.
pub(super) fn copy(
    task: &Task,
    shards: &[Shard],
    keep: &BooleanArray,
    mut left_out: impl FnMut(&Shard, &RecordBatch, usize) -> Result<(), StageError>,
) -> Result<Outcome, StageError> {
    let mut outcome = Outcome { rows_in: count(shards) as u64, ..Outcome::default() };
    let Some(first) = shards.first() else { return Ok(outcome) };
    let mut writer = ShardWriter::create(&task.attempt.data(), first.schema())?;
    let mut start = 0;
    for shard in shards {
        for batch in shard.batches(None, 128)? {
            task.check_cancelled()?;
            let batch = batch?;
            let mask = keep.slice(start, batch.num_rows());
            start += batch.num_rows();
            let kept = arrow::compute::filter_record_batch(&batch, &mask).map_err(ShardError::arrow(shard.path()))?;
            writer.write(&kept)?;
            task.tally.good(kept.num_rows() as u64);
            for row in (0..batch.num_rows()).filter(|&row| !mask.value(row)) {
                left_out(shard, &batch, row)?;
            }
        }
    }
    let data = writer.finish()?;
    outcome.rows_out = data.rows;
    outcome.data.push(data);
    Ok(outcome)
}

/// A text of a row, for quarantine: empty where there is none.
pub(super) fn text(shard: &Shard, batch: &RecordBatch, column: &str, row: usize) -> String {
    let texts = shard.text(batch, column).ok().filter(|texts| texts.is_valid(row));
    texts.map(|texts| texts.value(row).to_owned()).unwrap_or_default()
}

/// One truth for each of `count` rows: whether the survey's file `list` names it in its column [`ROW`].
pub(super) fn listed(list: &Shard, count: usize) -> Result<BooleanArray, StageError> {
    let mut named = vec![false; count];
    for batch in list.batches(Some(&[ROW]), 65_536)? {
        let batch = batch?;
        let rows: &UInt64Array = list.typed(&batch, ROW, "uint64")?;
        for row in rows.values() {
            let Some(named) = named.get_mut(*row as usize) else {
                let (path, row) = (list.path().to_owned(), *row);
                return Err(ShardError::RowOutOfRange { path, row, rows: count as u64 }.into());
            };
            *named = true;
        }
    }
    Ok(BooleanArray::from(named))
}

/// What the survey left for the partition of `task`.
pub(super) fn survey(task: &Task) -> Result<Shard, StageError> {
    let path = task.survey.ok_or_else(|| {
        StageError::failed(format!("{} was given no survey; this is a fault in the program", task.stage))
    })?;
    Ok(Shard::open(path)?)
}
