//! `index` over parquet files from outside, as other people's trainings have them: buckets scattered, images as structures.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BinaryArray, DictionaryArray, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use image::{ImageFormat, RgbImage};
use parquet::arrow::ArrowWriter;
use pipeline::manifest::Manifest;
use pipeline::plan::Plan;
use pipeline::run::{Options, run};
use pipeline::stage::Cancel;
use shards::event::{EventSink, RunOutcome};
use shards::index::BucketIndex;
use shards::reader::Shard;

use crate::samples::{Place, encoded, with_causes};

const SIZES: [(u32, u32); 3] = [(16, 8), (8, 16), (8, 8)];

/// A file whose `n`th row has the bucket of `of(n)` by its column, and an image of that size.
fn write(path: &Path, rows: usize, of: impl Fn(usize) -> (u32, u32), image: impl Fn(usize) -> (u32, u32)) {
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values((0..rows).map(|n| {
        let (width, height) = image(n);
        encoded(&RgbImage::new(width, height), ImageFormat::Png)
    })));
    let names: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|n| format!("{n}.png"))));
    let fields = [("bytes", DataType::Binary, bytes), ("path", DataType::Utf8, names)];
    let fields = fields.map(|(name, kind, array)| (Arc::new(Field::new(name, kind, false)), array));
    let images = StructArray::from(fields.to_vec());
    let sizes: DictionaryArray<Int32Type> = (0..rows)
        .map(|n| {
            let (width, height) = of(n);
            format!("{width}x{height}")
        })
        .collect::<Vec<_>>()
        .iter()
        .map(|size| Some(size.as_str()))
        .collect();
    let schema = Arc::new(Schema::new(vec![
        Field::new("image", images.data_type().clone(), false),
        Field::new("bucket_size", sizes.data_type().clone(), false),
    ]));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(images), Arc::new(sizes)]).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, None).unwrap();
    for start in (0..rows).step_by(50) {
        writer.write(&batch.slice(start, 50.min(rows - start))).unwrap();
        writer.flush().unwrap();
    }
    writer.close().unwrap();
}

/// The words in which it fails, or the index and how many partitions were made.
fn index(folder: &Path) -> Result<(BucketIndex, u64), String> {
    let text = format!(
        "[pipeline]\nname = \"test\"\nworkdir = '{0}/work'\n[stage.index]\nuses = \"index\"\nfiles = '{0}/data/*.parquet'\n",
        folder.display()
    );
    let manifest = Manifest::parse(&text, Path::new("test.toml"), &[]).unwrap();
    let mut plan = Plan::new(&manifest, &pipeline::stages::registry()).map_err(|error| with_causes(&error))?;
    let made = plan.stage("index").unwrap().to_run() as u64;
    let ran = run(&mut plan, &Options::default(), &EventSink::silent(), &Cancel::default());
    ran.map_err(|error| with_causes(&error))?;
    let stage = plan.stage("index").unwrap();
    let file = stage.committed().next().unwrap().data[0].clone();
    Ok((BucketIndex::read(&stage.fetch(&file).unwrap()).unwrap(), made))
}

/// The plan of a stage of this kind, called so, over the files in `data`.
fn plan(folder: &Path, kind: &str) -> Plan {
    let text = format!(
        "[pipeline]\nname = \"test\"\nworkdir = '{0}/work'\n[stage.{kind}]\nuses = \"{kind}\"\nfiles = '{0}/data'\n",
        folder.display()
    );
    let manifest = Manifest::parse(&text, Path::new("test.toml"), &[]).unwrap();
    Plan::new(&manifest, &pipeline::stages::registry()).unwrap()
}

fn drive(plan: &mut Plan, keep_going: bool) -> Result<RunOutcome, String> {
    let options = Options { keep_going, ..Options::default() };
    run(plan, &options, &EventSink::silent(), &Cancel::default()).map_err(|error| with_causes(&error))
}

