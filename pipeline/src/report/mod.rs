//! One self-contained page about a workdir: the stages with times and rows, where rows were lost, what sizes and captions
//! came in, some of the pictures, and what the stages left to see.
//!
//! - [`figures`]: everything that is counted, from sidecars; the page embeds it as JSON.
//! - [`measure`], [`histogram`], [`buckets`]: sizes, buckets and caption lengths, from metadata columns.
//! - [`captions`]: what captions cost.
//! - [`flow`]: rows lost per reason, drawn. [`pictures`]: the gallery. [`curve`]: what a training left.
//! - [`page`]: all of it together, with `style.css` and `page.js`.
//!
//! The page needs no network and is not allowed any. Names, captions and messages are other people's text: whatever goes into
//! the page goes through [`html::escape`], and its content security policy lets no script run but its own.

mod axis;
mod buckets;
mod captions;
mod curve;
mod figures;
mod flow;
mod histogram;
pub(crate) mod html;
mod measure;
pub(crate) mod numbers;
mod page;
mod pictures;
mod refused;

use std::path::PathBuf;

use crate::plan::Plan;
use crate::stage::StageError;

pub use refused::{Refused, refused};

/// Its name in the workdir.
const FILE: &str = "report.html";

/// Where the report of a plan's workdir is written.
pub fn path(plan: &Plan) -> PathBuf {
    plan.workdir.path(FILE)
}

/// Writes the report; returns its path.
pub fn write(plan: &Plan) -> Result<PathBuf, StageError> {
    let path = path(plan);
    let page = page::page(plan)?;
    plan.workdir.replace(FILE, page.as_bytes())?;
    if plan.workdir.is_remote() {
        shards::disk::replace(&path, page.as_bytes())?;
    }
    Ok(path)
}
