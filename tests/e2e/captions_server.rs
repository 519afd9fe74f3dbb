//! `recaption` against a real server: llama.cpp's, with SmolLM2-135M. What it says of itself is held against what the records say.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use recaption::job::{StepTally, Tally};
use recaption::journal::{CacheKey, Entry, read_segment};
use recaption::{Completion, Finish, Usage};
use serde_json::Value;

use crate::support::{ferrotype, folder, run, text};

const MODEL: &str = "smollm2-135m";
const PROMPT: &str = "Rewrite this as one short sentence that describes a picture: {alt}";
/// As the manifest has it.
const IN_FLIGHT: usize = 4;

/// Python with llama.cpp, and a model for it; `make test` prepares both.
fn tools() -> Option<(PathBuf, PathBuf)> {
    let cache = Path::new(&std::env::var_os("HOME")?).join(".cache/ferrotype");
    let python = cache.join("caption-server/bin/python");
    let model = cache.join("files/smollm2-135m-instruct-q4_1.gguf");
    (cache.join("caption-server/ready").exists() && model.exists()).then_some((python, model))
}

/// A llama.cpp server; it is killed when it is dropped, and ends by itself when this process does.
struct Server {
    process: Child,
    /// "http://127.0.0.1:41234/v1"; empty until it has been [waited](Server::wait) for.
    endpoint: String,
}

