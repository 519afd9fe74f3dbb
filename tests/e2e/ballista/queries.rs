//! Surveys that a cluster answers as queries.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray, UInt64Array};
use parquet::arrow::ArrowWriter;

use super::{executor, run_on, scheduler, succeeds};
use crate::support::{digests, folder, run, text};

/// A picture of one pixel.
fn pixel(colour: [u8; 3]) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(1, 1, image::Rgb(colour))
        .write_to(&mut bytes, image::ImageFormat::Png)
        .expect("a picture");
    bytes.into_inner()
}

fn parquet(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).expect("columns");
    let file = std::fs::File::create(path).expect("a file");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).expect("a writer");
    writer.write(&batch).expect("rows");
    writer.close().expect("a file");
}

/// So many samples and a table with a row for three of four of them, and one for none; each in `files` files. Samples have numbers
/// for keys, the table texts; two samples of each hundred share one.
fn to_merge(folder: &Path, rows: u64, files: u64) -> String {
    let pixel = pixel([0; 3]);
    for name in ["samples", "table"] {
        std::fs::create_dir(folder.join(name)).expect("a folder");
    }
    let per_file = rows / files;
    for file in 0..files {
        let numbers = || file * per_file..(file + 1) * per_file;
        let ids: ArrayRef = Arc::new(UInt64Array::from_iter_values(numbers().map(|n| {
            let n = n * 7919 % rows;
            if n % 100 == 99 { n - 1 } else { n }
        })));
        let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(numbers().map(|_| &pixel)));
        let alts: ArrayRef = Arc::new(StringArray::from_iter_values(numbers().map(|n| format!("alt {n}"))));
        parquet(
            &folder.join(format!("samples/{file:03}.parquet")),
            vec![("id", ids), ("image", images), ("alt", alts)],
        );
        let named = || numbers().map(|n| n * 104_729 % rows).map(|n| if n % 4 == 0 { n + rows } else { n });
        let keys: ArrayRef = Arc::new(StringArray::from_iter_values(named().map(|n| n.to_string())));
        let words = |n: u64| format!("a long caption, of picture {n}, {}", "x".repeat(n as usize % 90));
        let texts: StringArray = named().map(|n| (n % 7 > 0).then(|| words(n))).collect();
        let texts: ArrayRef = Arc::new(texts);
        let numbers: ArrayRef = Arc::new(UInt64Array::from_iter_values(named().map(|n| n % 13)));
        let columns = vec![("name", keys), ("re \"caption\"", texts), ("score", numbers)];
        parquet(&folder.join(format!("table/{file:03}.parquet")), columns);
    }
    let manifest = folder.join("merge.toml");
    let text = format!(
        "[pipeline]\nname = \"merge\"\nworkdir = \"{0}/work\"\n\
         [stage.samples]\nuses = \"import\"\nfiles = \"{0}/samples/*.parquet\"\nsource = \"x\"\ncheck = \"header\"\n\
         columns = {{ key = \"id\", image = \"image\", caption = \"alt\", id = \"id\" }}\n\
         [stage.table]\nuses = \"import\"\nfiles = \"{0}/table/*.parquet\"\nsource = \"x\"\n\
         columns = {{ name = \"name\", text = 're \"caption\"', score = \"score\" }}\n\
         [stage.merge]\nuses = \"merge\"\nfrom = [\"samples\", \"table\"]\non = {{ id = \"name\" }}\n\
         columns = {{ recaption = \"text\", 'a \"score\"' = \"score\" }}\nfallback = {{ recaption = \"caption\" }}\n",
        folder.display()
    );
    std::fs::write(&manifest, text).expect("a manifest");
    manifest.to_string_lossy().into_owned()
}

