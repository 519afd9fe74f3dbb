//! A real Slurm on this machine: the data stages as arrays of jobs, with workers killed, nodes drained and time that ends; and a
//! training of two ranks. The bytes are those of a local run.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::engine::Web;
use crate::support::{bucketed, checkpoint, digests, ferrotype, run, text, wait_for};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// Daemons that end with the test. `None` where they are not there or do not start, which is said.
struct Cluster {
    folder: tempfile::TempDir,
}

/// A program, also where it is not on a user's path.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.exists())
}

/// Ports that nobody listens on.
fn ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    listeners.map(|listener| listener.local_addr().expect("its number").port())
}

impl Cluster {
    fn start() -> Option<Self> {
        let missing: Vec<&str> =
            ["munged", "slurmctld", "slurmd", "sbatch"].into_iter().filter(|name| program(name).is_none()).collect();
        if !missing.is_empty() {
            eprintln!("skipped: there is no {} (Debian's packages slurm-wlm and munge)", missing.join(", "));
            return None;
        }
        let cluster = Self { folder: tempfile::tempdir().expect("a folder") };
        match cluster.try_start() {
            Ok(()) => Some(cluster),
            Err(reason) => {
                eprintln!("skipped: Slurm does not start here: {reason}");
                None
            }
        }
    }

    fn try_start(&self) -> Result<(), String> {
        let at = |name: &str| self.folder.path().join(name);
        for name in ["state", "spool", "munge"] {
            std::fs::create_dir(at(name)).map_err(|error| error.to_string())?;
        }
        let mut key = [0; 256];
        getrandom(&mut key)?;
        write_secretly(&at("munge/key"), &key).map_err(|error| error.to_string())?;
        std::fs::write(at("slurm.conf"), self.configuration()?).map_err(|error| error.to_string())?;
        let munge = |name: &str| format!("--{name}={}", at(&format!("munge/{name}")).display());
        let key = format!("--key-file={}", at("munge/key").display());
        let daemon = |name: &str, arguments: &[String]| {
            let mut command = Command::new(program(name).ok_or(name)?);
            command.args(arguments).env("SLURM_CONF", at("slurm.conf")).stdin(Stdio::null());
            let output = command.output().map_err(|error| format!("{name}: {error}"))?;
            let said = text(&output.stderr);
            if output.status.success() { Ok(()) } else { Err(format!("{name}: {said}")) }
        };
        let files = [munge("socket"), munge("log-file"), munge("pid-file"), munge("seed-file"), key, "--force".into()];
        daemon("munged", &files)?;
        daemon("slurmctld", &["-c".into()])?;
        for node in NODES {
            daemon("slurmd", &["-N".into(), node.into()])?;
        }
        let started = Instant::now();
        loop {
            let states =
                text(&self.command("sinfo").args(["-h", "-N", "-o", "%T"]).output().map_err(|e| e.to_string())?.stdout);
            if states.lines().filter(|state| *state == "idle").count() == NODES.len() {
                return Ok(());
            }
            if started.elapsed() > Duration::from_secs(20) {
                return Err(format!("its nodes are {}", states.replace('\n', ", ")));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Three nodes of two cores each, on this machine.
    fn configuration(&self) -> Result<String, String> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").map_err(|error| error.to_string())?;
        let (host, folder) = (host.trim(), self.folder.path().display());
        let [controller, ports @ ..] = ports::<4>();
        let nodes = NODES.iter().zip(ports).map(|(node, port)| {
            format!("NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000 State=UNKNOWN\n")
        });
        Ok(format!(
            "ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={controller}\nAuthType=auth/munge\n\
             AuthInfo=socket={folder}/munge/socket,cred_expire=5\nCryptoType=crypto/munge\nSlurmUser=root\nSlurmdUser=root\n\
             StateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/spool/%n\nSlurmctldPidFile={folder}/slurmctld.pid\n\
             SlurmdPidFile={folder}/slurmd-%n.pid\nSlurmctldLogFile={folder}/slurmctld.log\nSlurmdLogFile={folder}/slurmd-%n.log\n\
             ProctrackType=proctrack/pgid\nTaskPlugin=task/none\nSwitchType=switch/none\nMpiDefault=none\n\
             SchedulerType=sched/backfill\nSchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=1\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nJobAcctGatherType=jobacct_gather/none\n\
             AccountingStorageType=accounting_storage/none\nReturnToService=2\nSlurmdParameters=config_overrides\nKillWait=5\n\
             {}PartitionName=all Nodes={} Default=YES MaxTime=INFINITE State=UP\n",
            nodes.collect::<String>(),
            NODES.join(",")
        ))
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.env("SLURM_CONF", self.folder.path().join("slurm.conf"));
        command
    }

    fn says(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.command(name).args(arguments).output().expect("Slurm's programs start");
        assert!(output.status.success(), "{name} {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn ferrotype(&self, arguments: &[&str]) -> Output {
        let mut command = ferrotype();
        command.args(arguments).env("SLURM_CONF", self.folder.path().join("slurm.conf"));
        command.output().expect("the binary starts")
    }

    /// What the binary says, which must succeed.
    fn told(&self, arguments: &[&str]) -> String {
        let output = self.ferrotype(arguments);
        assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// Tasks in a state, as `job_index` or `job`.
    fn tasks(&self, states: &str) -> Vec<String> {
        let ids = self.says("squeue", &["-h", "-r", "-t", states, "-o", "%i"]);
        ids.lines().map(str::to_owned).collect()
    }

    fn wait_until_empty(&self, folder: &Path) {
        let started = Instant::now();
        while !self.says("squeue", &["-h"]).is_empty() {
            let waits = started.elapsed() < Duration::from_mins(2);
            assert!(waits, "still queued:\n{}\n{}", self.says("squeue", &[]), logs(folder));
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.command("scancel").args(["--me"]).output();
        for entry in std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "pid") {
                kill_recorded(&entry.path());
            }
        }
        kill_recorded(&self.folder.path().join("munge/pid-file"));
    }
}

fn kill_recorded(file: &Path) {
    if let Ok(process) = std::fs::read_to_string(file) {
        let _ = Command::new("kill").arg(process.trim()).status();
    }
}

fn getrandom(bytes: &mut [u8]) -> Result<(), String> {
    use std::io::Read as _;
    let opened = std::fs::File::open("/dev/urandom");
    opened.and_then(|mut file| file.read_exact(bytes)).map_err(|error| error.to_string())
}

fn write_secretly(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(bytes)
}

/// What jobs have written, for a test that fails.
fn logs(folder: &Path) -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "log") {
            let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
            all.extend(["== ", &entry.path().to_string_lossy(), "\n", &log]);
        }
    }
    all
}

