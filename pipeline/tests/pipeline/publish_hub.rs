//! `publish` to a stand-in for the Hugging Face Hub, which misbehaves as it is told to.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hub::{Access, Fault, Hub, RepoKind, Side};
use pipeline::run::{Options, RunError, run};
use pipeline::stage::Cancel;
use shards::event::{EventSink, RunOutcome};

use crate::publish::{Elsewhere, detail, record, rows, shards, to};
use crate::samples::{Columns, Place, Sample, with_causes};

const TOKEN: &str = "hf_secret_of_this_test";
const DATASET: RepoKind = RepoKind::Dataset;

/// A hub that lets us write as `me`, and the table of a publication to it.
fn hub_for(name: &str) -> (Hub, String) {
    let hub = Hub::start().unwrap();
    hub.token(TOKEN, Access::write("me"));
    let table = table(&hub, name, TOKEN);
    (hub, table)
}

fn table(hub: &Hub, name: &str, token: &str) -> String {
    let elsewhere = Elsewhere { endpoint: hub.endpoint(), token: Some(token.to_owned()), store: Arc::default() };
    to(&format!("hf://datasets/{name}"), elsewhere)
}

fn place(partitions: usize) -> Place {
    let place = Place::new();
    place.write_all(&(0..partitions).map(|n| rows(3 * n, 3)).collect::<Vec<_>>());
    place
}

/// Objects and parts of them that came whole, by their addresses without what makes each another.
fn puts(hub: &Hub) -> Vec<String> {
    let came = hub.requests().into_iter().filter(|asked| asked.method == "PUT" && asked.status == Some(200));
    came.map(|asked| asked.path.split('?').next().unwrap().to_owned()).collect()
}

/// The dataset's shards, byte for byte, by their names.
fn published(hub: &Hub, name: &str, revision: &str) -> Vec<(String, Vec<u8>)> {
    let files = hub.files(DATASET, name, revision).unwrap().into_iter();
    files.filter(|(path, _)| path.contains("train-")).map(|(path, content)| (path, content.to_vec())).collect()
}

fn named(shards: Vec<Vec<u8>>) -> Vec<(String, Vec<u8>)> {
    let of = shards.len();
    shards.into_iter().enumerate().map(|(n, bytes)| (format!("data/train-{n:05}-of-{of:05}.parquet"), bytes)).collect()
}

fn titles(hub: &Hub, name: &str) -> Vec<String> {
    hub.commits(DATASET, name, "main").into_iter().rev().map(|commit| commit.title).collect()
}

/// Every file below a folder that holds a text.
fn holding(folder: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(holding(&path, text));
        } else if std::fs::read(&path).unwrap().windows(text.len()).any(|bytes| bytes == text.as_bytes()) {
            found.push(path.display().to_string());
        }
    }
    found
}

/// Runs a publication, and collects everything that watchers hear.
fn watched(place: &Place, table: &str, cancel: &Cancel) -> (Result<RunOutcome, RunError>, String) {
    let heard = Arc::new(Mutex::new(String::new()));
    let sink = EventSink::new({
        let heard = Arc::clone(&heard);
        move |event| {
            let mut heard = heard.lock().unwrap();
            heard.push_str(&serde_json::to_string(&event).unwrap());
            heard.push('\n');
        }
    });
    let mut plan = place.plan(table).unwrap();
    let outcome = run(&mut plan, &Options { cores: 2, ..Options::default() }, &sink, cancel);
    let heard = heard.lock().unwrap().clone();
    (outcome, heard)
}

