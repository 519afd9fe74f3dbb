//! However long a list is, a partition costs its own rows.

use std::fmt::Write as _;
use std::io::BufWriter;
use std::process::Command;
use std::time::Instant;

use arrow::array::Int64Array;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::file::properties::WriterProperties;

use super::*;

/// A parquet list whose URLs are numbered, in row groups of so many rows.
fn numbered(path: &Path, rows: u64, group: usize) {
    let field = |name, data_type| Field::new(name, data_type, true);
    let fields = vec![field("url", DataType::Utf8), field("caption", DataType::Utf8), field("score", DataType::Int64)];
    let schema = Arc::new(Schema::new(fields));
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(group)).build();
    let file = BufWriter::new(File::create(path).unwrap());
    let mut writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties)).unwrap();
    let mut first = 0;
    while first < rows {
        let run = first..(first + 10_000).min(rows);
        let text = |start: &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(run.clone().map(|row| format!("{start}{row}.jpg"))))
        };
        let (url, caption) = (text("https://images.example.org/pictures/"), text("A picture with a number, which is "));
        let score: ArrayRef = Arc::new(Int64Array::from_iter_values(run.clone().map(|row| row as i64)));
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), vec![url, caption, score]).unwrap()).unwrap();
        first = run.end;
    }
    writer.close().unwrap();
    settle(path, 100);
}

fn numbered_tsv(path: &Path, rows: u64) {
    let mut file = BufWriter::new(File::create(path).unwrap());
    let mut line = "url\tcaption\tscore\n".to_owned();
    for row in 0..rows {
        file.write_all(line.as_bytes()).unwrap();
        line.clear();
        writeln!(
            line,
            "https://images.example.org/pictures/{row}.jpg\tA picture with a number, which is {row}.jpg\t{row}"
        )
        .unwrap();
    }
    file.write_all(line.as_bytes()).unwrap();
    file.into_inner().unwrap();
    settle(path, 100);
}

fn wanted() -> ColumnNames {
    ColumnNames { extra: vec!["score".into()], ..columns() }
}

fn check_rows(rows: &Rows, first: u64) {
    let found = shown(rows);
    assert_eq!(found[0][1], format!("https://images.example.org/pictures/{first}.jpg"));
    let last = first + found.len() as u64 - 1;
    let expected = [
        format!("src/{last:09}"),
        format!("https://images.example.org/pictures/{last}.jpg"),
        format!("A picture with a number, which is {last}.jpg"),
        last.to_string(),
    ];
    assert_eq!(found.last().unwrap(), &expected);
}

/// Spoils the bytes of all row groups but those that hold `rows`.
fn spoil_all_but(path: &Path, rows: std::ops::Range<i64>) {
    let file = File::open(path).unwrap();
    let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()).unwrap();
    let mut bytes = fs::read(path).unwrap();
    let (mut first, mut spoilt) = (0, 0);
    for group in metadata.metadata().row_groups() {
        let end = first + group.num_rows();
        if end <= rows.start || first >= rows.end {
            for column in group.columns() {
                let (start, length) = column.byte_range();
                bytes[start as usize..(start + length) as usize].fill(0xff);
                spoilt += 1;
            }
        }
        first = end;
    }
    assert!(spoilt > 10);
    fs::write(path, bytes).unwrap();
    settle(path, 100);
}

#[test]
fn a_partition_is_read_from_its_own_row_groups() {
    let (_folder, lists, stage) = folders();
    let path = lists.join("list.parquet");
    numbered(&path, 200_000, 20_000);
    let one = list(&path, wanted(), 7_000);
    assert_eq!(one.partitions(&stage).unwrap().len(), 29);
    // Rows 98000..105000 lie in two row groups.
    spoil_all_but(&path, 98_000..105_000);
    check_rows(&one.rows(&stage, 14).unwrap(), 98_000);
    assert!(one.rows(&stage, 0).is_err(), "the others are spoilt");
}

