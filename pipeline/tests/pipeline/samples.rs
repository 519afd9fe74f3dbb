//! Shards of real pictures, and stages over them: a source kind `shards`, whose partitions are the files of a folder.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arrow::array::{Array, BinaryArray, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use image::{ImageFormat, RgbImage};
use pipeline::manifest::Manifest;
use pipeline::plan::{Plan, PlanError, Selection};
use pipeline::run::{Options, RunError, run};
use pipeline::stage::{
    Cancel, Law, Outcome, Partitioning, Registry, Source, Stage, StageError, StageKind, Task, as_it_is,
};
use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use serde_json::Value;
use shards::columns;
use shards::digest::Digest;
use shards::event::{Event, EventSink, RunOutcome};
use shards::reader::Shard;
use shards::sidecar::{DataFile, Sidecar};
use shards::writer::ShardWriter;

/// A row of a shard.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) key: String,
    pub(crate) image: Vec<u8>,
    pub(crate) caption: String,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) sha256: Option<String>,
    pub(crate) phash: Option<String>,
}

impl Sample {
    pub(crate) fn new(key: &str, image: Vec<u8>, (width, height): (u32, u32)) -> Self {
        let caption = format!("a picture of {key}");
        Self { key: key.to_owned(), image, caption, width, height, sha256: None, phash: None }
    }
}

/// A small PNG of one colour that follows from `seed`.
pub(crate) fn tile(seed: u8) -> Vec<u8> {
    encoded(&RgbImage::from_pixel(8, 6, image::Rgb([seed, seed.wrapping_mul(7), 255 - seed])), ImageFormat::Png)
}

/// A row with a tile: the `n`th of a source.
pub(crate) fn tiled(n: usize) -> Sample {
    Sample::new(&format!("src/{n:05}"), tile(n as u8), (8 + n as u32 % 5, 6))
}

pub(crate) fn encoded(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Which columns the shards have beside key, image and caption; phash where a row has one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Columns {
    All,
    WithoutSha256,
    WithoutSize,
}

/// A folder with shards and a workdir.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

/// What a run did: its plan, and what it started as (stage, partition), sorted.
pub(crate) struct Ran {
    pub(crate) plan: Plan,
    pub(crate) outcome: RunOutcome,
    pub(crate) started: Vec<(String, String)>,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn shards(&self) -> PathBuf {
        self.folder.path().join("shards")
    }

    /// Writes partition `n`, in row groups and batches of a few rows.
    pub(crate) fn write(&self, n: usize, rows: &[Sample], which: Columns) {
        std::fs::create_dir_all(self.shards()).unwrap();
        let path = self.shards().join(format!("{n:05}.parquet"));
        let _ = std::fs::remove_file(&path);
        let text = |name| Field::new(name, DataType::Utf8, false);
        let mut fields =
            vec![text(columns::KEY), Field::new(columns::IMAGE, DataType::Binary, false), text(columns::CAPTION)];
        if which != Columns::WithoutSize {
            fields.extend([columns::WIDTH, columns::HEIGHT].map(|name| Field::new(name, DataType::UInt32, false)));
        }
        if which != Columns::WithoutSha256 {
            fields.push(Field::new(columns::SHA256, DataType::Utf8, true));
        }
        if rows.iter().any(|row| row.phash.is_some()) {
            fields.push(Field::new(columns::PHASH, DataType::Utf8, true));
        }
        let schema = Arc::new(columns::schema_of_samples(fields));
        let array = |field: &Field| -> Arc<dyn Array> {
            match field.name().as_str() {
                columns::KEY => Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.key))),
                columns::IMAGE => Arc::new(BinaryArray::from_iter_values(rows.iter().map(|r| &r.image))),
                columns::CAPTION => Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.caption))),
                columns::WIDTH => Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.width))),
                columns::HEIGHT => Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.height))),
                columns::PHASH => Arc::new(rows.iter().map(|r| r.phash.clone()).collect::<StringArray>()),
                _ => Arc::new(rows.iter().map(|r| r.sha256.clone()).collect::<StringArray>()),
            }
        };
        let arrays = schema.fields().iter().map(|field| array(field)).collect();
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).unwrap();
        let mut writer = ShardWriter::create(&path, &schema).unwrap();
        let half = rows.len() / 2;
        writer.write(&batch.slice(0, half)).unwrap();
        writer.end_row_group().unwrap();
        writer.write(&batch.slice(half, rows.len() - half)).unwrap();
        writer.finish().unwrap();
    }

    /// Writes all partitions.
    pub(crate) fn write_all(&self, partitions: &[Vec<Sample>]) {
        partitions.iter().enumerate().for_each(|(n, rows)| self.write(n, rows, Columns::All));
    }

    /// Takes partition `n` away; those after it move up.
    pub(crate) fn remove(&self, n: usize) {
        std::fs::remove_file(self.shards().join(format!("{n:05}.parquet"))).unwrap();
    }

    /// Where all of it lies.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    fn manifest(&self, table: &str) -> Manifest {
        let (workdir, shards) = (self.folder.path().join("work"), self.shards());
        let (workdir, shards) = (workdir.display(), shards.display());
        let text = format!(
            "[pipeline]\nname = \"test\"\nworkdir = '{workdir}'\n[stage.in]\nuses = \"shards\"\nfolder = '{shards}'\n\
             [stage.out]\nfrom = \"in\"\n{table}\n"
        );
        Manifest::parse(&text, Path::new("test.toml"), &[]).unwrap()
    }

    /// The plan of a stage `out` over the shards, whose own keys are `table`.
    pub(crate) fn plan(&self, table: &str) -> Result<Plan, PlanError> {
        Plan::new(&self.manifest(table), &registry())
    }

    /// As [`Place::plan`], of what a rehearsal would do.
    pub(crate) fn rehearsal(&self, table: &str) -> Plan {
        Plan::rehearsal(&self.manifest(table), &registry(), &Selection::default(), 10).unwrap()
    }

    /// As [`Place::plan`], where whatever is there is good enough.
    pub(crate) fn only_missing(&self, table: &str) -> Plan {
        let selection = Selection { only_missing: true, ..Selection::default() };
        Plan::select(&self.manifest(table), &registry(), &selection).unwrap()
    }

    /// The words in which a table is refused; line 9 is the first of `table`'s.
    pub(crate) fn refusal(&self, table: &str) -> String {
        let error = self.plan(table).err().unwrap();
        let words = error.to_string();
        assert!(words.contains("test.toml:"), "{words}");
        words
    }

    pub(crate) fn try_run(&self, table: &str, cores: usize) -> Result<Ran, RunError> {
        let mut plan = self.plan(table).unwrap();
        let (sink, started) = starts();
        let outcome = run(&mut plan, &Options { cores, ..Options::default() }, &sink, &Cancel::default())?;
        let mut started = std::mem::take(&mut *started.lock().unwrap());
        started.sort();
        Ok(Ran { plan, outcome, started })
    }

    pub(crate) fn run(&self, table: &str) -> Ran {
        self.try_run(table, 2).unwrap()
    }

    /// Why a run failed, with its causes.
    pub(crate) fn failure(&self, table: &str) -> String {
        let Err(error) = self.try_run(table, 2) else { panic!("it succeeded") };
        with_causes(&error)
    }
}

