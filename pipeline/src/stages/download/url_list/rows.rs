//! Reading a run of rows from a parquet file: its footer, and the row groups that hold them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, RecordBatchReader, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
};
use parquet::file::metadata::PageIndexPolicy;
use shards::columns;
use shards::digest::Digest;

use super::listing::Run;
use super::wanted::{HASH, PHASH, Wanted};
use super::{LARGEST_PARTITION, ListError, types};

/// What to note of rows, and how often.
pub(super) type Noted = BTreeMap<String, u64>;

/// Where the wanted columns are among a file's own.
#[derive(Clone, Debug)]
pub(super) struct Positions {
    url: usize,
    caption: Option<usize>,
    hash: Option<usize>,
    phash: Option<usize>,
    extra: Vec<usize>,
}

impl Positions {
    /// In a file whose columns are called as they were asked for.
    pub(super) fn by_name(wanted: &Wanted, name: &str, schema: &Schema) -> Result<Self, ListError> {
        let found = wanted.positions(name, schema.fields().iter().map(|f| f.name().as_str()))?;
        let at = |column: usize| found.get(column).copied().unwrap_or_default();
        let positions = Self {
            url: at(wanted.url),
            caption: wanted.caption.map(at),
            hash: wanted.hash.map(at),
            phash: wanted.phash.map(at),
            extra: wanted.extra.iter().map(|e| at(e.column)).collect(),
        };
        let misfit = |column: usize, expected| {
            let field = schema.field(column);
            let (column, found) = (field.name().clone(), field.data_type().to_string());
            ListError::Type { name: name.to_owned(), column, found, expected }
        };
        let kind_of = |column: usize| schema.field(column).data_type();
        if let Some(column) = positions.texts().find(|column| !can_be_text(kind_of(*column))) {
            return Err(misfit(column, "text"));
        }
        for (&column, extra) in positions.extra.iter().zip(&wanted.extra) {
            if let Some(kind) = extra.kind.filter(|kind| !kind.can_be_of(kind_of(column))) {
                return Err(misfit(column, kind.in_words()));
            }
        }
        Ok(positions)
    }

    /// In a copy, whose columns lie in this order.
    pub(super) fn in_copy(wanted: &Wanted) -> Self {
        let mut next = 0..;
        let mut take = || next.next().unwrap_or_default();
        Self {
            url: take(),
            caption: wanted.caption.map(|_| take()),
            hash: wanted.hash.map(|_| take()),
            phash: wanted.phash.map(|_| take()),
            extra: wanted.extra.iter().map(|_| take()).collect(),
        }
    }
}

impl Positions {
    fn texts(&self) -> impl Iterator<Item = usize> + use<> {
        [Some(self.url), self.caption, self.hash, self.phash].into_iter().flatten()
    }
}

fn can_be_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, values) => can_be_text(values),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => true,
        other => !other.is_nested() && arrow::compute::can_cast_types(other, &DataType::Utf8),
    }
}

/// A parquet file of rows.
pub(super) struct RowFile<'a> {
    name: &'a str,
    file: File,
    metadata: ArrowReaderMetadata,
}

impl<'a> RowFile<'a> {
    /// `name` is for messages.
    pub(super) fn open(path: &Path, name: &'a str) -> Result<Self, ListError> {
        let file = File::open(path).map_err(ListError::read(name))?;
        let options = ArrowReaderOptions::new()
            .with_column_index_policy(PageIndexPolicy::Skip)
            .with_offset_index_policy(PageIndexPolicy::Optional);
        let metadata = ArrowReaderMetadata::load(&file, options).map_err(ListError::parquet(name))?;
        Ok(Self { name, file, metadata })
    }

    pub(super) fn schema(&self) -> &SchemaRef {
        self.metadata.schema()
    }

    /// By its row groups, which is what can be read.
    pub(super) fn rows(&self) -> u64 {
        let groups = self.metadata.metadata().row_groups();
        groups.iter().map(|group| u64::try_from(group.num_rows()).unwrap_or(0)).fold(0, u64::saturating_add)
    }

    /// The digest of the footer. It tells one content from another without a scan of the data: it holds the place and size
    /// of every column chunk, compressed and not, and as a rule their smallest and largest values. Files that differ in
    /// nothing of that are taken for the same, as a file is by its size and time elsewhere.
    pub(super) fn footer_digest(&mut self) -> Result<Digest, ListError> {
        let failed = ListError::read(self.name);
        let footer = (|| {
            let length = self.file.seek(SeekFrom::End(0))?;
            let mut tail = [0; 8];
            self.file.seek(SeekFrom::Start(length.saturating_sub(8)))?;
            self.file.read_exact(&mut tail)?;
            let [a, b, c, d, ..] = tail;
            let footer = u64::from(u32::from_le_bytes([a, b, c, d])).min(length);
            self.file.seek(SeekFrom::Start(length.saturating_sub(8 + footer)))?;
            let mut bytes = Vec::new();
            (&mut self.file).take(footer).read_to_end(&mut bytes)?;
            Ok(bytes)
        })();
        footer.map(|bytes| Digest::of(&bytes)).map_err(failed)
    }

