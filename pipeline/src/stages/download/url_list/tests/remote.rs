//! Lists that lie elsewhere: a server of this machine, and a store in memory.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};

use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use sha2::Digest as _;

use super::*;

/// A request: its first line without the version, and its headers, in lower case.
#[derive(Clone, Debug)]
struct Request {
    line: String,
    headers: Vec<String>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|header| header.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// A server that answers one request a connection with whatever bytes it is told to, and then hangs up.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    is_closed: Arc<AtomicBool>,
}

impl Server {
    fn start(answer: impl Fn(&Request, usize) -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, is_closed) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let server = Self { address, requests: Arc::clone(&requests), is_closed: Arc::clone(&is_closed) };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if is_closed.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(mut stream) = stream else { continue };
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let Some(line) = lines.next() else { continue };
                let line = line.rsplit_once(' ').unwrap().0.to_owned();
                let headers = lines.take_while(|line| !line.is_empty()).map(|line| {
                    let (name, value) = line.split_once(':').unwrap();
                    format!("{}: {}", name.to_lowercase(), value.trim())
                });
                let request = Request { line, headers: headers.collect() };
                let number = requests.lock().unwrap().len();
                requests.lock().unwrap().push(request.clone());
                let _ = stream.write_all(&answer(&request, number));
            }
        });
        server
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    fn lines(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.line).collect()
    }

    /// From here on, connections are refused.
    fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(self.address);
        while std::net::TcpStream::connect(self.address).is_ok() {
            std::thread::yield_now();
        }
    }
}

fn answer(status: &str, headers: &[(&str, String)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status}\r\nConnection: close\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend(format!("{name}: {value}\r\n").into_bytes());
    }
    bytes.extend(b"\r\n");
    bytes.extend(body);
    bytes
}

/// Serves a file with ranges as servers do. `breaks` says after how many bytes a body breaks off.
fn serve(request: &Request, content: &[u8], tag: &str, breaks: Option<usize>) -> Vec<u8> {
    let tag = format!("\"{tag}\"");
    let length = |length: usize| ("Content-Length", length.to_string());
    if request.line.starts_with("HEAD") {
        return answer("200 OK", &[length(content.len()), ("ETag", tag)], b"");
    }
    let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
    let start: Option<usize> = range.filter(|_| request.header("if-range").is_none_or(|mark| mark == tag));
    let body = &content[start.unwrap_or(0)..];
    let sent = &body[..breaks.unwrap_or(body.len()).min(body.len())];
    match start {
        Some(start) => {
            let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
            answer("206 Partial Content", &[length(body.len()), ("ETag", tag), ("Content-Range", range)], sent)
        }
        None => answer("200 OK", &[length(body.len()), ("ETag", tag)], sent),
    }
}

fn csv(rows: usize) -> Vec<u8> {
    let rows: Vec<String> = (0..rows).map(|row| format!("http://x/{row},caption {row}\n")).collect();
    format!("url,caption\n{}", rows.concat()).into_bytes()
}

fn csv_urls(rows: usize) -> Vec<String> {
    (0..rows).map(|row| format!("http://x/{row}")).collect()
}

#[test]
fn a_transfer_that_breaks_off_goes_on_where_it_was() {
    let (_folder, _lists, stage) = folders();
    let content = csv(5000);
    let served = content.clone();
    let server = Server::start(move |request, number| match number {
        // The headers; then three bodies that break off, one of them before its first byte; then the rest.
        1 => serve(request, &served, "a", Some(40_000)),
        2 => serve(request, &served, "a", Some(0)),
        3 => serve(request, &served, "a", Some(10_000)),
        _ => serve(request, &served, "a", None),
    });
    let list = list(server.url("lists/all.csv?secret=1"), columns(), 1000);
    list.check().unwrap();
    assert!(server.requests().is_empty(), "a check needs no network");
    let (rows, partitions) = all(&list, &stage);
    assert_eq!(urls(&rows), csv_urls(5000));
    assert_eq!(partitions[1].name, "all.csv rows 1000..2000");
    assert_eq!(rows[0][0], "src/000000000");
    let ranges: Vec<Option<String>> = server.requests().iter().map(|r| r.header("range").map(str::to_owned)).collect();
    let expected = [None, None, Some("bytes=40000-"), Some("bytes=40000-"), Some("bytes=50000-")];
    assert_eq!(ranges, expected.map(|range| range.map(str::to_owned)));
    assert!(names_in(&stage.join("list/files")).is_empty(), "what was copied is gone");
}

