//! A real client and a real browser, where they are installed.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use serve::{Defaults, Description, Limits, Options, Size};
use tokio::process::Command;

use crate::support::{Pace, description, gate, options, request_of, start_with};

const KEY: &str = "sk-tin-1839";

/// The Python that has what `tools/images-client.txt` names.
fn python() -> Option<PathBuf> {
    let chosen = std::env::var_os("FERROTYPE_IMAGES_CLIENT").map(PathBuf::from);
    let folder =
        chosen.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/ferrotype/images-client")))?;
    Some(folder.join("bin/python")).filter(|python| python.exists())
}

fn browser() -> Option<&'static str> {
    let starts = |name: &&str| {
        std::process::Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(starts)
}

/// Runs one of the tools and returns the JSON that it prints last.
async fn tool(python: PathBuf, name: &str, arguments: &[&str]) -> Value {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tools").join(name);
    let mut command = Command::new(python);
    command.arg(script).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    for name in [
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ] {
        command.env_remove(name);
    }
    let output = tokio::time::timeout(Duration::from_mins(3), command.output()).await.expect("it ends").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(output.stdout.trim_ascii().split(|byte| *byte == b'\n').next_back().unwrap()).unwrap()
}

fn decode(text: &Value) -> Vec<u8> {
    crate::support::decode(&json!({ "b64_json": text }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openais_own_client_is_served() {
    let Some(python) = python() else {
        eprintln!("skipped: no Python with openai; `make images-client` installs it");
        return;
    };
    let keyed = || Options { api_key: Some(KEY.to_owned()), ..options(Limits { batch: 8, ..Limits::default() }) };
    let server = start_with(keyed(), description(), Pace::Sleep(Duration::from_millis(2)), 0).await;
    // Its queue is full: one samples and does not end, and another waits.
    let (open, pace) = gate();
    let full_options = Options {
        address: "127.0.0.1:0".parse().unwrap(),
        ..options(Limits { waiting: 1, pictures: 1, ..Limits::default() })
    };
    let full = start_with(full_options, description(), pace, 0).await;
    let mut held = Vec::new();
    for (state, prompt) in [("sampling", "one"), ("waiting", "two")] {
        let request = full.client.post(format!("{}/api/pictures", full.url)).header("Content-Type", "application/json");
        held.push(request.body(json!({ "prompt": prompt }).to_string()).send().await.unwrap());
        full.until(state, |health| health[state] == 1).await;
    }
    let found = tool(python, "openai_images.py", &[&server.url, KEY, &full.url]).await;
    println!("openai {}", found["version"]);
    drop((held, open));

    assert_eq!([&found["models"], &found["retrieved"]], [&json!(["pattern/landscapes"]), &json!("ferrotype")]);
    assert!(found["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(found["base64"].as_array().unwrap().len(), 2);
    assert_eq!(found["base64"], found["url"], "the same settings make the same pictures, however they come");
    assert_eq!(found["url_types"], json!(["image/png", "image/png"]));
    for (i, settings) in found["settings"].as_array().unwrap().iter().enumerate() {
        let expected = json!({
            "prompt": "a tin lantern", "negative_prompt": "fog", "width": 48, "height": 32, "steps": 6, "guidance": 3.5,
            "sampler": "euler", "shift": 2.0, "seed": 77 + i, "guidance_interval": [0.1, 0.9], "guidance_rescale": 0.7,
            "model": "pattern/landscapes", "checkpoint": "5bd9e7c2a1f04d6883b0",
        });
        assert_eq!(*settings, expected);
    }
    for (name, class, status, param, code) in [
        ("size", "BadRequestError", json!(400), json!("size"), json!("invalid_value")),
        ("prompt", "BadRequestError", json!(400), json!("prompt"), json!("invalid_value")),
        ("count", "BadRequestError", json!(400), json!("n"), json!("invalid_value")),
        ("model", "NotFoundError", json!(404), Value::Null, json!("model_not_found")),
        ("key", "AuthenticationError", json!(401), Value::Null, json!("invalid_api_key")),
        ("generator", "InternalServerError", json!(500), Value::Null, json!("generation_failed")),
        ("full", "RateLimitError", json!(429), Value::Null, json!("queue_full")),
        ("timeout", "APITimeoutError", Value::Null, Value::Null, Value::Null),
    ] {
        let refusal = &found["refusals"][name];
        assert_eq!(refusal["class"], class, "{name}: {refusal}");
        assert_eq!([&refusal["status"], &refusal["param"], &refusal["code"]], [&status, &param, &code], "{name}");
    }
    assert!(found["refusals"]["full"]["retry_after"].is_string());
    for made in found["together"].as_array().unwrap() {
        let request = request_of(&decode(&made["png"]));
        assert_eq!([&request["prompt"], &request["seed"]], [&made["prompt"], &made["seed"]]);
    }
    server.until_idle().await;
    let log = server.log.lock().unwrap();
    assert_eq!(log.stopped, 1, "who lost patience stopped it");
    assert!(log.batches.iter().any(|batch| batch.len() > 4), "those who came together were made together");
}

/// For pictures that one likes to look at.
fn large() -> Description {
    let defaults = Defaults {
        size: Size { width: 384, height: 384 },
        steps: 20,
        guidance: 4.0,
        sampler: "heun".to_owned(),
        shift: 1.0,
    };
    Description { defaults, most_pixels: 1 << 20, ..description() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_shows_the_page_and_makes_pictures() {
    let (Some(python), Some(browser)) = (python(), browser()) else {
        eprintln!("skipped: no chromium, or no Python with websocket-client (`make images-client chromium`)");
        return;
    };
    let server = start_with(options(Limits::default()), large(), Pace::Sleep(Duration::from_millis(25)), 0).await;
    let with_key = Options { api_key: Some(KEY.to_owned()), ..options(Limits::default()) };
    let keyed = start_with(with_key, large(), Pace::Free, 0).await;
    let folder = tempfile::tempdir().unwrap();
    let shots = std::env::var_os("FERROTYPE_SCREENSHOTS").map_or_else(|| folder.path().to_owned(), PathBuf::from);
    let seen = tool(python, "drive_page.py", &[browser, &server.url, shots.to_str().unwrap(), &keyed.url, KEY]).await;

    assert_eq!(seen["complaints"], json!([]), "the console is silent");
    let complaints = seen["complaints_of_key"].as_array().unwrap();
    assert!(complaints.len() == 2 && complaints[0].as_str().unwrap().contains("401 (Unauthorized)"), "{complaints:?}");
    for (name, words) in [("complaints_of_faults", "400 (Bad Request)"), ("complaints_of_gone", "404 (Not Found)")] {
        let complaints = seen[name].as_array().unwrap();
        assert!(complaints.len() == 1 && complaints[0].as_str().unwrap().contains(words), "{complaints:?}");
    }
    assert_eq!(seen["outside"], json!([]), "nothing is asked of others");
    assert_eq!(seen["labels_missing"], json!([]));
    assert_eq!([&seen["focus"], &seen["focus_while_sampling"]], ["prompt", "prompt"]);
    assert!(seen["progress"].as_str().unwrap().starts_with("step "), "{}", seen["progress"]);
    assert_eq!(
        [&seen["first"]["width"], &seen["first"]["alt"]],
        [&json!(384), &json!("a lighthouse above the sea at dusk")]
    );
    let hostile = "<img src=x onerror=\"document.title='taken'\"> & a \"tin\" cup";
    assert_eq!([&seen["title"], &seen["planted_elements"]], [&json!("Ferrotype"), &json!(0)]);
    assert_eq!(seen["hostile_text"][3], hostile);
    assert_eq!(seen["cancel"], json!([11, 9, "Cancelled."]));
    assert_eq!(
        seen["faults"],
        json!([
            "steps: must be a whole number from 1 to 500, not 0",
            "guidance: must be a number from 0 to 100, not -1",
        ])
    );
    assert_eq!(seen["alert"], "the picture could not be made: out of silver");
    assert_eq!(seen["place"], "6 of 9");
    let copied: Value = serde_json::from_str(seen["copied"].as_str().unwrap()).unwrap();
    assert_eq!(copied["prompt"], seen["large"]);
    assert_eq!(copied["checkpoint"], "5bd9e7c2a1f04d6883b0");
    let seed = copied["seed"].as_u64().unwrap().to_string();
    assert_eq!(seen["download"], format!("ferrotype-{seed}.png"));
    let used = &seen["used"];
    assert_eq!([&used["prompt"], &used["seed"], &used["n"]], [&copied["prompt"], &json!(seed), &json!("1")]);
    assert_eq!(used["size"], format!("{}x{}", copied["width"], copied["height"]));
    assert_eq!(seen["refused_key"], json!([true, true, null]));
    for what in ["repeated", "kept", "made_again", "made_with_key"] {
        assert_eq!(seen[what], true, "{what}");
    }
    assert_eq!([&seen["phone_overflow_light"], &seen["phone_overflow_dark"]], [false, false]);
    // Cancelled once, in the middle.
    assert_eq!(server.log.lock().unwrap().stopped, 1);
}
