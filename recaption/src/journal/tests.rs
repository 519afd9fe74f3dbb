//! What survives: kills, cuts, flipped bytes, full disks, and two workers at one partition; and what another partition finds.

use std::collections::HashMap;
use std::fs;
use std::sync::atomic::AtomicUsize;

use object_store::memory::InMemory;
use proptest::prelude::*;
use shards::digest::Digest;
use shards::storage::Workdir;

use super::*;
use crate::captioner::{Completion, Finish, Sampling, Usage};
use crate::journal::Others;
use crate::journal::entry::{Question, parse};
use crate::journal::segment::{Compacted, compact, read_segment, segment_of};

fn key(n: usize) -> CacheKey {
    CacheKey::of(&Question {
        image: Some(Digest::of(&n.to_le_bytes())),
        system: None,
        prompt: "Describe",
        identity: "model",
        image_mode: "pad",
        sampling: Sampling::default(),
    })
}

fn caption(text: &str) -> Entry {
    let usage = Usage { prompt_tokens: 700, completion_tokens: 9, cached_tokens: 0 };
    Entry::Completion(Completion { text: text.to_owned(), finish: Finish::Stop, usage })
}

fn refused() -> Entry {
    Entry::Refused { reason: "poisoned".to_owned(), detail: "alone, \"twice\"".to_owned() }
}

fn read(bytes: &[u8]) -> (Vec<(CacheKey, Entry)>, u64) {
    let mut entries = Vec::new();
    let damaged = read_segment(bytes, |key, entry| entries.push((key, entry))).unwrap();
    (entries, damaged)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn answers_that_come_at_once_are_a_segment() {
    let (good, long) = ([caption("A dog."), refused()], caption(&"long ".repeat(1 << 20)));
    let (first, second, third) = (key(1), key(2), key(3));
    let (segment, too_long) = segment_of([(&first, &good[0]), (&second, &long), (&third, &good[1])]);
    let [dog, no] = good;
    assert_eq!((read(&segment), too_long), ((vec![(first, dog), (third, no)], 0), 1));
}

#[test]
fn a_line_is_json() {
    for entry in [caption("A \"dog\"\nruns \u{1f415}"), refused()] {
        let line = line(&key(1), &entry);
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["answer"]["key"], key(1).to_string());
        assert_eq!(parse(line.strip_suffix(b"\n").unwrap()), Some((key(1), entry)));
    }
}