#[test]
fn another_process_goes_on_too_unless_the_content_changed() {
    for tag in ["a", "b"] {
        let (_folder, _lists, stage) = folders();
        let good = Arc::new(AtomicBool::new(false));
        let is_good = Arc::clone(&good);
        let server = Server::start(move |request, _| match (is_good.load(Ordering::SeqCst), request.header("range")) {
            // Whoever asks for headers hears the same: the content changes behind a listing's back.
            _ if request.line.starts_with("HEAD") => serve(request, &csv(100), "a", None),
            (false, None) => serve(request, &csv(100), "a", Some(1000)),
            (false, Some(_)) => answer("503 Busy", &[("Retry-After", "0".to_owned())], b""),
            (true, _) => serve(request, &csv(100), tag, None),
        });
        let url = server.url("all.csv");
        let error = list(&url, columns(), 50).partitions(&stage).unwrap_err();
        assert!(error.is_about_network() && error.to_string().contains("503"), "{error}");
        assert_eq!(names_in(&stage.join("list")), ["files", "lock"], "half a list is none");
        good.store(true, Ordering::SeqCst);
        let before = server.requests().len();
        assert_eq!(urls(&all(&list(&url, columns(), 50), &stage).0), csv_urls(100));
        let after = &server.requests()[before..];
        assert_eq!(after[1].header("range"), Some("bytes=1000-"));
        assert_eq!(after[1].header("if-range"), Some("\"a\""));
        assert_eq!(after.len(), 2, "{after:?}");
    }
}

#[test]
fn a_list_that_was_brought_needs_no_network_and_follows_its_source() {
    let (_folder, lists, stage) = folders();
    parquet(&lists.join("l.parquet"), &[("url", vec![Some("a"), Some("b")]), ("caption", vec![None; 2])]);
    let content = fs::read(lists.join("l.parquet")).unwrap();
    let version = Arc::new(Mutex::new((content, "1")));
    let served = Arc::clone(&version);
    let server = Server::start(move |request, _| {
        let (content, tag) = &*served.lock().unwrap();
        serve(request, content, tag, None)
    });
    let url = server.url("l.parquet");
    let plan = || all(&list(&url, columns(), 1), &stage);
    let (rows, partitions) = plan();
    assert_eq!(urls(&rows), ["a", "b"]);
    assert_eq!(digests(&plan().1), digests(&partitions));
    assert_eq!(server.lines(), ["HEAD /l.parquet", "GET /l.parquet", "HEAD /l.parquet"], "brought once");
    // Another cut of the same list brings nothing either.
    assert_eq!(all(&list(&url, columns(), 2), &stage).1.len(), 1);
    assert_eq!(server.lines().len(), 4);
    parquet(&lists.join("l.parquet"), &[("url", vec![Some("c")]), ("caption", vec![None])]);
    *version.lock().unwrap() = (fs::read(lists.join("l.parquet")).unwrap(), "2");
    assert_eq!(urls(&plan().0), ["c"]);
    assert_eq!(names_in(&stage.join("list/files")).len(), 1, "the old version is gone");
    server.close();
    assert_eq!(urls(&plan().0), ["c"]);
    let error = list(&url, columns(), 5).partitions(&stage).unwrap_err();
    assert!(error.is_about_network() && error.to_string().contains("l.parquet cannot be reached"), "{error}");
}

#[test]
fn a_refusal_is_no_failure_of_the_network_and_secrets_stay_secret() {
    let (_folder, _lists, stage) = folders();
    let server = Server::start(|_, _| answer("404 Not Found", &[], b""));
    let url = server.url("l.csv?signature=secret").replace("http://", "http://me:secret@");
    let error = list(&url, columns(), 5).partitions(&stage).unwrap_err();
    assert!(!error.is_about_network());
    let text = error.to_string();
    assert!(text.contains("404") && text.contains("/l.csv") && !text.contains("secret"), "{text}");
    server.close();
    let text = format!("{:?}", list(&url, columns(), 5).partitions(&stage).unwrap_err());
    assert!(!text.contains("secret"), "{text}");
}

const TOKEN: &str = "hf_secret";