/// Processes whose command line has all of these words.
fn processes(words: &[&str]) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = text(&command).replace('\0', " ");
        if words.iter().all(|word| command.contains(word)) {
            found.push(process);
        }
    }
    found
}

fn send(signal: &str, processes: &[u32]) {
    for process in processes {
        Command::new("kill").args([signal, &process.to_string()]).status().expect("kill starts");
    }
}

/// More of a manifest: a training of two ranks, and what the nodes' names are.
const TRAIN: &str = r#"
[stage.train]
uses = "train"
from = "index"
steps = 6
width = 32
heads = 2
blocks = 1
batch_size = 8
warmup_steps = 0
device = "cpu"

[stage.train.slurm]
nodes = 2
tasks_per_node = 1
# Nodes of this cluster have no addresses of their own.
lines = ["export MASTER_ADDR=127.0.0.1"]
"#;

/// The data stages over `workdir`, with `download` more in that stage's table.
fn manifest(web: &Web, workdir: &Path, download: &str) -> String {
    let path = web.manifest(&workdir.to_string_lossy(), download);
    let mut file = std::fs::File::options().append(true).open(&path).expect("a manifest");
    file.write_all(TRAIN.as_bytes()).expect("a manifest");
    path.to_string_lossy().into_owned()
}

/// The number of a stage's job in what `submit` said. The first is 1; later ones depend on how many tasks of it Slurm had started,
/// each of which takes a number.
fn job_of(said: &str, stage: &str) -> u32 {
    let line = said.lines().find_map(|line| line.strip_prefix(&format!("{stage}: job "))).expect(said);
    line.split(',').next().and_then(|number| number.parse().ok()).expect(said)
}

/// A download that takes about five seconds a partition.
const SLOW: &str = "per_host = { in_flight = 4, per_second = 5 }\nslurm.at_once = 4";

