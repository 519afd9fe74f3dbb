//! Tars over time: those that come later, move, change, or are deleted once they are shards.

use std::time::{Duration, SystemTime};

use pipeline::plan::{Plan, Selection};
use shards::event::RunOutcome;

use super::{Place, drive, in_words, numbered};

#[test]
fn a_second_run_does_nothing_and_later_tars_make_further_shards() {
    let place = Place::new();
    for (n, name) in ["b.tar", "d.tar", "f.tar"].into_iter().enumerate() {
        place.write(name, &numbered([n as u8]));
    }
    let first = place.run("tars_per_shard = 2");
    assert_eq!(first.ran.keys(), [vec!["laion/00000", "laion/00001"], vec!["laion/00002"]]);
    let second = place.run("tars_per_shard = 2");
    assert_eq!((second.ran.outcome, second.ran.made().len()), (RunOutcome::UpToDate, 0));

    place.write("a.tar", &numbered([10]));
    place.write("e.tar", &numbered([11]));
    let third = place.run("tars_per_shard = 2");
    assert_eq!(third.ran.made(), ["part-00002"]);
    assert_eq!(third.ran.keys()[2], ["laion/00010", "laion/00011"]);
    assert_eq!(third.ran.keys()[..2], first.ran.keys());

    // What was made of them stays as it was, also without the cache.
    std::fs::remove_file(place.folder.path().join("work/stages/out/tars/known.json")).unwrap();
    assert!(place.plan("tars_per_shard = 7").unwrap().is_up_to_date());

    // The dataset moves.
    std::fs::rename(place.path(""), place.folder.path().join("moved")).unwrap();
    let plan = |tars: &str| Plan::new(&place.manifest(tars, "source = \"laion\""), &pipeline::stages::registry());
    assert!(plan("moved").unwrap().is_up_to_date());
    assert!(plan("moved/*.tar").unwrap().is_up_to_date());
    std::fs::rename(place.folder.path().join("moved"), place.path("")).unwrap();

    // One changes.
    place.write("d.tar", &numbered([12]));
    assert_eq!(place.run("tars_per_shard = 2").ran.made(), ["part-00000"]);
}

#[test]
fn patterns_and_lists_say_which_tars_are_meant() {
    let place = Place::new();
    for n in 0..4_u8 {
        place.write(&format!("{n}.tar"), &numbered([n]));
    }
    let plan = |tars: &str| Plan::new(&place.manifest(tars, ""), &pipeline::stages::registry());
    let counts = ["laion", "laion/[01].tar", "laion/?.tar", "laion/2*", "laion/3.tar"].map(|tars| {
        plan(tars).map(|plan| plan.stage("out").unwrap().partitions.len()).map_err(|error| in_words(&error))
    });
    let [all, brackets, any, two, one] = counts;
    assert_eq!([all, any, two, one], [Ok(4), Ok(4), Ok(1), Ok(1)]);
    assert!(brackets.unwrap_err().contains("no tar is at"), "brackets are letters like any other");
    assert!(in_words(&plan("laion/9*").err().unwrap()).contains("laion/9*"));
    assert_eq!(place.plan("limit = 3\ntars_per_shard = 2").unwrap().stage("out").unwrap().partitions.len(), 2);
    assert_eq!(place.run("limit = 2").ran.keys().len(), 2);
}

