//! Stages over files as they came from elsewhere: a source kind `fetched`, whose partitions are the folders of a folder.

use std::path::{Path, PathBuf};

use image::{ImageFormat, RgbImage};
use pipeline::stage::{
    FILES, Facts, Law, NAMES, NOT_SHARDS, Outcome, Partitioning, Registry, Source, Stage, StageError, StageKind, Task,
    as_it_is,
};
use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use serde_json::{Value, json};
use shards::columns;
use shards::data_file::DataFileWriter;
use shards::digest::{Digest, DigestBuilder};
use shards::index::BucketIndex;
use shards::reader::Shard;

use super::{Place, counts, gzip, observed, row, some, texts, write_parquet};
use crate::samples::{encoded, tile};

#[derive(Clone, Debug, Deserialize, JsonSchema)]
struct Fetched {
    folder: PathBuf,
    /// As a download's: tars, and no names.
    #[serde(default)]
    webdataset: bool,
}

/// The entries of a folder, by name.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

impl Stage for Fetched {
    fn semantics(&self) -> Value {
        json!({ "webdataset": self.webdataset })
    }
    fn partitioning(&self) -> Partitioning {
        Partitioning::Source
    }
    fn law(&self) -> Law {
        Law::Reads
    }
    fn facts(&self) -> Facts {
        [(NOT_SHARDS.to_owned(), if self.webdataset { "webdataset" } else { FILES }.into())].into()
    }
    fn sources(&self, _folder: &Path) -> Result<Vec<Source>, StageError> {
        let source = |folder: &PathBuf| {
            let mut digest = DigestBuilder::new();
            for file in entries(folder) {
                digest.add(file.file_name().unwrap().as_encoded_bytes());
                digest.add(Digest::of_file(&file)?.to_string());
            }
            Ok(Source { name: folder.display().to_string(), digest: digest.finish(), rows: 0 })
        };
        entries(&self.folder).iter().map(source).collect()
    }
    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        use std::io::Write as _;
        let mut outcome = Outcome::default();
        let mut names = Vec::new();
        for (n, path) in entries(&entries(&self.folder)[task.number]).iter().enumerate() {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let to = if name.ends_with(".tar") { task.attempt.tar() } else { task.attempt.numbered(n) };
            let mut file = DataFileWriter::create(&to)?;
            file.write_all(&std::fs::read(path).unwrap()).unwrap();
            outcome.data.push(file.finish(0)?);
            names.push(format!("data/{name}"));
        }
        if !self.webdataset {
            outcome.details.insert(NAMES.to_owned(), names.into());
        }
        Ok(outcome)
    }
}

pub(super) fn registry() -> Registry {
    let mut registry = pipeline::stages::registry();
    registry.add(StageKind {
        name: "fetched",
        version: 1,
        about: "The files of folders.",
        inputs: (0, 0),
        schemas: || vec![schema_for!(Fetched)],
        rehearse: as_it_is,
        build: |parameters| parameters.read::<Fetched>().map(|stage| Box::new(stage) as Box<dyn Stage>),
    });
    registry
}

/// A stage `hub` over FOLDER/hub, and `out` over that.
fn over_hub(table: &str) -> String {
    format!("[stage.hub]\nuses = \"fetched\"\nfolder = \"FOLDER/hub\"\n[stage.out]\nfrom = \"hub\"\n{table}")
}

