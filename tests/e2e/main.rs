//! The binary from outside: exit codes, messages, files; killed, interrupted and run again.

mod bad_input;
mod demo;
mod interruption;
mod support;
