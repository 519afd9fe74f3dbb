//! img2dataset's layout, for programs that read that: `00012.tar` with `KEY.jpg`, `KEY.txt` and `KEY.json` of each image,
//! `00012.parquet` with a row for each URL, failures too, and `00012_stats.json`. Names, columns and statuses are those of
//! img2dataset 1.47 (`writer.py`, `downloader.py` and `logger.py` there).
//!
//! The files lie in a folder of their own for each configuration, so that a changed size never mixes shards. They are written
//! under this attempt's names and renamed just before the commit; not where another run has committed the same by then, whose
//! files have those names. A row keeps its key when it is tried again; its new shard is `00012r1`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};
use arrow::datatypes::{Field, Schema};
use serde::Serialize;
use serde_json::{Map, Value};
use shards::data_file::DataFileWriter;
use shards::digest::Digest;
use shards::sidecar::DataFile;
use shards::writer::ShardWriter;
use shards::{columns, disk};

use super::order::RowResult;
use super::parameters::Semantics;
use super::row::Picture;
use super::url_list::Rows;
use crate::stage::{StageError, Task};
use crate::stages::members::{member, objects, pretty};

/// What the folder's name begins with.
const FOLDER: &str = "webdataset";
const SUCCESS: &str = "success";

/// Writes the files of one shard.
pub(super) struct Webdataset {
    tar: tar::Builder<DataFileWriter>,
    /// What ends the names of images.
    ending: &'static str,
    places: Places,
    keys: Keys,
    table: Table,
    /// The list's further columns, a JSON object for each row.
    additional: Vec<Map<String, Value>>,
    rows: Rows,
    exif: bool,
    hash: Option<&'static str>,
    has_captions: bool,
    counts: BTreeMap<String, u64>,
    failed_to_download: u64,
    failed_to_resize: u64,
    started: SystemTime,
}

/// Where the files go.
struct Places {
    /// Of the stage.
    folder: PathBuf,
    /// Below that: `webdataset-5b0e7f31`.
    name: String,
    /// `00012`
    shard: String,
    parquet: PathBuf,
    tar: PathBuf,
    stats: PathBuf,
}

impl Places {
    /// A file of the shard, relative to the stage's folder.
    fn file(&self, ending: &str) -> String {
        format!("{}/{}{ending}", self.name, self.shard)
    }
}

/// img2dataset's keys: the number of the shard, then that of the row, each with leading zeros.
#[derive(Clone, Copy)]
struct Keys {
    shard: usize,
    digits: u32,
}

impl Keys {
    fn new(shard: usize, rows_per_shard: u64) -> Self {
        // The smallest power of ten that is not less.
        let digits = rows_per_shard.saturating_sub(1).checked_ilog10().map_or(0, |log| log + 1);
        Self { shard, digits }
    }

    fn of(self, row: usize) -> String {
        let number = 10u128.pow(self.digits) * self.shard as u128 + row as u128;
        format!("{number:0width$}", width = self.digits as usize + 5)
    }
}

/// The columns that img2dataset adds, as far as rows have come.
#[derive(Default)]
struct Table {
    key: Vec<String>,
    status: Vec<&'static str>,
    error: Vec<Option<String>>,
    width: Vec<Option<i32>>,
    height: Vec<Option<i32>>,
    original_width: Vec<Option<i32>>,
    original_height: Vec<Option<i32>>,
    exif: Vec<Option<String>>,
    hash: Vec<Option<String>>,
}

#[derive(Serialize)]
struct Stats<'a> {
    count: usize,
    successes: u64,
    failed_to_download: u64,
    failed_to_resize: u64,
    duration: f64,
    start_time: f64,
    end_time: f64,
    status_dict: &'a BTreeMap<String, u64>,
}

impl Webdataset {
    pub(super) fn create(rows: &Rows, semantics: &Semantics, task: &Task) -> Result<Self, StageError> {
        let configuration = serde_json::to_vec(semantics).map_err(StageError::failed)?;
        let attempt = task.attempt.data();
        let places = Places {
            folder: task.folder.path(),
            name: format!("{FOLDER}-{}", Digest::of(&configuration).short()),
            shard: task.partition.trim_start_matches("part-").to_owned(),
            tar: task.attempt.tar(),
            stats: task.attempt.numbered(0),
            parquet: attempt,
        };
        Ok(Self {
            tar: tar::Builder::new(DataFileWriter::create(&places.tar)?),
            // img2dataset calls images as served by the format it would have encoded them in.
            ending: semantics.resize.format().ending(),
            places,
            keys: Keys::new(rows.partition, semantics.rows_per_shard),
            table: Table::default(),
            additional: objects(&rows.additional()?)?,
            rows: rows.clone(),
            exif: semantics.extract_exif,
            hash: semantics.compute_hash.column(),
            has_captions: semantics.has_captions(),
            counts: BTreeMap::new(),
            failed_to_download: 0,
            failed_to_resize: 0,
            started: SystemTime::now(),
        })
    }

