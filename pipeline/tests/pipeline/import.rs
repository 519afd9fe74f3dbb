//! `import` through the engine: other people's tables of pictures and captions, and labelled pictures.

mod fetched;
mod joined;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder,
    StructArray, StructBuilder,
};
use arrow::datatypes::{DataType, Field, Fields, Float64Type, Int64Type, Schema};
use flate2::Compression;
use flate2::write::GzEncoder;
use image::{ImageFormat, RgbImage};
use parquet::arrow::ArrowWriter;
use pipeline::manifest::Manifest;
use pipeline::plan::Plan;
use pipeline::run::{Options, run};
use pipeline::stage::Cancel;
use shards::columns;
use shards::event::{Event, EventSink};

use crate::samples::{Ran, encoded, starts, tile, with_causes};

/// A folder with data and a workdir.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// What becomes of these stages, in whose text FOLDER is the folder; the last is called `out`. Or why nothing does.
    fn try_run(&self, stages: &str) -> Result<Ran, String> {
        drive(self.plan(stages)?)
    }

    fn plan(&self, stages: &str) -> Result<Plan, String> {
        let text = format!("[pipeline]\nname = \"test\"\nworkdir = \"FOLDER/work\"\nwarn_above = 1.0\n{stages}\n");
        let text = text.replace("FOLDER", &self.folder.path().to_string_lossy());
        let manifest = Manifest::parse(&text, Path::new("test.toml"), &[]).map_err(|error| with_causes(&error))?;
        Plan::new(&manifest, &fetched::registry()).map_err(|error| with_causes(&error))
    }

    /// As [`Place::try_run`], of a stage `out` that imports.
    fn import(&self, table: &str) -> Result<Ran, String> {
        self.try_run(&format!("[stage.out]\nuses = \"import\"\n{table}"))
    }

    fn refusal(&self, table: &str) -> String {
        self.import(table).err().unwrap()
    }
}

fn drive(mut plan: Plan) -> Result<Ran, String> {
    let options = Options { cores: 2, ..Options::default() };
    let (events, started) = starts();
    let outcome = run(&mut plan, &options, &events, &Cancel::default());
    let outcome = outcome.map_err(|error| with_causes(&error))?;
    let mut started = std::mem::take(&mut *started.lock().unwrap());
    started.sort();
    Ok(Ran { plan, outcome, started })
}

/// Rows in and out, and what was dropped by reason; they add up.
fn counts(ran: &Ran) -> (u64, u64, BTreeMap<String, u64>) {
    let totals = ran.plan.stage("out").unwrap().totals();
    assert_eq!(totals.rows_in, totals.rows_out + totals.rows_dropped());
    (totals.rows_in, totals.rows_out, totals.dropped)
}

fn observed(ran: &Ran) -> BTreeMap<String, u64> {
    ran.plan.stage("out").unwrap().totals().observed
}

/// The columns of the first partition.
fn names(ran: &Ran) -> Vec<String> {
    ran.batches()[0].0.schema().fields().iter().map(|field| field.name().clone()).collect()
}

/// A column of text of all partitions.
fn texts(ran: &Ran, column: &str) -> Vec<Option<String>> {
    let of = |(shard, batch): &(shards::reader::Shard, RecordBatch)| -> Vec<Option<String>> {
        shard.text(batch, column).unwrap().iter().map(|text| text.map(str::to_owned)).collect()
    };
    ran.batches().iter().flat_map(of).collect()
}

fn reasons(ran: &Ran) -> Vec<(String, String)> {
    ran.quarantine().into_iter().map(|[key, reason, _]| (key, reason)).collect()
}

fn some(texts: &[&str]) -> Vec<Option<String>> {
    texts.iter().map(|text| Some((*text).to_owned())).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// A row as LLaVA-ReCap has them: a number, an image, what was said, a licence.
struct Row {
    id: Option<i64>,
    image: Option<Vec<u8>>,
    said: &'static [&'static str],
    license: Option<&'static str>,
}

