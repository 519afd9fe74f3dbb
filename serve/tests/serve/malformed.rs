//! What is answered to those who ask badly, and that the server outlives them.

use std::time::Duration;

use serde_json::json;
use serve::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Pace, json_of, start};

#[tokio::test]
async fn what_is_wrong_with_a_body_is_told() {
    let limits = Limits { body: 2000, prompt: 100, ..Limits::default() };
    let server = start(limits, Pace::Free).await;
    let long = format!(r#"{{"prompt": "{}"}}"#, "x".repeat(101));
    let large = format!(r#"{{"prompt": "{}"}}"#, "x".repeat(2000));
    let deep = "[".repeat(1500);
    let cases: &[(&str, u16, &str, &str)] = &[
        ("", 400, "", "the body is not valid JSON"),
        ("{", 400, "", "the body is not valid JSON"),
        ("{\"prompt\": \"\\ud800\"}", 400, "", "the body is not valid JSON"),
        ("{\"prompt\": 'x'}", 400, "", "the body is not valid JSON"),
        ("{\"prompt\": \"x\", \"guidance\": 1e999}", 400, "", "the body is not valid JSON"),
        ("{\"prompt\": \"x\", \"guidance\": NaN}", 400, "", "the body is not valid JSON"),
        ("{\"prompt\": \"x\"} {}", 400, "", "the body is not valid JSON"),
        (&deep, 400, "", "the body is not valid JSON: recursion limit"),
        ("[]", 400, "", "the body must be a JSON object"),
        ("\"a prompt\"", 400, "", "the body must be a JSON object"),
        ("{}", 400, "prompt", "prompt: is needed: say what to show"),
        (r#"{"prompt": null}"#, 400, "prompt", "prompt: is needed"),
        (r#"{"prompt": " \n"}"#, 400, "prompt", "prompt: is needed"),
        (r#"{"prompt": 7}"#, 400, "prompt", "prompt: must be a string, not a number"),
        (r#"{"prompt": ["x"]}"#, 400, "prompt", "prompt: must be a string, not an array"),
        (r#"{"prompt": "a\u0000b"}"#, 400, "prompt", "prompt: has control characters"),
        (&long, 400, "prompt", "prompt: has 101 characters, of at most 100"),
        (&large, 413, "", "the body is larger than 2000 bytes"),
        (
            r#"{"prompt": "x", "negative_prompt": {}}"#,
            400,
            "negative_prompt",
            "negative_prompt: must be a string, not an object",
        ),
        (r#"{"prompt": "x", "n": 0}"#, 400, "n", "n: must be a whole number from 1 to 8, not 0"),
        (r#"{"prompt": "x", "n": 9}"#, 400, "n", "n: must be a whole number from 1 to 8, not 9"),
        (r#"{"prompt": "x", "n": -1}"#, 400, "n", "n: must be a whole number from 1 to 8, not -1"),
        (r#"{"prompt": "x", "n": 1.5}"#, 400, "n", "n: must be a whole number from 1 to 8, not 1.5"),
        (r#"{"prompt": "x", "n": "2"}"#, 400, "n", "n: must be a whole number from 1 to 8, not \"2\""),
        (r#"{"prompt": "x", "n": 1e300}"#, 400, "n", "n: must be a whole number from 1 to 8, not 1e+300"),
        (r#"{"prompt": "x", "size": "big"}"#, 400, "size", "size: must be like \"32x32\", not \"big\""),
        (r#"{"prompt": "x", "size": "32×32"}"#, 400, "size", "size: must be like"),
        (r#"{"prompt": "x", "size": "+32x32"}"#, 400, "size", "size: must be like"),
        (r#"{"prompt": "x", "size": "x32"}"#, 400, "size", "size: must be like"),
        (r#"{"prompt": "x", "size": "32x99999999999"}"#, 400, "size", "size: must be like"),
        (r#"{"prompt": "x", "size": 32}"#, 400, "size", "size: must be a string, not a number"),
        (
            r#"{"prompt": "x", "size": "0x32"}"#,
            400,
            "size",
            "size: 0x32: sides must be positive multiples of 16 pixels; 16x32 is near",
        ),
        (
            r#"{"prompt": "x", "size": "100x20"}"#,
            400,
            "size",
            "size: 100x20: sides must be positive multiples of 16 pixels; 96x16 is near",
        ),
        (r#"{"prompt": "x", "size": "4294967295x16"}"#, 400, "size", "4294967296x16 is near"),
        (
            r#"{"prompt": "x", "size": "4294967280x16"}"#,
            400,
            "size",
            "size: 4294967280x16: has more than 1048576 pixels",
        ),
        (r#"{"prompt": "x", "steps": 0}"#, 400, "steps", "steps: must be a whole number from 1 to 500, not 0"),
        (r#"{"prompt": "x", "steps": 501}"#, 400, "steps", "steps: must be"),
        (r#"{"prompt": "x", "steps": true}"#, 400, "steps", "steps: must be a whole number from 1 to 500, not true"),
        (r#"{"prompt": "x", "guidance": -0.1}"#, 400, "guidance", "guidance: must be a number from 0 to 100, not -0.1"),
        (r#"{"prompt": "x", "guidance": "4"}"#, 400, "guidance", "guidance: must be a number from 0 to 100, not \"4\""),
        (r#"{"prompt": "x", "shift": 0}"#, 400, "shift", "shift: must be a number above 0"),
        (
            r#"{"prompt": "x", "sampler": "Heun"}"#,
            400,
            "sampler",
            "sampler: must be \"euler\" or \"heun\", not \"Heun\"",
        ),
        (
            r#"{"prompt": "x", "seed": -1}"#,
            400,
            "seed",
            "seed: must be a whole number from 0 to 9007199254740991, not -1",
        ),
        (r#"{"prompt": "x", "seed": 9007199254740991, "n": 2}"#, 400, "seed", "from 0 to 9007199254740990"),
        (
            r#"{"prompt": "x", "response_format": "png"}"#,
            400,
            "response_format",
            "must be \"url\" or \"b64_json\", not \"png\"",
        ),
        (
            r#"{"prompt": "x", "output_format": "webp"}"#,
            400,
            "output_format",
            "output_format: must be \"png\", not \"webp\"",
        ),
        (r#"{"prompt": "x", "stream": true}"#, 400, "stream", "stream: is not offered here"),
        (
            r#"{"prompt": "", "n": 0, "size": "7x7"}"#,
            400,
            "prompt",
            "prompt: is needed: say what to show; n: must be a whole number from 1 to 8, not 0; size: 7x7",
        ),
    ];
    for path in ["/v1/images/generations", "/api/pictures"] {
        for (body, status, param, words) in cases {
            let (got, answer) = json_of(server.post(path, *body).await).await;
            let error = &answer["error"];
            assert_eq!(got, *status, "{body}: {answer}");
            assert_eq!(error["param"].as_str().unwrap_or_default(), *param, "{body}: {answer}");
            assert!(error["message"].as_str().unwrap().contains(words), "{body}: {answer}");
            assert_eq!(error["type"], "invalid_request_error", "{body}");
        }
    }
    assert_eq!(server.log.lock().unwrap().batches.len(), 0, "nothing of it reached the generator");
    for good in [r#"{"prompt": "x", "steps": 4.0}"#, r#"{"prompt": "a\n\tb", "seed": 9007199254740991}"#] {
        let (status, answer) = json_of(server.post("/v1/images/generations", good).await).await;
        assert_eq!(status, 200, "{good}: {answer}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_told() {
    let server = start(Limits::default(), Pace::Free).await;
    let typed = ("Content-Type", "application/json".to_owned());
    let own = format!("http://{}", server.address);
    let header = |name: &'static str, value: &str| (name, value.to_owned());
    for (method, path, headers, expected, code) in [
        ("GET", "/nowhere", vec![], 404, None),
        ("GET", "/pictures/../../etc/passwd", vec![], 404, None),
        ("GET", "/pictures/%2e%2e%2fx.png", vec![], 404, Some("picture_not_found")),
        ("GET", "/v1/images/generations", vec![], 405, None),
        ("DELETE", "/", vec![], 405, None),
        ("POST", "/v1/images/generations", vec![], 415, Some("unsupported_media_type")),
        ("POST", "/api/pictures", vec![header("Content-Type", "text/plain")], 415, Some("unsupported_media_type")),
        (
            "POST",
            "/api/pictures",
            vec![typed.clone(), header("Origin", "http://evil.example")],
            403,
            Some("foreign_origin"),
        ),
        ("POST", "/api/pictures", vec![typed.clone(), header("Origin", "null")], 403, Some("foreign_origin")),
        ("POST", "/api/pictures", vec![typed.clone(), header("Origin", &own)], 400, Some("invalid_json")),
        ("GET", "/", vec![header("Host", "evil.example")], 403, Some("foreign_host")),
        ("POST", "/api/pictures", vec![typed.clone(), header("Host", "evil.example")], 403, Some("foreign_host")),
        (
            "OPTIONS",
            "/v1/images/generations",
            vec![header("Origin", "http://evil.example")],
            403,
            Some("foreign_origin"),
        ),
    ] {
        let request = server.client.request(method.parse().unwrap(), format!("{}{path}", server.url));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        let (status, answer) = json_of(request.send().await.unwrap()).await;
        assert_eq!(
            (status, answer["error"]["code"].as_str()),
            (expected, code),
            "{method} {path} {headers:?}: {answer}"
        );
    }
}

/// Sends bytes and returns what comes back until the server ends the connection.
async fn raw(server: &crate::support::Running, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    read.expect("the server ends the connection").unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn what_is_no_http_or_too_slow_is_cut() {
    let limits = Limits { receive: Duration::from_millis(200), ..Limits::default() };
    let server = start(limits, Pace::Free).await;
    let post = format!(
        "POST /v1/images/generations HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n",
        server.address
    );
    for (bytes, expected) in [
        (String::new(), ""),
        ("GET / HT".to_owned(), ""),
        ("\u{16}\u{3}\u{1} what a TLS client says\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), "HTTP/1.1 403"),
        (format!("{post}Content-Length: 100\r\n\r\n{{\"prompt\""), "HTTP/1.1 408"),
        (format!("{post}Content-Length: 1, 2\r\n\r\n{{\"prompt\""), "HTTP/1.1 400"),
        (format!("{post}Transfer-Encoding: chunked\r\n\r\nzz\r\n"), "HTTP/1.1 400"),
        (format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)), "HTTP/1.1 431"),
    ] {
        let answer = raw(&server, bytes.as_bytes()).await;
        let shown = &bytes[..bytes.len().min(200)];
        assert!(
            if expected.is_empty() { answer.is_empty() } else { answer.starts_with(expected) },
            "{shown:?}: {answer}"
        );
    }
    // A client that hangs up in the middle of its body leaves nothing behind.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(format!("{post}Content-Length: 100\r\n\r\n{{").as_bytes()).await.unwrap();
    drop(stream);
    let (status, _) = server.generate(json!({ "prompt": "x" })).await;
    assert_eq!(status, 200);
    assert_eq!(server.log.lock().unwrap().batches.len(), 1);
}
