//! A Ballista cluster: one scheduler, any number of executors, and runs that have their partitions made there.
//!
//! A table of partitions (a row is an [`pipeline::run::Order`]) is a physical plan that calls one function for each row, each row a task of its own;
//! Ballista finds it an executor and, where one is lost, another. The function makes the partition as a run on that machine would
//! and commits it; so nothing but names travels, and what is made twice is committed once. Images stay where they are.
//!
//! Anybody who reaches the ports can have code run that a manifest describes: there is no authentication.

mod client;
mod executor;
mod function;
mod running;
mod scheduler;

use std::io::Write as _;
use std::path::PathBuf;
use std::str::FromStr;

use ballista_core::error::BallistaError;
use datafusion::error::DataFusionError;
use serde::{Deserialize, Serialize};

pub use client::Cluster;
pub use executor::Executor;
pub use scheduler::{Patience, Scheduler};

/// Bytes of the largest message: a table's rows, or the records behind the one row that reads them all.
const MESSAGE: u32 = 256 << 20;

/// Where a scheduler listens: `ballista://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

impl Address {
    fn url(&self) -> String {
        format!("http://{self}")
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = text.strip_prefix("ballista://").unwrap_or(text);
        let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        match parts {
            Some((host, port)) if !host.is_empty() && !host.contains('/') => Ok(Self { host: host.to_owned(), port }),
            _ => Err(format!("`{text}` is no scheduler's address: write ballista://HOST:PORT")),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The manifest that executors make plans of, as a run has read it: it may be edited meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Manifest {
    pub text: String,
    /// Its file's name, for messages.
    pub file: PathBuf,
    /// Overrides of its keys.
    pub sets: Vec<String>,
}

/// What a table's rows have in common, as it travels.
#[derive(Debug, Serialize, Deserialize)]
struct Table {
    manifest: Manifest,
    /// The run's mark in the workdir.
    runner: String,
}

/// Why a cluster is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("no scheduler answers at ballista://{address} ({detail}); `ferrotype scheduler` starts one")]
    Unreachable { address: Address, detail: String },
    #[error("the scheduler at ballista://{address}: {detail}")]
    Refused { address: Address, detail: String },
    #[error(
        "this executor ends: the scheduler at ballista://{address} did not answer five of its signs of life in a row, or took it for lost; \
         start it again when that is there"
    )]
    Dismissed { address: Address },
    #[error("the job of {stage} ({partitions} partitions) ended: {detail}")]
    Failed { stage: String, partitions: usize, detail: String },
    #[error("cannot {action} {what}")]
    Io { action: &'static str, what: String, source: std::io::Error },
    #[error(transparent)]
    Plan(#[from] DataFusionError),
    #[error(transparent)]
    Ballista(#[from] BallistaError),
}

impl ClusterError {
    /// For `map_err` on what the system does.
    fn io(action: &'static str, what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.to_string();
        move |source| Self::Io { action, what, source }
    }
}

/// Shows what Ballista warns of on standard error: of some faults nothing else tells.
pub fn show_warnings() {
    struct Warnings;
    impl log::Log for Warnings {
        fn enabled(&self, metadata: &log::Metadata) -> bool {
            metadata.level() <= log::Level::Warn && metadata.target().starts_with("ballista")
        }

        fn log(&self, record: &log::Record) {
            if self.enabled(record.metadata()) {
                // Nobody may listen, which is no reason to end.
                let _ = writeln!(std::io::stderr(), "{}: {}", record.level().as_str().to_lowercase(), record.args());
            }
        }

        fn flush(&self) {}
    }
    // Another logger that is set already shows more.
    if log::set_logger(&Warnings).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for text in ["ballista://node1:50050", "node1:50050"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), "node1:50050");
        }
        for text in ["", "node1", ":50050", "ballista://node1", "http://node1:1", "node1:port", "node1:70000"] {
            assert!(text.parse::<Address>().unwrap_err().contains("ballista://HOST:PORT"), "{text}");
        }
    }
}
