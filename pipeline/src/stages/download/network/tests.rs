//! Hosts that say the same to everyone, on loopback.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;

use serde_json::json;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use super::*;

/// How often each path was asked for.
type Asked = Arc<Mutex<BTreeMap<String, usize>>>;

/// A host that answers a path, and the number of requests for it before, with a status. Ends with the process.
fn host(answer: impl Fn(&str, usize) -> &'static str + Clone + Send + 'static) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    (address, serve(listener, answer))
}

fn serve(listener: TcpListener, answer: impl Fn(&str, usize) -> &'static str + Clone + Send + 'static) -> Asked {
    let asked = Asked::default();
    let counts = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (answer, counts) = (answer.clone(), Arc::clone(&counts));
            std::thread::spawn(move || {
                let Some(path) = path(&stream) else { return };
                let before = {
                    let mut counts = counts.lock().unwrap();
                    let count = counts.entry(path.clone()).or_default();
                    *count += 1;
                    *count - 1
                };
                let status = answer(&path, before);
                let _ = write!(&stream, "HTTP/1.1 {status}\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx");
            });
        }
    });
    asked
}

/// A host where nobody listens yet, bound so that nobody else has its port.
fn closed_host() -> (String, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (format!("http://{}", socket.local_addr().unwrap()), socket)
}

/// What a request is for, once all of it has come.
fn path(stream: &TcpStream) -> Option<String> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    lines.map_while(Result::ok).find(String::is_empty)?;
    first.split(' ').nth(1).map(str::to_owned)
}

fn network(robots_txt: bool, retries: u32, per_host: usize) -> Network {
    let semantics: Semantics = serde_json::from_value(json!({ "robots_txt": robots_txt })).unwrap();
    let operations: Operations = serde_json::from_value(json!({
        "urls": "list.tsv", "retries": retries, "per_host": { "in_flight": per_host, "per_second": 0.0 },
    }))
    .unwrap();
    // Nobody is to be asked for names: there are none.
    let (nameserver, here) = ("127.0.0.1:9".parse().unwrap(), "127.0.0.0/8".parse().unwrap());
    Network::new(&semantics, &operations, &BTreeMap::new(), &[nameserver], &[here]).unwrap()
}

/// Fetches so many pictures of a host, all at once.
fn fetch(network: &Arc<Network>, address: &str, rows: usize) -> Vec<Result<Answer, Refusal>> {
    fetch_as(network, address, rows, true)
}

fn fetch_as(network: &Arc<Network>, address: &str, rows: usize, is_held: bool) -> Vec<Result<Answer, Refusal>> {
    network.handle().block_on(async {
        let mut fetching = JoinSet::new();
        for row in 0..rows {
            let (network, url) = (Arc::clone(network), format!("{address}/{row}.jpg"));
            fetching.spawn(async move { network.fetch(&url, is_held).await });
        }
        fetching.join_all().await
    })
}

/// Whether all of them ended so.
fn all_refused(rows: &[Result<Answer, Refusal>], reason: &str) -> bool {
    rows.iter().all(|row| row.as_ref().is_err_and(|refusal| refusal.reason == reason))
}

fn sum(asked: &Asked) -> usize {
    asked.lock().unwrap().values().sum()
}

fn robots(asked: &Asked) -> usize {
    asked.lock().unwrap().get("/robots.txt").copied().unwrap_or(0)
}

