//! What a webdataset tar holds of a sample: members that share a key.

use std::io::{self, Write};

use arrow::array::RecordBatch;
use arrow::json::WriterBuilder;
use arrow::json::writer::JsonArray;
use serde::Serialize;
use serde_json::ser::PrettyFormatter;
use serde_json::{Map, Value};

use crate::stage::StageError;

/// Appends `KEY.ending`.
pub(super) fn member<W: Write>(tar: &mut tar::Builder<W>, key: &str, ending: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(format!("{key}.{ending}"))?;
    header.set_size(bytes.len() as u64);
    // As webdataset's own writer; but its time is that of the writing, and ours would make every run's bytes others.
    header.set_mode(0o444);
    header.set_mtime(0);
    header.set_username("bigdata")?;
    header.set_groupname("bigdata")?;
    header.set_cksum();
    tar.append(&header, bytes)
}

/// Each row as a JSON object, nulls included.
pub(super) fn objects(rows: &RecordBatch) -> Result<Vec<Map<String, Value>>, StageError> {
    if rows.num_columns() == 0 {
        return Ok(Vec::new());
    }
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(Vec::new());
    writer.write(rows).and_then(|()| writer.finish()).map_err(StageError::failed)?;
    serde_json::from_slice(&writer.into_inner()).map_err(StageError::failed)
}

/// As Python's `json.dumps(value, indent=4)` has it.
pub(super) fn pretty(value: &impl Serialize) -> Result<Vec<u8>, StageError> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(b"    "));
    value.serialize(&mut serializer).map_err(StageError::failed)?;
    Ok(bytes)
}
