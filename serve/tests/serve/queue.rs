//! Bounds, batches, progress, and failures of the generator.

use std::time::Duration;

use serde_json::{Value, json};
use serve::{Limits, Options};

use crate::support::{Pace, Running, decode, description, gate, json_of, options, request_of, start, start_with};

/// An order that is on its way.
fn send(server: &Running, order: &Value) -> tokio::task::JoinHandle<(u16, Value)> {
    let request = server.client.post(format!("{}/v1/images/generations", server.url));
    let request = request.header("Content-Type", "application/json").body(order.to_string());
    tokio::spawn(async move { json_of(request.send().await.unwrap()).await })
}

/// The one that samples, while others are put behind it.
async fn occupy(server: &Running) -> tokio::task::JoinHandle<(u16, Value)> {
    let first = send(server, &json!({ "prompt": "first", "size": "64x64" }));
    server.until("sampling", |health| health["sampling"] == 1).await;
    first
}

#[tokio::test]
async fn a_full_queue_says_so_and_takes_orders_again() {
    let (open, pace) = gate();
    let server = start(Limits { waiting: 3, pictures: 3, ..Limits::default() }, pace).await;
    let first = occupy(&server).await;
    let second = send(&server, &json!({ "prompt": "second", "n": 2 }));
    server.until("two waiting", |health| health["waiting"] == 2).await;
    for path in ["/v1/images/generations", "/api/pictures"] {
        let refused = server.post(path, r#"{"prompt": "third", "n": 2}"#).await;
        let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=600).contains(&seconds));
        let (status, answer) = json_of(refused).await;
        let words = "2 pictures would not fit into the queue, where 2 of at most 3 wait; try again later";
        let error = json!({ "message": words, "type": "rate_limit_error", "param": null, "code": "queue_full" });
        assert_eq!((status, answer), (429, json!({ "error": error })));
    }
    let fitting = send(&server, &json!({ "prompt": "third" }));
    server.until("three waiting", |health| health["waiting"] == 3).await;
    drop(open);
    for order in [first, second, fitting] {
        assert_eq!(order.await.unwrap().0, 200);
    }
    server.until_idle().await;
    assert_eq!(server.generate(json!({ "prompt": "fourth", "n": 3 })).await.0, 200);
}

#[tokio::test]
async fn like_pictures_are_made_together_and_kept_apart() {
    let (open, pace) = gate();
    let mut narrow = description();
    // Four small pictures, or one of 64 by 64.
    narrow.most_pixels = 64 * 64;
    let server = start_with(options(Limits { batch: 3, ..Limits::default() }), narrow, pace, 0).await;
    let first = occupy(&server).await;
    let mut orders = Vec::new();
    for (waiting, change) in [
        json!({ "prompt": "a" }),
        json!({ "prompt": "b", "seed": 9, "negative_prompt": "n" }),
        json!({ "prompt": "steps", "steps": 5 }),
        json!({ "prompt": "guidance", "guidance": 5 }),
        json!({ "prompt": "sampler", "sampler": "euler" }),
        json!({ "prompt": "shift", "shift": 2 }),
        json!({ "prompt": "size", "size": "64x64" }),
        json!({ "prompt": "size again", "size": "64x64" }),
        json!({ "prompt": "c", "n": 3 }),
    ]
    .into_iter()
    .enumerate()
    {
        let mut order = change.clone();
        order["response_format"] = json!("b64_json");
        orders.push((change["prompt"].clone(), send(&server, &order)));
        server.until("waiting", |health| health["waiting"].as_u64().unwrap() > waiting as u64).await;
    }
    drop(open);
    first.await.unwrap();
    for (prompt, order) in orders {
        let (status, answer) = order.await.unwrap();
        assert_eq!(status, 200, "{answer}");
        for image in answer["data"].as_array().unwrap() {
            let request = request_of(&decode(image));
            assert_eq!(request["prompt"], prompt);
            assert_eq!(request["seed"], image["settings"]["seed"]);
        }
    }
    let batches: Vec<String> = server.log.lock().unwrap().batches.iter().map(|batch| batch.join(", ")).collect();
    let expected =
        ["first", "a, b, c", "steps", "guidance", "sampler", "shift", "size", "size again", "c, c"].map(str::to_owned);
    assert_eq!(
        batches, expected,
        "like with like, at most three and 64 by 64 pixels together, nobody overtaken for long"
    );
}