/// A dataset repository with a folder of lists, on two pages, whose large file lies on another host.
fn hub(elsewhere: SocketAddr, large: &[u8], sha256: String) -> Server {
    let size = large.len();
    Server::start(move |request, _| {
        let host = request.header("host").unwrap();
        let json = |link: Option<String>, body: String| {
            let mut headers = vec![("Content-Length", body.len().to_string())];
            headers.extend(link.map(|link| ("Link", link)));
            answer("200 OK", &headers, body.as_bytes())
        };
        let tree = "/api/datasets/me/lists/tree/refs%2Fpr%2F1";
        let line = request.line.as_str();
        if request.header("authorization") != Some(&format!("Bearer {TOKEN}")) {
            return answer("401 Unauthorized", &[], b"");
        }
        if line == format!("GET {tree}") {
            json(None, r#"[{"type":"file","path":"README.md","oid":"0","size":1},{"type":"directory","path":"my data","oid":"1","size":0}]"#.into())
        } else if line == format!("GET {tree}/my%20data?recursive=true") {
            let link = format!("<http://{host}{tree}/my%20data?recursive=true&cursor=2>; rel=\"next\"");
            let large = format!(
                r#"{{"type":"file","path":"my data/b/large.csv","oid":"2","size":{size},"lfs":{{"oid":"{sha256}","size":{size},"pointerSize":9}}}}"#
            );
            json(Some(link), format!(r#"[{large},{{"type":"directory","path":"my data/b","oid":"5","size":0}}]"#))
        } else if line == format!("GET {tree}/my%20data?recursive=true&cursor=2") {
            json(None, r#"[{"type":"file","path":"my data/a.csv","oid":"e901815603c2613fb33a17994d00e370c00b7dc9","size":18},{"type":"file","path":"my data/x.md","oid":"4","size":1}]"#.into())
        } else if line == "GET /datasets/me/lists/resolve/refs%2Fpr%2F1/my%20data/a.csv" {
            serve(request, b"url,caption\nu1,c1\n", "3", None)
        } else if line == "GET /datasets/me/lists/resolve/refs%2Fpr%2F1/my%20data/b/large.csv" {
            answer(
                "302 Found",
                &[("Location", format!("http://{elsewhere}/blob?signature=x")), ("Content-Length", "0".into())],
                b"",
            )
        } else {
            answer("404 Not Found", &[("Content-Length", "0".into())], b"")
        }
    })
}

fn on_hub(server: &Server, location: &str, token: &str) -> UrlList {
    let mut list = list(location, columns(), 100);
    list.access.endpoint = server.url("");
    list.access.token = Some(token.to_owned());
    list
}

fn hexadecimal(content: &[u8]) -> String {
    use std::fmt::Write as _;
    sha2::Sha256::digest(content).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[test]
fn a_folder_of_the_hub_is_listed_page_by_page_and_the_token_goes_nowhere_else() {
    let (_folder, _lists, stage) = folders();
    let large = csv(300);
    let served = large.clone();
    let elsewhere = Server::start(move |request, number| serve(request, &served, "blob", (number == 0).then_some(500)));
    let server = hub(elsewhere.address, &large, hexadecimal(&large));
    let location = "hf://datasets/me/lists@refs/pr/1/my data";
    let (rows, partitions) = all(&on_hub(&server, location, TOKEN), &stage);
    assert_eq!(rows.len(), 301);
    assert_eq!((rows[0][0].as_str(), rows[1][0].as_str()), ("src/a/000000000", "src/b/large/000000000"));
    assert_eq!(partitions.len(), 4);
    let blobs = elsewhere.requests();
    assert_eq!(blobs.len(), 2, "it broke off once: {blobs:?}");
    assert_eq!(blobs[1].header("range"), Some("bytes=500-"));
    assert!(blobs.iter().all(|request| request.header("authorization").is_none()), "{blobs:?}");
    // A file by its own name; and with a wrong token, an error that does not tell it.
    let error = on_hub(&server, &format!("{location}/b"), "hf_wrong").partitions(&stage).unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("HF_TOKEN") && !error.contains("hf_wrong"), "{error}");
    let error = on_hub(&server, "hf://datasets/me/lists@refs/pr/1/none.csv", TOKEN).partitions(&stage).unwrap_err();
    assert!(error.to_string().contains("has no `none.csv`"), "{error}");
    // The network is away: what was brought is used.
    server.close();
    assert_eq!(all(&on_hub(&server, location, TOKEN), &stage).0, rows);
}

#[test]
fn content_that_is_not_what_the_hub_lists_is_refused() {
    let (_folder, _lists, stage) = folders();
    let large = csv(300);
    let mut other = large.clone();
    other[20] ^= 1;
    let elsewhere = Server::start(move |request, _| serve(request, &other, "blob", None));
    let server = hub(elsewhere.address, &large, hexadecimal(&large));
    let error = on_hub(&server, "hf://datasets/me/lists@refs/pr/1/my data", TOKEN).partitions(&stage).unwrap_err();
    assert!(error.to_string().contains("large.csv") && error.to_string().contains("another digest"), "{error}");
}

#[test]
fn objects_of_a_store_are_listed_and_brought() {
    let (_folder, _lists, stage) = folders();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let put = |path: &str, content: Vec<u8>| {
        runtime.block_on(store.put(&object_store::path::Path::from(path), content.into())).unwrap();
    };
    put("lists/b.csv.gz", gzip(&csv(3)));
    put("lists/a/a.csv", csv(2));
    put("lists/note.md", b"x".to_vec());
    put("lists-too/c.csv", csv(1));
    let on_store = |location: &str| {
        let mut list = list(location, columns(), 2);
        let store = Arc::clone(&store);
        list.access.store = Box::new(move |bucket| {
            assert_eq!(bucket, "bucket");
            Ok(Arc::clone(&store))
        });
        list
    };
    let (rows, partitions) = all(&on_store("s3://bucket/lists/"), &stage);
    let keys: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(
        keys,
        ["src/a/a/000000000", "src/a/a/000000001", "src/b/000000000", "src/b/000000001", "src/b/000000002"]
    );
    assert_eq!(digests(&on_store("s3://bucket/lists/").partitions(&stage).unwrap()), digests(&partitions));
    assert_eq!(all(&on_store("s3://bucket/lists/b.csv.gz"), &stage).0[2][0], "src/000000002");
    put("lists/b.csv.gz", gzip(&csv(4)));
    assert_eq!(all(&on_store("s3://bucket/lists/b.csv.gz"), &stage).0.len(), 4);
    let error = on_store("s3://bucket/none").partitions(&stage).unwrap_err().to_string();
    assert!(error.contains("s3://bucket/none holds no list"), "{error}");
}
