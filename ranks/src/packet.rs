//! What ranks say to each other before they trust each other.
//!
//! ```text
//! FERRORNK │ length u32, little endian │ JSON
//! ```

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde::{Deserialize, Serialize};

use super::world::World;

/// Raised with every change of what ranks say to each other.
const VERSION: u32 = 2;
const MAGIC: &[u8; 8] = b"FERRORNK";
const HEAD: usize = MAGIC.len() + 4;
/// A stranger can make this process hold that much.
pub(super) const LONGEST_HELLO: usize = 4 << 10;
/// With the addresses of 100000 ranks.
pub(super) const LONGEST_WELCOME: usize = 16 << 20;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Packet {
    Hello(Hello),
    /// From rank 0, once all are there: where to find ranks 1, 2, ….
    Welcome {
        hello: Hello,
        addresses: Vec<SocketAddr>,
    },
    Refused {
        reason: String,
    },
}

/// Who speaks.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    version: u32,
    pub(super) rank: usize,
    size: usize,
    /// Where it listens for other ranks.
    pub(super) port: u16,
    /// Drawn by rank 0 for this meeting; 0 for who does not know it yet.
    pub(super) session: u64,
    secret: Option<String>,
}

impl Hello {
    pub(super) fn new(world: &World, port: u16, session: u64) -> Self {
        Self { version: VERSION, rank: world.rank, size: world.size, port, session, secret: world.secret.clone() }
    }

    /// Why it does not belong here, if it does not.
    pub(super) fn check(&self, world: &World, session: u64) -> Result<(), String> {
        let (own, other) = (world.secret.as_deref().unwrap_or_default(), self.secret.as_deref().unwrap_or_default());
        if self.version != VERSION {
            Err(format!(
                "versions of the protocol differ ({} and {VERSION}); start all ranks with one binary",
                self.version
            ))
        } else if !is_equal(own.as_bytes(), other.as_bytes()) {
            Err("the secrets differ; ranks of one run have one FERROTYPE_SECRET".to_owned())
        } else if self.size != world.size {
            Err(format!("the numbers of ranks differ: {} and {}", self.size, world.size))
        } else if self.rank >= world.size || self.rank == world.rank {
            Err(format!("rank {} is not one that can come to rank {} of {}", self.rank, world.rank, world.size))
        } else if self.session != session {
            Err("it belongs to another run".to_owned())
        } else {
            Ok(())
        }
    }
}

/// Takes as long for a wrong secret as for the right one, so that nobody finds it byte by byte.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}

pub(super) fn write(mut stream: &TcpStream, packet: &Packet) -> io::Result<()> {
    let payload = serde_json::to_vec(packet)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&payload);
    stream.write_all(&bytes)
}

/// A packet that comes bit by bit, from a stream that does not block.
pub(super) struct PacketReader {
    pub(super) stream: TcpStream,
    bytes: Vec<u8>,
    longest: usize,
}

impl PacketReader {
    pub(super) fn new(stream: TcpStream, longest: usize) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, bytes: Vec::new(), longest })
    }

    /// The packet, once it is complete. Not a byte beyond it is read.
    pub(super) fn poll(&mut self) -> io::Result<Option<Packet>> {
        loop {
            let missing = match self.bytes.get(..HEAD) {
                None => HEAD - self.bytes.len(),
                Some(head) => {
                    let whole = HEAD + self.length(head)?;
                    if self.bytes.len() == whole {
                        let payload = self.bytes.get(HEAD..).unwrap_or_default();
                        return serde_json::from_slice(payload).map(Some).map_err(Into::into);
                    }
                    whole - self.bytes.len()
                }
            };
            let mut buffer = [0; 4 << 10];
            let space = missing.min(buffer.len());
            match self.stream.read(buffer.get_mut(..space).unwrap_or_default()) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed")),
                Ok(count) => self.bytes.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn length(&self, head: &[u8]) -> io::Result<usize> {
        let length = head.strip_prefix(MAGIC).and_then(|length| length.first_chunk()).map(|l| u32::from_le_bytes(*l));
        let length = length.map(|length| length as usize).filter(|length| *length <= self.longest);
        length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "what came is not from a rank of a training"))
    }
}
