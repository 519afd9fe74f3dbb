use hub::{Hub, RepoKind};
use serde_json::{Value, json};

use crate::support::{Client, large, noise, regular, sha256, start, summary};

const DATASET: RepoKind = RepoKind::Dataset;

/// With a `.gitattributes` only.
fn created() -> (Hub, Client) {
    let (hub, client) = start();
    let got = client.post("/api/repos/create", &json!({"name": "data", "organization": null, "type": "dataset"}));
    assert_eq!(got.json()["url"], format!("{}/datasets/me/data", hub.endpoint()));
    (hub, client)
}

fn names(hub: &Hub) -> Vec<String> {
    hub.files(DATASET, "me/data", "main").unwrap().into_keys().collect()
}

#[test]
fn a_repository_is_created_once() {
    let (hub, client) = created();
    assert_eq!(names(&hub), [".gitattributes"]);
    assert_eq!(hub.is_private(DATASET, "me/data"), Some(false));
    let again = client.post("/api/repos/create", &json!({"name": "data", "type": "dataset"}));
    assert_eq!((again.status, &again.json()["url"]), (409, &json!(format!("{}/datasets/me/data", hub.endpoint()))));
    for (name, secret) in [("b", json!({"visibility": "private"})), ("c", json!({"private": true}))] {
        let mut body = secret;
        body["name"] = json!(name);
        assert_eq!(client.post("/api/repos/create", &body).status, 200);
        assert_eq!(hub.is_private(RepoKind::Model, &format!("me/{name}")), Some(true));
    }
    let body = json!({"name": "data", "type": "dataset"}).to_string();
    assert_eq!(client.ask("DELETE", "/api/repos/delete", &[], body.clone()).unwrap().status, 200);
    assert_eq!(client.ask("DELETE", "/api/repos/delete", &[], body).unwrap().code(), (404, Some("RepoNotFound")));
}

