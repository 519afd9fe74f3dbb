//! What a model is asked.
//!
//! - [`template`]: text with columns' names in braces; `value`: a row's value as it may stand in a prompt.
//! - `stage`: the prompts of the two stages, and their defaults.

mod stage;
pub mod template;
mod value;

pub use stage::{ALT, CAPTION, Prompt};
pub use template::{Template, TemplateError, TemplateFault};
pub use value::LONGEST_VALUE;
