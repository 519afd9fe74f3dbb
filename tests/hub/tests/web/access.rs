use hub::RepoKind;
use serde_json::json;

use crate::support::{regular, start, summary};

const GATED: Option<&str> = Some("GatedRepo");
const ABSENT: Option<&str> = Some("RepoNotFound");

/// Of a dataset with `a.txt`, what a token gets: what it is, its listing, and its file.
#[test]
fn tokens_open_what_is_theirs() {
    let (hub, client) = start();
    for (name, handle) in
        ["open", "gated", "hidden", "private"].map(|name| (name, hub.create(RepoKind::Dataset, &format!("me/{name}"))))
    {
        handle.commit("main", [("a.txt", "hello")]);
        let _ = match name {
            "gated" => handle.gated(),
            "hidden" => handle.gated_listings(),
            "private" => handle.private(),
            _ => handle,
        };
    }
    let ok = (200, None);
    let get = |token, repo: &str| {
        let urls = [
            format!("/api/datasets/me/{repo}"),
            format!("/api/datasets/me/{repo}/tree/main"),
            format!("/datasets/me/{repo}/resolve/main/a.txt"),
        ];
        urls.map(|url| {
            let got = client.get_as(token, &url);
            let (status, code) = got.code();
            (status, code.map(str::to_owned))
        })
    };
    let is = |got: [(u16, Option<String>); 3], expected: [(u16, Option<&str>); 3]| {
        let got: Vec<_> = got.iter().map(|(status, code)| (*status, code.as_deref())).collect();
        assert_eq!(got, expected);
    };
    let mine = Some("hf_read");
    is(get(None, "open"), [ok, ok, (307, None)]);
    is(get(None, "gated"), [ok, ok, (401, GATED)]);
    is(get(None, "hidden"), [ok, (401, GATED), (401, GATED)]);
    is(get(None, "private"), [(401, ABSENT); 3]);
    is(get(None, "none"), [(401, ABSENT); 3]);
    is(get(Some("hf_other"), "gated"), [ok, ok, (403, GATED)]);
    is(get(Some("hf_other"), "hidden"), [ok, (403, GATED), (403, GATED)]);
    is(get(Some("hf_other"), "private"), [(404, ABSENT); 3]);
    is(get(Some("hf_other"), "none"), [(404, ABSENT); 3]);
    is(get(Some("hf_friend"), "gated"), [ok, ok, (307, None)]);
    is(get(mine, "gated"), [ok, ok, (307, None)]);
    is(get(mine, "private"), [ok, ok, (307, None)]);
    is(get(Some("hf_wrong"), "open"), [(401, None); 3]);
    is(get(Some("hf_wrong"), "private"), [(401, None); 3]);

    let refusal = client.get_as(None, "/datasets/me/gated/resolve/main/a.txt");
    let message = "Access to dataset me/gated is restricted. You must have access to it and be authenticated to access it. \
                   Please log in.";
    assert_eq!(refusal.header("x-error-message"), Some(message));
    assert_eq!(refusal.json(), json!({"error": message}));
    assert!(refusal.header("www-authenticate").unwrap().starts_with("Bearer"));
    let wrong = client.get_as(Some("hf_wrong"), "/api/whoami-v2");
    assert_eq!(wrong.header("x-error-message"), Some("Invalid credentials in Authorization header"));
    hub.set(|settings| settings.code_at_401 = false);
    is(get(None, "none"), [(401, None); 3]);
}

#[test]
fn only_those_who_may_write() {
    let (hub, mut client) = start();
    hub.create(RepoKind::Dataset, "me/data").commit("main", [("a.txt", "hello")]);
    hub.create(RepoKind::Dataset, "me/gated").gated().commit("main", [("a.txt", "hello")]);
    let mut statuses = |token, repo: &str| {
        client.token = token;
        let file = json!({"files": [{"path": "b.txt", "size": 1, "sample": "Yg=="}]});
        let batch = json!({"operation": "upload", "objects": [], "ref": {"name": "main"}});
        [
            client.post(&format!("/api/datasets/{repo}/preupload/main"), &file).status,
            client.post(&format!("/datasets/{repo}.git/info/lfs/objects/batch"), &batch).status,
            client.commit(repo, "", &summary("b"), &[regular("b.txt", b"b")]).status,
        ]
    };
    assert_eq!(statuses(None, "me/data"), [401; 3]);
    assert_eq!(statuses(Some("hf_wrong"), "me/data"), [401; 3]);
    assert_eq!(statuses(Some("hf_read"), "me/data"), [403; 3]);
    assert_eq!(statuses(Some("hf_other"), "me/data"), [403; 3]);
    assert_eq!(statuses(Some("hf_other"), "me/gated"), [403; 3]);
    assert_eq!(statuses(Some("hf_other"), "me/none"), [404; 3]);
    assert_eq!(hub.commits(RepoKind::Dataset, "me/data", "main").len(), 1);
    assert_eq!(statuses(Some("hf_write"), "me/data"), [200; 3]);

    let mut create = |token, body| {
        client.token = token;
        client.post("/api/repos/create", &body).status
    };
    assert_eq!(create(None, json!({"name": "new"})), 401);
    assert_eq!(create(Some("hf_read"), json!({"name": "new"})), 403);
    assert_eq!(create(Some("hf_write"), json!({"name": "new", "organization": "other"})), 403);
    assert_eq!(create(Some("hf_write"), json!({"name": "new", "organization": "lab"})), 200);
    let me = client.get("/api/whoami-v2").json();
    assert_eq!((&me["name"], &me["orgs"][0]["name"]), (&json!("me"), &json!("lab")));
    assert_eq!(me["auth"]["accessToken"]["role"], "write");
}
