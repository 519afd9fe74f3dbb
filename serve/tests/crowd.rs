//! A thousand requests of fifty clients, half of whom leave early, between malformed ones: nobody gets another's picture, and
//! nothing is left behind. A process of its own, for what it counts.

#![allow(clippy::unwrap_used, reason = "this is a test")]

#[path = "serve/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use serve::Limits;
use support::{Pace, Running, decode, description, options, request_of, start_with};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const CLIENTS: u64 = 50;
const REQUESTS: u64 = 20;
/// So that pictures which were kept would show: all of them would be a quarter of a gigabyte.
const BALLAST: usize = 256 << 10;

/// Open files, threads, and resident memory in MiB.
fn held() -> (usize, usize, u64) {
    let count = |path: &str| std::fs::read_dir(path).map_or(0, Iterator::count);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
    (count("/proc/self/fd"), count("/proc/self/task"), resident.unwrap_or(0_u64) >> 10)
}

/// What a client does with its request: by a fixed rule, so that each run is the same crowd.
async fn one(server: &Running, client: u64, request: u64) -> &'static str {
    let number = client * REQUESTS + request;
    let prompt = format!("client {client}, request {request}");
    let sizes = ["32x32", "48x32", "32x48"];
    let order = json!({
        "prompt": prompt, "seed": number * 10, "size": sizes[number as usize % 3], "n": 1 + number / 2 % 2, "steps": 3 + number % 5,
        "response_format": if number.is_multiple_of(3) { "url" } else { "b64_json" },
    });
    if number % 2 == 1 {
        return leave(server, &order, number).await;
    }
    if number % 10 == 4 {
        let body =
            ["{", "[]", "{\"prompt\": 7}", "{\"prompt\": \"x\", \"n\": 99}", "\u{0}"][(number / 10) as usize % 5];
        assert_eq!(server.post("/v1/images/generations", body).await.status().as_u16(), 400, "{body}");
        return "malformed";
    }
    // As OpenAI's clients do: a full queue is tried again.
    loop {
        let (status, answer) = server.generate(order.clone()).await;
        if status == 429 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        assert_eq!(status, 200, "{answer}");
        for (i, image) in answer["data"].as_array().unwrap().iter().enumerate() {
            let picture = match image["url"].as_str() {
                Some(url) => {
                    let response = server.get(&url[server.url.len()..]).await;
                    if response.status() == 404 {
                        // Others' pictures have pushed it out.
                        continue;
                    }
                    response.bytes().await.unwrap().to_vec()
                }
                None => decode(image),
            };
            let made = request_of(&picture);
            assert_eq!([&made["prompt"], &made["seed"]], [&json!(prompt), &json!(number * 10 + i as u64)]);
        }
        return "answered";
    }
}

/// Leaves before, while or after its picture is made; or in the middle of its own words.
async fn leave(server: &Running, order: &Value, number: u64) -> &'static str {
    let path = if number % 4 == 1 { "/api/pictures" } else { "/v1/images/generations" };
    let body = order.to_string();
    let cut = if number % 22 == 1 { body.len() / 2 } else { body.len() };
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        server.address,
        body.len()
    );
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body.as_bytes()[..cut]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(number % 7 * 25)).await;
    "left"
}

/// One wave of the crowd, to its end.
async fn wave(server: &Arc<Running>) -> BTreeMap<&'static str, usize> {
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let server = Arc::clone(server);
            tokio::spawn(async move {
                let mut outcomes = BTreeMap::new();
                for request in 0..REQUESTS {
                    *outcomes.entry(one(&server, client, request).await).or_insert(0) += 1;
                }
                outcomes
            })
        })
        .collect();
    let mut outcomes = BTreeMap::new();
    for client in clients {
        for (outcome, times) in client.await.unwrap() {
            *outcomes.entry(outcome).or_insert(0) += times;
        }
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_leaves_nothing_behind() {
    let metrics = tokio::runtime::Handle::current().metrics();
    let (files, threads, _) = held();
    let tasks = metrics.num_alive_tasks();
    let limits = Limits { waiting: 40, pictures: 4, stored_pictures: 20, ..Limits::default() };
    let pace = Pace::Sleep(Duration::from_millis(1));
    let server = Arc::new(start_with(options(limits), description(), pace, BALLAST).await);
    let mut resident = Vec::new();
    for _ in 0..2 {
        let began = Instant::now();
        let outcomes = wave(&server).await;
        assert_eq!(outcomes, BTreeMap::from([("answered", 400), ("left", 500), ("malformed", 100)]));
        let health = server.until_idle().await;
        assert!(health["stored_pictures"].as_u64().unwrap() <= 20, "{health}");
        assert!(health["stored_bytes"].as_u64().unwrap() <= 20 * (BALLAST as u64 + 20_000), "{health}");
        let log = server.log.lock().unwrap();
        let pictures: usize = log.batches.iter().map(Vec::len).sum();
        println!(
            "{:.1} s; {pictures} pictures in {} batches, {} stopped; {} tasks, {:?} files, threads, MiB; {health}",
            began.elapsed().as_secs_f64(),
            log.batches.len(),
            log.stopped,
            metrics.num_alive_tasks(),
            held(),
        );
        resident.push(held().2);
    }
    assert!(resident[1] <= resident[0] + 48, "MiB after each wave: {resident:?}");

    // When the server has ended, all that it and its clients held is given back.
    Arc::into_inner(server).unwrap().stop().await.unwrap();
    for _ in 0..400 {
        if (held().0, held().1, metrics.num_alive_tasks()) == (files, threads, tasks) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!(
        "{files} files, {threads} threads and {tasks} tasks before; {:?} and {} after",
        held(),
        metrics.num_alive_tasks()
    );
}
