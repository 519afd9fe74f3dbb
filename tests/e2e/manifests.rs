//! The manifests in `manifests/`, each run from end to end as it stands: only addresses, folders and sizes are others. The services that
//! they name have stand-ins: a hub (`tests/hub`), a web of pictures and a caption server (`tests/chaos`).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Float64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, StructArray,
    StructBuilder,
};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use chaos::captions::CaptionServer;
use chaos::{Behaviour, Mix, Origin};
use hub::{Access, Hub, RepoKind};
use parquet::arrow::ArrowWriter;

use crate::support::{ferrotype, folder, text};

const TOKEN: &str = "hf_5ecret0fTheTest";

/// A folder to run in, with a hub.
struct Place {
    hub: Hub,
    folder: tempfile::TempDir,
}

fn manifest(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests").join(name);
    path.to_string_lossy().into_owned()
}

impl Place {
    fn new() -> Self {
        let place = Self { hub: Hub::start().unwrap(), folder: folder() };
        place.hub.token(TOKEN, Access::write("YOUR-NAME").granted("laion/relaion2B-en-research"));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = ferrotype();
        command.args(arguments).current_dir(self.folder.path());
        command.env("HF_ENDPOINT", self.hub.endpoint()).env("HF_TOKEN", TOKEN);
        command
    }

    fn output(&self, arguments: &[&str], sets: &[String]) -> Output {
        let mut command = self.command(arguments);
        for set in sets {
            command.args(["--set", set]);
        }
        command.output().unwrap()
    }

    /// Plans, runs and verifies a manifest, and finds it up to date afterwards.
    fn run(&self, name: &str, more: &[&str], sets: &[String]) {
        let file = manifest(name);
        for command in ["plan", "run", "verify"] {
            let more = if command == "verify" { &[] } else { more };
            let output = self.output(&[&[command, &file], more].concat(), sets);
            let is_well = output.status.success() || output.status.code() == Some(3);
            assert!(is_well, "{name} {command}\n{}\n{}", text(&output.stdout), text(&output.stderr));
        }
        let plan = text(&self.output(&[&["plan", &file], more].concat(), sets).stdout);
        assert!(plan.contains("up to date"), "{plan}");
    }

    /// The rows that a query gives, as CSV without its header.
    fn query(&self, name: &str, sets: &[String], sql: &str) -> Vec<String> {
        let output = self.output(&["query", &manifest(name), sql, "--format", "csv"], sets);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).lines().skip(1).map(str::to_owned).collect()
    }
}

/// A picture of 48×32, which says by its colour which one it is.
fn picture(n: usize, ending: &str) -> Vec<u8> {
    let image = image::RgbImage::from_pixel(48, 32, image::Rgb([(n * 37) as u8, (n * 11) as u8, 128]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::from_extension(ending).unwrap()).unwrap();
    bytes.into_inner()
}

fn write(path: &Path, columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let fields = columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let batch =
        RecordBatch::try_new(Arc::clone(&schema), columns.into_iter().map(|(_, array)| array).collect()).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    std::fs::read(path).unwrap()
}

/// A file of LLaVA-ReCap: id, image {bytes, path}, conversations [{from, value}], data_source.
fn recap(path: &Path, numbers: std::ops::Range<usize>) -> Vec<u8> {
    let ids: ArrayRef = Arc::new(StringArray::from_iter_values(numbers.clone().map(|n| format!("{n:09}"))));
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(numbers.clone().map(|n| picture(n, "jpg"))));
    let paths: ArrayRef = Arc::new(numbers.clone().map(|_| None::<&str>).collect::<StringArray>());
    let fields =
        Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)]);
    let images: ArrayRef = Arc::new(StructArray::new(fields, vec![bytes, paths], None));
    let fields = vec![Field::new("from", DataType::Utf8, true), Field::new("value", DataType::Utf8, true)];
    let mut said = ListBuilder::new(StructBuilder::from_fields(fields, 0));
    for n in numbers.clone() {
        for (from, value) in
            [("human", "<image>\nDescribe it.".to_owned()), ("gpt", format!("The answer about picture {n}."))]
        {
            said.values().field_builder::<StringBuilder>(0).unwrap().append_value(from);
            said.values().field_builder::<StringBuilder>(1).unwrap().append_value(value);
            said.values().append(true);
        }
        said.append(true);
    }
    let source: ArrayRef = Arc::new(StringArray::from_iter_values(numbers.map(|_| "cc12m")));
    write(
        path,
        vec![("id", ids), ("image", images), ("conversations", Arc::new(said.finish())), ("data_source", source)],
    )
}

