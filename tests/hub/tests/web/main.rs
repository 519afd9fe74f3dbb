//! The hub over plain HTTP: what it answers, to whom, and what goes wrong when it is told to.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod access;
mod faults;
mod listing;
mod reading;
mod support;
mod writing;