#[test]
fn a_dataset_is_made_filled_and_not_filled_again() {
    let (hub, table) = hub_for("me/whole");
    let place = place(3);
    let (outcome, heard) = watched(&place, &table, &Cancel::default());
    assert_eq!(outcome.unwrap(), RunOutcome::Done);
    assert!(heard.contains("made the private dataset me/whole"), "{heard}");
    assert_eq!(hub.is_private(DATASET, "me/whole"), Some(true));
    let ran = place.run(&table);
    assert!(ran.made().is_empty(), "it is published");
    assert_eq!(published(&hub, "me/whole", "main"), named(shards(&ran, "in")));
    assert!(hub.stored(DATASET, "me/whole", "main").unwrap()["data/train-00001-of-00003.parquet"].is_lfs());
    assert_eq!(titles(&hub, "me/whole"), ["initial commit", "Publish whole"]);
    let record = record(&ran);
    assert_eq!((record.rows_in, record.rows_out, record.data.len()), (9, 9, 0));
    assert_eq!(record.details["commit"], hub.commits(DATASET, "me/whole", "main")[0].oid);
    assert_eq!(record.details["url"], format!("{}/datasets/me/whole", hub.endpoint()));
    assert_eq!(puts(&hub).len(), 3);
    let card = hub.files(DATASET, "me/whole", "main").unwrap()["README.md"].clone();
    let card = String::from_utf8(card.to_vec()).unwrap();
    assert!(card.contains("load_dataset(\"me/whole\", split=\"train\")"), "{card}");
    assert!(card.contains("path: \"data/train-*-of-00003.parquet\"") && card.contains("dtype: image"), "{card}");

    // Another card, and the same shards.
    let ran = place.run(&format!("{table}\ndescription = \"Pets.\"\nmessage = \"Say more\""));
    assert_eq!((detail(&ran, "files_sent"), detail(&ran, "commits")), (0, 1));
    assert_eq!(titles(&hub, "me/whole"), ["initial commit", "Publish whole", "Say more"]);
    assert_eq!(puts(&hub).len(), 3);
    assert_eq!(published(&hub, "me/whole", "main"), named(shards(&ran, "in")));
    // Back again: its record stands, though the card is another now.
    assert!(place.run(&table).made().is_empty());

    let on_storage: Vec<_> = hub.requests().into_iter().filter(|asked| asked.side == Side::Cdn).collect();
    assert!(on_storage.iter().all(|asked| !asked.has_authorization));
    assert_eq!(holding(place.path(), TOKEN), [""; 0], "the token is nowhere");
    assert!(!heard.contains(TOKEN) && !card.contains(TOKEN));
}

#[test]
fn what_was_sent_before_an_interruption_is_not_sent_again() {
    let (hub, table) = hub_for("me/interrupted");
    let table = format!("{table}\nfiles_per_commit = 2");
    let place = place(6);
    let cancel = Cancel::default();
    hub.fault(Fault::late(Duration::from_mins(1)).on("/commit/").after(1));
    let (outcome, waited) = std::thread::scope(|scope| {
        let running = scope.spawn(|| watched(&place, &table, &cancel).0);
        while hub.count("POST", "/commit/") < 2 && !running.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let asked = Instant::now();
        cancel.cancel();
        (running.join().unwrap(), asked.elapsed())
    });
    assert_eq!(outcome.unwrap(), RunOutcome::Interrupted);
    assert!(waited < Duration::from_secs(5), "{waited:?}");
    assert_eq!(titles(&hub, "me/interrupted"), ["initial commit", "Publish interrupted (1 of 3)"]);
    assert_eq!(puts(&hub).len(), 4, "those of the commit that was not answered are there, too");

    hub.heal();
    let ran = place.run(&table);
    assert_eq!((detail(&ran, "files_sent"), detail(&ran, "commits")), (2, 2));
    let puts = puts(&hub);
    assert_eq!((puts.len(), puts.iter().collect::<BTreeSet<_>>().len()), (6, 6), "each was sent once");
    assert_eq!(published(&hub, "me/interrupted", "main"), named(shards(&ran, "in")));
}

#[test]
fn one_changed_shard_is_one_sent_and_what_is_no_longer_part_of_it_goes() {
    let (hub, table) = hub_for("me/changed");
    let place = place(3);
    place.run(&table);
    hub.create(DATASET, "me/changed").commit("main", [("notes.txt", "x"), ("data/test-00000-of-00001.parquet", "y")]);
    place.write(1, &rows(50, 3), Columns::All);
    let ran = place.run(&table);
    assert_eq!((detail(&ran, "files_sent"), detail(&ran, "files_removed")), (1, 0));
    assert_eq!(published(&hub, "me/changed", "main"), named(shards(&ran, "in")));
    // Those that are left get other names. The Hub has their content.
    place.remove(2);
    let ran = place.run(&table);
    assert_eq!((detail(&ran, "files_sent"), detail(&ran, "files_removed"), detail(&ran, "commits")), (0, 3, 1));
    assert_eq!(published(&hub, "me/changed", "main"), named(shards(&ran, "in")));
    let files = hub.files(DATASET, "me/changed", "main").unwrap();
    assert!(files.contains_key("notes.txt") && files.contains_key("data/test-00000-of-00001.parquet"), "{files:?}");
    assert_eq!(puts(&hub).len(), 4);
}

