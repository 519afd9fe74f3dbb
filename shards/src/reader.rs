//! Reading parquet shards: whole, by column, or a few rows at a time.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::{Array, BinaryArray, StringArray};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::{RecordBatch, RecordBatchReader};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};

use crate::ShardError;
use crate::shared_file::SharedFile;

/// An open shard: its footer and page index are read once and kept. Several threads may read it at once.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    file: SharedFile,
    metadata: ArrowReaderMetadata,
}

impl Shard {
    pub fn open(path: &Path) -> Result<Self, ShardError> {
        let file = File::open(path).and_then(SharedFile::new).map_err(ShardError::io("open", path))?;
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
        let metadata = ArrowReaderMetadata::load(&file, options).map_err(ShardError::parquet(path))?;
        Ok(Self { path: path.to_owned(), file, metadata })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn schema(&self) -> &SchemaRef {
        self.metadata.schema()
    }

    pub fn metadata(&self) -> &ParquetMetaData {
        self.metadata.metadata()
    }

    pub fn rows(&self) -> u64 {
        u64::try_from(self.metadata().file_metadata().num_rows()).unwrap_or(0)
    }

    /// All rows in order, in batches of at most `batch_size`; `columns` in the shard's order, or all.
    pub fn batches(
        &self,
        columns: Option<&[&str]>,
        batch_size: usize,
    ) -> Result<impl Iterator<Item = Result<RecordBatch, ShardError>> + use<>, ShardError> {
        let reader =
            self.builder(columns)?.with_batch_size(batch_size).build().map_err(ShardError::parquet(&self.path))?;
        let path = self.path.clone();
        Ok(reader.map(move |batch| batch.map_err(ShardError::arrow(&path))))
    }

    /// The given rows (ascending, without repeats), reading only the pages that hold them.
    pub fn rows_at(&self, rows: &[u64], columns: &[&str]) -> Result<RecordBatch, ShardError> {
        if let Some(&row) = rows.last().filter(|&&row| row >= self.rows()) {
            return Err(ShardError::RowOutOfRange { path: self.path.clone(), row, rows: self.rows() });
        }
        let mut selectors = Vec::with_capacity(rows.len() * 2);
        let mut next = 0;
        for &row in rows {
            if row > next {
                selectors.push(RowSelector::skip((row - next) as usize));
            }
            selectors.push(RowSelector::select(1));
            next = row + 1;
        }
        let reader = self
            .builder(Some(columns))?
            .with_row_selection(RowSelection::from(selectors))
            .with_batch_size(rows.len().max(1))
            .build()
            .map_err(ShardError::parquet(&self.path))?;
        let schema = reader.schema();
        let batches = reader.collect::<Result<Vec<_>, _>>().map_err(ShardError::arrow(&self.path))?;
        arrow::compute::concat_batches(&schema, &batches).map_err(ShardError::arrow(&self.path))
    }

    fn builder(&self, columns: Option<&[&str]>) -> Result<ParquetRecordBatchReaderBuilder<SharedFile>, ShardError> {
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(self.file.clone(), self.metadata.clone());
        let Some(columns) = columns else { return Ok(builder) };
        for &column in columns {
            if self.schema().index_of(column).is_err() {
                return Err(self.lacks(column, "any"));
            }
        }
        let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
        Ok(builder.with_projection(mask))
    }

    fn lacks(&self, column: &str, expected: &'static str) -> ShardError {
        let found: Vec<String> =
            self.schema().fields().iter().map(|f| format!("{} ({})", f.name(), f.data_type())).collect();
        ShardError::Column { path: self.path.clone(), column: column.to_owned(), expected, found: found.join(", ") }
    }

    /// A column of `batch` as text. `batch` must come from this shard, which the error names.
    pub fn text<'a>(&self, batch: &'a RecordBatch, column: &str) -> Result<&'a StringArray, ShardError> {
        self.typed(batch, column, "string")
    }

    /// A column of `batch` as bytes.
    pub fn binary<'a>(&self, batch: &'a RecordBatch, column: &str) -> Result<&'a BinaryArray, ShardError> {
        self.typed(batch, column, "binary")
    }

    /// A column of `batch` as `A`; `expected` names the type in the error.
    pub fn typed<'a, A: Array + 'static>(
        &self,
        batch: &'a RecordBatch,
        column: &str,
        expected: &'static str,
    ) -> Result<&'a A, ShardError> {
        batch
            .column_by_name(column)
            .and_then(|array| array.as_any().downcast_ref::<A>())
            .ok_or_else(|| self.lacks(column, expected))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::columns;
    use crate::writer::ShardWriter;
    use arrow::datatypes::{DataType, Field};
    use parquet::file::page_index::offset_index::OffsetIndexMetaData;

    fn shard(folder: &Path, rows: usize) -> Shard {
        let path = folder.join("part.parquet");
        let schema = Arc::new(columns::schema_of_samples(vec![
            Field::new(columns::KEY, DataType::Utf8, false),
            Field::new(columns::IMAGE, DataType::Binary, false),
        ]));
        let keys = StringArray::from_iter_values((0..rows).map(|i| format!("k{i}")));
        let images = BinaryArray::from_iter_values((0..rows).map(|i| vec![i as u8; 100 + i]));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(keys), Arc::new(images)]).unwrap();
        let mut writer = ShardWriter::create(&path, &schema).unwrap();
        writer.write(&batch.slice(0, rows / 3)).unwrap();
        writer.end_row_group().unwrap();
        writer.write(&batch.slice(rows / 3, rows - rows / 3)).unwrap();
        let file = writer.finish().unwrap();
        assert_eq!(file.digest, crate::digest::Digest::of_file(&path).unwrap());
        assert_eq!(file.bytes, std::fs::metadata(&path).unwrap().len());
        Shard::open(&path).unwrap()
    }

    #[test]
    fn each_image_has_a_page_of_its_own_and_other_columns_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let shard = shard(folder.path(), 60);
        let index: &Vec<Vec<OffsetIndexMetaData>> = shard.metadata().offset_index().unwrap();
        let pages: Vec<Vec<usize>> =
            index.iter().map(|g| g.iter().map(|c| c.page_locations().len()).collect()).collect();
        assert_eq!(pages, [[1, 20, 1], [1, 40, 1]], "key, image and checksum");
    }

    #[test]
    fn scattered_rows_come_back_in_order_across_row_groups() {
        let folder = tempfile::tempdir().unwrap();
        let shard = shard(folder.path(), 60);
        let rows = [0, 3, 19, 20, 58, 59];
        let batch = shard.rows_at(&rows, &[columns::KEY, columns::IMAGE]).unwrap();
        let keys = shard.text(&batch, columns::KEY).unwrap();
        let images = shard.binary(&batch, columns::IMAGE).unwrap();
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(keys.value(i), format!("k{row}"));
            assert_eq!(images.value(i), vec![*row as u8; 100 + *row as usize]);
        }
        assert!(matches!(shard.rows_at(&[60], &[columns::KEY]), Err(ShardError::RowOutOfRange { row: 60, .. })));
    }

    #[test]
    fn several_threads_read_one_shard_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let shard = shard(folder.path(), 120);
        let read = |row: u64| {
            let batch = shard.rows_at(&[row], &[columns::IMAGE]).unwrap();
            assert_eq!(shard.binary(&batch, columns::IMAGE).unwrap().value(0), vec![row as u8; 100 + row as usize]);
        };
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || (0..500).for_each(|i| read((i * 7 + thread * 31) % 120)));
            }
        });
        // Two scans, a batch of each in turn.
        let scan = || shard.batches(Some(&[columns::KEY]), 10).unwrap().map(|batch| batch.unwrap());
        assert!(scan().zip(scan()).all(|(one, other)| one == other));
    }

    #[test]
    fn a_missing_column_and_a_damaged_file_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let shard = shard(folder.path(), 6);
        let error = shard.rows_at(&[0], &["recaption"]).unwrap_err().to_string();
        assert!(error.contains("recaption") && error.contains("part.parquet") && error.contains("image"), "{error}");
        let path = folder.path().join("torn.parquet");
        let whole = std::fs::read(shard.path()).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(Shard::open(&path).unwrap_err().to_string().contains("torn.parquet"));
    }
}
