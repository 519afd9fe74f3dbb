//! `sample` and `serve`, with a model that was trained for a few steps.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{ferrotype, run, text, trained, wait_for};

/// Samples into the folder `out`.
fn sample(checkpoint: &str, out: &Path, arguments: &[&str]) -> std::process::Output {
    let out = out.to_string_lossy().into_owned();
    let mut all = vec!["sample", "--checkpoint", checkpoint, "--out", &out];
    all.extend(arguments);
    run(&all)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn bytes(path: PathBuf) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn a_picture_says_what_it_was_made_with_and_is_made_again_by_it() {
    let (folder, checkpoint) = trained();
    let at = |name: &str| folder.path().join(name);
    let how = ["--steps", "3", "--sampler", "dpm++-2m", "--guidance", "3", "--guidance-interval", "0.1,0.9"];
    let more =
        ["--guidance-rescale", "0.5", "--shift", "1.5", "--negative", "picture 2", "--size", "32x16", "--seed", "9"];
    let first = [&["--prompt", "picture 1", "--prompt", "größe 漢字"], &how[..], &more].concat();
    let made = sample(&checkpoint, &at("first"), &first);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert_eq!(names(&at("first")), ["0000.png", "0001.png"]);
    let second = at("first").join("0001.png").to_string_lossy().into_owned();
    // It lies beside the others, which stay as they are.
    let before = bytes(at("first").join("0001.png"));
    let again = sample(&checkpoint, &at("first"), &["--like", &second]);
    assert!(again.status.success() && !text(&again.stderr).contains("warning"), "{}", text(&again.stderr));
    assert_eq!(names(&at("first")), ["0000.png", "0001.png", "0002.png"]);
    assert_eq!(bytes(at("first").join("0001.png")), before);
    // Alone it may be rounded otherwise.
    let picture = |path: PathBuf| image::open(path).unwrap().into_rgb8();
    let apart = |one: PathBuf, other: PathBuf| {
        let (one, other) = (picture(one), picture(other));
        assert_eq!(one.dimensions(), other.dimensions());
        one.iter().zip(other.iter()).map(|(a, b)| a.abs_diff(*b)).max()
    };
    assert!(apart(at("first").join("0001.png"), at("first").join("0002.png")) <= Some(1));
    let other = sample(&checkpoint, &at("other"), &["--like", &second, "--negative", "", "--sampler", "euler"]);
    assert!(other.status.success(), "{}", text(&other.stderr));
    assert!(apart(at("first").join("0001.png"), at("other").join("0000.png")) > Some(1), "what is given is changed");
    // The same by models that take turns, to the bit.
    let spared = sample(&checkpoint, &at("spared"), &[&first[..], &["--low-memory"]].concat());
    assert!(spared.status.success(), "{}", text(&spared.stderr));
    assert_eq!(bytes(at("first").join("0001.png")), bytes(at("spared").join("0001.png")));

    // Frames need the autoencoder while the model samples.
    let refused = sample(&checkpoint, &at("refused"), &["--prompt", "x", "--low-memory", "--gif"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    // Other weights are named; a picture without a recipe is refused.
    let raw = sample(&checkpoint, &at("raw"), &["--like", &second, "--raw"]);
    assert!(text(&raw.stderr).contains("that picture was made by other weights"), "{}", text(&raw.stderr));
    let plain = folder.path().join("pictures/00.png").to_string_lossy().into_owned();
    let refused = sample(&checkpoint, &at("refused"), &["--like", &plain]);
    assert!(text(&refused.stderr).contains("it does not say what it was made with"), "{}", text(&refused.stderr));
    for (arguments, expected) in [
        (["--prompt", "x", "--guidance-interval", "0.9,0.1"], "guidance interval = 0.9 to 0.1 is not possible"),
        (["--prompt", "x", "--guidance-rescale", "2"], "guidance rescale = 2 is not possible"),
        (["--prompt", "x", "--sampler", "dpm"], "expected one of euler, heun, midpoint, dpm++-2m"),
    ] {
        let refused = sample(&checkpoint, &at("refused"), &arguments);
        assert!(
            refused.status.code() == Some(2) && text(&refused.stderr).contains(expected),
            "{}",
            text(&refused.stderr)
        );
    }
}

#[test]
fn pictures_come_in_other_formats_and_the_way_to_them_as_animations() {
    let (folder, checkpoint) = trained();
    let out = folder.path().join("out");
    for (format, second) in [("jpg", "0001.jpg"), ("webp", "0003.webp")] {
        let how =
            ["--prompt", "a", "--prompt", "b", "--steps", "50", "--sampler", "euler", "--gif", "--apng", "--grid"];
        let made = sample(&checkpoint, &out, &[&how[..], &["--format", format]].concat());
        assert!(made.status.success(), "{}", text(&made.stderr));
        assert_eq!(image::open(out.join(second)).unwrap().into_rgb8().dimensions(), (32, 32));
    }
    let made = ["0000-steps.gif", "0000-steps.png", "0000.jpg", "0001-steps.gif", "0001-steps.png", "0001.jpg"];
    assert_eq!(names(&out)[..6], made);
    let gif = std::fs::File::open(out.join("0001-steps.gif")).unwrap();
    let decoder = image::codecs::gif::GifDecoder::new(BufReader::new(gif)).unwrap();
    // Every second of the fifty steps.
    assert_eq!(image::AnimationDecoder::into_frames(decoder).count(), 25);
}

#[test]
fn prompts_and_settings_are_taken_line_by_line() {
    let (folder, checkpoint) = trained();
    let out = folder.path().join("out");
    let mut command = ferrotype();
    command.args(["sample", "--interactive", "--steps", "2", "--checkpoint", &checkpoint, "--out"]).arg(&out);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = "a fox\n/size 16x32\n/seed 5\na pizza\n/again\n/size 7\na fox\n/stepz\n/steps many\n/negative blue sky\n/quit\nunheard\n";
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    assert_eq!(names(&out), ["0000.png", "0001.png", "0002.png"]);
    assert_eq!(image::open(out.join("0001.png")).unwrap().into_rgb8().dimensions(), (16, 32));
    // Another session adds to them.
    let mut command = ferrotype();
    command.args(["sample", "--interactive", "--steps", "2", "--checkpoint", &checkpoint, "--out"]).arg(&out);
    let mut again = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    again.stdin.take().unwrap().write_all(b"a fox\n").unwrap();
    assert!(again.wait().unwrap().success());
    assert_eq!(names(&out), ["0000.png", "0001.png", "0002.png", "0003.png"]);
    let said = text(&ended.stdout);
    for words in [
        "0000.png  seed 0",
        "0001.png  seed 5",
        "0002.png  seed 6",
        "width = 7 is not possible",
        "/stepz is not known",
        "\"many\" is no whole number",
        "not \"blue sky\"",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn what_has_no_effect_of_a_prompt_is_said() {
    let (folder, checkpoint) = trained();
    let out = folder.path().join("out");
    let long = "word, ".repeat(16) + "on a blue background";
    let told = |arguments: &[&str]| {
        let made = sample(&checkpoint, &out, &[&["--steps", "1"][..], arguments].concat());
        assert!(made.status.success(), "{}", text(&made.stderr));
        text(&made.stderr).lines().filter(|line| line.starts_with("warning")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(told(&["--prompt", "a fox", "--negative", "fog"]), Vec::<String>::new());
    let said = told(&["--prompt", &long, "--prompt", "a fox", "--negative", "fog", "--guidance", "1"]);
    assert!(said.len() == 2 && said[0].contains("the negative prompt has no effect"), "{said:?}");
    assert!(said[1].contains("16 words") && said[1].ends_with(": on a blue background"), "{said:?}");
}

/// One request on a connection of its own; the status and the body.
fn ask(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let status = text(&answer[..head]).split(' ').nth(1).unwrap().parse().unwrap();
    (status, String::from_utf8_lossy(&answer[head + 4..]).into_owned())
}

#[test]
fn a_server_answers_with_the_pictures_that_sample_makes() {
    let (folder, checkpoint) = trained();
    let mut command = ferrotype();
    command.args(["serve", "--port", "0", "--steps", "2", "--checkpoint", &checkpoint]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("http://").unwrap().to_owned();

    let body =
        json!({ "prompt": "picture 3", "n": 2, "size": "32x16", "seed": 4, "response_format": "url" }).to_string();
    let (status, answer) = ask(&address, "POST", "/v1/images/generations", &body);
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let url = answer["data"][1]["url"].as_str().unwrap();
    let path = url.strip_prefix(&format!("http://{address}")).unwrap();
    let mut stream = TcpStream::connect(&address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let served = folder.path().join("served.png");
    std::fs::write(&served, &answer[head + 4..]).unwrap();

    let out = folder.path().join("out");
    let like = sample(&checkpoint, &out, &["--like", &served.to_string_lossy()]);
    assert!(like.status.success() && !text(&like.stderr).contains("warning"), "{}", text(&like.stderr));
    let picture = |path: &Path| image::open(path).unwrap().into_rgb8();
    let (one, other) = (picture(&served), picture(&out.join("0000.png")));
    assert_eq!(one.dimensions(), (32, 16));
    assert!(one.iter().zip(other.iter()).all(|(a, b)| a.abs_diff(*b) <= 1));

    let (status, answer) = ask(&address, "POST", "/v1/images/generations", "{\"prompt\": \"x\", \"size\": \"33x16\"}");
    assert!(status == 400 && answer.contains("multiples of 4 pixels"), "{answer}");
    let (status, page) = ask(&address, "GET", "/", "");
    assert!(status == 200 && page.contains("<html"), "{page}");
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    assert!(text(&ended.stderr).contains("2 pictures in"), "{}", text(&ended.stderr));

    // Wrong paths and bad options are told before anything is loaded, and settings before the port, which is taken, is asked for.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (option, value, words) in [
        ("--guidance-interval", "0.9,0.2", "guidance interval = 0.9 to 0.2 is not possible"),
        ("--guidance-rescale", "7", "guidance rescale = 7 is not possible"),
        ("--size", "30", "a positive multiple of 4 pixels"),
        ("--steps", "600", "the default steps are 600, not from 1 to 500"),
        ("--guidance", "200", "the default guidance is 200, not from 0 to 100"),
        ("--shift", "2000", "the default shift is 2000"),
        ("--most-pixels", "100", "the default size 32x32 has more than 100 pixels"),
    ] {
        let refused = run(&["serve", "--checkpoint", &checkpoint, "--port", &port, option, value]);
        let said = text(&refused.stderr);
        assert!(refused.status.code() == Some(2) && said.contains(words), "{option} {value}: {said}");
    }
    let refused = run(&["serve", "--checkpoint", "nowhere"]);
    assert!(text(&refused.stderr).contains("nowhere"), "{}", text(&refused.stderr));
    let refused = run(&["serve", "--checkpoint", &checkpoint, "--base-url", "pictures.example"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
}

#[test]
fn a_second_signal_ends_a_server_at_once() {
    let (_folder, checkpoint) = trained();
    let mut command = ferrotype();
    command.args(["serve", "--port", "0", "--checkpoint", &checkpoint, "--most-pixels", "65536", "--steps", "500"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("http://").unwrap().to_owned();
    // Someone waits for a picture that takes longer than the server would wait for it.
    let mut waiting = TcpStream::connect(&address).unwrap();
    let body = "{\"prompt\": \"x\", \"size\": \"256x256\"}";
    let (path, length) = ("/v1/images/generations", body.len());
    write!(
        waiting,
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    wait_for("sampling", Duration::from_secs(30), || ask(&address, "GET", "/health", "").1.contains("\"sampling\":1"));
    let signal = || assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    signal();
    // Closer to the first one it would be taken for the same.
    std::thread::sleep(Duration::from_millis(1500));
    signal();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", text(&ended.stderr));
    assert!(text(&ended.stderr).contains("stopping"), "{}", text(&ended.stderr));
}
