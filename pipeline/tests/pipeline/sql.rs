//! `sql` through the engine: what a SELECT gives, with images as they were, each in its own shard.

use std::collections::BTreeMap;

use arrow::array::{Float64Array, Int64Array, UInt64Array};
use arrow::datatypes::DataType;
use proptest::prelude::*;
use shards::event::RunOutcome;

use crate::samples::{Columns, Place, Sample, tiled};

fn table(query: &str) -> String {
    format!("uses = \"sql\"\nquery = '''{query}'''")
}

/// Rows whose captions repeat every `captions` rows, in partitions of the given sizes.
fn partitions(sizes: &[usize], captions: usize) -> Vec<Vec<Sample>> {
    let mut next = 0..;
    let row = |n| Sample { caption: format!("caption {}", n % captions), ..tiled(n) };
    sizes.iter().map(|size| next.by_ref().take(*size).map(row).collect()).collect()
}

fn place(sizes: &[usize], captions: usize) -> (Place, Vec<Vec<Sample>>) {
    let place = Place::new();
    let rows = partitions(sizes, captions);
    place.write_all(&rows);
    (place, rows)
}

/// Keys and images of the rows that `stays` keeps.
fn kept(rows: &[Vec<Sample>], stays: impl Fn(&Sample) -> bool) -> Vec<Vec<(String, Vec<u8>)>> {
    let of = |rows: &Vec<Sample>| {
        rows.iter().filter(|row| stays(row)).map(|row| (row.key.clone(), row.image.clone())).collect()
    };
    rows.iter().map(of).collect()
}

#[test]
fn a_filter_runs_on_each_partition_by_itself() {
    let (place, rows) = place(&[5, 0, 9], 3);
    let ran = place.run(&table("SELECT * FROM input WHERE width > 9 AND caption <> 'caption 1'"));
    assert_eq!(ran.made(), ["part-00000", "part-00001", "part-00002"]);
    assert_eq!(ran.images(), kept(&rows, |row| row.width > 9 && row.caption != "caption 1"));
    let (rows_in, rows_out, dropped) = ran.counts("not_selected");
    assert_eq!((rows_in, rows_out + dropped), (14, 14));
    assert_eq!(ran.outcome, RunOutcome::DoneWithLosses, "a filter's losses are losses");
    assert_eq!(ran.quarantine(), Vec::<[String; 3]>::new());
    let failing = table("SELECT * FROM input WHERE width > 1000") + "\nfail_if = { success_below = 0.5 }";
    assert!(place.failure(&failing).contains("not_selected"));
}

#[test]
fn columns_are_chosen_computed_and_left_out() {
    let (place, rows) = place(&[4, 3], 3);
    let query = "SELECT i.caption || '!' AS caption, image, key, width * height AS area, width / 2.0 AS half, NULL AS nothing \
                 FROM input AS i WHERE key <> 'src/00002'";
    let ran = place.run(&table(query));
    assert_eq!(ran.images(), kept(&rows, |row| row.key != "src/00002"));
    for (shard, batch) in ran.batches() {
        let names: Vec<&str> = shard.schema().fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(names, ["caption", "image", "key", "area", "half", "nothing", "checksum"]);
        assert!(shard.text(&batch, "caption").unwrap().iter().all(|text| text.unwrap().ends_with('!')));
        assert!(shard.text(&batch, "nothing").unwrap().iter().all(|text| text.is_none()));
        assert_eq!(shard.typed::<Float64Array>(&batch, "half", "float64").unwrap().len(), batch.num_rows());
        assert!(shard.schema().field_with_name("area").unwrap().data_type().is_integer());
    }
    let without = place.run(&table("SELECT key, width FROM input"));
    assert!(without.batches().iter().all(|(shard, _)| shard.schema().fields().len() == 2));
    assert_eq!(without.counts("not_selected"), (7, 7, 0));
    let excluded = place.run(&table("SELECT * EXCLUDE (image, url) FROM (SELECT *, 'u' AS url FROM input)"));
    assert_eq!(excluded.keys(), without.keys());
}