impl Server {
    /// Starts it on `port`; 0 takes a free one.
    fn start((python, model): &(PathBuf, PathBuf), port: u16) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/caption_server.py");
        let mut command = Command::new(python);
        command.arg(script).arg(model).args(["--name", MODEL, "--port", &port.to_string()]);
        command.args(["--slots", &IN_FLIGHT.to_string()]);
        let process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        Self { process, endpoint: String::new() }
    }

    /// Waits until it answers.
    fn wait(&mut self) {
        let mut said = BufReader::new(self.process.stdout.take().unwrap());
        said.read_line(&mut self.endpoint).unwrap();
        self.endpoint.truncate(self.endpoint.trim_end().len());
        assert!(self.endpoint.starts_with("http://127.0.0.1:"), "it starts: {:?}", self.endpoint);
    }

    /// "127.0.0.1:41234"
    fn address(&self) -> &str {
        self.endpoint.trim_start_matches("http://").trim_end_matches("/v1")
    }

    fn port(&self) -> u16 {
        self.address().rsplit(':').next().unwrap().parse().unwrap()
    }

    /// Starts another one in the place of one that is dead.
    fn again(self, tools: &(PathBuf, PathBuf)) -> Self {
        Self::start(tools, self.port())
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// The tokens that it has counted itself.
    fn usage(&self) -> Usage {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let count = |name: &str| -> u64 {
            let line = answer.lines().find_map(|line| line.strip_prefix(&format!("llamacpp:{name} ")));
            line.unwrap_or_else(|| panic!("no {name} in {answer}")).trim().parse::<f64>().unwrap() as u64
        };
        let cached = count("prompt_tokens_cached_total");
        Usage {
            // Those that it did not have to work out again are counted apart.
            prompt_tokens: count("prompt_tokens_total") + cached,
            completion_tokens: count("tokens_predicted_total"),
            cached_tokens: cached,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been killed already.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// Twelve pictures with alt texts in three shards, and a manifest that has them rewritten by `endpoint`. Returns its path.
fn manifest(folder: &Path, endpoint: &str) -> String {
    let pictures = folder.join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    for (n, thing) in
        ["apple", "banana", "fox", "rocket", "cactus", "pizza", "snowman", "sailboat", "owl", "bell", "kite", "boot"]
            .iter()
            .enumerate()
    {
        let path = pictures.join(format!("{n:02}.png"));
        image::RgbImage::from_pixel(24, 16, image::Rgb([n as u8, 7, 90])).save(&path).unwrap();
        let colour = ["teal", "blue", "green", "orange", "black"][n % 5];
        std::fs::write(path.with_extension("txt"), format!("{thing} on a {colour} background")).unwrap();
    }
    let path = folder.join("work.toml");
    let text = format!(
        "[pipeline]\nname = \"work\"\nworkdir = \"{0}/work\"\nwarn_above = 1.0\n\
         [stage.import]\nuses = \"import\"\nfolder = \"{0}/pictures\"\nrows_per_shard = 4\n\
         [stage.recaption]\nuses = \"recaption\"\nfrom = \"import\"\nprovenance = \"columns\"\n\
         [stage.recaption.short]\n\
         prompt = \"{PROMPT}\"\nmax_tokens = 24\nattempts = 1\n\
         checks = {{ policies = {{ cut = \"quarantine\", echo_alt = \"accept\", many_sentences = \"accept\", compression = \"accept\" }} }}\n\
         price = {{ prompt = 1.0, completion = 10.0 }}\n\
         server = {{ endpoints = [\"{endpoint}\"], model = \"{MODEL}\", in_flight = {IN_FLIGHT}, timeout = 60.0, cool_down = 0.2, \
         longest_cool_down = 0.5 }}\n",
        folder.display()
    );
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

/// The records of all partitions that are not among `others`.
fn records(folder: &Path, others: &[PathBuf]) -> Vec<PathBuf> {
    let is_record = |file: &PathBuf| {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("part-") && name.ends_with(".json") && !others.contains(file)
    };
    files(&folder.join("work/stages/recaption")).into_iter().filter(is_record).collect()
}

/// What they say of the short captions, summed, and what these have cost.
fn recorded(records: &[PathBuf]) -> (StepTally, f64) {
    let (mut sum, mut cost) = (Tally::default(), 0.0);
    for record in records {
        let record: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
        let short = &record["details"]["captions"]["short"];
        assert_eq!(short["model"], MODEL, "{record}");
        let short_counts = serde_json::from_value(short["counts"].clone()).unwrap();
        sum.plus(&Tally { short: short_counts, ..Tally::default() });
        cost += short["cost"].as_f64().unwrap();
    }
    (sum.short, cost)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).map_or_else(|_| Vec::new(), |all| all.map(|entry| entry.unwrap().path()).collect())
}

/// Every answer that is in the journals. None may be there twice: it would have been paid for twice.
fn answers(folder: &Path) -> BTreeMap<CacheKey, Completion> {
    let mut answers = BTreeMap::new();
    for segment in files(&folder.join("work/stages/recaption/captions")).iter().flat_map(|partition| files(partition)) {
        let each = |key, entry| {
            let Entry::Completion(completion) = entry else { panic!("{entry:?}") };
            assert_eq!(answers.insert(key, completion), None, "it was paid for twice");
        };
        read_segment(std::fs::File::open(segment).unwrap(), each).unwrap();
    }
    answers
}

/// Rows of a table as objects.
fn rows(manifest: &str, sql: &str) -> Vec<Value> {
    let output = run(&["query", manifest, sql, "--format", "json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Each picture has a caption, or stands in quarantine because its own was cut. Returns how many have one.
fn check_rows(manifest: &str, folder: &Path) -> u64 {
    let captioned = rows(manifest, "SELECT key, recaption_short, completion_tokens FROM recaption");
    let refused = rows(manifest, "SELECT key, reason FROM recaption_quarantine");
    let mut keys: Vec<String> = captioned.iter().chain(&refused).map(|row| row["key"].to_string()).collect();
    keys.sort();
    keys.dedup();
    assert_eq!((keys.len(), captioned.len() + refused.len()), (12, 12), "none is lost, none is doubled");
    for row in &captioned {
        assert!(row["recaption_short"].as_str().unwrap().split_whitespace().count() >= 2, "{row}");
        assert!(row["completion_tokens"].as_u64().unwrap() > 0, "{row}");
    }
    for row in &refused {
        assert_eq!(row["reason"], "cut", "what the server goes through is not the row's fault: {row}");
    }
    let cut = answers(folder).values().filter(|answer| answer.finish == Finish::Length).count();
    assert!(refused.len() <= cut, "only what was cut is refused");
    assert!(captioned.len() >= 4, "most sentences are short enough: {refused:?}");
    captioned.len() as u64
}

fn sum(answers: &BTreeMap<CacheKey, Completion>) -> Usage {
    answers.values().fold(Usage::default(), |mut sum, answer| {
        sum += answer.usage;
        sum
    })
}

#[test]
fn a_real_server_is_asked_once_and_may_be_killed_and_started_again() {
    let Some(tools) = tools() else {
        eprintln!("skipped: no llama.cpp server with its model; `make captions-server files` installs them");
        return;
    };
    let folder = folder();
    let folder = folder.path();
    let mut server = Server::start(&tools, 0);
    server.wait();
    let path = manifest(folder, &server.endpoint);
    let (idle, began) = (server.usage(), Instant::now());
    let ran = run(&["run", &path]);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    let seconds = began.elapsed().as_secs_f64();
    let captioned = check_rows(&path, folder);

    // To the token what the server has counted.
    let of_first = records(folder, &[]);
    let (first, cost) = recorded(&of_first);
    let served = server.usage();
    assert_eq!(first.usage.prompt_tokens, served.prompt_tokens - idle.prompt_tokens);
    assert_eq!(first.usage.completion_tokens, served.completion_tokens - idle.completion_tokens);
    assert_eq!(first.usage.cached_tokens, served.cached_tokens - idle.cached_tokens);
    assert_eq!(first.usage, sum(&answers(folder)));
    assert!(first.usage.prompt_tokens > 300 && first.usage.completion_tokens > 40, "{first:?}");
    assert_eq!((first.attempts, first.asked_again, first.captions), (12, 0, captioned));
    let expected = (first.usage.prompt_tokens as f64 + 10.0 * first.usage.completion_tokens as f64) / 1e6;
    assert!((cost - expected).abs() < 1e-9, "{cost}, {expected}");

    let again = run(&["run", &path]);
    assert!(text(&again.stderr).contains("Nothing to do: everything is up to date."), "{}", text(&again.stderr));
    assert_eq!(server.usage(), served, "and nobody was asked");

    // Another prompt is another question. The server dies over it, and comes back where it was.
    let written = std::fs::read_to_string(&path).unwrap();
    let other = written.replace(PROMPT, "Describe a picture of {alt} in one short sentence.");
    assert_ne!(other, written);
    std::fs::write(&path, &other).unwrap();
    let mut command = ferrotype();
    let running = command.args(["run", &path, "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    while answers(folder).len() < 12 + 3 {
        assert!(Instant::now() < deadline, "{} answers in a minute", answers(folder).len());
        std::thread::sleep(Duration::from_millis(20));
    }
    server.kill();
    // Long enough for it to be found dead, to be looked at in vain, and for that to be said.
    std::thread::sleep(Duration::from_secs(3));
    let of_the_dead = answers(folder);
    assert!(of_the_dead.len() < 24, "it was killed in the middle");
    let mut server = server.again(&tools);
    server.wait();
    let ran = running.wait_with_output().unwrap();
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    let captioned = check_rows(&path, folder);

    let mut all = answers(folder);
    assert_eq!(all.len(), 24, "what was answered before was not asked again");
    let (second, _) = recorded(&records(folder, &of_first));
    assert_eq!((second.attempts, second.captions), (12, captioned));
    assert_eq!(second.usage.completion_tokens, sum(&all).completion_tokens - first.usage.completion_tokens);
    let said = text(&ran.stdout);
    assert!(said.contains("1 of 1 endpoints left alone for a while"), "it was found dead: {said}");
    // What the new server has answered besides are the small questions that it was taken back for, of one token each.
    all.retain(|key, _| !of_the_dead.contains_key(key));
    let small = server.usage().completion_tokens - sum(&all).completion_tokens;
    assert!((1..=3).contains(&small), "{small}");

    // It is shown a picture, of which its model can make nothing: the rows are refused by what it says, at once.
    let shown = other.replace("attempts = 1", "attempts = 1\nimage = true");
    assert_ne!(shown, other);
    std::fs::write(&path, shown).unwrap();
    assert!(run(&["run", &path, "-q"]).status.success());
    let refused = rows(&path, "SELECT reason, error_message FROM recaption_quarantine");
    assert_eq!(refused.len(), 12);
    for row in &refused {
        assert_eq!(row["reason"], "refused_by_server", "{row}");
        assert!(row["error_message"].as_str().unwrap().contains("image input is not supported"), "{row}");
    }
    eprintln!(
        "12 captions in {seconds:.1} s, {:.0} completion tokens/s; killed after {} of 12 more, and taken back after {small} small question(s)",
        first.usage.completion_tokens as f64 / seconds,
        of_the_dead.len() - 12,
    );
}