fn row(id: i64) -> Row {
    Row { id: Some(id), image: Some(tile(id as u8)), said: &["describe", " a tile "], license: Some("CC0") }
}

/// Writes them as the Hugging Face hub does, in row groups of three.
fn write_parquet(path: &Path, rows: &[Row]) {
    let ids: ArrayRef = Arc::new(rows.iter().map(|row| row.id).collect::<Int64Array>());
    let bytes: ArrayRef = Arc::new(rows.iter().map(|row| row.image.as_deref()).collect::<BinaryArray>());
    let paths: ArrayRef = Arc::new(rows.iter().map(|_| Some("a.png")).collect::<StringArray>());
    let fields =
        Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)]);
    let images: ArrayRef = Arc::new(StructArray::new(fields, vec![bytes, paths], None));
    let fields = vec![Field::new("from", DataType::Utf8, true), Field::new("value", DataType::Utf8, true)];
    let mut said = ListBuilder::new(StructBuilder::from_fields(fields, rows.len()));
    for row in rows {
        for (n, text) in row.said.iter().enumerate() {
            let from = if n % 2 == 0 { "human" } else { "gpt" };
            said.values().field_builder::<StringBuilder>(0).unwrap().append_value(from);
            said.values().field_builder::<StringBuilder>(1).unwrap().append_value(text);
            said.values().append(true);
        }
        said.append(true);
    }
    let said: ArrayRef = Arc::new(said.finish());
    let licenses: ArrayRef = Arc::new(rows.iter().map(|row| row.license).collect::<StringArray>());
    let columns = [("id", ids), ("image", images), ("conversations", said), ("license", licenses)];
    let fields = columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, None).unwrap();
    for start in (0..rows.len()).step_by(3) {
        writer.write(&batch.slice(start, 3.min(rows.len() - start))).unwrap();
        writer.flush().unwrap();
    }
    writer.close().unwrap();
}

const LLAVA: &str = "files = \"FOLDER/data/cc12m\"\nmax_bytes = 5000\nmax_pixels = 100\n\
                     columns = { key = \"id\", image = \"image\", caption = \"conversations[1].value\" }\n\
                     keep = [\"license\", \"conversations\"]\nconstants = { class = \"CC12M\" }\n";

