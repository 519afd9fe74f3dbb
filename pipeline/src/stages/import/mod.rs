//! `import`: what other people have, or you: a [`folder`] of pictures, or [`table`]s of pictures or captions.

mod folder;
mod table;

use schemars::schema_for;
use serde_json::Value;

use crate::manifest::{Diagnostic, Parameters};
use crate::stage::{Stage, StageKind};

/// What is wrong with the values by themselves: the key, and words.
type Fault = (&'static str, String);

/// Keys of one form only.
const OF_FOLDERS: [&str; 3] = ["caption", "classes", "rows_per_shard"];
const OF_TABLES: [&str; 8] =
    ["columns", "keep", "constants", "include", "check", "max_bytes", "quotes", "rows_per_file"];

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "import",
        version: 1,
        about: "Takes a folder of pictures, or tables of pictures or captions, into shards.",
        inputs: (0, 1),
        schemas: || {
            vec![
                schema_for!(folder::Semantics),
                schema_for!(folder::Operations),
                schema_for!(table::Semantics),
                schema_for!(table::Operations),
            ]
        },
        rehearse,
        build,
    }
}

fn rehearse(parameters: &Parameters, rows: u64) -> Vec<(&'static str, Value)> {
    if parameters.has("folder") {
        return folder::rehearse(parameters, rows);
    }
    // Of several files, so that what runs beside each other later does so now.
    let of_file = ("rows_per_file", rows.div_ceil(4).max(1).into());
    if parameters.has("files") { vec![("limit", 4.into()), of_file] } else { vec![of_file] }
}

fn build(parameters: &Parameters) -> Result<Box<dyn Stage>, Diagnostic> {
    let stage = match form(parameters) {
        Ok(Form::Folder) => folder::build(parameters.read()?, parameters.read()?),
        Ok(Form::Table) => {
            let shared: table::Shared = parameters.read()?;
            table::build(shared, parameters.read()?, parameters.read()?, parameters.inputs())
        }
        Err(fault) => Err(fault),
    };
    stage.map_err(|(key, message)| parameters.fault(key, message))
}

enum Form {
    Folder,
    Table,
}

/// Which form it is by its keys.
fn form(parameters: &Parameters) -> Result<Form, Fault> {
    let (folder, files) = (parameters.has("folder"), parameters.has("files"));
    if folder && files {
        return Err(("files", "it imports a folder of pictures, or tables: keep one of folder and files".to_owned()));
    }
    if !folder && !files && parameters.inputs().is_empty() {
        let message = "nothing says what it imports: write folder = \"pictures\", or files = \"tables/*.parquet\" or \
                       from = \"STAGE\" with columns = { … }";
        return Err(("folder", message.to_owned()));
    }
    let (others, whose) = if folder {
        (OF_TABLES.as_slice(), "tables, which files or from names; it imports a folder of pictures")
    } else {
        (OF_FOLDERS.as_slice(), "folders of pictures; it imports tables")
    };
    match others.iter().find(|key| parameters.has(key)) {
        Some(key) => Err((*key, format!("{key} is for {whose}"))),
        None if folder => Ok(Form::Folder),
        None => Ok(Form::Table),
    }
}
