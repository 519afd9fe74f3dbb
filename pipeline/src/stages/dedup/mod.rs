//! `dedup`: keeps one of several equal, or nearly equal, pictures: the largest.
//!
//! - in: shards with key, image, width, height, optionally sha256, and any other column
//! - out: the same columns, rows in the same order
//! - stale when: by, distance, keep or its input changed; a partition is stale only when other rows of it are dropped, or for
//!   the sake of other keys
//! - law: in = out + Σ dropped (`duplicate`); quarantine names the kept key and the distance
//!
//! `exact` compares digests: the sha256 column where it is there (images are not read then), else that of the image's bytes.
//!
//! `perceptual` compares 64-bit gradient hashes (8 rows of 8 comparisons between neighbours in a grey 9×8 thumbnail; see
//! [`picture::perceptual_hash`] for why) by the number of bits in which they differ: the phash column where it is there, else
//! that of the image ([`pictures`]). Many pictures have nearly the same hash that show nothing alike, above all those of one thing
//! on a plain background; so the images of those that are near to another are looked at, and [`picture::Look`] says whether they are.
//! The pictures are looked at from the largest to the smallest, those of equal size in the order of their keys; one that lies
//! within `distance` of a kept one and looks like it is dropped for the largest such, else it is kept. So every dropped picture
//! is close to its kept one itself: no chain of small steps leads from one picture to another. Pictures that cannot be decoded,
//! or whose hash says nothing (a blank page), are kept.
//!
//! With a cluster, exact duplicates are found by one query that it answers ([`distributed`]), where every row has its sha256 recorded.
//! Otherwise the survey reads all partitions in parallel and remembers about 40 bytes a row (digest or hash, size, where the key ends,
//! and its place in the order of comparison) and the text of its key; `perceptual` another 16 bytes for each different hash
//! and band, of which there are distance + 1, and half a kilobyte for each picture that is near to another. Of pictures whose
//! hashes are near while none looks like another, each is compared with each.

mod distributed;
mod near;
mod pictures;

use std::cmp::Reverse;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use picture::Look;
use rayon::prelude::*;
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::{ShardError, columns};

use self::pictures::{Pictures, Place};
use super::rows;
use super::survey_file::{ROWS, SurveyFile};
use crate::quarantine::{BadRow, Quarantine};
use crate::stage::{Law, Outcome, Partitioning, Stage, StageError, StageKind, Task, as_it_is};

/// More than a quarter of the bits says nothing any more: two random hashes differ in 32 ± 4.
const MOST_DISTANCE: u32 = 16;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Dedup {
    /// How pictures are compared [exact].
    #[serde(default)]
    by: By,
    /// For perceptual: the most bits, of 64, in which the hashes of near-duplicates differ, from 0 to 16; the more, the less
    /// need they look alike from afar as well [4].
    #[serde(default = "default_distance")]
    distance: u32,
    /// Which of several is kept [largest].
    #[serde(default)]
    keep: Keep,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum By {
    /// By SHA-256: the same bytes.
    #[default]
    Exact,
    /// By a 64-bit hash of what they show, and a look at those with nearly the same: also other sizes and encodings of one picture.
    Perceptual,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Keep {
    /// By width × height; of equally large ones, the one with the smallest key.
    #[default]
    Largest,
}

fn default_distance() -> u32 {
    4
}

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "dedup",
        version: 2,
        about: "Keeps the largest of equal, or nearly equal, pictures.",
        inputs: (1, 1),
        schemas: || vec![schema_for!(Dedup)],
        rehearse: as_it_is,
        build: |parameters| {
            let dedup: Dedup = parameters.read()?;
            if dedup.distance > MOST_DISTANCE {
                let message = format!("distance = {}: expected 0 to {MOST_DISTANCE}, of 64 bits", dedup.distance);
                return Err(parameters.fault("distance", message));
            }
            Ok(Box::new(dedup))
        },
    }
}

/// A row to drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Duplicate {
    row: Place,
    /// The row that is kept in its place.
    kept: Place,
    /// Bits in which their hashes differ.
    distance: u32,
}

impl Stage for Dedup {
    fn semantics(&self) -> Value {
        // The distance of exact duplicates is nothing that could change.
        match self.by {
            By::Exact => serde_json::json!({ "by": self.by, "keep": self.keep }),
            By::Perceptual => serde_json::to_value(self).unwrap_or_default(),
        }
    }

    fn partitioning(&self) -> Partitioning {
        Partitioning::Surveyed
    }