#[test]
fn tars_are_deleted_once_they_are_shards_and_broken_ones_are_kept() {
    let place = Place::new();
    place.write("a.tar", &numbered([1, 2]));
    let broken = numbered([3, 4]);
    place.write("b.tar", &broken[..broken.len() / 2]);
    place.write("c.tar", &numbered([5]));
    place.write("notes.txt", b"stays");
    let table = "tars_per_shard = 2\ndelete_inputs = true";
    let first = place.run(table);
    assert_eq!(place.there(), ["b.tar", "notes.txt"]);
    assert!(first.notes.iter().any(|note| note.contains("b.tar")), "{:?}", first.notes);
    let second = place.run(table);
    assert_eq!((second.ran.outcome, second.ran.made().len()), (RunOutcome::UpToDate, 0));
    assert_eq!(second.ran.keys(), [vec!["laion/00001", "laion/00002", "laion/00003"], vec!["laion/00005"]]);
    assert!(place.plan("").unwrap().is_up_to_date(), "it is remembered without delete_inputs too");

    place.write("d.tar", &numbered([6]));
    let third = place.run(table);
    assert_eq!(third.ran.made(), ["part-00002"]);
    assert_eq!(place.there(), ["b.tar", "notes.txt"]);

    // What is gone cannot be made another way, and what was made of it is kept.
    let registry = pipeline::stages::registry();
    let failed = drive(place.plan("tars_per_shard = 2\ncheck = \"header\"").unwrap()).err().unwrap();
    assert!(failed.contains("is gone"), "{failed}");
    let force = Selection { force: true, ..Selection::default() };
    let forced = Plan::select(&place.manifest("laion", table), &registry, &force).unwrap();
    assert!(drive(forced).err().unwrap().contains("is gone"));
    let after = place.run(table);
    assert_eq!((after.ran.outcome, after.ran.keys().concat().len()), (RunOutcome::UpToDate, 5));
}

#[test]
fn a_run_deletes_what_an_earlier_one_committed_and_left() {
    let place = Place::new();
    for n in 0..3 {
        place.write(&format!("{n}.tar"), &numbered([n]));
    }
    // As if the process had ended between each commit and what follows it.
    let first = place.run("");
    assert_eq!(place.there().len(), 3);
    // One was written again since, and of one the shard is damaged.
    let touched = std::fs::File::options().append(true).open(place.path("1.tar")).unwrap();
    touched.set_modified(SystemTime::now() + Duration::from_mins(1)).unwrap();
    let stage = first.ran.plan.stage("out").unwrap();
    let shard = stage.fetch(&stage.committed().nth(2).unwrap().data[0]).unwrap();
    let good = std::fs::read(&shard).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(&shard, &bad).unwrap();
    let failed = drive(place.plan("delete_inputs = true").unwrap()).err().unwrap();
    assert!(failed.contains("is not what was committed"), "{failed}");
    assert_eq!(place.there(), ["1.tar", "2.tar"]);
    std::fs::write(&shard, &good).unwrap();
    let second = place.run("delete_inputs = true");
    assert_eq!((second.ran.outcome, place.there()), (RunOutcome::UpToDate, vec!["1.tar".to_owned()]));
    assert!(second.notes.iter().any(|note| note.contains("1.tar was touched")), "{:?}", second.notes);
}

#[test]
fn a_rehearsal_takes_a_few_samples_and_deletes_nothing() {
    let place = Place::new();
    for n in 0..6 {
        place.write(&format!("{n}.tar"), &numbered(10 * n..10 * n + 8));
    }
    let registry = pipeline::stages::registry();
    let manifest = place.manifest("laion", "delete_inputs = true");
    let done = drive(Plan::rehearsal(&manifest, &registry, &Selection::default(), 8).unwrap()).unwrap();
    assert_eq!(done.rows(), (8, 8));
    assert_eq!(place.there().len(), 6);
}

#[test]
fn a_tar_that_another_run_divided_otherwise_is_in_no_two_shards() {
    let place = Place::new();
    for name in ["b.tar", "c.tar"] {
        place.write(name, &numbered([name.as_bytes()[0]]));
    }
    let early = place.plan("tars_per_shard = 2").unwrap();
    place.write("a.tar", &numbered([1]));
    place.run("tars_per_shard = 2");
    let failed = drive(early).err().unwrap();
    assert!(failed.contains("run again"), "{failed}");
    let again = place.run("tars_per_shard = 2");
    assert_eq!((again.ran.outcome, again.rows()), (RunOutcome::UpToDate, (3, 3)));
}
