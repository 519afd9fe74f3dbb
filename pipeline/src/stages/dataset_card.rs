//! The card by which Hugging Face's `datasets` knows a folder of shards: which files are its data, and that its images are
//! pictures. (A column of plain bytes is none for it, whatever the schema's metadata say: see [`shards::columns`].)

use std::fmt::Write as _;

use arrow::datatypes::Schema;
use shards::commit::StageFolder;
use shards::{ShardError, columns};

const FILE: &str = "README.md";

/// Writes the card of a stage's folder, unless it is there. Each of its `variants` is a configuration for `datasets`.
pub(super) fn write(folder: &StageFolder, name: &str, variants: &[&str], schema: &Schema) -> Result<(), ShardError> {
    let Some(text) = card(name, variants, schema) else { return Ok(()) };
    let file = folder.name_of(FILE);
    if folder.workdir().read(&file)?.as_deref() == Some(text.as_bytes()) {
        return Ok(());
    }
    folder.workdir().replace(&file, text.as_bytes())
}

/// `None` where a column is of a type that `datasets` has no name for: it wants to know all or none.
fn card(name: &str, variants: &[&str], schema: &Schema) -> Option<String> {
    let mut features = String::new();
    for field in schema.fields() {
        let kind = columns::feature_name(field)?;
        // A JSON string is a YAML string.
        let _ = writeln!(features, "  - name: {}\n    dtype: {kind}", serde_json::Value::from(field.name().as_str()));
    }
    let mut configurations: Vec<(&str, String)> =
        variants.iter().map(|variant| (*variant, format!("part-*.{variant}.parquet"))).collect();
    if configurations.is_empty() {
        configurations.push(("default", "part-*.parquet".to_owned()));
    }
    let mut text = "---\nconfigs:\n".to_owned();
    for (configuration, files) in &configurations {
        let _ = writeln!(text, "- config_name: \"{configuration}\"\n  data_files: \"{files}\"");
    }
    text += "dataset_info:\n";
    for (configuration, _) in &configurations {
        let _ = write!(text, "- config_name: \"{configuration}\"\n  features:\n{features}");
    }
    let chosen = variants.last().map_or_else(String::new, |variant| format!(" \"{variant}\","));
    let _ = write!(
        text,
        "---\n\nThe images of the stage {name}, sorted by size: `bucket_size` is width x height, and a row group never holds two.\n\n\
         ```python\nimport datasets\n\ndataset = datasets.load_dataset(\"THIS FOLDER\",{chosen} split=\"train\")\n```\n\n\
         Written by ferrotype, as are the records beside it (.json), which say how each file was made.\n"
    );
    Some(text)
}
