//! Who is let in, who is not, and who never came.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod rank_processes;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rank_processes::worlds;
use ranks::{Mesh, MeshOptions, RankError, World};

fn options(seconds: u64) -> MeshOptions {
    MeshOptions { join_timeout: Duration::from_secs(seconds), ..MeshOptions::default() }
}

fn connect(port: u16) -> TcpStream {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What is answered to these bytes until the connection closes.
fn answer(port: u16, bytes: &[u8]) -> String {
    let mut stream = connect(port);
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // Closed without having been read, it is reset.
    _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn packet(length: u32, json: &str) -> Vec<u8> {
    [b"FERRORNK", &length.to_le_bytes()[..], json.as_bytes()].concat()
}

/// A rank's hello.
fn hello(secret: &str, rank: usize, size: usize, version: u32) -> Vec<u8> {
    let json = format!(
        r#"{{"Hello":{{"version":{version},"rank":{rank},"size":{size},"port":9,"session":0,"secret":"{secret}"}}}}"#
    );
    packet(json.len() as u32, &json)
}

#[test]
fn one_that_is_lost_while_they_join_is_named() {
    let worlds = worlds(3);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| Mesh::join(&worlds[0], options(20)).unwrap());
        let second = scope.spawn(|| (Mesh::join(&worlds[1], options(20)).unwrap_err(), Instant::now()));
        let mut third = connect(worlds[0].master_port);
        third.write_all(&hello("of this test", 2, 3, 2)).unwrap();
        // The welcome has begun, so all are there.
        third.read_exact(&mut [0; 8]).unwrap();
        let start = Instant::now();
        drop(third);
        let (error, end) = second.join().unwrap();
        let first = first.join().unwrap().receive(1, 0).unwrap_err();
        assert!(matches!(error, RankError::PeerLost { rank: 2, .. }), "{error}");
        assert!(matches!(first, RankError::PeerLost { rank: 2, .. }), "{first}");
        assert!(end - start < Duration::from_secs(2), "{:?}", end - start);
    });
}

#[test]
fn strangers_are_refused_and_do_no_harm() {
    let worlds = worlds(3);
    let port = worlds[0].master_port;
    std::thread::scope(|scope| {
        let first = scope.spawn(|| Mesh::join(&worlds[0], options(20)));
        // Some that stay and say nothing, or not all of it.
        let _silent: Vec<TcpStream> = (0..20).map(|_| connect(port)).collect();
        let mut slow = connect(port);
        slow.write_all(b"FERRO").unwrap();
        assert_eq!(answer(port, b"GET / HTTP/1.1\r\n\r\n"), "");
        assert_eq!(answer(port, &vec![0xff; 100_000]), "");
        assert_eq!(answer(port, &packet(u32::MAX, "")), "", "a huge frame");
        assert_eq!(answer(port, &packet(3, "{}}")), "");
        for (bytes, words) in [
            (hello("of another test", 1, 3, 2), "the secrets differ"),
            (hello("", 1, 3, 2), "the secrets differ"),
            (hello("of this test", 1, 4, 2), "numbers of ranks differ: 4 and 3"),
            (hello("of this test", 3, 3, 2), "rank 3 is not one that can come"),
            (hello("of this test", 0, 3, 2), "rank 0 is not one that can come"),
            (hello("of this test", 1, 3, 1), "versions of the protocol differ (1 and 2)"),
        ] {
            let answer = answer(port, &bytes);
            assert!(answer.contains(words), "{words}: {answer}");
        }
        let other = World { secret: Some("another".to_owned()), ..worlds[1].clone() };
        let error = Mesh::join(&other, options(20)).unwrap_err().to_string();
        assert!(error.contains("sends rank 1 away: the secrets differ"), "{error}");
        // One that came and went, and comes again.
        drop(connect(port).write_all(&hello("of this test", 1, 3, 2)));
        std::thread::sleep(Duration::from_millis(100));
        let second = scope.spawn(|| Mesh::join(&worlds[1], options(20)));
        std::thread::sleep(Duration::from_millis(100));
        let double = Mesh::join(&worlds[1], options(20)).unwrap_err().to_string();
        assert!(double.contains("there is a rank 1 already"), "{double}");
        let third = Mesh::join(&worlds[2], options(20)).unwrap();
        let (first, second) = (first.join().unwrap().unwrap(), second.join().unwrap().unwrap());
        third.send(1, 0, b"here").unwrap();
        assert_eq!(second.receive(2, 0).unwrap(), b"here");
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "nobody is let in any more");
        assert!(first.failure().is_none());
    });
}

#[test]
fn one_that_never_comes_is_named() {
    let worlds = worlds(5);
    std::thread::scope(|scope| {
        let threads = [&worlds[0], &worlds[1], &worlds[3]]
            .map(|world| scope.spawn(|| Mesh::join(world, options(1)).unwrap_err()));
        for error in threads.map(|thread| thread.join().unwrap().to_string()) {
            assert!(error.contains("ranks 2 and 4 of 5 did not come to rank 0"), "{error}");
        }
    });
}

#[test]
fn rank_0_that_never_comes_is_named() {
    let start = Instant::now();
    let error = Mesh::join(&worlds(2)[1], options(1)).unwrap_err();
    assert!(matches!(error, RankError::NoMaster { rank: 1, .. }), "{error}");
    assert!(error.to_string().contains("Connection refused") && start.elapsed() < Duration::from_secs(5), "{error}");
}

#[test]
fn a_port_that_is_in_use_is_named() {
    let worlds = worlds(2);
    let _other = std::net::TcpListener::bind(("127.0.0.1", worlds[0].master_port)).unwrap();
    let error = Mesh::join(&worlds[0], options(1)).unwrap_err();
    assert!(matches!(&error, RankError::Listen { port, .. } if *port == worlds[0].master_port), "{error}");
}
