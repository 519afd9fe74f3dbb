//! What is read once and kept: partitions, keys, and what becomes of them when a list changes.

use super::*;

fn tsv(rows: impl IntoIterator<Item = u32>) -> String {
    let rows: Vec<String> = rows.into_iter().map(|row| format!("http://x/{row}\tcaption {row}\n")).collect();
    format!("url\tcaption\n{}", rows.concat())
}

#[test]
fn partitions_change_with_their_rows_only() {
    let (_folder, lists, stage) = folders();
    let path = lists.join("urls.tsv");
    let partitions_of = |rows: &[u32], seconds| {
        write(&path, tsv(rows.iter().copied()));
        settle(&path, seconds);
        digests(&list(&path, columns(), 3).partitions(&stage).unwrap())
    };
    let before = partitions_of(&[1, 2, 3, 4, 5, 6, 7], 1);
    let appended = partitions_of(&[1, 2, 3, 4, 5, 6, 7, 8], 2);
    assert_eq!((appended.len(), &appended[..2]), (3, &before[..2]));
    assert_ne!(appended[2], before[2]);
    let changed = partitions_of(&[1, 2, 3, 4, 9, 6, 7], 3);
    assert_eq!((changed[0], changed[2]), (before[0], before[2]));
    assert_ne!(changed[1], before[1]);
    assert_eq!(partitions_of(&[1, 2, 3, 4, 5, 6, 7], 4), before);
    // The same rows in another place have other keys.
    let moved = partitions_of(&[4, 5, 6, 1, 2, 3, 7], 5);
    assert!(!moved.contains(&before[0]) && !moved.contains(&before[1]));
}

#[test]
fn a_second_plan_reads_the_listing_only() {
    let (_folder, lists, stage) = folders();
    let path = lists.join("urls.tsv");
    write(&path, tsv(10..20));
    let (rows, before) = all(&list(&path, columns(), 3), &stage);
    // Other content of the same size and time would be noticed if it were read.
    write(&path, tsv(20..30));
    let (again, after) = all(&list(&path, columns(), 3), &stage);
    assert_eq!((again, digests(&after)), (rows, digests(&before)));
    settle(&path, 50);
    assert_ne!(digests(&list(&path, columns(), 3).partitions(&stage).unwrap()), digests(&before));
}

#[test]
fn a_list_that_has_just_been_written_is_read_again() {
    let (_folder, lists, stage) = folders();
    let path = lists.join("urls.tsv");
    fs::write(&path, tsv([1, 2])).unwrap();
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let one = list(&path, columns(), 3);
    let before = digests(&one.partitions(&stage).unwrap());
    fs::write(&path, tsv([3, 4])).unwrap();
    File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert_ne!(digests(&one.partitions(&stage).unwrap()), before, "in the same process");
    assert_ne!(digests(&list(&path, columns(), 3).partitions(&stage).unwrap()), before);
}

#[test]
fn what_a_killed_process_left_is_neither_used_nor_kept() {
    let (_folder, lists, stage) = folders();
    let path = lists.join("urls.tsv");
    write(&path, tsv(0..5));
    let list_of = || list(&path, columns(), 2);
    let (rows, partitions) = all(&list_of(), &stage);
    let home = stage.join("list");
    let complete = names_in(&home).into_iter().find(|name| name != "lock").unwrap();
    // Killed while it copied, and before the listing was written.
    fs::rename(home.join(&complete), home.join(format!(".{complete}.x1"))).unwrap();
    fs::remove_file(home.join(format!(".{complete}.x1/list.json"))).unwrap();
    fs::create_dir(home.join(&complete)).unwrap();
    fs::write(home.join(&complete).join("00000-00000.parquet"), b"half").unwrap();
    fs::create_dir(home.join("files")).unwrap();
    fs::write(home.join("files/0000.partial"), b"half").unwrap();
    let (again, after) = all(&list_of(), &stage);
    assert_eq!((again, digests(&after)), (rows.clone(), digests(&partitions)));
    assert_eq!(names_in(&home), [complete.as_str(), "files", "lock"].map(str::to_owned));
    assert!(names_in(&home.join("files")).is_empty());
    // A damaged listing is no listing.
    fs::write(home.join(&complete).join("list.json"), b"{").unwrap();
    assert_eq!(all(&list_of(), &stage).0, rows);
}

