//! Every fault behaves as its name says, and nothing else misbehaves.

use std::collections::BTreeMap;
use std::time::Duration;

use demo::{Catalogue, Entry, Fault};
use futures::{StreamExt, stream};
use reqwest::Response;
use tokio::time::timeout;

use crate::Visit;

/// How long a body may be silent before it counts as stalled.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a client finds out about an entry, without knowing what was planted there.
async fn observe(visit: &Visit, entry: &Entry) -> Option<Fault> {
    if !entry.url().starts_with(&format!("http://{}/", demo::HOST)) {
        return Some(Fault::UnresolvableHost);
    }
    let response = visit.get(entry).await;
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    match response.status().as_u16() {
        200 => {}
        302 => {
            let target = header("location").unwrap();
            assert!(target.starts_with('/') && target != entry.path(), "{target}");
            assert_picture(visit.get_path(&target).await).await;
            return Some(Fault::Redirect);
        }
        404 => {
            assert_eq!(visit.get(entry).await.status(), 404);
            return Some(Fault::NotFound);
        }
        429 => {
            assert_eq!(header("retry-after").unwrap(), "1");
            assert_picture(visit.get(entry).await).await;
            return Some(Fault::TooManyRequestsOnce);
        }
        500 => {
            assert_picture(visit.get(entry).await).await;
            return Some(Fault::ServerErrorOnce);
        }
        other => panic!("{other} at {}", entry.path()),
    }
    let (robots, media_type, announced) =
        (header("x-robots-tag"), header("content-type").unwrap(), header("content-length").unwrap());
    let Ok(body) = timeout(PATIENCE, response.bytes()).await else { return Some(Fault::Stalled) };
    let Ok(body) = body else { return Some(Fault::Truncated) };
    assert_eq!(announced, body.len().to_string());
    if body.starts_with(b"<!DOCTYPE html>") {
        assert_eq!(media_type, "image/jpeg");
        return Some(Fault::HtmlPage);
    }
    if image::load_from_memory(&body).is_err() {
        assert_eq!(media_type, "image/jpeg");
        let (width, height) = image::ImageReader::new(std::io::Cursor::new(&body))
            .with_guessed_format()
            .unwrap()
            .into_dimensions()
            .unwrap();
        assert!(width.max(height) >= 64, "its header is sound");
        return Some(Fault::CorruptJpeg);
    }
    robots.map(|value| {
        assert_eq!(value, "noai");
        Fault::NoAi
    })
}

async fn assert_picture(response: Response) {
    assert_eq!(response.status(), 200);
    image::load_from_memory(&response.bytes().await.unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_planted_is_what_happens() {
    let visit = Visit::new(400).await;
    let observed: Vec<_> = stream::iter(visit.catalogue.entries())
        .map(|entry| {
            let visit = &visit;
            async move { (entry, observe(visit, entry).await) }
        })
        .buffered(200)
        .collect()
        .await;
    let mut counts: BTreeMap<Fault, u64> = BTreeMap::new();
    for (entry, fault) in observed {
        assert_eq!(fault, entry.fault(), "{}", entry.url());
        if let Some(fault) = fault {
            *counts.entry(fault).or_default() += 1;
        }
    }
    assert_eq!(counts, visit.catalogue.planted());
    assert_eq!(counts.len(), Fault::ALL.len());
    visit.origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_and_truncated_bodies_begin() {
    let visit = Visit::new(100).await;
    for wanted in [Fault::Stalled, Fault::Truncated] {
        let entry = visit.catalogue.entries().iter().find(|entry| entry.fault() == Some(wanted)).unwrap();
        let mut response = visit.get(entry).await;
        assert_eq!(response.status(), 200);
        let announced = response.content_length().unwrap();
        let first = response.chunk().await.unwrap().unwrap();
        assert!(!first.is_empty() && (first.len() as u64) < announced, "{wanted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_corrupt_jpeg_of_the_demo_decodes() {
    let visit = Visit::with(Catalogue::default()).await;
    let corrupt = visit.catalogue.entries().iter().filter(|entry| entry.fault() == Some(Fault::CorruptJpeg));
    for entry in corrupt {
        let bytes = visit.get(entry).await.bytes().await.unwrap();
        assert!(image::load_from_memory(&bytes).is_err(), "{}", entry.url());
    }
}
