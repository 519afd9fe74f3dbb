//! The engine by its commands, over the data stages: selections, estimates, rehearsal, retry, sharing a workdir, object stores.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use demo::{Catalogue, Origin};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::store::Store;
use crate::support::{digests, ferrotype, folder, start_until, text};

const STAGES: [&str; 4] = ["download", "filter", "bucket", "index"];

/// An origin of 200 URLs, and a manifest of the data stages.
pub(crate) struct Web {
    pub(crate) folder: tempfile::TempDir,
    origin: Origin,
    _runtime: Runtime,
}

impl Web {
    pub(crate) fn start() -> Self {
        let folder = folder();
        let catalogue = Catalogue::new(200, demo::DEFAULT_SEED);
        std::fs::write(folder.path().join("urls.tsv"), catalogue.url_list()).unwrap();
        let runtime = Runtime::new().unwrap();
        let origin = runtime.block_on(Origin::start(catalogue, 0)).unwrap();
        Self { folder, origin, _runtime: runtime }
    }

    pub(crate) fn workdir(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// A manifest over `workdir`; `download` is more of that stage's table.
    pub(crate) fn manifest(&self, workdir: &str, download: &str) -> PathBuf {
        let path = self.folder.path().join(format!("{}.toml", workdir.replace(['/', ':'], "_")));
        let text = format!(
            r#"
[pipeline]
name = "web"
workdir = "{workdir}"
scratch = "{folder}/scratch"

[stage.download]
uses = "download"
urls = "{folder}/urls.tsv"
source = "demo"
rows_per_shard = 25
partitions = 2
in_flight = 8
timeout = 1.5
allow_networks = ["127.0.0.0/8"]
connect_to = {{ "{host}" = "{address}" }}
{download}

[stage.filter]
uses = "filter"
from = "download"
min_side = 64

[stage.bucket]
uses = "bucket"
from = "filter"
max_resolution = 32
patch_size = 4

[stage.index]
uses = "index"
from = "bucket"
"#,
            folder = self.folder.path().display(),
            host = demo::HOST,
            address = self.origin.address(),
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn local(&self, download: &str) -> PathBuf {
        self.manifest(&self.workdir().to_string_lossy(), download)
    }
}

fn command(name: &str, manifest: &Path, arguments: &[&str]) -> Command {
    let mut command = ferrotype();
    command.arg(name).arg(manifest).args(arguments);
    command
}

fn output(name: &str, manifest: &Path, arguments: &[&str]) -> Output {
    command(name, manifest, arguments).output().unwrap()
}

fn says(name: &str, manifest: &Path, arguments: &[&str]) -> String {
    let output = output(name, manifest, arguments);
    assert!(output.status.success(), "{name} {arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn json(name: &str, manifest: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&says(name, manifest, arguments)).unwrap()
}

#[test]
fn refused_rows_are_tried_again_with_their_keys_and_flow_on() {
    let web = Web::start();
    let manifest = web.local("retries = 0");
    says("run", &manifest, &[]);
    let ask = |sql: &str| says("query", &manifest, &[sql, "--format", "csv"]).trim().replace('\n', " ");
    let before = digests(&web.workdir(), "download");
    assert_eq!(ask("SELECT count(*) AS n FROM bucket"), "n 183");

    let busy = "status = 'failed_to_download' AND error_message LIKE '%429%' OR error_message LIKE '%500%'";
    let dry = output("retry", &manifest, &["--where", busy, "--dry-run"]);
    assert!(text(&dry.stderr).contains("4 of 17 refused rows to try again"), "{}", text(&dry.stderr));
    let key = ask("SELECT key FROM download_quarantine WHERE error_message LIKE '%429%' ORDER BY key LIMIT 1");
    let key = key.split(' ').nth(1).unwrap();
    assert!(says("explain", &manifest, &[key]).contains("refused: http_429"));

    says("retry", &manifest, &["--where", busy]);
    assert_eq!(ask("SELECT count(*) AS n, count(DISTINCT key) AS keys FROM bucket"), "n,keys 187,187");
    let story = says("explain", &manifest, &[key]);
    assert!(!story.contains("refused") && story.contains("bucket_size"), "{story}");
    assert!(before.iter().all(|made| digests(&web.workdir(), "download").contains(made)), "nothing was made again");
    let status = says("status", &manifest, &[]);
    assert!(status.contains("200 in = 187 out + 13 dropped") && !status.contains("http_429"), "{status}");
    assert!(says("verify", &manifest, &[]).contains("all as recorded"));
    let gc = says("gc", &manifest, &[]);
    // The index over fewer rows is an earlier one; lists of rows to try again, and what came of them, are not.
    assert!(gc.contains("stages/index/") && !gc.contains("stages/download/") && !gc.contains("stages/bucket/"), "{gc}");

    // What is tried again and refused again may be tried once more; what passed is not.
    let dead = "reason = 'http_404'";
    says("retry", &manifest, &["--where", dead]);
    let twice = output("retry", &manifest, &["--where", dead, "--dry-run"]);
    assert!(text(&twice.stderr).contains("2 of 13 refused rows"), "{}", text(&twice.stderr));
    assert!(says("status", &manifest, &[]).contains("200 in = 187 out + 13 dropped"));
    for wrong in ["reason =", "nosuch = 3"] {
        let bad = output("retry", &manifest, &["--where", wrong]);
        assert_eq!(bad.status.code(), Some(2), "{wrong}: {}", text(&bad.stderr));
    }
    for (wrong, words) in [
        (&["--stage", "bucket"][..], "stages with a second chance: download"),
        (&["--until", "buckett"], "buckett is no stage"),
    ] {
        let refused = output("retry", &manifest, wrong);
        assert_eq!(refused.status.code(), Some(2), "{wrong:?}");
        assert!(text(&refused.stderr).contains(words), "{wrong:?}: {}", text(&refused.stderr));
    }

    // Another configuration of the stage makes its partitions anew: the old lists count no more.
    let changed = ["--set", "stage.download.max_bytes=19000000", "--set", "stage.download.retries=1"];
    says("run", &manifest, &changed);
    let sql = ["SELECT count(*) AS n FROM bucket", "--format", "csv"];
    assert_eq!(says("query", &manifest, &[&sql[..], &changed[..]].concat()).trim(), "n\n187");
}

#[test]
fn a_retry_of_no_rows_makes_nothing_but_what_an_earlier_one_left() {
    let web = Web::start();
    let manifest = web.local("retries = 0");
    let nothing = || {
        let output = output("retry", &manifest, &["--where", "reason = 'htpp_429'"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    says("run", &manifest, &["--until", "download"]);
    let said = nothing();
    assert!(said.contains("0 of 17 refused rows to try again"), "{said}");
    assert!(said.contains("they were refused for: ") && said.contains("http_404 2"), "what there is instead: {said}");
    assert!(!web.workdir().join("stages/bucket").exists(), "only `run` makes the rest");

    // As if that retry had been killed between its lists and what it makes of them.
    says("retry", &manifest, &["--where", "reason = 'http_404'", "--until", "filter"]);
    let stages = web.workdir().join("stages");
    assert!(stages.join("filter").exists() && !stages.join("bucket").exists(), "what passes flows on so far");
    let download = web.workdir().join("stages/download");
    let records = |beginning: &str, part: &str| -> Vec<PathBuf> {
        let files = std::fs::read_dir(&download).unwrap().map(|entry| entry.unwrap().path());
        let is_one = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with(beginning) && name.contains(part) && name.ends_with(".json")
        };
        files.filter(is_one).collect()
    };
    let made = records("part-", "r1.");
    for record in made.iter().chain(&records("ledger.", "")) {
        std::fs::remove_file(record).unwrap();
    }
    nothing();
    assert!(!made.is_empty() && records("part-", "r1.").len() == made.len(), "{made:?}");
}

#[test]
fn a_plan_says_what_a_selection_would_take_and_a_rehearsal_what_the_whole_would() {
    let web = Web::start();
    let manifest = web.local("");
    let plan = says("plan", &manifest, &[]);
    assert!(plan.contains("not made yet; 8 of 8 partitions") && plan.contains("reads 200 rows"), "{plan}");
    let measured = format!("`ferrotype run {} --rehearse 1000` measures it", manifest.display());
    assert!(plan.contains(&measured), "nothing is known of the time: {plan}");

    let part = says("run", &manifest, &["--rehearse", "40", "--until", "filter"]);
    assert!(part.contains("filter") && !part.contains("bucket"), "{part}");
    let rehearsed = says("run", &manifest, &["--rehearse", "40", "--price", "3.6", "--json"]);
    let estimate: Value = serde_json::from_str(rehearsed.lines().last().unwrap()).unwrap();
    assert_eq!(estimate["event"], "estimate", "{rehearsed}");
    assert!(
        estimate["cost"].as_f64() > Some(0.0) && estimate["stages"][0]["seconds"].as_f64() > Some(0.0),
        "{estimate}"
    );
    let rehearsed = says("run", &manifest, &["--rehearse", "40", "--price", "3.6"]);
    assert!(
        rehearsed.contains("The whole, judged by this rehearsal") && rehearsed.contains("at 3.6 an hour"),
        "{rehearsed}"
    );
    assert!(web.workdir().join("rehearsal/stages/index").exists());
    // What a plan leaves of the list is a copy; nothing of the whole is made.
    let of_the_whole =
        std::fs::read_dir(web.workdir().join("stages/download")).unwrap().map(|e| e.unwrap().file_name());
    assert!(of_the_whole.into_iter().all(|name| name == "list") && !web.workdir().join("stages/filter").exists());

    assert!(says("plan", &manifest, &[]).contains("in all, on"), "now the time is known");

    let blocked = output("run", &manifest, &["--stage", "index"]);
    assert_eq!(blocked.status.code(), Some(2));
    assert!(text(&blocked.stderr).contains("reads from bucket, 8 of 8 partitions"), "{}", text(&blocked.stderr));
    let unknown = output("plan", &manifest, &["--until", "buckett"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("download, filter, bucket, index"), "{}", text(&unknown.stderr));

    says("run", &manifest, &["--until", "filter"]);
    let plan = json("plan", &manifest, &["--json", "--from", "bucket", "--cores", "1"]);
    let bucket = plan["stages"].as_array().unwrap().iter().find(|stage| stage["stage"] == "bucket").unwrap();
    assert_eq!((&bucket["to_run"], &bucket["reads"]["rows"]), (&Value::from(8), &Value::from(187.0)), "{bucket}");
    says("run", &manifest, &[]);
    let again = says("plan", &manifest, &["--force", "--stage", "bucket"]);
    assert!(again.contains("asked for again; 8 of 8 partitions") && again.contains("about "), "{again}");
}

#[test]
fn with_keep_going_a_failed_partition_stops_only_what_needs_it() {
    let web = Web::start();
    let manifest = web.local("on_bad_row = \"fail\"");
    assert_eq!(output("run", &manifest, &[]).status.code(), Some(1));
    let kept = output("run", &manifest, &["--keep-going"]);
    assert_eq!(kept.status.code(), Some(1), "{}", text(&kept.stderr));
    let failed = text(&kept.stderr).matches("✗ download").count();
    let status = json("status", &manifest, &["--json"]);
    let committed = |i: usize| status["stages"][i]["committed"].as_u64().unwrap() as usize;
    assert!(
        failed > 0 && committed(0) == 8 - failed && committed(2) == committed(0) && committed(3) == 0,
        "{status:#}"
    );
}

#[test]
fn two_processes_share_a_workdir_and_one_may_die() {
    let web = Web::start();
    let manifest = web.local("");
    let is_commit = |event: &Value| event["event"] == "partition_committed";
    let mut first = start_until(command("run", &manifest, &["--json"]), is_commit);
    let runners = json("status", &manifest, &["--json"])["runners"].as_array().unwrap().clone();
    assert_eq!(runners[0]["process"], first.id(), "{runners:?}");
    let refused = output("gc", &manifest, &["--delete", "--set", "stage.bucket.patch_size=8"]);
    // Nothing is garbage yet, or deleting is refused while a run is at work.
    assert!(refused.status.success() || text(&refused.stderr).contains(&format!("process {}", first.id())));
    let mut second = start_until(command("run", &manifest, &["--json"]), |event| event["event"] == "run_started");
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(second.wait().unwrap().success());
    let plan = says("plan", &manifest, &[]);
    assert!(plan.contains("Nothing to do"), "{plan}");

    let alone = web.manifest(&web.folder.path().join("alone").to_string_lossy(), "");
    says("run", &alone, &[]);
    for stage in STAGES {
        assert_eq!(digests(&web.workdir(), stage), digests(&web.folder.path().join("alone"), stage), "{stage}");
    }
}

#[test]
fn a_workdir_on_an_object_store_is_like_any_other() {
    let web = Web::start();
    let root = web.folder.path().join("s3");
    let store = Store::start(&root);
    let reach = |name: &str, manifest: &Path, arguments: &[&str]| {
        let mut command = command(name, manifest, arguments);
        store.reach(&mut command);
        command
    };
    let manifest = web.manifest("s3://bucket/web", "");
    // One run dies after its first commit; two go on together.
    let mut dying = start_until(reach("run", &manifest, &["--json"]), |event| event["event"] == "partition_committed");
    dying.kill().unwrap();
    dying.wait().unwrap();
    let both: Vec<_> = (0..2).map(|_| reach("run", &manifest, &["-q"]).spawn().unwrap()).collect();
    for mut run in both {
        assert!(run.wait().unwrap().success());
    }
    let local = web.local("");
    says("run", &local, &[]);
    for stage in STAGES {
        assert_eq!(digests(&root.join("bucket/web"), stage), digests(&web.workdir(), stage), "{stage}");
    }

    // Another machine has no copies.
    std::fs::remove_dir_all(web.folder.path().join("scratch")).unwrap();
    let says = |name: &str, arguments: &[&str]| {
        let output = reach(name, &manifest, arguments).output().unwrap();
        assert!(output.status.success(), "{name}: {}{}", text(&output.stdout), text(&output.stderr));
        format!("{}{}", text(&output.stdout), text(&output.stderr))
    };
    assert!(says("run", &[]).contains("Nothing to do"));
    assert!(says("query", &["SELECT count(*) AS n FROM bucket", "--format", "csv"]).contains("187"));
    assert!(says("verify", &[]).contains("all as recorded"));
    assert!(root.join("bucket/web/report.html").exists());
    let change = ["--set", "stage.bucket.max_resolution=24"];
    says("run", &change);
    assert!(says("gc", &[&change[..], &["--delete"]].concat()).contains("Deleted"));
    assert!(says("verify", &change).contains("all as recorded"));
    assert_eq!(digests(&root.join("bucket/web"), "bucket").len(), 8);

    // A damaged object is found, and nothing is made of it.
    let data = std::fs::read_dir(root.join("bucket/web/stages/filter")).unwrap().map(|e| e.unwrap().path());
    let damaged = data.into_iter().find(|p| p.extension().is_some_and(|e| e == "parquet")).unwrap();
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let found = reach("verify", &manifest, &change).output().unwrap();
    assert_eq!(found.status.code(), Some(1));
    assert!(text(&found.stdout).contains(&*damaged.file_name().unwrap().to_string_lossy()), "{}", text(&found.stdout));

    let mut nowhere = command("plan", &manifest, &[]);
    nowhere.env("AWS_ENDPOINT", "http://127.0.0.1:9").env("AWS_ALLOW_HTTP", "true").env("AWS_ACCESS_KEY_ID", "x");
    nowhere.env("AWS_SECRET_ACCESS_KEY", "secret-that-is-not-shown").env("AWS_REGION", "us-east-1");
    let unreachable = nowhere.output().unwrap();
    let said = text(&unreachable.stderr);
    assert_eq!(unreachable.status.code(), Some(1));
    assert!(said.contains("s3://bucket/web") && !said.contains("secret-that-is-not-shown"), "{said}");
}