#[test]
fn processes_at_once_read_it_once_and_agree() {
    let (_folder, lists, stage) = folders();
    let path = lists.join("urls.tsv");
    write(&path, tsv(0..1000));
    let found: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| all(&list(&path, columns(), 100), &stage))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(found.windows(2).all(|pair| pair[0].0 == pair[1].0 && digests(&pair[0].1) == digests(&pair[1].1)));
    assert_eq!(names_in(&stage.join("list")).len(), 2);
}

#[test]
fn a_copy_that_another_process_removed_is_made_anew() {
    let (_folder, lists, stage) = folders();
    let path = lists.join("urls.tsv");
    write(&path, tsv(0..5));
    let one = list(&path, columns(), 2);
    let rows = all(&one, &stage).0;
    // Another manifest's list, read in the same place, sweeps the first one's.
    list(&path, columns(), 3).partitions(&stage).unwrap();
    assert_eq!(shown(&one.rows(&stage, 2).unwrap()), rows[4..]);
}

#[test]
fn a_file_that_vanishes_under_a_run_gives_no_partition_the_rows_of_another() {
    let (_folder, lists, stage) = folders();
    let write = |name: &str| {
        let columns = [("url", vec![Some(name)]), ("caption", vec![None])];
        parquet(&lists.join(format!("{name}.parquet")), &columns);
    };
    ["a", "b", "c"].into_iter().for_each(write);
    let one = list(&lists, columns(), 1);
    let partitions = one.partitions(&stage).unwrap();
    assert_eq!(partitions.len(), 3);
    fs::remove_file(lists.join("b.parquet")).unwrap();
    let error = one.rows(&stage, 1).unwrap_err();
    assert!(matches!(&error, ListError::Changed { name } if name.ends_with("b.parquet")), "{error}");
    assert_eq!(shown(&one.rows(&stage, 2).unwrap()), [["src/c/000000000", "c", ""]]);
    // It was away for a moment only.
    write("b");
    assert_eq!(shown(&one.rows(&stage, 1).unwrap()), [["src/b/000000000", "b", ""]]);
    assert_eq!(digests(&one.partitions(&stage).unwrap()), digests(&partitions));
}

#[test]
fn a_text_list_that_another_plan_finds_rewritten_is_refused_until_it_is_planned_anew() {
    let (_folder, lists, stage) = folders();
    let path = lists.join("list.tsv");
    write(&path, tsv(0..5));
    let one = list(&path, columns(), 2);
    assert_eq!(one.partitions(&stage).unwrap().len(), 3);
    // As before, and with other rows.
    write(&path, tsv([0, 1, 12, 13, 14]));
    settle(&path, 50);
    assert_eq!(urls(&shown(&one.rows(&stage, 1).unwrap())), ["http://x/2", "http://x/3"], "its copy is still there");
    // As `ferrotype status` does, which sweeps the copy.
    list(&path, columns(), 2).partitions(&stage).unwrap();
    for number in 0..3 {
        let error = one.rows(&stage, number).unwrap_err();
        assert!(matches!(&error, ListError::Changed { name } if name.ends_with("list.tsv")), "{number}: {error}");
    }
    one.partitions(&stage).unwrap();
    assert_eq!(urls(&shown(&one.rows(&stage, 1).unwrap())), ["http://x/12", "http://x/13"]);
}

