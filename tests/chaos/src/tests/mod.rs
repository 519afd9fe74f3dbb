//! What a client that knows nothing of all this sees.

mod plain;
mod secure;
mod whole;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::rows::{host, path};
use crate::{Behaviour, Mix, Options, Origin};

/// An origin of one row for each of `behaviours`, in their order.
fn origin_of(behaviours: &[Behaviour]) -> Origin {
    let mix = Mix::Of(behaviours.iter().map(|&behaviour| (behaviour, 1)).collect());
    Origin::start(Options { urls: behaviours.len(), mix, ..Options::default() }).unwrap()
}

/// The name of a row's host.
fn host_of(origin: &Origin, row: usize) -> String {
    host(origin.rows()[row].behaviour.site(), row, Options::default().hosts)
}

fn address_of(origin: &Origin, host: &str) -> SocketAddr {
    origin.connect_to()[host]
}

fn target_of(origin: &Origin, row: usize) -> String {
    format!("{}/photo.jpg", path(origin.rows()[row].behaviour, row))
}

/// What came back, as far as it came.
#[derive(Debug)]
struct Got {
    head: String,
    body: Vec<u8>,
    /// How it ended, if not well.
    error: Option<ErrorKind>,
}

impl Got {
    fn new(bytes: &[u8], error: Option<ErrorKind>) -> Self {
        let end = bytes.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |at| at + 4);
        let (head, body) = bytes.split_at(end);
        Self { head: String::from_utf8(head.to_vec()).unwrap(), body: body.to_vec(), error }
    }

    fn status(&self) -> u16 {
        self.head.split(' ').nth(1).map_or(0, |status| status.parse().unwrap_or(0))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let named = |line: &'_ str| line.split_once(": ").is_some_and(|(found, _)| found.eq_ignore_ascii_case(name));
        self.head.lines().find(|line| named(line)).and_then(|line| line.split_once(": ")).map(|(_, value)| value)
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    stream
}

fn request(host: &str, target: &str, more: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n").into_bytes()
}

/// Asks for one thing on a connection of its own, and reads to its end, or for so many bytes.
fn get(address: SocketAddr, host: &str, target: &str) -> Got {
    const MOST: u64 = 1 << 22;
    let mut stream = connect(address);
    stream.write_all(&request(host, target, "Connection: close\r\n")).unwrap();
    let mut bytes = Vec::new();
    let error = Read::by_ref(&mut stream).take(MOST).read_to_end(&mut bytes).err().map(|error| error.kind());
    Got::new(&bytes, error)
}

fn get_row(origin: &Origin, row: usize) -> Got {
    let host = host_of(origin, row);
    get(address_of(origin, &host), &host, &target_of(origin, row))
}
