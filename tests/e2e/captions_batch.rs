//! `caption`, which tries prompts on pictures, and `captions`, which exchanges files with `vllm run-batch`.

use std::path::{Path, PathBuf};

use captions::clean;
use chaos::captions::{CaptionServer, Manner, Options, caption, completion_of, identity};
use serde_json::{Value, json};

use crate::support::{folder, run, text};

/// So many pictures, each with a caption beside it.
fn pictures(folder: &Path, count: u8) -> Vec<String> {
    let pictures = folder.join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    (0..count)
        .map(|n| {
            let path = pictures.join(format!("{n:02}.png"));
            image::RgbImage::from_pixel(24, 16, image::Rgb([n * 8, 7, 200])).save(&path).unwrap();
            std::fs::write(pictures.join(format!("{n:02}.txt")), format!("picture {n}")).unwrap();
            path.to_string_lossy().into_owned()
        })
        .collect()
}

/// A manifest that captions the pictures of `folder` by models of this server.
fn manifest(folder: &Path, server: &CaptionServer, [long, short]: [&str; 2]) -> String {
    let text = format!(
        "[pipeline]\nname = \"work\"\nworkdir = \"{0}/work\"\n\
         [stage.import]\nuses = \"import\"\nfolder = \"{0}/pictures\"\nrows_per_shard = 4\n\
         [stage.recaption]\nuses = \"recaption\"\nfrom = \"import\"\n\
         long = {{ server = {{ endpoints = [\"{1}\"], model = \"{long}\", api_key_env = \"NOT_SET_HERE\" }} }}\n\
         short = {{ server = {{ endpoints = [\"{1}\"], model = \"{short}\" }} }}\n",
        folder.display(),
        server.url(),
    );
    let path = folder.join("work.toml");
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

/// What a command says that must succeed.
fn said(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn failed(code: i32, arguments: &[&str]) -> (String, String) {
    let output = run(arguments);
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {out}{error}");
    (out, error)
}

/// The caption that a server gives, of a picture file or of text alone.
fn caption_of(prompt: &str, picture: Option<&str>) -> String {
    let image = picture.map(|path| std::fs::read(path).unwrap());
    clean(&caption(identity(prompt, image.as_deref()))).text.to_owned()
}

#[test]
fn prompts_are_tried_on_pictures() {
    let folder = folder();
    let pictures = pictures(folder.path(), 2);
    let server = CaptionServer::start(Options::default()).unwrap();
    let url = server.url();
    let base = ["caption", &pictures[0], &pictures[1], "--endpoint", &url, "--model", "captioner"];
    let asked = ["--alt", "a hint", "--prompt", "What is {alt} about?", "--short-prompt", "Shorter: {caption}"];
    let lines = said(&[&base[..], &asked, &["--json"]].concat());
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    for (line, path) in lines.iter().zip(&pictures) {
        assert_eq!(line["image"], path.as_str());
        let long = caption_of("What is a hint about?", Some(path));
        assert_eq!(line["long"]["caption"], long.as_str());
        assert_eq!(line["short"]["caption"], caption_of(&format!("Shorter: {long}"), None).as_str());
        for step in ["long", "short"] {
            let step = &line[step];
            assert_eq!((&step["source"], &step["flags"], &step["attempts"]), (&json!("model"), &json!([]), &json!(1)));
            assert_eq!((&step["completion_tokens"], &step["answers"][0]["policy"]), (&json!(12), &json!("accept")));
            assert!(step["seconds"].as_f64().unwrap() > 0.0 && step["tokens_per_second"].as_f64().unwrap() > 0.0);
        }
    }
    // Nothing is kept: whoever asks again, pays again.
    let words = said(&base);
    assert_eq!(server.served().captions, 4 + 2);
    assert!(words.contains("number") && words.contains("no flags; 1 answer, "), "{words}");
    assert!(words.contains("2 captioned, 0 failed, in ") && words.contains("24 completion tokens"), "{words}");
    assert!(!words.contains("short"), "{words}");
    // A picture that fails does not keep the others from being shown.
    let missing = folder.path().join("nowhere.png").to_string_lossy().into_owned();
    let (words, _) = failed(1, &[&["caption", &missing, &pictures[0]], &base[3..]].concat());
    assert!(words.contains("cannot be read") && words.contains("1 captioned, 1 failed"), "{words}");
}

#[test]
fn a_manifest_s_prompts_are_tried_and_changed() {
    let folder = folder();
    let pictures = pictures(folder.path(), 1);
    let server = CaptionServer::start(Options::default()).unwrap();
    let manifest = manifest(folder.path(), &server, ["captioner", "captioner"]);
    let base = ["caption", &pictures[0], "--json", "--manifest", &manifest];
    let key = ["--set", "stage.recaption.long.server.api_key_env=\"PATH\""];
    let prompt = ["--set", "stage.recaption.long.prompt=\"Name it in {lang}.\"", "--column", "lang=English"];
    let line: Value = serde_json::from_str(&said(&[&base[..], &key, &prompt].concat())).unwrap();
    assert_eq!(line["long"]["caption"], caption_of("Name it in English.", Some(&pictures[0])).as_str());
    assert_eq!(line["short"]["source"], "model");
    // Nothing of the workdir is needed, and nothing is left there.
    assert!(!folder.path().join("work").exists());

    let wrong = |more: &[&str], words: &str| {
        let (_, error) = failed(2, &[&base[..], more].concat());
        assert!(error.contains(words), "{more:?}: {error}");
    };
    wrong(&[&key[..], &prompt[..2]].concat(), "--column lang=");
    wrong(&[], "NOT_SET_HERE");
    wrong(&["--set", "stage.recaption.long.promt=\"x\""], "promt");
    wrong(&["--stage", "import"], "has no recaption stage import");
    wrong(&["--model", "captioner", "--endpoint", "http://127.0.0.1:9/v1"], "cannot be used with");
}

#[test]
fn servers_that_refuse_and_wrong_flags_are_said_in_words() {
    let folder = folder();
    let pictures = pictures(folder.path(), 1);
    let refusing = Options { rates: vec![(Manner::BadRequest, 1.0)], most_misbehaviour: 99, ..Options::default() };
    let server = CaptionServer::start(refusing).unwrap();
    let url = server.url();
    let base = ["caption", &pictures[0], "--endpoint", &url, "--model"];
    let (words, _) = failed(1, &[&base[..], &["captioner"]].concat());
    assert!(words.contains("failed: refused_by_server: 400: this image is not for us"), "{words}");
    let (line, _) = failed(1, &[&base[..], &["captioner", "--json"]].concat());
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["refused"]["reason"], &line["long"]["caption"]), (&json!("refused_by_server"), &Value::Null));
    let (_, error) = failed(1, &[&base[..], &["llava"]].concat());
    assert!(error.contains("has no model `llava`; its models: captioner"), "{error}");
    // A port where nobody listens.
    drop(server);
    let (_, error) = failed(1, &[&base[..], &["captioner"]].concat());
    assert!(error.contains("no caption server has answered") && error.contains(&url), "{error}");

    for (arguments, words) in [
        (&["caption", "a.png"][..], "--endpoint http://host:8000/v1 and --model NAME"),
        (&["caption", "a.png", "--endpoint", "http://a/v1"], "--model"),
        (&["caption", "a.png", "--model", "m", "--endpoint", "a"], "expected base URLs"),
        (&["caption", "a.png", "--model", "m", "--endpoint", "http://a/v1", "--prompt", "{"], "never closed"),
        (&["caption", "a.png", "--model", "m", "--endpoint", "http://a/v1", "--temperature", "99"], "temperature"),
        (
            &["caption", "a.png", "--model", "m", "--endpoint", "http://a/v1", "--prompt", "It was called {caption}."],
            "of the long caption, prompt: {caption} is the long caption, which this prompt asks for",
        ),
        (
            &["caption", "a.png", "--model", "m", "--endpoint", "http://a/v1", "--api-key-env", "NOT_SET_HERE"],
            "NOT_SET_HERE",
        ),
        (&["caption"], "IMAGES"),
    ] {
        let (_, error) = failed(2, arguments);
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
}

/// Answers a file of requests as `vllm run-batch` does; every `nth` of them with an error. Old versions have a form of their own.
fn run_batch(requests: &Path, results: &Path, is_old: bool, nth: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut ids = Vec::new();
    for (n, line) in std::fs::read_to_string(requests).unwrap().lines().enumerate() {
        let request: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&request["method"], &request["url"]), (&json!("POST"), &json!("/v1/chat/completions")));
        let id = request["custom_id"].as_str().unwrap();
        ids.push(id.to_owned());
        let body = completion_of(request["body"].to_string().as_bytes()).expect("a question");
        let body: Value = serde_json::from_str(&body).unwrap();
        let (response, error) = match (n % nth == nth - 1, is_old) {
            (true, _) => (json!({ "status_code": 400, "request_id": "r", "body": null }), json!("too long")),
            (false, true) => (body, Value::Null),
            (false, false) => (json!({ "status_code": 200, "request_id": "r", "body": body }), Value::Null),
        };
        lines.push(json!({ "id": format!("vllm-{n}"), "custom_id": id, "response": response, "error": error }));
    }
    // In any order.
    let text: Vec<String> = lines.iter().rev().map(Value::to_string).collect();
    std::fs::write(results, text.join("\n")).unwrap();
    ids
}