#[test]
fn a_copy_has_few_rows_in_a_group_and_few_groups_in_a_file() {
    let (_folder, lists, stage) = folders();
    let path = lists.join("list.tsv");
    numbered_tsv(&path, 200_000);
    for rows_per_shard in [3, 1000, 150_000] {
        let one = list(&path, wanted(), rows_per_shard);
        let partitions = one.partitions(&stage).unwrap();
        assert_eq!(partitions.len() as u64, 200_000_u64.div_ceil(rows_per_shard));
        let home = fs::read_dir(stage.join("list")).unwrap().map(|entry| entry.unwrap().path());
        let home = home.into_iter().find(|path| path.join("list.json").exists()).unwrap();
        for name in names_in(&home).iter().filter(|name| name.starts_with('0')) {
            let file = File::open(home.join(name)).unwrap();
            let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()).unwrap();
            let groups = metadata.metadata().row_groups();
            assert!(groups.len() <= 64, "{}", groups.len());
            assert!(groups.iter().all(|group| group.num_rows() as u64 <= rows_per_shard.max(8192)));
        }
        if rows_per_shard == 1000 {
            let pieces = names_in(&home).iter().filter(|name| name.starts_with('0')).count();
            assert_eq!(pieces, 1, "25 row groups");
            spoil_all_but(&home.join("00000-00000.parquet"), 150_000..151_000);
            check_rows(&one.rows(&stage, 150).unwrap(), 150_000);
        } else {
            check_rows(
                &one.rows(&stage, partitions.len() - 2).unwrap(),
                (partitions.len() as u64 - 2) * rows_per_shard,
            );
            check_rows(
                &one.rows(&stage, partitions.len() - 1).unwrap(),
                (partitions.len() as u64 - 1) * rows_per_shard,
            );
        }
    }
}

const CHILD: &str = "FERROTYPE_LIST_TO_READ";
const ROWS: u64 = 20_000_000;
const PER_SHARD: u64 = 10_000;

/// Kilobytes that this process has had in memory at most.
fn most_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What the child process does: plans, reads one partition, and says what that took.
fn measure(path: &Path) {
    let stage = path.with_extension("stage");
    let before = most_memory();
    let one = list(path, wanted(), PER_SHARD);
    let clock = Instant::now();
    let partitions = one.partitions(&stage).unwrap();
    let planned = clock.elapsed();
    let clock = Instant::now();
    check_rows(&one.rows(&stage, 1000).unwrap(), 1000 * PER_SHARD);
    let read = clock.elapsed();
    let clock = Instant::now();
    let again = list(path, wanted(), PER_SHARD);
    assert_eq!(again.partitions(&stage).unwrap().len() as u64, ROWS / PER_SHARD);
    let planned_again = clock.elapsed();
    let clock = Instant::now();
    check_rows(&again.rows(&stage, 1999).unwrap(), 1999 * PER_SHARD);
    let more = (most_memory() - before) / 1024;
    println!(
        "{}: {} partitions planned in {planned:.2?}, again in {planned_again:.2?}; a middle one read in {read:.2?}, the last in \
         {:.2?}; {more} MB more",
        path.file_name().unwrap().display(),
        partitions.len(),
        clock.elapsed()
    );
    assert!(more < 200, "{more} MB");
}

#[test]
#[ignore = "writes lists of 20 million rows"]
fn soak_twenty_million_rows_are_planned_and_read_in_little_memory() {
    if let Some(path) = std::env::var_os(CHILD) {
        return measure(Path::new(&path));
    }
    let folder = tempfile::tempdir().unwrap();
    let (columnar, text) = (folder.path().join("list.parquet"), folder.path().join("list.tsv"));
    numbered(&columnar, ROWS, 1 << 20);
    numbered_tsv(&text, ROWS);
    for path in [columnar, text] {
        // A process of its own, so that only this counts.
        let name = "soak_twenty_million_rows_are_planned_and_read_in_little_memory";
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([name, "--ignored", "--nocapture", "--test-threads=1"]).env(CHILD, path);
        assert!(child.status().unwrap().success());
    }
}