/// What the survey of a stage says of itself.
fn survey(workdir: &Path, stage: &str) -> serde_json::Value {
    let folder = workdir.join("stages").join(stage);
    let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let names = std::fs::read_dir(&folder).expect("a stage").map(|entry| name(entry.expect("a listing")));
    let mut records = names.filter(|name| name.starts_with("part-survey.") && name.ends_with(".json"));
    let record = records.next().expect("a survey");
    serde_json::from_slice(&std::fs::read(folder.join(record)).expect("a record")).expect("JSON")
}

fn a_cluster_joins_what_one_machine_joins(rows: u64, files: u64) {
    let here = folder();
    let manifest = to_merge(here.path(), rows, files);
    let locally = here.path().join("local");
    let started = Instant::now();
    let local = run(&["run", &manifest, "-q", "--set", &format!("pipeline.workdir=\"{}\"", locally.display())]);
    succeeds(&local);
    eprintln!("{rows} rows here: {:.1} s", started.elapsed().as_secs_f64());
    let (_scheduler, address) = scheduler(&[]);
    let _executors = [executor(&address, here.path()), executor(&address, here.path())];
    let started = Instant::now();
    succeeds(&run_on(&address, &manifest, &["-q"]));
    eprintln!("{rows} rows by two executors: {:.1} s", started.elapsed().as_secs_f64());
    let workdir = here.path().join("work");
    assert_eq!(digests(&workdir, "merge"), digests(&locally, "merge"));
    let [mut remote, mut local] = [survey(&workdir, "merge"), survey(&locally, "merge")];
    assert_eq!(remote["details"]["distributed"], true);
    for survey in [&mut remote, &mut local] {
        let details = survey["details"].as_object_mut().expect("details");
        details.retain(|name, _| name.starts_with("rows_"));
    }
    assert_eq!((&remote["details"], &remote["observed"]), (&local["details"], &local["observed"]));
    assert!(remote["observed"]["matched"].as_u64() > Some(rows / 2));
    assert!(text(&run(&["verify", &manifest]).stdout).contains("all as recorded"));
}

#[test]
fn a_cluster_joins_thousands_of_rows() {
    a_cluster_joins_what_one_machine_joins(9000, 3);
}

#[test]
#[ignore = "slow: two million rows on either side; run by `make soak`"]
fn soak_a_cluster_joins_millions_of_rows() {
    a_cluster_joins_what_one_machine_joins(2_000_000, 20);
}

#[test]
fn a_key_that_a_table_has_twice_is_named_by_a_cluster_too() {
    let here = folder();
    let manifest = to_merge(here.path(), 40, 2);
    std::fs::copy(here.path().join("table/000.parquet"), here.path().join("table/001.parquet")).expect("a copy");
    let (_scheduler, address) = scheduler(&[]);
    let _executor = executor(&address, here.path());
    let refused = run_on(&address, &manifest, &[]);
    let words = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{words}");
    assert!(words.contains("twice, in row ") && words.contains(" of table/part-00000 and row "), "{words}");
    assert!(words.contains(" of table/part-00001; a sample can have one row of it"), "{words}");
}

