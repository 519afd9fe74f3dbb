//! Rows that are refused, shown and tried again, and how they are counted.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use pipeline::manifest::Manifest;
use pipeline::notify::Message;
use pipeline::plan::{Plan, Selection};
use pipeline::stage::Cancel;
use pipeline::{explain, garbage, report, retry};
use shards::columns;
use shards::digest::Digest;
use shards::event::RunOutcome;
use shards::reader::Shard;
use shards::storage::Workdir;

use crate::synthetic::drive;

/// A manifest, in `folder`, of two rows that are refused without any network: their address is a private one.
fn manifest(folder: &Path) -> Manifest {
    let list = folder.join("urls.tsv");
    std::fs::write(&list, "url\tcaption\nhttp://127.0.0.1:9/a.jpg\ta\nhttp://127.0.0.1:9/b.jpg\tb\n").unwrap();
    let text = format!(
        "[pipeline]\nname = \"test\"\nworkdir = \"unused\"\nwarn_above = 1.0\n[stage.download]\nuses = \"download\"\nurls = '{}'\n",
        list.display()
    );
    Manifest::parse(&text, Path::new("test.toml"), &[]).unwrap()
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
