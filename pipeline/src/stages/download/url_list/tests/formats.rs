//! Every format gives the same rows.

use arrow::array::{Array, Int64Array, ListArray, StructArray};
use arrow::datatypes::Int64Type;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// url, caption, hash, note
const ROWS: [[&str; 4]; 5] = [
    ["http://a/1.jpg", "a cat", "00ff", "x"],
    ["http://a/2.jpg", "an \"odd\" one, with more", "", "ünï ☃"],
    ["", "no address", "ab", "z"],
    ["http://a/4.jpg?x=1&y=é", "", "cd", "{}"],
    ["http://a/5.jpg", "\"quoted\"", "ef", "5"],
];
const NAMES: [&str; 4] = ["url", "caption", "md5", "note"];

fn wanted() -> ColumnNames {
    ColumnNames { hash: Some("md5".into()), extra: vec!["note".into()], ..columns() }
}

fn separated(separator: char, is_quoted: bool) -> String {
    let field = |text: &str| {
        if is_quoted { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
    };
    let line = |row: &[&str; 4]| row.map(field).join(&separator.to_string()) + "\n";
    std::iter::once(&NAMES).chain(&ROWS).map(line).collect()
}

fn object(row: &[&str; 4]) -> Value {
    // What says nothing may be null, or not there.
    let fields = NAMES.iter().zip(row).filter(|(name, text)| !text.is_empty() || **name == "caption");
    let value = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
    Value::Object(
        fields.map(|(name, text)| ((*name).to_owned(), value(text))).chain([("other".into(), json!([1]))]).collect(),
    )
}

fn column(number: usize) -> impl Iterator<Item = Value> {
    ROWS.iter().map(move |row| Value::from(row[number]))
}

fn contents() -> Vec<(&'static str, String)> {
    let objects: Vec<Value> = ROWS.iter().map(object).collect();
    let lines = objects.iter().map(|object| format!("{object}\n")).collect::<Vec<_>>().concat();
    let indexed = |number| {
        let values = column(number).enumerate().map(|(i, value)| (i.to_string(), value));
        Value::Object(values.collect())
    };
    let pandas: serde_json::Map<String, Value> =
        NAMES.iter().enumerate().map(|(n, name)| ((*name).to_owned(), indexed(n))).collect();
    let lists: serde_json::Map<String, Value> =
        NAMES.iter().enumerate().map(|(n, name)| ((*name).to_owned(), column(n).collect())).collect();
    vec![
        ("list.csv", separated(',', true)),
        ("list.tsv", separated('\t', false)),
        ("list.jsonl", lines.clone()),
        ("lines.json", lines),
        ("array.json", serde_json::to_string_pretty(&objects).unwrap()),
        ("pandas.json", serde_json::to_string(&pandas).unwrap()),
        ("columns.json", serde_json::to_string_pretty(&lists).unwrap()),
    ]
}

#[test]
fn every_format_gives_the_same_rows_and_digests() {
    let (_folder, lists, stage) = folders();
    let expected: Vec<Vec<String>> = ROWS
        .iter()
        .enumerate()
        .map(|(number, [url, caption, hash, note])| {
            let hash = if hash.is_empty() { "-" } else { hash };
            vec![format!("src/{number:09}"), (*url).into(), (*caption).into(), hash.into(), (*note).into()]
        })
        .collect();
    let mut known: Option<Vec<Digest>> = None;
    for (name, content) in contents() {
        let with_mark = [b"\xef\xbb\xbf", content.as_bytes()].concat();
        // Two members one behind the other are one file.
        let (start, end) = content.as_bytes().split_at(content.len() / 2);
        let members = [gzip(start), gzip(end)].concat();
        for (name, bytes) in [
            (name.to_owned(), content.clone().into_bytes()),
            (format!("marked-{name}"), with_mark),
            (format!("{name}.gz"), members),
        ] {
            let path = lists.join(&name);
            write(&path, bytes);
            let list = list(&path, wanted(), 2);
            list.check().unwrap();
            let (rows, partitions) = all(&list, &stage);
            assert_eq!(rows, expected, "{name}");
            assert_eq!(partitions.iter().map(|p| p.rows).collect::<Vec<_>>(), [2, 2, 1], "{name}");
            assert_eq!(partitions[1].name, format!("{name} rows 2..4"));
            let digests = digests(&partitions);
            assert_eq!(*known.get_or_insert(digests.clone()), digests, "{name}");
        }
    }
    let path = lists.join("list.parquet");
    let column =
        |n: usize| (NAMES[n], ROWS.iter().map(|row| Some(row[n]).filter(|t| !t.is_empty())).collect::<Vec<_>>());
    parquet(&path, &[column(3), column(1), ("other", vec![None; 5]), column(0), column(2)]);
    let list = list(&path, wanted(), 2);
    list.check().unwrap();
    assert_eq!(all(&list, &stage).0, expected);
    assert_eq!(
        names_in(&stage.join("list")).len(),
        2,
        "the lock and the newest list: {:?}",
        names_in(&stage.join("list"))
    );
}

#[test]
fn a_list_of_bare_urls_has_empty_captions_and_no_header() {
    let (_folder, lists, stage) = folders();
    let path = lists.join("urls.txt");
    write(&path, b"http://a/1\r\n\n  http://a/2 \nhttp://a/\xff3");
    let (rows, partitions) = all(&list(&path, columns(), 2), &stage);
    assert_eq!(urls(&rows), ["http://a/1", "http://a/2", "http://a/\u{fffd}3"]);
    assert_eq!(rows[2], ["src/000000002", "http://a/\u{fffd}3", ""]);
    let path = lists.join("urls.csv.gz");
    write(&path, gzip(b"url,caption\nhttp://a/1,\nhttp://a/2,\nhttp://a/\xff3,\n"));
    assert_eq!(digests(&all(&list(&path, columns(), 2), &stage).1), digests(&partitions));
    let error = list(lists.join("urls.txt"), wanted(), 2).check().unwrap_err();
    assert!(error.is_about_columns() && error.to_string().contains("`md5`"), "{error}");
}

#[test]
fn the_given_format_counts_and_else_the_ending() {
    let (_folder, lists, stage) = folders();
    let path = lists.join("list.dat");
    write(&path, "url\nhttp://a/1\n");
    let names = ColumnNames { url: "url".into(), ..ColumnNames::default() };
    let error = list(&path, names.clone(), 2).check().unwrap_err().to_string();
    assert!(error.contains("list.dat") && error.contains("format"), "{error}");
    let given = UrlList::new(vec![path.to_str().unwrap().to_owned()], Some(Format::Csv), names, "src", 2, u64::MAX);
    assert_eq!(urls(&all(&given, &stage).0), ["http://a/1"]);
}

#[test]
fn extra_columns_keep_their_types_whatever_file_they_lie_in() {
    let (_folder, lists, stage) = folders();
    write(
        &lists.join("a.jsonl"),
        "{\"url\":\"u1\",\"width\":1,\"tags\":[{\"a\":1}],\"score\":1,\"empty\":null}\n{\"url\":\"u2\",\"tags\":null,\"mixed\":1}\n",
    );
    write(
        &lists.join("b.jsonl"),
        "{\"url\":\"u3\",\"width\":3,\"tags\":[{\"b\":\"x\",\"a\":2},{}],\"score\":0.5,\"mixed\":\"m\"}\n",
    );
    let extra = ["width", "tags", "score", "empty", "mixed"].map(str::to_owned).to_vec();
    let names = ColumnNames { caption: None, extra, ..columns() };
    // Numbers in one file and text in the next are a fault; in one file they are text.
    let error = list(&lists, names.clone(), 10).partitions(&stage).unwrap_err();
    assert!(error.is_about_columns(), "{error}");
    assert!(error.to_string().contains("`mixed`") && error.to_string().contains("b.jsonl"), "{error}");
    write(&lists.join("a.jsonl"), fs::read_to_string(lists.join("a.jsonl")).unwrap() + "{\"mixed\":\"text\"}\n");
    let list = list(&lists, names, 10);
    let partitions = list.partitions(&stage).unwrap();
    assert_eq!(partitions.len(), 2);
    let (first, second) = (list.rows(&stage, 0).unwrap(), list.rows(&stage, 1).unwrap());
    assert_eq!(first.batch.schema(), second.batch.schema());
    let extra = second.additional().unwrap();
    let found: Vec<String> = extra.schema().fields().iter().map(|f| f.name().clone()).collect();
    assert_eq!(found, ["width_original", "tags", "score", "empty", "mixed"]);
    assert_eq!(extra.column(0).as_ref(), &Int64Array::from(vec![3]) as &dyn Array);
    assert_eq!(extra.column(2).data_type(), &DataType::Float64);
    assert_eq!(extra.column(3).data_type(), &DataType::Utf8);
    let tags = extra.column(1).as_any().downcast_ref::<ListArray>().unwrap().value(0);
    let tags = tags.as_any().downcast_ref::<StructArray>().unwrap();
    assert_eq!(tags.len(), 2);
    assert_eq!(tags.column_by_name("a").unwrap().as_ref(), &Int64Array::from(vec![Some(2), None]) as &dyn Array);
    assert_eq!(shown(&first)[1][7..], ["1"], "{:?}", shown(&first));
}

#[test]
fn columns_with_a_type_have_it_whatever_the_format_and_what_is_not_of_it_is_null_and_counted() {
    use crate::stages::fields::FieldType::{Boolean, Integer, Number, Text};
    let (_folder, lists, stage) = folders();
    let types =
        [("W", Integer), ("S", Number), ("B", Boolean), ("N", Text)].map(|(name, kind)| (name.to_owned(), kind));
    let extra = types.iter().map(|(name, _)| name.clone()).collect();
    let names = ColumnNames { caption: None, extra, types: types.into(), ..columns() };
    let fields = "url,W,S,B,N\nu0,256,0.5,True,x\nu1,,,,\nu2,wide,nan,1,5\n";
    write(&lists.join("l.csv"), fields);
    write(&lists.join("l.tsv"), fields.replace(',', "\t"));
    write(
        &lists.join("l.jsonl"),
        "{\"url\":\"u0\",\"W\":256,\"S\":0.5,\"B\":true,\"N\":\"x\"}\n{\"url\":\"u1\",\"W\":null,\"S\":\"\"}\n\
         {\"url\":\"u2\",\"W\":\"wide\",\"S\":\"nan\",\"B\":1,\"N\":5}\n",
    );
    let texts = [["u0", "256", "0.5", "true", "x"], ["u1", "", "", "", ""], ["u2", "wide", "nan", "1", "5"]];
    let column = |n: usize| texts.iter().map(|row| Some(row[n]).filter(|text| !text.is_empty())).collect::<Vec<_>>();
    let all_texts = ["url", "W", "S", "B", "N"].into_iter().enumerate().map(|(n, name)| (name, column(n)));
    parquet(&lists.join("l.parquet"), &all_texts.collect::<Vec<_>>());
    for name in ["l.csv", "l.tsv", "l.jsonl", "l.parquet"] {
        let list = list(lists.join(name), names.clone(), 9);
        list.check().unwrap();
        list.partitions(&stage).unwrap();
        let rows = list.rows(&stage, 0).unwrap();
        let found: Vec<String> = shown(&rows).iter().map(|row| row[1..].join(" ")).collect();
        assert_eq!(found, ["u0  256 0.5 true x", "u1  - - - -", "u2  - - - 5"], "{name}");
        let kinds: Vec<DataType> =
            rows.additional().unwrap().schema().fields().iter().map(|field| field.data_type().clone()).collect();
        assert_eq!(kinds, [DataType::Int64, DataType::Float64, DataType::Boolean, DataType::Utf8], "{name}");
        let noted: Noted =
            ["B is no boolean", "S is no number", "W is no integer"].map(|what| (what.to_owned(), 1)).into();
        assert_eq!(rows.noted, noted, "{name}");
        assert!(rows.only([0].into_iter()).unwrap().noted.is_empty(), "it was noted before");
    }
    // Another type is another list; files may differ, and a column of lists is no number.
    let of = |kind| ColumnNames {
        caption: None,
        extra: vec!["W".into()],
        types: [("W".to_owned(), kind)].into(),
        ..columns()
    };
    let digest = |names| digests(&list(lists.join("l.csv"), names, 9).partitions(&stage).unwrap());
    assert_ne!(digest(of(Number)), digest(of(Integer)));
    write(&lists.join("both/a.jsonl"), "{\"url\":\"u\",\"W\":1}\n");
    write(&lists.join("both/b.jsonl"), "{\"url\":\"v\",\"W\":\"2\"}\n{\"url\":\"w\",\"W\":[3]}\n");
    let found = all(&list(lists.join("both"), of(Integer), 9), &stage).0;
    assert_eq!(found.iter().map(|row| row[3].as_str()).collect::<Vec<_>>(), ["1", "2", "-"]);
    let nested: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1)])]));
    let url: ArrayRef = Arc::new(StringArray::from(vec!["u"]));
    write_parquet(&lists.join("n.parquet"), &RecordBatch::try_from_iter([("url", url), ("W", nested)]).unwrap());
    let error = list(lists.join("n.parquet"), of(Integer), 9).check().unwrap_err();
    assert!(error.is_about_columns() && error.to_string().contains("expected integer"), "{error}");
    let text = list(lists.join("n.parquet"), of(Text), 9);
    text.check().unwrap();
    assert_eq!(all(&text, &stage).0[0][3], "[1]");
}

