//! Rows that are refused, shown and tried again, and how they are counted.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use pipeline::manifest::Manifest;
use pipeline::notify::Message;
use pipeline::plan::{Plan, Selection};
use pipeline::run::{Options, run};
use pipeline::stage::Cancel;
use pipeline::{explain, garbage, graph, query, report, retry};
use shards::columns;
use shards::digest::Digest;
use shards::event::{EventSink, RunOutcome};
use shards::reader::Shard;
use shards::storage::Workdir;

use crate::samples::tile;
use crate::synthetic::drive;

/// Private networks that may be connected to: how it is done, and no part of any fingerprint.
const ALLOWED: &str = "allow_networks = [\"127.0.0.0/8\"]\n";

/// A manifest, in `folder`, of two rows that are refused without any network: their address is a private one.
fn manifest(folder: &Path) -> Manifest {
    manifest_of(folder, &SocketAddr::from(([127, 0, 0, 1], 9)), "")
}

/// The same with rows of another host, and `more` in its table.
fn manifest_of(folder: &Path, host: &SocketAddr, more: &str) -> Manifest {
    let list = folder.join("urls.tsv");
    std::fs::write(&list, format!("url\tcaption\nhttp://{host}/a.jpg\ta\nhttp://{host}/b.jpg\tb\n")).unwrap();
    let text = format!(
        "[pipeline]\nname = \"test\"\nworkdir = \"unused\"\nwarn_above = 1.0\n\
         [stage.download]\nuses = \"download\"\nurls = '{}'\n{more}",
        list.display()
    );
    Manifest::parse(&text, Path::new("test.toml"), &[]).unwrap()
}

/// A host that answers everything with a picture. Ends with the process.
fn host() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let picture = tile(7);
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", picture.len());
                let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
                if lines.any(|line| line.is_empty()) {
                    let _ = (&stream).write_all(&[head.as_bytes(), &picture].concat());
                }
            });
        }
    });
    address
}

fn plan(manifest: &Manifest, workdir: &Workdir) -> Plan {
    Plan::in_workdir(manifest, &pipeline::stages::registry(), &Selection::default(), workdir.clone()).unwrap()
}

fn on_store(scratch: &Path) -> Workdir {
    Workdir::on_store(Arc::new(InMemory::new()), "work", "memory://work", scratch).unwrap()
}

#[test]
fn a_row_that_was_tried_again_is_told_of_once() {
    let folder = tempfile::tempdir().unwrap();
    let (manifest, workdir) = (manifest(folder.path()), Workdir::local(&folder.path().join("work")));
    let plan = || plan(&manifest, &workdir);
    drive(&mut plan());
    let again = "reason = 'forbidden_address'";
    let prepared = retry::prepare(plan().stage("download").unwrap(), again, false, &Cancel::default()).unwrap();
    assert_eq!((prepared.rows, prepared.partitions), (2, 1));
    drive(&mut plan());

    let plan = plan();
    let stage = plan.stage("download").unwrap();
    assert_eq!(stage.committed().map(|sidecar| sidecar.rows_in).sum::<u64>(), 4, "the records count each try");
    let totals = stage.totals();
    assert_eq!((totals.rows_in, totals.rows_out, totals.rows_dropped()), (2, 0, 2));
    let message = Message::new(&plan, RunOutcome::Done, Duration::ZERO, None);
    let [told] = &message.stages[..] else { panic!("one stage") };
    assert_eq!((told.partitions, told.committed), (2, 2));
    assert_eq!((told.rows_in, told.rows_out, &told.dropped), (totals.rows_in, totals.rows_out, &totals.dropped));
}

#[test]
fn a_row_that_was_tried_again_and_again_is_one_row_of_a_query_and_of_a_drawing() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = manifest(folder.path());
    for workdir in [Workdir::local(&folder.path().join("work")), on_store(&folder.path().join("scratch"))] {
        drive(&mut plan(&manifest, &workdir));
        for again in ["true", "url LIKE '%a.jpg'", "true"] {
            let before = plan(&manifest, &workdir);
            retry::prepare(before.stage("download").unwrap(), again, false, &Cancel::default()).unwrap();
            drive(&mut plan(&manifest, &workdir));
            let plan = plan(&manifest, &workdir);
            let mut rows = Vec::new();
            let sql = "SELECT url, count(*) AS n FROM download_quarantine GROUP BY url ORDER BY url";
            let each = |batch| {
                rows.push(batch);
                true
            };
            query::query(&plan, sql, each).unwrap();
            let rows = arrow::util::pretty::pretty_format_batches(&rows).unwrap().to_string();
            let expected = ["| http://127.0.0.1:9/a.jpg | 1 |", "| http://127.0.0.1:9/b.jpg | 1 |"];
            assert_eq!(rows.lines().filter(|line| line.contains("http")).collect::<Vec<_>>(), expected);
            assert!(graph::draw(&plan, graph::Format::Svg).contains("2 → 0 rows"), "{again}");
        }
    }
}

