//! `merge` and `union` over imported tables: each picture with its own captions, wherever they lie.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Mutex;

use proptest::prelude::*;
use serde_json::json;
use shards::event::Event;

use super::*;

const SAMPLES: &str = "[stage.samples]\nuses = \"import\"\nfiles = \"FOLDER/samples\"\nsource = \"s\"\n\
                       columns = { key = \"id\", image = \"image\", caption = \"conversations[1].value\" }\n";
const TABLE: &str = "[stage.table]\nuses = \"import\"\nfiles = \"FOLDER/table\"\nsource = \"s\"\n\
                     columns = { key = \"key\", recaption = \"long\", recaption_short = \"short\" }\n";

fn merge(keys: &str) -> String {
    format!("{SAMPLES}{TABLE}[stage.out]\nuses = \"merge\"\nfrom = [\"samples\", \"table\"]\n{keys}")
}

impl Place {
    /// Samples in files, by their numbers.
    fn samples(&self, files: &[&[i64]]) {
        for (n, ids) in files.iter().enumerate() {
            let rows: Vec<Row> = ids.iter().map(|id| row(*id)).collect();
            write_parquet(&self.path(&format!("samples/{n}.parquet")), &rows);
        }
    }

    /// A file of the table: keys with a long and a short caption.
    fn table(&self, n: usize, rows: &[(i64, Option<&str>, Option<&str>)]) {
        let line = |(key, long, short): &(i64, Option<&str>, Option<&str>)| {
            format!("{}\n", json!({ "key": key.to_string(), "long": long, "short": short }))
        };
        self.write(&format!("table/{n}.jsonl"), rows.iter().map(line).collect::<String>());
    }
}

/// What `verify` finds.
fn problems(ran: &Ran) -> Vec<String> {
    let found = pipeline::verify::verify(&ran.plan, &Cancel::default(), |_| {}).unwrap();
    found.findings.into_iter().map(|finding| finding.problem).collect()
}

/// A table whose rows lie in another order than the samples'.
fn six(place: &Place) {
    place.samples(&[&[1, 2, 3], &[4, 5, 6]]);
    place.table(0, &[(5, Some("long 5"), Some("short 5\n")), (1, Some("long 1"), Some("short 1"))]);
    place.table(
        1,
        &[
            (6, Some("long 6"), Some("")),
            (9, Some("nobody's"), None),
            (3, Some("An image"), Some("short 3")),
            (2, Some("long 2"), None),
        ],
    );
}

const CAPTIONS: &str = "columns = [\"recaption\", \"recaption_short\"]\nfallback = { recaption = \"caption\" }\n\
                        treat_as_missing = [\"An image\"]\n";

#[test]
fn captions_find_their_pictures_and_what_is_missing_has_a_fallback() {
    let place = Place::new();
    six(&place);
    let ran = place.try_run(&merge(CAPTIONS)).unwrap();
    assert_eq!(ran.keys(), [["s/1", "s/2", "s/3"], ["s/4", "s/5", "s/6"]]);
    assert_eq!(texts(&ran, "recaption"), some(&["long 1", "long 2", "a tile", "a tile", "long 5", "long 6"]));
    let short = [Some("short 1"), None, Some("short 3"), None, Some("short 5"), None];
    assert_eq!(texts(&ran, "recaption_short"), short.map(|text| text.map(str::to_owned)));
    let images: Vec<Vec<u8>> = ran.images().concat().into_iter().map(|(_, image)| image).collect();
    assert_eq!(images, (1..7).map(tile).collect::<Vec<_>>());
    let counted = observed(&ran);
    assert_eq!((counted["matched"], counted["unmatched"], counted["texts by a fallback"]), (5, 1, 2));
    let finished = serde_json::to_value(ran.plan.stage("out").unwrap().finished(false, 0.0)).unwrap();
    assert_eq!(finished["law"], json!("6 in = 5 matched + 1 unmatched"));
    assert_eq!(ran.survey().details["rows_of_the_table_without_a_sample"], json!(1));
    assert_eq!(problems(&ran), Vec::<String>::new());
}