#[test]
fn commits_of_others_in_between_are_kept_and_an_endless_race_is_given_up() {
    let (hub, table) = hub_for("me/race");
    let place = place(2);
    let theirs = {
        let handle = hub.create(DATASET, "me/race");
        handle.commit("main", [("ours.txt", "x")]);
        handle.commit("side", [("theirs.txt", "x")])
    };
    hub.fault(Fault::moved(DATASET, "me/race", "main", &theirs).on("/commit/"));
    let ran = place.run(&table);
    assert_eq!(titles(&hub, "me/race"), ["By the test", "Publish race"]);
    assert!(hub.files(DATASET, "me/race", "main").unwrap().contains_key("theirs.txt"));
    assert_eq!(published(&hub, "me/race", "main"), named(shards(&ran, "in")));
    assert_eq!(detail(&ran, "commits"), 1);

    hub.fault(Fault::status(412).on("/commit/").always());
    let words = place.failure(&format!("{table}\ntitle = \"Other\""));
    assert!(words.contains("others have committed to hf://datasets/me/race 5 times"), "{words}");
}

#[test]
fn failures_that_pass_are_outlasted_and_others_are_told() {
    let (hub, table) = hub_for("me/faults");
    let place = place(3);
    hub.fault(Fault::status(503).on("/revision/").times(2));
    hub.fault(Fault::rate_limited(0).on("/preupload/"));
    hub.fault(Fault::status(500).at(Side::Cdn).retry_after(0).times(2));
    hub.fault(Fault::cut_request(100).at(Side::Cdn).after(3));
    hub.fault(Fault::status(502).on("/commit/").retry_after(0));
    let ran = place.run(&format!("{table}\nuploads = 1"));
    assert_eq!(published(&hub, "me/faults", "main"), named(shards(&ran, "in")));
    assert_eq!(titles(&hub, "me/faults").len(), 2);

    hub.outage(Duration::from_hours(1));
    let words = place.failure(&format!("{table}\ntitle = \"Other\"\nretries = 1"));
    assert!(words.contains("hf://datasets/me/faults cannot be reached") && words.contains("503"), "{words}");
    hub.heal();
    // A commit that was made, and whose answer was lost.
    let before = titles(&hub, "me/faults").len();
    hub.fault(Fault::cut(0).on("/commit/"));
    place.run(&format!("{table}\ntitle = \"Other\""));
    assert_eq!(titles(&hub, "me/faults").len(), before + 1);
}

