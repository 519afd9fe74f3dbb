//! The record of one finished partition: what was done, to what, with what result.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ShardError;
use crate::digest::{Digest, DigestBuilder};

/// The format this version writes; a reader refuses newer ones.
pub const FORMAT: u32 = 1;

/// In a record's details: the names that its files had where they came from.
pub const NAMES: &str = "names";

/// Written once for each finished partition, under a name that appears only when everything it names is on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sidecar {
    pub format: u32,
    pub stage: String,
    /// Stage kind and its semantic version, such as `bucket@1`.
    pub kind: String,
    /// Partition name, such as `part-00012`.
    pub partition: String,
    pub fingerprint: Digest,
    /// The semantic parameters behind the fingerprint, so that a later plan can say what changed. Shared by the
    /// records of a stage.
    pub parameters: Arc<Value>,
    pub inputs: Vec<InputDigest>,
    /// The partition's data. Downstream stages read these files and nothing else.
    pub data: Vec<DataFile>,
    /// Rows that were refused, with their reasons, when the stage keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<DataFile>,
    pub rows_in: u64,
    pub rows_out: u64,
    /// Rows that did not pass, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Things that happened to rows which did pass, by name: redirects followed, answers had on a second try.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub observed: BTreeMap<String, u64>,
    /// What the report shows of this partition, beyond the counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sections: Vec<Section>,
    /// Values that other commands read, by name (a checkpoint's folder, a table of buckets).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, Value>,
    /// Seconds since 1970, UTC.
    pub finished_at: u64,
    pub seconds: f64,
    /// Version of the program that wrote it.
    pub version: String,
}

impl Sidecar {
    /// One digest for the whole output: what a downstream fingerprint depends on. Of files that keep the names that they had
    /// elsewhere, these are part of it: readers go by them.
    pub fn output_digest(&self) -> Digest {
        let mut digest = self.data.iter().fold(DigestBuilder::new(), |b, file| b.part(file.digest.to_string()));
        for name in self.details.get(NAMES).and_then(Value::as_array).into_iter().flatten() {
            digest.add(name.as_str().unwrap_or_default());
        }
        digest.finish()
    }

    /// The record as a reader of one variant sees it: with that variant's data only.
    #[must_use]
    pub fn narrowed(&self, variant: &str) -> Self {
        let is_meant = |file: &&DataFile| file.variant.as_deref() == Some(variant);
        Self { data: self.data.iter().filter(is_meant).cloned().collect(), ..self.clone() }
    }

    /// Rows that did not pass, for whatever reason.
    pub fn rows_dropped(&self) -> u64 {
        self.dropped.values().sum()
    }

    /// The name under which this record is committed: `part-00012.<fingerprint8>.json`.
    pub fn file_name(&self) -> String {
        format!("{}.{}.json", self.partition, self.fingerprint.short())
    }

    /// Reads a record; `path` is for the error.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, ShardError> {
        let damaged = |detail: String| ShardError::Record { path: path.to_owned(), what: "sidecar", detail };
        let sidecar: Self = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        if sidecar.format > FORMAT {
            return Err(damaged(format!("it has format {}, this version knows up to {FORMAT}", sidecar.format)));
        }
        Ok(sidecar)
    }
}

/// What a partition was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputDigest {
    /// `download/part-00012` for another stage's partition, or a description of an outside input.
    pub name: String,
    pub digest: Digest,
}

/// A file in the stage's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// Relative to the stage's folder.
    pub file: String,
    pub digest: Digest,
    pub bytes: u64,
    pub rows: u64,
    /// Of a shard: the digest of its footer, by which a reader of single rows knows the file without reading all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub footer: Option<Digest>,
    /// Of a stage whose partitions come in several variants (an image at several resolutions): which one this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A piece of the report that a stage leaves behind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Section {
    Table {
        title: String,
        header: Vec<String>,
        rows: Vec<Vec<String>>,
    },
    /// A curve; `y` against `x`.
    Curve {
        title: String,
        x_label: String,
        x: Vec<f64>,
        y: Vec<f64>,
    },
    /// An image file, relative to the stage's folder.
    Picture {
        title: String,
        file: String,
    },
    Text {
        title: String,
        text: String,
    },
}
