//! Starting the binary and reading what it says.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub(crate) fn ferrotype() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ferrotype"))
}

/// A folder that goes away with the test.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

pub(crate) fn run(arguments: &[&str]) -> Output {
    ferrotype().args(arguments).output().expect("the binary starts")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Python with datasets, webdataset and pyarrow, which `make test` prepares.
pub(crate) fn python() -> Option<PathBuf> {
    let home = std::env::var_os("HOME")?;
    let python = Path::new(&home).join(".cache/ferrotype/readers/bin/python");
    python.exists().then_some(python)
}

/// Pictures of these sizes, each with a colour and a caption that say which it is (`8 * n` in red; "picture n, é"), and a
/// manifest that brings them to buckets of 32 pixels, then has `stages`. Returns its path.
pub(crate) fn bucketed(folder: &Path, sizes: &[(u32, u32)], stages: &str) -> String {
    let pictures = folder.join("pictures");
    std::fs::create_dir(&pictures).expect("a folder");
    for (n, &(width, height)) in sizes.iter().enumerate() {
        let image = image::RgbImage::from_pixel(width, height, image::Rgb([n as u8 * 8, 7, 200]));
        image.save(pictures.join(format!("{n:02}.png"))).expect("a picture");
        std::fs::write(pictures.join(format!("{n:02}.txt")), format!("picture {n}, \u{e9}")).expect("a caption");
    }
    let manifest = folder.join("work.toml");
    let text = format!(
        "[pipeline]\nname = \"work\"\nworkdir = \"{0}/work\"\n[stage.import]\nuses = \"import\"\nfolder = \"{0}/pictures\"\n\
         [stage.bucket]\nuses = \"bucket\"\nfrom = \"import\"\nmax_resolution = 32\npatch_size = 8\n{stages}",
        folder.display()
    );
    std::fs::write(&manifest, text).expect("a manifest");
    manifest.to_string_lossy().into_owned()
}

/// The demo at a size that takes seconds: its stages and faults are all there, its model learns nothing.
pub(crate) fn small_demo(workdir: &Path) -> Command {
    let mut command = ferrotype();
    command.args(["demo", "--pictures", "200", "--json", "--workdir"]).arg(workdir);
    for set in [
        "stage.download.rows_per_shard=25",
        "stage.download.partitions=2",
        "stage.download.in_flight=8",
        "stage.download.timeout=1.5",
        "stage.download.retries=1",
        "stage.train.steps=80",
        "stage.train.width=32",
        "stage.train.heads=2",
        "stage.train.blocks=2",
        "stage.train.batch_size=8",
        "stage.train.checkpoint_every=8",
        "stage.train.log_every=2",
        "stage.samples.steps=2",
        "stage.evaluate.steps=2",
        "stage.evaluate.prompts=12",
    ] {
        command.args(["--set", set]);
    }
    command
}

/// Starts `command` and waits for the first event for which `is_due` is true. The process goes on.
pub(crate) fn start_until(mut command: Command, is_due: impl Fn(&serde_json::Value) -> bool) -> Child {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the binary starts");
    let output = child.stdout.take().expect("its output is piped");
    let mut lines = BufReader::new(output).lines();
    let due =
        lines.by_ref().map_while(Result::ok).any(|line| serde_json::from_str(&line).is_ok_and(|event| is_due(&event)));
    assert!(due, "the run ended before the event came");
    // Keep reading, so that the process does not stop at a full pipe.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

/// Waits until something is so, which must be `within` that time.
pub(crate) fn wait_for(what: &str, within: Duration, mut is_due: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_due() {
        assert!(started.elapsed() < within, "{what} did not come within {within:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// All events of a run that must succeed.
pub(crate) fn events(mut command: Command) -> Vec<serde_json::Value> {
    let output = command.output().expect("the binary starts");
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Digests of a stage's committed data, by partition.
pub(crate) fn digests(workdir: &Path, stage: &str) -> Vec<(String, String)> {
    let folder = workdir.join("stages").join(stage);
    let mut digests = Vec::new();
    for entry in std::fs::read_dir(&folder).expect("the stage has a folder") {
        let name = entry.expect("a listing").file_name().to_string_lossy().into_owned();
        if name.starts_with("part-") && name.ends_with(".json") {
            let bytes = std::fs::read(folder.join(&name)).expect("a sidecar");
            let sidecar: serde_json::Value = serde_json::from_slice(&bytes).expect("a sidecar is JSON");
            digests.push((
                name,
                sidecar["data"].as_array().expect("data").iter().map(|d| d["digest"].to_string()).collect(),
            ));
        }
    }
    digests.sort();
    digests
}

/// The folder of the workdir's only training, whose latest checkpoint is meant.
pub(crate) fn checkpoint(workdir: &Path) -> PathBuf {
    let mut runs =
        std::fs::read_dir(workdir.join("stages/train")).expect("a training").map(|e| e.expect("a listing").path());
    runs.find(|path| path.join("latest").exists()).expect("a checkpoint")
}

/// A training of two steps on pictures of 32×32, and the folder it is in.
pub(crate) fn trained() -> (tempfile::TempDir, String) {
    let folder = folder();
    let stages = "[stage.index]\nuses = \"index\"\nfrom = \"bucket\"\n[stage.train]\nuses = \"train\"\nfrom = \"index\"\n\
                  steps = 2\nwidth = 32\nheads = 2\nblocks = 1\nbatch_size = 4\nwarmup_steps = 0\nzero_gates = false\ndevice = \"cpu\"\n";
    let manifest = bucketed(folder.path(), &[(32, 32); 8], stages);
    let made = run(&["run", &manifest, "-q"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let stage = std::fs::read_dir(folder.path().join("work/stages/train")).expect("a training");
    let mut runs = stage.map(|entry| entry.expect("a training").path()).filter(|path| path.join("latest").exists());
    let checkpoint = runs.next().expect("a training").to_string_lossy().into_owned();
    (folder, checkpoint)
}
