//! What is wrong with a list is said with its name, its line, and what to do.

use super::*;

/// The error of planning with a list of this content; `check` may find it before.
fn error_of(name: &str, content: &[u8], columns: ColumnNames) -> ListError {
    let (_folder, lists, stage) = folders();
    write(&lists.join(name), content);
    list(lists.join(name), columns, 3).partitions(&stage).unwrap_err()
}

fn says(error: &ListError, words: &[&str]) {
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn a_missing_list_or_column_is_named_with_the_nearest() {
    let (_folder, lists, stage) = folders();
    let error = list(lists.join("urls.csv"), columns(), 3).check().unwrap_err();
    assert!(error.is_absent() && !error.is_about_columns());
    says(&error, &["urls.csv"]);
    parquet(&lists.join("l.parquet"), &[("url", vec![]), ("captions", vec![]), ("score", vec![])]);
    write(&lists.join("l.csv"), "url,captions,score\n");
    write(&lists.join("l.tsv"), "url\tcaptions\tscore\n");
    for name in ["l.parquet", "l.csv", "l.tsv"] {
        for error in [
            list(lists.join(name), columns(), 3).check().unwrap_err(),
            list(lists.join(name), columns(), 3).partitions(&stage).unwrap_err(),
        ] {
            assert!(error.is_about_columns());
            says(&error, &[name, "`caption`", "did you mean `captions`", "url, captions, score"]);
        }
    }
    write(&lists.join("l.jsonl"), "{\"urls\":\"u\",\"x\":1}\n");
    let error = list(lists.join("l.jsonl"), columns(), 3).check().unwrap_err();
    says(&error, &["l.jsonl", "`url`", "did you mean `urls`"]);
    for name in ["x.jsonl", "x.json"] {
        let error = error_of(name, b"{\"url\":\"u\",\"x\":1}\n{\"captoin\":\"c\"}", columns());
        assert!(error.is_about_columns());
        says(&error, &["`caption`", "did you mean `captoin`"]);
    }
    let error = error_of("x.json", br#"{"url":["u"],"text":["c"]}"#, columns());
    says(&error, &["`caption`", "it has: text, url"]);
    says(&error_of("x.csv", b"", columns()), &["its first line must name the columns"]);
    let error = error_of("x.tsv", b"http://x/1?key=secret\ta dog\nhttp://x/2\ta cat\n", columns());
    says(&error, &["`url`", "of its 2", "header = [\"url\", \"caption\"]"]);
    assert!(!error.to_string().contains("secret"), "{error}");
    // Objects may lack what others have; lists without rows have nothing to lack.
    let (_folder, lists, stage) = folders();
    write(&lists.join("l.jsonl"), "{\"url\":\"u\"}\n{\"url\":\"v\",\"caption\":\"c\"}\n");
    assert_eq!(all(&list(lists.join("l.jsonl"), columns(), 3), &stage).0.len(), 2);
    for (name, content) in
        [("e.jsonl", ""), ("e.json", "[]"), ("e.json", ""), ("e.txt", "\n\n"), ("e.csv", "url,caption\n")]
    {
        write(&lists.join(name), content);
        assert!(all(&list(lists.join(name), columns(), 3), &stage).1.is_empty(), "{name}");
    }
}

#[test]
fn a_ragged_or_damaged_row_is_named_by_its_line() {
    says(
        &error_of("l.csv", b"url,caption\nu,c\n\"u\n\",c\nu,c,d\n", columns()),
        &["line 5", "l.csv", "3 fields instead of 2"],
    );
    says(&error_of("l.tsv", b"url\tcaption\nu\t\"c\n\"u\n", columns()), &["line 3", "1 fields instead of 2"]);
    says(&error_of("l.jsonl", b"{\"url\":\"u\"}\n\n{\"url\":\n", columns()), &["line 3", "l.jsonl"]);
    says(&error_of("l.jsonl", b"{\"url\":\"u\"}{\"url\":\"u\"}\n", columns()), &["line 1", "trailing"]);
    says(&error_of("l.jsonl", b"\"http://x\"\n", columns()), &["line 1", "expected an object"]);
    says(
        &error_of("l.jsonl", b"{\"url\":\"u\",\"caption\":[1]}\n", columns()),
        &["`caption`", "line 1", "expected text"],
    );
    says(&error_of("l.json", b"[{\"url\":\"u\"},\n{\"url\" 1}]", columns()), &["line 2", "l.json"]);
    says(&error_of("l.json", b"[{\"url\":\"u\"}", columns()), &["l.json", "EOF"]);
    says(
        &error_of("l.json", br#"{"url":{"0":"u","1":"v"},"caption":{"0":"u","2":"v"}}"#, columns()),
        &["`url` and `caption`", "different rows"],
    );
    says(&error_of("l.json", br#"{"url":{"0":"u"},"url":{"0":"u"}}"#, columns()), &["`url` is there twice"]);
    says(&error_of("l.parquet", b"PAR1 and so on PAR1", columns()), &["l.parquet", "not readable parquet"]);
    let cut = gzip(&b"url,caption\nu,c\n".repeat(1000));
    says(&error_of("l.csv.gz", &cut[..cut.len() / 2], columns()), &["l.csv.gz", "cannot be read"]);
}

#[test]
fn a_row_without_an_end_stops_before_the_memory_is_full() {
    let long = "x".repeat(20 << 20);
    says(
        &error_of("l.csv", format!("url,caption\nu,c\nv,\"{long}").as_bytes(), columns()),
        &["line 3", "16 MB", "quotation mark"],
    );
    says(&error_of("l.txt", long.as_bytes(), columns()), &["line 1", "16 MB"]);
    says(&error_of("l.jsonl", format!("{{}}\n{{\"url\":\"{long}").as_bytes(), columns()), &["line 2", "16 MB"]);
    says(&error_of("l.json", format!("[{{}},{{\"x\":\"{long}").as_bytes(), columns()), &["row 2", "16 MB"]);
    says(&error_of("l.json", format!("{{\"url\":[\"{long}").as_bytes(), columns()), &["line 1", "16 MB"]);
    // Long columns are no long rows.
    let values = format!("[{}\"\"]", "\"0123456789\",".repeat(2 << 20));
    let (_folder, lists, stage) = folders();
    write(&lists.join("l.json"), format!("{{\"other\":{values},\"url\":{values}}}"));
    let names = ColumnNames { url: "url".into(), ..ColumnNames::default() };
    let partitions = list(lists.join("l.json"), names, 1 << 20).partitions(&stage).unwrap();
    assert_eq!(partitions.iter().map(|p| p.rows).sum::<u64>(), (2 << 20) + 1);
}

#[test]
fn a_partition_larger_than_memory_is_refused_by_name() {
    let (_folder, lists, stage) = folders();
    let url = "u".repeat(15 << 20);
    write(&lists.join("l.txt"), [url.as_str(); 40].join("\n"));
    let names = ColumnNames { url: "url".into(), ..ColumnNames::default() };
    let large = list(lists.join("l.txt"), names.clone(), 40);
    says(&large.rows(&stage, 0).unwrap_err(), &["rows 0..40", "make rows_per_shard smaller"]);
    let small = list(lists.join("l.txt"), names, 2);
    assert_eq!(small.rows(&stage, 19).unwrap().keys.len(), 2);
}

#[test]
fn a_folder_of_several_formats_or_none_is_a_fault() {
    let (_folder, lists, stage) = folders();
    says(&list(&lists, columns(), 3).check().unwrap_err(), &["holds no list", ".jsonl"]);
    write(&lists.join("a.csv"), "url,caption\nu,c\n");
    write(&lists.join("a.csv.gz"), gzip(b"url,caption\nu,c\n"));
    says(&list(&lists, columns(), 3).partitions(&stage).unwrap_err(), &["a.csv", "a.csv.gz", "same keys"]);
    write(&lists.join("b.json"), "[]");
    says(&list(&lists, columns(), 3).check().unwrap_err(), &["csv, json", "set input_format"]);
    says(&list("ftp://x/l.csv", columns(), 3).check().unwrap_err(), &["ftp://x/l.csv", "s3://"]);
    says(&list("ftp://x/l.csv", columns(), 3).partitions(&stage).unwrap_err(), &["ftp://x/l.csv"]);
}
