//! Manifest → plan → run: the DAG engine and the stages that prepare data. Knows no torch.
//!
//! Three types for three moments: a [`manifest::Manifest`] is what was written, a [`plan::Plan`] what it resolves to (only a
//! checked manifest yields one), and [`shards::event::Event`]s are what happened. Stage kinds are registered by name in a
//! [`stage::Registry`]; the binary adds the kinds that need torch.
//!
//! - [`manifest`]: TOML with places, so that every fault names its line.
//! - [`stage`]: what a stage is, and what it is given to work with.
//! - [`plan`], [`ledger`]: what would run, and why.
//! - [`run`]: partitions in parallel, committed one by one, by any number of processes. [`retry`]: refused rows once more.
//! - [`stages`]: fetch, download, extract, import, merge, union, filter, sql, dedup, subset, bucket, index, export, publish.
//! - [`forecast`]: which buckets images would fall into, before any is resized.
//! - [`report`]: one self-contained page about a workdir. [`graph`]: the DAG, drawn.
//! - [`notify`]: tells someone how a run ended.
//! - [`explain`], [`query`], [`verify`], [`garbage`]: looking into what is committed, and clearing away what is not needed.

mod condition;
pub mod explain;
pub mod forecast;
pub mod garbage;
pub mod graph;
pub mod ledger;
pub mod manifest;
pub mod notify;
pub mod plan;
pub mod quarantine;
pub mod query;
mod remote;
pub mod report;
pub mod retry;
pub mod run;
pub mod stage;
pub mod stages;
pub mod verify;
