//! The models against their reference implementations' numbers, real files and unfriendly ones.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

#[path = "../../examples/parity/check.rs"]
mod check;
#[path = "../../examples/parity/hugging_face.rs"]
mod hugging_face;
#[path = "../../examples/parity/mmdit.rs"]
mod mmdit;

mod bad_files;
mod few_words;
mod inception;
mod invariance;
mod layouts;
mod parity;
mod published;
mod smollm2;
mod text;
mod tokenizers;
