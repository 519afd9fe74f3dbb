//! Captions from a model in this process: LLaVA-NeXT, or a Llama for requests without an image, on libtorch.
//!
//! ```text
//! complete ─► prepared on other threads: prompt to tokens (chat), image to pixels ─► bounded queue ─► engine's thread
//!                                                                                                      │ slot free: prefill
//!     answer's tokens to text ◄──────────────────────────────────────────────────────── stop token ◄──┘ all slots: decode
//! ```
//!
//! The [engine] owns the model and a cache with a fixed number of slots. A slot whose answer has ended is filled again at
//! once, while the others keep their state. An answer does not depend on what else is in the batch: each sequence lies in its
//! slot from position 0 on, and random numbers are keyed by the request's seed and the token's place.

mod captioner;
mod chat;
mod chat_files;
mod engine;
mod model;
mod options;
mod question;
mod status;

pub use captioner::InProcessCaptioner;
pub use options::{Dtype, InProcessError, InProcessOptions, Operations, Semantics};
pub use question::{Step, Watch};
pub use status::InProcessStatus;
