//! `submit`, `cancel` and `worker` beside stand-ins for Slurm's own programs, which remember what they were asked.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::engine::Web;
use crate::support::{bucketed, ferrotype, folder, start_until, text, wait_for};

/// Its jobs have the numbers of the processes that submitted them, and stay queued.
struct Slurm {
    folder: tempfile::TempDir,
}

impl Slurm {
    fn new() -> Self {
        let slurm = Self { folder: folder() };
        let at = slurm.folder.path().display();
        let programs = [
            // While there is a file `hold`, it takes its time.
            ("sbatch", format!("echo $$ >> {at}/submitted\nwhile [ -e {at}/hold ]; do sleep 0.05; done\necho $$")),
            ("squeue", format!("[ ! -e {at}/submitted ] || sed 's#$#|N/A|PENDING|None#' {at}/submitted")),
            ("scontrol", format!("echo \"$*\" >> {at}/asked\necho 'MaxArraySize = 1001'")),
            ("scancel", format!("echo \"$*\" >> {at}/cancelled")),
        ];
        std::fs::create_dir(slurm.file("bin")).unwrap();
        for (name, script) in programs {
            let text = slurm.file(&format!("{name}.sh"));
            std::fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
            // By a program of its own: what other tests start meanwhile holds the files that this one writes, and a file that is held
            // for writing cannot be started.
            let copied =
                Command::new("install").args(["-m", "755"]).arg(text).arg(slurm.file("bin").join(name)).status();
            assert!(copied.unwrap().success());
        }
        slurm
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn lines(&self, name: &str) -> Vec<String> {
        std::fs::read_to_string(self.file(name)).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn ferrotype(&self, arguments: &[&str]) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = ferrotype();
        command.args(arguments).env("PATH", format!("{}:{path}", self.file("bin").display()));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

#[test]
fn jobs_run_the_manifest_that_was_planned_though_it_cannot_be_read_twice() {
    let (slurm, folder) = (Slurm::new(), folder());
    let manifest = bucketed(folder.path(), &[(32, 32); 2], "");
    let written = std::fs::read(&manifest).unwrap();
    let mut submit = slurm.ferrotype(&["submit", "/dev/stdin"]).stdin(Stdio::piped()).spawn().unwrap();
    submit.stdin.take().unwrap().write_all(&written).unwrap();
    let output = submit.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("import: job "), "{}", text(&output.stdout));
    let copy = std::fs::read(folder.path().join("work/slurm/manifest.toml")).unwrap();
    assert_eq!(text(&copy), text(&written));
}

#[test]
fn of_two_submissions_at_once_one_is_refused_and_no_job_is_forgotten() {
    let (slurm, folder) = (Slurm::new(), folder());
    let manifest = bucketed(folder.path(), &[(32, 32); 2], "");
    std::fs::write(slurm.file("hold"), "").unwrap();
    let first = slurm.ferrotype(&["submit", &manifest]).spawn().unwrap();
    wait_for("a job", Duration::from_mins(1), || !slurm.lines("submitted").is_empty());
    for command in ["submit", "cancel"] {
        let refused = slurm.ferrotype(&[command, &manifest]).output().unwrap();
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{command}: {said}");
        assert!(said.contains("another submit or cancel of this manifest is at work"), "{command}: {said}");
    }
    std::fs::remove_file(slurm.file("hold")).unwrap();
    let output = first.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));

    let submitted = slurm.lines("submitted");
    let record = std::fs::read(folder.path().join("work/slurm/jobs.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    let recorded: Vec<String> = record["jobs"].as_array().unwrap().iter().map(|job| job["id"].to_string()).collect();
    assert_eq!((&recorded, recorded.len()), (&submitted, 2), "import and bucket, once each");

    // Who held the lock is gone, and it with them.
    let again = slurm.ferrotype(&["submit", &manifest]).output().unwrap();
    assert!(text(&again.stdout).starts_with("Nothing to submit"), "{}", text(&again.stderr));
    let cancelled = slurm.ferrotype(&["cancel", &manifest]).output().unwrap();
    assert_eq!(text(&cancelled.stdout).lines().count(), 2, "{}", text(&cancelled.stderr));
    let in_reverse: Vec<String> = submitted.into_iter().rev().collect();
    assert_eq!(slurm.lines("cancelled"), in_reverse);
}

/// Without --stage there were no stages whose requeues counted, and so none was allowed.
/// And Slurm's count has in it that other jobs took its place.
#[test]
fn a_worker_of_all_stages_is_queued_again_when_its_time_ends() {
    let (slurm, web) = (Slurm::new(), Web::start());
    let slow = "per_host = { in_flight = 4, per_second = 5 }";
    let manifest = web.manifest(&web.workdir().to_string_lossy(), slow).to_string_lossy().into_owned();
    let mut command = slurm.ferrotype(&["worker", &manifest, "--json"]);
    command.env("SLURM_JOB_ID", "9").env("SLURM_RESTART_COUNT", "25");
    let mut worker = start_until(command, |event| event["event"] == "run_started");
    assert!(Command::new("kill").args(["-USR1", &worker.id().to_string()]).status().unwrap().success());
    assert_eq!(worker.wait().unwrap().code(), Some(130));
    assert_eq!(slurm.lines("asked"), ["requeue 9"]);
    assert_eq!(std::fs::read_to_string(web.workdir().join("slurm/requeues.9")).unwrap(), "1");
}

#[test]
fn tasks_whose_inputs_are_there_are_a_job_of_their_own_that_waits_for_nothing() {
    let folder = folder();
    let manifest = bucketed(folder.path(), &[(32, 32); 4], "");
    let with_shards = |arguments: &[&str]| {
        let output = ferrotype().args(arguments).args(["--set", "stage.import.rows_per_shard=1"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    with_shards(&["run", &manifest, "-q"]);
    for (stage, partition) in [("import", "part-00001."), ("bucket", "part-00001."), ("bucket", "part-00002.")] {
        let files = std::fs::read_dir(folder.path().join("work/stages").join(stage)).unwrap();
        for file in files.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
            if file.file_name().unwrap().to_string_lossy().starts_with(partition) {
                std::fs::remove_file(file).unwrap();
            }
        }
    }
    let begins = ["# ==>", "#SBATCH --dependency", "#SBATCH --array"];
    let is_meant = |line: &&str| begins.iter().any(|begin| line.starts_with(begin));
    let said = with_shards(&["submit", &manifest, "--dry-run"]);
    let expected = [
        "# ==> import.sh",
        "#SBATCH --array=1",
        "# ==> bucket.1.sh",
        "#SBATCH --array=2",
        "# ==> bucket.2.sh",
        "#SBATCH --dependency=aftercorr:<job of import>",
        "#SBATCH --array=1",
    ];
    assert_eq!(said.lines().filter(is_meant).collect::<Vec<_>>(), expected, "{said}");

    // Slurm limits each array by itself.
    let said = with_shards(&["submit", &manifest, "--dry-run", "--set", "stage.bucket.slurm.at_once=2"]);
    let expected = [
        "# ==> import.sh",
        "#SBATCH --array=1",
        "# ==> bucket.sh",
        "#SBATCH --dependency=aftercorr:<job of import>",
        "#SBATCH --array=1-2%2",
    ];
    assert_eq!(said.lines().filter(is_meant).collect::<Vec<_>>(), expected, "{said}");
}