fn set(sets: &[&str]) -> Vec<String> {
    sets.iter().map(|set| (*set).to_owned()).collect()
}

/// A training of seconds in place of one of weeks.
fn small_training(stage: &str) -> Vec<String> {
    let sizes = [
        "width=32",
        "blocks=1",
        "heads=2",
        "steps=2",
        "batch_size=4",
        "warmup_steps=0",
        "validation_images=0",
        "validate_every=0",
        "checkpoint_every=1",
        "precision=\"float32\"",
        "device=\"cpu\"",
        "text=\"hash\"",
    ];
    sizes.iter().map(|size| format!("stage.{stage}.{size}")).collect()
}

const CC12M: usize = 24;

/// CC12M on the hub, and the autoencoder that its trainings name.
fn cc12m(place: &Place) -> Vec<String> {
    let half = CC12M / 2;
    let files = [(0..half, "data/train-00000-of-00002.parquet"), (half..CC12M, "data/train-00001-of-00002.parquet")];
    let files = files.map(|(numbers, name)| (name.to_owned(), recap(&place.path("x.parquet"), numbers)));
    place.hub.create(RepoKind::Dataset, "lmms-lab/LLaVA-ReCap-CC12M").commit("main", files);
    // In another order, one without a caption, one whose caption is the mark of a failure.
    let line = |n: usize| {
        let long = if n == 3 { "An image".to_owned() } else { format!("The image shows thing {n}, at length.") };
        let line = serde_json::json!({ "key": format!("{n:09}"), "url": "http://x", "caption": "alt", "status": "success",
            "caption_llava": long, "caption_llava_short": format!("thing number {n}\n") });
        format!("{line}\n")
    };
    let lines: String = (0..CC12M).rev().filter(|n| *n != 5).map(line).collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, lines.as_bytes()).unwrap();
    let captions = place.hub.create(RepoKind::Dataset, "CaptionEmporium/conceptual-captions-cc12m-llavanext");
    captions.commit("main", [("README.md", b"# captions".to_vec()), ("train.jsonl.gz", gzip.finish().unwrap())]);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/fixtures/hf/autoencoder_kl");
    let files = ["config.json", "diffusion_pytorch_model.safetensors"];
    let files = files.map(|name| (format!("vae/{name}"), std::fs::read(fixture.join(name)).unwrap()));
    place.hub.create(RepoKind::Model, "black-forest-labs/FLUX.1-schnell").gated().commit("main", files);
    let mut sets = set(&[
        "stage.filter.min_side=16",
        "stage.bucket.max_resolution=[16, 32, 48]",
        "stage.index_256.from=\"bucket@16\"",
        "stage.index_512.from=\"bucket@32\"",
        "stage.index_1024.from=\"bucket@48\"",
        "stage.samples.steps=2",
    ]);
    for stage in ["train_256", "train_512", "train_1024"] {
        sets.extend(small_training(stage));
    }
    sets
}

#[test]
fn cc12m_with_captions_trains_at_three_sizes() {
    let place = Place::new();
    let sets = cc12m(&place);
    place.hub.token(TOKEN, Access::write("YOUR-NAME").granted("black-forest-labs/FLUX.1-schnell"));
    let fetched = place
        .command(&["fetch", "hf://black-forest-labs/FLUX.1-schnell/vae", "--to", "models/flux-vae"])
        .output()
        .unwrap();
    assert!(fetched.status.success(), "{}", text(&fetched.stderr));
    place.run("cc12m-recap.toml", &[], &sets);
    let rows =
        place.query("cc12m-recap.toml", &sets, "SELECT key, recaption, recaption_short FROM filter ORDER BY key");
    assert_eq!(rows.len(), CC12M);
    assert_eq!(rows[2], "cc12m/000000002,\"Thing 2, at length.\",Thing number 2");
    assert_eq!(rows[3], "cc12m/000000003,The answer about picture 3.,Thing number 3");
    assert_eq!(rows[5], "cc12m/000000005,The answer about picture 5.,The answer about picture 5.");
    let stages = place.path("data/cc12m-recap/stages");
    for stage in ["train_256", "train_512", "train_1024", "samples"] {
        assert!(stages.join(stage).is_dir(), "{stage}");
    }
    // From first byte to published dataset: ImageNet's tars with captions of their own, and CC12M's beside them.
    imagenet(&place);
}