#[test]
fn of_two_retries_at_once_the_second_leaves_the_list_of_the_first_alone() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = manifest(folder.path());
    for workdir in [Workdir::local(&folder.path().join("work")), on_store(&folder.path().join("scratch"))] {
        drive(&mut plan(&manifest, &workdir));
        // Both have planned before either has written its list.
        let both = plan(&manifest, &workdir);
        let prepare =
            |condition: &str| retry::prepare(both.stage("download").unwrap(), condition, false, &Cancel::default());
        assert_eq!(prepare("url LIKE '%a.jpg'").unwrap().rows, 1);
        let error = prepare("url LIKE '%b.jpg'").unwrap_err().to_string();
        assert!(error.contains("another process") && error.contains("part-00000"), "{error}");

        let plan = plan(&manifest, &workdir);
        let stage = plan.stage("download").unwrap();
        let [list] = &stage.retries[..] else { panic!("one list") };
        let file = stage.folder.name_of(&list.file().file);
        let rows = workdir.read(&file).unwrap().unwrap();
        assert_eq!(Digest::of(&rows), list.file().digest);
        let shard = Shard::open(&stage.fetch(list.file()).unwrap()).unwrap();
        let batch = shard.batches(None, 10).unwrap().next().unwrap().unwrap();
        let urls: Vec<Option<&str>> = shard.text(&batch, columns::URL).unwrap().iter().collect();
        assert_eq!(urls, [Some("http://127.0.0.1:9/a.jpg")]);

        // What a retry leaves that ends before it loses is nobody's, and the list is somebody's.
        assert_eq!(workdir.list("stages/download/retry", false).unwrap().len(), 2, "rows and record");
        let left = file.replace(".parquet", "0.parquet");
        workdir.replace(&left, &rows).unwrap();
        let garbage = garbage::find(&plan).unwrap().into_iter().map(|garbage| garbage.name);
        assert_eq!(garbage.filter(|name| name.contains("/retry/")).collect::<Vec<_>>(), [left]);
    }
}

