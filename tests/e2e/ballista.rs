//! A Ballista cluster of processes on this machine: executors that are killed, that leave, that see another workdir, that fail; and
//! queries that all of them answer. What comes out is what a local run makes.

mod queries;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::engine::Web;
use crate::store::Store;
use crate::support::{bucketed, digests, ferrotype, folder, run, text, wait_for};

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Ended {
    fn signal(&self, signal: &str) {
        Command::new("kill").args([signal, &self.0.id().to_string()]).status().expect("kill starts");
    }

    /// Its exit code, once it has ended by itself.
    fn code(&mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("its state") {
                return status.code();
            }
            assert!(started.elapsed() < SOON * 2, "it does not end");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Starts a process whose first line, on one of its outputs, says that it is there.
fn start(mut command: Command, on_stdout: bool) -> (Ended, String) {
    let (out, err) = if on_stdout { (Stdio::piped(), Stdio::inherit()) } else { (Stdio::null(), Stdio::piped()) };
    let mut child = command.stdout(out).stderr(err).spawn().expect("the binary starts");
    let output: Box<dyn std::io::Read + Send> = if on_stdout {
        Box::new(child.stdout.take().expect("its output"))
    } else {
        Box::new(child.stderr.take().expect("its output"))
    };
    let mut lines = BufReader::new(output).lines();
    let first = lines.next().and_then(Result::ok).unwrap_or_default();
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("executor: {line}")));
    (Ended(child), first)
}

/// A scheduler that takes an executor for lost after three seconds.
fn scheduler(more: &[&str]) -> (Ended, String) {
    let mut command = ferrotype();
    command.args(["scheduler", "--bind", "127.0.0.1:0", "--lost-after", "3", "--leaving", "1"]).args(more);
    let (process, said) = start(command, true);
    let address = said.split(' ').next_back().unwrap_or_default().to_owned();
    assert!(said.starts_with("The scheduler listens: ballista://127.0.0.1:"), "{said}");
    (process, address)
}

fn executor(scheduler: &str, folder: &Path) -> Ended {
    executor_with(scheduler, folder, |_| {})
}

/// An executor whose command has more to it.
fn executor_with(scheduler: &str, folder: &Path, more: impl FnOnce(&mut Command)) -> Ended {
    let mut command = ferrotype();
    command.args(["executor", scheduler, "--cores", "1", "--heartbeat", "1"]).current_dir(folder);
    more(&mut command);
    let (process, said) = start(command, false);
    assert!(said.starts_with("An executor of ballista://"), "{said}");
    process
}

fn run_on(scheduler: &str, manifest: &str, more: &[&str]) -> Output {
    run(&[&["run", manifest, "--executor", scheduler][..], more].concat())
}