fn shards(workdir: &Path, manifest: &str) -> String {
    assert!(workdir.join("stages/recaption").exists());
    said(&["query", manifest, "SELECT key, recaption, recaption_short FROM recaption ORDER BY key", "--format", "csv"])
}

#[test]
fn what_comes_from_files_is_asked_of_nobody() {
    let folder = folder();
    pictures(folder.path(), 10);
    let server = CaptionServer::start(Options::default()).unwrap();
    let manifest = manifest(folder.path(), &server, ["captioner", "captioner"]);
    let path = |name: &str| -> (PathBuf, String) {
        let path = folder.path().join(name);
        (path.clone(), path.to_string_lossy().into_owned())
    };
    let ((requests, requests_text), (results, results_text)) = (path("requests.jsonl"), path("results.jsonl"));
    let export = ["captions", "export", &manifest, "--out", &requests_text];
    let import = ["captions", "import", &manifest, &results_text];

    // The input is not there yet.
    let words = said(&export);
    assert!(words.contains("0 rows: nothing to ask") && words.contains("--until import"), "{words}");
    assert!(!requests.exists());
    said(&["run", &manifest, "--until", "import", "-q"]);

    // No server and no token are needed: the manifest names a variable that is not set.
    let words = said(&export);
    assert!(words.contains("10 rows: 10 questions written") && words.contains("(10 long, 0 short)"), "{words}");
    assert!(words.contains("vllm run-batch -i ") && words.contains("--model captioner"), "{words}");
    let ids = run_batch(&requests, &results, false, 5);
    assert!(ids.iter().any(|id| id.starts_with("part-00002/")), "{ids:?}");
    let words = said(&import);
    assert!(words.contains("10 lines: 8 answers taken, for 3 partitions; 0 were known already."), "{words}");
    assert!(words.contains("2 status_400: no answer, to be asked again"), "{words}");
    let words = said(&import);
    assert!(words.contains("0 answers taken, for 0 partitions; 8 were known already."), "{words}");

    // The rows that have a long caption ask for a short one now; the others ask again.
    let words = said(&export);
    assert!(words.contains("(2 long, 8 short), 0 answered already"), "{words}");
    let words = said(&[&export[..], &["--step", "long"]].concat());
    assert!(words.contains("(2 long, 0 short)") && words.contains("8 have a question for the other step"), "{words}");
    let words = said(&[&export[..], &["--limit", "3"]].concat());
    assert!(words.contains("3 questions written") && words.contains("There may be more"), "{words}");
    said(&export);
    run_batch(&requests, &results, true, usize::MAX);
    assert!(said(&import).contains("10 lines: 10 answers taken"));
    said(&export);
    run_batch(&requests, &results, true, usize::MAX);
    assert!(said(&import).contains("2 lines: 2 answers taken"));
    let words = said(&export);
    assert!(words.contains("10 rows: nothing to ask, 10 answered already"), "{words}");

    // Now nobody has to be asked, and the captions are those that a server would have given.
    let key = ["--set", "stage.recaption.long.server.api_key_env=\"PATH\""];
    said(&[&["run", &manifest, "-q"], &key[..]].concat());
    assert_eq!(server.served().requests, 0);
    let by_files = shards(&folder.path().join("work"), &manifest);
    assert_eq!(by_files.lines().count(), 11, "{by_files}");
    let words = said(&export);
    assert!(words.contains("10 rows: nothing to ask, 10 answered already"), "{words}");
    std::fs::remove_dir_all(folder.path().join("work/stages/recaption")).unwrap();
    said(&[&["run", &manifest, "-q"], &key[..]].concat());
    assert_eq!(server.served().captions, 20);
    assert_eq!(shards(&folder.path().join("work"), &manifest), by_files);
}