#[test]
fn jobs_make_what_a_local_run_makes_though_workers_die_and_nodes_leave() {
    let Some(cluster) = Cluster::start() else { return };
    let web = Web::start();
    let local = manifest(&web, &web.folder.path().join("local"), "");
    let made = run(&["run", &local, "-q", "--until", "index"]);
    assert!(made.status.success(), "{}", text(&made.stderr));

    let workdir = web.workdir();
    let remote = manifest(&web, &workdir, SLOW);
    let folder = workdir.join("slurm");
    let said = cluster.told(&["submit", &remote]);
    let job = |stage: &str| job_of(&said, stage);
    let expected = [
        "download: job 1, 8 tasks for 8 partitions".to_owned(),
        format!("filter: job {}, 8 tasks for 8 partitions, after 1 task by task", job("filter")),
        format!("bucket: job {}, 8 tasks for 8 partitions, after {} task by task", job("bucket"), job("filter")),
        format!("index: job {}, one partition, after {}", job("index"), job("bucket")),
        format!("train: job {}, 2 processes, after {}", job("train"), job("index")),
    ];
    for line in expected {
        assert!(said.lines().any(|other| other == line), "{line}: {said}");
    }
    assert!(cluster.told(&["submit", &remote]).contains("Nothing to submit"));

    // The copy of the manifest is what runs; and another version beside it is refused.
    let other = cluster.ferrotype(&["submit", &remote, "--set", "stage.bucket.max_resolution=64"]);
    let (words, bucket) = (text(&other.stderr), format!("bucket {}", job("bucket")));
    assert!(
        !other.status.success() && words.contains("another version of this manifest") && words.contains(&bucket),
        "{words}"
    );

    // A worker is killed; a node is drained; the time of a third task ends.
    let share = |index: &str| {
        processes(&["worker", &folder.to_string_lossy(), "--stage download", &format!("--share {index}/8")])
    };
    let log = folder.join("download-1_2.log");
    let said_in_log = |words: &str| std::fs::read_to_string(&log).is_ok_and(|log| log.contains(words));
    // One that speaks listens to signals, too.
    wait_for("a worker", Duration::from_secs(30), || !share("0").is_empty() && said_in_log("download"));
    send("-KILL", &share("0"));
    cluster.says("scontrol", &["update", "NodeName=n2", "State=DRAIN", "Reason=test"]);
    // As Slurm sends it; scancel --signal would wait for an answer that a requeued job does not give.
    send("-USR1", &share("2"));
    let status = cluster.told(&["status", &remote]);
    assert!(status.contains("Slurm job 1, download: ") && status.contains("pending (Dependency)"), "{status}");
    let json: Value = serde_json::from_str(&cluster.told(&["status", &remote, "--json"])).expect("JSON");
    let jobs: BTreeSet<&str> =
        json["jobs"].as_array().expect("jobs").iter().filter_map(|j| j["stage"].as_str()).collect();
    assert_eq!(jobs, BTreeSet::from(["download", "filter", "bucket", "index", "train"]));
    wait_for("a requeue", Duration::from_secs(20), || said_in_log("The time of job 1_2 ends: it is queued again"));
    assert!(cluster.says("scontrol", &["show", "job", "1_2"]).contains("Restarts=1"));
    cluster.wait_until_empty(&folder);

    // What followed the task that was killed was given up; the rest is there, and only what is missing is submitted.
    assert_eq!(digests(&workdir, "download").len(), 7, "{}", logs(&folder));
    let again = cluster.told(&["submit", &remote]);
    assert!(again.starts_with("download: job ") && again.contains(", 1 task for 1 partition"), "{again}");
    cluster.wait_until_empty(&folder);
    assert!(cluster.told(&["submit", &remote]).contains("Nothing to submit"), "{}", logs(&folder));
    for stage in ["download", "filter", "bucket", "index"] {
        assert_eq!(digests(&workdir, stage), digests(&web.folder.path().join("local"), stage), "{stage}");
    }
    assert!(cluster.told(&["verify", &remote]).contains("all as recorded"));

    // The same two ranks without Slurm.
    let launched = run(&["launch", "-n", "2", "--", "worker", &local, "--stage", "train", "--together", "-q"]);
    assert!(launched.status.success(), "{}", text(&launched.stderr));
    let weights = |workdir: &Path| {
        let file = checkpoint(workdir).join("latest");
        let step = std::fs::read_to_string(&file).expect("the latest checkpoint");
        std::fs::read(checkpoint(workdir).join(step.trim()).join("model.safetensors")).expect("weights")
    };
    assert!(weights(&workdir) == weights(&web.folder.path().join("local")), "the same weights");
}

#[test]
fn jobs_are_cancelled_and_told_apart() {
    let Some(cluster) = Cluster::start() else { return };
    let web = Web::start();
    let remote = manifest(&web, &web.workdir(), SLOW);
    let submitted = cluster.told(&["submit", &remote, "--until", "bucket"]);
    wait_for("a task", Duration::from_secs(30), || !cluster.tasks("RUNNING").is_empty());
    let cancelled = cluster.told(&["cancel", &remote, "--stage", "bucket"]);
    assert_eq!(cancelled, format!("bucket: job {} cancelled\n", job_of(&submitted, "bucket")));
    assert!(!cluster.tasks("PENDING,RUNNING").is_empty());
    let said = cluster.told(&["submit", &remote, "--until", "bucket"]);
    assert!(
        said.starts_with("bucket: job ")
            && said
                .contains(&format!(", 8 tasks for 8 partitions, after {} task by task", job_of(&submitted, "filter"))),
        "{said}"
    );
    let cancelled = cluster.told(&["cancel", &remote]);
    assert_eq!(cancelled.lines().count(), 3, "{cancelled}");
    wait_for("an end", Duration::from_secs(30), || cluster.says("squeue", &["-h"]).is_empty());
    assert!(cluster.told(&["cancel", &remote]).contains("Nothing to cancel"));
    assert!(!cluster.told(&["status", &remote]).contains("Slurm job"));
    // Whatever was under way has left nothing that counts.
    let local = run(&["run", &remote, "-q", "--until", "bucket", "--set", "stage.download.per_host={}"]);
    assert!(local.status.success(), "{}", text(&local.stderr));
}

