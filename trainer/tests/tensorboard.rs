//! What we write for TensorBoard, read back by TensorBoard.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use trainer::tensorboard::{EventFile, Histogram};

/// A PNG of one red pixel.
const PNG: &[u8] =
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0\x90wS\xde\0\0\0\x0cIDATx\x9cc\xf8\xcf\xc0\0\
    \0\x03\x01\x01\0\xc9\xfe\x92\xef\0\0\0\0IEND\xaeB`\x82";
const PNG_SHA256: &str = "b1ff9c8ea3a780bad09b346c423d2d0e46815926879b18e841d928376a946640";

fn python() -> Option<PathBuf> {
    let imports = |python: &PathBuf| Command::new(python).args(["-c", "import tensorboard"]).output();
    let readers = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/ferrotype/readers/bin/python"));
    let python = readers.filter(|python| imports(python).is_ok_and(|output| output.status.success()));
    if python.is_none() {
        eprintln!("skipped: no Python with tensorboard; `make readers` installs one");
    }
    python
}

/// `{reader: {kind: {tag: [[step, value], …]}}}`: see read_tensorboard.py.
fn read(python: &Path, folder: &Path) -> BTreeMap<String, Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/read_tensorboard.py");
    let read = Command::new(python).arg(script).arg(folder).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let shown: BTreeMap<String, Value> = serde_json::from_slice(&read.stdout).unwrap();
    assert_eq!(shown.keys().collect::<Vec<_>>(), ["accumulator", "reload", "server"]);
    shown
}

fn scalars(shown: &Value, tag: &str) -> Vec<(u64, f32)> {
    let points = shown["scalars"][tag].as_array().unwrap();
    points.iter().map(|point| (point[0].as_u64().unwrap(), point[1].as_str().unwrap().parse().unwrap())).collect()
}

fn steps(shown: &Value, kind: &str, tag: &str) -> Vec<u64> {
    shown[kind][tag].as_array().unwrap().iter().map(|point| point[0].as_u64().unwrap()).collect()
}

/// [bucket, (left edge, right edge, count)] of every step.
type Rows = Vec<(u64, Vec<Vec<f64>>)>;

fn histograms(shown: &Value, tag: &str) -> Rows {
    let array = |value: &Value| value.as_array().unwrap().clone();
    let row = |row: &Value| array(row).iter().map(|number| number.as_str().unwrap().parse().unwrap()).collect();
    let points = array(&shown["histograms"][tag]);
    points.iter().map(|point| (point[0].as_u64().unwrap(), array(&point[1]).iter().map(row).collect())).collect()
}

fn rows(histogram: &Histogram) -> Vec<Vec<f64>> {
    let rows = histogram.edges.windows(2).zip(&histogram.counts);
    rows.map(|(edges, count)| vec![edges[0], edges[1], *count as f64]).collect()
}

#[test]
fn every_reader_shows_what_was_written() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let loss: Vec<(u64, f32)> = vec![
        (0, 0.1),
        (1, 1.0 / 3.0),
        (127, f32::MIN_POSITIVE),
        (128, -0.0),
        (16_384, f32::MAX),
        (1 << 40, f32::from_bits(1)),
        ((1 << 40) + 1, f32::NEG_INFINITY),
        ((1 << 40) + 2, f32::NAN),
    ];
    let weights: Vec<f32> = (0..1000u16).map(|n| (f32::from(n) * 0.37).sin() * 0.021).chain([f32::NAN]).collect();
    let histogram = Histogram::of(&weights, 30);
    assert_eq!((histogram.counts.iter().sum::<u64>(), histogram.left_out), (1000, 1));
    let singular = Histogram::of(&[0.25; 7], 30);
    let markdown = "# a prompt\n\n| größe | 2 |\n|--|--|\n";
    let long = "x".repeat(20_000);

    let mut file = EventFile::create(folder.path(), 0).unwrap();
    for (step, value) in &loss {
        file.scalar(*step, "train/loss", *value).unwrap();
    }
    file.histogram(5, "weights/größe", &histogram).unwrap();
    file.histogram(6, "weights/größe", &singular).unwrap();
    file.histogram(7, "weights/größe", &Histogram::of(&[f32::NAN], 30)).unwrap();
    file.image(5, "samples/0", 1, 1, PNG).unwrap();
    file.text(5, "prompts", markdown).unwrap();
    file.text(6, "prompts", &long).unwrap();
    file.text(7, "prompts", "").unwrap();
    file.flush().unwrap();

    for (reader, shown) in read(&python, folder.path()) {
        let bits = |points: &[(u64, f32)]| -> Vec<(u64, u32)> {
            points.iter().map(|(step, value)| (*step, value.to_bits())).collect()
        };
        assert_eq!(bits(&scalars(&shown, "train/loss")), bits(&loss), "{reader}");
        let expected = [(5, rows(&histogram)), (6, rows(&singular)), (7, vec![])];
        assert_eq!(histograms(&shown, "weights/größe"), expected, "{reader}");
        assert_eq!(shown["images"], json!({ "samples/0": [[5, [1, 1, PNG.len(), PNG_SHA256]]] }), "{reader}");
        assert_eq!(shown["text"], json!({ "prompts": [[5, markdown], [6, long], [7, ""]] }), "{reader}");
    }
}

#[test]
fn a_resumed_run_takes_back_what_lies_after_its_checkpoint() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &mut EventFile, steps: &[u64], value: f32| {
        for step in steps {
            file.scalar(*step, "loss", value).unwrap();
            file.histogram(*step, "weights", &Histogram::of(&[value], 1)).unwrap();
            file.image(*step, "samples", 1, 1, PNG).unwrap();
            file.text(*step, "prompts", "a cat").unwrap();
        }
        file.flush().unwrap();
    };
    let check = |expected: &[(u64, f32)]| {
        for (reader, shown) in read(&python, folder.path()) {
            assert_eq!(scalars(&shown, "loss"), expected, "{reader}");
            // The accumulator takes back scalars alone: its `accumulated_attrs` lack tensors.
            let tensors = [("histograms", "weights"), ("images", "samples"), ("text", "prompts")];
            for (kind, tag) in tensors.into_iter().filter(|_| reader != "accumulator") {
                let expected: Vec<u64> = expected.iter().map(|(step, _)| *step).collect();
                assert_eq!(steps(&shown, kind, tag), expected, "{reader}: {tag}");
            }
        }
    };
    let mut first = EventFile::create(folder.path(), 0).unwrap();
    write(&mut first, &[0, 10, 20, 30, 40], 1.0);
    check(&[(0, 1.0), (10, 1.0), (20, 1.0), (30, 1.0), (40, 1.0)]);

    // Killed while it wrote: its last record is torn. Its checkpoint is of step 20.
    let length = fs::metadata(first.path()).unwrap().len();
    File::options().write(true).open(first.path()).unwrap().set_len(length - 7).unwrap();
    drop(first);
    let mut second = EventFile::create(folder.path(), 20).unwrap();
    // Before the first new point, Python's readers know it already.
    for (reader, shown) in read(&python, folder.path()).into_iter().filter(|(reader, _)| reader != "server") {
        assert_eq!(steps(&shown, "scalars", "loss"), [0, 10, 20], "{reader}");
    }
    write(&mut second, &[30], 2.0);
    check(&[(0, 1.0), (10, 1.0), (20, 1.0), (30, 2.0)]);

    // Once more from the same checkpoint, and then anew.
    write(&mut EventFile::create(folder.path(), 20).unwrap(), &[30, 40], 3.0);
    check(&[(0, 1.0), (10, 1.0), (20, 1.0), (30, 3.0), (40, 3.0)]);
    write(&mut EventFile::create(folder.path(), 0).unwrap(), &[0, 10], 4.0);
    check(&[(0, 4.0), (10, 4.0)]);
}
