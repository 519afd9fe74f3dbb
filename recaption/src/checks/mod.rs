//! What is wrong with a caption, by name, and what is done about it.
//!
//! - [`flag`]: the names, and a policy for each.
//! - [`settings`]: the thresholds, and [`Checks::judge`], which looks for all of them.
//! - `repetition`, `refusal`, `chatter`, `language`: the checks, as pure functions; `text`: a caption as they see it.
//! - [`sentences`]: sentences and words, and what a short caption falls back to.

mod chatter;
pub mod flag;
mod language;
mod refusal;
mod repetition;
pub mod sentences;
pub mod settings;
mod text;

pub use chatter::Instructions;
pub use flag::{Flag, Policies, Policy};
pub use language::Language;
pub use settings::{Checks, Context, Kind};
