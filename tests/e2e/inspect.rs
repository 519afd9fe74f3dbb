//! Looking into a workdir: `graph`, `explain`, `verify`, `gc`, `query`.

use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::{digests, events, folder, run, small_demo, text};

/// A finished small demo, and the settings it was made with.
struct Made {
    _folder: tempfile::TempDir,
    workdir: PathBuf,
    settings: Vec<String>,
}

fn made() -> Made {
    let folder = folder();
    let workdir = folder.path().join("work");
    let command = small_demo(&workdir);
    let settings: Vec<String> =
        command.get_args().map(|a| a.to_string_lossy().into_owned()).skip_while(|a| a != "--set").collect();
    events(command);
    Made { _folder: folder, workdir, settings }
}

impl Made {
    fn command(&self, name: &str, arguments: &[&str]) -> Output {
        let manifest = self.workdir.join("demo.toml");
        let mut all = vec![name, manifest.to_str().unwrap()];
        all.extend(arguments.iter().filter(|a| !a.starts_with("stage.")));
        all.extend(self.settings.iter().map(String::as_str));
        for set in arguments.iter().filter(|a| a.starts_with("stage.")) {
            all.extend(["--set", set]);
        }
        run(&all)
    }

    fn says(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.command(name, arguments);
        assert!(output.status.success(), "{name}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// A data file of a stage's first partition.
    fn data(&self, stage: &str) -> PathBuf {
        let folder = self.workdir.join("stages").join(stage);
        let names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let is_first = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with("part-00000") && name.ends_with(".parquet")
        };
        names.into_iter().find(is_first).unwrap()
    }
}

fn flip_a_byte(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_workdir_answers_questions() {
    let made = made();
    let graph = made.says("graph", &[]);
    assert!(graph.contains("download") && graph.contains("8 of 8 partitions, 187 rows"), "{graph}");
    assert!(made.says("graph", &["--format", "dot"]).contains("s0 -> s1;"));
    assert!(made.says("graph", &["--format", "mermaid"]).contains("s0 --> s1"));
    let svg = made.says("graph", &["--format", "svg"]);
    assert_eq!(svg.matches("<rect").count(), 9, "eight stages on paper: {svg}");

    let ask = |sql: &str| made.says("query", &[sql, "--format", "csv"]);
    assert_eq!(ask("SELECT count(*) AS n FROM download").trim(), "n\n187");
    let by_reason =
        ask("SELECT reason, count(*) AS n FROM download_quarantine GROUP BY reason ORDER BY reason LIMIT 2");
    assert_eq!(by_reason.trim(), "reason,n\ndamaged_image,2\nhttp_404,2");
    assert_eq!(
        ask("SELECT sum(rows_in - rows_out - rows_dropped) AS lost FROM partitions WHERE stage = 'download'").trim(),
        "lost\n0"
    );
    let table = made.says("query", &["SELECT key, image FROM bucket ORDER BY key", "--limit", "1"]);
    assert!(table.contains("demo/000000000") && table.contains(" bytes"), "{table}");
    for forbidden in ["DROP TABLE bucket", "COPY bucket TO 'x.csv'", "CREATE TABLE x AS SELECT 1", "SET a = 1"] {
        let output = made.command("query", &[forbidden]);
        assert_eq!(output.status.code(), Some(2), "{forbidden}");
        assert!(text(&output.stderr).contains("not supported"), "{}", text(&output.stderr));
    }
    assert!(text(&made.command("query", &["SELECT * FROM buckets"]).stderr).contains("tables: partitions, download"));

    let kept = ask("SELECT key FROM bucket LIMIT 1");
    let story = made.says("explain", &[kept.lines().nth(1).unwrap()]);
    assert!(story.contains("http://origin.demo.invalid/") && story.contains("bucket_size"), "{story}");
    let refused = ask("SELECT key FROM download_quarantine WHERE reason = 'http_404' LIMIT 1");
    let story = made.says("explain", &[refused.lines().nth(1).unwrap()]);
    assert!(story.contains("refused: http_404 (HTTP Error 404: Not Found)") && story.contains("not there"), "{story}");
    let dropped = |limit| made.says("explain", &["--dropped", "download", "--limit", limit]);
    let (some, all) = (dropped("1"), dropped("2"));
    assert!(some.contains("opted_out 2") && some.contains("… (--limit N shows more)"), "{some}");
    assert!(all.contains("opted_out 2") && !all.contains("--limit"), "{all}");
    assert!(text(&made.command("explain", &["nobody"]).stderr).contains("nobody"));
    assert_eq!(made.command("explain", &["--dropped", "nothing"]).status.code(), Some(2));
}

#[test]
fn damage_is_found_and_made_good() {
    let made = made();
    assert!(made.says("verify", &[]).contains("all as recorded"));
    let before = digests(&made.workdir, "bucket");
    let damaged = made.data("bucket");
    flip_a_byte(&damaged);
    let output = made.command("verify", &[]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout);
    let name = damaged.file_name().unwrap().to_string_lossy();
    assert!(said.contains("bucket, part-00000") && said.contains(&*name) && said.contains("1 problem"), "{said}");
    let json = text(&made.command("verify", &["--json"]).stdout);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["findings"].as_array().unwrap().len(), 1, "{json}");

    std::fs::remove_file(&damaged).unwrap();
    made.says("run", &[]);
    assert!(made.says("verify", &[]).contains("all as recorded"));
    assert_eq!(digests(&made.workdir, "bucket"), before);
}

#[test]
fn what_an_earlier_configuration_made_goes_only_when_asked() {
    let made = made();
    assert!(made.says("gc", &[]).contains("Nothing to delete"));
    let change = "stage.bucket.max_resolution=24";
    made.says("run", &[change]);
    let old = made.says("gc", &[change]);
    // Bucket, index, train, samples, evaluate of before; download, filter and recaption are still needed.
    for part in ["stages/bucket/part-00007", "stages/index/", "stages/train/run-", "Nothing was deleted"] {
        assert!(old.contains(part), "{part}: {old}");
    }
    assert!(!old.contains("stages/download/") && !old.contains("stages/filter/"), "{old}");
    assert_eq!(digests(&made.workdir, "bucket").len(), 16, "both configurations are there");

    made.says("gc", &["--delete", change]);
    assert_eq!(digests(&made.workdir, "bucket").len(), 8);
    assert!(made.says("gc", &[change]).contains("Nothing to delete"));
    assert!(made.says("verify", &[change]).contains("all as recorded"));
    let again = made.command("run", &[change]);
    assert!(text(&again.stderr).contains("Nothing to do: everything is up to date."), "{}", text(&again.stderr));
}
