//! The real clients, in Python, against the hub. They are those of `make readers`; without them this says so and passes.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::path::{Path, PathBuf};
use std::process::Command;

use hub::{Access, Fault, Hub, RepoKind, Side};

const DATASET: RepoKind = RepoKind::Dataset;

/// One that has both packages, and what the script needs with them.
fn python() -> Option<PathBuf> {
    let imports = |python: &PathBuf| {
        let script = "import datasets, huggingface_hub, numpy, PIL, pyarrow";
        Command::new(python).args(["-c", script]).output().is_ok_and(|output| output.status.success())
    };
    let given = std::env::var_os("HUB_PYTHON").map(PathBuf::from);
    let readers = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/ferrotype/readers/bin/python"));
    let python = [given, readers].into_iter().flatten().find(imports);
    if python.is_none() {
        eprintln!("skipped: no Python with huggingface_hub and datasets; `make readers` installs one");
    }
    python
}

#[test]
fn the_real_clients_find_all_as_they_expect_it() {
    let Some(python) = python() else { return };
    let hub = Hub::start().unwrap();
    hub.token("hf_write", Access::write("me").member("lab"));
    hub.token("hf_read", Access::read("me"));
    hub.token("hf_other", Access::write("other"));
    hub.set(|settings| settings.page = 3);
    hub.create(DATASET, "me/gated").gated().commit("main", [("a.txt", "hello")]);
    hub.create(DATASET, "me/private").private().commit("main", [("a.txt", "hello"), ("x.tar", "0123456789")]);
    hub.create(DATASET, "me/cut").commit("main", [("cut.bin", vec![7; 11 << 20])]);
    // The client keeps whole pieces of 10 MiB of what it has read.
    hub.fault(Fault::cut((10 << 20) + 70_000).at(Side::Cdn).on("cut.bin"));
    // Of the second part of the first file that has parts.
    hub.fault(Fault::cut_request(1000).at(Side::Cdn).on("partNumber=2"));

    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/client.py")).arg(folder.path());
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_TOKEN"] {
        command.env_remove(name);
    }
    let ran = command
        .env("HF_ENDPOINT", hub.endpoint())
        .env("HF_HOME", folder.path().join("home"))
        .env("HF_HUB_DISABLE_XET", "1")
        .env("HF_HUB_DISABLE_TELEMETRY", "1")
        .env("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let asked = hub.requests();
    let last: Vec<_> =
        asked.iter().rev().take(8).map(|asked| (&asked.method, &asked.path, asked.status, asked.received)).collect();
    assert!(ran.status.success(), "{}{}\nlast asked: {last:?}", text(&ran.stdout), text(&ran.stderr));
    eprintln!("{}", text(&ran.stdout));

    let stored = hub.stored(DATASET, "me/data", "main").unwrap();
    let large: Vec<_> = stored.iter().filter(|(_, file)| file.is_lfs()).map(|(path, _)| path.as_str()).collect();
    assert_eq!(large, ["deep/copy.bin", "deep/large.bin", "deep/once.tar"]);
    assert_eq!(stored["more.txt"].content, "more");
    assert_eq!(hub.commits(DATASET, "me/data", "main").len(), 4);
    assert_eq!(hub.is_private(RepoKind::Model, "lab/model"), Some(true));
    let storage: Vec<_> = asked.iter().filter(|asked| asked.side == Side::Cdn).collect();
    assert!(storage.iter().all(|asked| !asked.has_authorization && asked.status != Some(400)));
    let parts: Vec<_> = storage.iter().filter(|asked| asked.path.contains("partNumber=")).collect();
    let statuses: Vec<_> = parts.iter().map(|asked| asked.status).collect();
    assert_eq!(statuses, [Some(200), None, Some(200), Some(200)], "the second was sent again");
    let cut: Vec<_> = storage.iter().filter(|asked| asked.path.contains("cut.bin")).collect();
    let ranges: Vec<_> = cut.iter().map(|asked| (asked.range.as_deref(), asked.sent)).collect();
    // The client keeps whole pieces of 10 MiB. On a busy machine the cut may overtake the one that it had not read yet: then it has
    // none, and asks for everything again.
    let again = [(Some("bytes=10485760-"), 1 << 20), (None, 11 << 20)];
    assert!(ranges.len() == 2 && ranges[0] == (None, (10 << 20) + 70_000) && again.contains(&ranges[1]), "{ranges:?}");
    assert!(asked.iter().any(|asked| asked.path.contains("/tree/") && asked.path.contains("cursor=")));
    assert!(
        asked.iter().all(|asked| asked.status.is_none_or(|status| status < 500)),
        "something is not as it should be"
    );
}
