//! Commits to a folder and to a store.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use super::*;
use crate::digest::Digest;
use crate::sidecar::{DataFile, FORMAT};

fn sidecar(file: &Path) -> Sidecar {
    let file = file.file_name().unwrap().to_string_lossy().into_owned();
    Sidecar {
        format: FORMAT,
        stage: "bucket".into(),
        kind: "bucket@1".into(),
        partition: "part-00000".into(),
        fingerprint: Digest::of(b"one"),
        parameters: Arc::new(serde_json::json!({})),
        inputs: Vec::new(),
        data: vec![DataFile { file, digest: Digest::of(b"data"), bytes: 4, rows: 1, footer: None, variant: None }],
        quarantine: None,
        rows_in: 1,
        rows_out: 1,
        dropped: BTreeMap::new(),
        observed: BTreeMap::new(),
        sections: Vec::new(),
        details: BTreeMap::new(),
        finished_at: 0,
        seconds: 0.0,
        version: "test".into(),
    }
}

fn both(check: impl Fn(&StageFolder)) {
    let folder = tempfile::tempdir().unwrap();
    check(&StageFolder::new(&Workdir::local(&folder.path().join("work")), "bucket"));
    let store = Arc::new(object_store::memory::InMemory::new());
    let remote = Workdir::on_store(store, "work", "memory://work", &folder.path().join("scratch")).unwrap();
    check(&StageFolder::new(&remote, "bucket"));
}

#[test]
fn the_first_sidecar_stands_and_the_losers_data_goes() {
    both(|folder| {
        let [first, second] = ["a", "b"].map(|runner| {
            let attempt = folder.attempt("part-00000", runner).unwrap();
            fs::write(attempt.data(), b"data").unwrap();
            sidecar(&attempt.data())
        });
        assert!(matches!(folder.commit(&first).unwrap(), Commit::Won));
        let Commit::Lost(winner) = folder.commit(&second).unwrap() else { panic!("two winners") };
        assert_eq!(winner.data, first.data);
        let listing = folder.listing().unwrap();
        assert!(folder.holds(&listing, &first.data[0].file));
        assert!(!folder.holds(&listing, &second.data[0].file));
    });
}

#[test]
fn no_record_names_refused_rows_whose_folder_cannot_be_synced() {
    let workdir = tempfile::tempdir().unwrap();
    let folder = StageFolder::new(&Workdir::local(workdir.path()), "bucket");
    let attempt = folder.attempt("part-00000", "a").unwrap();
    fs::write(attempt.data(), b"data").unwrap();
    let of_data = sidecar(&attempt.data());
    let file = format!("quarantine/{}", of_data.data[0].file);
    let refused = DataFile { file, ..of_data.data[0].clone() };
    let record = Sidecar { quarantine: Some(refused), ..of_data };
    fs::remove_dir(folder.path().join("quarantine")).unwrap();
    let error = folder.commit(&record).unwrap_err().to_string();
    assert!(error.contains("quarantine"), "{error}");
    assert_eq!(folder.listing().unwrap().sidecars.len(), 0);
    fs::create_dir(folder.path().join("quarantine")).unwrap();
    fs::write(attempt.quarantine(), b"data").unwrap();
    assert!(matches!(folder.commit(&record).unwrap(), Commit::Won));
}

#[test]
fn data_that_is_named_alike_in_every_attempt_stays_the_winners() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Arc::new(object_store::memory::InMemory::new());
    let workdir = Workdir::on_store(store, "work", "memory://work", scratch.path()).unwrap();
    let folder = StageFolder::new(&workdir, "download");
    let path = folder.path().join("x/00012.tar");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let commit = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let mut record = sidecar(&path);
        record.data[0].file = "x/00012.tar".to_owned();
        record.data[0].digest = Digest::of(bytes);
        let commit = folder.commit(&record).unwrap();
        (commit, record)
    };
    let (Commit::Won, first) = commit(b"ours") else { panic!("nobody was there before") };
    let (Commit::Lost(winner), _) = commit(b"late") else { panic!("two winners") };
    assert_eq!(winner.data, first.data);
    let stored = workdir.read(&folder.name_of("x/00012.tar")).unwrap().unwrap();
    assert_eq!(Digest::of(&stored), winner.data[0].digest);
    let copy = folder.fetch(&winner.data[0]).unwrap();
    assert_eq!(fs::read(copy).unwrap(), b"ours", "nor does the loser keep its own for a copy of it");
}

