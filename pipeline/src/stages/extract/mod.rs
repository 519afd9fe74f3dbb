//! `extract`: webdataset tars, such as img2dataset's of LAION, to shards.
//!
//! - in: tars on this machine, also compressed by gzip or zstd, `tars_per_shard` of them for each partition ([`division`]); or,
//!   with `from`, those among the files of a stage, a partition for each of its own
//! - out: key (`{source}/{webdataset's key}`), image (bytes as they are), caption (the .txt, or a field of the JSON), url, width,
//!   height (upright), sha256, and fields of the JSON ([`super::fields`]); with `classes` also class and class_id; in the order of the tars' names and of
//!   their members
//! - stale when: a tar of its partition changed ([`super::outside::digest`] says what is looked at), or a parameter of
//!   [`parameters::Semantics`]
//! - law: in = out + Σ dropped: of images `no_image`, `not_an_image`, `damaged_image`, `too_many_pixels`, `too_large`; of
//!   members `damaged_member`, `duplicate_member`, `sparse_member`; `duplicate_key`, `unknown_class`; of tars `truncated_tar`,
//!   `damaged_tar`
//!
//! A sample is in as soon as a member of it is met. A tar that is cut off or damaged gives the samples before that; the sample
//! that was under way is refused, with the tar and the place, or, where none was, the tar counts as a row itself. A key that
//! comes twice is refused the second time, within a partition; those of different partitions are not compared, as they are not
//! in other stages that read from outside (img2dataset's keys name their shard).
//!
//! Tars are untrusted: nothing is unpacked to disk, names are data, and sizes are checked before memory is spent ([`archive`]).
//! `delete_inputs` is in [`deletion`].

mod archive;
mod deletion;
mod division;
mod error;
mod parameters;
mod sample;
mod shard;

use std::sync::{Arc, Mutex, PoisonError};

use schemars::schema_for;
use serde_json::Value;
use shards::commit::StageFolder;
use shards::event::EventSink;
use shards::sidecar::Sidecar;

use self::division::Division;
use self::error::ExtractError;
use self::parameters::{Operations, Semantics, TARS, Wanted};
use self::shard::ShardMaker;
use crate::ledger::Ledger;
use crate::stage::{FILES, Law, NAMES, Outcome, Partitioning, Source, Stage, StageError, StageKind, Task};
use crate::stages::outside::{OutsideFile as Tar, look};

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "extract",
        version: 1,
        about: "Takes webdataset tars into shards.",
        inputs: (0, 1),
        schemas: || vec![schema_for!(Semantics), schema_for!(Operations)],
        // Of several tars, so that what runs beside each other later does so now.
        rehearse: |parameters, rows| {
            let samples = rows.div_ceil(4).max(1);
            if !parameters.has("tars") {
                return vec![("samples_per_tar", samples.into())];
            }
            vec![
                ("limit", 4.into()),
                ("tars_per_shard", 1.into()),
                ("samples_per_tar", samples.into()),
                ("delete_inputs", false.into()),
            ]
        },
        build: |parameters| Ok(Box::new(Extract { wanted: Wanted::read(parameters)?, division: Mutex::default() })),
    }
}

/// What the output of `download` and `export` may be, as [`crate::stage::NOT_SHARDS`] says.
const WEBDATASET: &str = "webdataset";

struct Extract {
    wanted: Wanted,
    /// As of the last plan.
    division: Mutex<Option<Arc<Division>>>,
}

impl Stage for Extract {
    fn semantics(&self) -> Value {
        self.wanted.semantics()
    }

    fn partitioning(&self) -> Partitioning {
        if self.wanted.places.is_some() { Partitioning::Source } else { Partitioning::EachInput }
    }

    fn reads(&self, format: &str) -> bool {
        [WEBDATASET, FILES].contains(&format)
    }

    fn law(&self) -> Law {
        Law::RowWise
    }

    fn sources_after(&self, ledger: &Ledger) -> Result<Vec<Source>, StageError> {
        let Wanted { operations, places: Some(places), .. } = &self.wanted else { return Ok(Vec::new()) };
        let division = Division::make(places, ledger, operations.tars_per_shard, operations.limit)?;
        let sources = division.sources(ledger);
        *self.division.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(division));
        Ok(sources)
    }

    fn committed(&self, folder: &StageFolder, sidecar: &Sidecar, events: &EventSink) -> Result<(), StageError> {
        if !self.wanted.operations.delete_inputs {
            return Ok(());
        }
        let division = self.division(&sidecar.partition)?;
        deletion::delete(&division, folder, sidecar, events)
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let mut shard = ShardMaker::new(&self.wanted, task)?;
        if self.wanted.places.is_none() {
            of_inputs(task, &mut shard)?;
            return shard.finish();
        }
        let division = self.division(task.partition)?;
        for tar in division.begin(task.folder, task.number)? {
            shard.take(tar)?;
        }
        shard.finish()
    }
}

impl Extract {
    fn division(&self, partition: &str) -> Result<Arc<Division>, StageError> {
        let division = self.division.lock().unwrap_or_else(PoisonError::into_inner);
        division.clone().ok_or_else(|| StageError::NotPlanned { partition: partition.to_owned() })
    }
}

/// Takes in the tars among the files of the inputs.
fn of_inputs(task: &Task, shard: &mut ShardMaker) -> Result<(), StageError> {
    for input in task.inputs {
        let is_fetched = input.sidecar.details.contains_key(NAMES);
        if !is_fetched && !input.named_files().any(|(name, _)| TARS.is_one(&name)) {
            return Err(ExtractError::NoTars(format!("{} of {}", input.sidecar.partition, input.stage)).into());
        }
        for (file, (name, path)) in input.sidecar.data.iter().zip(input.named_files()) {
            if TARS.is_one(&name) {
                let state = look(&path).map_err(StageError::io("look at", &path))?;
                shard.take(&Tar { name, path: Some(path), state, digest: file.digest })?;
            } else if is_fetched {
                // What lies beside a tar of ours is about it.
                shard.note("skipped: no tar");
            }
        }
    }
    Ok(())
}
