//! The rows of a partition, as the job wants them.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use pipeline::stage::StageError;
use recaption::job::{Job, Row};
use recaption::ready::{LineFault, Ready, ReadyError};
use shards::reader::Shard;
use shards::{ShardError, columns};

use super::parameters::Recaption;

/// What a partition is made from.
pub(super) struct Inputs {
    pub(super) shards: Vec<Shard>,
    ready: ReadyOnes,
}

type Rows<'a> = Box<dyn Iterator<Item = Result<Row, StageError>> + 'a>;

impl Inputs {
    /// Opens the partition's shards, and looks up the captions that are there already.
    pub(super) fn open(files: impl Iterator<Item = PathBuf>, recaption: &Recaption) -> Result<Self, StageError> {
        let shards: Vec<Shard> = files.map(|file| Shard::open(&file)).collect::<Result<_, _>>()?;
        let ready = ready_captions(recaption, &shards)?;
        Ok(Self { shards, ready })
    }

    /// All rows, in their order.
    pub(super) fn rows<'a>(
        &'a self,
        recaption: &'a Recaption,
        job: &'a Job,
    ) -> impl Iterator<Item = Result<Row, StageError>> + 'a {
        let rows = self.shards.iter().map(move |shard| rows_of(shard, recaption, job, &self.ready));
        rows.flat_map(|rows| rows.unwrap_or_else(|error| Box::new(std::iter::once(Err(error)))))
    }
}

/// Captions that are there already, by the key of the partition's rows.
type ReadyOnes = HashMap<String, (Option<String>, Option<String>)>;

/// Those of the lists that concern these shards. A list knows a row by its key, or by its key in its source.
fn ready_captions(recaption: &Recaption, shards: &[Shard]) -> Result<ReadyOnes, StageError> {
    let Some(lists) = &recaption.ready else { return Ok(HashMap::new()) };
    let mut wanted: HashMap<String, String> = HashMap::new();
    for shard in shards {
        for batch in shard.batches(Some(&[columns::KEY]), 65_536)? {
            let batch = batch?;
            for key in shard.text(&batch, columns::KEY)?.iter().flatten() {
                if let Some((_, in_source)) = key.split_once('/') {
                    wanted.insert(in_source.to_owned(), key.to_owned());
                }
                wanted.insert(key.to_owned(), key.to_owned());
            }
        }
    }
    let mut found = HashMap::new();
    for file in &lists.files {
        for row in Ready::open(file, lists.columns.clone()).map_err(StageError::failed)? {
            let row = match row {
                // As if the list did not know it: the models are asked.
                Err(ReadyError::Line { fault: LineFault::Empty, .. }) => continue,
                row => row.map_err(StageError::failed)?,
            };
            if let Some(key) = wanted.get(&row.key) {
                found.insert(key.clone(), (row.long, row.short));
            }
        }
    }
    Ok(found)
}

/// A shard's rows, as the job wants them.
fn rows_of<'a>(
    shard: &'a Shard,
    recaption: &'a Recaption,
    job: &Job,
    ready: &'a ReadyOnes,
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
    ready: &ReadyOnes,
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
    let rows = (0..batch.num_rows()).map(|i| Row {
        image: if images.is_valid(i) { images.value(i).into() } else { Arc::default() },
        alt: alts.value(i).to_string(),
        long: longs.as_ref().map(|longs| longs.value(i).to_string()).filter(|long| !long.trim().is_empty()),
        ready: ready.get(keys.value(i)).cloned().unwrap_or_default(),
        values: columns
            .iter()
            .map(|(name, column)| ((*name).clone(), column.value(i).to_string()))
            .collect::<BTreeMap<_, _>>(),
    });
    Ok(rows.collect())
}