fn imagenet(place: &Place) {
    std::fs::create_dir(place.path("winter21_whole")).unwrap();
    for (class, numbers) in [("n00004475", 100..103), ("n01440764", 200..204)] {
        let mut tar = tar::Builder::new(File::create(place.path(&format!("winter21_whole/{class}.tar"))).unwrap());
        for n in numbers {
            let bytes = picture(n, "jpg");
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, format!("{class}_{n}.JPEG"), bytes.as_slice()).unwrap();
        }
        tar.finish().unwrap();
    }
    std::fs::write(
        place.path("imagenet21k_classes.json"),
        r#"{"n00004475": "organism, being", "n01440764": "tench, Tinca tinca"}"#,
    )
    .unwrap();
    let captions = CaptionServer::start(chaos::captions::Options::default()).unwrap();
    let mut sets = set(&["stage.filter.min_side=16"]);
    sets.extend(captioned_by(&captions));
    place.run("imagenet21k.toml", &[], &sets);
    let rows = place.query("imagenet21k.toml", &sets, "SELECT key, caption, class, class_id FROM extract ORDER BY key");
    assert_eq!(
        rows.first().map(String::as_str),
        Some("imagenet21k/n00004475_100,organism,\"organism, being\",n00004475")
    );
    let counts =
        place.query("imagenet21k.toml", &sets, "SELECT count(*), count(class_id), count(class) FROM \"union\"");
    assert_eq!(counts, [format!("{},7,{}", CC12M + 7, CC12M + 7)]);
    let name = "YOUR-NAME/cc12m-and-imagenet21k-recap";
    let published = place.hub.files(RepoKind::Dataset, name, "main").unwrap();
    let shards: Vec<&String> =
        published.keys().filter(|path| path.starts_with("data/") && path.ends_with(".parquet")).collect();
    assert_eq!(shards.len(), 4, "{shards:?}");
    assert_eq!(place.hub.is_private(RepoKind::Dataset, name), Some(true));
    let card = String::from_utf8_lossy(&published["README.md"]).into_owned();
    assert!(card.contains("license: \"other\"") && card.contains("CaptionEmporium/conceptual-captions"), "{card}");
    read_by_python(place, name);
}