#[test]
fn files_that_do_not_fit_are_said_in_words() {
    let folder = folder();
    pictures(folder.path(), 1);
    let server = CaptionServer::start(Options::default()).unwrap();
    let manifest = manifest(folder.path(), &server, ["llava", "llama"]);
    let out = folder.path().join("requests.jsonl").to_string_lossy().into_owned();
    let export = ["captions", "export", &manifest, "--out", &out];
    let (_, error) = failed(2, &export);
    assert!(
        error.contains("asks llava for long captions and llama for short ones") && error.contains("--step"),
        "{error}"
    );
    said(&["run", &manifest, "--until", "import", "-q"]);
    let words = said(&[&export[..], &["--step", "short"]].concat());
    assert!(words.contains("nothing to ask") && words.contains("1 have a question for the other step"), "{words}");
    let words = said(&[&export[..], &["--step", "long"]].concat());
    assert!(words.contains("--model llava"), "{words}");
    let (_, error) = failed(2, &[&export[..], &["--stage", "import"]].concat());
    assert!(error.contains("has no recaption stage import"), "{error}");
    let (_, error) = failed(2, &["captions", "import", &manifest, "nowhere.jsonl"]);
    assert!(error.contains("nowhere.jsonl"), "{error}");

    let results = folder.path().join("results.jsonl");
    let key = "0".repeat(64);
    std::fs::write(&results, format!("{{\n{{\"custom_id\":\"part-00007/{key}\",\"response\":{{\"choices\":[{{\"message\":{{\"content\":\"A.\"}}}}]}}}}\n{{\"custom_id\":\"mine\"}}\n")).unwrap();
    let (words, notes) = failed(1, &["captions", "import", &manifest, &results.to_string_lossy()]);
    assert!(
        words.contains("3 lines: 0 answers taken") && words.contains("2 unknown_id") && words.contains("1 malformed"),
        "{words}"
    );
    assert!(notes.contains("line 2 of ") && notes.contains(&format!("part-00007/{key}")), "{notes}");
}