#[test]
fn how_files_go_is_told_before() {
    let (hub, client) = created();
    hub.create(DATASET, "me/data").commit("main", [("a.txt", "hello\n"), (".gitignore", "*.log\ntmp/\n")]);
    let file = |path: &str, size: usize| json!({"path": path, "size": size, "sample": ""});
    let asked =
        [("a.txt", 6), ("b.txt", 1 << 20), ("c.parquet", 10), ("c.parquet.txt", 10), ("d/e.log", 1), ("tmp/f.tar", 1)];
    let files: Vec<Value> = asked.iter().map(|(path, size)| file(path, *size)).collect();
    let got = client.post("/api/datasets/me/data/preupload/main", &json!({"files": files})).json();
    let told: Vec<_> = got["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| (file["uploadMode"].as_str().unwrap(), file["shouldIgnore"].as_bool().unwrap()))
        .collect();
    let expected =
        [("regular", false), ("lfs", false), ("lfs", false), ("regular", false), ("regular", true), ("lfs", true)];
    assert_eq!(told, expected);
    assert_eq!(got["files"][0]["oid"], "ce013625030ba8dba906f756967f9e9ca394464a");
    let other = json!({"files": [file("d/e.log", 1)], "gitIgnore": ""});
    let got = client.post("/api/datasets/me/data/preupload/main", &other).json();
    assert_eq!(got["files"][0]["shouldIgnore"], false);
    assert_eq!(client.post("/api/datasets/me/data/preupload/none", &other).code(), (404, Some("RevisionNotFound")));
    assert_eq!(client.post("/api/datasets/me/data/preupload/main", &json!({})).status, 400);
}

#[test]
fn a_large_file_goes_in_one_part() {
    let (hub, client) = created();
    let content = noise(1000);
    let batch = client.batch("me/data", &["basic"], &[&content]);
    assert_eq!(batch["transfer"], "basic");
    let actions = &batch["objects"][0]["actions"];
    let href = actions["upload"]["href"].as_str().unwrap();
    assert!(href.starts_with(&hub.storage()));
    assert_eq!(client.put(href, noise(999)).status, 400, "it is not what was announced");
    assert_eq!(client.ask("PUT", href, &[("authorization", "Bearer hf_write")], content.clone()).unwrap().status, 400);
    let stream = reqwest::Body::wrap(http_body(content.clone()));
    assert_eq!(client.ask("PUT", href, &[], stream).unwrap().status, 501, "S3 wants to know the length");
    assert!(hub.objects(DATASET, "me/data").is_empty());
    let verify = actions["verify"]["href"].as_str().unwrap();
    let verify = |size: usize| {
        let url = &verify[hub.endpoint().len()..];
        client.post(url, &json!({"oid": sha256(&content), "size": size})).status
    };
    assert_eq!(verify(1000), 404);
    let early = client.commit("me/data", "", &summary("x"), &[large("x.bin", &content)]);
    assert_eq!(early.status, 400, "{:?}", early.body);
    assert!(early.header("x-error-message").unwrap().contains("LFS pointer pointed to a file that does not exist"));

    let put = client.put(href, content.clone());
    assert_eq!((put.status, put.header("etag").map(str::len)), (200, Some(34)));
    assert_eq!((verify(1000), verify(999)), (200, 422));
    assert!(client.batch("me/data", &["basic"], &[&content])["objects"][0].get("actions").is_none());
    assert_eq!(client.commit("me/data", "", &summary("x"), &[large("x.bin", &content)]).status, 200);
    let stored = hub.stored(DATASET, "me/data", "main").unwrap();
    assert!(stored["x.bin"].is_lfs());
    assert_eq!(stored["x.bin"].content, content);
    let other = client.post("/api/repos/create", &json!({"name": "other", "type": "dataset"}));
    assert_eq!(other.status, 200);
    let batch = client.batch("me/other", &["basic"], &[&content]);
    assert!(batch["objects"][0].get("actions").is_some(), "what another repository has does not count");

    let down = json!({"operation": "download", "objects": [{"oid": sha256(&content), "size": 1000}]});
    let down = client.post("/datasets/me/data.git/info/lfs/objects/batch", &down).json();
    let got = client.get(down["objects"][0]["actions"]["download"]["href"].as_str().unwrap());
    assert_eq!(got.body, content);
}

/// Of unknown length.
fn http_body(content: Vec<u8>) -> impl hyper::body::Body<Data = bytes::Bytes, Error = std::io::Error> + Send + Sync {
    struct Once(Option<Vec<u8>>);
    impl hyper::body::Body for Once {
        type Data = bytes::Bytes;
        type Error = std::io::Error;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<std::io::Result<hyper::body::Frame<bytes::Bytes>>>> {
            std::task::Poll::Ready(self.0.take().map(|content| Ok(hyper::body::Frame::data(content.into()))))
        }
    }
    Once(Some(content))
}

#[test]
fn a_larger_file_goes_in_parts() {
    let (hub, client) = created();
    hub.set(|settings| (settings.multipart_over, settings.part_size) = (1000, 400));
    let (content, small) = (noise(1100), noise(1000));
    let batch = client.batch("me/data", &["basic", "multipart"], &[&content, &small]);
    assert_eq!(batch["transfer"], "multipart");
    assert!(batch["objects"][1]["actions"]["upload"].get("header").is_none(), "it fits into one");
    let upload = &batch["objects"][0]["actions"]["upload"];
    assert_eq!(upload["header"]["chunk_size"], "400");
    let keys: Vec<_> = upload["header"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["chunk_size", "00001", "00002", "00003"]);
    let mut parts = Vec::new();
    let complete = |client: &mut Client, parts: &[Value]| {
        let url = upload["href"].as_str().unwrap();
        // The link is enough.
        client.token = None;
        let body = json!({"oid": sha256(&content), "parts": parts});
        let status = client.post(&url[hub.endpoint().len()..], &body).status;
        client.token = Some("hf_write");
        status
    };
    let mut client = client;
    for (number, part) in (1..).zip(content.chunks(400)) {
        let put = client.put(upload["header"][format!("{number:05}")].as_str().unwrap(), part.to_vec());
        assert_eq!(put.status, 200);
        parts.push(json!({"partNumber": number, "etag": put.header("etag").unwrap()}));
        assert_eq!(complete(&mut client, &parts) == 200, number == 3);
    }
    assert_eq!(complete(&mut client, &parts), 200, "once more, as by a client that has not seen the answer");
    let mut wrong = parts.clone();
    wrong[1]["etag"] = json!("\"00\"");
    assert_eq!(complete(&mut client, &wrong), 400);
    assert_eq!(client.commit("me/data", "", &summary("x"), &[large("x.bin", &content)]).status, 200);
    assert_eq!(hub.files(DATASET, "me/data", "main").unwrap()["x.bin"], content);
    assert_eq!(
        client.batch("me/data", &["basic"], &[&noise(1200)])["objects"][0]["actions"]["upload"].get("header"),
        None
    );
}

#[test]
fn parts_that_make_another_file_are_refused() {
    let (hub, client) = created();
    hub.set(|settings| (settings.multipart_over, settings.part_size) = (10, 10));
    let content = noise(20);
    let batch = client.batch("me/data", &["multipart"], &[&content]);
    let upload = &batch["objects"][0]["actions"]["upload"];
    let mut parts = Vec::new();
    for (number, part) in [(1, noise(10)), (2, noise(10))] {
        let put = client.put(upload["header"][format!("{number:05}")].as_str().unwrap(), part);
        parts.push(json!({"partNumber": number, "etag": put.header("etag").unwrap()}));
    }
    let url = upload["href"].as_str().unwrap();
    assert_eq!(client.post(url, &json!({"oid": sha256(&content), "parts": parts})).status, 400);
    assert!(hub.objects(DATASET, "me/data").is_empty());
}

#[test]
fn commits_change_files() {
    let (hub, client) = created();
    let first = client.commit(
        "me/data",
        "",
        &json!({"summary": "one", "description": "more"}),
        &[regular("a.txt", b"a"), regular("d/b.txt", b"b"), regular("d/c.txt", b"c"), regular("empty.parquet", b"")],
    );
    assert_eq!(first.status, 200, "{:?}", first.body);
    let first = first.json();
    let oid = first["commitOid"].as_str().unwrap();
    assert_eq!(first["commitUrl"], format!("{}/datasets/me/data/commit/{oid}", hub.endpoint()));
    assert_eq!(names(&hub), [".gitattributes", "a.txt", "d/b.txt", "d/c.txt", "empty.parquet"]);
    let last = &hub.commits(DATASET, "me/data", "main")[0];
    assert_eq!((last.title.as_str(), last.description.as_str(), last.author.as_str()), ("one", "more", "me"));

    let copy = ("copyFile", json!({"path": "e.txt", "srcPath": "d/b.txt", "srcRevision": oid}));
    let gone = ("deletedFile", json!({"path": "a.txt"}));
    let folder = ("deletedFolder", json!({"path": "d/"}));
    let header = json!({"summary": "two", "parentCommit": oid});
    let second = client.commit("me/data", "", &header, &[copy, gone.clone(), folder.clone()]);
    assert_eq!(second.status, 200, "{:?}", second.body);
    assert_eq!(names(&hub), [".gitattributes", "e.txt", "empty.parquet"]);

    let moved = client.commit("me/data", "", &header, &[regular("f.txt", b"f")]);
    assert_eq!(moved.status, 412);
    assert_eq!(moved.header("x-error-message"), Some("A commit has happened since. Please refresh and try again."));
    assert_eq!(client.commit("me/data", "", &summary("x"), &[gone]).code(), (404, Some("EntryNotFound")));
    assert_eq!(client.commit("me/data", "", &summary("x"), &[folder]).code(), (404, Some("EntryNotFound")));
    assert_eq!(client.commit("me/data", "", &summary("x"), &[regular("../x", b"x")]).status, 400);
    assert_eq!(client.commit("me/data", "", &summary(""), &[regular("x", b"x")]).status, 400);
    assert_eq!(client.commit("me/data", "", &summary("x"), &[regular("x", &noise(70_000))]).status, 400);
    assert_eq!(client.commit("me/data", "", &summary("x"), &[("other", json!({"path": "x"}))]).status, 400);
    assert_eq!(hub.commits(DATASET, "me/data", "main").len(), 3, "nothing of those has become a commit");
}

#[test]
fn proposals_have_a_branch_of_their_own() {
    let (hub, mut client) = created();
    client.token = Some("hf_other");
    let got = client.commit("me/data", "?create_pr=1", &summary("mine"), &[regular("a.txt", b"a")]);
    assert_eq!(got.json()["pullRequestUrl"], format!("{}/datasets/me/data/discussions/1", hub.endpoint()));
    assert_eq!(names(&hub), [".gitattributes"]);
    let files = hub.files(DATASET, "me/data", "refs/pr/1").unwrap();
    assert_eq!(files.into_keys().collect::<Vec<_>>(), [".gitattributes", "a.txt"]);
}
