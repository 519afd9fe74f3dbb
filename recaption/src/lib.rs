//! Captions for images: a long one by a vision model from the image and its alt text, a short one by a language model from the
//! long one.
//!
//! Knows no manifest. Whoever answers is a [`Captioner`].
//!
//! - [`captioner`]: one question, one answer, and why there may be none.
//! - [`server`]: a captioner: a fleet of OpenAI-compatible servers.
//! - [`in_process`]: another: LLaVA-NeXT or a Llama on libtorch.
//! - [`prompt`]: what is asked. [`checks`]: what is wrong with an answer, and what is done then; what is mended is in the room
//!   [`captions`].
//! - [`journal`]: what was answered, kept as it comes, and found again.
//! - [`job`]: both captions of all rows of a partition. [`trial`]: of single pictures, to see what a prompt gives.
//! - [`batch_file`]: requests and results as files. [`ready`]: captions that others have made.

pub mod batch_file;
pub mod captioner;
pub mod checks;
pub mod in_process;
pub mod job;
pub mod journal;
mod lines;
mod nobody;
pub mod prompt;
pub mod ready;
pub mod server;
pub mod trial;

pub use captioner::{Captioner, Completion, Failure, Finish, Request, Sampling, Usage};
pub use nobody::Nobody;