#[test]
#[ignore = "slow: a job's time is a minute at least; run by `make soak`"]
fn soak_a_job_whose_time_ends_goes_on() {
    let Some(cluster) = Cluster::start() else { return };
    let web = Web::start();
    // One task has all eight partitions, about 40 seconds of work, and is told to stop after about twenty.
    let slow =
        "per_host = { in_flight = 4, per_second = 5 }\nconcurrency = 1\nslurm = { time = 1, grace = 40, tasks = 1 }";
    let remote = manifest(&web, &web.workdir(), slow);
    cluster.told(&["submit", &remote, "--until", "index"]);
    let folder = web.workdir().join("slurm");
    let started = Instant::now();
    while !cluster.says("squeue", &["-h"]).is_empty() {
        assert!(started.elapsed() < Duration::from_mins(10), "{}", logs(&folder));
        std::thread::sleep(Duration::from_secs(1));
    }
    let log = std::fs::read_to_string(folder.join("download-1_0.log")).expect("a log");
    assert!(log.contains("The time of job 1_0 ends: it is queued again"), "{log}");
    assert_eq!(digests(&web.workdir(), "index").len(), 1, "{}", logs(&folder));
}

#[test]
fn scripts_are_shown_where_there_is_no_slurm() {
    let web = Web::start();
    let more = "slurm = { partition = \"cpu\", time = \"2:00:00\", mem = \"4 GB\", cpus = 4, at_once = 3, lines = [\"#SBATCH --exclusive\", \"module load x\"] }";
    let manifest = manifest(&web, &web.folder.path().join("a work%dir"), more);
    let nowhere = |arguments: &[&str]| {
        ferrotype().args(arguments).env("PATH", web.folder.path()).output().expect("the binary starts")
    };
    let shown = nowhere(&["submit", &manifest, "--dry-run", "--set", "stage.filter.where=caption <> 'it''s'"]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let folder = web.folder.path().display().to_string();
    let said =
        text(&shown.stdout).replace(&folder, "FOLDER").replace(env!("CARGO_BIN_EXE_ferrotype"), "/bin/ferrotype");
    assert_as_recorded(&said);
    assert!(!web.folder.path().join("a work%dir/slurm").exists(), "nothing was written");

    // What is there needs neither jobs nor a Slurm.
    let pictures = web.folder.path().join("pictures");
    std::fs::create_dir(&pictures).expect("a folder");
    let made = bucketed(&pictures, &[(32, 32)], "");
    assert!(run(&["run", &made, "-q"]).status.success());
    for arguments in [&["submit", &made][..], &["submit", &made, "--dry-run"]] {
        let output = nowhere(arguments);
        assert!(output.status.success() && text(&output.stdout).starts_with("Nothing to submit"), "{output:?}");
    }

    let refused = nowhere(&["submit", &manifest]);
    let words = text(&refused.stderr);
    assert!(!refused.status.success() && words.contains("cannot be started") && words.contains("--dry-run"), "{words}");
    for (sets, expected) in [
        (
            &["--set", "stage.bucket.slurm.nodes=2"][..],
            "one process makes it alone: remove them from [stage.bucket.slurm]",
        ),
        (&["--set", "stage.train.models_per_loader=2"][..], "needs a multiple of 3 ranks"),
        (&["--stage", "index"][..], "index reads from bucket, 8 of 8 partitions"),
        (&["--force"][..], "run --force"),
    ] {
        let refused = nowhere(&[&["submit", &manifest, "--dry-run"][..], sets].concat());
        let words = text(&refused.stderr);
        assert!(!refused.status.success() && words.contains(expected), "{words}");
    }
    // The scripts are ones that a shell can read.
    for script in said.split("# ==> ").skip(1) {
        let script = script.split_once('\n').expect("a title").1;
        let mut shell =
            Command::new("bash").arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bash");
        shell.stdin.take().expect("its input").write_all(script.as_bytes()).expect("bash reads");
        let output = shell.wait_with_output().expect("bash ends");
        assert!(output.status.success(), "{}\n{script}", text(&output.stderr));
    }
}

/// `FERROTYPE_UPDATE=1` writes the scripts anew; read what changed.
fn assert_as_recorded(said: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/slurm_scripts.txt");
    if std::env::var_os("FERROTYPE_UPDATE").is_some() {
        std::fs::write(&path, said).expect("the recorded scripts");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(said == expected, "the scripts differ from {}:\n{said}", path.display());
}
