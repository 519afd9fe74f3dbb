//! Partitions made by a cluster: what it is told of them, and what it may answer.
//!
//! A run with an executor still decides what is ready and when it is enough; the cluster decides which of its machines makes
//! what. Both have the manifest and the workdir, so that an order is only names: of a partition, and of the records of what it is
//! made from.

use std::error::Error;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shards::digest::Digest;

use crate::stage::{Cancel, Queries};

/// One partition that is to be made by another process, which has a plan of the same manifest ([`super::Workshop`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub stage: String,
    /// `part-00012`, or [`crate::plan::SURVEY`].
    pub partition: String,
    /// What it must come to: a process that sees other inputs, or another version of the stage, may not make it.
    pub fingerprint: Digest,
    /// The records of what it is made from; empty for partitions that come from outside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Record>,
    /// The record of the stage's survey, where it needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub survey: Option<String>,
    /// Whether to make it although it is there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// A committed record, by its place in the workdir.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub stage: String,
    /// `part-00012.5b0e7f31.json`
    pub file: String,
}

/// Where partitions are made, if not on this process's threads.
pub trait Executor: Sync {
    /// How many partitions it wants to have at a time: enough to keep it busy.
    fn at_a_time(&self) -> usize;

    /// Its machines as ones that answer queries, where they do.
    fn queries(&self) -> Option<Arc<dyn Queries>> {
        None
    }

    /// Has these partitions of one stage made, each as often as it takes where machines are lost, and waits for their end. What is
    /// committed then counts as made, whatever is answered. `runner` is the run's mark in the workdir
    /// ([`shards::lease::Runner::id`]), by which others know that it is the same workdir. Ends early once `enough` is cancelled.
    fn make(&self, runner: &str, orders: &[Order], enough: &Cancel) -> Result<(), NotMade>;
}

/// Why an executor made less than it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NotMade {
    #[error("interrupted")]
    Interrupted,
    /// The stage failed at this partition. The others may have been given up for it.
    #[error("{partition}: {error}")]
    Partition { partition: String, error: String },
    /// The cluster itself failed.
    #[error(transparent)]
    Cluster(Box<dyn Error + Send + Sync>),
}