#[test]
fn images_and_nested_captions_come_out_of_parquet_from_the_hub() {
    let place = Place::new();
    let rows = [
        row(1),
        row(2),
        Row { said: &["only"], license: None, ..row(3) },
        Row { id: None, ..row(4) },
        row(2),
        Row { image: None, ..row(6) },
        Row { image: Some(b"<html>".to_vec()), ..row(7) },
        Row { image: Some(vec![0; 5001]), ..row(8) },
        Row { image: Some(encoded(&RgbImage::new(11, 10), ImageFormat::Png)), ..row(9) },
        Row { image: Some(tile(10)[..tile(10).len() / 2].to_vec()), ..row(10) },
    ];
    write_parquet(&place.path("data/cc12m/train-00000.parquet"), &rows);
    // In another partition, keys are others.
    write_parquet(&place.path("data/cc12m/more/train-00001.parquet"), &[row(1)]);
    let ran = place.import(LLAVA).unwrap();
    assert_eq!(ran.keys(), [vec!["cc12m/1"], vec!["cc12m/1", "cc12m/2", "cc12m/3"]]);
    assert_eq!(
        names(&ran),
        [
            "key",
            "image",
            "caption",
            "url",
            "width",
            "height",
            "sha256",
            "id",
            "license",
            "conversations",
            "class",
            "checksum"
        ]
    );
    assert_eq!(texts(&ran, "caption")[1..], some(&["a tile", "a tile", ""]));
    assert_eq!(texts(&ran, "id")[1..], some(&["1", "2", "3"]));
    assert_eq!(texts(&ran, "license")[2..], [Some("CC0".to_owned()), None]);
    assert_eq!(texts(&ran, "class"), some(&["CC12M"; 4]));
    assert_eq!(texts(&ran, "conversations")[3].as_deref(), Some("[{\"from\":\"human\",\"value\":\"only\"}]"));
    let images = ran.images().concat();
    assert_eq!(images.iter().map(|(_, image)| image.clone()).collect::<Vec<_>>(), [tile(1), tile(1), tile(2), tile(3)]);
    assert_eq!(
        reasons(&ran).iter().map(|(key, reason)| (key.as_str(), reason.as_str())).collect::<Vec<_>>(),
        [
            ("cc12m/train-00000/000000003", "no_key"),
            ("cc12m/2", "duplicate_key"),
            ("cc12m/6", "no_image"),
            ("cc12m/7", "not_an_image"),
            ("cc12m/8", "too_large"),
            ("cc12m/9", "too_many_pixels"),
            ("cc12m/10", "damaged_image"),
        ]
    );
    assert!(ran.quarantine()[1][2].starts_with("cc12m/train-00000.parquet, row 4: "), "{:?}", ran.quarantine()[1]);
    assert_eq!((counts(&ran).0, counts(&ran).1), (11, 4));

    // Parts of it, and the same again elsewhere.
    let few = place.import(&format!("{LLAVA}rows_per_file = 2\ncheck = \"header\"")).unwrap();
    assert_eq!(few.keys(), [vec!["cc12m/1"], vec!["cc12m/1", "cc12m/2"]]);
    assert_eq!(place.import(&format!("{LLAVA}limit = 1")).unwrap().keys(), [["cc12m/1"]]);
    let other = Place::new();
    write_parquet(&other.path("data/cc12m/train-00000.parquet"), &rows);
    write_parquet(&other.path("data/cc12m/more/train-00001.parquet"), &[row(1)]);
    assert_eq!(other.import(LLAVA).unwrap().digests(), ran.digests());
}

