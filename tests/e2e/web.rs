//! `download` against a web that misbehaves in every way the web does (`tests/chaos`): every row ends, under its own word, with
//! the same bytes whatever the timing; and killed at any instant it goes on without asking for what it has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use chaos::{Behaviour, Expected, Mix, Options, Origin};
use serde_json::Value;

use crate::support::{digests, ferrotype, folder, run, text};

/// Requests at a time, and to each host.
const IN_FLIGHT: usize = 256;
const PER_HOST: usize = 16;

/// A manifest over an origin.
struct Place {
    origin: Origin,
    folder: tempfile::TempDir,
    rows_per_shard: usize,
}

impl Place {
    fn new(options: Options, rows_per_shard: usize) -> Self {
        Self { origin: Origin::start(options).unwrap(), folder: folder(), rows_per_shard }
    }

    fn workdir(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the manifest of a workdir; `partitions` is how many are made at a time.
    fn manifest(&self, name: &str, partitions: usize, more: &str) -> PathBuf {
        let keys = self.origin.manifest_keys(self.folder.path()).unwrap();
        let (workdir, rows) = (self.workdir(name), self.rows_per_shard);
        let path = self.folder.path().join(format!("{name}.toml"));
        let text = format!(
            "[pipeline]\nname = \"{name}\"\nworkdir = \"{}\"\nwarn_above = 1.0\n[stage.download]\nuses = \"download\"\n\
             {keys}rows_per_shard = {rows}\npartitions = {partitions}\nin_flight = {IN_FLIGHT}\nmax_bytes = 4_000_000\n\
             per_host = {{ in_flight = {PER_HOST}, per_second = 0 }}\nconnect_timeout = 2.0\ntimeout = 3.0\nretries = 1\n{more}\n",
            workdir.display()
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The rows that a query gives, as they stand in CSV.
    fn ask(manifest: &Path, sql: &str) -> Vec<Vec<String>> {
        let output = run(&["query", &manifest.to_string_lossy(), sql, "--format", "csv"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).lines().skip(1).map(|line| line.split(',').map(str::to_owned).collect()).collect()
    }

    /// Every row of the list is in one place, under the word that the origin expects, however often it was tried.
    fn check(&self, manifest: &Path) {
        let row_of = |key: &str| key.rsplit('/').next().unwrap().parse::<usize>().unwrap();
        let mut found: HashMap<usize, String> = HashMap::new();
        let mut once = |row: usize, what: String| {
            assert_eq!(found.insert(row, what), None, "row {row} is there twice");
        };
        for row in Self::ask(manifest, "SELECT key, width, height, sha256 FROM download") {
            once(row_of(&row[0]), row[1..].join(" "));
        }
        for row in Self::ask(manifest, "SELECT key, reason FROM download_quarantine") {
            once(row_of(&row[0]), row[1].clone());
        }
        let mut wrong: BTreeMap<String, usize> = BTreeMap::new();
        for (index, row) in self.origin.rows().iter().enumerate() {
            let expected = match &row.expected {
                Expected::Kept { width, height, sha256 } => format!("{width} {height} {sha256}"),
                Expected::Refused(reason) => (*reason).to_owned(),
            };
            let ended = found.remove(&index).unwrap_or_else(|| "lost".to_owned());
            if ended != expected {
                let words = format!("{}: {ended} in place of {expected}", row.behaviour.slug());
                *wrong.entry(words).or_default() += 1;
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert!(found.is_empty(), "rows that no list has: {found:?}");
        let served = self.origin.served();
        assert_eq!(served.trapped, 0, "a private address was connected to");
        let crowded = served.most_at_a_time.iter().find(|(_, most)| **most > PER_HOST);
        assert_eq!(crowded, None, "more requests at a time than per_host allows");
    }
}

/// The most descriptors of a process, and its memory in megabytes in the second and in the last quarter of its life.
struct Held {
    descriptors: usize,
    memory: [u64; 2],
}

/// Waits for a run, which must succeed, and watches it meanwhile.
fn watched(mut child: Child) -> Held {
    let process = PathBuf::from(format!("/proc/{}", child.id()));
    let (mut descriptors, mut memory) = (0, Vec::new());
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        descriptors = descriptors.max(std::fs::read_dir(process.join("fd")).map_or(0, Iterator::count));
        let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        memory.extend(resident.map(|kilobytes: u64| kilobytes / 1000));
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
    let quarter =
        |n: usize| memory[memory.len() * n / 4..memory.len() * (n + 1) / 4].iter().copied().max().unwrap_or(0);
    Held { descriptors, memory: [quarter(1), quarter(3)] }
}

/// Starts a run that may have so many descriptors and no more.
fn start_with(descriptors: usize, manifest: &Path) -> Child {
    let mut command = Command::new("sh");
    let ours: Command = ferrotype();
    command.args(["-c", "ulimit -n \"$1\" && shift && exec \"$@\"", "sh", &descriptors.to_string()]);
    command.arg(ours.get_program()).args(["run", &manifest.to_string_lossy(), "-q"]).stdout(Stdio::null());
    ours.get_envs().for_each(|(name, value)| {
        command.env(name, value.unwrap_or_default());
    });
    command.spawn().unwrap()
}

fn start(manifest: &Path) -> Child {
    let mut command: Command = ferrotype();
    command.args(["run", &manifest.to_string_lossy(), "-q"]).stdout(Stdio::null()).spawn().unwrap()
}

/// Two undisturbed runs over `urls` rows: all accounted for, the same bytes.
fn every_row_ends(urls: usize) {
    let place = Place::new(Options { urls, ..Options::default() }, urls.div_ceil(4));
    let started = Instant::now();
    let first = place.manifest("first", 4, "");
    let held = watched(start(&first));
    let seconds = started.elapsed().as_secs_f64();
    let served = place.origin.served();
    place.check(&first);
    // Connections in flight, as many idle ones as each host may keep, and the process's own.
    let most = IN_FLIGHT + served.most_at_a_time.len() * PER_HOST + 256;
    assert!(held.descriptors < most, "{} descriptors, {most} at most", held.descriptors);
    let [early, late] = held.memory;
    assert!(late < early + 128, "memory grew from {early} MB to {late} MB");

    place.origin.reset();
    let second = place.manifest("second", 2, "");
    watched(start(&second));
    place.check(&second);
    let bytes = |name: &str| digests(&place.workdir(name), "download");
    assert_eq!(bytes("first"), bytes("second"), "the same answers, other timing");
    eprintln!(
        "{urls} URLs of {} kinds in {seconds:.1} s: {} requests over {} connections; {} descriptors at most, {early} MB early, {late} MB late",
        Behaviour::ALL.len(),
        served.all_requests,
        served.connections,
        held.descriptors,
    );
}

#[test]
fn every_row_ends_under_its_own_word_and_the_bytes_do_not_depend_on_timing() {
    every_row_ends(2400);
}

#[test]
#[ignore = "slow: make soak"]
fn soak_twenty_thousand_rows_of_every_kind_end() {
    every_row_ends(20_000);
}

/// Rows of committed partitions.
fn committed(workdir: &Path, rows_per_shard: usize, urls: usize) -> BTreeSet<usize> {
    if !workdir.join("stages/download").exists() {
        return BTreeSet::new();
    }
    let numbers = digests(workdir, "download").into_iter().map(|(name, _)| name[5..10].parse::<usize>().unwrap());
    numbers.flat_map(|n| n * rows_per_shard..((n + 1) * rows_per_shard).min(urls)).collect()
}

/// Kills a run `kills` times and lets it end: the bytes of a run that nobody disturbed, and nothing committed asked for again.
fn killed(urls: usize, rows_per_shard: usize, kills: usize) {
    // Rows that take as long as the client waits would let all kills fall into their silence.
    let place = Place::new(Options { urls, slow_share: 0.001, seed: 5, ..Options::default() }, rows_per_shard);
    let whole = place.manifest("whole", 4, "");
    watched(start(&whole));
    place.check(&whole);
    place.origin.reset();

    // A duplicate's requests are counted with those of the row that it repeats.
    let repeated: BTreeSet<usize> = place.origin.rows().iter().filter_map(|row| row.duplicate_of).collect();
    let is_repeated = |row: usize| repeated.contains(&row);
    let manifest = place.manifest("killed", 4, "");
    let workdir = place.workdir("killed");
    let mut asked_before: BTreeMap<usize, u32> = BTreeMap::new();
    let (mut done, mut random) = (0, 7_u64);
    let mut ended = false;
    while done < kills && !ended {
        let mut child = start(&manifest);
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let deadline = Instant::now() + Duration::from_millis(300 + (random >> 33) % 900);
        while Instant::now() < deadline && !ended {
            ended = child.try_wait().unwrap().is_some();
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        done += 1;
        // The next process looks every name up again; one that answers otherwise then would rightly be refused.
        place.origin.forget_names();
        let requests = place.origin.served().requests;
        let rows = committed(&workdir, rows_per_shard, urls);
        for (row, asked) in &asked_before {
            assert!(requests[*row] == *asked || is_repeated(*row), "row {row} was committed, and asked for again");
        }
        asked_before = rows.into_iter().map(|row| (row, requests[row])).collect();
    }
    watched(start(&manifest));
    let requests = place.origin.served().requests;
    for (row, asked) in asked_before {
        assert!(requests[row] == asked || is_repeated(row), "row {row} was committed, and asked for again");
    }
    place.check(&manifest);
    let bytes = |name: &str| digests(&place.workdir(name), "download");
    assert_eq!(bytes("killed"), bytes("whole"));
    eprintln!("killed {done} times{}", if ended { ", until there was nothing left to do" } else { "" });
}

#[test]
fn a_download_killed_at_random_goes_on_without_asking_again() {
    killed(1200, 40, 4);
}

#[test]
#[ignore = "slow: make soak"]
fn soak_a_download_is_killed_fifty_times() {
    killed(20_000, 100, 50);
}

#[test]
fn a_machine_with_few_descriptors_blames_no_row() {
    // Of two hundred hosts each might keep a connection.
    let mix = Mix::Of(vec![(Behaviour::Jpeg, 30), (Behaviour::NotFound, 5), (Behaviour::LengthTooShort, 5)]);
    let place = Place::new(Options { urls: 1200, hosts: 200, mix, ..Options::default() }, 300);
    let manifest = place.manifest("few", 4, "");
    let held = watched(start_with(256, &manifest));
    assert!(held.descriptors <= 256, "{}", held.descriptors);
    place.check(&manifest);
}

#[test]
fn what_refused_for_now_is_tried_again_alone_and_under_its_key() {
    let mix = Mix::Of(vec![(Behaviour::Jpeg, 60), (Behaviour::NotFound, 20), (Behaviour::TooManyOnce, 6)]);
    let place = Place::new(Options { urls: 120, mix, tls: false, ..Options::default() }, 50);
    let manifest = place.manifest("work", 2, "retries = 0").to_string_lossy().into_owned();
    let text_of = std::fs::read_to_string(&manifest).unwrap().replace("retries = 1\n", "");
    std::fs::write(&manifest, text_of).unwrap();
    assert!(run(&["run", &manifest, "-q"]).status.success());
    let busy = |row: usize| place.origin.rows()[row].behaviour == Behaviour::TooManyOnce;
    let refused = Place::ask(Path::new(&manifest), "SELECT key FROM download_quarantine WHERE reason = 'http_429'");
    let expected = (0..120).filter(|&row| busy(row)).count();
    assert!(expected > 2 && refused.len() == expected, "{refused:?}");
    let before = place.origin.served().requests;

    let busy_rows = "status = 'failed_to_download' AND error_message LIKE '%429%'";
    let retried = run(&["retry", &manifest, "--where", busy_rows]);
    assert!(retried.status.success(), "{}", text(&retried.stderr));
    for (row, (before, after)) in before.iter().zip(place.origin.served().requests).enumerate() {
        assert_eq!(after - before, u32::from(busy(row)), "row {row}");
    }
    place.check(Path::new(&manifest));
}

#[test]
fn a_network_that_is_gone_stops_the_run_and_blames_no_row() {
    let mix = Mix::Of(vec![(Behaviour::ConnectionRefused, 1)]);
    let place = Place::new(Options { urls: 400, mix, dns: false, tls: false, ..Options::default() }, 100);
    let manifest = place.manifest("gone", 2, "stop_when_unreachable = 40");
    let output = ferrotype().args(["run", &manifest.to_string_lossy(), "--json"]).output().unwrap();
    let said = text(&output.stderr) + &text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the network seems to be gone") && said.contains("ferrotype doctor"), "{said}");
    assert_eq!(committed(&place.workdir("gone"), 100, 400).len(), 0, "no partition is committed");
}

#[test]
fn the_log_says_how_it_goes() {
    let mix = Mix::Of(vec![(Behaviour::Jpeg, 10), (Behaviour::NotFound, 2)]);
    // Long enough for a line of the log, which comes every ten seconds.
    let options = Options { urls: 360, mix, hosts: 2, dns: false, tls: false, ..Options::default() };
    let place = Place::new(options, 120);
    let manifest = place.manifest("log", 1, "");
    let slow = std::fs::read_to_string(&manifest).unwrap().replace("per_second = 0", "per_second = 14");
    std::fs::write(&manifest, slow).unwrap();
    watched(start(&manifest));
    let log = std::fs::read_to_string(place.workdir("log").join("stages/download/progress.jsonl")).unwrap();
    let line: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    let number = |name: &str| line[name].as_f64().unwrap();
    assert!(number("rows_per_second") > 5.0 && number("megabytes_per_second") >= 0.0, "{line}");
    assert!(number("success") > 0.0 && number("seconds_left") > 0.0 && number("total") == 360.0, "{line}");
    assert!(line["refused"]["http_404"].as_u64() > Some(0), "{line}");
    assert!(line["slowest_hosts"][0]["host"].as_str().unwrap().contains(".test"), "{line}");
}
