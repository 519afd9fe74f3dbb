//! `output = "webdataset"`: what Python's webdataset and pyarrow read, and that it is what img2dataset's users expect.

use std::path::{Path, PathBuf};
use std::process::Command;

use chaos::{Behaviour, Expected, Mix, Options, Origin};
use serde_json::Value;

use crate::support::{digests, folder, python, run, text};

/// img2dataset 1.47's columns for a list with captions and two columns more, in its order.
const COLUMNS: [&str; 12] = [
    "similarity: double",
    "tags: string",
    "caption: string",
    "url: string",
    "key: string",
    "status: string",
    "error_message: string",
    "width: int32",
    "height: int32",
    "original_width: int32",
    "original_height: int32",
    "sha256: string",
];

#[test]
fn python_reads_what_img2dataset_would_have_written() {
    let folder = folder();
    let mix = Mix::Of(vec![
        (Behaviour::Jpeg, 30),
        (Behaviour::NotFound, 10),
        (Behaviour::CorruptJpeg, 5),
        (Behaviour::TooManyOnce, 3),
    ]);
    let options = Options { urls: 60, mix, tls: false, verify_hash: false, ..Options::default() };
    let origin = Origin::start(options).unwrap();
    let keys = origin.manifest_keys(folder.path()).unwrap();
    let list = folder.path().join("list.jsonl");
    let lines = origin.rows().iter().enumerate().map(|(n, row)| {
        let tags = format!("é \"{n}\"");
        serde_json::json!({ "url": row.url, "caption": row.caption, "similarity": n as f64 / 64.0, "tags": tags })
            .to_string()
    });
    std::fs::write(&list, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let keys = keys
        .lines()
        .filter(|line| !line.starts_with("urls"))
        .map(|line| format!("{line}\n"))
        .collect::<Vec<_>>()
        .concat();
    let write = |size: u32| {
        let manifest = folder.path().join("work.toml");
        let text = format!(
            "[pipeline]\nname = \"work\"\nworkdir = \"{0}/work\"\nwarn_above = 1.0\n[stage.download]\nuses = \"download\"\n\
             urls = \"{0}/list.jsonl\"\n{keys}output = \"webdataset\"\nadditional_columns = [\"similarity\", \"tags\"]\n\
             rows_per_shard = 25\nretries = 0\nresize = {{ mode = \"keep_ratio\", size = {size} }}\n",
            folder.path().display()
        );
        std::fs::write(&manifest, text).unwrap();
        manifest.to_string_lossy().into_owned()
    };
    let manifest = write(24);
    let made = run(&["run", &manifest, "-q"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let output = folder.path().join("work/stages/download");
    let folders = || {
        let names = std::fs::read_dir(&output).unwrap().map(|e| e.unwrap().path());
        let mut folders: Vec<PathBuf> = names.filter(|path| path.to_string_lossy().contains("webdataset-")).collect();
        folders.sort();
        folders
    };
    let [ours] = &folders()[..] else { panic!("{:?}", folders()) };
    let mut names: Vec<String> =
        std::fs::read_dir(ours).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let files = |shard: &str| [".parquet", ".tar", "_stats.json"].map(|ending| format!("{shard}{ending}"));
    assert_eq!(names, ["00000", "00001", "00002"].map(files).concat());
    let before = digests(&folder.path().join("work"), "download");

    // The rows that failed for now, once more: a shard of their own, their old keys.
    let retried = run(&["retry", &manifest, "--where", "error_message LIKE '%429%'"]);
    assert!(retried.status.success(), "{}", text(&retried.stderr));
    assert!(before.iter().all(|made| digests(&folder.path().join("work"), "download").contains(made)));
    let verified = run(&["verify", &manifest]);
    assert!(text(&verified.stdout).contains("all as recorded"), "{}", text(&verified.stdout));
    assert!(run(&["report", &manifest]).status.success(), "a report of rows that are no shards");

    let Some(python) = python() else {
        eprintln!("skipped: no Python with webdataset and pyarrow; `make readers` installs them");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/read_webdataset.py");
    let read = Command::new(python).arg(script).arg(ours).output().unwrap();
    assert!(read.status.success(), "{}", text(&read.stderr));
    let found: Value = serde_json::from_slice(&read.stdout).unwrap();
    let columns: Vec<&str> = found["columns"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
    assert_eq!(columns, COLUMNS);

    // 25 rows in a shard: two digits for the row.
    let key = |row: usize| format!("{:07}", row / 25 * 100 + row % 25);
    let rows = found["rows"].as_array().unwrap();
    let samples = found["samples"].as_array().unwrap();
    let mut kept = 0;
    for (n, row) in origin.rows().iter().enumerate() {
        let of_key: Vec<&Value> = rows.iter().filter(|r| r["key"] == key(n)).collect();
        // Refused for now, and had on the second try: it is in two shards, as the tries were.
        let tries = if row.behaviour == Behaviour::TooManyOnce { 2 } else { 1 };
        assert_eq!(of_key.len(), tries, "row {n}");
        let last = of_key.iter().find(|r| r["status"] == "success").unwrap_or(&of_key[0]);
        assert_eq!(last["url"], row.url.trim(), "row {n}");
        assert_eq!(
            (&last["caption"], last["similarity"].as_f64()),
            (&row.caption.clone().into(), Some(n as f64 / 64.0))
        );
        let sample = samples.iter().find(|s| s["key"] == key(n));
        match &row.expected {
            Expected::Kept { width, height, sha256 } => {
                assert_eq!((&last["status"], &last["error_message"]), (&"success".into(), &Value::Null), "row {n}");
                assert_eq!((&last["original_width"], &last["original_height"]), (&(*width).into(), &(*height).into()));
                assert_eq!(last["sha256"], **sha256, "row {n}");
                assert_eq!(last["width"].as_u64().unwrap().min(last["height"].as_u64().unwrap()), 24);
                let sample = sample.unwrap_or_else(|| panic!("row {n} is in no tar"));
                assert_eq!(sample["parts"], serde_json::json!(["jpg", "json", "txt"]));
                assert_eq!(sample["caption"], row.caption);
                assert_eq!(&sample["meta"], *last, "the JSON beside an image says what its row says");
                kept += 1;
            }
            Expected::Refused(_) => {
                let words = match row.behaviour {
                    Behaviour::NotFound => ("failed_to_download", Some("HTTP Error 404: Not Found")),
                    _ => ("failed_to_resize", None),
                };
                assert_eq!(last["status"], words.0, "row {n}");
                assert!(words.1.is_none_or(|words| last["error_message"] == words), "{last}");
                assert!(last["width"].is_null() && last["sha256"].is_null() && sample.is_none(), "row {n}");
            }
        }
    }
    assert!(kept > 30 && samples.len() == kept);
    let stats = found["stats"].as_array().unwrap();
    let sum = |name: &str| stats.iter().map(|s| s[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum("count") as usize, rows.len());
    assert_eq!(sum("successes") as usize, kept);
    assert_eq!(sum("successes") + sum("failed_to_download") + sum("failed_to_resize"), sum("count"));
    let ended: u64 =
        stats.iter().flat_map(|s| s["status_dict"].as_object().unwrap().values()).map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(ended, sum("count"));

    // Another size never mixes with this one; what it replaced is garbage then.
    let manifest = write(20);
    assert!(run(&["run", &manifest, "-q"]).status.success());
    assert_eq!(folders().len(), 2);
    let gc = run(&["gc", &manifest, "--delete"]);
    assert!(gc.status.success(), "{}", text(&gc.stderr));
    let left: Vec<PathBuf> = folders().into_iter().filter(|f| std::fs::read_dir(f).unwrap().count() > 0).collect();
    assert!(left.len() == 1 && &left[0] != ours, "{left:?}");
}
