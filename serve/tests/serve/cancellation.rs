//! Clients that leave, and a server that ends.

use std::time::{Duration, Instant};

use serde_json::json;
use serve::Limits;
use tokio::task::JoinHandle;

use crate::support::{Running, decode, gate, json_of, request_of, start};

/// An order whose client can be made to leave by aborting it.
fn send(server: &Running, path: &str, prompt: &str) -> JoinHandle<Result<reqwest::Response, reqwest::Error>> {
    let order = json!({ "prompt": prompt, "steps": 100, "response_format": "b64_json" });
    let request = server.client.post(format!("{}{path}", server.url));
    let request = request.header("Content-Type", "application/json").body(order.to_string());
    tokio::spawn(request.send())
}

const API: &str = "/v1/images/generations";
const EVENTS: &str = "/api/pictures";

#[tokio::test]
async fn what_nobody_waits_for_is_stopped_at_its_next_step() {
    for path in [API, EVENTS] {
        let (open, pace) = gate();
        let server = start(Limits::default(), pace).await;
        let order = send(&server, path, "left");
        server.until("sampling", |health| health["sampling"] == 1).await;
        for _ in 0..5 {
            open.send(()).unwrap();
        }
        let steps = || server.log.lock().unwrap().steps;
        while steps() < 5 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if path == EVENTS {
            // Its answer has begun, so it is the answer that is left.
            drop(order.await.unwrap().unwrap());
        } else {
            order.abort();
        }
        // One sign after the other, until the server has noticed, and the generator with its next step.
        while server.health().await["sampling"] == 1 {
            let _ = open.send(());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let log = server.log.lock().unwrap();
        assert_eq!(log.stopped, 1, "{path}");
        assert!(log.steps < 50, "{path}: {} of 100 steps", log.steps);
    }
}

#[tokio::test]
async fn who_leaves_the_queue_is_not_made() {
    let (open, pace) = gate();
    let server = start(Limits { batch: 1, ..Limits::default() }, pace).await;
    let first = send(&server, API, "first");
    server.until("sampling", |health| health["sampling"] == 1).await;
    let second = send(&server, API, "second");
    server.until("one waiting", |health| health["waiting"] == 1).await;
    let third = send(&server, API, "third");
    server.until("two waiting", |health| health["waiting"] == 2).await;
    second.abort();
    server.until("one left", |health| health["waiting"] == 1).await;
    drop(open);
    for (order, prompt) in [(first, "first"), (third, "third")] {
        let (_, answer) = json_of(order.await.unwrap().unwrap()).await;
        assert_eq!(request_of(&decode(&answer["data"][0]))["prompt"], prompt);
    }
    let log = server.log.lock().unwrap();
    assert_eq!(log.batches, [["first"], ["third"]]);
}

#[tokio::test]
async fn who_leaves_a_batch_does_not_stop_it() {
    let (open, pace) = gate();
    let server = start(Limits::default(), pace).await;
    let first = send(&server, API, "first");
    server.until("sampling", |health| health["sampling"] == 1).await;
    let second = send(&server, API, "second");
    server.until("one waiting", |health| health["waiting"] == 1).await;
    let third = send(&server, API, "third");
    server.until("two waiting", |health| health["waiting"] == 2).await;
    // A hundred steps for the first, and some of the next two.
    for _ in 0..110 {
        open.send(()).unwrap();
    }
    server.until("a batch", |health| health["sampling"] == 2).await;
    second.abort();
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(open);
    let (_, answer) = json_of(third.await.unwrap().unwrap()).await;
    assert_eq!(request_of(&decode(&answer["data"][0]))["prompt"], "third");
    first.await.unwrap().unwrap();
    let log = server.log.lock().unwrap();
    assert_eq!((log.batches.last().unwrap().len(), log.steps, log.stopped), (2, 200, 0));
}

#[tokio::test]
async fn a_server_that_ends_finishes_what_it_makes_and_tells_who_waits() {
    let (open, pace) = gate();
    let mut server = start(Limits { batch: 1, ..Limits::default() }, pace).await;
    let first = send(&server, API, "first");
    server.until("sampling", |health| health["sampling"] == 1).await;
    let second = send(&server, API, "second");
    server.until("one waiting", |health| health["waiting"] == 1).await;
    server.begin_stop();
    let (status, answer) = json_of(second.await.unwrap().unwrap()).await;
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("shutting_down")));
    drop(open);
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    let log = std::sync::Arc::clone(&server.log);
    server.stop().await.unwrap();
    assert!(log.lock().unwrap().is_dropped, "the generator is gone when the server is");
}

#[tokio::test]
async fn a_server_that_ends_does_not_wait_for_ever() {
    let (open, pace) = gate();
    let server = start(Limits { grace: Duration::from_millis(200), ..Limits::default() }, pace).await;
    let order = send(&server, API, "slow");
    server.until("sampling", |health| health["sampling"] == 1).await;
    let log = std::sync::Arc::clone(&server.log);
    let began = Instant::now();
    let stopping = tokio::spawn(server.stop());
    tokio::time::sleep(Duration::from_millis(600)).await;
    open.send(()).unwrap();
    stopping.await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(3));
    assert!(order.await.unwrap().is_err(), "its connection is cut");
    let log = log.lock().unwrap();
    assert_eq!((log.steps, log.stopped, log.is_dropped), (1, 1, true));
}