    /// Takes the next row; `row` is its place among [`Rows`].
    pub(super) fn row(&mut self, row: usize, url: &str, caption: &str, result: RowResult) -> Result<(), StageError> {
        let key = self.keys.of(self.rows.places.get(row).copied().unwrap_or(row));
        let (status, error, picture) = match result {
            Ok(picture) => (SUCCESS, None, Some(picture)),
            Err(refusal) => (refusal.status, Some(refusal.detail), None),
        };
        *self.counts.entry(error.clone().unwrap_or_else(|| SUCCESS.to_owned())).or_default() += 1;
        match status {
            "failed_to_download" => self.failed_to_download += 1,
            "failed_to_resize" => self.failed_to_resize += 1,
            _ => {}
        }
        if let Some(picture) = &picture {
            let json = self.json(row, &key, url, caption, picture)?;
            self.member(&key, self.ending, &picture.bytes)?;
            self.member(&key, "json", &json)?;
            if self.has_captions {
                self.member(&key, "txt", caption.as_bytes())?;
            }
        }
        self.table.push(key, status, error, picture);
        Ok(())
    }

    fn member(&mut self, key: &str, ending: &str, bytes: &[u8]) -> Result<(), StageError> {
        member(&mut self.tar, key, ending, bytes).map_err(StageError::io("write", &self.places.tar))
    }

    /// What is known of an image, as Python's `json.dumps(meta, indent=4)` has it.
    fn json(&self, row: usize, key: &str, url: &str, caption: &str, picture: &Picture) -> Result<Vec<u8>, StageError> {
        let mut meta = self.additional.get(row).cloned().unwrap_or_default();
        let mut set = |name: &str, value: Value| drop(meta.insert(name.to_owned(), value));
        if self.has_captions {
            set(columns::CAPTION, caption.into());
        }
        set(columns::URL, url.into());
        set(columns::KEY, key.into());
        set(columns::STATUS, SUCCESS.into());
        set(columns::ERROR_MESSAGE, Value::Null);
        set(columns::WIDTH, picture.width.into());
        set(columns::HEIGHT, picture.height.into());
        set(columns::ORIGINAL_WIDTH, picture.original_width.into());
        set(columns::ORIGINAL_HEIGHT, picture.original_height.into());
        if self.exif {
            set(columns::EXIF, picture.exif.clone().into());
        }
        if let Some(name) = self.hash {
            set(name, picture.hash.clone().into());
        }
        pretty(&meta)
    }