#[test]
fn large_files_go_in_parts_and_only_lost_parts_go_again() {
    let (hub, table) = hub_for("me/large");
    let place = Place::new();
    let noise: Vec<u8> = (0..600_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    place.write_all(&[vec![Sample::new("src/0", noise, (8, 8))]]);
    hub.fault(Fault::status(500).on("partNumber=3").retry_after(0));
    let ran = place.run(&table);
    assert_eq!(published(&hub, "me/large", "main"), named(shards(&ran, "in")));
    let bytes = detail(&ran, "bytes") as usize;
    let parts = bytes.div_ceil(128 << 10);
    assert_eq!((puts(&hub).len(), hub.count("PUT", "partNumber=")), (parts, parts + 1), "{bytes} bytes");
    assert_eq!(hub.count("POST", "/api/complete_multipart"), 1);

    // An address that is no longer good: the Hub gives another.
    let batches = hub.count("POST", "/info/lfs/objects/batch");
    place.write(0, &rows(0, 2), Columns::All);
    hub.fault(Fault::status(403).at(Side::Cdn));
    let ran = place.run(&table);
    assert_eq!(hub.count("POST", "/info/lfs/objects/batch"), batches + 2);
    assert_eq!(published(&hub, "me/large", "main"), named(shards(&ran, "in")));
    // None that is ever good.
    place.write(0, &rows(0, 3), Columns::All);
    hub.fault(Fault::status(403).at(Side::Cdn).always());
    let words = place.failure(&table);
    assert!(words.contains("does not take it") && words.contains("403"), "{words}");
}

#[test]
fn tokens_that_may_not_are_told_so_and_never_shown() {
    let hub = Hub::start().unwrap();
    let place = place(1);
    hub.token("hf_reader", Access::read("me"));
    hub.token("hf_other", Access::write("you"));
    hub.create(DATASET, "me/there").commit("main", [("a.txt", "a")]);
    let cases = [
        ("hf_unknown", "me/there", "is the token in HF_TOKEN right"),
        ("hf_reader", "me/there", "must have write access to what is me's"),
        ("hf_other", "me/there", "must have write access to what is me's"),
        ("hf_reader", "me/absent", "the dataset cannot be made"),
        ("hf_other", "me/absent", "You don't have the rights to create a dataset"),
    ];
    for (token, name, expected) in cases {
        let (outcome, heard) = watched(&place, &table(&hub, name, token), &Cancel::default());
        let words = with_causes(&outcome.unwrap_err());
        assert!(words.contains(expected) && words.contains(&format!("hf://datasets/{name}")), "{token}: {words}");
        assert!(!words.contains(token) && !heard.contains(token), "{words}\n{heard}");
        assert_eq!(holding(place.path(), token), [""; 0]);
    }
    assert!(puts(&hub).is_empty());
    let elsewhere = Elsewhere { endpoint: hub.endpoint(), token: None, store: Arc::default() };
    let words = place.failure(&to("hf://datasets/me/none", elsewhere));
    assert!(words.contains("needs a token") && words.contains("set HF_TOKEN"), "{words}");
}

#[test]
#[ignore = "slow: a minute of waiting; run by `make soak`"]
fn soak_a_hub_that_is_away_for_a_minute_is_published_to_in_the_end() {
    let (hub, table) = hub_for("me/patient");
    let place = place(3);
    hub.outage(Duration::from_mins(1));
    let ran = place.run(&table);
    assert_eq!(published(&hub, "me/patient", "main"), named(shards(&ran, "in")));
}

#[test]
fn branches_and_datasets_are_made_only_where_they_may_be() {
    let (hub, branch) = hub_for("me/branch@v2");
    let place = place(1);
    let words = place.failure(&format!("{branch}\ncreate = false"));
    assert!(words.contains("there is no dataset me/branch") && words.contains("create = true"), "{words}");
    hub.create(DATASET, "me/branch").commit("main", [("a.txt", "a")]);
    let words = place.failure(&format!("{branch}\ncreate = false"));
    assert!(words.contains("the dataset me/branch has no branch v2"), "{words}");
    let ran = place.run(&branch);
    assert_eq!(published(&hub, "me/branch", "v2"), named(shards(&ran, "in")));
    assert_eq!(published(&hub, "me/branch", "main"), []);
    assert_eq!(record(&ran).details["url"], format!("{}/datasets/me/branch/tree/v2", hub.endpoint()));

    place.run(&format!("{}\nprivate = false", table(&hub, "me/public", TOKEN)));
    assert_eq!(hub.is_private(DATASET, "me/public"), Some(false));
}

#[test]
fn a_dataset_may_want_shards_in_its_commits_or_not_at_all() {
    let (hub, table) = hub_for("me/small");
    hub.set(|settings| settings.lfs_endings.clear());
    let handle = hub.create(DATASET, "me/small");
    handle.commit("main", [(".gitignore", "*.parquet\n")]);
    let place = place(2);
    let words = place.failure(&table);
    assert!(words.contains(".gitignore leaves out data/train-00000-of-00002.parquet"), "{words}");
    handle.delete("main", &[".gitignore"]);
    let ran = place.run(&table);
    let stored = hub.stored(DATASET, "me/small", "main").unwrap();
    assert!(!stored["data/train-00000-of-00002.parquet"].is_lfs());
    assert_eq!(published(&hub, "me/small", "main"), named(shards(&ran, "in")));
    let before = titles(&hub, "me/small").len();
    place.run(&format!("{table}\nlicense = \"mit\""));
    assert_eq!(titles(&hub, "me/small").len(), before + 1);
    assert!(puts(&hub).is_empty());
}