/// Of each repacked partition, the file that its keys name, and how many rows it has.
fn repacked(plan: &Plan) -> Vec<String> {
    let stage = plan.stage("repack").unwrap();
    let files = stage.committed().map(|sidecar| stage.fetch(&sidecar.data[0]).unwrap());
    let in_words = |path: PathBuf| {
        let shard = Shard::open(&path).unwrap();
        let first = shard.rows_at(&[0], &["key"]).unwrap();
        let (file, _) = shard.text(&first, "key").unwrap().value(0).rsplit_once('/').unwrap();
        format!("{} of {file}", shard.rows())
    };
    files.map(in_words).collect()
}

#[test]
fn scattered_rows_are_found_where_they_lie() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let of = |n: usize| SIZES[n * n % 7 % 3];
    write(&data.join("a.parquet"), 170, of, of);
    write(&data.join("b.parquet"), 60, |n| of(n + 1), |n| of(n + 1));
    let (found, made) = index(folder.path()).unwrap();
    assert_eq!((found.rows(), made), (230, 1));
    let shards: Vec<Shard> = found.shards().iter().map(|path| Shard::open(path).unwrap()).collect();
    let mut seen = std::collections::BTreeSet::new();
    for bucket in found.buckets() {
        for n in 0..bucket.rows {
            let place = bucket.locate(n).unwrap();
            let batch = shards[place.shard].rows_at(&[place.row], &["bucket_size"]).unwrap();
            let text = arrow::compute::cast(batch.column(0), &DataType::Utf8).unwrap();
            let text = text.as_any().downcast_ref::<StringArray>().unwrap().value(0).to_owned();
            assert_eq!(text, bucket.size.to_string());
            assert!(seen.insert((place.shard, place.row)));
        }
        assert_eq!(bucket.locate(bucket.rows), None);
    }
    assert_eq!(seen.len(), 230);

    // A file that is written anew is seen, and nothing is done again for nothing.
    assert_eq!(index(folder.path()).unwrap().1, 0);
    write(&data.join("b.parquet"), 61, |n| of(n + 1), |n| of(n + 1));
    let (found, made) = index(folder.path()).unwrap();
    assert_eq!((found.rows(), made), (231, 1));
}

#[test]
fn a_column_that_contradicts_its_images_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    write(&data.join("good.parquet"), 20, |_| (8, 8), |_| (8, 8));
    write(&data.join("swapped.parquet"), 120, |_| (16, 8), |n| if n < 100 { (16, 8) } else { (8, 16) });
    let words = index(folder.path()).unwrap_err();
    let expected = "is in bucket 16x8 by its bucket_size, but its image is 8x16 (width and height, upright)";
    assert!(words.contains("row 100 of ") && words.contains("swapped.parquet") && words.contains(expected), "{words}");
}

#[test]
fn what_is_no_bucketed_parquet_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let words = index(folder.path()).unwrap_err();
    assert!(words.contains("the folder") && words.contains("data cannot be read"), "{words}");
    std::fs::create_dir(&data).unwrap();
    let words = index(folder.path()).unwrap_err();
    assert!(words.contains("no parquet file is at") && words.contains("end in .parquet"), "{words}");
    std::fs::write(data.join("a.parquet"), "PAR1 and no more").unwrap();
    // There is a plan: only a run has to read it.
    let words = index(folder.path()).unwrap_err();
    assert!(words.starts_with("index, part-00000: ") && words.contains("a.parquet"), "{words}");
    let place = Place::new();
    place.write_all(&[vec![crate::samples::tiled(1)]]);
    assert!(place.failure("uses = \"index\"").contains("bucket_size"));
    let words = place.refusal(&format!("uses = \"index\"\nfiles = \"{}\"", data.join("a.parquet").display()));
    assert!(words.contains("stage.out (index) reads from in, and from outside as well"), "{words}");
}