#[test]
fn queries_over_the_whole_leave_each_row_in_its_shard() {
    let (place, rows) = place(&[4, 0, 5, 6], 4);
    let all = rows.concat();
    // The first of each caption, over all shards.
    let first = "SELECT * EXCLUDE (n) FROM (SELECT *, row_number() OVER (PARTITION BY caption ORDER BY key DESC) AS n FROM input) \
                 WHERE n = 1";
    let ran = place.run(&table(first));
    assert_eq!(ran.made(), ["part-00000", "part-00001", "part-00002", "part-00003", "part-survey"]);
    assert_eq!(ran.images(), kept(&rows, |row| all[11..].contains(row)), "the last four keys");
    assert_eq!(ran.counts("not_selected"), (15, 4, 11));

    let largest = place.run(&table("SELECT key, image, width FROM input ORDER BY width DESC, key LIMIT 5"));
    let mut order = all.clone();
    order.sort_by(|a, b| (b.width, &a.key).cmp(&(a.width, &b.key)));
    assert_eq!(largest.images(), kept(&rows, |row| order[..5].contains(row)));

    let counted = "SELECT i.key, i.image, n FROM input i JOIN (SELECT caption, count(*) AS n FROM input GROUP BY caption) c \
                   ON i.caption = c.caption";
    for (shard, batch) in place.run(&table(counted)).batches() {
        let counts: &Int64Array = shard.typed(&batch, "n", "int64").unwrap();
        assert!(counts.values().iter().all(|n| *n == 3 || *n == 4));
    }
    let inside = place.run(&table("SELECT key FROM input WHERE key IN (SELECT max(key) FROM input GROUP BY caption)"));
    assert_eq!(inside.keys(), ran.keys());
    let distinct = place.run(&table("SELECT DISTINCT key, caption FROM input WHERE width > 9"));
    assert_eq!(distinct.keys(), place.run(&table("SELECT key FROM input WHERE width > 9")).keys());
    let both =
        place.run(&table("SELECT * FROM input WHERE width > 10 UNION ALL SELECT * FROM input WHERE width <= 10"));
    assert_eq!(both.images(), kept(&rows, |_| true));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ranks_are_those_of_a_model(sizes in prop::collection::vec(0..9usize, 1..5), captions in 1..6usize, best in 1..4usize) {
        let (place, rows) = place(&sizes, captions);
        let query = format!(
            "SELECT key, image, rank FROM (SELECT *, row_number() OVER (PARTITION BY caption ORDER BY width DESC, key) AS rank \
             FROM input) WHERE rank <= {best}"
        );
        let mut groups: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
        rows.concat().into_iter().for_each(|row| groups.entry(row.caption.clone()).or_default().push(row));
        let mut chosen = Vec::new();
        for group in groups.values_mut() {
            group.sort_by(|a, b| (b.width, &a.key).cmp(&(a.width, &b.key)));
            chosen.extend(group.iter().take(best).cloned());
        }
        let ran = place.run(&table(&query));
        prop_assert_eq!(ran.images(), kept(&rows, |row| chosen.contains(row)));
        for (shard, batch) in ran.batches() {
            let ranks: &UInt64Array = shard.typed(&batch, "rank", "uint64").unwrap();
            prop_assert!(ranks.values().iter().all(|rank| (1..=best as u64).contains(rank)));
        }
    }
}

#[test]
fn one_more_partition_makes_only_those_again_whose_rows_changed() {
    let place = Place::new();
    let rows = partitions(&[4, 4, 2], 6);
    place.write_all(&rows[..2]);
    let query = table("SELECT * FROM input WHERE key IN (SELECT max(key) FROM input GROUP BY caption)");
    let before = place.run(&query);
    assert_eq!(before.keys().concat().len(), 6);
    place.write_all(&rows);
    // Captions 2 and 3 of rows 8 and 9 take the place of those of rows 2 and 3.
    let after = place.run(&query);
    assert_eq!(after.made(), ["part-00000", "part-00002", "part-survey"]);
    assert_eq!(after.keys().iter().map(Vec::len).collect::<Vec<_>>(), [0, 4, 2]);
    assert_eq!(place.run(&query).made(), Vec::<&str>::new());
    // Memory is how, not what.
    assert_eq!(place.run(&format!("{query}\nmemory = \"64 MB\"")).made(), Vec::<&str>::new());
}

#[test]
fn bytes_do_not_depend_on_cores() {
    let digests = |query: &str, cores| {
        let (place, _) = place(&[7, 5, 8], 4);
        place.try_run(&table(query), cores).unwrap().digests()
    };
    for query in [
        "SELECT *, upper(caption) AS loud FROM input WHERE width > 8",
        "SELECT *, count(*) OVER (PARTITION BY caption) AS n FROM input",
        "SELECT key, image FROM input ORDER BY caption, key LIMIT 11",
    ] {
        assert_eq!(digests(query, 1), digests(query, 2), "{query}");
    }
}

