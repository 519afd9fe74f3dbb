//! Files from a hub (`tests/hub`): `fetch` as a stage and as a command, and what happens when the hub is not well.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use hub::{Access, Fault, Hub, RepoKind, Side};
use serde_json::Value;

use crate::support::{ferrotype, folder, text};

const TOKEN: &str = "hf_5ecret0fTheTest";

/// A hub with the dataset `me/data`, and a manifest that fetches it.
struct Place {
    hub: Hub,
    folder: tempfile::TempDir,
    token: Option<&'static str>,
}

/// Bytes that differ from place to place.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

impl Place {
    fn new(keys: &str) -> Self {
        let place = Self { hub: Hub::start().unwrap(), folder: folder(), token: None };
        let manifest = format!(
            "[pipeline]\nname = \"test\"\nworkdir = \"{}\"\n[stage.files]\nuses = \"fetch\"\nurl = \"hf://datasets/me/data\"\n{keys}\n",
            place.workdir().display()
        );
        std::fs::write(place.manifest(), manifest).unwrap();
        place
    }

    fn workdir(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    fn manifest(&self) -> PathBuf {
        self.folder.path().join("test.toml")
    }

    fn commit(&self, files: &[(&str, Vec<u8>)]) -> String {
        self.hub.create(RepoKind::Dataset, "me/data").commit("main", files.iter().cloned())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = ferrotype();
        command.args(arguments).current_dir(self.folder.path());
        command.env("HF_ENDPOINT", self.hub.endpoint()).env_remove("HF_TOKEN");
        if let Some(token) = self.token {
            command.env("HF_TOKEN", token);
        }
        command
    }

    fn run(&self, more: &[&str]) -> Output {
        self.command(&[&["run", "test.toml"], more].concat()).output().unwrap()
    }

    /// The fetched files by their names.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let stage = self.workdir().join("stages/files");
        let mut files = BTreeMap::new();
        // Of a partition that was made again the newest record counts.
        let mut records: Vec<Value> = Vec::new();
        for entry in std::fs::read_dir(&stage).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("part-") && name.ends_with(".json") {
                records.push(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap());
            }
        }
        records.sort_by_key(|record| record["finished_at"].as_u64());
        for record in records {
            let names = record["details"]["names"].as_array().unwrap().iter();
            for (name, data) in names.zip(record["data"].as_array().unwrap()) {
                let content = std::fs::read(stage.join(data["file"].as_str().unwrap())).unwrap();
                files.insert(name.as_str().unwrap().to_owned(), content);
            }
        }
        files
    }

    /// Names of files that were asked for at the hub, in order.
    fn asked(&self, before: usize) -> Vec<String> {
        let requests = self.hub.requests();
        let resolved = requests.iter().skip(before).filter(|asked| asked.side == Side::Hub && asked.method == "GET");
        let name = |path: &str| {
            let (_, rest) = path.split_once("/resolve/")?;
            Some(rest.split_once('/')?.1.split('?').next()?.to_owned())
        };
        resolved.filter_map(|asked| name(&asked.path)).collect()
    }
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

fn failed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    text(&output.stderr)
}

fn three() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("README.md", b"# about\n".to_vec()),
        ("data/a.jsonl", b"{\"id\": 1}\n".to_vec()),
        ("data/b.bin", bytes(1, 300_000)),
    ]
}

fn expected(files: &[(&str, Vec<u8>)]) -> BTreeMap<String, Vec<u8>> {
    files.iter().map(|(name, content)| ((*name).to_owned(), content.clone())).collect()
}

