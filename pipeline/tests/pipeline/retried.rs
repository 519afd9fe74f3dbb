//! Rows that are tried again, and how they are counted.

use std::path::Path;
use std::time::Duration;

use pipeline::manifest::Manifest;
use pipeline::notify::Message;
use pipeline::plan::Plan;
use pipeline::retry;
use pipeline::stage::Cancel;
use shards::event::RunOutcome;

use crate::synthetic::drive;

#[test]
fn a_row_that_was_tried_again_is_told_of_once() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("urls.tsv");
    // Refused without any network: their address is a private one.
    std::fs::write(&list, "url\tcaption\nhttp://127.0.0.1:9/a.jpg\ta\nhttp://127.0.0.1:9/b.jpg\tb\n").unwrap();
    let text = format!(
        "[pipeline]\nname = \"test\"\nworkdir = '{}'\nwarn_above = 1.0\n[stage.download]\nuses = \"download\"\nurls = '{}'\n",
        folder.path().join("work").display(),
        list.display()
    );
    let manifest = Manifest::parse(&text, Path::new("test.toml"), &[]).unwrap();
    let plan = || Plan::new(&manifest, &pipeline::stages::registry()).unwrap();
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
