//! The stages that prepare data, one module each.

pub mod bucket;
pub mod download;
pub mod filter;
pub mod index;

use crate::stage::Registry;

/// A registry of this crate's kinds. The binary adds those that need torch.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add(download::kind());
    registry.add(filter::kind());
    registry.add(bucket::kind());
    registry.add(index::kind());
    registry
}