#[test]
fn answers_are_durable_when_append_returns_and_are_found_again() {
    let workdir = tempfile::tempdir().unwrap();
    let folder = workdir.path().join("captions/part-00012");
    let (journal, cache) = Journal::open(&folder, "a-1").unwrap();
    assert!(cache.entries.is_empty() && !journal.path().exists(), "no answers, no file");
    let journal = Arc::new(journal);
    let runtime = runtime();
    runtime.block_on(async {
        let tasks: Vec<_> = (0..300)
            .map(|n| {
                let journal = Arc::clone(&journal);
                tokio::spawn(async move {
                    journal.append(&key(n), &caption(&format!("caption {n}"))).await.unwrap();
                    assert!(journal.durable() > 0);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    assert_eq!(journal.durable(), 300);
    // As if killed: nothing is closed.
    let (second, cache) = Journal::open(&folder, "a-2").unwrap();
    assert_eq!((cache.entries.len(), cache.damaged, cache.segments), (300, 0, 1));
    assert_eq!(cache.entries[&key(7)], caption("caption 7"));
    assert_eq!(second.close().unwrap(), None);
    let path = Arc::into_inner(journal).unwrap().close().unwrap().unwrap();
    assert_eq!(path, folder.join("a-1.jsonl"));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn an_attempt_has_its_segment_alone() {
    let workdir = tempfile::tempdir().unwrap();
    let (one, _) = Journal::open(workdir.path(), "one").unwrap();
    let (again, _) = Journal::open(workdir.path(), "one").unwrap();
    one.append_blocking(&key(1), &caption("one")).unwrap();
    let error = again.append_blocking(&key(2), &caption("two")).unwrap_err();
    assert!(error.to_string().starts_with("cannot create "), "{error}");
    assert!(Journal::open(workdir.path(), "one").is_err());
    for name in ["", ".one", "../one", "a/b", "é"] {
        assert!(matches!(Journal::open(workdir.path(), name), Err(JournalError::Attempt(_))), "{name}");
    }
    // A worker that was taken for dead goes on, beside the one that took over.
    let (other, cache) = Journal::open(workdir.path(), "two").unwrap();
    assert_eq!(cache.entries.len(), 1);
    one.append_blocking(&key(3), &refused()).unwrap();
    other.append_blocking(&key(3), &caption("three")).unwrap();
    let cache = read_folder(workdir.path()).unwrap();
    assert_eq!(cache.entries, HashMap::from([(key(1), caption("one")), (key(3), caption("three"))]));
}

#[test]
fn what_is_dropped_without_being_waited_for_is_written() {
    let workdir = tempfile::tempdir().unwrap();
    let (journal, _) =
        Journal::open_with(workdir.path(), "one", Grouping { entries: 1000, wait: Duration::from_hours(1) }, None)
            .unwrap();
    drop(journal.push(&key(1), &caption("one")).unwrap());
    drop(journal);
    assert_eq!(read_folder(workdir.path()).unwrap().entries.len(), 1);
}

#[test]
fn the_hook_gets_whole_segments_before_anything_is_durable() {
    let workdir = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let hook: Hook = Box::new({
        let seen = Arc::clone(&seen);
        move |bytes| {
            let (entries, damaged) = read(bytes);
            assert_eq!(damaged, 0);
            seen.lock().unwrap().extend(entries);
            if seen.lock().unwrap().len() < 3 { Ok(()) } else { Err(io::Error::other("the store is away")) }
        }
    });
    let (journal, _) = Journal::open_with(workdir.path(), "one", Grouping::default(), Some(hook)).unwrap();
    for n in 0..2 {
        journal.append_blocking(&key(n), &caption("x")).unwrap();
    }
    let error = journal.append_blocking(&key(2), &caption("x")).unwrap_err();
    assert!(error.to_string().starts_with("cannot hand on"), "{error}");
    assert_eq!((journal.durable(), seen.lock().unwrap().len()), (2, 3));
}

#[test]
fn nobody_waits_for_a_writer_that_panicked() {
    let workdir = tempfile::tempdir().unwrap();
    let hook: Hook = Box::new(|_| panic!("as this test wants it"));
    let (journal, _) = Journal::open_with(workdir.path(), "one", Grouping::default(), Some(hook)).unwrap();
    for n in 0..2 {
        let error = journal.append_blocking(&key(n), &caption("x")).unwrap_err();
        assert!(matches!(error, JournalError::Closed { .. }), "{error}");
    }
    assert!(journal.close().is_err());
}

/// A disk that takes so many bytes, and half of what comes then.
struct SmallDisk {
    written: Arc<Mutex<Vec<u8>>>,
    room: usize,
    syncs: Arc<AtomicUsize>,
    failing_sync: usize,
}

impl Segment for SmallDisk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut written = self.written.lock().unwrap();
        let left = self.room.saturating_sub(written.len()).min(bytes.len());
        written.extend(&bytes[..left]);
        if left < bytes.len() { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        let number = self.syncs.fetch_add(1, Ordering::SeqCst);
        if number == self.failing_sync { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }
}

fn on_small_disk(room: usize, failing_sync: usize) -> (Journal, Arc<Mutex<Vec<u8>>>, Arc<AtomicUsize>) {
    let (written, syncs) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let disk = SmallDisk { written: Arc::clone(&written), room, syncs: Arc::clone(&syncs), failing_sync };
    let create = move || -> Result<Box<dyn Segment>, JournalError> { Ok(Box::new(disk)) };
    let grouping = Grouping { entries: 8, wait: Duration::from_millis(1) };
    (Journal::start(PathBuf::from("small.jsonl"), grouping, None, create).unwrap(), written, syncs)
}

#[test]
fn a_full_disk_stops_the_journal_and_reaches_all_who_wait() {
    let length = line(&key(0), &caption("x")).len();
    let (journal, written, _) = on_small_disk(3 * length + length / 2, usize::MAX);
    for n in 0..3 {
        journal.append_blocking(&key(n), &caption("x")).unwrap();
    }
    let journal = Arc::new(journal);
    runtime().block_on(async {
        let tasks: Vec<_> = (3..40)
            .map(|n| {
                let journal = Arc::clone(&journal);
                tokio::spawn(async move { journal.append(&key(n), &caption("x")).await })
            })
            .collect();
        for task in tasks {
            assert!(task.await.unwrap().unwrap_err().is_full_disk());
        }
    });
    assert_eq!(journal.durable(), 3);
    let (entries, damaged) = read(&written.lock().unwrap());
    assert_eq!((entries.len(), damaged), (3, 1), "nothing is glued to the torn line");
    assert!(Arc::into_inner(journal).unwrap().close().unwrap_err().is_full_disk());
}

#[test]
fn a_failed_sync_stops_the_journal() {
    let (journal, _, syncs) = on_small_disk(usize::MAX, 1);
    journal.append_blocking(&key(0), &caption("x")).unwrap();
    for n in 1..3 {
        let error = journal.append_blocking(&key(n), &caption("x")).unwrap_err();
        assert_eq!(error.to_string(), "cannot sync small.jsonl");
    }
    assert_eq!((journal.durable(), syncs.load(Ordering::SeqCst)), (1, 2), "after a failed sync no other is believed");
}

#[test]
fn answers_share_syncs() {
    let (journal, written, syncs) = on_small_disk(usize::MAX, usize::MAX);
    let done: Vec<_> = (0..800).map(|n| journal.push(&key(n), &caption("x")).unwrap()).collect();
    for done in done {
        done.blocking_recv().unwrap().unwrap();
    }
    assert_eq!(read(&written.lock().unwrap()).0.len(), 800);
    assert!(syncs.load(Ordering::SeqCst) <= 100, "{syncs:?}");
}

#[test]
fn merging_keeps_what_is_wanted_and_leaves_those_at_work() {
    let workdir = tempfile::tempdir().unwrap();
    let write = |attempt: &str, entries: &[(usize, Entry)]| {
        let (journal, _) = Journal::open(workdir.path(), attempt).unwrap();
        for (n, entry) in entries {
            journal.append_blocking(&key(*n), entry).unwrap();
        }
    };
    write("a", &[(1, refused()), (2, caption("two"))]);
    write("b", &[(1, caption("one")), (3, caption("three"))]);
    write("c", &[(4, caption("four"))]);
    fs::write(workdir.path().join("d.jsonl"), "{\"crc\":\"").unwrap();
    let compacted = compact(workdir.path(), "merged", |attempt| attempt == "c", |k| *k != key(3)).unwrap();
    assert_eq!(compacted, Compacted { segments: 3, kept: 2, dropped: 1, damaged: 1 });
    let cache = read_folder(workdir.path()).unwrap();
    assert_eq!((cache.segments, cache.damaged), (2, 0));
    let expected = [(1, "one"), (2, "two"), (4, "four")].map(|(n, text)| (key(n), caption(text)));
    assert_eq!(cache.entries, HashMap::from(expected));
    // Again: the merged one is merged into itself, and then away.
    assert_eq!(compact(workdir.path(), "merged", |_| false, |_| true).unwrap().kept, 3);
    assert_eq!(compact(workdir.path(), "merged", |_| false, |_| false).unwrap().dropped, 3);
    assert_eq!(fs::read_dir(workdir.path()).unwrap().count(), 0);
}

#[test]
fn what_other_partitions_have_answered_is_found_wherever_the_workdir_lies() {
    let (place, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let scratch = place.path().join("scratch");
    let on_store = Workdir::on_store(Arc::new(InMemory::new()), "a", "memory://a", &scratch).unwrap();
    for workdir in [Workdir::local(&place.path().join("work")), on_store] {
        let put =
            |name: &str, lines: &[Vec<u8>]| workdir.replace(&format!("captions/{name}"), &lines.concat()).unwrap();
        let mut damaged = line(&key(5), &caption("five"));
        *damaged.iter_mut().rev().nth(10).unwrap() ^= 1;
        let torn = line(&key(6), &caption("six"));
        put("part-00000/a.jsonl", &[line(&key(1), &refused()), damaged, line(&key(2), &caption("two"))]);
        put("part-00000/b.jsonl", &[line(&key(1), &caption("one")), torn[..torn.len() / 2].to_vec()]);
        put("part-00001/a-000001.jsonl", &[line(&key(3), &refused())]);
        put("part-00001/.c.jsonl", &[line(&key(7), &caption("seven"))]);
        put("part-00002/a.jsonl", &[line(&key(4), &caption("four"))]);
        // By a listing of each, and by one of all.
        for (partitions, fourth) in [(2, None), (100, Some(caption("four")))] {
            let names: Vec<String> = (0..partitions).map(|n| format!("part-{n:05}")).collect();
            let others = Others::new(&workdir, "captions".to_owned(), names);
            // Who gives up in the middle leaves nothing half done.
            let given_up = async { tokio::time::timeout(Duration::ZERO, others.find(&key(1))).await.is_err() };
            runtime.block_on(given_up);
            let found: Vec<Option<Entry>> = (1..8).map(|n| runtime.block_on(others.find(&key(n))).unwrap()).collect();
            let expected = [Some(caption("one")), Some(caption("two")), Some(refused()), fourth, None, None, None];
            assert_eq!(found, expected, "{workdir}");
            // They are looked through once.
            put("part-00001/d.jsonl", &[line(&key(8), &caption("eight"))]);
            assert_eq!(runtime.block_on(others.clone().find(&key(8))).unwrap(), None);
            workdir.remove("captions/part-00001/d.jsonl").unwrap();
        }
    }
}

#[test]
fn a_line_without_end_is_skipped_without_being_held() {
    let mut bytes = line(&key(1), &caption("one"));
    bytes.extend(std::iter::repeat_n(b'x', 3 * LONGEST_LINE));
    bytes.push(b'\n');
    bytes.extend(line(&key(2), &caption("two")));
    assert_eq!(read(&bytes), (vec![(key(1), caption("one")), (key(2), caption("two"))], 1));
    let (journal, ..) = on_small_disk(usize::MAX, usize::MAX);
    let error = journal.append_blocking(&key(1), &caption(&"x".repeat(LONGEST_LINE))).unwrap_err();
    assert!(matches!(error, JournalError::TooLong { .. }));
    journal.append_blocking(&key(1), &caption("x")).unwrap();
}

fn entries() -> impl Strategy<Value = Vec<(CacheKey, Entry)>> {
    let entry = prop_oneof![
        any::<String>().prop_map(|text| caption(&text)),
        any::<(String, String)>().prop_map(|(reason, detail)| Entry::Refused { reason, detail }),
    ];
    proptest::collection::vec((any::<usize>().prop_map(key), entry), 1..6)
}

proptest! {
    #[test]
    fn whatever_is_cut_off_all_before_it_is_read(entries in entries(), at in any::<proptest::sample::Index>()) {
        let lines: Vec<_> = entries.iter().map(|(key, entry)| line(key, entry)).collect();
        let bytes = lines.concat();
        let at = at.index(bytes.len() + 1);
        let (found, damaged) = read(&bytes[..at]);
        let mut end = 0;
        let whole = lines.iter().take_while(|line| { end += line.len(); end <= at }).count();
        prop_assert!(found.len() >= whole && found.len() <= whole + 1);
        prop_assert_eq!(&found[..], &entries[..found.len()]);
        prop_assert!(damaged <= 1);
    }

    #[test]
    fn whichever_byte_is_broken_only_what_was_written_is_read(
        entries in entries(),
        at in any::<proptest::sample::Index>(),
        mask in 1_u8..=255,
    ) {
        let mut bytes: Vec<_> = entries.iter().flat_map(|(key, entry)| line(key, entry)).collect();
        let at = at.index(bytes.len());
        bytes[at] ^= mask;
        let (found, damaged) = read(&bytes);
        // In order, with at most two lines missing: a broken line end takes the next line with it.
        let mut rest = entries.iter();
        prop_assert!(found.iter().all(|entry| rest.any(|written| written == entry)));
        prop_assert!(found.len() + 2 >= entries.len() && damaged <= 2);
    }
}

/// Not a test of anything: says how many answers a second become durable on this disk.
#[test]
#[ignore = "a measurement"]
fn how_long_appending_takes() {
    let folder = tempfile::tempdir_in(".").unwrap();
    let (journal, _) = Journal::open(folder.path(), "one").unwrap();
    let journal = Arc::new(journal);
    let (rows, answers) = (256, 40);
    let text = "A brown dog runs along a sandy beach at sunset. ".repeat(18);
    let start = Instant::now();
    runtime().block_on(async {
        let tasks: Vec<_> = (0..rows)
            .map(|row| {
                let (journal, entry) = (Arc::clone(&journal), caption(&text));
                tokio::spawn(async move {
                    for n in 0..answers {
                        journal.append(&key(row * answers + n), &entry).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    let took = start.elapsed();
    let start = Instant::now();
    let cache = read_folder(folder.path()).unwrap();
    println!("{} answers of {rows} rows in {took:?}; read again in {:?}", cache.entries.len(), start.elapsed());
}
