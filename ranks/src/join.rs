//! How ranks find each other.
//!
//! ```text
//! each rank ── hello ──────────────────► rank 0, at the address that all know
//! each rank ◄─ welcome, all addresses ── rank 0, once all are there
//! each rank ── hello ──────────────────► each lower rank
//! each rank ◄─ hello ─────────────────── each lower rank
//! ```
//!
//! With the welcome the mesh begins to watch over its ranks: one that fails to reach another says so to all.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::dial;
use super::entrance::{Entrance, Guest, refuse};
use super::error::RankError;
use super::mesh::{Mesh, MeshOptions};
use super::packet::{self, Hello, Packet};
use super::shared::Shared;
use super::world::World;

pub(super) const POLL: Duration = Duration::from_millis(5);
pub(super) const RETRY: Duration = Duration::from_millis(200);
/// For one try to connect, or to answer.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// A port of a run that just ended may still be in use.
const PORT_IN_USE: Duration = Duration::from_secs(5);

pub(super) fn join(world: &World, options: MeshOptions) -> Result<Mesh, RankError> {
    let shared = Arc::new(Shared::new(world.rank, world.size, options));
    if world.size <= 1 {
        return Mesh::start(shared);
    }
    if world.rank == 0 { gather(world, shared) } else { dial::join(world, shared) }
}

/// Rank 0's part.
fn gather(world: &World, shared: Arc<Shared>) -> Result<Mesh, RankError> {
    let timeout = shared.options.join_timeout;
    let mut entrance = listen(world)?;
    let deadline = Instant::now() + timeout;
    let mut guests: BTreeMap<usize, Guest> = BTreeMap::new();
    while guests.len() + 1 < world.size {
        // One that is gone again may come again.
        guests.retain(|_, guest| !is_closed(&guest.stream));
        for guest in entrance.poll(world, 0) {
            match guests.entry(guest.hello.rank) {
                Entry::Vacant(entry) => _ = entry.insert(guest),
                Entry::Occupied(entry) => refuse(&guest.stream, format!("there is a rank {} already", entry.key())),
            }
        }
        if Instant::now() >= deadline {
            let missing = (1..world.size).filter(|rank| !guests.contains_key(rank)).collect();
            let (size, port, seconds) = (world.size, world.master_port, timeout.as_secs());
            let error = RankError::NeverCame { ranks: missing, size, port, seconds };
            for guest in guests.values() {
                refuse(&guest.stream, error.to_string());
            }
            return Err(error);
        }
        std::thread::sleep(POLL);
    }
    drop(entrance);
    let session = RandomState::new().hash_one(Instant::now()).max(1);
    let addresses: Vec<_> = guests.values().map(|guest| SocketAddr::new(guest.from, guest.hello.port)).collect();
    let mesh = Mesh::start(shared)?;
    for (rank, Guest { stream, .. }) in guests {
        let welcome = Packet::Welcome { hello: Hello::new(world, 0, session), addresses: addresses.clone() };
        // Where this fails the rank is lost, which its reader notices.
        _ = stream.set_nonblocking(false).and_then(|()| stream.set_write_timeout(Some(CONNECT)));
        _ = packet::write(&stream, &welcome);
        if let Err(error) = mesh.shared().attach(rank, stream) {
            mesh.fail(&error.to_string());
            return Err(error);
        }
    }
    Ok(mesh)
}

fn listen(world: &World) -> Result<Entrance, RankError> {
    let deadline = Instant::now() + PORT_IN_USE;
    loop {
        match Entrance::open(world, world.master_port) {
            Ok(entrance) => return Ok(entrance),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(RETRY);
            }
            Err(source) => {
                return Err(RankError::Listen { rank: 0, port: world.master_port, source: Arc::new(source) });
            }
        }
    }
}

fn is_closed(stream: &TcpStream) -> bool {
    // It does not block, and nobody who waits for a welcome has more to say.
    !matches!(stream.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}
