//! The server's life: ports, odd requests, and stopping.

use std::time::{Duration, Instant};

use demo::{Catalogue, Fault, Origin, OriginError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Visit;

/// The status line with which the origin answers raw bytes.
async fn answer(visit: &Visit, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(visit.origin.address()).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..length]).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_not_found() {
    let visit = Visit::new(100).await;
    let paths = [
        "/",
        "//",
        "/pictures",
        "/pictures/",
        "/pictures/00000",
        "/pictures/0.jpg",
        "/pictures/00100.jpg",
        "/pictures/-0001.jpg",
        "/pictures/99999999999999999999999.jpg",
        "/pictures/00000.gif",
        "/pictures/00000.jpg/more",
        "/pictures/%2e%2e/etc/passwd",
        "/pictures/..%2f..%2fetc",
        "/archive/00000.jpg",
        "/photographs/",
        "/photographs/nobody.jpg",
        "/photographs/SOURCE",
        "/%F0%9F%8D%8E",
        "/pictures/+0001.jpg",
        "/?url=http://example.org",
    ];
    for path in paths {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", demo::HOST);
        assert_eq!(answer(&visit, request.as_bytes()).await, "HTTP/1.1 404 Not Found", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_requests_do_no_harm() {
    let visit = Visit::new(100).await;
    assert_eq!(answer(&visit, b"\0\xFF\r\n\r\n").await, "HTTP/1.1 400 Bad Request");
    assert_eq!(
        answer(&visit, b"POST /pictures/00001.jpg HTTP/1.1\r\nHost: x\r\n\r\n").await,
        "HTTP/1.1 405 Method Not Allowed"
    );
    let healthy = visit.catalogue.entries().iter().find(|entry| entry.fault().is_none()).unwrap();
    let head = format!("HEAD {} HTTP/1.1\r\nHost: x\r\n\r\n", healthy.path());
    assert_eq!(answer(&visit, head.as_bytes()).await, "HTTP/1.1 200 OK");
    // A client that hangs up in the middle of its request.
    TcpStream::connect(visit.origin.address()).await.unwrap().write_all(b"GET /pict").await.unwrap();
    assert_eq!(visit.get(healthy).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_an_error_with_a_hint() {
    let first = Origin::start(Catalogue::new(0, 7), 0).await.unwrap();
    let error = Origin::start(Catalogue::new(0, 7), first.address().port()).await.unwrap_err();
    let OriginError::Bind { address, .. } = &error;
    assert_eq!(*address, first.address());
    let expected = format!(
        "the demo origin cannot listen on {address}\nhint: another program uses this port; choose another with --port, or --port 0 for any free one"
    );
    assert_eq!(error.to_string(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_does_not_wait_for_stalled_responses() {
    let visit = Visit::new(100).await;
    let stalled = visit.catalogue.entries().iter().find(|entry| entry.fault() == Some(Fault::Stalled)).unwrap();
    let mut response = visit.get(stalled).await;
    assert!(response.chunk().await.unwrap().is_some());
    let (address, started) = (visit.origin.address(), Instant::now());
    visit.origin.stop().await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(response.chunk().await.is_err(), "the stalled response is cut off");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_stops_the_server() {
    let origin = Origin::start(Catalogue::new(0, 7), 0).await.unwrap();
    let address = origin.address();
    drop(origin);
    let gone = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the listener closes soon after the drop");
}
