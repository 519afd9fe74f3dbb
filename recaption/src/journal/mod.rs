//! What was answered, kept as it comes: a partition's journal is its cache of captions.
//!
//! ```text
//! captions/part-00012/
//!     <attempt>.jsonl         a segment: one attempt's answers, written by that attempt alone
//!     <attempt>.jsonl
//! ```
//!
//! Every attempt at a partition begins a segment of its own, so a worker that was taken for dead and is not does no harm, and it
//! reads all of them, so what any attempt paid for is not paid for again. A line is one answer, with a checksum; whatever breaks
//! a line, it is skipped and counted, and the question is asked again.
//!
//! - [`entry`]: a question's key, its answer, and the line that holds both.
//! - [`segment`]: reading segments, and merging them.
//! - [`writer`]: appending, by groups that become durable together.

pub mod entry;
mod error;
pub mod segment;
pub mod writer;

pub use entry::{CacheKey, Entry, Question};
pub use error::JournalError;
pub use segment::{Cache, Compacted, compact, read_folder, read_segment, segment_of};
pub use writer::{Grouping, Hook, Journal};
