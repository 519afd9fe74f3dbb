use std::time::{Duration, Instant};

use hub::{Fault, Hub, RepoKind, Side};
use serde_json::json;

use crate::support::{Client, noise, sha256, start};

const FILE: &str = "/datasets/me/data/resolve/main/x.tar";

fn filled() -> (Hub, Client) {
    let (hub, client) = start();
    hub.create(RepoKind::Dataset, "me/data").commit("main", [("x.tar", noise(200_000))]);
    (hub, client)
}

#[test]
fn the_next_requests_meet_with_a_status() {
    let (hub, client) = filled();
    hub.fault(Fault::status(503).on("/resolve/").after(1).times(2).retry_after(7));
    let statuses = [(); 5].map(|()| client.get(FILE).status);
    assert_eq!(statuses, [302, 503, 503, 302, 302]);
    assert_eq!(client.get("/api/datasets/me/data").status, 200, "it is no such request");
    assert_eq!(hub.count("GET", "/resolve/"), 5);

    hub.fault(Fault::rate_limited(55).method("HEAD"));
    assert_eq!(client.get(FILE).status, 302);
    let limited = client.head(FILE);
    assert_eq!((limited.status, limited.header("ratelimit")), (429, Some("\"api\";r=0;t=55")));
    assert_eq!(limited.header("ratelimit-policy"), Some("\"fixed window\";\"api\";q=500;w=300"));
    hub.fault(Fault::status(429).retry_after(7));
    let limited = client.get(FILE);
    assert_eq!((limited.header("retry-after"), limited.header("ratelimit")), (Some("7"), None));
    assert_eq!(client.head(FILE).status, 302);
}

#[test]
fn an_outage_ends() {
    let (hub, client) = filled();
    hub.outage(Duration::from_hours(1));
    assert_eq!([client.get(FILE).status, client.get("/api/whoami-v2").status], [503, 503]);
    hub.heal();
    assert_eq!(client.get(FILE).status, 302);
    hub.outage(Duration::from_millis(1));
    let began = Instant::now();
    while client.get(FILE).status == 503 {
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn a_download_is_cut() {
    let (hub, client) = filled();
    hub.fault(Fault::cut(70_000).on("x.tar"));
    let link = client.get(FILE).header("location").unwrap().to_owned();
    let error = client.ask("GET", &link, &[], "").err().unwrap();
    assert!(error.starts_with("no body"), "{error}");
    assert_eq!(hub.requests().last().unwrap().sent, 70_000);
    let rest = client.ask("GET", &link, &[("range", "bytes=70000-")], "").unwrap();
    assert_eq!(rest.body, &noise(200_000)[70_000..]);
    hub.fault(Fault::cut(0).at(Side::Cdn).always());
    for _ in 0..3 {
        assert!(client.ask("GET", &link, &[], "").err().unwrap().starts_with("no body"));
    }
    assert_eq!(client.get("/api/whoami-v2").status, 200);
}

#[test]
fn bodies_are_slow_or_wrong() {
    let (hub, client) = filled();
    let link = client.get(FILE).header("location").unwrap().to_owned();
    hub.fault(Fault::slow(1_000_000).at(Side::Cdn));
    let began = Instant::now();
    assert_eq!(client.get(&link).body, noise(200_000));
    assert!(began.elapsed() >= Duration::from_millis(150), "{:?}", began.elapsed());
    hub.fault(Fault::corrupt().at(Side::Cdn));
    let wrong = client.get(&link).body;
    assert_eq!(wrong.len(), 200_000);
    assert!(wrong.iter().zip(noise(200_000)).all(|(got, right)| *got != right));
    assert_eq!(client.get(&link).body, noise(200_000));
    hub.fault(Fault::short(150_000).at(Side::Cdn));
    let short = client.get(&link);
    assert_eq!((short.header("content-length"), short.body.len()), (Some("150000"), 150_000));
    hub.fault(Fault::late(Duration::from_millis(50)));
    let began = Instant::now();
    assert_eq!(client.get(FILE).status, 302);
    assert!(began.elapsed() >= Duration::from_millis(50));
}

#[test]
fn a_branch_moves_under_a_reader() {
    let (hub, client) = filled();
    let repo = hub.create(RepoKind::Dataset, "me/data");
    let old = hub.commits(RepoKind::Dataset, "me/data", "main")[0].oid.clone();
    let new = repo.commit("next", [("x.tar", "another")]);
    hub.fault(Fault::moved(RepoKind::Dataset, "me/data", "main", &new).on("/resolve/").after(2));
    let commits = [(); 4].map(|()| client.get(FILE).header("x-repo-commit").unwrap().to_owned());
    assert_eq!(commits, [old.clone(), old.clone(), new.clone(), new]);
    assert_eq!(client.get(&FILE.replace("main", &old)).status, 302);
}

#[test]
fn an_upload_breaks_midway() {
    let (hub, client) = filled();
    let content = noise(300_000);
    let batch = client.batch("me/data", &["basic"], &[&content]);
    let href = batch["objects"][0]["actions"]["upload"]["href"].as_str().unwrap();
    hub.fault(Fault::cut_request(100_000).method("PUT"));
    let error = client.ask("PUT", href, &[], content.clone()).err().unwrap();
    assert!(error.starts_with("no answer"), "{error}");
    let asked = hub.requests().last().unwrap().clone();
    assert!(asked.status.is_none() && (100_000..300_000).contains(&asked.received), "{asked:?}");
    assert_eq!(hub.objects(RepoKind::Dataset, "me/data"), [sha256(&noise(200_000))]);
    hub.fault(Fault::status(500).at(Side::Cdn).method("PUT"));
    assert_eq!(client.put(href, content.clone()).status, 500);
    assert_eq!(client.put(href, content.clone()).status, 200);
    let verify = json!({"oid": sha256(&content), "size": 300_000});
    assert_eq!(client.post("/datasets/me/data.git/info/lfs/objects/verify", &verify).status, 200);
}
