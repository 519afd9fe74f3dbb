//! Where ranks are let in, and nobody else.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::packet::{self, Hello, LONGEST_HELLO, Packet, PacketReader};
use super::world::World;

/// Who has not said who it is by then is no rank.
const LONGEST_SILENCE: Duration = Duration::from_secs(10);
/// Connections that have not said who they are; the oldest is closed for another.
const MOST_STRANGERS: usize = 512;

pub(super) struct Entrance {
    listener: TcpListener,
    /// Whose hello is yet to come.
    waiting: Vec<Stranger>,
}

struct Stranger {
    reader: PacketReader,
    from: IpAddr,
    since: Instant,
}

/// A rank that may come in.
pub(super) struct Guest {
    /// Its address as it is seen from here.
    pub(super) from: IpAddr,
    pub(super) stream: TcpStream,
    pub(super) hello: Hello,
}

impl Entrance {
    /// Listens on all of the machine's addresses; only for the machine itself where the world meets at its loopback address.
    /// A port of 0 is any one that is free.
    pub(super) fn open(world: &World, port: u16) -> io::Result<Self> {
        let literal = world.master_address.trim_matches(['[', ']']).parse::<IpAddr>().ok();
        let listener = match literal.filter(IpAddr::is_loopback) {
            Some(loopback) => TcpListener::bind(SocketAddr::new(loopback, port))?,
            // Without IPv6 there is the other one.
            None => TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|error| match error.kind() {
                io::ErrorKind::AddrInUse => Err(error),
                _ => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
            })?,
        };
        listener.set_nonblocking(true)?;
        Ok(Self { listener, waiting: Vec::new() })
    }

    pub(super) fn port(&self) -> io::Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// Who has come since, with a hello that is right. Others are told why they are not let in, as far as they listen.
    pub(super) fn poll(&mut self, world: &World, session: u64) -> Vec<Guest> {
        // A connection that broke before it was accepted is reported here; there is no other kind of error to expect.
        while let Ok((stream, address)) = self.listener.accept() {
            if self.waiting.len() >= MOST_STRANGERS {
                self.waiting.remove(0);
            }
            if let Ok(reader) = PacketReader::new(stream, LONGEST_HELLO) {
                let from = address.ip().to_canonical();
                self.waiting.push(Stranger { reader, from, since: Instant::now() });
            }
        }
        let mut guests = Vec::new();
        let mut index = 0;
        while let Some(stranger) = self.waiting.get_mut(index) {
            let packet = match stranger.reader.poll() {
                Ok(None) if stranger.since.elapsed() < LONGEST_SILENCE => {
                    index += 1;
                    continue;
                }
                Ok(packet) => packet,
                Err(_no_rank) => None,
            };
            let Stranger { reader, from, .. } = self.waiting.remove(index);
            let Some(Packet::Hello(hello)) = packet else { continue };
            match hello.check(world, session) {
                Ok(()) => guests.push(Guest { from, stream: reader.stream, hello }),
                Err(reason) => refuse(&reader.stream, reason),
            }
        }
        guests
    }
}

/// Says why. Whoever does not hear it sees the connection close.
pub(super) fn refuse(stream: &TcpStream, reason: String) {
    _ = packet::write(stream, &Packet::Refused { reason });
}
