//! `fetch` of files at plain URLs, whose server says little of them: none is taken for another, and one comes again only if it is damaged.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::support::{ferrotype, folder, text};

/// A server on loopback. What it has at a path (with its query) is a line that says the path.
struct Server {
    address: SocketAddr,
    /// The paths that were asked for, not for their headers alone.
    asked: Arc<Mutex<Vec<String>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// With `says`, it tells lengths and ETags. The first request for `fails` is answered with an error.
    fn start(says: bool, fails: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, is_over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (asked, is_over) = (Arc::clone(&asked), Arc::clone(&is_over));
            move || {
                for stream in listener.incoming() {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    // A client that hangs up is no fault of the server.
                    let _ = stream.and_then(|stream| answer(&stream, says, fails, &asked));
                }
            }
        });
        Self { address, asked, is_over, thread: Some(thread) }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// From here on, connections are refused.
    fn stop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn content(path: &str) -> String {
    format!("{path}\n")
}

/// Answers one request, and hangs up.
fn answer(mut stream: &TcpStream, says: bool, fails: &str, asked: &Mutex<Vec<String>>) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let is_whole = method != "HEAD";
    let mut is_to_fail = false;
    if is_whole {
        let mut asked = asked.lock().unwrap();
        is_to_fail = path == fails && !asked.iter().any(|before| before == path);
        asked.push(path.to_owned());
    }
    let content = content(path);
    let (head, body) = match (is_to_fail, says) {
        (true, _) => ("500 Internal Server Error\r\nContent-Length: 0".to_owned(), String::new()),
        (false, true) => (format!("200 OK\r\nETag: \"{path}\"\r\nContent-Length: {}", content.len()), content),
        (false, false) => {
            let chunks = format!("{:x}\r\n{content}\r\n0\r\n\r\n", content.len());
            ("200 OK\r\nTransfer-Encoding: chunked".to_owned(), chunks)
        }
    };
    let body = if is_whole { body } else { String::new() };
    write!(stream, "HTTP/1.1 {head}\r\nConnection: close\r\n\r\n{body}")
}

/// A manifest that fetches some of a server's paths, in their order.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(server: &Server, paths: &[&str], keys: &str) -> Self {
        let place = Self { folder: folder() };
        let urls: Vec<String> = paths.iter().map(|path| format!("\"http://{}{path}\"", server.address)).collect();
        let manifest = format!(
            "[pipeline]\nname = \"test\"\nworkdir = \"{}\"\n[stage.files]\nuses = \"fetch\"\nurl = [{}]\n{keys}\n",
            place.folder.path().join("work").display(),
            urls.join(", ")
        );
        std::fs::write(place.folder.path().join("test.toml"), manifest).unwrap();
        place
    }

    fn stage(&self) -> PathBuf {
        self.folder.path().join("work/stages/files")
    }

    fn command(&self, arguments: &[&str]) -> Output {
        ferrotype().args(arguments).current_dir(self.folder.path()).output().unwrap()
    }

    /// Runs it, and says whether that succeeded, and what was said.
    fn run(&self, more: &[&str]) -> (bool, String) {
        let output = self.command(&[&["run", "test.toml"], more].concat());
        (output.status.success(), text(&output.stderr))
    }

    /// What was fetched, by partition.
    fn contents(&self) -> BTreeMap<String, String> {
        let mut contents = BTreeMap::new();
        for entry in std::fs::read_dir(self.stage()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("part-") && name.ends_with(".json") {
                let record: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
                let file = self.stage().join(record["data"][0]["file"].as_str().unwrap());
                contents
                    .insert(record["partition"].as_str().unwrap().to_owned(), std::fs::read_to_string(file).unwrap());
            }
        }
        contents
    }
}

/// The contents of paths that are partitions in this order.
fn expected(paths: &[&str]) -> BTreeMap<String, String> {
    paths.iter().enumerate().map(|(n, path)| (format!("part-{n:05}"), content(path))).collect()
}

#[test]
fn files_of_one_name_of_which_nothing_is_told_are_not_taken_for_each_other() {
    for paths in [["/a/x.csv", "/b/x.csv"], ["/get?id=1", "/get?id=2"]] {
        let server = Server::start(false, paths[1]);
        let place = Place::new(&server, &paths, "tries = 1\nin_flight = 1");
        let (succeeded, said) = place.run(&[]);
        assert!(!succeeded && said.contains("500"), "{said}");
        assert_eq!(place.contents(), expected(&paths[..1]));
        let (succeeded, said) = place.run(&[]);
        assert!(succeeded, "{said}");
        assert_eq!(place.contents(), expected(&paths));
        assert_eq!(server.asked(), [paths[0], paths[1], paths[1]]);
    }
}

#[test]
fn places_that_are_shown_alike_are_remembered_each_by_itself() {
    let paths = ["/get?id=1", "/get?id=2"];
    let mut server = Server::start(true, "");
    let place = Place::new(&server, &paths, "");
    let (succeeded, said) = place.run(&[]);
    assert!(succeeded, "{said}");
    assert_eq!(place.contents(), expected(&paths));
    server.stop();
    let plan = place.command(&["plan", "test.toml", "--json"]);
    assert!(plan.status.success(), "{}", text(&plan.stderr));
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!((&plan["stages"][0]["partitions"], &plan["stages"][0]["to_run"]), (&2.into(), &0.into()), "{plan}");
}

#[test]
fn a_file_without_a_digest_that_is_damaged_comes_again() {
    for (path, said_of_it) in [("/x.tar", "x.tar cannot be unpacked"), ("/x.parquet", "cannot read")] {
        let server = Server::start(true, "");
        let place = Place::new(&server, &[path], "unpack = true");
        for _ in 0..2 {
            let (succeeded, said) = place.run(&[]);
            assert!(!succeeded && said.contains(said_of_it), "{said}");
            let mut left = std::fs::read_dir(place.stage().join("partial")).unwrap();
            assert!(left.next().is_none(), "nothing is left of it");
        }
        assert_eq!(server.asked(), [path, path]);
    }
    let server = Server::start(true, "");
    let place = Place::new(&server, &["/x.tar"], "unpack = true");
    place.run(&[]);
    let (succeeded, said) = place.run(&["--set", "stage.files.unpack=false"]);
    assert!(succeeded, "{said}");
    assert_eq!(place.contents(), expected(&["/x.tar"]));
}
