//! `buckets`: what a bucket stage would make of images, before it makes anything; and that it then makes just that.

use std::collections::BTreeMap;
use std::path::Path;

use image::{Rgb, RgbImage};
use serde_json::Value;

use crate::support::{folder, run, text};

/// Pictures of three shapes, one of them rare.
fn pictures(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    let sizes = [(128, 96); 9].into_iter().chain([(96, 128); 5]).chain([(128, 60); 2]);
    for (n, (width, height)) in sizes.enumerate() {
        let image = RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, n as u8]));
        image.save(folder.join(format!("{n:02}.png"))).unwrap();
    }
}

fn forecast(arguments: &[&str]) -> Value {
    let output = run(&[&["buckets", "--json", "--batch-size", "4"], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn counts(forecast: &Value) -> BTreeMap<String, u64> {
    let buckets = forecast["forecast"]["buckets"].as_array().unwrap();
    buckets.iter().map(|b| (b["size"].as_str().unwrap().to_owned(), b["images"].as_u64().unwrap())).collect()
}

#[test]
fn a_forecast_of_pictures_and_of_a_manifest_comes_true() {
    let folder = folder();
    let (images, manifest) = (folder.path().join("images"), folder.path().join("pets.toml"));
    pictures(&images);
    let (images, workdir) = (images.to_string_lossy().into_owned(), folder.path().join("work"));
    let text_of = format!(
        "[pipeline]\nname = \"pets\"\nworkdir = '{}'\n[stage.import]\nuses = \"import\"\nfolder = '{images}'\ncaption = \"none\"\n\
         [stage.bucket]\nuses = \"bucket\"\nfrom = \"import\"\nmax_resolution = 64\npatch_size = 16\n",
        workdir.display()
    );
    std::fs::write(&manifest, text_of).unwrap();
    let manifest = manifest.to_string_lossy().into_owned();

    let of_pictures = forecast(&[&images, "--max-resolution", "64"]);
    let expected: BTreeMap<String, u64> = [("64x48", 9), ("48x64", 5), ("64x32", 2)].map(|(s, n)| (s.into(), n)).into();
    assert_eq!(counts(&of_pictures), expected);

    let too_early = run(&["buckets", &manifest]);
    assert_eq!(too_early.status.code(), Some(2));
    assert!(text(&too_early.stderr).contains("--until import"), "{}", text(&too_early.stderr));
    assert!(run(&["run", &manifest, "--until", "import", "-q"]).status.success());
    let of_manifest = forecast(&[&manifest]);
    assert_eq!(of_manifest["forecast"], of_pictures["forecast"]);
    assert_eq!(of_manifest["forecast"]["merged"]["small_images"], 2);

    let said = text(&run(&["buckets", &manifest, "--batch-size", "4"]).stdout);
    assert!(said.contains("16 images in 3 buckets") && said.contains("4.0 batches of 4 an epoch"), "{said}");
    assert!(said.contains("merge_small = 4 leaves 2 buckets; 2 images join another and lose 33.3 %"), "{said}");

    // What was advised, done.
    let done = run(&["run", &manifest, "-q", "--set", "stage.bucket.merge_small=4"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let sql = "SELECT bucket_size, count(*) AS n FROM bucket GROUP BY bucket_size ORDER BY n";
    let made = run(&["query", &manifest, "--set", "stage.bucket.merge_small=4", sql, "--format", "csv"]);
    assert_eq!(text(&made.stdout).lines().skip(1).collect::<Vec<_>>(), ["48x64,5", "64x48,11"]);
}

#[test]
fn what_cannot_be_forecast_is_said() {
    let folder = folder();
    let of = |arguments: &[&str]| {
        let output = run(&[&["buckets"], arguments].concat());
        assert!(!output.status.success(), "{}", text(&output.stdout));
        text(&output.stderr)
    };
    assert!(of(&["nowhere"]).contains("nowhere"));
    let empty = folder.path().to_string_lossy().into_owned();
    assert!(of(&[&empty]).contains("neither parquet files nor pictures"), "{}", of(&[&empty]));
    std::fs::write(folder.path().join("a.parquet"), "no parquet").unwrap();
    assert!(of(&[&empty]).contains("a.parquet"));
    assert!(of(&[&empty, "--batch-size", "0"]).contains("--batch-size"));
}