#[test]
fn repacked_files_have_a_page_for_each_image_and_the_sizes_of_their_images() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    // What the column says is each other's, as in a published dataset.
    let turned = |n: usize| (SIZES[n % 3].1, SIZES[n % 3].0);
    write(&data.join("a.parquet"), 120, turned, |n| SIZES[n % 3]);
    write(&data.join("b.parquet"), 7, turned, |n| SIZES[n % 3]);
    let text = format!(
        "[pipeline]\nname = \"test\"\nworkdir = '{0}/work'\n[stage.repack]\nuses = \"repack\"\nfiles = '{0}/data'\n\
         [stage.index]\nuses = \"index\"\nfrom = \"repack\"\n",
        folder.path().display()
    );
    let manifest = Manifest::parse(&text, Path::new("test.toml"), &[]).unwrap();
    let mut plan = Plan::new(&manifest, &pipeline::stages::registry()).unwrap();
    run(&mut plan, &Options::default(), &EventSink::silent(), &Cancel::default()).unwrap();
    let stage = plan.stage("index").unwrap();
    let file = stage.committed().next().unwrap().data[0].clone();
    let index = BucketIndex::read(&stage.fetch(&file).unwrap()).unwrap();
    assert_eq!((index.rows(), index.shards().len()), (127, 2));
    let mut keys = std::collections::BTreeSet::new();
    for bucket in index.buckets() {
        for n in 0..bucket.rows {
            let locator = bucket.locate(n).unwrap();
            let rows = index.open(locator.shard, &["key", "image"], None).unwrap();
            let found = rows.read(&[locator.row]).unwrap();
            assert_eq!(rows.are_whole(&found).unwrap(), [true]);
            let shard = Shard::open(rows.path()).unwrap();
            let image = image::load_from_memory(shard.binary(&found, "image").unwrap().value(0)).unwrap();
            assert_eq!((image.width(), image.height()), (bucket.size.width, bucket.size.height));
            keys.insert(shard.text(&found, "key").unwrap().value(0).to_owned());
            assert!(rows.has_page_index() && rows.bytes_per_row() < 5000);
        }
    }
    assert_eq!(keys.len(), 127);
    assert_eq!(keys.first().unwrap(), "data/a/000000000");
}

#[test]
fn files_are_those_that_were_planned_and_one_that_changed_since_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let of = |n: usize| SIZES[n % 3];
    let write = |name: &str, rows| write(&data.join(name), rows, of, of);
    write("a.parquet", 5);
    write("b.parquet", 7);
    let (mut repack, mut index) = (plan(folder.path(), "repack"), plan(folder.path(), "index"));
    // In front of all others.
    write("0.parquet", 3);
    drive(&mut repack, false).unwrap();
    assert_eq!(repacked(&repack), ["5 of data/a", "7 of data/b"]);
    drive(&mut index, false).unwrap();
    assert_eq!(index.stage("index").unwrap().totals().rows_in, 12);

    let mut repack = plan(folder.path(), "repack");
    drive(&mut repack, false).unwrap();
    assert_eq!(repacked(&repack), ["3 of data/0", "5 of data/a", "7 of data/b"]);
    // Keys hold the name.
    std::fs::rename(data.join("b.parquet"), data.join("c.parquet")).unwrap();
    let mut repack = plan(folder.path(), "repack");
    assert_eq!(repack.stage("repack").unwrap().to_run(), 1);
    drive(&mut repack, false).unwrap();
    assert_eq!(repacked(&repack), ["3 of data/0", "5 of data/a", "7 of data/c"]);

    write("c.parquet", 8);
    for kind in ["repack", "index"] {
        let mut plan = plan(folder.path(), kind);
        write("c.parquet", if kind == "repack" { 9 } else { 10 });
        let words = drive(&mut plan, false).unwrap_err();
        assert!(words.contains("c.parquet changed after the run was planned"), "{kind}: {words}");
    }
    let mut repack = plan(folder.path(), "repack");
    drive(&mut repack, false).unwrap();
    assert_eq!(repacked(&repack), ["3 of data/0", "5 of data/a", "10 of data/c"]);
}

#[test]
fn a_file_that_cannot_be_read_costs_its_own_partition_only() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    for name in ["a", "b", "c"] {
        write(&data.join(format!("{name}.parquet")), 6, |n| SIZES[n % 3], |n| SIZES[n % 3]);
    }
    let path = data.join("b.parquet");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let mut plan = plan(folder.path(), "repack");
    let words = drive(&mut plan, true).unwrap_err();
    assert!(words.starts_with("repack, part-00001: "), "{words}");
    assert!(words.contains("b.parquet is not a readable parquet shard"), "{words}");
    assert_eq!(repacked(&plan), ["6 of data/a", "6 of data/c"]);
}