#[test]
fn lines_of_json_become_captions_and_bad_ones_are_counted() {
    let lines = [
        r#"{"key": "000000001", "caption_llava": "a long one", "caption_llava_short": "short", "score": 1, "more": {"a": 1}}"#,
        "{oops",
        "",
        "[1, 2]",
        r#"{"key": 7, "caption_llava": null, "score": 0.5}"#,
        r#"{"caption_llava": "nobody's"}"#,
        r#"{"key": "000000001", "caption_llava": "again"}"#,
        r#"{"key": "000000002", "caption_llava": ["x"], "more": {"a": null}}"#,
    ];
    let text = lines.join("\r\n");
    let table = "source = \"cc12m\"\nkeep = [\"score\", \"more\"]\n\
                 columns = { key = \"key\", recaption = \"caption_llava\", recaption_short = \"caption_llava_short\", a = \"more.a\" }\n";
    let files = [
        ("train.jsonl", text.clone().into_bytes()),
        ("train.jsonl.gz", gzip(text.as_bytes())),
        ("train.jsonl.zst", zstd::encode_all(text.as_bytes(), 1).unwrap()),
    ];
    let mut digests = Vec::new();
    for (name, bytes) in files {
        let place = Place::new();
        place.write(&format!("captions/{name}"), bytes);
        let ran = place.import(&format!("files = \"FOLDER/captions/*.jsonl*\"\n{table}")).unwrap();
        assert_eq!(ran.keys(), [["cc12m/000000001", "cc12m/7", "cc12m/000000002"]], "{name}");
        assert_eq!(names(&ran), ["key", "a", "recaption", "recaption_short", "score", "more"]);
        assert_eq!(texts(&ran, "recaption"), [Some("a long one".to_owned()), None, Some("[\"x\"]".to_owned())]);
        assert_eq!(texts(&ran, "recaption_short")[0].as_deref(), Some("short"));
        assert_eq!(texts(&ran, "more")[0].as_deref(), Some("{\"a\":1}"));
        let (_, batch) = &ran.batches()[0];
        let scores = batch.column_by_name("score").unwrap().as_primitive::<Float64Type>();
        assert_eq!(scores.iter().collect::<Vec<_>>(), [Some(1.0), Some(0.5), None]);
        let numbers = batch.column_by_name("a").unwrap().as_primitive::<Int64Type>();
        assert_eq!(numbers.iter().collect::<Vec<_>>(), [Some(1), None, None]);
        let refused: Vec<[String; 3]> = ran.quarantine();
        let refused: Vec<(&str, &str)> =
            refused.iter().map(|[key, reason, _]| (key.as_str(), reason.as_str())).collect();
        assert_eq!(
            refused,
            [
                ("cc12m/train/000000001", "malformed_row"),
                ("cc12m/train/000000002", "malformed_row"),
                ("cc12m/train/000000004", "no_key"),
                ("cc12m/000000001", "duplicate_key"),
            ]
        );
        assert!(ran.quarantine()[0][2].contains("line 2, column 2: "), "{:?}", ran.quarantine()[0]);
        assert_eq!((counts(&ran).0, counts(&ran).1), (7, 3));
        digests.push(ran.digests());
    }
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn fields_between_commas_or_tabs_and_arrays_of_json_are_tables_too() {
    let place = Place::new();
    place.write("data/a.csv", "Key,Text,n\nx,\"one, two\",1\ny,three\nz,,many\n");
    place.write("data/b.tsv", "Key\tText\tn\nx\t\"five\t5\n");
    place.write("data/c.json", r#" [{"Key": "x", "Text": "six", "n": "6"}, 7, {"Key": "y", "Text": {"a": "b"}}] "#);
    let table = "files = \"FOLDER/data\"\ncolumns = { caption = \"Text\" }\nkeep = { n = \"integer\", Key = \"text\" }";
    let ran = place.import(table).unwrap();
    assert_eq!(names(&ran), ["key", "caption", "Key", "n"]);
    assert_eq!(
        ran.keys(),
        [
            vec!["data/a/000000000", "data/a/000000002"],
            vec!["data/b/000000000"],
            vec!["data/c/000000000", "data/c/000000002"]
        ]
    );
    assert_eq!(texts(&ran, "caption"), some(&["one, two", "", "\"five", "six", "{\"a\":\"b\"}"]));
    assert_eq!(counts(&ran), (7, 5, BTreeMap::from([("malformed_row".to_owned(), 2)])));
    assert!(ran.quarantine()[0][2].contains("line 3: it has 2 fields instead of 3"), "{:?}", ran.quarantine());
    assert!(ran.quarantine()[1][2].contains("it is a number, and no object"), "{:?}", ran.quarantine());
    assert_eq!(observed(&ran)["n is no integer"], 1);
    let columns = ran.batches();
    let numbers = columns[0].1.column_by_name("n").unwrap().as_primitive::<Int64Type>();
    assert_eq!(numbers.iter().collect::<Vec<_>>(), [Some(1), None]);
}

#[test]
fn quotation_marks_of_tsv_are_undone_where_that_is_asked_for_and_else_counted_where_they_were_doubled() {
    let place = Place::new();
    place.write("data/a.tsv", "Key\tText\nx\t\"He said \"\"hello\"\"\"\ny\ta \"red\" fox\n");
    let table = "files = \"FOLDER/data\"\ncolumns = { key = \"Key\", caption = \"Text\" }\n";
    let plain = place.import(table).unwrap();
    assert_eq!(texts(&plain, "caption"), some(&["\"He said \"\"hello\"\"\"", "a \"red\" fox"]));
    let noted = BTreeMap::from([("doubled quotation marks; quotes = true undoes them".to_owned(), 1)]);
    assert_eq!(observed(&plain), noted);
    place.write("data/a.tsv", "Key\tText\nx\t\"He said \"\"hello\"\"\"\ny\ta \"red\" fox\nz\t\"two\nlines\"\n");
    let quoted = place.import(&format!("{table}quotes = true")).unwrap();
    assert_eq!(texts(&quoted, "caption"), some(&["He said \"hello\"", "a \"red\" fox", "two\nlines"]));
    assert_eq!(observed(&quoted), BTreeMap::new());
}

#[test]
fn a_table_that_does_not_fit_is_named_with_what_it_has() {
    let place = Place::new();
    write_parquet(&place.path("hub/a.parquet"), &[row(1)]);
    place.write("lines/a.jsonl", "{\"identity\": 1, \"text\": \"a\"}\n{\"text\": \"b\"}\n");
    place.write("fields/a.csv", "id,text\n1,a\n");
    place.write("open/a.csv", format!("id,text\n1,\"{}", "x".repeat(17 << 20)));
    place.write("pandas/a.json", r#"{"id": {"0": 1}, "text": {"0": "a"}}"#);
    place.write("broken/a.json", r#"[{"id": 1, "text": "a"}, {"id""#);
    for (folder, columns, expected) in [
        ("hub", "key = \"idd\"", "the table hub/a.parquet has no column `idd`; did you mean `id`? it has: id, image, "),
        (
            "hub",
            "key = \"id\", caption = \"conversations[0].val\"",
            "`conversations[0]` has no field `val`; did you mean `value`?",
        ),
        (
            "hub",
            "key = \"id\", caption = \"license[0]\"",
            "in the table hub/a.parquet, `license` is Utf8, in which [0] leads",
        ),
        ("hub", "key = \"id\", image = \"license\"", "`license` of the table hub/a.parquet is Utf8; expected images"),
        (
            "lines",
            "key = \"identiy\", caption = \"text\"",
            "has no column `identiy`; did you mean `identity`? it has: identity, text",
        ),
        ("lines", "key = \"text\", image = \"identity\"", "lines/a.jsonl is text, which holds no images"),
        (
            "fields",
            "key = \"ID\", caption = \"text\"",
            "fields/a.csv has no column `ID`; did you mean `id`? it has: id, text",
        ),
        (
            "fields",
            "key = \"id\", caption = \"text.en\"",
            "in the table fields/a.csv, `text` is text, in which .en leads",
        ),
        ("open", "key = \"id\", caption = \"text\"", "line 2 of the table open/a.csv has more than 16 MB"),
        (
            "pandas",
            "key = \"id\", caption = \"text\"",
            "pandas/a.json begins with an object or a list within an object",
        ),
        ("broken", "key = \"id\", caption = \"text\"", "the table broken/a.json is no JSON from row 1 on: EOF"),
    ] {
        let words = place.refusal(&format!("files = \"FOLDER/{folder}\"\ncolumns = {{ {columns} }}"));
        assert!(words.contains(expected), "{folder}, {columns}: {words}");
    }
    // A value in some rows that a path cannot go through costs those rows.
    place.write("mixed/a.jsonl", "{\"id\": 1, \"c\": [\"a\"]}\n{\"id\": 2, \"c\": \"b\"}\n");
    let ran = place.import("files = \"FOLDER/mixed\"\ncolumns = { key = \"id\", caption = \"c[0]\" }").unwrap();
    assert_eq!(reasons(&ran)[0].1, "malformed_row");
    assert!(ran.quarantine()[0][2].contains("`c` is text, in which [0] leads nowhere"), "{:?}", ran.quarantine());
    assert_eq!(texts(&ran, columns::CAPTION), some(&["a"]));
}

#[test]
fn labelled_pictures_get_their_classes_from_names_and_folders() {
    let place = Place::new();
    place.write("classes.json", r#"{"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus"}"#);
    for (n, name) in ["n01440764_10026.JPEG", "val/n01443537/ILSVRC2012_val_1.jpg", "n09_1.png"].iter().enumerate() {
        place.write(&format!("imagenet/{name}"), tile(n as u8));
    }
    let table = "folder = \"FOLDER/imagenet\"\nclasses = \"FOLDER/classes.json\"\ncaption = \"class\"";
    let ran = place.import(table).unwrap();
    assert_eq!(texts(&ran, "class"), some(&["tench, Tinca tinca", "goldfish, Carassius auratus"]));
    assert_eq!(texts(&ran, "class_id"), some(&["n01440764", "n01443537"]));
    assert_eq!(texts(&ran, "id"), some(&["n01440764_10026", "ILSVRC2012_val_1"]));
    assert_eq!(texts(&ran, "caption"), some(&["tench", "goldfish"]));
    assert_eq!(counts(&ran), (3, 2, BTreeMap::from([("unknown_class".to_owned(), 1)])));
    // Another name of a class makes another shard, another file of the same names does not.
    place.write(
        "other.json",
        r#"{"0": ["n01440764", "tench, Tinca tinca"], "1": ["n01443537", "goldfish, Carassius auratus"]}"#,
    );
    let same = place.import(&table.replace("classes.json", "other.json")).unwrap();
    assert_eq!(same.records()[0].fingerprint, ran.records()[0].fingerprint);
    place.write("classes.json", r#"{"n01440764": "tench", "n01443537": "goldfish"}"#);
    assert_eq!(texts(&place.import(table).unwrap(), "class"), some(&["tench", "goldfish"]));
}

#[test]
fn pictures_are_found_through_links_and_by_every_name_of_jpeg_and_other_kinds_are_told_of() {
    let place = Place::new();
    for (n, name) in ["data/a.JFIF", "data/b.jpe", "elsewhere/c.png"].iter().enumerate() {
        place.write(name, tile(n as u8));
    }
    for name in ["data/d.heic", "data/e.TIFF", "data/more/f.tiff", "data/notes.txt"] {
        place.write(name, "not looked at");
    }
    symlink(place.path("elsewhere"), place.path("data/linked")).unwrap();
    symlink(place.path("data"), place.path("data/more/back")).unwrap();
    let stage = "[stage.out]\nuses = \"import\"\nfolder = \"FOLDER/data\"\ncaption = \"none\"\nrows_per_shard = 1";
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = EventSink::new({
        let told = Arc::clone(&told);
        move |event| {
            if let Event::Note { text, .. } = event {
                told.lock().unwrap().push(text);
            }
        }
    });
    let options = Options { cores: 2, ..Options::default() };
    run(&mut place.plan(stage).unwrap(), &options, &sink, &Cancel::default()).unwrap();
    assert_eq!(place.try_run(stage).unwrap().keys(), [["data/a"], ["data/b"], ["data/linked/c"]]);
    let told = told.lock().unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("left out: 1 .heic, 2 .tiff; pictures that can be imported end in .jpg, "), "{told:?}");
}

#[test]
fn a_folder_without_a_picture_is_an_error_that_says_what_is_there() {
    let place = Place::new();
    let table = "folder = \"FOLDER/data\"\ncaption = \"none\"";
    std::fs::create_dir(place.path("data")).unwrap();
    let words = place.refusal(table);
    assert!(words.contains("data or a folder below it: pictures are files that end in .jpg, "), "{words}");
    assert!(words.ends_with("there is nothing"), "{words}");
    for name in ["data/a.HEIC", "data/more/b.heic", "data/LICENSE"] {
        place.write(name, "");
    }
    assert!(place.refusal(table).ends_with("there is 1 without an ending, 2 .heic"), "{}", place.refusal(table));
}

#[test]
fn of_pictures_that_would_have_one_key_the_first_is_taken() {
    let place = Place::new();
    for (n, name) in ["a.jpg", "a.png", "b.jpg"].iter().enumerate() {
        place.write(&format!("data/{name}"), tile(n as u8));
    }
    let table = "folder = \"FOLDER/data\"\ncaption = \"none\"\nrows_per_shard = 1";
    let ran = place.import(table).unwrap();
    assert_eq!(ran.keys(), [vec!["data/a"], vec![], vec!["data/b"]]);
    assert_eq!(counts(&ran), (3, 2, BTreeMap::from([("duplicate_key".to_owned(), 1)])));
    let refused = ran.quarantine();
    assert_eq!(refused[0][..2], ["data/a", "duplicate_key"]);
    assert!(refused[0][2].ends_with("a.png: a picture before it has the same name but for its ending"), "{refused:?}");
    // The first gets another name: the second keeps its place, and has a key of its own now.
    std::fs::rename(place.path("data/a.jpg"), place.path("data/0.jpg")).unwrap();
    let ran = place.import(table).unwrap();
    assert_eq!(ran.made(), ["part-00000", "part-00001"]);
    assert_eq!(ran.keys(), [["data/0"], ["data/a"], ["data/b"]]);
    std::fs::rename(place.path("data/0.jpg"), place.path("data/a.jpg")).unwrap();
    assert!(place.import(table).unwrap().made().is_empty(), "as it was");
    // The first goes.
    std::fs::remove_file(place.path("data/a.jpg")).unwrap();
    let ran = place.import(table).unwrap();
    assert_eq!(ran.keys(), [["data/a"], ["data/b"]]);
    assert_eq!(ran.images()[0][0].1, tile(1));
    assert_eq!(counts(&ran), (2, 2, BTreeMap::new()));
}

#[test]
fn a_table_that_cannot_be_read_costs_its_own_partition_only() {
    let place = Place::new();
    for n in 1..=3 {
        write_parquet(&place.path(&format!("data/{n}.parquet")), &[row(n)]);
    }
    let path = place.path("data/2.parquet");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let stage =
        "[stage.out]\nuses = \"import\"\nfiles = \"FOLDER/data\"\ncolumns = { key = \"id\", caption = \"license\" }";
    let mut plan = place.plan(stage).unwrap();
    let rows: Vec<u64> = plan.stage("out").unwrap().sources.iter().map(|source| source.rows).collect();
    assert_eq!(rows, [1, 0, 1]);
    let options = Options { cores: 2, keep_going: true, ..Options::default() };
    let error = run(&mut plan, &options, &EventSink::silent(), &Cancel::default()).unwrap_err();
    let words = with_causes(&error);
    assert!(words.starts_with("out, part-00001: "), "{words}");
    assert!(words.contains("2.parquet is not a readable parquet shard"), "{words}");
    let made: Vec<&str> = plan.stage("out").unwrap().committed().map(|sidecar| sidecar.partition.as_str()).collect();
    assert_eq!(made, ["part-00000", "part-00002"]);
    std::fs::write(&path, whole).unwrap();
    assert_eq!(place.try_run(stage).unwrap().made(), ["part-00001"]);
}

#[test]
fn pictures_are_those_that_were_planned_and_one_that_changed_since_is_an_error() {
    let place = Place::new();
    for n in 1..=4 {
        place.write(&format!("data/{n}.png"), tile(n));
    }
    let stage = "[stage.out]\nuses = \"import\"\nfolder = \"FOLDER/data\"\ncaption = \"none\"\nrows_per_shard = 2";
    let plan = place.plan(stage).unwrap();
    // In front of all others.
    place.write("data/0.png", tile(9));
    assert_eq!(drive(plan).unwrap().keys(), [["data/1", "data/2"], ["data/3", "data/4"]]);
    let all = place.try_run(stage).unwrap();
    assert_eq!(all.keys(), [vec!["data/0", "data/1"], vec!["data/2", "data/3"], vec!["data/4"]]);
    place.write("data/5.png", tile(5));
    let plan = place.plan(stage).unwrap();
    place.write("data/4.png", [tile(4), vec![0]].concat());
    let words = drive(plan).err().unwrap();
    assert!(words.contains("4.png changed after the run was planned"), "{words}");
    assert_eq!(place.try_run(stage).unwrap().keys()[2], ["data/4", "data/5"]);
}
