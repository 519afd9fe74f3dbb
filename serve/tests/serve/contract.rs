//! What is answered to those who ask well.

use axum::Router;
use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use serve::{Defaults, Description, Limits, Options, Server, Size};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

use crate::support::{Pace, Running, SEEN, decode, description, json_of, options, request_of, start, start_with};

#[tokio::test]
async fn a_picture_comes_as_base64_with_its_settings() {
    let server = start(Limits::default(), Pace::Free).await;
    let order = json!({
        "prompt": "a tin cup", "negative_prompt": "a cat", "size": "48x32", "n": 3, "seed": 41, "steps": 7, "guidance": 2.5,
        "sampler": "euler", "shift": 3, "response_format": "b64_json", "model": "dall-e-3", "user": "somebody",
        "quality": "hd", "style": null, "guidence": 9, "output_format": "png", "stream": false,
    });
    let (status, answer) = server.generate(order.clone()).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(answer["ignored"], json!(["guidence", "quality"]), "what has no effect is told");
    let images = answer["data"].as_array().unwrap();
    assert_eq!(images.len(), 3);
    for (i, image) in images.iter().enumerate() {
        let mut expected = json!({
            "prompt": "a tin cup", "negative_prompt": "a cat", "width": 48, "height": 32, "steps": 7, "guidance": 2.5,
            "sampler": "euler", "shift": 3.0, "seed": 41 + i,
        });
        assert_eq!(request_of(&decode(image)), expected);
        // Neither asked for nor left out of what makes it again.
        expected["guidance_interval"] = json!([0.1, 0.9]);
        expected["guidance_rescale"] = json!(0.7);
        expected["model"] = json!("pattern/landscapes");
        expected["checkpoint"] = json!("5bd9e7c2a1f04d6883b0");
        assert_eq!(image["settings"], expected);
        assert_eq!(image.get("url"), None);
    }
    let (_, again) = server.generate(order).await;
    assert_eq!(again["data"], answer["data"]);
}

#[tokio::test]
async fn a_picture_comes_by_url_with_the_defaults() {
    let server = start(Limits { stored_pictures: 2, pictures: 2, ..Limits::default() }, Pace::Free).await;
    let (status, answer) = server.generate(json!({ "prompt": "a fern", "n": null, "size": "auto" })).await;
    assert_eq!(status, 200, "{answer}");
    let image = &answer["data"][0];
    let settings = image["settings"].clone();
    assert_eq!([&settings["width"], &settings["steps"]], [32, 4]);
    assert!(u32::try_from(settings["seed"].as_u64().unwrap()).is_ok(), "a seed was chosen");
    let url = image["url"].as_str().unwrap();
    assert!(url.starts_with(&format!("{}/pictures/", server.url)) && url.ends_with(".png"), "{url}");
    let path = &url[server.url.len()..];
    let picture = server.get(path).await;
    assert_eq!(picture.headers()["content-type"], "image/png");
    assert_eq!(picture.headers()["x-content-type-options"], "nosniff");
    assert_eq!(request_of(&picture.bytes().await.unwrap())["seed"], settings["seed"]);

    // A seed that was told makes the same picture again.
    let (_, again) = server.generate(json!({ "prompt": "a fern", "seed": settings["seed"] })).await;
    let second = again["data"][0]["url"].as_str().unwrap();
    assert_eq!(
        server.get(&second[server.url.len()..]).await.bytes().await.unwrap(),
        server.get(path).await.bytes().await.unwrap()
    );
    // The third pushes the first out.
    server.generate(json!({ "prompt": "a fern" })).await;
    let (status, error) = json_of(server.get(path).await).await;
    assert_eq!((status, &error["error"]["code"]), (404, &json!("picture_not_found")));
    assert_eq!(server.health().await["stored_pictures"], 2);

    // As at OpenAI, these models know no URLs.
    let (_, answer) = server.generate(json!({ "prompt": "a fern", "model": "gpt-image-1" })).await;
    assert!(answer["data"][0]["b64_json"].is_string());
}

#[tokio::test]
async fn what_has_no_effect_of_a_prompt_is_told() {
    let server = start(Limits::default(), Pace::Free).await;
    let long = "x".repeat(SEEN);
    let order = json!({ "prompt": long.clone() + ", größe", "negative_prompt": long });
    let (status, answer) = server.generate(order).await;
    assert_eq!((status, &answer["truncated"]), (200, &json!({ "prompt": ", größe" })), "{answer}");
    // The negative prompt's branch is not run at this scale.
    for (guidance, ignored) in [(json!(1), json!(["negative_prompt"])), (json!(1.5), Value::Null)] {
        let order = json!({ "prompt": "a fern", "negative_prompt": "fog", "guidance": guidance });
        let (status, answer) = server.generate(order).await;
        assert_eq!((status, &answer["ignored"], &answer["truncated"]), (200, &ignored, &Value::Null), "{answer}");
    }
}

