use std::time::Duration;

use hub::{RepoKind, Side};

use crate::support::{noise, sha256, start};

#[test]
fn a_small_file_is_behind_a_redirect_on_the_hub() {
    let (hub, client) = start();
    let oid = hub.create(RepoKind::Dataset, "me/data").commit("main", [("a b/ü.txt", "hello\n")]);
    let first = client.get("/datasets/me/data/resolve/main/a%20b/%C3%BC.txt");
    assert_eq!(first.status, 307);
    assert_eq!(first.header("x-repo-commit"), Some(oid.as_str()));
    assert_eq!(first.header("x-linked-etag"), Some("\"ce013625030ba8dba906f756967f9e9ca394464a\""));
    assert_eq!(first.header("x-linked-size"), Some("6"));
    let location = first.header("location").unwrap();
    assert!(
        location.starts_with(&format!("/api/resolve-cache/datasets/me/data/{oid}/a%20b/%C3%BC.txt?")),
        "{location}"
    );
    let second = client.get(location);
    assert_eq!((second.status, second.body.as_ref()), (200, b"hello\n".as_slice()));
    assert_eq!(second.header("etag"), Some("\"ce013625030ba8dba906f756967f9e9ca394464a\""));
    let head = client.head(location);
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("6"), 0));

    hub.set(|settings| settings.redirects_small = false);
    let plain = client.get("/datasets/me/data/resolve/main/a%20b/%C3%BC.txt");
    assert_eq!((plain.status, plain.body.as_ref()), (200, b"hello\n".as_slice()));
    assert_eq!(plain.header("x-repo-commit"), Some(oid.as_str()));
}

#[test]
fn a_large_file_is_in_the_storage_behind_a_signed_link() {
    let (hub, client) = start();
    let content = noise(100_000);
    let repo = hub.create(RepoKind::Model, "me/model").private();
    repo.commit("main", [("w/x.safetensors", content.clone())]);
    let head = client.head("/me/model/resolve/main/w/x.safetensors");
    assert_eq!(head.status, 302);
    assert_eq!(head.header("x-linked-etag"), Some(format!("\"{}\"", sha256(&content)).as_str()));
    assert_eq!(head.header("x-linked-size"), Some("100000"));
    assert_eq!(head.header("accept-ranges"), Some("bytes"));
    let link = head.header("location").unwrap();
    assert!(link.starts_with(&hub.storage()) && !link.starts_with(&hub.endpoint()));
    let got = client.get(link);
    assert_eq!((got.status, got.body.as_ref()), (200, content.as_slice()));
    let etag = got.header("etag").unwrap();
    assert_ne!(Some(etag), head.header("x-linked-etag"), "the storage has etags of its own");

    let part = client.ask("GET", link, &[("range", "bytes=99990-")], "").unwrap();
    assert_eq!((part.status, part.body.as_ref()), (206, &content[99_990..]));
    assert_eq!(part.header("content-range"), Some("bytes 99990-99999/100000"));
    let same = client.ask("GET", link, &[("range", "bytes=1-1"), ("if-range", etag)], "").unwrap();
    assert_eq!((same.status, same.body.as_ref()), (206, &content[1..2]));
    let other = client.ask("GET", link, &[("range", "bytes=1-1"), ("if-range", "\"x\"")], "").unwrap();
    assert_eq!((other.status, other.body.len()), (200, 100_000));
    let past = client.ask("GET", link, &[("range", "bytes=100000-")], "").unwrap();
    assert_eq!((past.status, past.header("content-range")), (416, Some("bytes */100000")));

    let asked = hub.requests();
    assert_eq!(asked.iter().filter(|asked| asked.side == Side::Cdn && !asked.has_authorization).count(), 5);
    let ranges: Vec<_> = asked.iter().filter_map(|asked| asked.range.as_deref()).collect();
    assert_eq!(ranges, ["bytes=99990-", "bytes=1-1", "bytes=1-1", "bytes=100000-"]);
    assert_eq!((asked[1].status, asked[1].sent), (Some(200), 100_000));
    assert_eq!((asked[2].status, asked[2].sent), (Some(206), 10));
}

#[test]
fn the_storage_refuses_tokens_and_links_that_are_not_good() {
    let (hub, client) = start();
    hub.create(RepoKind::Dataset, "me/data").commit("main", [("x.tar", "abc")]);
    let link = || client.get("/datasets/me/data/resolve/main/x.tar").header("location").unwrap().to_owned();
    let good = link();
    let with_token = client.ask("GET", &good, &[("authorization", "Bearer hf_write")], "").unwrap();
    assert_eq!(with_token.status, 400);
    assert!(hub.requests().last().unwrap().has_authorization);
    assert!(!hub.requests().last().unwrap().headers.contains_key("authorization"), "tokens are not kept");
    assert_eq!(client.get(&good.replace("Signature=", "Signature=0")).status, 403);
    assert_eq!(client.get(good.split('?').next().unwrap()).status, 403);
    assert_eq!(client.put(&good, b"abc".to_vec()).status, 403, "it is for reading");
    assert_eq!(client.get(&good).status, 200);
    hub.expire_links();
    assert_eq!(client.get(&good).status, 403);
    assert_eq!(client.get(&link()).status, 200);
    hub.set(|settings| settings.link_lifetime = Duration::ZERO);
    let expired = client.get(&link());
    assert_eq!(expired.status, 403);
    assert!(String::from_utf8_lossy(&expired.body).contains("Request has expired"));
}

#[test]
fn commits_stay_when_a_branch_moves() {
    let (hub, client) = start();
    let repo = hub.create(RepoKind::Dataset, "me/data");
    let old = repo.commit("main", [("a.txt", "old"), ("b.txt", "gone soon")]);
    repo.commit("main", [("a.txt", "new")]);
    let new = repo.delete("main", &["b.txt"]);
    let repo = repo.tag("v1", &old).tag("refs/convert/parquet", &new).tag("refs/pr/1", &old);
    let read = |revision: &str| {
        let got = client.download(&format!("/datasets/me/data/resolve/{revision}/a.txt"));
        String::from_utf8(got.body.to_vec()).unwrap()
    };
    for revision in [old.as_str(), "v1", "refs%2Fpr%2F1", "refs/pr/1"] {
        assert_eq!(read(revision), "old", "{revision}");
    }
    for revision in [new.as_str(), "main", "refs%2Fconvert%2Fparquet", "refs/convert/parquet"] {
        assert_eq!(read(revision), "new", "{revision}");
    }
    let gone = client.get("/datasets/me/data/resolve/main/b.txt");
    assert_eq!((gone.code(), gone.header("x-repo-commit")), ((404, Some("EntryNotFound")), Some(new.as_str())));
    repo.move_to("main", &old);
    assert_eq!(read("main"), "old");
    assert_eq!(client.get("/datasets/me/data/resolve/v2/a.txt").code(), (404, Some("RevisionNotFound")));
    assert_eq!(hub.files(RepoKind::Dataset, "me/data", &new).unwrap().len(), 1);
    assert_eq!(hub.commits(RepoKind::Dataset, "me/data", &new).len(), 3);
}
