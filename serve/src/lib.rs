//! Pictures over HTTP: the OpenAI images API and a web page, before one generator.
//!
//! Knows no torch and no checkpoint: the binary gives it a [`Generator`], which works on one thread of its own. Everybody else
//! waits in a bounded queue. A client that leaves is taken out of it, and a picture that nobody waits for any more is stopped
//! at its next step.
//!
//! ```text
//! POST /v1/images/generations   OpenAI's, with `negative_prompt`, `steps`, `guidance`, `sampler`, `shift` and `seed`
//! GET  /v1/models               the one model
//! POST /api/pictures            the same orders, answered by events: accepted, queued, progress, done, error
//! GET  /api/description         what the page must know of the generator and of the limits
//! GET  /pictures/<id>.png       pictures asked for by URL, while they are kept
//! GET  /health                  whether it works, and how many wait
//! GET  /                        the page
//! ```

mod api;
mod connections;
mod description;
mod error;
mod event;
mod generator;
mod host;
mod options;
mod order;
mod page;
mod queue;
mod server;
mod store;
mod worker;

pub use description::{Defaults, Description, Size};
pub use error::ServeError;
pub use event::{Event, Outcome};
pub use generator::{GenerateError, Generator, PictureRequest, Truncation};
pub use options::{Limits, Options};
pub use server::Server;
