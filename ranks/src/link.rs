//! The connection to one other rank.

use std::io::{self, IoSlice, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, TryLockError};

use socket2::SockRef;

use super::frame::{HEADER, PIECE, header};
use super::inbox::lock;

/// Beyond that nothing is put behind a control frame that does not get out.
const MOST_WAITING: usize = 64 << 10;

pub(super) struct Link {
    pub(super) stream: TcpStream,
    /// Held for as long as a message takes, so that messages do not mix.
    message: Mutex<()>,
    /// Held for as long as a piece or control frame takes. What is left of control frames that did not get out at once.
    output: Mutex<Vec<u8>>,
    /// When the last byte came, in milliseconds of the mesh's clock.
    pub(super) heard_at: AtomicU64,
    /// It said goodbye.
    pub(super) has_left: AtomicBool,
    /// Nothing more comes.
    pub(super) has_ended: AtomicBool,
}

/// What became of a control frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    Sent,
    /// Behind what the socket does not take at present.
    Waits,
    /// A piece is under way, the frame is not.
    Busy,
    Broken,
}

impl Put {
    /// Of a frame that is in line already: a piece that goes before it is no reason to put it there again.
    pub(super) fn when_in_line(self) -> Self {
        if self == Self::Busy { Self::Waits } else { self }
    }
}

/// Why a message was not sent.
#[derive(Debug)]
pub(super) enum Unsent {
    /// It was told to stop.
    Stopped,
    Broken(io::Error),
}

impl Link {
    pub(super) fn new(stream: TcpStream, now: u64) -> Self {
        Self {
            stream,
            message: Mutex::default(),
            output: Mutex::default(),
            heard_at: AtomicU64::new(now),
            has_left: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
        }
    }

    /// Still has something to say, as far as is known.
    pub(super) fn is_live(&self) -> bool {
        !self.has_left.load(Ordering::Acquire) && !self.has_ended.load(Ordering::Acquire)
    }

    /// Sends the parts as one message. Blocks for as long as the socket takes nothing, until it is shut down.
    pub(super) fn send(&self, channel: u32, parts: &[&[u8]], stop: &AtomicBool) -> Result<(), Unsent> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let _one_message = lock(&self.message);
        let mut rest = Parts { message: parts, first: 0, offset: 0 };
        let mut left = length;
        loop {
            if stop.load(Ordering::Acquire) {
                return Err(Unsent::Stopped);
            }
            let piece = left.min(PIECE);
            let header: [u8; HEADER] = header(channel, piece, length as u64);
            let mut slices = vec![IoSlice::new(&header)];
            rest.take(piece, &mut slices);
            let mut output = lock(&self.output);
            if !output.is_empty() {
                (&self.stream).write_all(&output).map_err(Unsent::Broken)?;
                output.clear();
            }
            write_all(&self.stream, &mut slices).map_err(Unsent::Broken)?;
            left -= piece;
            if left == 0 {
                return Ok(());
            }
        }
    }

    /// Never blocks.
    pub(super) fn put(&self, frame: &[u8]) -> Put {
        let Some(mut output) = self.try_output() else { return Put::Busy };
        if output.len() < MOST_WAITING {
            output.extend_from_slice(frame);
        }
        self.push(&mut output)
    }

    /// As [`put`](Self::put), of what is still to be sent; with nothing that waits it is not a byte.
    pub(super) fn flush(&self) -> Put {
        self.try_output().map_or(Put::Busy, |mut output| self.push(&mut output))
    }

    fn try_output(&self) -> Option<std::sync::MutexGuard<'_, Vec<u8>>> {
        match self.output.try_lock() {
            Ok(output) => Some(output),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn push(&self, output: &mut Vec<u8>) -> Put {
        while !output.is_empty() {
            match SockRef::from(&self.stream).send_with_flags(output, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) {
                Ok(0) => return Put::Waits,
                Ok(count) => _ = output.drain(..count.min(output.len())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Put::Waits,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_broken) => return Put::Broken,
            }
        }
        Put::Sent
    }

    /// Of what is shut down already it is no matter.
    pub(super) fn shut(&self, how: Shutdown) {
        _ = self.stream.shutdown(how);
    }
}

/// What is left of a message.
struct Parts<'a> {
    message: &'a [&'a [u8]],
    first: usize,
    offset: usize,
}

impl<'a> Parts<'a> {
    /// The next `count` bytes.
    fn take<'b>(&mut self, mut count: usize, slices: &mut Vec<IoSlice<'b>>)
    where
        'a: 'b,
    {
        while count > 0
            && let Some(part) = self.message.get(self.first)
        {
            let rest = part.get(self.offset..).unwrap_or_default();
            let taken = rest.get(..count.min(rest.len())).unwrap_or_default();
            if !taken.is_empty() {
                slices.push(IoSlice::new(taken));
            }
            count -= taken.len();
            self.offset += taken.len();
            if self.offset == part.len() {
                self.first += 1;
                self.offset = 0;
            }
        }
    }
}

fn write_all(mut stream: &TcpStream, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !slices.is_empty() {
        match stream.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut slices, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_cut_into_pieces() {
        let parts: [&[u8]; 4] = [b"abc", b"", b"defgh", b"i"];
        let mut rest = Parts { message: &parts, first: 0, offset: 0 };
        let pieces: Vec<Vec<u8>> = [4, 1, 4, 2]
            .into_iter()
            .map(|count| {
                let mut slices = Vec::new();
                rest.take(count, &mut slices);
                slices.iter().flat_map(|slice| slice.to_vec()).collect()
            })
            .collect();
        assert_eq!(pieces, [&b"abcd"[..], b"e", b"fghi", b""]);
    }
}
