//! The columns of a sample, and the schema metadata that tells Hugging Face readers which of them is a picture.
//!
//! `datasets` 5 takes a feature from the metadata only where its own arrow type is the column's; its `Image` is a struct, ours
//! plain bytes (so that one image is one page). A dataset card beside the files makes it show the pictures, and so does
//! `cast_column("image", datasets.Image())`.

use std::collections::HashMap;

use arrow::datatypes::{DataType, Field, Schema};
use serde_json::{Map, Value, json};

/// Names a sample for life: `{source}/{key in that source}`.
pub const KEY: &str = "key";
/// The encoded image, as bytes.
pub const IMAGE: &str = "image";
/// What a training needs of an image and its captions, encoded ahead of it: a safetensors file. In place of [`IMAGE`].
pub const ENCODED: &str = "encoded";
/// The columns whose values lie each in a page of its own, as they are.
pub const PAYLOADS: [&str; 2] = [IMAGE, ENCODED];
/// The caption that came with the image.
pub const CAPTION: &str = "caption";
/// The caption that a vision model gave the image, and a short one made from it.
pub const RECAPTION: &str = "recaption";
pub const RECAPTION_SHORT: &str = "recaption_short";
/// See [`crate::checksum`].
pub const CHECKSUM: &str = "checksum";
/// Where the image came from.
pub const URL: &str = "url";
/// Pixels across, after applying the EXIF orientation.
pub const WIDTH: &str = "width";
/// Pixels down, after applying the EXIF orientation.
pub const HEIGHT: &str = "height";
/// SHA-256 of the image bytes, in lower-case hexadecimal.
pub const SHA256: &str = "sha256";
/// Pixels across and down as it came, upright, of an image that was resized on the way in.
pub const ORIGINAL_WIDTH: &str = "original_width";
pub const ORIGINAL_HEIGHT: &str = "original_height";
/// Perceptual hash, 16 hexadecimal digits.
pub const PHASH: &str = "phash";
/// EXIF tags as a JSON object.
pub const EXIF: &str = "exif";
/// The bucket of a resized image: see [`crate::bucket::BucketSize`].
pub const BUCKET_SIZE: &str = "bucket_size";
/// In quarantine: the stage that refused the row.
pub const STAGE: &str = "stage";
/// In quarantine: why, as one of a small set of words.
pub const REASON: &str = "reason";
/// In quarantine: the same in img2dataset's words (`failed_to_download`, `failed_to_resize`).
pub const STATUS: &str = "status";
/// In quarantine: what exactly happened.
pub const ERROR_MESSAGE: &str = "error_message";

/// A schema of `fields` that carries Hugging Face feature metadata: an [`IMAGE`] column of bytes is an `Image`, the rest
/// are plain values. Columns of types that `datasets` does not name are left for it to infer.
pub fn schema_of_samples(fields: Vec<Field>) -> Schema {
    let features: Option<Map<String, Value>> = fields.iter().map(|f| Some((f.name().clone(), feature(f)?))).collect();
    let metadata = features.map_or_else(HashMap::new, |features| {
        HashMap::from([("huggingface".to_owned(), json!({ "info": { "features": features } }).to_string())])
    });
    Schema::new_with_metadata(fields, metadata)
}

fn feature(field: &Field) -> Option<Value> {
    Some(match feature_name(field)? {
        "image" => json!({ "_type": "Image" }),
        dtype => json!({ "dtype": dtype, "_type": "Value" }),
    })
}

/// What `datasets` calls a column's type in a dataset card; `None` where it has no name for it.
pub fn feature_name(field: &Field) -> Option<&'static str> {
    Some(match field.data_type() {
        DataType::Binary if field.name() == IMAGE => "image",
        DataType::Binary => "binary",
        DataType::Utf8 => "string",
        DataType::Boolean => "bool",
        DataType::Int32 => "int32",
        DataType::Int64 => "int64",
        DataType::UInt32 => "uint32",
        DataType::UInt64 => "uint64",
        DataType::Float32 => "float32",
        DataType::Float64 => "float64",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_marks_the_image_and_is_left_out_when_a_type_has_no_name() {
        let image = Field::new(IMAGE, DataType::Binary, false);
        let schema = schema_of_samples(vec![Field::new(KEY, DataType::Utf8, false), image.clone()]);
        let metadata: Value = serde_json::from_str(&schema.metadata()["huggingface"]).unwrap();
        assert_eq!(metadata["info"]["features"]["image"]["_type"], "Image");
        assert_eq!(metadata["info"]["features"]["key"]["dtype"], "string");
        let odd = Field::new("when", DataType::Date32, true);
        assert!(schema_of_samples(vec![image, odd]).metadata().is_empty());
    }
}
