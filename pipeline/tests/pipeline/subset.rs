//! `subset` through the engine: what is chosen follows from keys and seed alone, and only what changed is made again.

use shards::event::RunOutcome;

use crate::samples::{Place, Sample, tiled};

fn partitions(sizes: &[usize]) -> Vec<Vec<Sample>> {
    let mut next = 0..;
    sizes.iter().map(|size| next.by_ref().take(*size).map(tiled).collect()).collect()
}

fn sorted(mut keys: Vec<String>) -> Vec<String> {
    keys.sort();
    keys
}

#[test]
fn a_fraction_needs_no_survey_and_counts_as_no_loss() {
    let place = Place::new();
    let rows = partitions(&[60, 0, 140]);
    place.write_all(&rows);
    let ran = place.run("uses = \"subset\"\nfraction = 0.1\nfail_if = { success_below = 0.9 }");
    assert_eq!(ran.outcome, RunOutcome::Done, "nine tenths are left out, and nothing is lost");
    assert_eq!(ran.made(), ["part-00000", "part-00001", "part-00002"]);
    let (rows_in, rows_out, left_out) = ran.counts("not_sampled");
    assert_eq!((rows_in, rows_out + left_out), (200, 200));
    assert!((8..=34).contains(&rows_out), "{rows_out}");
    assert_eq!(ran.quarantine(), Vec::<[String; 3]>::new());
    let of = |n: usize| tiled(n).image;
    for (key, image) in ran.images().concat() {
        assert_eq!(image, of(key.trim_start_matches("src/").parse().unwrap()), "{key}");
    }
    let more = place.run("uses = \"subset\"\nfraction = 0.3").keys().concat();
    assert!(ran.keys().concat().iter().all(|key| more.contains(key)));
    assert_eq!(place.run("uses = \"subset\"\nfraction = 1.0").keys().concat().len(), 200);
    assert!(place.run("uses = \"subset\"\nfraction = 0.3\nseed = 1").keys().concat() != more);
}

#[test]
fn the_same_rows_are_chosen_however_they_lie() {
    let all = partitions(&[120]).concat();
    let chosen = |rows: &[Vec<Sample>], table: &str, cores| {
        let place = Place::new();
        place.write_all(rows);
        sorted(place.try_run(table, cores).unwrap().keys().concat())
    };
    let mut turned = all.clone();
    turned.reverse();
    let split: Vec<Vec<Sample>> = turned.chunks(17).map(<[_]>::to_vec).collect();
    for table in ["limit = 25", "fraction = 0.2", "fraction = 0.5\nlimit = 30\nseed = 9"] {
        let table = format!("uses = \"subset\"\n{table}");
        let expected = chosen(std::slice::from_ref(&all), &table, 1);
        assert_eq!(chosen(&split, &table, 2), expected, "{table}");
        assert!(!expected.is_empty());
    }
    let limited = chosen(&split, "uses = \"subset\"\nlimit = 25", 2);
    assert_eq!(limited.len(), 25);
    let larger = chosen(&split, "uses = \"subset\"\nlimit = 40", 2);
    assert!(limited.iter().all(|key| larger.contains(key)));
    let both = chosen(&split, "uses = \"subset\"\nfraction = 0.5\nlimit = 25", 2);
    assert_eq!(both, limited, "the smallest lots are in the fraction");
    assert_eq!(chosen(&split, "uses = \"subset\"\nlimit = 1000", 2).len(), 120);
}

#[test]
fn one_more_partition_makes_only_those_again_that_lose_a_row_to_it() {
    let place = Place::new();
    let rows = partitions(&[3, 3, 200, 3]);
    place.write_all(&rows[..3]);
    let table = "uses = \"subset\"\nlimit = 20";
    let before = place.run(table);
    assert_eq!(before.made(), ["part-00000", "part-00001", "part-00002", "part-survey"]);
    assert_eq!(before.counts("not_sampled"), (206, 20, 186));
    place.write_all(&rows);
    let after = place.run(table);
    let keys = (before.keys(), after.keys());
    let changed = (0..3).filter(|n| keys.0[*n] != keys.1[*n]).chain([3]);
    let mut expected: Vec<String> = changed.map(|n| format!("part-{n:05}")).collect();
    assert!(expected.len() < 4, "{expected:?}");
    expected.push("part-survey".to_owned());
    assert_eq!(after.made(), expected);
    assert_eq!(after.counts("not_sampled"), (209, 20, 189));
    assert_eq!(place.run(table).outcome, RunOutcome::UpToDate);
}

#[test]
fn bytes_do_not_depend_on_cores() {
    let digests = |cores| {
        let place = Place::new();
        place.write_all(&partitions(&[40, 30, 50]));
        place.try_run("uses = \"subset\"\nlimit = 33", cores).unwrap().digests()
    };
    assert_eq!(digests(1), digests(2));
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place() {
    let place = Place::new();
    place.write_all(&partitions(&[3]));
    for (table, words) in [
        ("", "nothing says how many rows to choose"),
        ("fraction = 1.5", "test.toml:10: in [stage.out], fraction = 1.5"),
        ("fraction = 0.0", "fraction = 0"),
        ("fraction = -0.5", "fraction = -0.5"),
        ("fraction = nan", "fraction"),
        ("limit = 0", "limit = 0"),
        ("limit = -4", "limit"),
        ("fracton = 0.1", "did you mean `fraction`"),
    ] {
        let error = place.refusal(&format!("uses = \"subset\"\n{table}"));
        assert!(error.contains(words), "{table}: {error}");
    }
}