fn succeeds(output: &Output) {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

/// Within which whatever a test waits for has to come.
const SOON: Duration = Duration::from_secs(30);
/// A download that takes about two seconds a partition.
const SLOW: &str = "per_host = { in_flight = 4, per_second = 12 }";

/// Who works on something in a workdir, by what `status` says.
fn at_work(manifest: &str) -> usize {
    let said = text(&run(&["status", manifest]).stdout);
    said.lines()
        .filter(|line| line.starts_with("At work") && line.contains(": download (1 partition under way"))
        .count()
}

#[test]
fn a_cluster_makes_what_a_local_run_makes_though_an_executor_is_killed() {
    let web = Web::start();
    let local = web.manifest(&web.folder.path().join("local").to_string_lossy(), "");
    succeeds(&run(&["run", &local.to_string_lossy(), "-q"]));

    let (_scheduler, address) = scheduler(&[]);
    let remote = web.manifest(&web.workdir().to_string_lossy(), SLOW).to_string_lossy().into_owned();
    let mut going = ferrotype();
    going.args(["run", &remote, "--executor", &address, "-v"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut going = going.spawn().expect("the binary starts");
    let mut said = BufReader::new(going.stderr.take().expect("its output")).lines();
    let mut going = Ended(going);
    // Nobody is there yet, and it says so and waits.
    let note = said.next().and_then(Result::ok).unwrap_or_default();
    assert!(note.contains("has no executor yet"), "{note}");
    let first = executor(&address, web.folder.path());
    let mut second = executor(&address, web.folder.path());
    wait_for("two executors at work", SOON, || at_work(&remote) == 2);
    first.signal("-KILL");
    // The other has to make what it had, too.
    let rest: Vec<String> = said.map_while(Result::ok).collect();
    assert_eq!(going.code(), Some(0), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("download   part-00003 committed: ")), "{rest:?}");
    for stage in ["download", "filter", "bucket", "index"] {
        assert_eq!(digests(&web.workdir(), stage), digests(&web.folder.path().join("local"), stage), "{stage}");
    }
    assert!(text(&run(&["verify", &remote]).stdout).contains("all as recorded"));

    // Again there is nothing to do, and what is asked for again is made again.
    succeeds(&run_on(&address, &remote, &["-q"]));
    let before = std::fs::read_dir(web.workdir().join("stages/bucket")).expect("a stage").count();
    let again = run_on(&address, &remote, &["--stage", "bucket", "--force", "-v"]);
    succeeds(&again);
    let words = text(&again.stderr);
    assert_eq!(words.lines().filter(|line| line.contains(" committed: ")).count(), 8, "{words}");
    assert_eq!(digests(&web.workdir(), "bucket"), digests(&web.folder.path().join("local"), "bucket"));
    assert!(std::fs::read_dir(web.workdir().join("stages/bucket")).expect("a stage").count() >= before);
    // Nobody is at work there, once nobody wants anything of it.
    wait_for("rest", SOON, || !text(&run(&["status", &remote]).stdout).contains("At work"));
    second.signal("-TERM");
    assert_eq!(second.code(), Some(0));
}

#[test]
fn a_run_that_is_interrupted_stops_its_executors_work_and_goes_on_later() {
    let web = Web::start();
    let (_scheduler, address) = scheduler(&[]);
    let mut executors = [executor(&address, web.folder.path()), executor(&address, web.folder.path())];
    let remote = web.manifest(&web.workdir().to_string_lossy(), SLOW).to_string_lossy().into_owned();
    let mut going = ferrotype();
    going.args(["run", &remote, "--executor", &address, "-q"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut going = Ended(going.spawn().expect("the binary starts"));
    wait_for("two executors at work", SOON, || at_work(&remote) == 2);
    going.signal("-INT");
    assert_eq!(going.code(), Some(130));
    // Both partitions are given up, long before they would be done.
    wait_for("an end of their work", SOON, || at_work(&remote) == 0);

    // One that is told to leave ends what it does; the other makes it.
    let mut command = ferrotype();
    command.args(["run", &remote, "--executor", &address, "-q"]).stdout(Stdio::null());
    let mut going = Ended(command.spawn().expect("the binary starts"));
    wait_for("two executors at work", SOON, || at_work(&remote) == 2);
    executors[0].signal("-TERM");
    assert_eq!(executors[0].code(), Some(0));
    assert_eq!(going.code(), Some(0));
    assert_eq!(digests(&web.workdir(), "index").len(), 1);
}

#[test]
fn a_scheduler_that_is_started_anew_is_asked_again() {
    let web = Web::start();
    let (first, address) = scheduler(&[]);
    let mut executor = executor(&address, web.folder.path());
    let remote = web.manifest(&web.workdir().to_string_lossy(), SLOW).to_string_lossy().into_owned();
    let mut going = ferrotype();
    going.args(["run", &remote, "--executor", &address, "-q"]).stdout(Stdio::null());
    let mut going = Ended(going.spawn().expect("the binary starts"));
    wait_for("an executor at work", SOON, || at_work(&remote) == 1);
    drop(first);
    let mut command = ferrotype();
    command.args(["scheduler", "--bind", address.trim_start_matches("ballista://"), "--lost-after", "3"]);
    let (second, _) = start(command, true);
    assert_eq!(going.code(), Some(0));
    assert_eq!(digests(&web.workdir(), "index").len(), 1);
    // Without any, an executor ends and says so.
    drop(second);
    assert_eq!(executor.code(), Some(1));
}

#[test]
fn a_workdir_on_a_store_leaves_no_copies_on_executors() {
    let web = Web::start();
    let root = folder();
    let store = Store::start(root.path());
    let path = web.manifest("s3://bucket/work", "");
    // Each machine has a scratch folder of its own.
    let manifest = std::fs::read_to_string(&path).expect("a manifest");
    let lines: Vec<&str> = manifest.lines().filter(|line| !line.starts_with("scratch")).collect();
    std::fs::write(&path, lines.join("\n")).expect("a manifest");
    let (_scheduler, address) = scheduler(&[]);
    let homes = [folder(), folder(), folder()];
    let at = |home: &Path, command: &mut Command| {
        store.reach(command);
        command.env("HOME", home).env_remove("XDG_CACHE_HOME");
    };
    let executors = [&homes[0], &homes[1]]
        .map(|home| executor_with(&address, web.folder.path(), |command| at(home.path(), command)));
    let mut going = ferrotype();
    going.args(["run", &path.to_string_lossy(), "-q", "--executor", &address]);
    at(homes[2].path(), &mut going);
    succeeds(&going.output().expect("the binary starts"));
    let local = web.manifest(&web.folder.path().join("local").to_string_lossy(), "");
    succeeds(&run(&["run", &local.to_string_lossy(), "-q"]));
    for stage in ["download", "filter", "bucket", "index"] {
        let made = digests(&root.path().join("bucket/work"), stage);
        assert_eq!(made, digests(&web.folder.path().join("local"), stage), "{stage}");
    }
    drop(executors);
    for home in &homes[..2] {
        let copies = Command::new("find").arg(home.path()).args(["-name", "part-*.parquet"]).output();
        let copies = text(&copies.expect("find starts").stdout);
        assert!(copies.is_empty(), "{copies}");
    }
}

#[test]
fn what_fails_there_is_told_here() {
    let web = Web::start();
    let (_scheduler, address) = scheduler(&[]);
    let _executor = executor(&address, web.folder.path());
    let remote = web.manifest(&web.workdir().to_string_lossy(), "on_bad_row = \"fail\"").to_string_lossy().into_owned();
    let failed = run_on(&address, &remote, &[]);
    let words = text(&failed.stderr);
    assert_eq!(failed.status.code(), Some(1), "{words}");
    assert!(words.contains("error: download, part-000") && words.contains("was refused ("), "{words}");
    assert!(words.contains("on_bad_row is \"fail\""), "{words}");

    // With --keep-going whatever can be made is made.
    let good = "on_bad_row = \"fail\"\nrows_per_shard = 5";
    let remote = web.manifest(&web.folder.path().join("other").to_string_lossy(), "").to_string_lossy().into_owned();
    let manifest = std::fs::read_to_string(&remote).expect("a manifest").replace("rows_per_shard = 25", good);
    std::fs::write(&remote, manifest).expect("a manifest");
    let failed = run_on(&address, &remote, &["--keep-going", "-q"]);
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed.stderr));
    let local = run(&[
        "run",
        &remote,
        "--keep-going",
        "-q",
        "--set",
        &format!("pipeline.workdir=\"{}\"", web.workdir().display()),
    ]);
    assert_eq!(local.status.code(), Some(1), "{}", text(&local.stderr));
    let made = digests(&web.folder.path().join("other"), "bucket");
    assert!(!made.is_empty() && made.len() < 40, "{} partitions", made.len());
    assert_eq!(made, digests(&web.workdir(), "bucket"));
}

#[test]
fn what_is_not_there_is_said() {
    let web = Web::start();
    let remote = web.manifest("work", "").to_string_lossy().into_owned();
    let here = |arguments: &[&str]| {
        ferrotype().args(arguments).current_dir(web.folder.path()).output().expect("the binary starts")
    };
    let nobody = here(&["run", &remote, "--executor", "ballista://127.0.0.1:9"]);
    let words = text(&nobody.stderr);
    assert_eq!(nobody.status.code(), Some(1), "{words}");
    assert!(
        words.contains("no scheduler answers at ballista://127.0.0.1:9") && words.contains("ferrotype scheduler"),
        "{words}"
    );
    let nobody = run(&["executor", "ballista://127.0.0.1:9"]);
    let words = text(&nobody.stderr);
    assert_eq!(nobody.status.code(), Some(1), "{words}");
    assert!(words.contains("no scheduler answers at ballista://127.0.0.1:9"), "{words}");
    let wrong = here(&["run", &remote, "--executor", "node1"]);
    assert!(wrong.status.code() == Some(2) && text(&wrong.stderr).contains("ballista://HOST:PORT"), "{wrong:?}");

    // An executor elsewhere, for which the same relative path is another folder.
    let (_scheduler, address) = scheduler(&[]);
    let elsewhere = folder();
    let _executor = executor(&address, elsewhere.path());
    let refused = here(&["run", &remote, "--executor", &address]);
    let words = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{words}");
    assert!(words.contains("sees another workdir at work"), "{words}");
    assert!(!elsewhere.path().join("work/stages").exists(), "nothing was made there");
}

/// Two network namespaces with a cable between them: two machines, as far as addresses go.
struct Machines {
    names: [String; 2],
}

impl Machines {
    const ADDRESSES: [&str; 2] = ["10.213.77.1", "10.213.77.2"];

    /// `None`, with the reason said, where this user may not.
    fn new() -> Option<Self> {
        let process = std::process::id();
        let machines = Self { names: [format!("ferrotype-{process}-a"), format!("ferrotype-{process}-b")] };
        let [a, b] = &machines.names;
        let ip = |words: &str| -> Result<(), String> {
            let output = Command::new("ip").args(words.split(' ')).output().map_err(|error| format!("ip: {error}"))?;
            if output.status.success() { Ok(()) } else { Err(format!("ip {words}: {}", text(&output.stderr))) }
        };
        let made = (|| {
            ip(&format!("netns add {a}"))?;
            ip(&format!("netns add {b}"))?;
            ip(&format!("link add ft0 netns {a} type veth peer name ft0 netns {b}"))?;
            for (name, address) in machines.names.iter().zip(Self::ADDRESSES) {
                ip(&format!("-n {name} address add {address}/24 dev ft0"))?;
                ip(&format!("-n {name} link set ft0 up"))?;
                ip(&format!("-n {name} link set lo up"))?;
            }
            Ok::<(), String>(())
        })();
        match made {
            Ok(()) => Some(machines),
            Err(reason) => {
                eprintln!("skipped: no network namespaces can be made here: {}", reason.trim());
                None
            }
        }
    }

    /// The binary on one of them.
    fn on(&self, machine: usize, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[machine], env!("CARGO_BIN_EXE_ferrotype")]).args(arguments);
        command
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

#[test]
fn a_cluster_of_two_machines_makes_partitions() {
    let Some(machines) = Machines::new() else { return };
    let here = folder();
    let sizes: Vec<(u32, u32)> = (0..24).map(|n| (40 + n, 64 - n)).collect();
    let manifest = bucketed(here.path(), &sizes, "");
    let rows = "stage.import.rows_per_shard=3";
    let locally = here.path().join("local");
    let workdir = format!("pipeline.workdir=\"{}\"", locally.display());
    succeeds(&run(&["run", &manifest, "-q", "--set", rows, "--set", &workdir]));
    let [first, second] = Machines::ADDRESSES;
    let (_scheduler, said) =
        start(machines.on(0, &["scheduler", "--bind", &format!("{first}:50050"), "--lost-after", "3"]), true);
    let address = format!("ballista://{first}:50050");
    assert!(said.ends_with(&address), "{said}");
    let executors = [(0, first), (1, second)].map(|(machine, bind)| {
        let command = machines.on(machine, &["executor", &address, "--bind", bind, "--cores", "1", "-v"]);
        start(command, false)
    });
    assert!(
        executors.iter().all(|(_, said)| said.starts_with("An executor of ")),
        "{:?}",
        executors.each_ref().map(|e| &e.1)
    );
    let output = machines.on(0, &["run", &manifest, "-q", "--set", rows, "--executor", &address]).output();
    succeeds(&output.expect("the binary starts"));
    for stage in ["import", "bucket"] {
        assert_eq!(digests(&here.path().join("work"), stage), digests(&locally, stage), "{stage}");
    }
    assert_eq!(digests(&locally, "bucket").len(), 8);
}
