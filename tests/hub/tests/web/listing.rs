use hub::{Hub, RepoKind};
use serde_json::{Value, json};

use crate::support::{Client, sha256, start};

/// Paths of all pages, and how many pages there were.
fn walk(client: &Client, url: &str) -> (Vec<String>, usize) {
    let (mut paths, mut pages, mut next) = (Vec::new(), 0, Some(url.to_owned()));
    while let Some(url) = next {
        let got = client.get(&url);
        assert_eq!(got.status, 200, "{:?}", got.body);
        paths.extend(got.json().as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap().to_owned()));
        pages += 1;
        next = got.header("link").map(|link| {
            let url = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap();
            // The token goes only to addresses of the hub.
            url[url.find("/api").unwrap()..].to_owned()
        });
    }
    (paths, pages)
}

fn filled(hub: &Hub) -> String {
    let repo = hub.create(RepoKind::Dataset, "me/data");
    repo.commit("main", [("README.md", "# data"), ("a/one.txt", "1")]);
    repo.commit("main", [("a/b/x.parquet", "PAR1"), ("a/two.txt", "2"), ("a.txt", "3"), ("z/y.txt", "4")])
}

#[test]
fn folders_are_listed_in_pages() {
    let (hub, client) = start();
    filled(&hub);
    let (all, pages) = walk(&client, "/api/datasets/me/data/tree/main?recursive=True&expand=False");
    assert_eq!(pages, 1);
    let folders = ["a", "a/b", "z"].as_slice();
    let files = ["README.md", "a.txt", "a/b/x.parquet", "a/one.txt", "a/two.txt", "z/y.txt"].as_slice();
    assert_eq!(all, [folders, files].concat());
    hub.set(|settings| settings.page = 2);
    assert_eq!(walk(&client, "/api/datasets/me/data/tree/main?recursive=true"), (all.clone(), 5));
    assert_eq!(walk(&client, "/api/datasets/me/data/tree/main?recursive=true&limit=1"), (all.clone(), 9));
    assert_eq!(walk(&client, "/api/datasets/me/data/tree/main?recursive=1&limit=100"), (all, 5));
    assert_eq!(walk(&client, "/api/datasets/me/data/tree/main").0, ["a", "z", "README.md", "a.txt"]);
    assert_eq!(walk(&client, "/api/datasets/me/data/tree/main/a").0, ["a/b", "a/one.txt", "a/two.txt"]);
    assert_eq!(walk(&client, "/api/datasets/me/data/tree/main/a%2Fb").0, ["a/b/x.parquet"]);
    assert_eq!(client.get("/api/datasets/me/data/tree/main/none").code(), (404, Some("EntryNotFound")));
    assert_eq!(client.get("/api/datasets/me/data/tree/none").code(), (404, Some("RevisionNotFound")));
    assert_eq!(client.get("/api/datasets/me/data/tree/main?cursor=%21").status, 400);
}

