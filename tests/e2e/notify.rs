//! `notify`: who is told how a run ended, and that nobody else learns the address.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::thread::JoinHandle;

use serde_json::Value;

use crate::support::{ferrotype, folder, start_until, text};

/// Answers one request after the other with the given statuses; gives the request lines and bodies that came.
fn receiver(statuses: &'static [&'static str]) -> (u16, JoinHandle<Vec<(String, Value)>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = std::thread::spawn(move || {
        let answer = |status: &&str| {
            let (stream, _) = listener.accept().unwrap();
            let received = read(&stream);
            write!(&stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
            received
        };
        statuses.iter().map(answer).collect()
    });
    (port, served)
}

fn read(stream: &TcpStream) -> (String, Value) {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let length = lines.iter().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap()];
    reader.read_exact(&mut body).unwrap();
    (lines.swap_remove(0), serde_json::from_slice(&body).unwrap())
}

/// Runs a manifest whose two rows are refused without any network: their address is a private one.
fn run(folder: &Path, address: &str, download: &str) -> Output {
    command(folder, "127.0.0.1:9", address, download).output().unwrap()
}

fn command(folder: &Path, origin: &str, address: &str, download: &str) -> Command {
    let row = format!("http://{origin}/dog.jpg\ta dog\n");
    std::fs::write(folder.join("urls.tsv"), format!("url\tcaption\n{row}{row}")).unwrap();
    let manifest = format!(
        "[pipeline]\nname = \"pets\"\nworkdir = \"work\"\nwarn_above = 1.0\nnotify = \"{address}\"\n\n\
         [stage.download]\nuses = \"download\"\nurls = \"urls.tsv\"\n{download}\n"
    );
    std::fs::write(folder.join("pets.toml"), manifest).unwrap();
    let mut command = ferrotype();
    // A proxy that the test's machine has would not lead back here.
    for proxy in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command.args(["run", "pets.toml"]).current_dir(folder);
    command
}

#[test]
fn a_run_that_ends_is_told_with_its_counts() {
    let folder = folder();
    let (port, served) = receiver(&["200 OK", "200 OK"]);
    let address = format!("http://user:SECRET@127.0.0.1:{port}/hooks/SECRET?key=SECRET");
    for outcome in ["done", "up_to_date"] {
        let output = run(folder.path(), &address, "");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(!said.contains("SECRET") && !said.contains("note:"), "{outcome}: {said}");
    }
    let received = served.join().unwrap();
    let (line, body) = &received[0];
    assert_eq!(line, "POST /hooks/SECRET?key=SECRET HTTP/1.1");
    assert_eq!(
        (&body["pipeline"], &body["workdir"], &body["outcome"]),
        (&"pets".into(), &"work".into(), &"done".into())
    );
    assert!(body["seconds"].is_number() && body["host"].is_string() && body["process"].is_number());
    assert_eq!(body.get("error"), None);
    let stage = serde_json::json!({ "stage": "download", "partitions": 1, "committed": 1, "rows_in": 2, "rows_out": 0,
        "dropped": { "forbidden_address": 2 } });
    assert_eq!(body["stages"], serde_json::json!([stage]));
    assert_eq!(received[1].1["outcome"], "up_to_date");
}

#[test]
fn a_run_that_fails_is_told_with_its_error_after_a_second_try() {
    let folder = folder();
    let (port, served) = receiver(&["503 Service Unavailable", "204 No Content"]);
    let output = run(folder.path(), &format!("http://127.0.0.1:{port}/SECRET"), "on_bad_row = \"fail\"");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("forbidden_address") && !said.contains("SECRET") && !said.contains("note:"), "{said}");
    let received = served.join().unwrap();
    assert_eq!(received.len(), 2);
    let body = &received[1].1;
    assert_eq!(body["outcome"], "failed");
    assert!(body["error"].as_str().unwrap().contains("forbidden_address"), "{body}");
    assert_eq!(body["stages"][0]["committed"], 0);
}

#[test]
fn an_interrupted_run_is_told_as_one() {
    let folder = folder();
    let (port, served) = receiver(&["200 OK"]);
    // Connections are taken by the system, and nobody answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = silent.local_addr().unwrap().to_string();
    let patient = "timeout = 60\nallow_networks = [\"127.0.0.0/8\"]";
    let mut command = command(folder.path(), &origin, &format!("http://127.0.0.1:{port}/"), patient);
    command.arg("--json");
    let mut child = start_until(command, |event| event["event"] == "partition_started");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let received = served.join().unwrap();
    assert_eq!(received[0].1["outcome"], "interrupted");
    assert_eq!(received[0].1["stages"][0]["committed"], 0);
}

#[test]
fn a_deaf_address_is_a_note_and_changes_no_exit_code() {
    let folder = folder();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let output = run(folder.path(), &format!("http://user:SECRET@127.0.0.1:{closed}/SECRET?key=SECRET"), "");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("note: http://127.0.0.1 was not told how the run ended: Connection refused"), "{said}");
    assert!(!said.contains("SECRET"), "{said}");

    let (port, served) = receiver(&["404 Not Found"]);
    let output = run(folder.path(), &format!("http://127.0.0.1:{port}/SECRET"), "");
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("it answered 404 Not Found"), "{}", text(&output.stderr));
    assert_eq!(served.join().unwrap().len(), 1, "what will not pass is not tried again");
}
