//! `subset`: chooses some of the rows by chance, reproducibly: a share of them, a number of them, or both.
//!
//! - in: shards with key and any other column
//! - out: the same columns, the chosen rows in the same order
//! - stale when: fraction, limit, seed or its input changed; with a limit, a partition is stale only when other rows of it are
//!   among the chosen
//! - law: in = out + not chosen (`not_sampled`); they are not kept in quarantine and are no losses
//!
//! A row is chosen by a hash of seed and key alone, so the choice is the same whatever the order of rows, their partitions and
//! the threads. A larger fraction contains a smaller one, and a larger limit a smaller one. With a limit, a survey reads all
//! keys and remembers 32 bytes for each row that it may choose, so its memory is bounded by the limit.

use std::collections::BinaryHeap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::digest::DigestBuilder;
use shards::reader::Shard;
use shards::sidecar::DataFile;
use shards::writer::ShardWriter;
use shards::{ShardError, columns};

use super::rows;
use crate::manifest::{Diagnostic, Parameters};
use crate::stage::{Law, Outcome, Partitioning, Stage, StageError, StageKind, Task, as_it_is};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Subset {
    /// Share of the rows to choose, above 0 and at most 1 [all].
    #[serde(default)]
    fraction: Option<f64>,
    /// The most rows to choose, over all partitions [any number].
    #[serde(default)]
    limit: Option<u64>,
    /// Another seed chooses other rows [0].
    #[serde(default)]
    seed: u64,
}

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "subset",
        version: 1,
        about: "Chooses some of the rows by chance, reproducibly.",
        inputs: (1, 1),
        schemas: || vec![schema_for!(Subset)],
        rehearse: as_it_is,
        build: |parameters| build(parameters).map(|subset| Box::new(subset) as Box<dyn Stage>),
    }
}

fn build(parameters: &Parameters) -> Result<Subset, Diagnostic> {
    let subset: Subset = parameters.read()?;
    if subset.fraction.is_none() && subset.limit.is_none() {
        let fault = parameters.fault("fraction", "nothing says how many rows to choose");
        return Err(fault.hint("write fraction = 0.1, or limit = 10000, or both"));
    }
    if let Some(fraction) = subset.fraction.filter(|fraction| !(*fraction > 0.0 && *fraction <= 1.0)) {
        return Err(parameters.fault("fraction", format!("fraction = {fraction}: expected more than 0 and at most 1")));
    }
    if subset.limit == Some(0) {
        return Err(parameters.fault("limit", "limit = 0: expected 1 or more"));
    }
    Ok(subset)
}

/// A row that may be chosen. The order is that of the draw: smaller ones go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Drawn {
    lot: u128,
    /// Rows of the same key have the same lot; then their places decide.
    partition: u32,
    row: u64,
}

/// The rows with the smallest lots, at most `limit` of them.
struct Draw {
    limit: usize,
    /// The largest on top.
    chosen: BinaryHeap<Drawn>,
}

impl Draw {
    fn new(limit: u64) -> Self {
        Self { limit: usize::try_from(limit).unwrap_or(usize::MAX), chosen: BinaryHeap::new() }
    }

    fn offer(&mut self, row: Drawn) {
        if self.chosen.len() < self.limit {
            self.chosen.push(row);
        } else if let Some(mut largest) = self.chosen.peek_mut()
            && row < *largest
        {
            *largest = row;
        }
    }

    /// The chosen rows of each partition, ascending.
    fn finish(self, partitions: usize) -> Vec<Vec<u64>> {
        let mut rows = vec![Vec::new(); partitions];
        for drawn in self.chosen {
            if let Some(rows) = rows.get_mut(drawn.partition as usize) {
                rows.push(drawn.row);
            }
        }
        for rows in &mut rows {
            rows.sort_unstable();
        }
        rows
    }
}

impl Subset {
    /// A key's place in the draw, even over all of u128.
    fn lot(&self, key: &str) -> u128 {
        let digest = DigestBuilder::new().part(self.seed.to_le_bytes()).part(key).finish().seed();
        digest.iter().take(16).fold(0, |lot, byte| lot << 8 | u128::from(*byte))
    }

    /// Whether the fraction contains a lot. Compared with the upper half, of which f64 can tell every 2048th value: enough to
    /// be off by less than a row in 10^15.
    fn contains(&self, lot: u128) -> bool {
        self.fraction.is_none_or(|fraction| ((lot >> 64) as u64 as f64) < fraction * 2f64.powi(64) || fraction >= 1.0)
    }

    /// Shows each row's number and lot to `each`, of a partition's files in order.
    fn lots(&self, shards: &[Shard], task: &Task, mut each: impl FnMut(u64, u128)) -> Result<(), StageError> {
        let mut row = 0;
        for shard in shards {
            for batch in shard.batches(Some(&[columns::KEY]), 65_536)? {
                task.check_cancelled()?;
                let batch = batch?;
                for key in shard.text(&batch, columns::KEY)? {
                    each(row, self.lot(key.unwrap_or_default()));
                    row += 1;
                }
            }
        }
        Ok(())
    }
}