#[test]
fn quotation_marks_of_tsv_are_undone_where_that_is_asked_for_and_else_counted_where_they_were_doubled() {
    let (_folder, lists, stage) = folders();
    let (path, broken) = (lists.join("l.tsv"), lists.join("broken.tsv"));
    let lines = "url\tcaption\nu0\t\"He said \"\"hello\"\" to me\"\nu1\ta \"red\" fox\nu2\t\"red\" and \"blue\"\n";
    write(&path, lines);
    let captions = |list: &UrlList| {
        let rows = list.rows(&stage, 0).unwrap();
        (shown(&rows).into_iter().map(|row| row[2].clone()).collect::<Vec<_>>(), rows.noted)
    };
    let plain = list(&path, columns(), 9);
    let before = digests(&plain.partitions(&stage).unwrap());
    let (found, noted) = captions(&plain);
    assert_eq!(found, ["\"He said \"\"hello\"\" to me\"", "a \"red\" fox", "\"red\" and \"blue\""]);
    assert_eq!(noted.into_iter().collect::<Vec<_>>(), [(QUOTED.to_owned(), 1)]);
    let names = ColumnNames { quotes: true, ..columns() };
    let quoted = list(&path, names.clone(), 9);
    quoted.check().unwrap();
    assert_ne!(digests(&quoted.partitions(&stage).unwrap()), before);
    let (found, noted) = captions(&quoted);
    assert_eq!(found[..2], ["He said \"hello\" to me", "a \"red\" fox"]);
    assert!(noted.is_empty(), "{noted:?}");
    write(&broken, "url\tcaption\nu0\t\"two\nlines\"\n");
    let error = list(&broken, columns(), 9).partitions(&stage).unwrap_err().to_string();
    assert!(error.contains("with quotes = true in a .tsv file"), "{error}");
    let broken = list(&broken, names, 9);
    broken.partitions(&stage).unwrap();
    assert_eq!(captions(&broken).0, ["two\nlines"]);
}

