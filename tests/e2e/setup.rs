//! Before the first run: `init`, `doctor`, `completions`.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{bucketed, ferrotype, folder, run, text};

#[test]
fn every_template_can_be_planned_once_its_list_is_there() {
    for (name, list, rows) in [
        ("cc12m", "cc12m.tsv", "http://x/1\ta dog\n"),
        // A csv in place of the parquet files that it expects, which are more work to write.
        ("laion", "laion.parquet", "URL,TEXT\nhttp://x/1,a dog\n"),
        ("urls", "urls.tsv", "url\tcaption\nhttp://x/1\ta dog\n"),
    ] {
        let folder = folder();
        let here = |arguments: &[&str]| ferrotype().args(arguments).current_dir(folder.path()).output().unwrap();
        let manifest = format!("{name}.toml");
        let written = here(&["init", name]);
        assert!(written.status.success(), "{}", text(&written.stderr));
        assert!(text(&written.stdout).contains(list), "{}", text(&written.stdout));

        let without = here(&["plan", &manifest]);
        assert_eq!(without.status.code(), Some(2));
        assert!(text(&without.stderr).contains(list), "{}", text(&without.stderr));

        let list = list.replace(".parquet", ".csv");
        std::fs::write(folder.path().join(&list), rows).unwrap();
        let plan = here(&["plan", &manifest, "--set", &format!("stage.download.urls={list}")]);
        assert!(plan.status.success(), "{name}: {}", text(&plan.stderr));
        let said = text(&plan.stdout);
        for stage in ["download", "filter", "bucket", "index", "train", "samples"] {
            assert!(said.contains(stage), "{name}, {stage}: {said}");
        }
        let measured = |set: &str, until: &str| {
            format!("`ferrotype run {manifest} --set {set} --rehearse 1000 --until {until}` measures it")
        };
        let same = measured(&format!("stage.download.urls={list}"), "index");
        assert!(said.contains(&same), "a training of so few rows takes long, too: {said}");
        let spaced = format!("stage.download.urls = {list}");
        for [option, stage] in [["--until", "filter"], ["--stage", "download"]] {
            let said = text(&here(&["plan", &manifest, "--set", &spaced, option, stage]).stdout);
            assert!(said.contains(&measured(&format!("'{spaced}'"), stage)), "what is planned alone: {said}");
        }

        // What a user changed is not written over.
        std::fs::write(folder.path().join(&manifest), "mine").unwrap();
        let again = here(&["init", name]);
        assert_eq!(again.status.code(), Some(2));
        assert!(text(&again.stderr).contains("--force"), "{}", text(&again.stderr));
        assert_eq!(std::fs::read_to_string(folder.path().join(&manifest)).unwrap(), "mine");
        assert!(here(&["init", name, "--force"]).status.success());
        assert!(here(&["init", name, "--out", "other.toml"]).status.success());
        let [forced, other] =
            [&*manifest, "other.toml"].map(|file| std::fs::read_to_string(folder.path().join(file)).unwrap());
        assert_eq!(forced.replace(&manifest, "other.toml"), other, "it says its own name");
        assert!(other.contains("ferrotype run other.toml") && !other.contains(&manifest), "{other}");
    }
}

#[test]
fn libtorch_is_loaded_by_what_computes_with_it_alone() {
    if option_env!("FERROTYPE_TORCH").is_none() {
        eprintln!("skipped: this build is linked to libtorch, which is then there from the start");
        return;
    }
    let folder = folder();
    // The dynamic loader says which libraries come in.
    let loads_torch = |arguments: &[&str]| {
        let output = ferrotype().args(arguments).current_dir(folder.path()).env("LD_DEBUG", "files").output().unwrap();
        let said = text(&output.stderr);
        assert!(said.contains("libc.so"), "{said}");
        said.contains("libtorch_cpu.so")
    };
    std::fs::write(folder.path().join("urls.tsv"), "url\tcaption\nhttp://x/1\ta dog\n").unwrap();
    assert!(run(&["init", "urls", "--out", &folder.path().join("m.toml").to_string_lossy()]).status.success());
    // Its stages train and sample, which is planned without doing so.
    for arguments in [&["--version"][..], &["plan", "m.toml"], &["graph", "m.toml"], &["status", "m.toml"], &["schema"]]
    {
        assert!(!loads_torch(arguments), "{arguments:?}");
    }
    assert!(loads_torch(&["doctor", "--resolve", "localhost"]));
}

