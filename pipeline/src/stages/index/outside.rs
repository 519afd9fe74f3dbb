//! Whether the column bucket_size of files from outside says what their images are: published datasets exist whose width and
//! height are each other's.

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use rayon::prelude::*;
use shards::bucket::BucketSize;
use shards::reader::Shard;
use shards::{ShardError, columns};

use super::Indexed;
use crate::stage::StageError;
use picture::header;

/// Images that are looked at, of all files together. Each is the first of a row group, which costs one page whatever the size
/// of the row group.
const IMAGES: usize = 64;
/// More pixels are no image.
const PIXELS: u64 = 1_000_000_000;
/// The member of an image that is a structure, as the Hugging Face hub has them.
const BYTES: &str = "bytes";

/// Compares some images' headers with what their rows say; an error names the first row that is wrong.
pub(super) fn compare_with_images(files: &[Indexed]) -> Result<(), StageError> {
    let mut places = Vec::new();
    for file in files {
        let shard = Shard::open(&file.path)?;
        if shard.schema().index_of(columns::IMAGE).is_err() {
            continue;
        }
        let mut row = 0;
        for group in shard.metadata().row_groups() {
            let rows = u64::try_from(group.num_rows()).unwrap_or(0);
            if rows > 0 {
                places.push((file, row));
            }
            row += rows;
        }
    }
    let every = places.len().div_ceil(IMAGES).max(1);
    let chosen: Vec<_> = places.into_iter().step_by(every).collect();
    chosen.par_iter().try_for_each(|(file, row)| compare(file, *row))
}

fn compare(file: &Indexed, row: u64) -> Result<(), StageError> {
    let shard = Shard::open(&file.path)?;
    let batch = shard.rows_at(&[row], &[columns::IMAGE, columns::BUCKET_SIZE])?;
    let arrow = || ShardError::arrow(&file.path);
    let text = column(&batch, columns::BUCKET_SIZE, &DataType::Utf8).map_err(arrow())?;
    let Some(said) = text.as_string::<i32>().iter().next().flatten().and_then(|text| text.parse::<BucketSize>().ok())
    else {
        // The scan names it.
        return Ok(());
    };
    let images = match batch.column_by_name(columns::IMAGE).and_then(|images| images.as_struct_opt()) {
        Some(images) => images.column_by_name(BYTES).map(|bytes| cast(bytes, &DataType::Binary)).transpose(),
        None => column(&batch, columns::IMAGE, &DataType::Binary).map(Some),
    };
    let Some(images) = images.map_err(arrow())? else { return Ok(()) };
    let wrong = |what: String| {
        let path = file.path.display();
        StageError::failed(format!(
            "row {row} of {path} is in bucket {said} by its {}, but {what}",
            columns::BUCKET_SIZE
        ))
    };
    let Some(bytes) = images.as_binary::<i32>().iter().next().flatten() else { return Ok(()) };
    let header = header(bytes, PIXELS).map_err(|error| wrong(format!("its image cannot be read: {error}")))?;
    if (header.width, header.height) == (said.width, said.height) {
        return Ok(());
    }
    Err(wrong(format!("its image is {}x{} (width and height, upright)", header.width, header.height)))
}

fn column(batch: &RecordBatch, name: &str, as_type: &DataType) -> Result<ArrayRef, arrow::error::ArrowError> {
    let index = batch.schema_ref().index_of(name)?;
    cast(batch.column(index), as_type)
}