#[test]
fn parquet_columns_of_other_types_are_text_and_nested_ones_pass() {
    let (_folder, lists, stage) = folders();
    let path = lists.join("list.parquet");
    let url: ArrayRef = Arc::new(arrow::array::LargeBinaryArray::from_opt_vec(vec![Some(b" u\xff "), None]));
    let caption: ArrayRef =
        Arc::new(["dog", "dog"].into_iter().collect::<arrow::array::DictionaryArray<arrow::datatypes::Int32Type>>());
    let label: ArrayRef = Arc::new(Int64Array::from(vec![7, 8]));
    let nested: ArrayRef =
        Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None]));
    let batch =
        RecordBatch::try_from_iter([("u.rl", url), ("c", caption), ("label", label), ("nested", nested)]).unwrap();
    write_parquet(&path, &batch);
    let names = |caption: &str| ColumnNames {
        url: "u.rl".into(),
        caption: Some(caption.into()),
        extra: vec!["nested".into()],
        ..ColumnNames::default()
    };
    assert_eq!(
        shown(&list(&path, names("c"), 9).rows(&stage, 0).unwrap())[0],
        ["src/000000000", "u\u{fffd}", "dog", "[1, ]"]
    );
    assert_eq!(shown(&list(&path, names("label"), 9).rows(&stage, 0).unwrap())[1], ["src/000000001", "", "8", "-"]);
    let error = list(&path, names("nested"), 9).check().unwrap_err();
    assert!(error.is_about_columns() && error.to_string().contains("expected text"), "{error}");
}