#[test]
fn refused_rows_that_were_shown_leave_no_copies_here() {
    let folder = tempfile::tempdir().unwrap();
    let (manifest, scratch) = (manifest(folder.path()), folder.path().join("scratch"));
    let workdir = on_store(&scratch);
    drive(&mut plan(&manifest, &workdir));
    let plan = plan(&manifest, &workdir);
    let stage = plan.stage("download").unwrap();
    assert_eq!(explain::refused(stage, 1).unwrap().len(), 1);
    assert_eq!(report::refused(stage).unwrap()[0].rows, 2);
    let here = Workdir::local(&scratch).list("stages/download", true).unwrap();
    // A copy of the list of URLs may stay: it is no copy of what is committed.
    let is_copy = |name: &&String| name.ends_with(".parquet") && !name.starts_with("list/");
    assert_eq!(here.iter().map(|entry| &entry.name).filter(is_copy).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn rows_of_a_partition_that_is_made_again_are_not_brought_by_an_earlier_retry_as_well() {
    let again = "reason = 'forbidden_address'";
    for is_forced in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let workdir = Workdir::local(&folder.path().join("work"));
        let host = host();
        let (strict, open) = (manifest_of(folder.path(), &host, ""), manifest_of(folder.path(), &host, ALLOWED));
        let counts = || {
            let plan = plan(&strict, &workdir);
            let totals = plan.stage("download").unwrap().totals();
            (plan.stages[0].partitions.len(), totals.rows_in, totals.rows_out, totals.rows_dropped())
        };
        let prepare = |wanted: &str| {
            let prepared =
                retry::prepare(plan(&strict, &workdir).stage("download").unwrap(), wanted, false, &Cancel::default());
            prepared.unwrap().rows
        };
        drive(&mut plan(&strict, &workdir));
        assert_eq!(counts(), (1, 2, 0, 2));
        // One row passes, the other waits to be tried.
        assert_eq!(prepare("url LIKE '%a.jpg'"), 1);
        drive(&mut plan(&open, &workdir));
        assert_eq!((counts(), prepare(again)), ((2, 2, 1, 1), 1));

        // It is made again, for no change of the manifest, and what it refused passes now.
        let make_again = |manifest: &Manifest| {
            let mut selection = Selection::default();
            if is_forced {
                selection.force = true;
            } else {
                let made = plan(&strict, &workdir);
                let base = made.stages[0].partitions[0].sidecar().unwrap();
                workdir.remove(&made.stages[0].folder.name_of(&base.data[0].file)).unwrap();
            }
            let registry = pipeline::stages::registry();
            let mut plan = Plan::in_workdir(manifest, &registry, &selection, workdir.clone()).unwrap();
            assert_eq!(plan.stages[0].partitions.len(), 1, "nobody knows yet what it will refuse");
            drive(&mut plan);
        };
        make_again(&open);
        assert_eq!(counts(), (1, 2, 2, 0));
        assert_eq!(prepare(again), 0);
        // Once more, when it refuses what it did at first: the lists are drawn from that.
        make_again(&strict);
        assert_eq!(counts(), (3, 2, 1, 1));
    }
}

#[test]
fn a_list_is_numbered_behind_those_that_count_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let workdir = Workdir::local(&folder.path().join("work"));
    let manifest = manifest(folder.path());
    drive(&mut plan(&manifest, &workdir));
    let prepare = || {
        let prepared =
            retry::prepare(plan(&manifest, &workdir).stage("download").unwrap(), "true", false, &Cancel::default());
        prepared.unwrap().rows
    };
    assert_eq!(prepare(), 2);
    // As of a partition that has refused other rows meanwhile.
    let stage = plan(&manifest, &workdir).stages.remove(0);
    let folder = stage.folder.path().join("retry");
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let record = entries.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "json")).unwrap();
    let text = std::fs::read_to_string(&record).unwrap();
    let refused = stage.partitions[0].sidecar().unwrap().quarantine.as_ref().unwrap().digest.to_string();
    assert!(text.contains(&refused), "{text}");
    std::fs::write(&record, text.replace(&refused, &Digest::of(b"others").to_string())).unwrap();
    assert!(plan(&manifest, &workdir).stages[0].retries.is_empty());
    assert_eq!(prepare(), 2);
    let names: Vec<String> = plan(&manifest, &workdir).stages[0].retries.iter().map(|list| list.name.clone()).collect();
    assert_eq!(names, ["part-00000r2"]);
    // A list of an earlier version does not say what it was drawn from, and counts.
    let mut old: serde_json::Value = serde_json::from_str(&text).unwrap();
    old.as_object_mut().unwrap().remove("drawn_from").unwrap();
    std::fs::write(&record, old.to_string()).unwrap();
    assert_eq!(plan(&manifest, &workdir).stages[0].retries.len(), 2);
}

#[test]
fn rows_that_are_tried_again_are_not_judged_by_fail_if() {
    let folder = tempfile::tempdir().unwrap();
    let workdir = Workdir::local(&folder.path().join("work"));
    drive(&mut plan(&manifest(folder.path()), &workdir));
    let judged =
        manifest_of(folder.path(), &SocketAddr::from(([127, 0, 0, 1], 9)), "fail_if = { success_below = 0.5 }\n");
    let before = plan(&judged, &workdir);
    let prepared = retry::prepare(before.stage("download").unwrap(), "true", false, &Cancel::default()).unwrap();
    assert_eq!(prepared.rows, 2);
    let mut plan_of_retry = plan(&judged, &workdir);
    assert_eq!(drive(&mut plan_of_retry).outcome, RunOutcome::Done);
    assert_eq!(plan_of_retry.stages[0].totals().rows_dropped(), 2);
    // The same rows are, where they are tried for the first time.
    let elsewhere = Workdir::local(&folder.path().join("elsewhere"));
    let ended = run(&mut plan(&judged, &elsewhere), &Options::default(), &EventSink::silent(), &Cancel::default());
    let error = format!("{:?}", ended.unwrap_err());
    assert!(error.contains("TooManyBadRows"), "{error}");
}