#[test]
fn output_that_nobody_reads_any_more_is_no_failure() {
    let mut child = ferrotype().arg("schema").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn work_is_done_though_the_disk_of_its_log_is_full() {
    let folder = folder();
    let manifest = bucketed(folder.path(), &[(32, 32)], "");
    let log = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let status = ferrotype().args(["run", &manifest]).stdout(Stdio::null()).stderr(log).status().unwrap();
    assert_eq!(status.code(), Some(0));
    let again = run(&["run", &manifest]);
    assert!(text(&again.stderr).contains("Nothing to do"), "{again:?}");
}

#[test]
fn work_is_done_and_judged_whether_or_not_its_output_is_read() {
    let folder = folder();
    let unread = |arguments: &[&str]| {
        let mut child = ferrotype().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let done = (Some(0), String::new());

    let weights = "models/tests/fixtures/mmdit/rope2d_swiglu/model_ema_7s.pkl";
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join(weights);
    let converted = folder.path().join("model_ema_7s.safetensors");
    assert_eq!(unread(&["convert", &weights.to_string_lossy(), &converted.to_string_lossy()]), done);
    assert!(converted.exists() && folder.path().join("model_params_7s.json").exists());

    let manifest = folder.path().join("m.toml");
    assert_eq!(unread(&["init", "folder", "--out", &manifest.to_string_lossy()]), done);
    assert!(manifest.exists());

    let manifest = bucketed(folder.path(), &[(32, 32)], "");
    assert!(run(&["run", &manifest, "--until", "import", "-q"]).status.success());
    let import = folder.path().join("work/stages/import");
    let files = std::fs::read_dir(&import).unwrap().map(|entry| entry.unwrap().path());
    let shard = files.into_iter().find(|path| path.extension().is_some_and(|e| e == "parquet")).unwrap();
    std::fs::write(shard, "damaged").unwrap();
    assert_eq!(unread(&["verify", &manifest]).0, Some(1), "a problem was found");

    let gone = folder.path().join("work/stages/gone");
    std::fs::create_dir(&gone).unwrap();
    std::fs::write(gone.join("part-00000.parquet"), "").unwrap();
    assert_eq!(unread(&["gc", &manifest, "--delete"]), done);
    assert!(!gone.exists() && import.exists());
}

#[test]
fn the_doctor_looks_at_everything_and_leaves_nothing_behind() {
    let folder = folder();
    let workdir = folder.path().join("not/there/yet");
    let arguments = ["doctor", "--resolve", "localhost", "--workdir", &*workdir.to_string_lossy()];
    let output = run(&arguments);
    let said = text(&output.stdout);
    for check in ["libtorch", "CUDA", "NCCL", "disk", "fsync", "descriptors", "DNS", "clock", "memory", "cores"] {
        let line = said.lines().find(|line| line.split_whitespace().nth(1) == Some(check)).expect(check);
        assert!(["ok", "note", "problem"].iter().any(|verdict| line.starts_with(verdict)), "{line}");
    }
    assert!(said.contains("libtorch_cpu.so; a small computation comes out right"), "{said}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

    let output = run(&[&arguments[..], &["--json"]].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdicts: Vec<&str> =
        report["checks"].as_array().unwrap().iter().map(|check| check["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts.len(), 10);
    let problems = verdicts.iter().filter(|verdict| **verdict == "problem").count();
    assert_eq!(report["problems"], problems);
    assert_eq!(output.status.code(), Some(i32::from(problems > 0)));
}

#[test]
fn the_doctor_takes_no_store_for_a_folder() {
    let output = run(&["doctor", "--resolve", "localhost", "--workdir", "s3://bucket/x", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    for name in ["disk", "fsync", "clock"] {
        let check = checks.iter().find(|check| check["check"] == name).expect(name);
        assert_eq!(check["verdict"], "note", "{check}");
        assert!(check["found"].as_str().unwrap().contains("s3://bucket/x is a store: not looked at"), "{check}");
    }
}

#[test]
fn a_name_that_does_not_resolve_is_said_within_seconds_and_with_advice() {
    let started = std::time::Instant::now();
    let output = run(&["doctor", "--resolve", "nobody.invalid", "--json"]);
    assert!(started.elapsed().as_secs() < 20);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let dns = report["checks"].as_array().unwrap().iter().find(|check| check["check"] == "DNS").unwrap();
    // A problem, or a note where there is no network at all.
    assert_ne!(dns["verdict"], "ok");
    assert!(dns["what_to_do"].is_string(), "{dns}");
}

#[test]
fn all_descriptors_that_are_allowed_are_used() {
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -Sn 256 && ulimit -Hn 3000 && exec \"$0\" doctor --resolve localhost --json"]);
    let output = shell.arg(ferrotype().get_program()).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = report["checks"].as_array().unwrap().iter().find(|check| check["check"] == "descriptors").unwrap();
    assert_eq!(
        found["found"],
        "3000 files and connections at a time: enough by default, but not for a download with many \
        more requests in flight"
    );
}

#[test]
fn completions_know_every_command() {
    let help = text(&run(&["--help"]).stdout);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // Continued descriptions are indented farther.
    let commands: Vec<&str> = listed
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(commands.contains(&"completions") && commands.contains(&"run"), "{help}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let script = text(&output.stdout);
        for command in &commands {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    let script = run(&["completions", "bash"]).stdout;
    let folder = folder();
    let file = folder.path().join("completions.bash");
    std::fs::write(&file, script).unwrap();
    // Where there is no bash, nobody needs it.
    if let Ok(status) = Command::new("bash").arg("-n").arg(&file).stderr(Stdio::inherit()).status() {
        assert!(status.success());
    }
    assert_eq!(run(&["completions", "tcsh"]).status.code(), Some(2));
}

#[test]
fn a_folder_of_pictures_goes_from_its_template_to_buckets() {
    let folder = folder();
    let here = |arguments: &[&str]| {
        let output = ferrotype().args(arguments).current_dir(folder.path()).output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    assert_eq!(here(&["init", "folder"]).0, Some(0));
    let (code, _, said) = here(&["plan", "folder.toml"]);
    assert!(code == Some(2) && said.contains("the folder pictures cannot be read"), "{said}");
    let pictures = folder.path().join("pictures/cats");
    std::fs::create_dir_all(&pictures).unwrap();
    for (name, side) in [("large", 300), ("small", 30)] {
        image::RgbImage::new(side, side).save(pictures.join(format!("{name}.png"))).unwrap();
        std::fs::write(pictures.join(format!("{name}.txt")), "a black square\n").unwrap();
    }
    std::fs::write(pictures.join("uncaptioned.jpg"), "").unwrap();
    let (code, _, said) = here(&["run", "folder.toml", "--until", "index"]);
    // Of three rows, two are refused: more than warn_above.
    assert_eq!(code, Some(3), "{said}");
    for part in ["3 in = 2 out + 1 dropped", "no_caption 1", "2 in = 1 out + 1 dropped", "below_min_side 1"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    for (stage, share) in [("import", "33.3"), ("filter", "50.0")] {
        let note = format!("  {stage:<10} refused {share} % of its rows; warn_above is 20.0 %");
        assert!(said.contains(&note), "{note}: {said}");
    }
    let (code, _, said) = here(&["run", "folder.toml", "--stage", "index"]);
    assert_eq!(code, Some(0), "what stages refused that were not selected is no matter: {said}");
    let (_, story, _) = here(&["explain", "folder.toml", "pictures/cats/large"]);
    assert!(story.contains("256x256") && story.contains("a black square"), "{story}");
}