    /// Ends the files and gives them their names: what they are, and how many images they hold.
    pub(super) fn finish(self, task: &Task) -> Result<(Vec<DataFile>, u64), StageError> {
        let Self { tar, places, table, rows, counts, .. } = self;
        let images = counts.get(SUCCESS).copied().unwrap_or(0);
        let count = table.key.len();
        let tar = tar.into_inner().map_err(StageError::io("write", &places.tar))?.finish(images)?;
        let batch = table.batch(&rows, self.has_captions, self.exif, self.hash)?;
        let mut parquet = ShardWriter::create(&places.parquet, &batch.schema())?;
        parquet.write(&batch)?;
        let parquet = parquet.finish()?;
        let now = SystemTime::now();
        let stats = Stats {
            count,
            successes: images,
            failed_to_download: self.failed_to_download,
            failed_to_resize: self.failed_to_resize,
            duration: now.duration_since(self.started).unwrap_or_default().as_secs_f64(),
            start_time: since_1970(self.started),
            end_time: since_1970(now),
            status_dict: &counts,
        };
        let mut file = DataFileWriter::create(&places.stats)?;
        file.write_all(&pretty(&stats)?).map_err(StageError::io("write", &places.stats))?;
        let stats = file.finish(0)?;

        let named = [
            (&places.parquet, places.file(".parquet"), parquet),
            (&places.tar, places.file(".tar"), tar),
            (&places.stats, places.file("_stats.json"), stats),
        ];
        let exists = |name: &str| task.folder.workdir().exists(&task.folder.name_of(name));
        let record = format!("{}.{}.json", task.partition, task.fingerprint.short());
        if !task.force && exists(&record)? {
            // Who was taken for dead has committed it after all. The commit finds that record, and removes what it does not name.
            return Ok((named.into_iter().map(|(_, _, file)| file).collect(), images));
        }
        disk::create_folder(&places.folder.join(&places.name))?;
        let names = named.each_ref().map(|(_, name, _)| name.clone());
        // There already: of the same configuration, but of rows that have changed since, or made again because `--force` said so.
        // A record must not name what it does not describe, whenever this run ends. (Of what a store holds, this machine may have
        // no copy.)
        let are_there = names.iter().map(|name| exists(name)).collect::<Result<Vec<_>, _>>()?;
        if are_there.contains(&true) {
            task.folder.retract_that_name(task.partition, &names)?;
        }
        let mut data = Vec::with_capacity(named.len());
        for (from, name, file) in named {
            disk::rename(from, &places.folder.join(&name))?;
            data.push(DataFile { file: name, ..file });
        }
        disk::sync_parent(&places.folder.join(places.file(".tar")))?;
        Ok((data, images))
    }
}

impl Table {
    fn push(&mut self, key: String, status: &'static str, error: Option<String>, picture: Option<Picture>) {
        let size = |value: fn(&Picture) -> u32| picture.as_ref().and_then(|picture| i32::try_from(value(picture)).ok());
        self.key.push(key);
        self.status.push(status);
        self.error.push(error);
        self.width.push(size(|p| p.width));
        self.height.push(size(|p| p.height));
        self.original_width.push(size(|p| p.original_width));
        self.original_height.push(size(|p| p.original_height));
        let (exif, hash) = picture.map_or((None, None), |picture| (picture.exif, picture.hash));
        self.exif.push(exif);
        self.hash.push(hash);
    }

    /// All rows, in img2dataset's order of columns.
    fn batch(
        self,
        rows: &Rows,
        has_captions: bool,
        exif: bool,
        hash: Option<&'static str>,
    ) -> Result<RecordBatch, StageError> {
        let additional = rows.additional()?;
        let mut fields: Vec<Arc<Field>> = additional.schema_ref().fields().iter().cloned().collect();
        let mut arrays: Vec<ArrayRef> = additional.columns().to_vec();
        let mut add = |name: &str, array: ArrayRef| {
            fields.push(Arc::new(Field::new(name, array.data_type().clone(), true)));
            arrays.push(array);
        };
        let given = |name: &str| rows.batch.column_by_name(name).cloned();
        if let Some(captions) = given(columns::CAPTION).filter(|_| has_captions) {
            add(columns::CAPTION, captions);
        }
        if let Some(urls) = given(columns::URL) {
            add(columns::URL, urls);
        }
        let number = |values: Vec<Option<i32>>| -> ArrayRef { Arc::new(Int32Array::from(values)) };
        add(columns::KEY, Arc::new(StringArray::from(self.key)));
        add(columns::STATUS, Arc::new(StringArray::from(self.status)));
        add(columns::ERROR_MESSAGE, Arc::new(StringArray::from(self.error)));
        add(columns::WIDTH, number(self.width));
        add(columns::HEIGHT, number(self.height));
        add(columns::ORIGINAL_WIDTH, number(self.original_width));
        add(columns::ORIGINAL_HEIGHT, number(self.original_height));
        if exif {
            add(columns::EXIF, Arc::new(StringArray::from(self.exif)));
        }
        if let Some(name) = hash {
            add(name, Arc::new(StringArray::from(self.hash)));
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(StageError::failed)
    }
}

fn since_1970(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_img2dataset() {
        assert_eq!(Keys::new(1, 10_000).of(5), "000010005");
        assert_eq!(Keys::new(0, 10_000).of(9_999), "000009999");
        assert_eq!(Keys::new(12, 1_000).of(7), "00012007");
        assert_eq!(Keys::new(12, 1_500).of(7), "000120007");
        assert_eq!(Keys::new(3, 1).of(0), "00003");
        assert_eq!(Keys::new(123_456, 100).of(42), "12345642");
    }
}
