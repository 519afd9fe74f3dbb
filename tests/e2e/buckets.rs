//! `buckets`: what a bucket stage would make of images, before it makes anything; and that it then makes just that.

use std::collections::BTreeMap;
use std::path::Path;

use image::{Rgb, RgbImage};
use serde_json::Value;

use crate::support::{bucketed, folder, run, text};

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
fn a_forecast_is_of_the_batches_of_the_training_that_reads_the_buckets() {
    let folder = folder();
    let training = |name: &str, index: &str, batch_size: u32| {
        format!("[stage.{name}]\nuses = \"train\"\nfrom = \"{index}\"\nbatch_size = {batch_size}\n")
    };
    let stages = format!(
        "[stage.small]\nuses = \"index\"\nfrom = \"bucket@16\"\n[stage.large]\nuses = \"index\"\nfrom = \"bucket@32\"\n{}{}",
        training("first", "small", 3),
        training("second", "large", 2)
    );
    let manifest = bucketed(folder.path(), &[(32, 32); 6], &stages);
    let set = ["--set", "stage.bucket.max_resolution=[16, 32]"];
    assert!(run(&[&["run", &manifest, "--until", "import", "-q"], &set[..]].concat()).status.success());
    let sizes = |more: &[&str]| -> Vec<u64> {
        let output = run(&[&["buckets", &manifest, "--json"], &set[..], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let forecasts = text(&output.stdout);
        let forecasts = forecasts.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        forecasts.map(|forecast| forecast["rule"]["batch_size"].as_u64().unwrap()).collect()
    };
    assert_eq!(sizes(&[]), [3, 2]);
    assert_eq!(sizes(&["--batch-size", "5"]), [5, 5]);
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

#[test]
fn what_is_for_a_manifest_is_refused_beside_files() {
    for (arguments, words) in [
        (vec!["buckets", "pictures", "--set", "a=b"], "--stage and --set are for a manifest"),
        (vec!["buckets", "pictures", "--stage", "bucket"], "--stage and --set are for a manifest"),
        (vec!["buckets", "pictures", "m.toml"], "m.toml is a manifest, which is looked at alone"),
        (vec!["loader", "index.parquet", "--set", "a=b"], "--stage and --set are for a manifest"),
        (vec!["loader", "index.parquet", "--stage", "index"], "index.parquet is taken for an index"),
    ] {
        let refused = run(&arguments);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {}", text(&refused.stderr));
        assert!(text(&refused.stderr).contains(words), "{arguments:?}: {}", text(&refused.stderr));
    }
}

/// One pass makes two resolutions; a reader names the one it reads.
#[test]
fn several_resolutions_are_made_in_one_pass_and_read_one_by_one() {
    let folder = folder();
    let sizes: Vec<(u32, u32)> = (0..9).map(|n| [(40, 40), (40, 20), (20, 40)][n % 3]).collect();
    let stages = "[stage.small]\nuses = \"index\"\nfrom = \"bucket@16\"\n\
                  [stage.large]\nuses = \"index\"\nfrom = \"bucket@32\"\n\
                  [stage.export]\nuses = \"export\"\nfrom = \"bucket@16\"\n";
    let manifest = bucketed(folder.path(), &sizes, stages);
    let set = ["--set", "stage.bucket.max_resolution=[16, 32]"];
    let of = |arguments: &[&str]| {
        let output = run(&[arguments, &set[..]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    // Without the list there is nothing to choose from.
    let refused = run(&["plan", &manifest]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("bucket has no variants"), "{}", text(&refused.stderr));

    of(&["run", &manifest, "-q"]);
    assert!(of(&["verify", &manifest]).contains("all as recorded"));
    assert!(of(&["graph", &manifest]).contains("← bucket@16"), "{}", of(&["graph", &manifest]));
    let counted = |resolution: &str| {
        let sql = format!("SELECT bucket_size, count(*) FROM \"bucket@{resolution}\" GROUP BY 1 ORDER BY 1");
        let csv = of(&["query", &manifest, &sql, "--format", "csv"]);
        csv.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(counted("16"), ["16x16,3", "16x8,3", "8x16,3"]);
    assert_eq!(counted("32"), ["16x32,3", "32x16,3", "32x32,3"]);
    let key = of(&["query", &manifest, "SELECT key FROM import ORDER BY key LIMIT 1", "--format", "csv"]);
    let story = of(&["explain", &manifest, key.lines().nth(1).unwrap()]);
    assert!(story.contains("16x16") && story.contains("32x32"), "{story}");

    let forecasts = of(&["buckets", &manifest, "--json"]);
    let resolutions = forecasts.lines().map(|line| {
        let forecast: Value = serde_json::from_str(line).unwrap();
        forecast["rule"]["max_resolution"].as_u64().unwrap()
    });
    assert_eq!(resolutions.collect::<Vec<_>>(), [16, 32]);

    let loaded = of(&["loader", &manifest, "--stage", "small", "--batch-size", "2"]);
    assert!(loaded.contains("9 images in 3 buckets"), "{loaded}");
    // A training at one resolution is no matter of the others: their change makes nothing of it stale.
    let other = ["--set", "stage.bucket.max_resolution=[16, 24, 32]"];
    let planned = run(&[&["run", &manifest, "--until", "small", "--json"], &other[..]].concat());
    assert!(planned.status.success(), "{}", text(&planned.stderr));
    let events = text(&planned.stdout);
    assert!(events.contains("\"bucket\"") && !events.contains("\"stage\":\"small\",\"partition\""), "{events}");
}