#[test]
fn a_folder_gives_each_file_partitions_and_keys_of_its_own() {
    let (_folder, lists, stage) = folders();
    write(&lists.join("b/two.csv"), "url,caption\nu3,\nu4,\nu5,\n");
    write(&lists.join("a.csv.gz"), gzip(b"caption,url\n,u1\n,u2\n"));
    write(&lists.join("empty.csv"), "url,caption\n");
    write(&lists.join("README.md"), "# lists");
    write(&lists.join(".hidden.csv"), "nothing");
    let folder = list(&lists, columns(), 2);
    folder.check().unwrap();
    let (rows, partitions) = all(&folder, &stage);
    let keys: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(
        keys,
        ["src/a/000000000", "src/a/000000001", "src/b/two/000000000", "src/b/two/000000001", "src/b/two/000000002"]
    );
    assert_eq!(urls(&rows), ["u1", "u2", "u3", "u4", "u5"]);
    let names: Vec<&str> = partitions.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["a.csv.gz rows 0..2", "b/two.csv rows 0..2", "b/two.csv rows 2..3"]);
    for (number, place, key) in [(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3), (2, 0, 4)] {
        assert_eq!(folder.locate(&stage, keys[key]).unwrap(), Some((number, place)), "{}", keys[key]);
    }
    for key in ["src/a/000000002", "src/a/2", "src/c/000000000", "srca/000000000", "src/000000000", "src/a/00000000x"] {
        assert_eq!(folder.locate(&stage, key).unwrap(), None, "{key}");
    }
    let some = folder.rows(&stage, 1).unwrap().only([1, 0, 1].into_iter()).unwrap();
    assert_eq!(urls(&shown(&some)), ["u4", "u3", "u4"]);
    assert_eq!(some.keys[0], "src/b/two/000000001");
    assert!(folder.rows(&stage, 2).unwrap().only([1].into_iter()).is_err());
    assert!(folder.rows(&stage, 3).unwrap_err().to_string().contains("3 partitions"));
}

#[test]
fn the_limit_holds_for_all_files_together_and_stops_the_reading() {
    let (_folder, lists, stage) = folders();
    write(&lists.join("1.csv"), "url,caption\nu1,\nu2,\nu3,\n");
    write(&lists.join("2.csv"), "url,caption\nu4,\nu5,\nragged\n");
    write(&lists.join("3.csv"), "not a list");
    parquet(&lists.join("p/1.parquet"), &[("url", vec![Some("a"), Some("b"), Some("c")]), ("caption", vec![None; 3])]);
    let limited = |path: &Path, limit| {
        let location = path.to_str().unwrap().to_owned();
        UrlList::new(
            vec![location],
            Some(Format::of(path.to_str().unwrap()).unwrap_or(Format::Csv)),
            columns(),
            "s",
            2,
            limit,
        )
    };
    let (rows, partitions) = all(&limited(&lists, 5), &stage);
    assert_eq!(urls(&rows), ["u1", "u2", "u3", "u4", "u5"]);
    assert_eq!(partitions.iter().map(|p| p.rows).collect::<Vec<_>>(), [2, 1, 2]);
    let (rows, partitions) = all(&limited(&lists, 3), &stage);
    assert_eq!((urls(&rows), partitions.len()), (vec!["u1", "u2", "u3"], 2));
    assert_eq!(urls(&all(&limited(&lists.join("p/1.parquet"), 2), &stage).0), ["a", "b"]);
    assert!(all(&limited(&lists, 0), &stage).1.is_empty());
    assert!(limited(&lists, 6).partitions(&stage).unwrap_err().to_string().contains("line 4"));
}

#[test]
fn a_parquet_list_that_changes_under_a_run_is_refused() {
    let (_folder, lists, stage) = folders();
    let path = lists.join("list.parquet");
    parquet(&path, &[("url", vec![Some("a"), Some("b")]), ("caption", vec![None; 2])]);
    let one = list(&path, columns(), 1);
    let before = digests(&one.partitions(&stage).unwrap());
    assert_ne!(before[0], before[1], "the run of rows is in the digest");
    parquet(&path, &[("url", vec![Some("a"), Some("x")]), ("caption", vec![None; 2])]);
    settle(&path, 7);
    let error = one.rows(&stage, 1).unwrap_err().to_string();
    assert!(error.contains("list.parquet") && error.contains("plan again"), "{error}");
    assert_ne!(digests(&one.partitions(&stage).unwrap())[1], before[1]);
    assert_eq!(urls(&shown(&one.rows(&stage, 1).unwrap())), ["x"]);
}