#[test]
fn files_come_once_and_a_newer_commit_brings_what_it_changed() {
    let place = Place::new("exclude = \"*.md\"");
    place.commit(&three());
    succeeded(&place.run(&[]));
    assert_eq!(place.files(), expected(&three()[1..]));
    assert!(place.hub.requests().iter().all(|asked| asked.side == Side::Hub || !asked.has_authorization));
    let before = place.hub.requests().len();
    let again = place.run(&[]);
    succeeded(&again);
    assert!(place.asked(before).is_empty(), "nothing comes twice");
    // One file in front of the others, which get other numbers, and one that changed.
    place.commit(&[("data/0.bin", bytes(7, 100_000)), ("data/a.jsonl", b"{\"id\": 2}\n".to_vec())]);
    let before = place.hub.requests().len();
    succeeded(&place.run(&[]));
    let mut came = place.asked(before);
    came.sort();
    assert_eq!(came, ["data/0.bin", "data/a.jsonl"]);
    let files = place.files();
    assert_eq!((&files["data/a.jsonl"][..], files["data/b.bin"].len()), (&b"{\"id\": 2}\n"[..], 300_000));
    succeeded(&place.command(&["verify", "test.toml"]).output().unwrap());
    // Unless it is asked for.
    let before = place.hub.requests().len();
    succeeded(&place.run(&["--force"]));
    assert_eq!((place.asked(before).len(), place.files()), (3, files));
    // Without the hub, what it held last counts.
    place.hub.fault(Fault::status(503).always());
    succeeded(&place.run(&[]));
}

#[test]
fn a_transfer_that_breaks_or_is_killed_goes_on_where_it_was() {
    let place = Place::new("include = \"data/b.bin\"\ntries = 3");
    place.commit(&three());
    place.hub.fault(Fault::cut(100_000).at(Side::Cdn));
    succeeded(&place.run(&[]));
    assert_eq!(place.files()["data/b.bin"], three()[2].1);
    let ranges = |place: &Place| -> Vec<String> {
        let at_storage = place.hub.requests().into_iter().filter(|asked| asked.side == Side::Cdn);
        at_storage.map(|asked| asked.range.unwrap_or_default()).collect()
    };
    assert_eq!(ranges(&place), ["", "bytes=100000-"]);

    let killed = Place::new("include = \"data/b.bin\"");
    killed.commit(&three());
    killed.hub.fault(Fault::slow(200_000).at(Side::Cdn));
    let mut child = killed.command(&["run", "test.toml", "-q"]).spawn().unwrap();
    let partial = killed.workdir().join("stages/files/partial");
    let has_some = || {
        let entries = std::fs::read_dir(&partial).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).any(|metadata| metadata.len() > 10_000)
    };
    let start = Instant::now();
    while !has_some() && start.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    succeeded(&killed.run(&[]));
    assert_eq!(killed.files()["data/b.bin"], three()[2].1);
    let last = ranges(&killed).pop().unwrap();
    assert!(last.starts_with("bytes=") && last != "bytes=0-", "{last}");
    assert!(std::fs::read_dir(&partial).unwrap().next().is_none(), "nothing is left of it");
}

#[test]
fn an_archive_that_cannot_be_unpacked_is_kept_as_it_is_without_a_second_transfer() {
    let place = Place::new("unpack = true");
    let damaged = [("x.tar", bytes(3, 200_000))];
    place.commit(&damaged);
    let said = failed(&place.run(&[]));
    assert!(said.contains("x.tar cannot be unpacked") && said.contains("leave `unpack` away"), "{said}");
    assert_eq!(place.asked(0), ["x.tar"]);
    let before = place.hub.requests().len();
    succeeded(&place.run(&["--set", "stage.files.unpack=false"]));
    assert_eq!(place.asked(before), [""; 0], "it came whole the first time");
    assert_eq!(place.files(), expected(&damaged));
    let partial = place.workdir().join("stages/files/partial");
    assert!(std::fs::read_dir(&partial).unwrap().next().is_none(), "nothing is left of it");
}

#[test]
fn a_hub_that_is_away_for_a_while_is_waited_for_and_one_that_lies_is_not_believed() {
    let place = Place::new("tries = 8");
    place.commit(&three());
    place.hub.outage(Duration::from_secs(3));
    place.hub.fault(Fault::rate_limited(1).on("/resolve/"));
    succeeded(&place.run(&[]));
    assert_eq!(place.files(), expected(&three()));

    let lying = Place::new("tries = 2");
    lying.commit(&three());
    lying.hub.fault(Fault::corrupt().at(Side::Cdn).always());
    let said = failed(&lying.run(&[]));
    assert!(said.contains("data/b.bin") && said.contains("another digest than what was listed"), "{said}");
    lying.hub.heal();
    succeeded(&lying.run(&[]));
    assert_eq!(lying.files(), expected(&three()), "and nothing of the lie is left");
}

