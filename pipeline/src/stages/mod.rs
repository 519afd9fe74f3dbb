//! The stages that prepare data, one module each.

pub mod bucket;
mod classes;
mod dataset_card;
pub mod dedup;
mod distributed;
pub mod download;
pub mod export;
pub mod extract;
pub mod fetch;
mod fields;
pub mod filter;
pub mod import;
pub mod index;
mod members;
pub mod merge;
mod outside;
pub mod publish;
mod rows;
mod samples;
pub mod sql;
pub mod subset;
mod survey_file;
mod text;
mod types;
pub mod union;

use crate::stage::Registry;

/// A registry of this crate's kinds. The binary adds those that need torch.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add(download::kind());
    registry.add(fetch::kind());
    registry.add(extract::kind());
    registry.add(import::kind());
    registry.add(filter::kind());
    registry.add(sql::kind());
    registry.add(merge::kind());
    registry.add(union::kind());
    registry.add(dedup::kind());
    registry.add(subset::kind());
    registry.add(bucket::kind());
    registry.add(bucket::repack::kind());
    registry.add(index::kind());
    registry.add(export::kind());
    registry.add(publish::kind());
    registry
}