/// Stages and partitions in the order in which they were started.
pub(crate) type Started = Arc<Mutex<Vec<(String, String)>>>;

/// A sink that keeps what is started.
pub(crate) fn starts() -> (EventSink, Started) {
    let started = Arc::new(Mutex::new(Vec::new()));
    let sink = EventSink::new({
        let started = Arc::clone(&started);
        move |event| {
            if let Event::PartitionStarted { stage, partition } = event {
                started.lock().unwrap().push((stage, partition));
            }
        }
    });
    (sink, started)
}

/// An error's words and those of its causes.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl Ran {
    /// The partitions of stage `out` that were made, the survey among them.
    pub(crate) fn made(&self) -> Vec<&str> {
        self.started.iter().filter(|(stage, _)| stage == "out").map(|(_, partition)| partition.as_str()).collect()
    }

    pub(crate) fn records(&self) -> Vec<Arc<Sidecar>> {
        self.plan.stage("out").unwrap().committed().cloned().collect()
    }

    pub(crate) fn survey(&self) -> Arc<Sidecar> {
        self.plan.stage("out").unwrap().survey.as_ref().unwrap().sidecar().unwrap().clone()
    }

    /// Digests of the survey's files and the data, in order.
    pub(crate) fn digests(&self) -> Vec<Digest> {
        let survey = self.plan.stage("out").unwrap().survey.iter().filter_map(|p| p.sidecar().cloned());
        survey.chain(self.records()).flat_map(|s| s.data.iter().map(|f| f.digest).collect::<Vec<_>>()).collect()
    }

    /// The whole of each partition of stage `out`.
    pub(crate) fn batches(&self) -> Vec<(Shard, RecordBatch)> {
        self.batches_of(None)
    }

    /// As [`Ran::batches`], of a variant.
    fn batches_of(&self, variant: Option<&str>) -> Vec<(Shard, RecordBatch)> {
        let stage = self.plan.stage("out").unwrap();
        let open = |file: &DataFile| {
            let shard = Shard::open(&stage.fetch(file).unwrap()).unwrap();
            let batches = shard.batches(None, 1000).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
            let batch = arrow::compute::concat_batches(shard.schema(), &batches).unwrap();
            (shard, batch)
        };
        stage.data_of(variant).into_iter().map(open).collect()
    }

    /// Keys and images of each partition of stage `out`.
    pub(crate) fn images(&self) -> Vec<Vec<(String, Vec<u8>)>> {
        self.images_of(None)
    }

    /// As [`Ran::images`], of a variant.
    pub(crate) fn images_of(&self, variant: Option<&str>) -> Vec<Vec<(String, Vec<u8>)>> {
        let of = |(shard, batch): (Shard, RecordBatch)| {
            let (keys, images) =
                (shard.text(&batch, columns::KEY).unwrap(), shard.binary(&batch, columns::IMAGE).unwrap());
            (0..batch.num_rows()).map(|i| (keys.value(i).to_owned(), images.value(i).to_owned())).collect()
        };
        self.batches_of(variant).into_iter().map(of).collect()
    }

    pub(crate) fn keys(&self) -> Vec<Vec<String>> {
        let of = |(shard, batch): (Shard, RecordBatch)| {
            shard.text(&batch, columns::KEY).unwrap().iter().map(|key| key.unwrap().to_owned()).collect()
        };
        self.batches().into_iter().map(of).collect()
    }

    /// Rows in, out, and dropped for `reason`, over all partitions.
    pub(crate) fn counts(&self, reason: &str) -> (u64, u64, u64) {
        let totals = self.plan.stage("out").unwrap().totals();
        assert!(totals.dropped.keys().all(|name| name == reason), "{:?}", totals.dropped);
        (totals.rows_in, totals.rows_out, totals.rows_dropped())
    }

    /// Key, reason and message of the quarantined rows, in order.
    pub(crate) fn quarantine(&self) -> Vec<[String; 3]> {
        let stage = self.plan.stage("out").unwrap();
        let mut rows = Vec::new();
        for file in stage.committed().filter_map(|sidecar| sidecar.quarantine.clone()) {
            let shard = Shard::open(&stage.fetch(&file).unwrap()).unwrap();
            for batch in shard.batches(None, 1000).unwrap() {
                let batch = batch.unwrap();
                let text = |name| shard.text(&batch, name).unwrap();
                let names = [columns::KEY, columns::REASON, columns::ERROR_MESSAGE].map(text);
                rows.extend((0..batch.num_rows()).map(|i| names.map(|texts| texts.value(i).to_owned())));
            }
        }
        rows
    }
}