#[test]
#[ignore = "slow: a minute of waiting; run by `make soak`"]
fn soak_a_hub_that_is_away_for_a_minute_is_waited_for() {
    let place = Place::new("");
    place.commit(&three());
    succeeded(&place.command(&["plan", "test.toml"]).output().unwrap());
    place.hub.outage(Duration::from_mins(1));
    succeeded(&place.run(&[]));
    assert_eq!(place.files(), expected(&three()));
    // Of one of which nothing is known yet it is said, before anything starts.
    let other = Place::new("");
    other.commit(&three());
    other.hub.outage(Duration::from_mins(1));
    let said = failed(&other.run(&[]));
    assert!(said.contains("503") && said.contains("hf://datasets/me/data cannot be reached"), "{said}");
}

#[test]
fn a_branch_that_moves_under_a_run_gives_one_commit() {
    let place = Place::new("in_flight = 1");
    let first = place.commit(&three());
    place.commit(&[("data/a.jsonl", b"{\"id\": 3}\n".to_vec()), ("data/b.bin", bytes(2, 300_000))]);
    let second = place.hub.commits(RepoKind::Dataset, "me/data", "main")[0].oid.clone();
    place.hub.create(RepoKind::Dataset, "me/data").move_to("main", &first);
    // As soon as the listing was asked for.
    place.hub.fault(Fault::moved(RepoKind::Dataset, "me/data", "main", &second).on("/resolve/"));
    succeeded(&place.run(&[]));
    assert_eq!(place.files(), expected(&three()), "all of them of the first");
    succeeded(&place.run(&[]));
    assert_eq!(place.files()["data/b.bin"], bytes(2, 300_000), "the next run follows");
}

/// Everything that a run wrote or said.
fn all_texts(folder: &Path, outputs: &[Output]) -> String {
    let mut all = String::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                all += &String::from_utf8_lossy(&std::fs::read(path).unwrap());
            }
        }
    }
    for output in outputs {
        all += &text(&output.stdout);
        all += &text(&output.stderr);
    }
    all
}

#[test]
fn what_is_gated_needs_a_token_which_is_told_nowhere() {
    let mut place = Place::new("");
    place.commit(&three());
    let _ = place.hub.create(RepoKind::Dataset, "me/data").gated();
    place.hub.token(TOKEN, Access::read("somebody").granted("me/data"));
    place.hub.token("hf_0ther", Access::read("other"));
    let mut outputs = Vec::new();
    for (token, words) in [
        (None, "it is gated: ask for access on its page, and set HF_TOKEN"),
        (Some("hf_wr0ng"), "is the token in HF_TOKEN right?"),
        (Some("hf_0ther"), "the token in HF_TOKEN has no access"),
    ] {
        place.token = token;
        let output = place.run(&[]);
        let said = failed(&output);
        assert!(said.contains(words) && said.contains("hf://datasets/me/data"), "{said}");
        outputs.push(output);
    }
    place.token = Some(TOKEN);
    for arguments in [
        &["run", "test.toml", "--json"][..],
        &["report", "test.toml"],
        &["status", "test.toml"],
        &["plan", "test.toml"],
    ] {
        let output = place.command(arguments).output().unwrap();
        succeeded(&output);
        outputs.push(output);
    }
    assert_eq!(place.files(), expected(&three()));
    // The storage refuses tokens, and never saw one.
    assert!(place.hub.requests().iter().all(|asked| asked.side == Side::Hub || !asked.has_authorization));
    let _ = place.hub.create(RepoKind::Dataset, "me/data").delete("main", &["README.md", "data/a.jsonl", "data/b.bin"]);
    place.commit(&[("new.bin", bytes(4, 100_000))]);
    place.hub.fault(Fault::corrupt().at(Side::Cdn).always());
    let broken = place.run(&["--set", "stage.files.tries=1"]);
    failed(&broken);
    outputs.push(broken);
    let all = all_texts(place.folder.path(), &outputs);
    for token in [TOKEN, "hf_wr0ng", "hf_0ther"] {
        assert!(!all.contains(token), "{token}");
    }
    // In a file beside, in place of the environment.
    place.token = None;
    place.hub.heal();
    std::fs::write(place.folder.path().join(".env"), format!("HF_TOKEN={TOKEN}\n")).unwrap();
    succeeded(&place.run(&[]));
}

