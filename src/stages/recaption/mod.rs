//! `recaption`: a long caption from image and alt text, a short one from the long one.
//!
//! - in: shards with key, image and an alt text (`caption`), and whatever columns the prompts name
//! - out: the same columns and recaption, recaption_short, for the rows whose captions are good; in the order of the input
//! - stale when: a prompt, a model, a check, a setting of the sampling, or its input changed. What was answered before is in the
//!   stage's folder (`captions/`), so that only what changed is asked again, also where rows have come to other partitions
//! - law: in = out + Σ dropped (a check's name, or why a captioner gave no answer)

pub(crate) mod batch;
mod captioners;
mod journals;
mod parameters;
mod partition;
mod rows;
mod summary;

use std::collections::HashSet;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Result, bail};
use pipeline::manifest::{Diagnostics, Manifest, StageTable, property_names, schemas};
use pipeline::stage::{Law, Load, Outcome, Partitioning, Stage, StageError, StageKind, Task, as_it_is};
use recaption::checks::Kind;
use recaption::journal::Others;
use schemars::schema_for;
use serde_json::Value;
use shards::commit::StageFolder;
use shards::event::EventSink;
use shards::sidecar::Sidecar;

use self::captioners::Captioners;
use self::journals::Journals;
use self::parameters::Parameters;
pub(crate) use self::parameters::Recaption;
use crate::errors::Usage;

/// Partitions that are worked on at a time: while the last rows of one are waited for, those of the next are asked.
const PARTITIONS: usize = 2;

pub(super) fn kind() -> StageKind {
    StageKind {
        name: "recaption",
        version: 2,
        about: "Captions images by a vision model, and shortens the captions by a language model.",
        inputs: (1, 1),
        schemas: || vec![schema_for!(Parameters)],
        rehearse: as_it_is,
        build: |parameters| {
            let recaption = Recaption::read(parameters)?;
            Ok(Box::new(RecaptionStage {
                recaption,
                captioners: Mutex::default(),
                passed: Mutex::default(),
                others: OnceLock::new(),
            }))
        },
    }
}

/// A manifest's recaption stage: the one of this name, or the first. Nothing but its own table is looked at.
pub(crate) fn find<'a>(manifest: &'a Manifest, stage: Option<&str>) -> Result<(&'a StageTable, Recaption)> {
    let kind = kind();
    let is_meant = |table: &&StageTable| table.uses.0 == kind.name && stage.is_none_or(|name| table.name == name);
    let Some(table) = manifest.stages.iter().find(is_meant) else {
        let which = stage.map_or(String::new(), |name| format!(" {name}"));
        bail!(Usage(format!("{} has no recaption stage{which}", manifest.file.display())));
    };
    let mut faults = table.parameters.unknown(&(kind.schemas)(), &property_names(&schemas().1));
    match Recaption::read(&table.parameters) {
        Ok(recaption) if faults.is_empty() => Ok((table, recaption)),
        Ok(_) => Err(Diagnostics(faults).into()),
        Err(fault) => {
            faults.push(fault);
            Err(Diagnostics(faults).into())
        }
    }
}

struct RecaptionStage {
    recaption: Recaption,
    /// Shared by all partitions; there from the first one on.
    captioners: Mutex<Option<Captioners>>,
    /// The captions of which some that a model made are committed.
    passed: Mutex<HashSet<Kind>>,
    /// Journals that may know rows which came to another partition; shared by all partitions.
    others: OnceLock<Option<Others>>,
}

impl RecaptionStage {
    fn captioners(&self) -> Result<Captioners, StageError> {
        let mut kept = self.captioners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(captioners) = kept.as_ref() {
            return Ok(captioners.clone());
        }
        let new = Captioners::start(&self.recaption)?;
        for kind in &*self.passed.lock().unwrap_or_else(PoisonError::into_inner) {
            new.meter.passed_before(*kind);
        }
        Ok(kept.insert(new).clone())
    }
}

impl Stage for RecaptionStage {
    fn semantics(&self) -> Value {
        self.recaption.semantics()
    }

    fn partitioning(&self) -> Partitioning {
        Partitioning::EachInput
    }

    fn law(&self) -> Law {
        Law::RowWise
    }

    fn load(&self) -> Load {
        Load::Network(PARTITIONS)
    }

    fn origin(&self, partition: &Sidecar) -> Vec<(String, String)> {
        summary::origin(partition)
    }

    fn committed(&self, _folder: &StageFolder, sidecar: &Sidecar, _events: &EventSink) -> Result<(), StageError> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).extend(summary::passed(sidecar));
        Ok(())
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let others = self.others.get_or_init(|| Journals::of_former(task.folder, task.former));
        partition::make(&self.recaption, &self.captioners()?, others.clone(), task)
    }
}
