//! The binary from outside: exit codes, messages, files; killed, interrupted and run again.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod bad_input;
#[cfg(feature = "cluster")]
mod ballista;
mod buckets;
mod captions;
mod captions_batch;
mod captions_server;
mod demo;
mod deploy;
mod encode;
mod engine;
mod evaluate;
mod inspect;
mod interruption;
mod loader;
mod manifests;
mod notify;
mod other_trainers;
mod pictures;
mod report;
mod schema;
mod setup;
mod slurm;
mod sources;
mod store;
mod submit;
mod support;
mod training;
mod urls;
mod web;
mod webdataset;
mod weights;