#[tokio::test]
async fn a_failure_is_of_one_picture_only() {
    let (open, pace) = gate();
    let server = start(Limits { batch: 8, ..Limits::default() }, pace).await;
    let first = occupy(&server).await;
    let mut orders = Vec::new();
    let cases = [
        ("good", 200, Value::Null, ""),
        ("refuse", 400, json!("refused_by_model"), "the model refuses this: not this"),
        ("fail", 500, json!("generation_failed"), "the picture could not be made: out of silver"),
        ("panic", 500, json!("generation_failed"), "the picture could not be made: the generator panicked"),
        ("wrong count", 500, json!("generation_failed"), "did not answer 1 requests with as many PNG files"),
        ("no png", 500, json!("generation_failed"), "did not answer 1 requests with as many PNG files"),
        ("good too", 200, Value::Null, ""),
    ];
    for (waiting, (prompt, ..)) in cases.iter().enumerate() {
        orders.push(send(&server, &json!({ "prompt": prompt })));
        server.until("waiting", |health| health["waiting"] == waiting + 1).await;
    }
    drop(open);
    first.await.unwrap();
    for ((prompt, expected, code, words), order) in cases.iter().zip(orders) {
        let (status, answer) = order.await.unwrap();
        assert_eq!((status, &answer["error"]["code"]), (*expected, code), "{prompt}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap_or_default().contains(words), "{prompt}: {answer}");
    }
    let batches: Vec<usize> = server.log.lock().unwrap().batches.iter().map(Vec::len).collect();
    assert_eq!(batches, [1, 7, 1, 1, 1, 1, 1, 1, 1]);
}

#[tokio::test]
async fn a_server_whose_generator_is_lost_says_so_and_keeps_nobody_waiting() {
    let observer = Box::new(|event: serve::Event| {
        if matches!(event, serve::Event::Batch { .. }) {
            std::panic::resume_unwind(Box::new("as asked"));
        }
    });
    let lost = Options { observer, ..options(Limits { batch: 1, ..Limits::default() }) };
    let server = start_with(lost, description(), Pace::Free, 0).await;
    let order = server.generate(json!({ "prompt": "in hand" }));
    let (status, answer) = tokio::time::timeout(Duration::from_secs(10), order).await.expect("an answer");
    assert_eq!((status, &answer["error"]["code"]), (500, &json!("generation_failed")), "{answer}");
    let health = server.until("closed", |health| health["status"] == "shutting down").await;
    assert_eq!((server.get("/health").await.status().as_u16(), &health["sampling"]), (503, &json!(0)));
    assert_eq!(server.generate(json!({ "prompt": "next" })).await.0, 503);
    server.stop().await.unwrap();
}

/// The events of an order as `(name, data)`.
pub(crate) fn events(text: &str) -> Vec<(String, Value)> {
    text.split("\n\n")
        .filter_map(|event| {
            let (name, data) = event.strip_prefix("event: ")?.split_once("\ndata: ")?;
            Some((name.to_owned(), serde_json::from_str(data).unwrap()))
        })
        .collect()
}

#[tokio::test]
async fn events_tell_how_a_picture_comes_along() {
    let (open, pace) = gate();
    let server = start(Limits { batch: 1, ..Limits::default() }, pace).await;
    let first = occupy(&server).await;
    let between = send(&server, &json!({ "prompt": "between" }));
    server.until("waiting", |health| health["waiting"] == 1).await;
    let response = server.post("/api/pictures", r#"{"prompt": "shown", "seed": 5, "steps": 3, "colour": 1}"#).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    drop(open);
    let events = events(&response.text().await.unwrap());
    first.await.unwrap();
    between.await.unwrap();

    let settings = json!({
        "prompt": "shown", "negative_prompt": "", "width": 32, "height": 32, "steps": 3, "guidance": 4.0, "sampler": "heun",
        "shift": 1.0, "seed": 5, "guidance_interval": [0.1, 0.9], "guidance_rescale": 0.7, "model": "pattern/landscapes",
        "checkpoint": "5bd9e7c2a1f04d6883b0",
    });
    let accepted = json!({ "pictures": [settings], "ignored": ["colour"], "truncated": {} });
    assert_eq!(events[0], ("accepted".to_owned(), accepted));
    // Only the newest news is told, so some may be missing; what is there moves forwards.
    let ahead: Vec<i64> =
        events.iter().filter(|(name, _)| name == "queued").map(|(_, d)| d["ahead"].as_i64().unwrap()).collect();
    assert!(ahead.is_sorted_by(|a, b| a > b) && ahead.iter().all(|n| (0..=2).contains(n)), "{ahead:?}");
    let steps: Vec<i64> =
        events.iter().filter(|(name, _)| name == "progress").map(|(_, d)| d["step"].as_i64().unwrap()).collect();
    assert!(steps.is_sorted_by(|a, b| a < b) && steps.iter().all(|n| (0..=3).contains(n)), "{steps:?}");
    let (name, done) = events.last().unwrap();
    assert_eq!((name.as_str(), &done["picture"], &done["settings"]), ("done", &json!(0), &settings));
    let url = done["url"].as_str().unwrap();
    let picture = server.get(&url[server.url.len()..]).await.bytes().await.unwrap();
    assert_eq!(request_of(&picture)["prompt"], "shown");

    let failed = server.post("/api/pictures", r#"{"prompt": "fail"}"#).await.text().await.unwrap();
    let failed = self::events(&failed);
    let (name, error) = failed.last().unwrap();
    assert_eq!((name.as_str(), &error["error"]["code"]), ("error", &json!("generation_failed")));
}

#[tokio::test]
async fn the_observer_hears_of_each_batch() {
    let heard = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
    let list = std::sync::Arc::clone(&heard);
    let observer = Box::new(move |event: serve::Event| {
        let line = match event {
            serve::Event::Queued { pictures, .. } => format!("queued {pictures}"),
            serve::Event::Batch { pictures, outcome, .. } => format!("batch {pictures} {outcome:?}"),
            serve::Event::AcceptFailed(error) => error.to_string(),
        };
        list.lock().unwrap().push(line);
    });
    let observed = Options { observer, ..options(Limits { batch: 1, ..Limits::default() }) };
    let server = start_with(observed, description(), Pace::Free, 0).await;
    server.generate(json!({ "prompt": "x", "n": 1 })).await;
    server.generate(json!({ "prompt": "fail" })).await;
    let lines = heard.lock().unwrap().clone();
    // A picture may be made before it was told that it is queued.
    assert_eq!(lines.len(), 4, "{lines:?}");
    for line in ["queued 1", "batch 1 Made", "batch 1 Failed(\"out of silver\")"] {
        assert!(lines.iter().any(|heard| heard == line), "{line}: {lines:?}");
    }
}
