//! The demo origin: an HTTP server inside the binary that behaves like the web.
//!
//! A real data set begins as a list of URLs, most of which lead to a picture and some of which lead to trouble. This crate makes
//! such a list, and serves it, on a machine without a network:
//!
//! - a [`Catalogue`] is the list. It draws every picture's [`Scene`] from a seed, decides which URLs misbehave and how ([`Fault`]),
//!   and writes URLs and captions as a tab-separated table;
//! - an [`Origin`] is the server. It renders a scene when it is asked for, and plays the fault that the catalogue planted;
//! - [`palette`] names the dozen colours of the backgrounds, which the evaluation of the trained model needs to know as well.
//!
//! The same seed gives the same list and the same bytes for ever: nothing depends on time, on thread count or on the order of
//! requests, except the faults that happen once and are then gone. The crate knows nothing of the rest of Ferrotype.

mod assets;
mod caption;
mod catalogue;
mod fault;
pub mod palette;
mod random;
mod render;
mod scene;
mod server;

pub use catalogue::{Catalogue, ColorPrompt, DEFAULT_PICTURES, DEFAULT_SEED, Entry, HOST, Subject};
pub use fault::Fault;
pub use render::RenderError;
pub use scene::{Background, Format, Placement, Scene};
pub use server::{Origin, OriginError};
