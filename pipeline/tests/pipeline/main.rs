//! The crate from outside. The engine's tests run synthetic stages, so that what is tested is the engine and not what stages do.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod bucket;
mod dedup;
mod executors;
mod export;
mod extract;
mod faults;
mod garbage;
mod import;
mod incremental;
mod index;
mod manifest_faults;
mod publish;
mod publish_hub;
mod retried;
mod samples;
mod sharing;
mod simulation;
mod sql;
mod stores;
mod subset;
mod synthetic;
mod webdataset;
mod workers;