/// What was published, as Python's `datasets` shows it.
fn read_by_python(place: &Place, name: &str) {
    let Some(python) = crate::support::python() else {
        eprintln!("skipped: no Python with datasets");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/read_published.py");
    let mut command = Command::new(python);
    command.arg(script).arg(name).env("HF_ENDPOINT", place.hub.endpoint()).env("HF_TOKEN", TOKEN);
    command.env("HF_HUB_DISABLE_XET", "1").env("HF_HOME", place.path("huggingface"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows: Vec<serde_json::Value> =
        text(&output.stdout).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(rows.len(), CC12M + 7);
    let of = |key: &str| rows.iter().find(|row| row["key"] == key).unwrap();
    let (fish, web) = (of("imagenet21k/n01440764_203"), of("cc12m/000000002"));
    assert_eq!((&web["recaption"], &web["recaption_short"]), (&"Thing 2, at length.".into(), &"Thing number 2".into()));
    assert_eq!((&fish["class_id"], &fish["size"]), (&"n01440764".into(), &serde_json::json!([48, 32])));
    assert!(fish["recaption"].as_str().is_some_and(|caption| caption.len() >= 10), "{fish}");
    // The picture is the one of this row: JPEG keeps a colour to a few steps.
    for (row, n) in [(fish, 203_u64), (web, 2)] {
        let corner = row["corner"].as_array().unwrap().iter().map(|value| value.as_u64().unwrap());
        let expected = [n * 37 % 256, n * 11 % 256, 128];
        assert!(corner.zip(expected).all(|(found, expected)| found.abs_diff(expected) < 6), "{row}");
    }
}

fn captioned_by(server: &CaptionServer) -> Vec<String> {
    ["long", "short"]
        .iter()
        .map(|step| {
            format!("stage.recaption.{step}.server={{ endpoints = [\"{}\"], model = \"captioner\" }}", server.url())
        })
        .collect()
}

/// A web of pictures that are all well, and the keys of a download that reaches it.
fn web(stage: &str) -> (Origin, Vec<String>) {
    let mix = Mix::Of(vec![(Behaviour::Jpeg, 1)]);
    let origin = Origin::start(chaos::Options {
        urls: 30,
        hosts: 3,
        mix,
        dns: false,
        tls: false,
        robots_txt: false,
        verify_hash: false,
        ..chaos::Options::default()
    });
    let origin = origin.unwrap();
    let hosts =
        origin.connect_to().iter().map(|(host, address)| format!("\"{host}\" = \"{address}\"")).collect::<Vec<_>>();
    let sets = vec![
        format!("stage.{stage}.connect_to={{ {} }}", hosts.join(", ")),
        format!("stage.{stage}.allow_networks=[\"127.0.0.0/8\"]"),
        format!("stage.{stage}.rows_per_shard=10"),
        format!("stage.{stage}.in_flight=16"),
        "stage.filter.min_side=16".to_owned(),
        "stage.filter.min_caption=1".to_owned(),
    ];
    (origin, sets)
}

#[test]
fn cc12m_by_its_addresses_trains_a_model() {
    let place = Place::new();
    let (origin, mut sets) = web("download");
    let list = origin.list_tsv();
    // As it is published: without a header, and without the hashes.
    let lines: Vec<&str> = list.lines().skip(1).filter_map(|line| Some(line.rsplit_once('\t')?.0)).collect();
    place.hub.create(RepoKind::Dataset, "google/cc12m").commit("main", [("cc12m.tsv", lines.join("\n").into_bytes())]);
    sets.push(format!("stage.download.urls=\"{}/datasets/google/cc12m/resolve/main/cc12m.tsv\"", place.hub.endpoint()));
    sets.extend(set(&["stage.bucket.max_resolution=32", "stage.bucket.patch_size=16", "stage.samples.steps=2"]));
    sets.extend(small_training("train"));
    place.run("cc12m-urls.toml", &[], &sets);
    assert_eq!(place.query("cc12m-urls.toml", &sets, "SELECT count(*) FROM bucket"), ["30"]);
}

#[test]
fn laion_goes_through_tars_to_captioned_buckets() {
    let place = Place::new();
    let (origin, mut sets) = web("download");
    let rows = origin.rows();
    let texts =
        |of: fn(&chaos::Row) -> &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(rows.iter().map(of))) };
    let numbers =
        |of: fn(usize) -> f64| -> ArrayRef { Arc::new(Float64Array::from_iter_values((0..rows.len()).map(of))) };
    let columns = vec![
        ("url", texts(|row| &row.url)),
        ("caption", texts(|row| &row.caption)),
        ("punsafe", numbers(|n| if n % 10 == 0 { 0.9 } else { 0.01 })),
        ("pwatermark", numbers(|_| 0.2)),
        ("similarity", numbers(|_| 0.3)),
    ];
    let metadata = write(&place.path("x.parquet"), columns);
    let _ = place
        .hub
        .create(RepoKind::Dataset, "laion/relaion2B-en-research")
        .gated()
        .commit("main", [("part-0.snappy.parquet", metadata)]);
    let captions = CaptionServer::start(chaos::captions::Options::default()).unwrap();
    sets.extend(captioned_by(&captions));
    sets.extend(set(&[
        "stage.bucket.max_resolution=[32, 48]",
        "stage.index_256.from=\"bucket@32\"",
        "stage.index_512.from=\"bucket@48\"",
    ]));
    place.run("laion.toml", &[], &sets);
    assert_eq!(place.query("laion.toml", &sets, "SELECT count(*) FROM extract"), ["30"]);
    assert_eq!(place.query("laion.toml", &sets, "SELECT count(*) FROM \"bucket@32\""), ["27"], "three are unsafe");
}

#[test]
fn pictures_of_ones_own_are_captioned_and_learnt_from() {
    let place = Place::new();
    let base = crate::support::trained();
    std::fs::create_dir_all(place.path("pictures")).unwrap();
    for n in 0..6 {
        std::fs::write(place.path(&format!("pictures/my_dog_{n}.png")), picture(n, "png")).unwrap();
    }
    let captions = CaptionServer::start(chaos::captions::Options::default()).unwrap();
    let mut sets = captioned_by(&captions);
    sets.extend(small_training("train"));
    sets.extend(set(&[
        "stage.train.latents=\"pixels\"",
        "stage.train.zero_gates=false",
        "stage.bucket.max_resolution=32",
        "stage.samples.steps=2",
    ]));
    sets.push(format!("stage.train.start={{ folder = \"{}\", average = true }}", base.1));
    place.run("finetune.toml", &[], &sets);
    assert_eq!(place.query("finetune.toml", &sets, "SELECT count(*) FROM recaption"), ["6"]);
}
