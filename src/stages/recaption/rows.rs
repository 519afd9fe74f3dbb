//! The rows of a partition, as the job wants them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use pipeline::stage::StageError;
use recaption::job::{Job, Row};
use recaption::ready::{ReadyError, ReadyIndex};
use shards::commit::StageFolder;
use shards::reader::Shard;
use shards::{ShardError, columns};

use super::parameters::Recaption;

/// What a partition is made from.
pub(super) struct Inputs {
    pub(super) shards: Vec<Shard>,
    /// Captions that are there already.
    ready: Option<Arc<ReadyIndex>>,
}

type Rows<'a> = Box<dyn Iterator<Item = Result<Row, StageError>> + 'a>;

impl Inputs {
    /// Opens the partition's shards. `folder` is the stage's.
    pub(super) fn open(
        files: impl Iterator<Item = PathBuf>,
        recaption: &Recaption,
        folder: &StageFolder,
    ) -> Result<Self, StageError> {
        let shards: Vec<Shard> = files.map(|file| Shard::open(&file)).collect::<Result<_, _>>()?;
        let ready = recaption.ready.as_ref().map(|lists| lists.index(&folder.path())).transpose();
        Ok(Self { shards, ready: ready.map_err(StageError::failed)? })
    }

    /// All rows, in their order.
    pub(super) fn rows<'a>(
        &'a self,
        recaption: &'a Recaption,
        job: &'a Job,
    ) -> impl Iterator<Item = Result<Row, StageError>> + 'a {
        let rows = self.shards.iter().map(move |shard| rows_of(shard, recaption, job, self.ready.as_deref()));
        rows.flat_map(|rows| rows.unwrap_or_else(|error| Box::new(std::iter::once(Err(error)))))
    }
}

/// A row's captions that are there already. A list knows a row by its key, or by its key in its source.
fn ready_captions(ready: &ReadyIndex, key: &str) -> Result<(Option<String>, Option<String>), ReadyError> {
    let found = match (ready.get(key)?, key.split_once('/')) {
        (None, Some((_, in_source))) => ready.get(in_source)?,
        (found, _) => found,
    };
    Ok(found.map(|found| (found.long, found.short)).unwrap_or_default())
}

/// A shard's rows, as the job wants them.
fn rows_of<'a>(
    shard: &'a Shard,
    recaption: &'a Recaption,
    job: &Job,
    ready: Option<&'a ReadyIndex>,
) -> Result<Rows<'a>, StageError> {
    let values = job.columns();
    let mut names: Vec<&str> = vec![columns::KEY, columns::IMAGE];
    let is_there = |name: &str| shard.schema().index_of(name).is_ok();
    let known = recaption.long.is_none().then_some(columns::RECAPTION).filter(|name| is_there(name));
    for name in std::iter::once(recaption.alt.as_str()).chain(values.iter().map(String::as_str)).chain(known) {
        if !is_there(name) {
            let all: Vec<&str> = shard.schema().fields().iter().map(|field| field.name().as_str()).collect();
            let message =
                format!("a prompt names the column {name}, but {} has only {}", shard.path().display(), all.join(", "));
            return Err(StageError::failed(message));
        }
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let batches = shard.batches(Some(&names), 64)?;
    Ok(Box::new(batches.flat_map(move |batch| {
        match batch
            .map_err(StageError::from)
            .and_then(|batch| rows_of_batch(shard, &batch, recaption, &values, known, ready))
        {
            Ok(rows) => rows.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(error)],
        }
    })))
}

fn rows_of_batch(
    shard: &Shard,
    batch: &RecordBatch,
    recaption: &Recaption,
    values: &[String],
    known: Option<&str>,
    ready: Option<&ReadyIndex>,
) -> Result<Vec<Row>, StageError> {
    let (keys, images) = (shard.text(batch, columns::KEY)?, shard.binary(batch, columns::IMAGE)?);
    let format = FormatOptions::default();
    let column = |name: &str| -> Result<ArrayFormatter, StageError> {
        let at = batch.schema_ref().index_of(name).map_err(ShardError::arrow(shard.path()))?;
        Ok(ArrayFormatter::try_new(batch.column(at), &format).map_err(ShardError::arrow(shard.path()))?)
    };
    let alts = column(&recaption.alt)?;
    let longs = known.map(&column).transpose()?;
    let columns: Vec<(&String, ArrayFormatter)> =
        values.iter().map(|name| Ok((name, column(name)?))).collect::<Result<_, StageError>>()?;
    let ready_of = |key| ready.map(|ready| ready_captions(ready, key)).transpose().map_err(StageError::failed);
    let row = |i| {
        Ok(Row {
            image: if images.is_valid(i) { images.value(i).into() } else { Arc::default() },
            alt: alts.value(i).to_string(),
            long: longs.as_ref().map(|longs| longs.value(i).to_string()).filter(|long| !long.trim().is_empty()),
            ready: ready_of(keys.value(i))?.unwrap_or_default(),
            values: columns
                .iter()
                .map(|(name, column)| ((*name).clone(), column.value(i).to_string()))
                .collect::<BTreeMap<_, _>>(),
        })
    };
    (0..batch.num_rows()).map(row).collect()
}
