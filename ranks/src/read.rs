//! Reads one link to its end.

use std::io::{BufReader, Read};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};

use super::frame::{Arrival, Control, End, Frames};
use super::link::Link;
use super::shared::Shared;
use super::verdict::{Lost, Sign};

/// Every byte is a sign of life: a long message under way leaves no room for heartbeats.
struct Heard<'a> {
    stream: TcpStream,
    at: &'a AtomicU64,
    shared: &'a Shared,
}

impl Read for Heard<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.stream.read(buffer)?;
        if count > 0 {
            // Not backwards, should the watch have set it meanwhile.
            self.at.fetch_max(self.shared.clock(), Ordering::AcqRel);
        }
        Ok(count)
    }
}

pub(super) fn run(shared: &Shared, rank: usize, stream: TcpStream) {
    let (Some(link), Ok(inbox)) = (shared.link(rank), shared.inbox(rank)) else { return };
    let input = BufReader::with_capacity(32 << 10, Heard { stream, at: &link.heard_at, shared });
    let mut frames = Frames::new(input, shared.options.longest_message);
    let end = loop {
        // Nobody asks for messages any more, but they are read, so that closing the socket does not throw away what this rank
        // said last.
        if shared.stop.load(Ordering::Acquire) {
            drain(frames.into_inner());
            break End::Closed;
        }
        match frames.next() {
            Ok(Arrival::Message { channel, bytes }) => inbox.put(channel, bytes),
            Ok(Arrival::Control(control)) => heed(shared, rank, link, control),
            Err(end) => break end,
        }
    };
    link.has_ended.store(true, Ordering::Release);
    match end {
        End::Closed => {
            shared.suspect(
                rank,
                Sign::Closed,
                "its connection was closed without a goodbye; it ended, crashed or was killed".into(),
            );
        }
        End::Broken(error) => {
            shared.suspect(
                rank,
                Sign::Closed,
                format!("its connection broke ({error}); it ended, crashed or was killed"),
            );
        }
        End::Nonsense(what) => shared.judge(&Lost { rank, reason: what }),
    }
    shared.wake();
}

fn heed(shared: &Shared, rank: usize, link: &Link, control: Control) {
    match control {
        Control::Heartbeat => {}
        Control::Goodbye => {
            link.has_left.store(true, Ordering::Release);
            // Its own end of the connection waits for that.
            link.shut(Shutdown::Write);
            shared.wake();
        }
        Control::Lost { rank, reason } => shared.judge(&Lost { rank, reason }),
        // That it failed each rank says only of itself, and nothing else.
        Control::Suspect { rank: suspect, sign, .. } if (suspect == rank) != (sign == Sign::Failed) => {}
        Control::Suspect { rank, sign, reason } => shared.suspect_reported(rank, sign, &reason),
    }
}

fn drain(mut input: impl Read) {
    let mut scratch = vec![0; 64 << 10];
    loop {
        match input.read(&mut scratch) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