#[test]
fn a_host_that_only_says_too_many_requests_ends_its_rows() {
    let (address, asked) = host(|_, _| "429 Too Many Requests\r\nretry-after: 1");
    let started = Instant::now();
    let mut network = network(false, 2, 32);
    network.hosts = Hosts::new(Limits { in_flight: 32, per_second: 0.0, dead_for: Duration::from_secs(1) });
    let rows = fetch(&Arc::new(network), &address, 500);
    assert!(all_refused(&rows, "http_429"), "{rows:?}");
    // One by one they would have taken 1,500 requests, 32 of them a second.
    assert!(sum(&asked) < 300, "{}", sum(&asked));
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

#[test]
fn a_host_that_also_says_something_else_is_not_given_up_for_its_too_many_requests() {
    let (other, _) = host(|_, _| "200 OK");
    let moved: &str = format!("301 Moved Permanently\r\nlocation: {other}/moved").leak();
    let (address, _) = host(move |path, _| match path {
        "/busy" => "429 Too Many Requests",
        "/gone" => "404 Not Found",
        _ => moved,
    });
    let mut network = network(false, 0, 1);
    network.hosts = Hosts::new(Limits { in_flight: 1, per_second: 0.0, dead_for: Duration::ZERO });
    let end_of = |path: &str| {
        let end = network.handle().block_on(network.fetch(&format!("{address}{path}"), true));
        end.map_or_else(|refusal| refusal.reason, |_answer| "fetched")
    };
    for (path, end) in [("/gone", "http_404"), ("/moved", "fetched")] {
        for _ in 0..70 {
            assert_eq!((end_of("/busy"), end_of(path)), ("http_429", end));
        }
    }
}

#[test]
fn a_host_with_a_limit_serves_all_rows() {
    // Five requests in a tenth of a second.
    let served = Arc::new(Mutex::new((Instant::now(), 0)));
    let (address, _) = host(move |_, _| {
        let mut served = served.lock().unwrap();
        if served.0.elapsed() >= Duration::from_millis(100) {
            *served = (Instant::now(), 0);
        }
        served.1 += 1;
        if served.1 > 5 { "429 Too Many Requests\r\nretry-after: 1" } else { "200 OK" }
    });
    let rows = fetch(&Arc::new(network(false, 2, 32)), &address, 60);
    assert!(rows.iter().all(Result::is_ok), "{rows:?}");
    let busy = rows.iter().flatten().filter(|answer| answer.observed == ["recovered from http_429"]).count();
    assert!(busy > 0, "it has said so to some");
}

#[test]
fn hosts_that_are_all_gone_for_a_while_lose_no_row() {
    let network = &Arc::new(network(false, 2, 16));
    let (addresses, sockets): (Vec<_>, Vec<_>) = [closed_host(), closed_host()].into_iter().unzip();
    let rows: Vec<_> = std::thread::scope(|scope| {
        let fetching: Vec<_> =
            addresses.iter().map(|address| scope.spawn(move || fetch(network, address, 100))).collect();
        // Longer than the rows' tries take.
        std::thread::sleep(Duration::from_millis(1500));
        let handle = network.handle();
        let _inside = handle.enter();
        for socket in sockets {
            let listener = socket.listen(1024).unwrap().into_std().unwrap();
            listener.set_nonblocking(false).unwrap();
            serve(listener, |_, _| "200 OK");
        }
        fetching.into_iter().flat_map(|rows| rows.join().unwrap()).collect()
    });
    assert!(rows.len() == 200 && rows.iter().all(Result::is_ok), "{rows:?}");
}

#[test]
fn a_dead_host_beside_a_living_one_ends_its_rows_soon() {
    let ((living, _), (dead, _socket)) = (host(|_, _| "200 OK"), closed_host());
    let network = Arc::new(network(false, 1, 16));
    assert!(fetch(&network, &living, 1).iter().all(Result::is_ok));
    let started = Instant::now();
    let rows = fetch(&network, &dead, 500);
    assert!(all_refused(&rows, "connection_failed"), "{rows:?}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn rows_that_are_tried_again_come_to_an_end_though_nothing_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let rows = fetch_as(&Arc::new(network(false, 0, 16)), &address, 300, false);
    assert!(all_refused(&rows, "connection_failed"), "{rows:?}");
}

#[test]
fn a_host_that_never_answers_is_not_asked_for_every_row() {
    let (living, _) = host(|_, _| "200 OK");
    let (silent, asked) = host(|_, _| {
        std::thread::sleep(Duration::from_hours(1));
        "200 OK"
    });
    let mut network = network(false, 0, 16);
    network.first_byte = Duration::from_millis(500);
    let network = Arc::new(network);
    assert!(fetch(&network, &living, 1).iter().all(Result::is_ok));
    let rows = fetch(&network, &silent, 1000);
    assert!(all_refused(&rows, "timed_out"), "{rows:?}");
    assert!(sum(&asked) < 250, "{}", sum(&asked));
}

#[test]
fn a_robots_txt_that_comes_the_second_time_costs_no_row() {
    let (address, asked) = host(|path, before| match (path, before) {
        ("/robots.txt", 0) => "503 Service Unavailable",
        ("/robots.txt", _) => "404 Not Found",
        _ => "200 OK",
    });
    let rows = fetch(&Arc::new(network(true, 1, 16)), &address, 60);
    assert!(rows.iter().all(|row| row.as_ref().is_ok_and(|answer| answer.bytes == b"x")), "{rows:?}");
    assert_eq!((robots(&asked), sum(&asked)), (2, 62));
}

#[test]
fn a_robots_txt_that_never_comes_is_asked_for_a_few_times() {
    for status in ["503 Service Unavailable", "429 Too Many Requests"] {
        let (address, asked) = host(move |_, _| status);
        let network = Arc::new(network(true, 2, 16));
        for _ in 0..3 {
            let rows = fetch(&network, &address, 200);
            assert!(all_refused(&rows, "robots_disallowed"), "{rows:?}");
        }
        assert_eq!((robots(&asked), sum(&asked)), (3, 3), "as often as a row tries, and nothing else");
    }
}