#[tokio::test]
async fn urls_are_made_of_the_name_that_was_called_or_of_the_base() {
    let server = start(Limits::default(), Pace::Free).await;
    let port = server.address.port();
    let url = async |server: &crate::support::Running, host: &str| {
        let request = server.client.post(format!("{}/v1/images/generations", server.url));
        let request = request.header("Host", host).header("Content-Type", "application/json; charset=utf-8");
        let (_, answer) = json_of(request.body(r#"{"prompt": "x"}"#).send().await.unwrap()).await;
        answer["data"][0]["url"].as_str().map(str::to_owned)
    };
    let called = url(&server, &format!("localhost:{port}")).await.unwrap();
    assert!(called.starts_with(&format!("http://localhost:{port}/pictures/")), "{called}");
    assert_eq!(url(&server, "evil.example").await, None);

    let based = Options { base_url: Some("https://pictures.example/tin/".to_owned()), ..options(Limits::default()) };
    let server = start_with(based, description(), Pace::Free, 0).await;
    let called = url(&server, "localhost").await.unwrap();
    assert!(called.starts_with("https://pictures.example/tin/pictures/"), "{called}");
}

#[tokio::test]
async fn the_server_tells_about_itself() {
    let server = start(Limits::default(), Pace::Free).await;
    let model = json!({
        "id": "pattern/landscapes", "object": "model", "created": 0, "owned_by": "ferrotype",
        "checkpoint": "5bd9e7c2a1f04d6883b0",
    });
    let list = json!({ "object": "list", "data": [model] });
    for (path, status, expected) in [
        ("/v1/models", 200, list),
        ("/v1/models/pattern/landscapes", 200, model),
        (
            "/health",
            200,
            json!({ "status": "ok", "waiting": 0, "sampling": 0, "stored_pictures": 0, "stored_bytes": 0 }),
        ),
        (
            "/v1/models/other",
            404,
            json!({ "error": {
                "message": "there is no model \"other\" here", "type": "invalid_request_error", "param": null,
                "code": "model_not_found",
            } }),
        ),
    ] {
        assert_eq!(json_of(server.get(path).await).await, (status, expected), "{path}");
    }
    let (_, told) = json_of(server.get("/api/description").await).await;
    assert_eq!(told["defaults"]["size"], "32x32");
    assert_eq!(told["limits"], json!({ "pictures": 8, "steps": 500, "guidance": 100.0, "prompt": 4000 }));
}

#[tokio::test]
async fn the_page_is_shut_in() {
    let server = start(Limits::default(), Pace::Free).await;
    let page = server.get("/").await;
    let headers = page.headers().clone();
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(headers["x-frame-options"], "DENY");
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
    assert!(!headers.contains_key("access-control-allow-origin"));
    let html = page.text().await.unwrap();
    // Its own script and style, by their digests, are all that may run.
    for tag in ["script", "style"] {
        let text = html.split_once(&format!("<{tag}>")).unwrap().1.split_once(&format!("</{tag}>")).unwrap().0;
        let digest = STANDARD.encode(Sha256::digest(text));
        assert!(policy.contains(&format!("{tag}-src 'sha256-{digest}'")), "{tag}");
        assert_eq!(html.matches(&format!("<{tag}")).count(), 1);
    }
    for needle in ["https://", "innerHTML", "insertAdjacentHTML", "eval(", "document.write"] {
        assert!(!html.contains(needle), "{needle}");
    }
}

/// Starts another server before this one, which has it below a prefix; returns the page's address there.
async fn behind_a_prefix(server: &Running) -> String {
    let (client, url) = (server.client.clone(), server.url.clone());
    let pass_on = move |method: Method, uri: Uri, body: Bytes| {
        let (client, url) = (client.clone(), url.clone());
        async move {
            let Some(path) = uri.path().strip_prefix("/tin").filter(|path| path.starts_with('/')) else {
                let kind = HeaderValue::from_static("text/plain");
                return (StatusCode::NOT_FOUND, [(CONTENT_TYPE, kind)], Bytes::new());
            };
            let request = client.request(method, format!("{url}{path}")).header(CONTENT_TYPE, "application/json");
            let answer = request.body(body).send().await.unwrap();
            let (status, kind) = (answer.status(), answer.headers()[CONTENT_TYPE].clone());
            (status, [(CONTENT_TYPE, kind)], answer.bytes().await.unwrap())
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(pass_on)).await });
    format!("http://{address}/tin/")
}

#[tokio::test]
async fn the_page_works_behind_a_prefix_of_another_server() {
    let based = Options { base_url: Some("https://pictures.example/tin".to_owned()), ..options(Limits::default()) };
    let server = start_with(based, description(), Pace::Free, 0).await;
    let page = reqwest::Url::parse(&behind_a_prefix(&server).await).unwrap();
    let html = server.client.get(page.clone()).send().await.unwrap().text().await.unwrap();
    for needle in ["ask('/", "ask(`", "fetch('", "src=\"/", "href=\"/", "EventSource"] {
        assert!(!html.contains(needle), "{needle}");
    }
    let asked: Vec<&str> = html.split("ask('").skip(1).filter_map(|rest| rest.split('\'').next()).collect();
    assert_eq!(asked, ["api/pictures", "api/description"]);
    let mut answers = Vec::new();
    for path in asked {
        let url = page.join(path).unwrap();
        let request = match path {
            "api/pictures" => server.client.post(url).body(r#"{"prompt": "a tin cup"}"#),
            _ => server.client.get(url),
        };
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{path}");
        answers.push(answer.text().await.unwrap());
    }
    let last = answers[0].lines().filter_map(|line| line.strip_prefix("data: ")).next_back().unwrap();
    let done: Value = serde_json::from_str(last).unwrap();
    // The page looks for it where it lies itself.
    let (base, name) = done["url"].as_str().unwrap().rsplit_once("/pictures/").unwrap();
    assert_eq!(base, "https://pictures.example/tin");
    let picture = server.client.get(page.join(&format!("pictures/{name}")).unwrap()).send().await.unwrap();
    assert_eq!(
        (picture.status().as_u16(), &picture.headers()[CONTENT_TYPE]),
        (200, &HeaderValue::from_static("image/png"))
    );
    let outside = server.client.get(page.join("/api/description").unwrap()).send().await.unwrap();
    assert_eq!(outside.status().as_u16(), 404, "the other server has its own addresses");
}

#[tokio::test]
async fn a_key_is_asked_for_where_there_is_one() {
    let keyed = Options { api_key: Some("sk-tin".to_owned()), ..options(Limits::default()) };
    let server = start_with(keyed, description(), Pace::Free, 0).await;
    for (path, key, expected) in [
        ("/v1/models", None, 401),
        ("/v1/models", Some("Bearer sk-ti"), 401),
        ("/v1/models", Some("Basic sk-tin"), 401),
        ("/v1/models", Some("sk-tin"), 401),
        ("/v1/models", Some("Bearer sk-tin"), 200),
        ("/v1/models", Some("bearer  sk-tin"), 200),
        ("/v1/images/generations", None, 401),
        ("/api/pictures", None, 401),
        ("/api/description", None, 401),
        ("/", None, 200),
        ("/health", None, 200),
    ] {
        let is_order = path.ends_with('s') && !path.ends_with("models");
        let url = format!("{}{path}", server.url);
        let request = if is_order { server.client.post(url) } else { server.client.get(url) };
        let request = if let Some(key) = key { request.header("Authorization", key) } else { request };
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), expected, "{path} {key:?}");
        assert_eq!(response.headers().contains_key("www-authenticate"), expected == 401);
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_is_not_started() {
    let limits = Limits { waiting: 2, pictures: 3, batch: 0, guidance: f64::NAN, ..Limits::default() };
    let faulty = Options { api_key: Some("a b".to_owned()), base_url: Some("pictures".to_owned()), ..options(limits) };
    assert_eq!(
        Server::bind(faulty).await.unwrap_err().to_string(),
        "the server's options do not fit together: the limit `batch` is 0; the limit `guidance` is NaN; a request's 3 \
         pictures are more than the limit `waiting`, 2; the API key must be of printable ASCII characters without spaces; \
         the base URL \"pictures\" does not begin with http:// or https://"
    );
    let server = start(Limits::default(), Pace::Free).await;
    let taken = Options { address: server.address, ..Options::default() };
    assert_eq!(Server::bind(taken).await.unwrap_err().to_string(), format!("cannot listen on {}", server.address));
    let own = description().defaults;
    for (defaults, words) in [
        (Defaults { sampler: "none".to_owned(), ..own.clone() }, "the default sampler \"none\""),
        (Defaults { size: Size { width: 2048, height: 2048 }, ..own.clone() }, "has more than 1048576 pixels"),
        (Defaults { steps: 501, ..own.clone() }, "the default steps are 501, not from 1 to 500"),
        (Defaults { guidance: 100.5, ..own.clone() }, "the default guidance is 100.5, not from 0 to 100"),
        (Defaults { shift: 2000.0, ..own.clone() }, "the default shift is 2000, not above 0 and up to 1000"),
    ] {
        let wrong = Description { defaults, ..description() };
        let server = start_with(options(Limits::default()), wrong, Pace::Free, 0).await;
        let error = server.stop().await.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert!(
        format!("{:?}", Options { api_key: Some("sk-tin".into()), ..Options::default() }).contains("has_api_key: true")
    );
    assert_eq!(Options::default().address.to_string(), "127.0.0.1:8000");
}