    fn law(&self) -> Law {
        Law::RowWise
    }

    fn asks_a_cluster(&self) -> bool {
        self.by == By::Exact
    }

    fn survey(&self, task: &Task) -> Result<Outcome, StageError> {
        match self.by {
            By::Exact => {
                if let Some(queries) = task.queries
                    && let Some(found) = distributed::survey(task, queries)?
                {
                    return Ok(found);
                }
                let pictures = pictures::digests(task.inputs, task.cancel)?;
                let found = exact(&pictures);
                leave(&pictures, found, 0, task)
            }
            By::Perceptual => {
                let (pictures, not_compared) = pictures::hashes(task.inputs, task.cancel)?;
                let found = perceptual(&pictures, self.distance, task)?;
                leave(&pictures, found, not_compared, task)
            }
        }
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let shards = rows::open(task.inputs)?;
        let survey = rows::survey(task)?;
        let dropped = rows::listed(&survey, rows::count(&shards))?;
        let keep: BooleanArray = dropped.iter().map(|dropped| dropped.map(|dropped| !dropped)).collect();
        // They are listed in the order of the rows.
        let mut reasons = survey.batches(Some(&[KEPT, DISTANCE]), 65_536)?;
        let mut batch: Option<(RecordBatch, usize)> = None;
        let mut next = || -> Result<String, StageError> {
            while batch.as_ref().is_none_or(|(batch, at)| *at == batch.num_rows()) {
                let Some(more) = reasons.next() else {
                    return Err(StageError::failed(format!("{} ends too early", survey.path().display())));
                };
                batch = Some((more?, 0));
            }
            let Some((batch, at)) = &mut batch else { return Ok(String::new()) };
            let distances: &UInt32Array = survey.typed(batch, DISTANCE, "uint32")?;
            let detail = self.detail(survey.text(batch, KEPT)?.value(*at), distances.value(*at));
            *at += 1;
            Ok(detail)
        };
        let mut quarantine = Quarantine::new(task.on_bad_row, task.stage, task.tally);
        let mut outcome = rows::copy(task, &shards, &keep, |shard, batch, row| {
            let text = |column| rows::text(shard, batch, column, row);
            let (key, url, caption) = (text(columns::KEY), text(columns::URL), text(columns::CAPTION));
            let detail = next()?;
            quarantine.refuse(BadRow { key, url, caption, reason: "duplicate", status: "filtered", detail })
        })?;
        (outcome.dropped, outcome.quarantine) = quarantine.finish(&task.attempt.quarantine())?;
        Ok(outcome)
    }
}

impl Dedup {
    fn detail(&self, kept: &str, distance: u32) -> String {
        match self.by {
            By::Exact => format!("the same bytes as {kept}, which is kept"),
            By::Perceptual => format!("looks like {kept}, which is kept: distance {distance} of 64 bits"),
        }
    }
}

/// All but the first of the rows of each digest.
fn exact(pictures: &Pictures<u128>) -> Vec<Duplicate> {
    let mut places = pictures.places();
    places.retain(|place| pictures.mark(*place) != 0);
    places.par_sort_unstable_by(|a, b| {
        pictures.mark(*a).cmp(&pictures.mark(*b)).then_with(|| pictures.preference(*a, *b))
    });
    let groups = places.chunk_by(|a, b| pictures.mark(*a) == pictures.mark(*b));
    let dropped = |group: &[Place]| {
        let kept = group.first().copied().unwrap_or_default();
        group.iter().skip(1).map(move |row| Duplicate { row: *row, kept, distance: 0 }).collect::<Vec<_>>()
    };
    groups.flat_map(dropped).collect()
}