/// 900 pictures, of which 30 are there twice, with other widths by what is said of them, and digests in capitals here and there; the
/// last of four files has none.
fn to_compare(folder: &Path) -> String {
    std::fs::create_dir(folder.join("pictures")).expect("a folder");
    for file in 0..4u64 {
        let numbers = || file * 300..(file * 300 + 300).min(900);
        let keys: ArrayRef = Arc::new(StringArray::from_iter_values(numbers().map(|n| format!("k{}", n * 7919 % 900))));
        let colour = |n: u64| [(n * 31 % 900 % 870 / 256) as u8, (n * 31 % 900 % 870 % 256) as u8, 7];
        let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(numbers().map(|n| pixel(colour(n)))));
        let urls: ArrayRef = Arc::new(StringArray::from_iter_values(numbers().map(|n| format!("u{}", n % 40))));
        let scores: ArrayRef = Arc::new(UInt64Array::from_iter_values(numbers().map(|n| n * n % 17)));
        let columns = vec![("id", keys), ("image", images), ("link", urls), ("score", scores)];
        parquet(&folder.join(format!("pictures/{file:03}.parquet")), columns);
    }
    let manifest = folder.join("compare.toml");
    let text = format!(
        "[pipeline]\nname = \"compare\"\nworkdir = \"{0}/work\"\nwarn_above = 1.0\n\
         [stage.pictures]\nuses = \"import\"\nfiles = \"{0}/pictures/*.parquet\"\nsource = \"x\"\ncheck = \"header\"\n\
         columns = {{ key = \"id\", image = \"image\", url = \"link\", score = \"score\" }}\n\
         [stage.sized]\nuses = \"sql\"\nfrom = \"pictures\"\nquery = \"\"\"SELECT key, image, url, score, width * score AS width, height, \
         CASE WHEN score % 5 = 0 THEN upper(sha256) ELSE sha256 END AS sha256 FROM input\"\"\"\n\
         [stage.dedup]\nuses = \"dedup\"\nfrom = \"sized\"\n\
         [stage.best]\nuses = \"sql\"\nfrom = \"dedup\"\nquery = \"\"\"SELECT *, count(*) OVER (PARTITION BY url) AS alike \
         FROM input WHERE score > 1 QUALIFY row_number() OVER (PARTITION BY url ORDER BY score DESC, key) < 9\"\"\"\n\
         [stage.few]\nuses = \"sql\"\nfrom = \"best\"\n\
         query = \"SELECT key, image, score FROM input ORDER BY score DESC, key LIMIT 50\"\n\
         [stage.names]\nuses = \"sql\"\nfrom = \"dedup\"\n\
         query = \"SELECT min(key) AS key, max(score) AS top, count(DISTINCT sha256) AS pictures FROM input GROUP BY url\"\n\
         [stage.plain]\nuses = \"sql\"\nfrom = \"pictures\"\nquery = \"SELECT key, image, width, height FROM input\"\n\
         [stage.bytes]\nuses = \"dedup\"\nfrom = \"plain\"\n\
         [stage.any]\nuses = \"sql\"\nfrom = \"plain\"\nquery = \"SELECT * FROM input LIMIT 5\"\n",
        folder.display()
    );
    std::fs::write(&manifest, text).expect("a manifest");
    manifest.to_string_lossy().into_owned()
}

#[test]
fn a_cluster_compares_and_selects_as_one_machine_does() {
    let here = folder();
    let manifest = to_compare(here.path());
    let locally = here.path().join("local");
    succeeds(&run(&["run", &manifest, "-q", "--set", &format!("pipeline.workdir=\"{}\"", locally.display())]));
    let (_scheduler, address) = scheduler(&[]);
    let _executors = [executor(&address, here.path()), executor(&address, here.path())];
    succeeds(&run_on(&address, &manifest, &["-q"]));
    let workdir = here.path().join("work");
    // Of pictures without a recorded digest, and of a query that takes whichever rows it meets, there is no query that is dealt out.
    for (stage, rows, distributed) in [
        ("dedup", Some(870), true),
        ("best", None, true),
        ("few", Some(50), true),
        ("names", Some(40), true),
        ("bytes", Some(870), false),
        ("any", Some(5), false),
    ] {
        let [remote, local] = [survey(&workdir, stage), survey(&locally, stage)];
        assert_eq!(remote["details"]["distributed"] == true, distributed, "{stage}");
        assert!(local["details"]["distributed"].is_null(), "{stage}");
        let files = |survey: &serde_json::Value| {
            let data = survey["data"].as_array().expect("files").iter();
            data.map(|file| file["digest"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(files(&remote), files(&local), "{stage}");
        assert_eq!(remote["rows_out"], local["rows_out"], "{stage}");
        assert!(rows.is_none_or(|rows: u64| local["rows_out"] == rows), "{stage}: {}", local["rows_out"]);
        assert_eq!(digests(&workdir, stage), digests(&locally, stage), "{stage}");
    }
    assert!(text(&run(&["verify", &manifest]).stdout).contains("all as recorded"));
}