/// A tar of these members.
fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn tables_among_fetched_files_are_imported_and_the_rest_is_counted() {
    let place = Place::new();
    place.write("hub/0/README.md", "about it");
    place.write("hub/1/a.jsonl.gz", gzip(b"{\"id\": 1, \"text\": \"one\"}\n{\"id\": 2, \"text\": \"two\"}\n"));
    place.write("hub/1/b.csv", "id,text\n2,again\n3,three\n");
    place.write("hub/2/c.csv", "id,text\n1,other\n");
    let table = "uses = \"import\"\ncolumns = { key = \"id\", caption = \"text\" }";
    let ran = place.try_run(&over_hub(table)).unwrap();
    assert_eq!(ran.keys(), [vec![], vec!["hub/1", "hub/2", "hub/3"], vec!["hub/1"]]);
    assert_eq!(texts(&ran, "id"), some(&["1", "2", "3", "1"]));
    assert_eq!(counts(&ran).2["duplicate_key"], 1);
    assert!(ran.quarantine()[0][2].starts_with("data/b.csv, row 0: "), "{:?}", ran.quarantine());
    assert_eq!(observed(&ran)["skipped: no table"], 1);

    let ran =
        place.try_run(&over_hub(&format!("{table}\nsource = \"x\"\ninclude = [\"*.csv\", \"data/z*\"]"))).unwrap();
    assert_eq!(ran.keys(), [vec![], vec!["x/2", "x/3"], vec!["x/1"]]);
    assert_eq!(observed(&ran)["skipped: not included"], 2);
    let by_number = place.try_run(&over_hub("uses = \"import\"\ncolumns = { caption = \"text\" }")).unwrap();
    assert_eq!(by_number.keys()[2], ["hub/data/c/000000000"]);
}