/// Rows whose hash lies within `distance` of that of a row that is kept before them and looks like them.
fn perceptual(pictures: &Pictures<u64>, distance: u32, task: &Task) -> Result<Vec<Duplicate>, StageError> {
    let mut places = pictures.places();
    places.retain(|place| pictures.mark(*place) != picture::NOTHING);
    let mut hashes: Vec<u64> = places.iter().map(|place| pictures.mark(*place)).collect();
    hashes.par_sort_unstable();
    let crowded = near::crowded(&hashes, distance, task.cancel)?;
    drop(hashes);
    places.retain(|place| crowded.binary_search(&pictures.mark(*place)).is_ok());
    let looks = pictures::looks(task.inputs, &places, task.cancel)?;
    let mut rows: Vec<(Place, Option<Box<Look>>)> = places.into_iter().zip(looks).collect();
    rows.par_sort_unstable_by(|(a, _), (b, _)| pictures.preference(*a, *b));
    let hashes: Vec<u64> = rows.iter().map(|(place, _)| pictures.mark(*place)).collect();
    let look = |row: u32| rows.get(row as usize)?.1.as_deref();
    let is_like = |a, b| look(a).zip(look(b)).is_some_and(|(a, b)| a.is_like(b, distance));
    let kept_for = near::greedy(&hashes, distance, is_like, task.cancel)?;
    let duplicate = |((row, _), kept): (&(Place, Option<Box<Look>>), Option<u32>)| {
        let (kept, _) = rows.get(kept? as usize)?;
        let distance = (pictures.mark(*row) ^ pictures.mark(*kept)).count_ones();
        Some(Duplicate { row: *row, kept: *kept, distance })
    };
    Ok(rows.iter().zip(kept_for).filter_map(duplicate).collect())
}

/// In the survey's files: the key of the row that is kept.
const KEPT: &str = "kept";
/// In the survey's files: bits in which the hashes differ.
const DISTANCE: &str = "distance";

/// Writes for each input its rows to drop, in their order.
fn leave<M>(
    pictures: &Pictures<M>,
    mut found: Vec<Duplicate>,
    not_compared: u64,
    task: &Task,
) -> Result<Outcome, StageError> {
    found.sort_unstable_by_key(|duplicate| Reverse(duplicate.row));
    let mut list = List::new(task);
    // They come off the end, in ascending order.
    while let Some(Duplicate { row, kept, distance }) = found.pop() {
        list.add(row.part as usize, u64::from(row.row), pictures.key(kept), distance)?;
    }
    let mut outcome = list.finish()?;
    if not_compared > 0 {
        outcome.observed.insert("not compared".to_owned(), not_compared);
    }
    Ok(outcome)
}

/// The rows to drop as they are written, a file for each input. They come in their order.
struct List<'a> {
    task: &'a Task<'a>,
    schema: SchemaRef,
    outcome: Outcome,
    open: Option<SurveyFile>,
    /// What has come of the open file and is not in it.
    rows: Vec<u64>,
    kept: Vec<String>,
    distances: Vec<u32>,
    listed: u64,
}

impl<'a> List<'a> {
    fn new(task: &'a Task<'a>) -> Self {
        let schema = Arc::new(Schema::new(vec![
            Field::new(rows::ROW, DataType::UInt64, false),
            Field::new(KEPT, DataType::Utf8, false),
            Field::new(DISTANCE, DataType::UInt32, false),
        ]));
        let outcome = Outcome::default();
        Self { task, schema, outcome, open: None, rows: vec![], kept: vec![], distances: vec![], listed: 0 }
    }

    fn add(&mut self, part: usize, row: u64, kept: &str, distance: u32) -> Result<(), StageError> {
        while self.outcome.data.len() < part {
            self.finish_file()?;
        }
        self.rows.push(row);
        self.kept.push(kept.to_owned());
        self.distances.push(distance);
        self.listed += 1;
        if self.rows.len() < ROWS { Ok(()) } else { self.write() }
    }

    /// Writes what has come, opens the file if need be.
    fn write(&mut self) -> Result<(), StageError> {
        let path = self.task.attempt.numbered(self.outcome.data.len());
        let file = match self.open.take() {
            Some(file) => file,
            None => SurveyFile::create(&path, &self.schema)?,
        };
        let batch = RecordBatch::try_new(
            Arc::clone(&self.schema),
            vec![
                Arc::new(UInt64Array::from(std::mem::take(&mut self.rows))),
                Arc::new(StringArray::from(std::mem::take(&mut self.kept))),
                Arc::new(UInt32Array::from(std::mem::take(&mut self.distances))),
            ],
        );
        self.open.insert(file).take(batch.map_err(ShardError::arrow(&path))?)
    }

    fn finish_file(&mut self) -> Result<(), StageError> {
        self.task.check_cancelled()?;
        self.write()?;
        if let Some(file) = self.open.take() {
            self.outcome.data.push(file.finish()?);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Outcome, StageError> {
        while self.outcome.data.len() < self.task.inputs.len() {
            self.finish_file()?;
        }
        self.outcome.rows_in = rows::of(self.task.inputs);
        self.outcome.rows_out = self.outcome.rows_in.saturating_sub(self.listed);
        Ok(self.outcome)
    }
}