fn csv(rows: &[(String, String, String)]) -> Vec<u8> {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    writer.write_record(["url", "caption", "note"]).unwrap();
    for (url, caption, note) in rows {
        writer.write_record([url, caption, note]).unwrap();
    }
    writer.into_inner().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_comes_back_from_csv_and_json(
        rows in prop::collection::vec(("[ -~\t\n\r\"',é☃\u{1F600}]{0,12}", "[ -~\t\n\r\"'\\\\{}é☃]{0,20}", "\\PC{0,8}"), 0..40),
        rows_per_shard in 1_u64..9,
    ) {
        let (_folder, lists, stage) = folders();
        let object = |(url, caption, note): &(String, String, String)| json!({"note": note, "url": url, "caption": caption});
        let jsonl: String = rows.iter().map(|row| object(row).to_string() + "\n").collect();
        write(&lists.join("list.csv"), csv(&rows));
        write(&lists.join("list.jsonl"), jsonl);
        write(&lists.join("list.json"), Value::Array(rows.iter().map(object).collect()).to_string());
        let expected: Vec<Vec<String>> = rows
            .iter()
            .enumerate()
            .map(|(n, (url, caption, note))| vec![format!("src/{n:09}"), url.trim().into(), caption.trim().into(), note.clone()])
            .collect();
        let names = ColumnNames { extra: vec!["note".into()], ..columns() };
        let mut known = None;
        for name in ["list.csv", "list.jsonl", "list.json"] {
            let (found, partitions) = all(&list(lists.join(name), names.clone(), rows_per_shard), &stage);
            prop_assert_eq!(&found, &expected, "{}", name);
            let digests = digests(&partitions);
            prop_assert_eq!(known.get_or_insert(digests.clone()), &digests, "{}", name);
        }
    }

    #[test]
    fn no_list_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), text in "[\\[\\]{}\":,\nurl0-9]{0,80}") {
        let (_folder, lists, stage) = folders();
        for name in ["l.txt", "l.csv", "l.tsv", "l.json", "l.jsonl", "l.parquet"] {
            for content in [&bytes[..], text.as_bytes()] {
                write(&lists.join(name), content);
                let names = ColumnNames { extra: vec!["r".into()], ..columns() };
                let list = list(lists.join(name), names, 3);
                if let Ok(partitions) = list.partitions(&stage) {
                    for number in 0..partitions.len() {
                        list.rows(&stage, number).unwrap();
                    }
                }
            }
        }
    }
}

#[test]
fn a_list_without_a_header_is_given_one() {
    let (_folder, lists, stage) = folders();
    let path = lists.join("cc12m.tsv");
    fs::write(&path, "http://x/0\ta \"red\" fox\nhttp://x/1\ttwo\n").unwrap();
    let header = vec!["url".to_owned(), "caption".to_owned()];
    let named = list(&path, ColumnNames { header: header.clone(), ..columns() }, 10);
    named.check().unwrap();
    let (rows, _) = all(&named, &stage);
    assert_eq!(urls(&rows), ["http://x/0", "http://x/1"]);
    // A row of another length says that the header is another.
    let error = list(&path, ColumnNames { header: header[..1].to_vec(), caption: None, ..columns() }, 10);
    let error = error.partitions(&stage).unwrap_err().to_string();
    assert!(error.contains("line 1") && error.contains("2 fields instead of 1"), "{error}");
}