#[test]
fn what_is_not_there_is_named() {
    let place = Place::new("");
    for (revision, words) in [("", "does it exist"), ("@v9", "it has no such revision")] {
        let url = format!("stage.files.url=\"hf://datasets/me/data{revision}\"");
        let said = failed(&place.run(&["--set", &url]));
        assert!(said.contains(words) && said.contains("hf://datasets/me/data"), "{said}");
        place.commit(&three());
    }
    let said = failed(&place.run(&["--set", "stage.files.include=\"*.tar\""]));
    assert!(said.contains("has 3 files, none of which is meant") && said.contains("data/a.jsonl"), "{said}");
}

#[test]
fn a_full_disk_loses_nothing_that_came() {
    let place = Place::new("include = \"data/*\"");
    place.commit(&[("data/0.bin", bytes(1, 400_000)), ("data/1.bin", bytes(2, 900_000))]);
    let workdir = place.workdir();
    std::fs::create_dir(&workdir).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(&workdir).output();
    if !mount.is_ok_and(|mounted| mounted.status.success()) {
        eprintln!("skipped: this user may not mount a small disk");
        return;
    }
    let said = failed(&place.run(&["--set", "stage.files.in_flight=1"]));
    let larger = Command::new("mount").args(["-o", "remount,size=8m"]).arg(&workdir).status().unwrap().success();
    let again = place.run(&[]);
    let came = place.asked(0);
    let files = place.files();
    Command::new("umount").arg(&workdir).status().unwrap();
    assert!(said.contains("No space left on device"), "{said}");
    assert!(larger);
    succeeded(&again);
    assert_eq!((files["data/0.bin"].len(), &files["data/1.bin"]), (400_000, &bytes(2, 900_000)));
    assert_eq!(came.iter().filter(|name| *name == "data/0.bin").count(), 1, "{came:?}");
    let ranges: Vec<_> = place.hub.requests().into_iter().filter_map(|asked| asked.range).collect();
    assert!(ranges.iter().any(|range| range.starts_with("bytes=") && range != "bytes=0-"), "it goes on: {ranges:?}");
}

#[test]
fn a_model_comes_to_a_folder_under_its_own_names() {
    let place = Place::new("");
    let weights = bytes(9, 200_000);
    let files = [("config.json", b"{}".to_vec()), ("text/model.safetensors", weights.clone()), ("x.bin", vec![1])];
    place.hub.create(RepoKind::Model, "me/model").commit("main", files);
    let fetch = |more: &[&str]| {
        let arguments = [&["fetch", "hf://me/model", "--to", "models/m", "--exclude", "*.bin"], more].concat();
        place.command(&arguments).output().unwrap()
    };
    succeeded(&fetch(&[]));
    let folder = place.folder.path().join("models/m");
    assert_eq!(std::fs::read(folder.join("text/model.safetensors")).unwrap(), weights);
    assert!(folder.join("config.json").exists() && !folder.join("x.bin").exists());
    let before = place.hub.requests().len();
    let again = fetch(&[]);
    succeeded(&again);
    assert!(text(&again.stderr).contains("2 files") && text(&again.stderr).contains("2 of them were there already"));
    assert!(place.asked(before).is_empty());
    // What was changed here is brought again.
    std::fs::write(folder.join("config.json"), "[]").unwrap();
    succeeded(&fetch(&[]));
    assert_eq!(std::fs::read(folder.join("config.json")).unwrap(), b"{}");
    let said = failed(&place.command(&["fetch", "hf://me/none", "--to", "x"]).output().unwrap());
    assert!(said.contains("hf://me/none"), "{said}");
}
