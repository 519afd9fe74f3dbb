//! Buckets for trainers other than ours: Python's `datasets` opens a bucket stage's folder and shows its pictures, `webdataset`
//! reads an export.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{folder, python, run, text};

#[test]
fn datasets_shows_buckets_and_webdataset_reads_an_export() {
    let folder = folder();
    let pictures = folder.path().join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    for n in 0..9_u8 {
        let (width, height) = [(40, 40), (40, 20), (20, 40)][usize::from(n % 3)];
        let image = image::RgbImage::from_pixel(width, height, image::Rgb([n * 20, 7, 200]));
        image.save(pictures.join(format!("{n}.png"))).unwrap();
        std::fs::write(pictures.join(format!("{n}.txt")), format!("picture {n}, \u{e9}")).unwrap();
    }
    let manifest = folder.path().join("work.toml");
    let manifest_text = format!(
        "[pipeline]\nname = \"work\"\nworkdir = \"{0}/work\"\n[stage.import]\nuses = \"import\"\nfolder = \"{0}/pictures\"\n\
         [stage.bucket]\nuses = \"bucket\"\nfrom = \"import\"\nmax_resolution = 32\npatch_size = 8\n\
         [stage.export]\nuses = \"export\"\nfrom = \"bucket\"\n",
        folder.path().display()
    );
    std::fs::write(&manifest, manifest_text).unwrap();
    let manifest = manifest.to_string_lossy();
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
        let number = picture["pixel"][0].as_u64().unwrap() / 20;
        assert_eq!(picture["caption"], format!("picture {number}, \u{e9}"));
        for name in ["key", "size", "caption", "bucket_size"] {
            assert_eq!(picture[name], sample[name], "the export has the same samples in the same order");
        }
    }
}
