//! `recaption` from outside: a server that misbehaves, workers that are killed, prompts that change.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use captions::clean;
use chaos::captions::{CaptionServer, Manner, Options, POISON, Served, caption, identity};
use recaption::prompt::Prompt;
use serde_json::Value;

#[path = "../../recaption/tests/in_process/tokenizer.rs"]
mod tokenizer;

use crate::report::figures;
use crate::support::{digests, ferrotype, folder, run, text};

/// Pictures with alt texts, and a manifest that captions them by `server`, a few rows a shard.
struct Place {
    folder: tempfile::TempDir,
    pictures: Vec<(String, Vec<u8>)>,
}

impl Place {
    /// Of the pictures, those whose number `is_poisoned` break the server.
    fn new(count: usize, is_poisoned: impl Fn(usize) -> bool) -> Self {
        let folder = folder();
        std::fs::create_dir(folder.path().join("pictures")).unwrap();
        let mut place = Self { folder, pictures: Vec::new() };
        place.add("", count, is_poisoned);
        place
    }

    /// So many more, whose names begin with `prefix`.
    fn add(&mut self, prefix: &str, count: usize, is_poisoned: impl Fn(usize) -> bool) {
        for n in self.pictures.len()..self.pictures.len() + count {
            let path = self.path().join(format!("pictures/{prefix}{n:04}.png"));
            image::RgbImage::from_pixel(24, 16, image::Rgb([n as u8, (n >> 8) as u8, 90])).save(&path).unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            if is_poisoned(n) {
                // Behind the end of the picture, where no decoder looks.
                bytes.extend(POISON);
                std::fs::write(&path, &bytes).unwrap();
            }
            let alt = format!("alt text number {n}");
            std::fs::write(path.with_extension("txt"), &alt).unwrap();
            self.pictures.push((alt, bytes));
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn manifest(&self, name: &str, url: &str, more: &str) -> String {
        let path = self.path().join(format!("{name}.toml"));
        let server = format!(
            "server = {{ endpoints = [\"{url}\"], model = \"captioner\", in_flight = 4, timeout = 1.5, back_off = 0.02, \
             longest_back_off = 0.1, cool_down = 0.15, longest_cool_down = 0.6 }}"
        );
        let manifest = format!(
            "[pipeline]\nname = \"{name}\"\nworkdir = \"{0}/{name}\"\nwarn_above = 1.0\n[stage.import]\nuses = \"import\"\n\
             folder = \"{0}/pictures\"\nrows_per_shard = 50\n[stage.recaption]\nuses = \"recaption\"\nfrom = \"import\"\n\
             provenance = \"columns\"\n[stage.recaption.long]\n{server}\n[stage.recaption.short]\n{server}\n{more}\n",
            self.path().display()
        );
        std::fs::write(&path, manifest).unwrap();
        path.to_string_lossy().into_owned()
    }

    /// What the server says of a picture, as it ends in the columns.
    fn expected(&self, n: usize) -> (String, String) {
        let (alt, bytes) = &self.pictures[n];
        let prompt = Prompt::long().render(|name| (name == "alt").then_some(alt.as_str()));
        let long = clean(&caption(identity(&prompt, Some(bytes)))).text.to_owned();
        let prompt = Prompt::short().render(|name| (name == "caption").then_some(long.as_str()));
        let short = clean(&caption(identity(&prompt, None))).text.to_owned();
        (long, short)
    }
}

/// Rows as objects, by alt text.
fn rows(manifest: &str, table: &str) -> BTreeMap<String, Value> {
    let columns = if table.ends_with("quarantine") { "caption, reason, status" } else { "* EXCEPT (image)" };
    let sql = format!("SELECT {columns} FROM {table}");
    let output = run(&["query", manifest, &sql, "--format", "json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows = text(&output.stdout);
    let rows = rows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| (row["caption"].as_str().unwrap().to_owned(), row)).collect()
}

fn record(workdir: &Path) -> Vec<Value> {
    let folder = workdir.join("stages/recaption");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let records = files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("part-"));
    let records = records.filter(|path| path.extension().is_some_and(|ending| ending == "json"));
    records.map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).collect()
}

/// Answers that were given more than once: questions that were paid for again.
fn repeated(served: &Served) -> u64 {
    served.questions.values().map(|asked| u64::from(asked.answered.saturating_sub(1))).sum()
}

#[test]
fn every_row_is_captioned_or_refused_with_its_reason_and_a_changed_prompt_asks_only_what_changed() {
    let place = Place::new(120, |n| n == 70);
    let rates = [
        (Manner::TooManySeconds, 0.01),
        (Manner::TooManyMilliseconds, 0.03),
        (Manner::Unavailable, 0.03),
        (Manner::Reset, 0.03),
        (Manner::Cut, 0.02),
        (Manner::NotJson, 0.02),
        (Manner::EmptyChoices, 0.02),
        (Manner::Length, 0.03),
        (Manner::BadRequest, 0.02),
        (Manner::Hang, 0.005),
    ];
    let server = CaptionServer::start(Options { rates: rates.into(), limit: 4, ..Options::default() }).unwrap();
    let manifest = place.manifest("work", &server.url(), "");
    let ran = run(&["run", &manifest]);
    assert!(ran.status.success(), "{}\n{}", text(&ran.stdout), text(&ran.stderr));
    assert_eq!(server.served().over_limit, 0, "never more in flight than the manifest allows");

    let (made, refused) = (rows(&manifest, "recaption"), rows(&manifest, "recaption_quarantine"));
    assert_eq!(made.len() + refused.len(), 120, "no row is lost or doubled");
    assert_eq!(refused["alt text number 70"]["reason"], "poisoned");
    // A row's story names who said what, by which prompt.
    let key = made.values().next().unwrap()["key"].as_str().unwrap();
    let story = text(&run(&["explain", &manifest, key]).stdout);
    let details = &record(&place.path().join("work"))[0]["details"]["captions"];
    for step in ["long", "short"] {
        let (model, prompt) =
            (details[step]["model"].as_str().unwrap(), details[step]["prompt_digest"].as_str().unwrap());
        assert!(
            story.contains(&format!("{step} by")) && story.contains(&format!(" {model}, prompt {}\n", &prompt[..8])),
            "{story}"
        );
    }
    let (mut plain, mut of_server) = (0, 0);
    for n in 0..120 {
        let alt = format!("alt text number {n}");
        match made.get(&alt) {
            Some(row) if row["caption_flags"].as_array().is_some_and(Vec::is_empty) => {
                let (long, short) = place.expected(n);
                if row["recaption"] == long.as_str() {
                    assert_eq!(row["recaption_short"], short.as_str(), "{row}");
                    plain += 1;
                }
            }
            Some(row) => panic!("taken in spite of its flags: {row}"),
            None => of_server += u32::from(refused[&alt]["reason"] == "refused_by_server"),
        }
        assert!(refused.get(&alt).is_none_or(|row| row["status"] == "failed_to_caption"));
    }
    assert!(plain >= 100, "{plain} rows have the answers to their own questions");
    assert!((1..15).contains(&of_server), "{of_server} were refused as bad requests");
    let verified = run(&["verify", &manifest]);
    assert!(text(&verified.stdout).contains("all as recorded"), "{}", text(&verified.stdout));
    let sum = |kind: &str| {
        let of = |record: &Value| record["details"]["captions"]["long"]["counts"]["usage"][kind].as_u64().unwrap();
        record(&place.path().join("work")).iter().map(of).sum::<u64>()
    };
    assert!(sum("prompt_tokens") > 0 && sum("completion_tokens") > 0, "usage is in the records");

    let reported = run(&["report", &manifest]);
    let page = std::fs::read_to_string(text(&reported.stdout).trim()).unwrap();
    let captions = figures(&page)["captions"].clone();
    assert_eq!((&captions[0]["caption"], &captions[1]["caption"]), (&Value::from("long"), &Value::from("short")));
    assert_eq!(captions[0]["prompt_tokens"], sum("prompt_tokens"));
    assert!(
        page.contains("<td>captioner</td>") && page.contains("Refused by recaption"),
        "models and refusals are shown"
    );

    // Another second prompt: no picture is shown again but those that the server refused for no fault of theirs.
    let before = server.served();
    let asked = |served: &Served, n: usize| {
        let (alt, bytes) = &place.pictures[n];
        let prompt = Prompt::long().render(|name| (name == "alt").then_some(alt.as_str()));
        served.questions.get(&identity(&prompt, Some(bytes))).map_or(0, |asked| asked.times)
    };
    let prompt = "--set=stage.recaption.short.prompt=In five words: {caption}";
    let again = run(&["run", &manifest, prompt]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    let after = server.served();
    let mut shown_again = 0;
    for n in 0..120 {
        let alt = format!("alt text number {n}");
        if refused.get(&alt).is_some_and(|row| row["reason"] == "refused_by_server") {
            shown_again += u32::from(asked(&after, n) > asked(&before, n));
        } else {
            assert_eq!(asked(&after, n), asked(&before, n), "its first caption was reused: {n}");
        }
    }
    assert!(shown_again >= 1, "what a server refuses once it may answer later");
    assert!(after.captions > before.captions, "the second ones were asked");
    let planned = run(&["plan", &manifest, prompt]);
    assert!(text(&planned.stdout).contains("up to date"), "{}", text(&planned.stdout));
}

#[test]
fn a_job_some_of_whose_captions_have_passed_goes_on_when_all_that_are_left_fail_their_checks() {
    let place = Place::new(180, |_| false);
    let caption = |options: Options| {
        let server = CaptionServer::start(options).unwrap();
        let manifest = place.manifest("work", &server.url(), "attempts = 1");
        let ran = run(&["run", &manifest, "--set=stage.recaption.long.attempts=1", "-q"]);
        assert!(ran.status.success(), "{}", text(&ran.stderr));
        assert_eq!(record(&place.path().join("work")).len(), 4);
    };
    caption(Options::default());
    // All but the first shard is made anew, by a server that cuts all that it says.
    let stage = place.path().join("work/stages/recaption");
    std::fs::remove_dir_all(stage.join("captions")).unwrap();
    for entry in std::fs::read_dir(&stage).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("ledger") || (name.starts_with("part-") && !name.starts_with("part-00000")) {
            std::fs::remove_file(stage.join(name)).unwrap();
        }
    }
    caption(Options { rates: vec![(Manner::Length, 1.0)], ..Options::default() });
}

#[test]
fn pictures_that_come_first_move_all_rows_and_only_the_new_ones_are_asked_about() {
    let mut place = Place::new(120, |_| false);
    let server = CaptionServer::start(Options::default()).unwrap();
    let manifest = place.manifest("work", &server.url(), "");
    let succeeds = |arguments: &[&str]| {
        let ran = run(arguments);
        assert!(ran.status.success(), "{arguments:?}: {}", text(&ran.stderr));
    };
    let paid = || (server.served().captions, repeated(&server.served()));
    succeeds(&["run", &manifest, "-q"]);
    assert_eq!(paid(), (2 * 120, 0));

    // Three shards become four. Each is made by a process of its own, the last one, which is new, first.
    place.add("000-", 40, |_| false);
    succeeds(&["run", &manifest, "--until", "import", "-q"]);
    for share in ["3/4", "0/4", "1/4", "2/4"] {
        succeeds(&["worker", &manifest, "--stage", "recaption", "--share", share, "-q"]);
    }
    assert_eq!(paid(), (2 * 160, 0));
    let made = rows(&manifest, "recaption");
    assert_eq!(made.len(), 160);
    for n in 0..160 {
        let (row, (long, short)) = (&made[&format!("alt text number {n}")], place.expected(n));
        assert_eq!((&row["recaption"], &row["recaption_short"]), (&Value::from(long), &Value::from(short)));
    }

    // What was found elsewhere is where it belongs from then on: nothing says any more that rows have moved.
    succeeds(&["gc", &manifest, "--delete"]);
    succeeds(&["run", &manifest, "--force", "--stage", "recaption", "-q"]);
    assert_eq!(paid(), (2 * 160, 0));
}

/// A model in this process makes the captions, whatever a tiny random one says; the same ones with another number of slots.
#[test]
fn a_model_in_this_process_captions_as_a_stage_and_by_the_command() {
    let place = Place::new(6, |_| false);
    let model = place.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/fixtures/hf/llava_next");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture.join(file), model.join(file)).unwrap();
    }
    std::fs::write(model.join("tokenizer.json"), tokenizer::of_bytes().to_string()).unwrap();
    std::fs::write(model.join("tokenizer_config.json"), r#"{"eos_token": "<|eot_id|>"}"#).unwrap();
    let checks = "attempts = 1\nmax_tokens = 12\nchecks = { policies = { ".to_owned()
        + &recaption::checks::Flag::ALL.map(|flag| format!("{flag} = \"accept\"")).join(", ")
        + " } }";
    let manifest = |name: &str, slots: usize| {
        let path = place.path().join(format!("{name}.toml"));
        let text = format!(
            "[pipeline]\nname = \"{name}\"\nworkdir = \"{0}/{name}\"\nwarn_above = 1.0\n[stage.import]\nuses = \"import\"\nfolder = \"{0}/pictures\"\n\
             [stage.recaption]\nuses = \"recaption\"\nfrom = \"import\"\n[stage.recaption.long]\nprompt = \"Say: {{alt}}\"\n\
             model = {{ folder = \"{0}/model\", device = \"cpu\", slots = {slots}, tokens = 400 }}\n{checks}\n",
            place.path().display()
        );
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    };
    let captions = |manifest: &str| -> Vec<String> {
        let ran = run(&["run", manifest, "-q"]);
        assert!(ran.status.success(), "{}", text(&ran.stderr));
        rows(manifest, "recaption").values().map(|row| row["recaption"].to_string()).collect()
    };
    let one = captions(&manifest("one", 1));
    assert_eq!(one.len(), 6);
    assert_eq!(captions(&manifest("four", 4)), one, "slots change nothing");
    let tokens = |record: &Value| record["details"]["captions"]["long"]["counts"]["usage"]["completion_tokens"].clone();
    assert!(record(&place.path().join("one")).iter().all(|record| tokens(record).as_u64() > Some(6)));

    let picture = place.path().join("pictures/0000.png").to_string_lossy().into_owned();
    let said = run(&["caption", &picture, "--alt", "alt text number 0", "--manifest", &manifest("four", 4), "--json"]);
    assert!(said.status.success(), "{}", text(&said.stderr));
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert!(said.to_string().contains(one[0].trim_matches('"')), "{said} against {}", one[0]);

    std::fs::write(model.join("config.json"), "{}").unwrap();
    let planned = run(&["run", &manifest("bad", 1)]);
    assert!(!planned.status.success() && text(&planned.stderr).contains("config.json"), "{}", text(&planned.stderr));
}

/// A worker: a process that runs the manifest.
fn worker(manifest: &str) -> Child {
    let mut command: Command = ferrotype();
    command.args(["run", manifest, "-q"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Three workers on one workdir, of which one is killed again and again.
fn killed(kills: usize, rows_in_all: usize) {
    let place = Place::new(rows_in_all, |_| false);
    let latency = Duration::from_millis(40);
    let server = CaptionServer::start(Options { latency, ..Options::default() }).unwrap();
    let undisturbed = place.manifest("undisturbed", &server.url(), "");
    assert!(run(&["run", &undisturbed, "-q"]).status.success());
    assert_eq!(repeated(&server.served()), 0, "nobody was killed, nothing was paid twice");

    let server = CaptionServer::start(Options { latency, ..Options::default() }).unwrap();
    let manifest = place.manifest("killed", &server.url(), "");
    let mut workers: Vec<Child> = (0..3).map(|_| worker(&manifest)).collect();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let (mut done, mut ended) = (0, 0);
    while done < kills {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        std::thread::sleep(Duration::from_millis(250 + state % 500));
        let chosen = (state >> 20) as usize % workers.len();
        if workers[chosen].try_wait().unwrap().is_none() {
            workers[chosen].kill().unwrap();
            workers[chosen].wait().unwrap();
            done += 1;
        } else {
            ended += 1;
            assert!(ended < 10, "all was done after {done} of {kills} kills: take more rows");
        }
        workers[chosen] = worker(&manifest);
    }
    for mut worker in workers {
        worker.wait().unwrap();
    }
    let last = run(&["run", &manifest, "-q"]);
    assert!(last.status.success(), "{}", text(&last.stderr));
    let of = |name: &str| digests(&place.path().join(name), "recaption");
    assert_eq!(of("killed"), of("undisturbed"), "to the bit");
    let (served, paid) = (server.served(), repeated(&server.served()));
    eprintln!(
        "{kills} kills of 3 workers over {rows_in_all} rows: {} questions, {paid} of them paid for again, {:.1} a kill of at most 4 in flight",
        served.questions.len(),
        paid as f64 / kills as f64
    );
    assert_eq!(served.questions.len(), 2 * rows_in_all);
    // What is in flight at a kill, and what was answered while the answers before it were being made durable.
    assert!(paid <= 2 * 4 * kills as u64, "{paid} answers were paid for again after {kills} kills");
}

#[test]
fn workers_that_are_killed_lose_nothing_and_pay_nothing_twice() {
    killed(8, 500);
}

#[test]
#[ignore = "slow; `make soak` runs it"]
fn soak_fifty_kills_of_three_workers() {
    killed(50, 6000);
}

#[test]
fn what_is_wrong_with_a_recaption_table_is_said_with_its_key() {
    let place = Place::new(1, |_| false);
    for (more, words) in [
        ("attempts = 0", "short.attempts: 0: expected 1 to 100"),
        ("temperature = -1.0", "short.temperature: -1"),
        ("prompt = \"{capt\"", "a brace is opened and never closed"),
        ("tempertaure = 1.0", "did you mean `temperature`?"),
        ("checks = { policies = { refusals = \"retry\" } }", "refusals"),
    ] {
        let manifest = place.manifest("bad", "http://127.0.0.1:9/v1", more);
        let planned = run(&["plan", &manifest]);
        assert_eq!(planned.status.code(), Some(2), "{more}");
        let said = text(&planned.stderr);
        assert!(said.contains(words) && said.contains("bad.toml:"), "{more}: {said}");
    }
    // The column of the original text has that name, too.
    let manifest = place.manifest("long", "http://127.0.0.1:9/v1", "");
    for key in ["prompt", "prompt_without_alt"] {
        let prompt = format!("--set=stage.recaption.long.{key}=Describe this. Its web caption: {{caption}}");
        let planned = run(&["plan", &manifest, &prompt]);
        let said = text(&planned.stderr);
        assert_eq!(planned.status.code(), Some(2), "{said}");
        let words =
            format!("long.{key}: {{caption}} is the long caption, which this prompt asks for; the text that came with");
        assert!(said.contains(&words), "{said}");
    }
    // Nobody listens there.
    let manifest = place.manifest("nobody", "http://127.0.0.1:9/v1", "");
    let give_up = "--set=stage.recaption.long.server.give_up_after=0.5";
    let ran = run(&["run", &manifest, give_up]);
    assert_eq!(ran.status.code(), Some(1));
    let said = text(&ran.stderr);
    assert!(said.contains("127.0.0.1:9"), "{said}");
    assert_eq!(said.matches("http://127.0.0.1:9/v1 is left alone until it works").count(), 1, "said at once: {said}");
    // A column that is not there.
    let manifest = place.manifest("column", "http://127.0.0.1:9/v1", "prompt = \"{colour}: {caption}\"");
    let said = text(&run(&["run", &manifest]).stderr);
    assert!(said.contains("names the column colour") && said.contains("has only key"), "{said}");
}
