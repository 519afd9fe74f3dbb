//! Why ranks do not come together, or do not stay together.

use std::io;
use std::sync::Arc;

use super::roles::RoleFault;

/// What keeps ranks from working together. It can be cloned, for every thread that waits gets the same one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RankError {
    #[error(
        "{} set, but {} not: this would be one rank of several; start all of them with `ferrotype launch`, torchrun or srun, or unset what is set",
        are(set),
        are(missing)
    )]
    VariablesMissing { set: Vec<String>, missing: Vec<String> },
    #[error("the environment variable {name} = {value:?} is not possible: {expected}")]
    Variable { name: String, value: String, expected: String },
    #[error(
        "the roles do not fit a world of {size} ranks: {}; change `loaders` or `models_per_loader`",
        join(faults, "; ")
    )]
    Roles { size: usize, faults: Vec<RoleFault> },
    #[error("rank {rank} cannot listen on port {port}; choose another one by MASTER_PORT")]
    Listen { rank: usize, port: u16, source: Arc<io::Error> },
    #[error(
        "{} of {size} did not come to rank 0 at port {port} within {seconds} s; see what they wrote, and that they can reach this machine on that port",
        ranks_in_words(ranks)
    )]
    NeverCame { ranks: Vec<usize>, size: usize, port: u16, seconds: u64 },
    #[error(
        "rank {rank} found no rank 0 at {address} within {seconds} s: {reason}; check that rank 0 runs, MASTER_ADDR and MASTER_PORT"
    )]
    NoMaster { rank: usize, address: String, seconds: u64, reason: String },
    #[error("rank 0 at {address} sends rank {rank} away: {reason}")]
    Refused { rank: usize, address: String, reason: String },
    /// The first rank that was lost, the same one on all ranks.
    #[error("rank {rank} is lost: {reason}")]
    PeerLost { rank: usize, reason: String },
    #[error(
        "rank {rank} has left already, while this rank still counts on it; the ranks do not agree on what there is to do"
    )]
    Left { rank: usize },
    #[error(
        "a message of {length} bytes to rank {rank} is longer than the {limit} bytes that a message may have; send it in parts"
    )]
    TooLong { rank: usize, length: u64, limit: u64 },
    #[error("there is no rank {rank} {among}")]
    NoSuchRank { rank: usize, among: String },
    #[error("channel {channel} is not one of those for messages, which end at {end}; this is a fault in the program")]
    Channel { channel: u32, end: u32 },
    #[error(
        "rank {rank} sent {found} bytes for {what} where {expected} were expected: the ranks do not do the same; start all of them with one configuration and one version"
    )]
    Mismatch { rank: usize, what: &'static str, found: usize, expected: usize },
    #[error("cannot {action}")]
    Io { action: &'static str, source: Arc<io::Error> },
}

impl RankError {
    pub(super) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source: Arc::new(source) }
    }
}

fn are(names: &[String]) -> String {
    format!("{} {}", names.join(", "), if names.len() == 1 { "is" } else { "are" })
}

fn join<T: ToString>(items: &[T], between: &str) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(between)
}

/// `rank 3`, or `ranks 3, 4 and 7`.
pub(super) fn ranks_in_words(ranks: &[usize]) -> String {
    match ranks {
        [] => "no rank".to_owned(),
        [one] => format!("rank {one}"),
        [first @ .., last] => format!("ranks {} and {last}", join(first, ", ")),
    }
}