#[test]
fn neither_the_order_of_the_table_nor_memory_changes_a_byte() {
    let digests = |turn: usize, memory: &str| {
        let place = Place::new();
        let ids: Vec<i64> = (0..4000).collect();
        place.samples(&[&ids[..2500], &ids[2500..]]);
        let texts: Vec<String> = ids.iter().map(|id| format!("{id} {}", "long caption ".repeat(60))).collect();
        let rows = ids.iter().zip(&texts).filter(|(id, _)| *id % 7 != 0);
        let mut rows: Vec<_> =
            rows.map(|(id, text)| (id * 7919 % 4001, (*id, Some(text.as_str()), Some("s")))).collect();
        rows.sort_unstable_by_key(|(order, _)| *order);
        let mut rows: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
        rows.rotate_left(turn);
        place.table(0, &rows[..1000]);
        place.table(1, &rows[1000..]);
        let ran = place.try_run(&merge(&format!("columns = [\"recaption\"]\nmemory = \"{memory}\"\n"))).unwrap();
        assert_eq!(observed(&ran)["matched"], 3428);
        let spilled = ran.survey().details["spilled_bytes"].as_u64().unwrap();
        (ran.digests(), spilled)
    };
    let (first, nothing) = digests(0, "1 GB");
    let (other, much) = digests(1717, "3 MB");
    assert_eq!(first, other);
    assert!(nothing == 0 && much > 1_000_000, "{nothing} {much}");
}

#[test]
fn pictures_without_a_caption_may_be_refused_or_end_the_run() {
    let place = Place::new();
    six(&place);
    let ran = place.try_run(&merge("unmatched = \"drop\"\n")).unwrap();
    assert_eq!(ran.keys(), [vec!["s/1", "s/2", "s/3"], vec!["s/5", "s/6"]]);
    assert_eq!(reasons(&ran), [("s/4".to_owned(), "unmatched".to_owned())]);
    assert_eq!(names(&ran).last().map(String::as_str), Some("recaption_short"), "all columns but its key");
    let failed = place.try_run(&merge("unmatched = \"fail\"\n")).err().unwrap();
    assert!(failed.contains("the sample s/4 (part-00001, row 0) is not named by the table"), "{failed}");
}

#[test]
fn a_key_that_the_table_has_twice_is_named_with_both_its_places() {
    let place = Place::new();
    six(&place);
    place.table(2, &[(8, Some("x"), None), (5, Some("again"), None)]);
    let failed = place.try_run(&merge("")).err().unwrap();
    assert!(failed.contains("the table has the key s/5 twice"), "{failed}");
    assert!(failed.contains("row 0 of table/part-00000") && failed.contains("row 1 of table/part-00002"), "{failed}");
}

#[test]
fn a_table_that_names_no_sample_is_told_of_with_a_key_of_each_side() {
    let place = Place::new();
    six(&place);
    let told = |stages: &str| {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = EventSink::new({
            let told = Arc::clone(&told);
            move |event| {
                if let Event::Note { text, .. } = event {
                    told.lock().unwrap().push(text);
                }
            }
        });
        let mut plan = place.plan(stages).unwrap();
        run(&mut plan, &Options { cores: 2, ..Options::default() }, &sink, &Cancel::default()).unwrap();
        let told = std::mem::take(&mut *told.lock().unwrap());
        told.into_iter().filter(|text| text.contains("names none of the samples")).collect::<Vec<_>>()
    };
    assert_eq!(told(&merge("")), [""; 0]);
    let other = merge("").replacen("source = \"s\"", "source = \"other\"", 1);
    let [text] = &told(&other)[..] else { panic!("one note") };
    assert!(text.contains("their first key is other/1, and its first key is s/5."), "{text}");
    assert!(text.contains("`source`") && text.contains("on = { SAMPLES_COLUMN = "), "{text}");
}

