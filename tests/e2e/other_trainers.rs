//! Buckets for trainers other than ours: Python's `datasets` opens a bucket stage's folder and shows its pictures, `webdataset`
//! reads an export.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{bucketed, folder, python, run, text};

#[test]
fn datasets_shows_buckets_and_webdataset_reads_an_export() {
    let folder = folder();
    let sizes: Vec<(u32, u32)> = (0..9).map(|n| [(40, 40), (40, 20), (20, 40)][n % 3]).collect();
    let manifest = bucketed(folder.path(), &sizes, "[stage.export]\nuses = \"export\"\nfrom = \"bucket\"\n");
    let made = run(&["run", &manifest, "-q"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let verified = run(&["verify", &manifest]);
    assert!(text(&verified.stdout).contains("all as recorded"), "{}", text(&verified.stdout));
    let swept = run(&["gc", &manifest]);
    assert!(!text(&swept.stdout).contains("README"), "the card is no garbage: {}", text(&swept.stdout));

    let Some(python) = python() else {
        eprintln!("skipped: no Python with datasets and webdataset; `make readers` installs them");
        return;
    };
    let stage = |name: &str| folder.path().join("work/stages").join(name);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/read_buckets.py");
    let mut read = Command::new(python);
    read.arg(script).arg(stage("bucket")).arg(stage("export")).arg(folder.path().join("cache"));
    let read = read.output().unwrap();
    assert!(read.status.success(), "{}", text(&read.stderr));
    let found: Value = serde_json::from_slice(&read.stdout).unwrap();
    let (pictures, samples) = (found["pictures"].as_array().unwrap(), found["samples"].as_array().unwrap());
    assert_eq!((pictures.len(), samples.len()), (9, 9));
    for (picture, sample) in pictures.iter().zip(samples) {
        assert!(picture["kind"].as_str().unwrap().contains("Png"), "it is a picture: {picture}");
        let (width, height) = (picture["size"][0].as_u64().unwrap(), picture["size"][1].as_u64().unwrap());
        assert_eq!(picture["bucket_size"], format!("{width}x{height}"));
        let number = picture["pixel"][0].as_u64().unwrap() / 8;
        assert_eq!(picture["caption"], format!("picture {number}, \u{e9}"));
        for name in ["key", "size", "caption", "bucket_size"] {
            assert_eq!(picture[name], sample[name], "the export has the same samples in the same order");
        }
    }
}
