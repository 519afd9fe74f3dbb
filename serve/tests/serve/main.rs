//! The server from outside, on loopback.

#![allow(clippy::unwrap_used, reason = "this is a test")]

mod cancellation;
mod clients;
mod contract;
mod malformed;
mod queue;
mod support;
