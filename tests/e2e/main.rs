//! The binary from outside: exit codes, messages, files; killed, interrupted and run again.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod bad_input;
mod demo;
mod inspect;
mod interruption;
mod support;
mod weights;
