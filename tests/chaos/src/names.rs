//! The name server: a few kinds of names, and what it says of them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::origin::HERE;
use crate::rows::TRAP;
use crate::web::Web;

const A: u16 = 1;
const AAAA: u16 = 28;
/// The class of the internet.
const IN: u16 = 1;
const HEADER: usize = 12;
/// Whoever asks again is to ask us again.
const TIME_TO_LIVE: u32 = 0;

/// Private addresses that names lead to. The last ones have no IPv4 address.
const PRIVATE: [IpAddr; 6] = [
    IpAddr::V4(TRAP),
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7)),
];

/// How a question is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Code {
    Fine = 0,
    FormatError = 1,
    ServerFailure = 2,
    NoSuchName = 3,
}

/// What was asked.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    /// In lower case.
    name: String,
    kind: u16,
    /// Where it ends in its message.
    end: usize,
}

/// What it remembers.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Of rows whose address changes, the message that asked first. Sent once more, it is answered as before.
    first: Mutex<HashMap<usize, u16>>,
}

impl Names {
    pub(crate) fn reset(&self) {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The answer to a message; `None` where nothing is said.
    pub(crate) fn answer(&self, message: &[u8], web: &Web) -> Option<Vec<u8>> {
        let id = u16::from_be_bytes(*message.first_chunk()?);
        // An answer is none of our business.
        if message.len() < HEADER || message.get(2).is_none_or(|flags| flags & 0x80 != 0) {
            return None;
        }
        let Some(question) = question(message) else {
            return Some(response(message, HEADER, Code::FormatError, &[]));
        };
        web.counts.question(&question.name, question.kind == AAAA);
        let (code, mut addresses) = match row(&question.name) {
            Some(("d", _)) => (Code::Fine, vec![IpAddr::V4(HERE)]),
            Some(("servfail", _)) => (Code::ServerFailure, Vec::new()),
            Some(("silent", _)) => return None,
            Some(("private", row)) => (Code::Fine, vec![PRIVATE[row % PRIVATE.len()]]),
            Some(("mixed", row)) if row.is_multiple_of(2) => (Code::Fine, vec![IpAddr::V4(HERE), IpAddr::V4(TRAP)]),
            Some(("mixed", _)) => (Code::Fine, vec![IpAddr::V4(TRAP), IpAddr::V4(HERE)]),
            Some(("rebind", row)) => {
                let is_first = question.kind != A || {
                    let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
                    *first.entry(row).or_insert(id) == id
                };
                (Code::Fine, vec![IpAddr::V4(if is_first { HERE } else { TRAP })])
            }
            _ => (Code::NoSuchName, Vec::new()),
        };
        addresses.retain(|address| question.kind == if address.is_ipv4() { A } else { AAAA });
        Some(response(message, question.end, code, &addresses))
    }
}

/// The kind of a row's name, and the row.
fn row(name: &str) -> Option<(&str, usize)> {
    let (kind, row) = name.strip_suffix(".test")?.rsplit_once('-')?;
    Some((kind, row.parse().ok()?))
}

/// The only question of a message.
fn question(message: &[u8]) -> Option<Question> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut name = String::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        // Nobody compresses the first name of a message.
        let label = message.get(at..at + length).filter(|_| length < 64)?;
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|&byte| char::from(byte.to_ascii_lowercase())));
        at += length;
    }
    let kind = u16::from_be_bytes(*message.get(at..)?.first_chunk()?);
    let class = u16::from_be_bytes(*message.get(at + 2..)?.first_chunk()?);
    (class == IN).then_some(Question { name, kind, end: at + 4 })
}

/// An answer to the question that ends at `end`.
fn response(message: &[u8], end: usize, code: Code, addresses: &[IpAddr]) -> Vec<u8> {
    let mut bytes = message.get(..end).unwrap_or_default().to_vec();
    let recursion_desired = message.get(2).map_or(0, |flags| flags & 0x01);
    let questions = u16::from(end > HEADER);
    // An answer, with authority; recursion can be had.
    let flags = [0x84 | recursion_desired, 0x80 | code as u8];
    let counts = [questions, addresses.len() as u16, 0, 0].map(u16::to_be_bytes).concat();
    if let Some(header) = bytes.get_mut(2..HEADER) {
        header.copy_from_slice(&[&flags[..], &counts].concat());
    }
    for address in addresses {
        let (kind, octets) = match address {
            IpAddr::V4(v4) => (A, v4.octets().to_vec()),
            IpAddr::V6(v6) => (AAAA, v6.octets().to_vec()),
        };
        // The name is that of the question.
        bytes.extend([0xc0, HEADER as u8]);
        bytes.extend([kind, IN].map(u16::to_be_bytes).concat());
        bytes.extend(TIME_TO_LIVE.to_be_bytes());
        bytes.extend((octets.len() as u16).to_be_bytes());
        bytes.extend(octets);
    }
    bytes
}

/// Answers whatever comes, for ever.
pub(crate) async fn serve(socket: UdpSocket, web: Arc<Web>) {
    let mut message = [0; 2048];
    loop {
        // An error is about a message that somebody did not want.
        let Ok((length, from)) = socket.recv_from(&mut message).await else { continue };
        if let Some(answer) = web.names.answer(message.get(..length).unwrap_or_default(), &web) {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

/// The same over TCP, to which clients turn when they hear nothing. Ends with the connection.
pub(crate) async fn serve_tcp(mut socket: TcpStream, web: &Web) {
    while let Ok(length) = socket.read_u16().await {
        let mut message = vec![0; usize::from(length)];
        if socket.read_exact(&mut message).await.is_err() {
            return;
        }
        if let Some(answer) = web.names.answer(&message, web) {
            let framed = [&(answer.len() as u16).to_be_bytes()[..], &answer].concat();
            if socket.write_all(&framed).await.is_err() {
                return;
            }
        }
    }
}
