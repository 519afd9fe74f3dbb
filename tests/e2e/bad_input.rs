//! Every fault in what the user wrote: one clear message with file, line, what was expected and the nearest name; exit code
//! 2; nothing started.

use std::net::TcpListener;

use crate::support::{folder, run, text};

const GOOD: &str = r#"[pipeline]
name = "test"
workdir = "WORKDIR"

[stage.download]
uses = "download"
urls = "URLS"

[stage.bucket]
uses = "bucket"
from = "download"
max_resolution = 32
patch_size = 4

[stage.index]
uses = "index"
from = "bucket"
"#;

#[test]
fn faults_in_a_manifest_are_named_with_line_and_remedy() {
    let cases = [
        (
            "max_resolution = 32",
            "max_resolutoin = 32",
            vec!["bad.toml:12", "`max_resolutoin`", "did you mean `max_resolution`?"],
        ),
        (
            "max_resolution = 32",
            "max_resolution = \"large\"",
            vec!["bad.toml:12", "max_resolution", "\"large\"", "whole number"],
        ),
        ("max_resolution = 32", "max_resolution = -32", vec!["bad.toml:12", "max_resolution", "-32", "from 0 to"]),
        ("max_resolution = 32\n", "", vec!["bad.toml:9", "missing key `max_resolution`"]),
        ("from = \"bucket\"", "from = \"buket\"", vec!["bad.toml:17", "`buket`", "did you mean `bucket`?"]),
        ("from = \"download\"", "from = \"index\"", vec!["cycle", "bucket → index → bucket"]),
        ("uses = \"index\"", "uses = \"indx\"", vec!["bad.toml:16", "`indx`", "did you mean `index`?"]),
        ("[stage.index]", "[stage.bucket]", vec!["bad.toml:15", "duplicate key"]),
        ("urls = \"URLS\"", "urls = \"nowhere.tsv\"", vec!["bad.toml:7", "nowhere.tsv", "cannot be read"]),
        ("[pipeline]", "[pipelin]", vec!["bad.toml:1", "`pipelin`", "did you mean `pipeline`?"]),
        ("patch_size = 4", "patch_size = 64", vec!["bad.toml:13", "patch_size = 64", "1 to max_resolution (32)"]),
        ("from = \"download\"\n", "", vec!["bad.toml:9", "reads from 0 stages", "from = \"STAGE\""]),
        ("name = \"test\"", "name = ", vec!["bad.toml:2", "not valid TOML"]),
        ("urls = \"URLS\"", "urls = \"URLS\"\nallow_networks = [\"home\"]", vec!["bad.toml:8", "`home`", "10.0.0.0/8"]),
        ("workdir = \"WORKDIR\"", "workdir = \"{env:FERROTYPE_NOT_SET}\"", vec!["bad.toml:3", "FERROTYPE_NOT_SET"]),
        ("workdir = \"WORKDIR\"", "workdir = \"s3://bucket/x\"", vec!["s3://bucket/x", "local"]),
    ];
    for (from, to, expected) in cases {
        let folder = folder();
        let (urls, workdir, manifest) =
            (folder.path().join("urls.tsv"), folder.path().join("work"), folder.path().join("bad.toml"));
        std::fs::write(&urls, "url\tcaption\n").unwrap();
        let good = GOOD.replace(from, to);
        assert_ne!(good, GOOD, "{from}");
        let good = good.replace("WORKDIR", &workdir.to_string_lossy()).replace("URLS", &urls.to_string_lossy());
        std::fs::write(&manifest, good).unwrap();
        let output = run(&["run", &manifest.to_string_lossy()]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{to}: {said}");
        for part in expected {
            assert!(said.contains(part), "{to}: expected {part} in\n{said}");
        }
        assert!(!workdir.exists(), "{to}: nothing is started");
    }
}

#[test]
fn all_faults_come_at_once() {
    let folder = folder();
    let manifest = folder.path().join("bad.toml");
    let bad = GOOD.replace("max_resolution", "max_resolutoin").replace("uses = \"index\"", "uses = \"indx\"");
    std::fs::write(&manifest, bad).unwrap();
    let said = text(&run(&["plan", &manifest.to_string_lossy()]).stderr);
    for part in ["max_resolutoin", "indx", "URLS"] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn a_set_on_the_command_line_is_named_when_it_is_wrong() {
    let folder = folder();
    let manifest = folder.path().join("good.toml");
    std::fs::write(folder.path().join("urls.tsv"), "url\tcaption\n").unwrap();
    let urls = folder.path().join("urls.tsv");
    std::fs::write(&manifest, GOOD.replace("URLS", &urls.to_string_lossy())).unwrap();
    let output = run(&["plan", &manifest.to_string_lossy(), "--set", "stage.bucket.patchsize=8"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("--set stage.bucket.patchsize=8") && said.contains("did you mean `patch_size`?"), "{said}");
}

#[test]
fn a_port_in_use_says_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = folder();
    let output = run(&["demo", "--workdir", &folder.path().join("work").to_string_lossy(), "--port", &port]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains(&port) && said.contains("--port"), "{said}");
}

#[test]
fn a_checkpoint_that_is_none_and_a_size_that_is_none_are_refused() {
    let folder = folder();
    let output = run(&["sample", "--checkpoint", &folder.path().to_string_lossy(), "--prompt", "x"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("checkpoint"), "{}", text(&output.stderr));
    for (size, word) in [("-3", "size"), ("0x16", "WIDTHxHEIGHT"), ("wide", "WIDTHxHEIGHT")] {
        let output = run(&["sample", "--checkpoint", ".", "--prompt", "x", &format!("--size={size}")]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(word), "{}", text(&output.stderr));
    }
    let output = run(&["sample", "--checkpoint", "."]);
    assert_eq!(output.status.code(), Some(2), "no prompt is a fault of usage");
}
