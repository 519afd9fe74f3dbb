//! `download`: a list of URLs to shards of images.
//!
//! - in: a list in any of img2dataset's formats, here or on a store ([`url_list`]); each partition is a run of its rows
//! - out: key, image (as served, or resized), caption, url, width, height (upright), a hash of the bytes as served, further
//!   columns of the list; in the order of the list, whatever order the answers came in. Or img2dataset's layout
//!   ([`webdataset`])
//! - stale when: the rows of its partition, or a parameter of [`parameters::Semantics`] changed
//! - law: in = out + Σ dropped by reason ([`network::Refusal::reason`])

mod live;
mod network;
mod order;
mod output;
mod parameters;
mod partition;
mod row;
mod url_list;
mod webdataset;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use schemars::schema_for;
use serde_json::Value;
use shards::columns;
use shards::reader::Shard;

use self::live::Live;
use self::network::Network;
use self::output::Output;
use self::parameters::{Operations, Semantics, Wanted, default_rows};
use self::partition::Partition;
use self::url_list::Rows;
use crate::stage::{Facts, Law, Load, Outcome, Partitioning, Source, Stage, StageError, StageKind, Task};

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "download",
        version: 2,
        about: "Fetches a list of URLs into shards of images.",
        inputs: (0, 0),
        schemas: || vec![schema_for!(Semantics), schema_for!(Operations)],
        rehearse: |parameters, rows| {
            let usual = parameters.read::<Semantics>().map_or_else(|_fault| default_rows(), |s| s.rows_per_shard);
            // Several partitions, so that what runs beside each other later does so now.
            let shard = usual.min(rows.div_ceil(4)).max(1);
            vec![("limit", rows.into()), ("rows_per_shard", shard.into())]
        },
        build: |parameters| {
            let wanted = Wanted::read(parameters)?;
            let semantics = Arc::new(wanted.semantics.clone());
            Ok(Box::new(Download { semantics, wanted, network: Mutex::default(), live: Live::new() }))
        },
    }
}

struct Download {
    wanted: Wanted,
    semantics: Arc<Semantics>,
    /// Shared by all partitions; there from the first one on.
    network: Mutex<Option<Arc<Network>>>,
    live: Live,
}

impl Stage for Download {
    fn semantics(&self) -> Value {
        serde_json::to_value(self.semantics.as_ref()).unwrap_or_default()
    }

    fn partitioning(&self) -> Partitioning {
        Partitioning::Source
    }

    fn law(&self) -> Law {
        Law::RowWise
    }

    fn facts(&self) -> Facts {
        match self.semantics.output {
            parameters::Output::Parquet => Facts::new(),
            parameters::Output::Webdataset => [(crate::stage::NOT_SHARDS.to_owned(), "webdataset".into())].into(),
        }
    }

    fn load(&self) -> Load {
        Load::Network(self.wanted.operations.partitions)
    }

    fn sources(&self, folder: &Path) -> Result<Vec<Source>, StageError> {
        self.wanted.list.partitions(folder).map_err(StageError::failed)
    }

    fn may_retry(&self) -> bool {
        true
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let rows = match task.retry {
            Some(list) => self.rows_to_try_again(list, task)?,
            None => self.wanted.list.rows(&task.folder.path(), task.number).map_err(StageError::failed)?,
        };
        let network = self.network()?;
        let operations = &self.wanted.operations;
        let partition = Partition {
            network: &network,
            semantics: &self.semantics,
            live: &self.live,
            // All partitions together hold less than there is, so that what comes next always finds room.
            most_waiting: operations.buffer_bytes / (4 * operations.partitions as u64),
        };
        partition.make(&rows, Output::create(&rows, &self.semantics, task)?, task)
    }
}

impl Download {
    fn network(&self) -> Result<Arc<Network>, StageError> {
        let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(network) = network.as_ref() {
            return Ok(Arc::clone(network));
        }
        let Wanted { operations, connect_to, nameservers, allowed, .. } = &self.wanted;
        let new = Network::new(&self.semantics, operations, connect_to, nameservers, allowed);
        let new = Arc::new(new.map_err(StageError::failed)?);
        *network = Some(Arc::clone(&new));
        Ok(new)
    }

    /// The rows of the list whose keys `retry` wrote down: the list knows more of them than the quarantine.
    fn rows_to_try_again(&self, keys: &Path, task: &Task) -> Result<Rows, StageError> {
        let shard = Shard::open(keys)?;
        let mut places = Vec::new();
        for batch in shard.batches(Some(&[columns::KEY]), 65_536)? {
            let batch = batch?;
            let texts = shard.text(&batch, columns::KEY)?;
            for key in texts.iter().flatten() {
                let place = self.wanted.list.locate(&task.folder.path(), key).map_err(StageError::failed)?;
                places.push(place.ok_or_else(|| StageError::failed(format!("the list has no row {key} any more")))?);
            }
        }
        let Some((number, _)) = places.first().copied() else {
            return Err(StageError::failed(format!("{} lists no rows", keys.display())));
        };
        // A list of rows to try again is of one partition.
        let rows = self.wanted.list.rows(&task.folder.path(), number).map_err(StageError::failed)?;
        rows.only(places.into_iter().map(|(_, row)| row)).map_err(StageError::failed)
    }
}