impl Stage for Subset {
    fn semantics(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn partitioning(&self) -> Partitioning {
        if self.limit.is_some() { Partitioning::Surveyed } else { Partitioning::EachInput }
    }

    fn law(&self) -> Law {
        Law::Chooses
    }

    fn survey(&self, task: &Task) -> Result<Outcome, StageError> {
        let mut draw = Draw::new(self.limit.unwrap_or(u64::MAX));
        let mut rows_in = 0;
        for (partition, input) in (0..).zip(task.inputs) {
            let shards = rows::open([input])?;
            rows_in += rows::count(&shards) as u64;
            self.lots(&shards, task, |row, lot| {
                if self.contains(lot) {
                    draw.offer(Drawn { lot, partition, row });
                }
            })?;
        }
        let mut outcome = Outcome { rows_in, ..Outcome::default() };
        for (n, rows) in draw.finish(task.inputs.len()).into_iter().enumerate() {
            outcome.rows_out += rows.len() as u64;
            outcome.data.push(write(&task.attempt.numbered(n), rows)?);
        }
        Ok(outcome)
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let shards = rows::open(task.inputs)?;
        let keep = if self.limit.is_some() {
            rows::listed(&rows::survey(task)?, rows::count(&shards))?
        } else {
            let mut keep = Vec::with_capacity(rows::count(&shards));
            self.lots(&shards, task, |_, lot| keep.push(self.contains(lot)))?;
            BooleanArray::from(keep)
        };
        let mut outcome = rows::copy(task, &shards, &keep, |_, _, _| {
            // It counts as seen: nothing is wrong with it.
            task.tally.good(1);
            Ok(())
        })?;
        let left_out = outcome.rows_in - outcome.rows_out;
        if left_out > 0 {
            outcome.dropped.insert("not_sampled".to_owned(), left_out);
        }
        Ok(outcome)
    }
}

/// What the survey leaves for a partition: the numbers of its chosen rows.
fn write(path: &Path, rows: Vec<u64>) -> Result<DataFile, StageError> {
    let schema = Arc::new(Schema::new(vec![Field::new(rows::ROW, DataType::UInt64, false)]));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(UInt64Array::from(rows))]);
    let mut writer = ShardWriter::create(path, &schema)?;
    writer.write(&batch.map_err(ShardError::arrow(path))?)?;
    Ok(writer.finish()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subset(fraction: f64, seed: u64) -> Subset {
        Subset { fraction: Some(fraction), limit: None, seed }
    }

    #[test]
    fn a_fraction_is_about_that_share_and_contains_smaller_ones() {
        let chosen = |fraction, seed| -> Vec<usize> {
            let subset = subset(fraction, seed);
            (0..20_000).filter(|i| subset.contains(subset.lot(&format!("laion/{i:09}")))).collect()
        };
        let (tenth, fifth) = (chosen(0.1, 0), chosen(0.2, 0));
        assert!((1850..2150).contains(&tenth.len()), "{}", tenth.len());
        assert!(tenth.iter().all(|row| fifth.binary_search(row).is_ok()));
        assert_eq!(chosen(1.0, 0).len(), 20_000);
        let other = chosen(0.1, 1);
        let common = tenth.iter().filter(|row| other.binary_search(row).is_ok()).count();
        assert!((130..270).contains(&common), "another seed is another draw: {common} of 2000 in common");
        assert!(!subset(f64::MIN_POSITIVE, 0).contains(u128::MAX) && subset(1.0, 0).contains(u128::MAX));
    }

    #[test]
    fn lots_are_what_they_were() {
        // Another hash would choose other rows under an unchanged fingerprint.
        assert_eq!(format!("{:032x}", subset(1.0, 7).lot("cc12m/42")), "8430b7ad0fe704b7ca9a62417f5f13c2");
    }

    proptest! {
        #[test]
        fn a_draw_keeps_the_smallest(lots in prop::collection::vec((0..50u128, 0..3u32), 0..60), limit in 1..40u64) {
            let rows: Vec<Drawn> =
                lots.iter().zip(0..).map(|((lot, partition), row)| Drawn { lot: *lot, partition: *partition, row }).collect();
            let mut draw = Draw::new(limit);
            for row in &rows {
                draw.offer(*row);
            }
            let mut sorted = rows.clone();
            sorted.sort();
            sorted.truncate(limit as usize);
            let expected: Vec<Vec<u64>> = (0..3)
                .map(|partition| {
                    let mut rows: Vec<u64> = sorted.iter().filter(|r| r.partition == partition).map(|r| r.row).collect();
                    rows.sort_unstable();
                    rows
                })
                .collect();
            prop_assert_eq!(draw.finish(3), expected);
        }
    }
}