    /// Types of the extra columns.
    pub(super) fn extra_types(&self, positions: &Positions) -> Vec<DataType> {
        positions.extra.iter().map(|&p| self.schema().field(p).data_type().clone()).collect()
    }

    /// The rows of `run`: URL and caption (never null), the hashes that were asked for, and the extra columns as
    /// `extra_types`; and what to note of them. Reads only the row groups that hold them, and of those, where the file has an index
    /// of its pages, only the pages.
    pub(super) fn read(
        &self,
        run: Run,
        positions: &Positions,
        wanted: &Wanted,
        extra_types: &[DataType],
    ) -> Result<(RecordBatch, Noted), ListError> {
        let parquet = || ListError::parquet(self.name);
        let (mut groups, mut skipped, mut before) = (Vec::new(), 0, 0_u64);
        for (number, group) in self.metadata.metadata().row_groups().iter().enumerate() {
            let rows = u64::try_from(group.num_rows()).unwrap_or(0);
            let end = before.saturating_add(rows);
            if end > run.first && before < run.first + run.rows {
                if groups.is_empty() {
                    skipped = run.first.saturating_sub(before);
                }
                groups.push(number);
            }
            before = end;
        }
        let selection =
            RowSelection::from(vec![RowSelector::skip(skipped as usize), RowSelector::select(run.rows as usize)]);
        let mut roots: Vec<usize> = positions.texts().chain(positions.extra.iter().copied()).collect();
        roots.sort_unstable();
        roots.dedup();
        let file = self.file.try_clone().map_err(ListError::read(self.name))?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone());
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots.iter().copied());
        let reader = builder
            .with_projection(mask)
            .with_row_groups(groups)
            .with_row_selection(selection)
            .with_batch_size(1024)
            .build()
            .map_err(parquet())?;
        let schema = reader.schema();
        let (mut batches, mut bytes) = (Vec::new(), 0);
        for batch in reader {
            let batch = batch.map_err(ListError::values(self.name))?;
            bytes += batch.get_array_memory_size();
            if bytes > LARGEST_PARTITION {
                return Err(ListError::TooLarge { name: self.name.to_owned(), rows: run.to_string() });
            }
            batches.push(batch);
        }
        let batch = arrow::compute::concat_batches(&schema, &batches).map_err(ListError::values(self.name))?;
        drop(batches);
        if batch.num_rows() as u64 != run.rows {
            return Err(ListError::Changed { name: self.name.to_owned() });
        }
        let column = |position: usize| -> Result<&ArrayRef, ListError> {
            let found = roots.iter().position(|root| *root == position).and_then(|p| batch.columns().get(p));
            found.ok_or_else(|| ListError::Changed { name: self.name.to_owned() })
        };
        self.assemble(batch.num_rows(), column, positions, wanted, extra_types)
    }

    fn assemble<'b>(
        &self,
        rows: usize,
        column: impl Fn(usize) -> Result<&'b ArrayRef, ListError>,
        positions: &Positions,
        wanted: &Wanted,
        extra_types: &[DataType],
    ) -> Result<(RecordBatch, Noted), ListError> {
        let values = || ListError::values(self.name);
        let text = |position: usize| types::text(column(position)?).map_err(values());
        let never_null = |array: &StringArray| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(array.iter().map(|text| text.unwrap_or("").trim())))
        };
        let mut fields = vec![Field::new(columns::URL, DataType::Utf8, false)];
        let mut arrays = vec![never_null(&text(positions.url)?)];
        fields.push(Field::new(columns::CAPTION, DataType::Utf8, false));
        arrays.push(match positions.caption {
            Some(caption) => never_null(&text(caption)?),
            None => Arc::new(StringArray::from_iter_values(std::iter::repeat_n("", rows))),
        });
        for (position, name) in [(positions.hash, HASH), (positions.phash, PHASH)] {
            let Some(position) = position else { continue };
            fields.push(Field::new(name, DataType::Utf8, true));
            // An empty hash says as little as none.
            let trimmed = |text: Option<&str>| text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
            let trimmed: StringArray = text(position)?.iter().map(trimmed).collect();
            arrays.push(Arc::new(trimmed));
        }
        let mut noted = Noted::new();
        for ((extra, &position), to) in wanted.extra.iter().zip(&positions.extra).zip(extra_types) {
            fields.push(Field::new(&extra.name, to.clone(), true));
            let column = column(position)?;
            let Some(kind) = extra.kind else {
                arrays.push(types::adapt(column, to).map_err(values())?);
                continue;
            };
            let (typed, unfit) = kind.column_of(column).map_err(values())?;
            arrays.push(typed);
            if unfit > 0 {
                noted.insert(format!("{} is no {}", wanted.name(extra.column), kind.in_words()), unfit as u64);
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options);
        Ok((batch.map_err(values())?, noted))
    }
}
