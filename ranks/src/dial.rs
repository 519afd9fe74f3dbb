//! How a rank other than 0 finds the rest; see [`join`](super::join).

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::entrance::Entrance;
use super::error::{RankError, ranks_in_words};
use super::join::{CONNECT, POLL, RETRY};
use super::mesh::Mesh;
use super::packet::{self, Hello, LONGEST_HELLO, LONGEST_WELCOME, Packet, PacketReader};
use super::shared::Shared;
use super::world::World;

/// All ranks are there: links among them take no longer.
const LINKING: Duration = Duration::from_secs(30);
/// By which other ranks outwait rank 0, which knows who is missing.
const PATIENCE: Duration = Duration::from_secs(5);
/// As long as the news may take that another rank failed, which is why this one did.
const NEWS: Duration = Duration::from_millis(800);

pub(super) fn join(world: &World, shared: Arc<Shared>) -> Result<Mesh, RankError> {
    let failed = |source| RankError::Listen { rank: world.rank, port: 0, source: Arc::new(source) };
    let mut entrance = Entrance::open(world, 0).map_err(failed)?;
    let port = entrance.port().map_err(failed)?;
    let Welcome { stream, session, addresses } = Master { world, port }.find(shared.options.join_timeout)?;
    let mesh = Mesh::start(shared)?;
    mesh.shared().attach(0, stream)?;
    let mut linking = Linking { world, session, shared: mesh.shared(), open: Vec::new() };
    if let Err(reason) = linking.run(&mut entrance, port, &addresses) {
        mesh.shared().wait(NEWS, |_| mesh.failure().is_some());
        return Err(mesh.fail(&reason));
    }
    Ok(mesh)
}

/// Rank 0, seen from another rank.
struct Master<'a> {
    world: &'a World,
    /// Where this rank listens.
    port: u16,
}

struct Welcome {
    stream: TcpStream,
    session: u64,
    /// Of ranks 1, 2, ….
    addresses: Vec<SocketAddr>,
}

enum Answer {
    Welcome(Welcome),
    Refused(String),
}

impl Master<'_> {
    fn find(&self, timeout: Duration) -> Result<Welcome, RankError> {
        let (world, deadline) = (self.world, Instant::now() + timeout);
        let address = || format!("{}:{}", world.master_address, world.master_port);
        loop {
            let error = match self.connect().and_then(|stream| self.ask(stream, deadline + PATIENCE)) {
                Ok(Answer::Welcome(welcome)) => return Ok(welcome),
                Ok(Answer::Refused(reason)) => {
                    return Err(RankError::Refused { rank: world.rank, address: address(), reason });
                }
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                let (rank, seconds, reason) = (world.rank, timeout.as_secs(), error.to_string());
                return Err(RankError::NoMaster { rank, address: address(), seconds, reason });
            }
            std::thread::sleep(RETRY);
        }
    }

    fn connect(&self) -> io::Result<TcpStream> {
        // Each time anew: a name may become known only when its machine is up.
        let name = self.world.master_address.trim_matches(['[', ']']);
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in (name, self.world.master_port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn ask(&self, stream: TcpStream, deadline: Instant) -> io::Result<Answer> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        packet::write(&stream, &Packet::Hello(Hello::new(self.world, self.port, 0)))?;
        let mut reader = PacketReader::new(stream, LONGEST_WELCOME)?;
        let packet = loop {
            match reader.poll()? {
                Some(packet) => break packet,
                None if Instant::now() >= deadline => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "it was reached, but gave no answer"));
                }
                None => std::thread::sleep(POLL),
            }
        };
        match packet {
            Packet::Refused { reason } => Ok(Answer::Refused(reason)),
            Packet::Hello(_) => Err(invalid("it greeted instead of answering".to_owned())),
            Packet::Welcome { hello, mut addresses } => {
                let session = hello.session;
                hello.check(self.world, session).map_err(invalid)?;
                if hello.rank != 0 || addresses.len() + 1 != self.world.size {
                    return Err(invalid("it is not rank 0 of these ranks".to_owned()));
                }
                // Ranks on rank 0's machine came to it by its loopback address, which is another machine's own one here.
                let master = reader.stream.peer_addr()?.ip().to_canonical();
                addresses.iter_mut().filter(|a| a.ip().is_loopback()).for_each(|address| address.set_ip(master));
                Ok(Answer::Welcome(Welcome { stream: reader.stream, session, addresses }))
            }
        }
    }
}

/// The ranks but 0 on their way to each other.
struct Linking<'a> {
    world: &'a World,
    session: u64,
    shared: &'a Arc<Shared>,
    /// Lower ranks that have yet to answer.
    open: Vec<(usize, PacketReader)>,
}

impl Linking<'_> {
    /// Or why not.
    fn run(&mut self, entrance: &mut Entrance, port: u16, addresses: &[SocketAddr]) -> Result<(), String> {
        let deadline = Instant::now() + LINKING;
        let own = self.world.rank;
        for (rank, address) in (1..own).zip(addresses) {
            let cannot = |error: io::Error| {
                format!(
                    "rank {own} cannot reach rank {rank} at {address} ({error}); ranks connect to each other on any port"
                )
            };
            self.open.push((rank, self.greet(*address, port, deadline).map_err(cannot)?));
        }
        loop {
            for guest in entrance.poll(self.world, self.session) {
                let rank = guest.hello.rank;
                if rank > own && self.shared.link(rank).is_none() {
                    let hello = Packet::Hello(Hello::new(self.world, port, self.session));
                    // Where this fails the rank is lost, which its reader notices.
                    _ = packet::write(&guest.stream, &hello);
                    self.shared.attach(rank, guest.stream).map_err(|error| error.to_string())?;
                }
            }
            self.hear()?;
            let missing: Vec<usize> =
                (0..self.world.size).filter(|rank| *rank != own && self.shared.link(*rank).is_none()).collect();
            if missing.is_empty() {
                return Ok(());
            }
            if let Some(failure) = self.shared.failure() {
                return Err(failure.to_string());
            }
            if Instant::now() >= deadline {
                return Err(format!("{} did not link up with it", ranks_in_words(&missing)));
            }
            std::thread::sleep(POLL);
        }
    }

    fn greet(&self, address: SocketAddr, port: u16, deadline: Instant) -> io::Result<PacketReader> {
        loop {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(stream) => {
                    packet::write(&stream, &Packet::Hello(Hello::new(self.world, port, self.session)))?;
                    return PacketReader::new(stream, LONGEST_HELLO);
                }
                Err(error) if Instant::now() >= deadline || self.shared.failure().is_some() => return Err(error),
                Err(_not_yet) => std::thread::sleep(RETRY),
            }
        }
    }

    /// Lower ranks' answers.
    fn hear(&mut self) -> Result<(), String> {
        let mut silent = Vec::new();
        for (rank, mut reader) in std::mem::take(&mut self.open) {
            match reader.poll() {
                Ok(None) => silent.push((rank, reader)),
                Ok(Some(Packet::Hello(hello))) if hello.rank == rank => {
                    hello.check(self.world, self.session)?;
                    self.shared.attach(rank, reader.stream).map_err(|error| error.to_string())?;
                }
                Ok(Some(Packet::Refused { reason })) => return Err(format!("rank {rank} sent it away: {reason}")),
                Ok(Some(_)) => return Err(format!("another than rank {rank} answered in its place")),
                Err(error) => return Err(format!("rank {rank} gave no answer ({error})")),
            }
        }
        self.open = silent;
        Ok(())
    }
}
