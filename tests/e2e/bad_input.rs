//! Every fault in what the user wrote: one clear message with file, line, what was expected and the nearest name; exit code
//! 2; nothing started.

use std::fmt::Write as _;
use std::net::TcpListener;

use crate::support::{bucketed, ferrotype, folder, run, text};

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
        ("max_resolution = 32", "max_resolution = -32", vec!["bad.toml:12", "max_resolution", "-32", "from 1 to"]),
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
        (
            "workdir = \"WORKDIR\"",
            "workdir = \"ftp://host/x\"",
            vec!["bad.toml:3", "ftp://host/x", "s3://BUCKET/PREFIX"],
        ),
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

/// Stages that need torch: each fault in a stage of its own, so that one plan names them all. The messages of the other stages
/// are in `pipeline/tests/pipeline/snapshots`.
#[test]
fn every_fault_of_training_and_sampling_is_named_at_its_line() {
    let cases: &[(&str, &str, &str)] = &[
        ("train", "steps = 0", "steps = 0 is not possible: at least 1"),
        ("train", "steps = \"many\"", "steps: found text \"many\", expected a whole number, 0 or more"),
        ("train", "batch_size = 0", "batch_size = 0 is not possible: from 1 to a million"),
        ("train", "learning_rate = 2", "learning_rate = 2 is not possible: from 0 to 1"),
        ("train", "beta1 = 1", "beta1 = 1 is not possible: from 0 to below 1"),
        ("train", "beta2 = -0.5", "beta2 = -0.5 is not possible: from 0 to below 1"),
        ("train", "epsilon = 0", "epsilon = 0 is not possible: a small positive number"),
        ("train", "weight_decay = 11", "weight_decay = 11 is not possible: from 0 to 10"),
        ("train", "clip_norm = 0", "clip_norm = 0 is not possible: a positive number"),
        ("train", "ema_decay = 1.5", "ema_decay = 1.5 is not possible: from 0 to 1"),
        (
            "train",
            "micro_batch = 0",
            "micro_batch = 0 is not possible: at least 1; leave it out for a rank's whole share of a batch",
        ),
        (
            "train",
            "sample_grids = { prompts = [\"a dog\"], size = \"18x16\" }",
            "width = 18 is not possible: a positive multiple of 4 pixels, for this checkpoint",
        ),
        ("train", "null_caption = 10", "null_caption = 10 is not possible: a share from 0 to 1"),
        ("train", "time_shift = 0", "time_shift = 0 is not possible: a positive number; 1 leaves times as they are"),
        ("train", "width = 0", "width = 0 is not possible: from 1 to 65536"),
        (
            "train",
            "width = 100",
            "width = 100 is not possible: a multiple of 4 and of 48, so that each of the 12 heads has pairs for two axes",
        ),
        ("train", "blocks = 0", "blocks = 0 is not possible: from 1 to 65536"),
        ("train", "blocks = 2000", "blocks = 2000 is not possible: at most 1024"),
        ("train", "heads = 0", "heads = 0 is not possible: from 1 to 65536"),
        ("train", "patch_size = 0", "patch_size = 0 is not possible: from 1 to 65536"),
        (
            "train",
            "patch_size = 3",
            "buckets come in multiples of 4 pixels, but the model needs multiples of 6 (latent factor × patch_size): set bucket.patch_size = 6",
        ),
        ("train", "hidden_scale = 0", "hidden = 0 is not possible: from 1 to 65536"),
        ("train", "zero_gates = 1", "zero_gates: found number `1`, expected true or false"),
        (
            "train",
            "schedule = \"cosin\"",
            "schedule: unknown choice `cosin`, expected one of `constant`, `cosine`, `linear`",
        ),
        ("train", "checkpoint_every = -1", "checkpoint_every: found number `-1`, expected a whole number, 0 or more"),
        ("train", "sample_grids = { prompts = [] }", "sample_grids.prompts = [] is not possible: at least one prompt"),
        (
            "train",
            "sample_grids = { prompts = [\"a\"], size = \"big\" }",
            "sample_grids.size = big is not possible: WIDTHxHEIGHT in pixels, such as 512x384",
        ),
        ("train", "encode = \"ahead\"", "encode: unknown choice `ahead`, expected `online` or `cached`"),
        ("train", "latents = \"pixel\"", "latents: unknown choice `pixel`, expected `pixels` or `autoencoder`"),
        ("train", "latents = 5", "latents: found number `5`, expected the name of a choice, in quotes"),
        (
            "train",
            "latents = \"autoencoder\"",
            "latents.autoencoder: found a name alone, expected the name with its settings: { NAME = { … } }",
        ),
        ("train", "latents = { pixels = 5 }", "latents.pixels: found number `5`, expected the name alone, in quotes"),
        (
            "train",
            "latents = { autoencoder = \"vae\" }",
            "latents.autoencoder: found text \"vae\", expected a table: { … }",
        ),
        (
            "train",
            "latents = { autoencoder = { foldr = \"vae\" } }",
            "latents.autoencoder.foldr: unknown key `foldr`, expected `folder` or `affine`",
        ),
        (
            "train",
            "latents = { autoencoder = { folder = \"nowhere\" } }",
            "cannot open nowhere/config.json: No such file or directory (os error 2)\n\
             `ferrotype fetch hf://OWNER/MODEL --to FOLDER` brings a model's files, which are read to plan",
        ),
        (
            "train",
            "text = { hash = 5, pretrained = 5 }",
            "text: found a table, expected a table with one name in it: { NAME = { … } }",
        ),
        (
            "train",
            "text = { pretrained = { gemma = \"nowhere\", modernbert = \"x\", clip = \"x\" } }",
            "cannot open nowhere/config.json: No such file or directory (os error 2)\n\
             `ferrotype fetch hf://OWNER/MODEL --to FOLDER` brings a model's files, which are read to plan",
        ),
        (
            "train",
            "start = { average = true }",
            "start names no folder: give one, or name a train stage in from = [\"INDEX\", \"TRAIN\"]",
        ),
        (
            "train",
            "start = { folder = \"nowhere\" }",
            "cannot list nowhere: No such file or directory (os error 2)\n\
             `ferrotype fetch hf://OWNER/MODEL --to FOLDER` brings a model's files, which are read to plan",
        ),
        ("sample", "", "missing key `prompts`"),
        ("sample", "prompts = []", "prompts is empty: give at least one"),
        ("sample", "prompts = \"a cat\"", "prompts: found text \"a cat\", expected a list: [ … ]"),
        (
            "sample",
            "sizes = [\"32\"]\nprompts = [\"a cat\"]",
            "`32` is not a bucket size; expected WIDTHxHEIGHT in pixels, such as 512x384",
        ),
        (
            "sample",
            "sampler = \"eulr\"\nprompts = [\"a cat\"]",
            "sampler: unknown choice `eulr`, expected one of `euler`, `heun`, `midpoint`, `dpm++-2m`, `euler-stochastic`, `euler-stochastic-corrected`",
        ),
        ("evaluate", "prompts = \"many\"", "prompts: found text \"many\", expected a whole number, 0 or more"),
        ("evaluate", "sampler = 5", "sampler: found number `5`, expected the name of a choice, in quotes"),
        ("evaluate", "batch = 0", "batch = 0: expected at least 1"),
        (
            "evaluate",
            "resamples = 39\nclip_score = \"clip\"",
            "number of resamples = 39 is not possible: 2 / (1 − confidence) at least, so 40 for 0.95; 0 is for none",
        ),
        (
            "evaluate",
            "subset_size = 1\nclip_score = \"clip\"",
            "subset size = 1 is not possible: 2 at least, for a distance is a mean over pairs",
        ),
        (
            "evaluate",
            "inception = \"nowhere.pth\"\nreference = \"urls.tsv\"",
            "inception: cannot open nowhere.pth: No such file or directory (os error 2)",
        ),
        (
            "evaluate",
            "reference = \"nowhere\"\nclip_score = \"urls.tsv\"",
            "reference: cannot open nowhere: No such file or directory (os error 2)",
        ),
    ];
    let folder = folder();
    std::fs::write(folder.path().join("urls.tsv"), "url\tcaption\n").unwrap();
    let mut manifest = GOOD.replace("URLS", "urls.tsv").replace("WORKDIR", "work");
    let mut expected = Vec::new();
    for (i, (kind, keys, message)) in cases.iter().enumerate() {
        let table = manifest.lines().count() + 2;
        let line = if keys.is_empty() { table } else { table + 3 };
        expected.push(format!("bad.toml:{line}: in [stage.s{i:02}], {message}"));
        let _ = writeln!(manifest, "\n[stage.s{i:02}]\nuses = \"{kind}\"\nfrom = \"index\"\n{keys}");
    }
    std::fs::write(folder.path().join("bad.toml"), &manifest).unwrap();
    let output = ferrotype().args(["run", "bad.toml"]).current_dir(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    let said: Vec<&str> = said.trim_start_matches("error: ").lines().map(str::trim).collect();
    // A hint has a line of its own.
    let expected: Vec<&str> = expected.iter().flat_map(|expected| expected.lines()).collect();
    for (said, expected) in said.iter().zip(&expected) {
        assert_eq!(said, expected);
    }
    assert_eq!(said.len(), expected.len());
    assert!(!folder.path().join("work").exists(), "nothing is started");
}

#[test]
fn a_fault_has_the_same_code_whichever_command_finds_it() {
    let folder = folder();
    let manifest = bucketed(folder.path(), &[(32, 32); 2], "[stage.index]\nuses = \"index\"\nfrom = \"bucket\"\n");
    for (arguments, words) in [
        (vec!["run", &manifest, "--stage", "index"], "reads from bucket"),
        (vec!["submit", &manifest, "--stage", "index", "--dry-run"], "reads from bucket"),
        (vec!["submit", &manifest, "--set", "stage.bucket.slurm.nodes=2", "--dry-run"], "one process makes it alone"),
        (vec!["plan", &manifest, "--stage", "nosuch"], "nosuch is no stage"),
        (vec!["cancel", &manifest, "--stage", "nosuch"], "nosuch is no stage"),
        (vec!["retry", &manifest, "--where", "x ="], "--where"),
        (vec!["retry", &manifest, "--stage", "import"], "refuses again; no stage of this manifest has a second chance"),
        (vec!["query", &manifest, "selec"], "tables: partitions"),
        (vec!["query", &manifest, "SELECT * FROM nosuch"], "nosuch"),
        (vec!["query", &manifest, "SELECT nosuch FROM partitions"], "nosuch"),
        (vec!["sample", "--checkpoint", "nowhere", "--prompts", "no file"], "no file cannot be read"),
    ] {
        let output = run(&arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    // What goes wrong with a question that means something is no fault of usage.
    let divided = run(&["query", &manifest, "SELECT 1 / count(*) FROM partitions"]);
    assert_eq!(divided.status.code(), Some(1), "{}{}", text(&divided.stdout), text(&divided.stderr));
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
    // The folder of a stage has its trainings below it.
    let training = folder.path().join("run-1f0c5a11");
    std::fs::create_dir(&training).unwrap();
    std::fs::write(training.join("latest"), "step-000000002\n").unwrap();
    let output = run(&["sample", "--checkpoint", &folder.path().to_string_lossy(), "--prompt", "x"]);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains(&*training.to_string_lossy()), "{said}");
    for (size, word) in [("-3", "size"), ("0x16", "WIDTHxHEIGHT"), ("wide", "WIDTHxHEIGHT")] {
        let output = run(&["sample", "--checkpoint", ".", "--prompt", "x", &format!("--size={size}")]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(word), "{}", text(&output.stderr));
    }
    let output = run(&["sample", "--checkpoint", "."]);
    assert_eq!(output.status.code(), Some(2), "no prompt is a fault of usage");
}