#[test]
fn a_record_that_is_replaced_stands_until_the_new_data_is_there() {
    both(|folder| {
        let [first, second] = ["a", "b"].map(|runner| folder.attempt("part-00000", runner).unwrap().data());
        let (old, new) = (sidecar(&first), sidecar(&second));
        let name = old.file_name();
        fs::write(&first, b"data").unwrap();
        folder.replace(&old).unwrap();
        // Readers by sidecars have a copy of it.
        folder.fetch_partition(&old).unwrap();
        if folder.workdir().is_remote() {
            // Its data cannot be taken to the store: there is none yet.
            folder.replace(&new).unwrap_err();
            assert_eq!(folder.read(&name).unwrap().data, old.data);
        }
        fs::write(&second, b"data").unwrap();
        folder.replace(&new).unwrap();
        assert_eq!(folder.read(&name).unwrap().data, new.data);
        assert_eq!(folder.listing().unwrap().sidecars, std::slice::from_ref(&name));
        folder.fetch_partition(&new).unwrap();
        let copy = fs::read(folder.path().join(&name)).unwrap();
        assert_eq!(Sidecar::parse(&copy, &second).unwrap().data, new.data);
        assert_eq!(folder.sweep(std::iter::empty(), || Ok(HashSet::new())).unwrap(), 1, "what the old one named");
    });
}

#[test]
fn a_record_goes_first_where_its_own_files_are_overwritten() {
    both(|folder| {
        let path = folder.attempt("part-00000", "a").unwrap().data();
        let old = sidecar(&path);
        fs::write(&path, b"data").unwrap();
        folder.commit(&old).unwrap();
        let mut new = old.clone();
        new.data[0].digest = Digest::of(b"other");
        if folder.workdir().is_remote() {
            fs::remove_file(&path).unwrap();
            // The same content does no harm to the record, other content would.
            folder.replace(&old).unwrap_err();
            assert_eq!(folder.listing().unwrap().sidecars.len(), 1);
            folder.replace(&new).unwrap_err();
            assert_eq!(folder.listing().unwrap().sidecars.len(), 0);
        }
        fs::write(&path, b"other").unwrap();
        folder.replace(&new).unwrap();
        assert_eq!(folder.read(&new.file_name()).unwrap().data, new.data);
    });
}

#[test]
fn sweeping_removes_what_nobody_names_or_works_on() {
    both(|folder| {
        let attempt = folder.attempt("part-00000", "a").unwrap();
        fs::write(attempt.data(), b"data").unwrap();
        let kept = sidecar(&attempt.data());
        folder.commit(&kept).unwrap();
        let dead = folder.attempt("part-00001", "dead").unwrap();
        fs::write(dead.data(), b"half").unwrap();
        fs::write(dead.tar(), b"half").unwrap();
        fs::write(dead.quarantine(), b"half").unwrap();
        let working = folder.attempt("part-00001", "working").unwrap();
        fs::write(working.data(), b"half").unwrap();
        let staging = folder.path().join(".part-00001.x.json.1");
        fs::write(&staging, b"half").unwrap();
        let old = std::time::SystemTime::now() - 2 * crate::lease::STALE;
        fs::File::options().append(true).open(&staging).unwrap().set_modified(old).unwrap();
        folder.workdir().replace(&folder.name_of("ledger.json"), b"{}").unwrap();
        // Committed by another run after this one had listed the records, and that run has ended.
        let late = folder.attempt("part-00002", "late").unwrap();
        fs::write(late.data(), b"data").unwrap();
        let late_sidecar = Sidecar { partition: "part-00002".into(), ..sidecar(&late.data()) };
        let living = || {
            folder.commit(&late_sidecar).unwrap();
            Ok(HashSet::from(["working".to_owned()]))
        };
        assert_eq!(folder.sweep([kept].iter(), living).unwrap(), 4);
        assert!(late.data().exists());
        assert!(attempt.data().exists() && working.data().exists() && !dead.data().exists() && !dead.tar().exists());
        let listing = folder.listing().unwrap();
        assert_eq!((listing.sidecars.len(), listing.files.contains_key("ledger.json")), (2, true));
    });
}

#[test]
fn an_abandoned_attempt_leaves_nothing() {
    both(|folder| {
        let attempt = folder.attempt("part-00000", "a").unwrap();
        for path in [attempt.data(), attempt.tar(), attempt.numbered(3), attempt.quarantine()] {
            fs::write(path, b"x").unwrap();
        }
        attempt.abandon();
        assert_eq!(local_names(&folder.path()).unwrap(), ["quarantine"]);
        assert_eq!(local_names(&folder.path().join("quarantine")).unwrap(), Vec::<String>::new());
    });
}