#[test]
fn what_exceeds_the_memory_goes_to_disk() {
    let place = Place::new();
    let rows: Vec<Sample> = (0..300_000)
        .map(|n: usize| Sample {
            caption: format!("a caption that is long enough to fill memory, number {}", n * 7919 % 300_000),
            image: vec![1],
            sha256: None,
            ..Sample::new(&format!("src/{n:09}"), Vec::new(), (n as u32 % 97 + 1, 5))
        })
        .collect();
    let chunks: Vec<Vec<Sample>> = rows.chunks(100_000).map(<[_]>::to_vec).collect();
    place.write_all(&chunks);
    let query = table(
        "SELECT * EXCLUDE (n) FROM (SELECT *, row_number() OVER (PARTITION BY width ORDER BY caption, key) AS n FROM input) \
         WHERE n <= 1000",
    );
    let small = place.run(&format!("{query}\nmemory = \"8 MB\""));
    let spilled = small.survey().details["spilled_bytes"].as_u64().unwrap();
    assert!(spilled > 8_000_000, "{spilled} bytes");
    assert_eq!(small.counts("not_selected"), (300_000, 97_000, 203_000));
    let mut groups: BTreeMap<u32, Vec<&Sample>> = BTreeMap::new();
    for row in &rows {
        groups.entry(row.width).or_default().push(row);
    }
    let mut expected: Vec<String> = Vec::new();
    for group in groups.values_mut() {
        group.sort_by(|a, b| (&a.caption, &a.key).cmp(&(&b.caption, &b.key)));
        expected.extend(group.iter().take(1000).map(|row| row.key.clone()));
    }
    expected.sort();
    assert!(small.keys().concat() == expected);
    // Grouping spills as well, and so does a result without any images.
    let grouped = table("SELECT min(key) AS key, caption FROM input GROUP BY caption") + "\nmemory = \"8 MB\"";
    let grouped = place.run(&grouped);
    assert!(grouped.survey().details["spilled_bytes"].as_u64().unwrap() > 0);
    assert_eq!(grouped.counts("not_selected"), (300_000, 300_000, 0));
    let error = place
        .failure(&(table("SELECT a.key FROM input a JOIN input b ON a.caption = b.caption") + "\nmemory = \"1 MB\""));
    assert!(error.contains("give the stage more"), "{error}");
}

#[test]
fn a_row_may_come_out_once_and_no_other_may_come() {
    let (place, _) = place(&[3, 3], 2);
    for (query, words) in [
        ("SELECT key FROM input UNION ALL SELECT key FROM input", "the key src/00000 more than once"),
        ("SELECT a.key FROM input a JOIN input b ON a.caption = b.caption", "the key src/00000 more than once"),
        ("SELECT key || '/2' AS key FROM input", "/2, which no row of the input has"),
        ("SELECT CAST(NULL AS VARCHAR) AS key FROM input", "the key null"),
        ("SELECT width AS key FROM input", "key is UInt32"),
        ("SELECT a.key, b.image FROM input a JOIN input b ON a.width = b.width + 1", "beside the image of another row"),
        ("SELECT key, wdith FROM input", "wdith"),
        ("SELECT key FROM input WHERE wdith > 3", "columns of input: key, image, caption, width, height, sha256"),
        ("SELECT * EXCLUDE (key) FROM input", "no column key"),
        ("SELECT a.key, b.caption, b.key FROM input a JOIN input b ON a.key = b.key", "two columns key"),
        ("WITH t(key, picture) AS (SELECT key, image FROM input) SELECT * FROM t", "images keep their name"),
        ("SELECT key, lag(caption) OVER (ORDER BY key) + 1 AS n FROM input", "query: "),
    ] {
        let error = place.failure(&table(query));
        assert!(error.contains(words), "{query}: {error}");
    }
    let twice = Place::new();
    twice.write_all(&[vec![tiled(1), tiled(2)], vec![tiled(2)]]);
    let error = twice.failure(&table("SELECT min(key) AS key FROM input GROUP BY key"));
    assert!(error.contains("several rows of the input have the key src/00002"), "{error}");
}

#[test]
fn shards_must_have_the_columns_that_are_asked_for() {
    let place = Place::new();
    place.write(0, &[tiled(0)], Columns::All);
    place.write(1, &[tiled(1)], Columns::WithoutSize);
    let error = place.failure(&table("SELECT key FROM input ORDER BY key"));
    assert!(error.contains("a query needs all alike") && error.contains("width (UInt32)"), "{error}");
    let by_row = place.failure(&table("SELECT key FROM input WHERE width > 0"));
    assert!(by_row.contains("No field named width") && by_row.contains("columns of input: key"), "{by_row}");
}

#[test]
fn what_is_no_query_over_the_input_is_refused_with_its_place() {
    let place = Place::new();
    place.write(0, &[tiled(0)], Columns::All);
    for (query, words) in [
        ("SELECT * FROM input; DROP TABLE input", "2 statements"),
        ("DELETE FROM input", "DELETE"),
        ("SELECT key, octet_length(image) AS n FROM input", "octet_length(image)"),
        ("SELECT key FROM inptu", "no table inptu"),
        ("SELEC key", "query cannot be run"),
    ] {
        let error = place.refusal(&table(query));
        assert!(error.contains(words) && error.contains("test.toml:10"), "{query}: {error}");
    }
    assert!(place.refusal("uses = \"sql\"").contains("missing key `query`"));
    assert_eq!(place.run(&table("SELECT * FROM input")).batches()[0].0.schema().field(0).data_type(), &DataType::Utf8);
}
