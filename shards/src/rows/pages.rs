//! Where pages lie, and parquet's decoder on one of them.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::arrow::arrow_reader::RowGroups;
use parquet::basic::Compression;
use parquet::column::page::{PageIterator, PageReader};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::page_index::offset_index::PageLocation;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

use crate::ranges::Ranges;

/// Where the pages of one column of one row group lie.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) compression: Compression,
    pub(super) dictionary: Option<Range<u64>>,
    pub(super) pages: Vec<Page>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    pub(super) offset: u64,
    pub(super) bytes: u32,
    /// Within the row group.
    pub(super) first_row: u32,
}

impl Chunk {
    pub(super) fn of_index(chunk: &ColumnChunkMetaData, locations: &[PageLocation]) -> ParquetResult<Self> {
        let damaged = || ParquetError::General("the page index has a place that cannot be".to_owned());
        let mut pages = Vec::with_capacity(locations.len());
        for location in locations {
            let offset = u64::try_from(location.offset).ok().ok_or_else(damaged)?;
            let bytes = u32::try_from(location.compressed_page_size).ok().ok_or_else(damaged)?;
            let first_row = u32::try_from(location.first_row_index).ok().ok_or_else(damaged)?;
            pages.push(Page { offset, bytes, first_row });
        }
        if !pages.is_sorted_by_key(|page| page.first_row) || pages.first().is_some_and(|page| page.first_row != 0) {
            return Err(damaged());
        }
        let start = chunk.dictionary_page_offset().map_or(Ok(None), |at| u64::try_from(at).map(Some));
        let start = start.ok().ok_or_else(damaged)?;
        // A writer may leave the offset of the dictionary out; then what lies before the first page is one.
        let start = start.or_else(|| u64::try_from(chunk.data_page_offset()).ok());
        let end = pages.first().map(|page| page.offset);
        let dictionary = start.zip(end).filter(|(start, end)| start < end).map(|(start, end)| start..end);
        Ok(Self { compression: chunk.compression(), dictionary, pages })
    }

    /// Finds the pages of a chunk by their headers.
    pub(super) fn look_through(
        chunk: &ColumnChunkMetaData,
        source: &Arc<dyn Ranges>,
        rows: u32,
    ) -> ParquetResult<Self> {
        if chunk.data_page_offset() < 0
            || chunk.dictionary_page_offset().is_some_and(|at| at < 0)
            || chunk.compressed_size() < 0
        {
            return Err(ParquetError::General("a column chunk begins before its file".to_owned()));
        }
        let (start, length) = chunk.byte_range();
        let watched = Arc::new(Watched { source: Arc::clone(source), last: Mutex::new(start) });
        let mut reader = SerializedPageReader::new(Arc::clone(&watched), chunk, rows as usize, None)?;
        // (offset, rows in it, whether it is a dictionary)
        let mut found: Vec<(u64, usize, bool)> = Vec::new();
        while let Some(page) = reader.peek_next_page()? {
            let rows = page.num_rows.or(page.num_levels).unwrap_or(0);
            found.push((*watched.last.lock().unwrap_or_else(PoisonError::into_inner), rows, page.is_dict));
            reader.skip_next_page()?;
        }
        let mut dictionary = None;
        let mut pages = Vec::new();
        let mut first_row = 0;
        for (n, &(offset, rows, is_dictionary)) in found.iter().enumerate() {
            let end = found.get(n + 1).map_or(start + length, |next| next.0);
            let bytes = u32::try_from(end.saturating_sub(offset))
                .ok()
                .ok_or_else(|| ParquetError::General("a page of more than 4 GB".to_owned()))?;
            if is_dictionary {
                dictionary = Some(offset..end);
                continue;
            }
            pages.push(Page { offset, bytes, first_row });
            first_row += rows as u32;
        }
        if first_row != rows {
            return Err(ParquetError::General(format!("the pages of a column hold {first_row} rows of {rows}")));
        }
        Ok(Self { compression: chunk.compression(), dictionary, pages })
    }

    /// Rows in the `n`th page.
    pub(super) fn rows_of(&self, n: usize, rows: u64) -> u64 {
        let first = self.pages.get(n).map_or(0, |page| u64::from(page.first_row));
        self.pages.get(n + 1).map_or(rows, |page| u64::from(page.first_row)).saturating_sub(first)
    }
}

/// Notes where parquet's reader begins to read: at the header of each page.
struct Watched {
    source: Arc<dyn Ranges>,
    last: Mutex<u64>,
}

/// Bytes that are read at once while headers are looked for: a header has a few dozen.
const HEADER: u64 = 4 << 10;

impl Length for Watched {
    fn len(&self) -> u64 {
        self.source.length()
    }
}

impl ChunkReader for Watched {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = start;
        let end = self.source.length().min(start.saturating_add(HEADER));
        let bytes = self.get_bytes(start, end.saturating_sub(start) as usize)?;
        Ok(bytes::Buf::reader(bytes))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let end = start.saturating_add(length as u64);
        self.source.read_one(start..end).map_err(|error| ParquetError::External(Box::new(error)))
    }
}

/// A row group of one column of one page.
pub(super) struct OnePage<'a> {
    pub(super) bytes: Bytes,
    pub(super) chunk: ColumnChunkMetaData,
    pub(super) rows: usize,
    pub(super) metadata: &'a ParquetMetaData,
}

impl RowGroups for OnePage<'_> {
    fn num_rows(&self) -> usize {
        self.rows
    }

    fn column_chunks(&self, _leaf: usize) -> ParquetResult<Box<dyn PageIterator>> {
        let reader = SerializedPageReader::new(Arc::new(self.bytes.clone()), &self.chunk, self.rows, None)?;
        Ok(Box::new(OneReader(Some(Box::new(reader)))))
    }

    fn row_groups(&self) -> Box<dyn Iterator<Item = &RowGroupMetaData> + '_> {
        Box::new(self.metadata.row_groups().iter())
    }

    fn metadata(&self) -> &ParquetMetaData {
        self.metadata
    }
}

struct OneReader(Option<Box<dyn PageReader>>);

impl Iterator for OneReader {
    type Item = ParquetResult<Box<dyn PageReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.take().map(Ok)
    }
}

impl PageIterator for OneReader {}