#[test]
fn entries_say_what_git_and_the_storage_call_them() {
    let (hub, client) = start();
    let oid = filled(&hub);
    let got = client.get("/api/datasets/me/data/tree/main/a/b?expand=true").json();
    let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 4\n", sha256(b"PAR1"));
    let stored = hub.stored(RepoKind::Dataset, "me/data", "main").unwrap();
    let last = json!({"id": oid, "title": "By the test", "date": "2024-01-01T00:00:02.000Z"});
    let lfs = json!({"oid": sha256(b"PAR1"), "size": 4, "pointerSize": pointer.len()});
    let file = json!({"type": "file", "oid": stored["a/b/x.parquet"].oid(), "size": 4, "path": "a/b/x.parquet",
        "lfs": lfs, "lastCommit": last});
    assert_eq!(got, json!([file]));

    let body = json!({"paths": ["a.txt", "a/one.txt", "a", "none"], "expand": true});
    let got = client.post("/api/datasets/me/data/paths-info/main", &body).json();
    let of = |key: &str| got.as_array().unwrap().iter().map(|entry| entry[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("path"), ["a.txt", "a/one.txt", "a"]);
    assert_eq!(of("type"), ["file", "file", "directory"]);
    let dates: Vec<Value> = of("lastCommit").iter().map(|last| last["date"].clone()).collect();
    assert_eq!(dates, ["2024-01-01T00:00:02.000Z", "2024-01-01T00:00:01.000Z", "2024-01-01T00:00:02.000Z"]);

    let form = [("content-type", "application/x-www-form-urlencoded")];
    let url = "/api/datasets/me/data/paths-info/main";
    let same = client.ask("POST", url, &form, "paths=a.txt&paths=a%2Fone.txt&paths=a&paths=none&expand=true").unwrap();
    assert_eq!(same.json(), got);
    let many = vec!["a"; 1001];
    assert_eq!(client.post(url, &json!({"paths": many})).status, 413);
}

#[test]
fn a_repository_is_described() {
    let (hub, client) = start();
    let oid = filled(&hub);
    let info = client.get("/api/datasets/me/data").json();
    assert_eq!((&info["id"], &info["sha"], &info["author"]), (&json!("me/data"), &json!(oid), &json!("me")));
    assert_eq!((&info["private"], &info["gated"]), (&json!(false), &json!(false)));
    assert_eq!(info["lastModified"], "2024-01-01T00:00:02.000Z");
    assert_eq!(info["siblings"].as_array().unwrap().len(), 6);
    assert_eq!(info["siblings"][0], json!({"rfilename": "README.md"}));
    let blobs = client.get("/api/datasets/me/data/revision/main?blobs=true").json();
    assert_eq!(blobs["siblings"][2]["lfs"]["sha256"], sha256(b"PAR1"));
    let some = client.get("/api/datasets/me/data/revision/main?expand=sha&expand=gated").json();
    assert_eq!(some.as_object().unwrap().keys().collect::<Vec<_>>(), ["_id", "id", "sha", "gated"]);
    assert_eq!(client.get("/api/datasets/me/data/revision/none").code(), (404, Some("RevisionNotFound")));
    assert_eq!(client.get("/api/models/me/data").code(), (404, Some("RepoNotFound")));
}

#[test]
fn references_come_and_go() {
    let (hub, client) = start();
    let oid = filled(&hub);
    let _ = hub.create(RepoKind::Dataset, "me/data").tag("refs/convert/parquet", &oid).tag("refs/pr/1", &oid);
    let url = "/api/datasets/me/data";
    assert_eq!(client.post(&format!("{url}/branch/next%2Fone"), &json!({"startingPoint": "main"})).status, 200);
    assert_eq!(client.post(&format!("{url}/branch/next%2Fone"), &json!({})).status, 409);
    assert_eq!(client.post(&format!("{url}/tag/main"), &json!({"tag": "v1"})).status, 200);
    let refs = client.get(&format!("{url}/refs?include_prs=1")).json();
    let one = |name: &str, whole: &str| json!({"name": name, "ref": whole, "targetCommit": oid});
    assert_eq!(refs["branches"], json!([one("main", "refs/heads/main"), one("next/one", "refs/heads/next/one")]));
    assert_eq!(refs["tags"], json!([one("v1", "refs/tags/v1")]));
    assert_eq!(refs["converts"], json!([one("parquet", "refs/convert/parquet")]));
    assert_eq!(refs["pullRequests"], json!([one("1", "refs/pr/1")]));
    assert_eq!(client.ask("DELETE", &format!("{url}/tag/v1"), &[], "").unwrap().status, 200);
    assert_eq!(client.ask("DELETE", &format!("{url}/branch/next%2Fone"), &[], "").unwrap().status, 200);
    let refs = client.get(&format!("{url}/refs")).json();
    assert_eq!((refs["branches"].as_array().unwrap().len(), &refs["tags"]), (1, &json!([])));
    hub.set(|settings| settings.page = 1);
    let commits = client.get(&format!("{url}/commits/main"));
    assert_eq!((commits.json()[0]["id"].as_str(), commits.json().as_array().unwrap().len()), (Some(oid.as_str()), 1));
    assert!(commits.header("link").unwrap().contains("?p=1"));
    assert_eq!(client.get(&format!("{url}/commits/main?p=1")).header("link"), None);
}
