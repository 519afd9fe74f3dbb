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
//! A key does not depend on the partition, but a row may come to another one, when pictures come in between those of its source. Then
//! the journals of partitions that have lost rows are looked into as well.
//!
//! - [`entry`]: a question's key, its answer, and the line that holds both.
//! - [`segment`]: reading segments, and merging them.
//! - [`others`]: what the journals of other partitions hold.
//! - [`writer`]: appending, by groups that become durable together.

pub mod entry;
mod error;
pub mod others;
pub mod segment;
pub mod writer;

pub use entry::{CacheKey, Entry, Question};
pub use error::JournalError;
pub use others::Others;
pub use segment::{Cache, Compacted, compact, read_folder, read_segment, segment_of};
pub use writer::{Grouping, Hook, Journal};
