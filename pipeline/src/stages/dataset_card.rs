//! The card by which Hugging Face's `datasets` knows a folder of shards: which files are its data, and that its images are
//! pictures. (A column of plain bytes is none for it, whatever the schema's metadata say: see [`shards::columns`].)

use std::fmt::Write as _;

use arrow::datatypes::Schema;
use shards::commit::StageFolder;
use shards::{ShardError, columns};

pub(super) const FILE: &str = "README.md";

/// Rows with the same columns, as `datasets` opens them by one name.
pub(super) struct Configuration<'a> {
    pub(super) name: &'a str,
    /// The names of its files, as a pattern.
    pub(super) files: &'a str,
    pub(super) schema: &'a Schema,
    pub(super) size: Option<Size>,
}

/// How large a configuration is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) rows: u64,
    /// Of its values.
    pub(super) bytes: u64,
    pub(super) file_bytes: u64,
}

/// A text as YAML: a JSON string is one.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The keys of a card's head that say what the data is. The columns are in it unless one is of a type that `datasets` has no name
/// for: it wants to know all or none.
pub(super) fn head(configurations: &[Configuration]) -> String {
    let mut text = "configs:\n".to_owned();
    for Configuration { name, files, size, .. } in configurations {
        let (name, files) = (quoted(name), quoted(files));
        let _ = match size {
            Some(_) => {
                writeln!(text, "- config_name: {name}\n  data_files:\n  - split: train\n    path: {files}")
            }
            None => writeln!(text, "- config_name: {name}\n  data_files: {files}"),
        };
    }
    text += "dataset_info:\n";
    for Configuration { name, schema, size, .. } in configurations {
        let _ = writeln!(text, "- config_name: {}", quoted(name));
        text += &features(schema).unwrap_or_default();
        if let Some(Size { rows, bytes, file_bytes }) = size {
            let _ = write!(
                text,
                "  splits:\n  - name: train\n    num_bytes: {bytes}\n    num_examples: {rows}\n  download_size: {file_bytes}\n  \
                 dataset_size: {bytes}\n"
            );
        }
    }
    text
}

/// `None` where a column is of a type without a name.
pub(super) fn features(schema: &Schema) -> Option<String> {
    let mut features = "  features:\n".to_owned();
    for field in schema.fields() {
        let kind = columns::feature_name(field)?;
        let _ = writeln!(features, "  - name: {}\n    dtype: {kind}", quoted(field.name()));
    }
    Some(features)
}

/// Writes the card of a stage's folder, unless it is there. Each of its `variants` is a configuration for `datasets`.
pub(super) fn write(folder: &StageFolder, name: &str, variants: &[&str], schema: &Schema) -> Result<(), ShardError> {
    let Some(text) = card(name, variants, schema) else { return Ok(()) };
    replace(folder, &text)
}

/// Writes a card into a stage's folder, unless it is there.
pub(super) fn replace(folder: &StageFolder, text: &str) -> Result<(), ShardError> {
    let file = folder.name_of(FILE);
    if folder.workdir().read(&file)?.as_deref() == Some(text.as_bytes()) {
        return Ok(());
    }
    folder.workdir().replace(&file, text.as_bytes())
}

/// `None` where a column is of a type without a name.
fn card(name: &str, variants: &[&str], schema: &Schema) -> Option<String> {
    features(schema)?;
    let files: Vec<String> = variants.iter().map(|variant| format!("part-*.{variant}.parquet")).collect();
    let mut configurations: Vec<Configuration> =
        variants.iter().zip(&files).map(|(name, files)| Configuration { name, files, schema, size: None }).collect();
    if configurations.is_empty() {
        configurations.push(Configuration { name: "default", files: "part-*.parquet", schema, size: None });
    }
    let mut text = format!("---\n{}", head(&configurations));
    let chosen = variants.last().map_or_else(String::new, |variant| format!(" \"{variant}\","));
    let _ = write!(
        text,
        "---\n\nThe images of the stage {name}, sorted by size: `bucket_size` is width x height, and a row group never holds two.\n\n\
         ```python\nimport datasets\n\ndataset = datasets.load_dataset(\"THIS FOLDER\",{chosen} split=\"train\")\n```\n\n\
         Written by ferrotype, as are the records beside it (.json), which say how each file was made.\n"
    );
    Some(text)
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};

    use super::*;

    #[test]
    fn a_head_says_what_is_data_and_which_column_is_a_picture() {
        let schema =
            Schema::new(vec![Field::new("key", DataType::Utf8, false), Field::new("image", DataType::Binary, false)]);
        let size = Some(Size { rows: 3, bytes: 40, file_bytes: 50 });
        let head = head(&[Configuration { name: "512", files: "data/512/train-*", schema: &schema, size }]);
        let expected = "configs:\n- config_name: \"512\"\n  data_files:\n  - split: train\n    path: \"data/512/train-*\"\n\
                        dataset_info:\n- config_name: \"512\"\n  features:\n  - name: \"key\"\n    dtype: string\n  - name: \"image\"\n    \
                        dtype: image\n  splits:\n  - name: train\n    num_bytes: 40\n    num_examples: 3\n  download_size: 50\n  \
                        dataset_size: 40\n";
        assert_eq!(head, expected);
    }

    #[test]
    fn the_card_of_a_folder_names_each_variant() {
        let schema = Schema::new(vec![Field::new("image", DataType::Binary, false)]);
        let features = "  features:\n  - name: \"image\"\n    dtype: image\n";
        let one = card("bucket", &[], &schema).unwrap();
        let start = format!(
            "---\nconfigs:\n- config_name: \"default\"\n  data_files: \"part-*.parquet\"\ndataset_info:\n- config_name: \"default\"\n{features}---\n\n"
        );
        assert!(one.starts_with(&start), "{one}");
        let two = card("bucket", &["256", "512"], &schema).unwrap();
        let info = format!("dataset_info:\n- config_name: \"256\"\n{features}- config_name: \"512\"\n{features}---\n");
        assert!(
            two.contains("- config_name: \"512\"\n  data_files: \"part-*.512.parquet\"\n") && two.contains(&info),
            "{two}"
        );
        let odd = Schema::new(vec![Field::new("when", DataType::Date32, true)]);
        assert!(card("bucket", &[], &odd).is_none());
    }
}