#[test]
fn only_what_another_caption_concerns_is_made_again() {
    let place = Place::new();
    six(&place);
    let first = place.try_run(&merge(CAPTIONS)).unwrap();
    assert_eq!(first.made(), ["part-00000", "part-00001", "part-survey"]);
    assert_eq!(place.try_run(&merge(CAPTIONS)).unwrap().made(), Vec::<&str>::new());
    place.table(0, &[(5, Some("another 5"), None), (1, Some("long 1"), Some("short 1"))]);
    assert_eq!(place.try_run(&merge(CAPTIONS)).unwrap().made(), ["part-00001", "part-survey"]);
    // More of the table that names nobody, and more samples.
    place.table(2, &[(77, Some("nobody's"), None)]);
    assert_eq!(place.try_run(&merge(CAPTIONS)).unwrap().made(), ["part-survey"]);
    write_parquet(&place.path("samples/2.parquet"), &[row(77)]);
    let more = place.try_run(&merge(CAPTIONS)).unwrap();
    assert_eq!(more.made(), ["part-00002", "part-survey"]);
    assert_eq!(texts(&more, "recaption").last().unwrap().as_deref(), Some("nobody's"));
}

#[test]
fn what_does_not_fit_is_named() {
    let place = Place::new();
    six(&place);
    for (keys, expected) in [
        ("columns = [\"long\"]", "the table have no column long; they have key, recaption, recaption_short"),
        ("on = { ident = \"key\" }", "the samples have no column ident"),
        ("on = { image = \"key\" }", "the column image of the samples is Binary; keys are texts or whole numbers"),
        ("columns = { caption = \"recaption\" }", "the samples have a column caption already"),
        ("fallback = { recaption = \"width\" }", "recaption is Utf8, but width is UInt32"),
    ] {
        let failed = place.try_run(&merge(keys)).err().unwrap();
        assert!(failed.contains(expected), "{keys}: {failed}");
    }
    let replaced = place.try_run(&merge("columns = { caption = \"recaption\" }\nreplace = true")).unwrap();
    assert_eq!(texts(&replaced, "caption")[..2], some(&["long 1", "long 2"]));
    // Numbers are compared with texts as they are written.
    let by_number = place.try_run(
        &merge("on = { id = \"number\" }").replace("recaption = \"long\"", "number = \"key\", recaption = \"long\""),
    );
    assert_eq!(observed(&by_number.unwrap())["matched"], 5);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_merge_is_a_look_up(
        samples in prop::collection::vec(prop::collection::btree_set(0..40_i64, 0..12), 1..4),
        table in prop::collection::vec(prop::collection::btree_map(0..60_i64, 0..9_u8, 0..15), 1..4),
    ) {
        let place = Place::new();
        // A key is there once in the table; of samples it may be in several files.
        let mut said: BTreeMap<i64, String> = BTreeMap::new();
        for (n, rows) in table.iter().enumerate() {
            let new: Vec<(i64, String)> = rows.iter().filter(|(key, _)| !said.contains_key(*key)).map(|(k, v)| (*k, format!("t{v}"))).collect();
            let lines: Vec<_> = new.iter().rev().map(|(key, text)| (*key, Some(text.as_str()), None)).collect();
            place.table(n, &lines);
            said.extend(new);
        }
        let files: Vec<Vec<i64>> = samples.iter().map(|ids| ids.iter().copied().collect()).collect();
        place.samples(&files.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let ran = place.try_run(&merge("columns = [\"recaption\"]"));
        if said.is_empty() {
            // A table without rows has no columns either.
            return Ok(());
        }
        let expected: Vec<Option<String>> = files.concat().iter().map(|id| said.get(id).cloned()).collect();
        prop_assert_eq!(texts(&ran.unwrap(), "recaption"), expected);
    }
}

const MORE: &str = "[stage.more]\nuses = \"import\"\nfiles = \"FOLDER/more\"\nsource = \"m\"\n\
                    columns = { key = \"id\", image = \"image\", caption = \"license\" }\n";
const UNION: &str = "[stage.out]\nuses = \"union\"\nfrom = [\"samples\", \"more\"]\n";

#[test]
fn sources_become_one_and_one_more_file_renames_nothing() {
    let place = Place::new();
    place.samples(&[&[1, 2], &[3]]);
    write_parquet(&place.path("more/0.parquet"), &[row(1), row(9)]);
    let stages = format!("{SAMPLES}{MORE}keep = [\"license\"]\nconstants = {{ class = \"more\" }}\n{UNION}");
    let ran = place.try_run(&stages).unwrap();
    assert_eq!(ran.made(), ["part-more-00000", "part-samples-00000", "part-samples-00001", "part-survey"]);
    assert_eq!(ran.keys(), [vec!["s/1", "s/2"], vec!["s/3"], vec!["m/1", "m/9"]]);
    let class = [None, None, None, Some("more"), Some("more")];
    assert_eq!(texts(&ran, "class"), class.map(|text| text.map(str::to_owned)));
    assert_eq!(counts(&ran), (5, 5, BTreeMap::new()));
    let images: Vec<Vec<u8>> = ran.images().concat().into_iter().map(|(_, image)| image).collect();
    assert_eq!(images, [1, 2, 3, 1, 9].map(tile));
    write_parquet(&place.path("samples/2.parquet"), &[row(4)]);
    let again = place.try_run(&stages).unwrap();
    assert_eq!(again.made(), ["part-samples-00002", "part-survey"]);
    assert_eq!(problems(&again), Vec::<String>::new());
}

#[test]
fn shards_that_are_alike_are_linked_and_not_written() {
    let place = Place::new();
    place.samples(&[&[1, 2]]);
    write_parquet(&place.path("more/0.parquet"), &[row(1)]);
    let ran = place.try_run(&format!("{SAMPLES}{MORE}{UNION}")).unwrap();
    let file = |stage: &str, n: usize| {
        let stage = ran.plan.stage(stage).unwrap();
        let data = stage.data_of(None)[n].clone();
        let path = stage.fetch(&data).unwrap();
        (std::fs::metadata(path).unwrap().ino(), data.digest)
    };
    assert_eq!(file("out", 0), file("samples", 0));
    assert_eq!(file("out", 1), file("more", 0));
}

#[test]
fn sources_that_cannot_be_one_say_why() {
    let place = Place::new();
    place.samples(&[&[1, 2]]);
    write_parquet(&place.path("more/0.parquet"), &[row(7), row(2)]);
    let same = format!("{SAMPLES}{MORE}{UNION}").replace("source = \"m\"", "source = \"s\"");
    let failed = place.try_run(&same).err().unwrap();
    assert!(failed.contains("the key s/2 is in samples/part-00000 and in more/part-00000"), "{failed}");
    let kinds = format!("{SAMPLES}constants = {{ id2 = \"x\" }}\n{MORE}keep = {{ id2 = \"number\" }}\n{UNION}");
    let kinds = kinds
        .replace("keep = { id2 = \"number\" }", "")
        .replace("caption = \"license\" }", "caption = \"license\", id2 = \"id\" }");
    let failed = place.try_run(&kinds).err().unwrap();
    assert!(failed.contains("the column id2 is Int64 in more, but Utf8 in samples"), "{failed}");
    let without = place.try_run(&format!("{kinds}columns = [\"caption\"]\n")).unwrap();
    assert_eq!(names(&without), ["key", "image", "caption", "checksum"]);
    let failed = place.try_run(&format!("{kinds}columns = [\"recaption\"]\n")).err().unwrap();
    assert!(failed.contains("recaption is a column of none of the stages; they have key, image,"), "{failed}");
}