/// `shards`: the parquet files of a folder.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
struct Shards {
    folder: PathBuf,
}

impl Shards {
    fn files(&self) -> Vec<PathBuf> {
        let entries =
            std::fs::read_dir(&self.folder).map(|entries| entries.map(|e| e.unwrap().path()).collect::<Vec<_>>());
        let mut files = entries.unwrap_or_default();
        files.sort();
        files
    }
}

impl Stage for Shards {
    fn semantics(&self) -> Value {
        serde_json::json!({})
    }
    fn partitioning(&self) -> Partitioning {
        Partitioning::Source
    }
    fn law(&self) -> Law {
        Law::RowWise
    }
    fn sources(&self, _folder: &std::path::Path) -> Result<Vec<Source>, StageError> {
        let source = |file: &PathBuf| {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            Ok(Source { name, digest: Digest::of_file(file)?, rows: Shard::open(file)?.rows() })
        };
        self.files().iter().map(source).collect()
    }
    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let shard = Shard::open(&self.files()[task.number])?;
        let schema: Arc<Schema> = Arc::clone(shard.schema());
        let mut writer = ShardWriter::create(&task.attempt.data(), &schema)?;
        for batch in shard.batches(None, 1000)? {
            writer.write(&batch?)?;
        }
        let data = writer.finish()?;
        Ok(Outcome { rows_in: data.rows, rows_out: data.rows, data: vec![data], ..Outcome::default() })
    }
}

fn registry() -> Registry {
    let mut registry = pipeline::stages::registry();
    registry.add(crate::publish::kind());
    registry.add(StageKind {
        name: "shards",
        version: 1,
        about: "The files of a folder.",
        inputs: (0, 0),
        schemas: || vec![schema_for!(Shards)],
        rehearse: as_it_is,
        build: |parameters| parameters.read::<Shards>().map(|stage| Box::new(stage) as Box<dyn Stage>),
    });
    registry
}