#[test]
fn tars_among_fetched_files_become_samples_with_their_classes() {
    let place = Place::new();
    place.write("classes.json", r#"{"n01": "tench, Tinca tinca", "n02": "goldfish"}"#);
    let train = tar_of(&[("n01_1.JPEG", &tile(1)), ("n02_1.JPEG", &tile(2)), ("n02_1.txt", b"two fish")]);
    place.write("hub/0/train.tar.zst", zstd::encode_all(train.as_slice(), 1).unwrap());
    place.write("hub/0/README.md", "about it");
    place.write("hub/1/n02.tar", tar_of(&[("val_1.JPEG", &tile(3)), ("0002.JPEG", &tile(4))]));
    place.write("hub/2/notes.txt", "nothing");
    let plain = place.try_run(&over_hub("uses = \"extract\"")).unwrap();
    assert_eq!(plain.keys(), [vec!["hub/n01_1", "hub/n02_1"], vec!["hub/val_1", "hub/0002"], vec![]]);
    assert_eq!(observed(&plain)["skipped: no tar"], 2);
    assert_eq!(plain.images()[1][0].1, tile(3));
    let labelled = "uses = \"extract\"\nclasses = \"FOLDER/classes.json\"\nadditional_columns = { score = \"number\" }";
    let ran = place.try_run(&over_hub(labelled)).unwrap();
    assert_eq!(texts(&ran, "class"), some(&["tench, Tinca tinca", "goldfish", "goldfish", "goldfish"]));
    assert_eq!(texts(&ran, "class_id"), some(&["n01", "n02", "n02", "n02"]));
    assert_eq!(texts(&ran, "caption"), some(&["tench", "two fish", "goldfish", "goldfish"]));
    assert!(!observed(&ran).contains_key("without a caption"));

    // The same from a folder of tars, and a class that nobody knows.
    place.write("tars/n02.tar", tar_of(&[("0002.JPEG", &tile(4))]));
    place.write("tars/train.tar", tar_of(&[("n01_1.JPEG", &tile(1)), ("n03_1.JPEG", &tile(1))]));
    let folder = format!("[stage.out]\ntars = \"FOLDER/tars\"\n{labelled}");
    let ran = place.try_run(&folder).unwrap();
    assert_eq!(texts(&ran, "class_id"), some(&["n02", "n01"]));
    assert_eq!(counts(&ran).2["unknown_class"], 1);
}

#[test]
fn tars_of_a_download_become_samples_and_shards_are_no_tars() {
    let place = Place::new();
    place.write("hub/0/00000.tar", tar_of(&[("000000000.jpg", &tile(1)), ("000000000.txt", b"one")]));
    place.write("hub/0/00000.parquet", "not looked at");
    place.write("hub/0/00000_stats.json", "{}");
    let stages = over_hub("uses = \"extract\"").replace("[stage.out]", "webdataset = true\n[stage.out]");
    let ran = place.try_run(&stages).unwrap();
    assert_eq!(ran.keys(), [["hub/000000000"]]);
    assert_eq!(texts(&ran, "caption"), some(&["one"]));
    assert!(observed(&ran).is_empty());
    // It is no stage for filters.
    let words = place.try_run(&stages.replace("\"extract\"", "\"filter\"")).err().unwrap();
    assert!(words.contains("cannot read from hub, whose output is webdataset"), "{words}");
    let words = place.try_run(&stages.replace("\"extract\"", "\"import\"\nkeep = [\"a\"]")).err().unwrap();
    assert!(words.contains("cannot read from hub, whose output is webdataset"), "{words}");

    place.write("pictures/a.png", tile(1));
    let stages = "[stage.in]\nuses = \"import\"\nfolder = \"FOLDER/pictures\"\ncaption = \"none\"\n\
                  [stage.out]\nuses = \"extract\"\nfrom = \"in\"";
    let words = place.try_run(stages).err().unwrap();
    assert!(words.contains("part-00000 of in holds no tars"), "{words}");
}

#[test]
fn fetched_buckets_are_indexed_where_they_lie() {
    let place = Place::new();
    let buckets = |path: &Path, sizes: &[&str], image: (u32, u32)| {
        use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
        let image = encoded(&RgbImage::new(image.0, image.1), ImageFormat::Png);
        let images: ArrayRef = std::sync::Arc::new(BinaryArray::from_iter_values(sizes.iter().map(|_| &image)));
        let sizes: ArrayRef = std::sync::Arc::new(StringArray::from_iter_values(sizes));
        let batch = RecordBatch::try_from_iter([(columns::IMAGE, images), (columns::BUCKET_SIZE, sizes)]).unwrap();
        let file = std::fs::File::create(path).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    };
    place.write("hub/0/README.md", "about it");
    buckets(&place.path("hub/1/a.parquet"), &["8x4"; 3], (8, 4));
    buckets(&place.path("hub/1/b.parquet"), &["4x8"; 2], (4, 8));
    let index = "uses = \"index\"";
    let ran = place.try_run(&over_hub(index)).unwrap();
    let stage = ran.plan.stage("out").unwrap();
    let index_of = |file: &shards::sidecar::DataFile| BucketIndex::read(&stage.fetch(file).unwrap()).unwrap();
    let found = index_of(&ran.records()[0].data[0]);
    assert_eq!((found.rows(), found.shards().len()), (5, 2));
    for bucket in found.buckets() {
        let place = bucket.locate(0).unwrap();
        let rows = found.open(place.shard, &[columns::IMAGE], None).unwrap();
        let batch = rows.read(&[place.row]).unwrap();
        let shard = Shard::open(rows.path()).unwrap();
        let image = image::load_from_memory(shard.binary(&batch, columns::IMAGE).unwrap().value(0)).unwrap();
        assert_eq!((image.width(), image.height()), (bucket.size.width, bucket.size.height));
    }
    // What is said of images is compared with them, and other files are none.
    buckets(&place.path("hub/2/c.parquet"), &["8x4"], (4, 8));
    let words = place.try_run(&over_hub(index)).err().unwrap();
    assert!(words.contains("is in bucket 8x4 by its bucket_size, but its image is 4x8"), "{words}");
    let other = Place::new();
    other.write("hub/0/README.md", "about it");
    let words = other.try_run(&over_hub(index)).err().unwrap();
    assert!(words.contains("none of the files of stage.hub ends in .parquet"), "{words}");
    write_parquet(&other.path("hub/0/a.parquet"), &[row(1)]);
    assert!(other.try_run(&over_hub(index)).err().unwrap().contains("bucket_size"));
}
