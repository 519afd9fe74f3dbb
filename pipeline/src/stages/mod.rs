//! The stages that prepare data, one module each.

pub mod bucket;
mod dataset_card;
pub mod dedup;
pub mod download;
pub mod export;
pub mod extract;
pub mod filter;
pub mod import;
pub mod index;
mod members;
mod outside;
mod rows;
mod samples;
pub mod sql;
pub mod subset;

use crate::stage::Registry;

/// A registry of this crate's kinds. The binary adds those that need torch.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add(download::kind());
    registry.add(extract::kind());
    registry.add(import::kind());
    registry.add(filter::kind());
    registry.add(sql::kind());
    registry.add(dedup::kind());
    registry.add(subset::kind());
    registry.add(bucket::kind());
    registry.add(bucket::repack::kind());
    registry.add(index::kind());
    registry.add(export::kind());
    registry
}
