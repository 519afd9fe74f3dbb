//! What goes over a link: messages in pieces, and between the pieces what keeps the ranks informed of each other.
//!
//! ```text
//! channel u32 │ piece u32 │ length u64 │ piece bytes        (little endian)
//! ```
//!
//! `length` is the whole message's, so that its memory is taken once. A message of several pieces is not interrupted by another
//! message, but may be by control frames: else a rank that sends for long could not say what happened meanwhile.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use super::verdict::Sign;

pub(super) const HEADER: usize = 16;
/// The longest piece. A link is busy for no longer than one takes, which is about a millisecond at 1 GB/s.
pub(super) const PIECE: usize = 1 << 20;
/// Channels from here on are not for messages.
pub(super) const RESERVED: u32 = 0xffff_ff00;
const CONTROL: u32 = u32::MAX;
const LONGEST_CONTROL: usize = 16 << 10;
/// Of a reason, in characters; so that with its escapes it fits a control frame.
const LONGEST_REASON: usize = 1000;

/// What ranks tell each other about themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Control {
    Heartbeat,
    /// Nothing comes after it.
    Goodbye,
    /// This rank was lost first, and everyone is to end with that.
    Lost {
        rank: usize,
        reason: String,
    },
    /// The sender has lost this rank; the receiver is to say which one was first.
    Suspect {
        rank: usize,
        sign: Sign,
        reason: String,
    },
}

impl Control {
    pub(super) fn frame(&self) -> Vec<u8> {
        // Such an enum of numbers and text can always be written.
        let payload = serde_json::to_vec(self).unwrap_or_default();
        let mut frame = header(CONTROL, payload.len(), payload.len() as u64).to_vec();
        frame.extend_from_slice(&payload);
        frame
    }
}

/// On one line, and not too long.
pub(super) fn shorten(reason: &str) -> String {
    let mut short: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_REASON).collect();
    if reason.chars().nth(LONGEST_REASON).is_some() {
        short.push('…');
    }
    short
}

pub(super) fn header(channel: u32, piece: usize, length: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let (first, rest) = header.split_at_mut(4);
    let (second, third) = rest.split_at_mut(4);
    first.copy_from_slice(&channel.to_le_bytes());
    second.copy_from_slice(&(piece as u32).to_le_bytes());
    third.copy_from_slice(&length.to_le_bytes());
    header
}

/// What a link brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    Message { channel: u32, bytes: Vec<u8> },
    Control(Control),
}

/// Why nothing more comes.
#[derive(Debug)]
pub(super) enum End {
    /// Between frames.
    Closed,
    Broken(io::Error),
    /// What came is no frame.
    Nonsense(String),
}

/// Puts the pieces together.
pub(super) struct Frames<R> {
    input: R,
    limit: u64,
    message: Option<Unfinished>,
}

struct Unfinished {
    channel: u32,
    bytes: Vec<u8>,
    filled: usize,
}

impl<R: Read> Frames<R> {
    /// No message may be longer than `limit`: memory for it is taken only afterwards.
    pub(super) fn new(input: R, limit: u64) -> Self {
        Self { input, limit, message: None }
    }

    pub(super) fn into_inner(self) -> R {
        self.input
    }

    /// The next message or control frame that is complete.
    pub(super) fn next(&mut self) -> Result<Arrival, End> {
        loop {
            let (channel, piece, length) = self.header()?;
            if channel == CONTROL {
                return self.control(piece, length);
            }
            if let Some(bytes) = self.piece(channel, piece, length)? {
                return Ok(Arrival::Message { channel, bytes });
            }
        }
    }

    fn header(&mut self) -> Result<(u32, usize, u64), End> {
        let mut header = [0; HEADER];
        let first = loop {
            match self.input.read(&mut header) {
                Ok(0) => return Err(if self.message.is_some() { broken_off() } else { End::Closed }),
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(End::Broken(error)),
            }
        };
        self.input.read_exact(header.get_mut(first..).unwrap_or_default()).map_err(End::Broken)?;
        let (channel, rest) = header.split_first_chunk().unwrap_or((&[0; 4], &[]));
        let (piece, rest) = rest.split_first_chunk().unwrap_or((&[0; 4], &[]));
        let length = rest.first_chunk().copied().unwrap_or_default();
        Ok((u32::from_le_bytes(*channel), u32::from_le_bytes(*piece) as usize, u64::from_le_bytes(length)))
    }

    fn control(&mut self, piece: usize, length: u64) -> Result<Arrival, End> {
        if piece > LONGEST_CONTROL || length != piece as u64 {
            return Err(End::Nonsense(format!("it sent a control frame of {length} bytes")));
        }
        let mut payload = vec![0; piece];
        self.input.read_exact(&mut payload).map_err(End::Broken)?;
        let control = serde_json::from_slice(&payload);
        control
            .map(Arrival::Control)
            .map_err(|error| End::Nonsense(format!("it sent an unknown control frame ({error})")))
    }

    fn piece(&mut self, channel: u32, piece: usize, length: u64) -> Result<Option<Vec<u8>>, End> {
        let nonsense = |what: String| Err(End::Nonsense(what));
        if channel >= RESERVED {
            return nonsense(format!("it sent a message on the reserved channel {channel}"));
        }
        let message = match &mut self.message {
            Some(message) if message.channel == channel && message.bytes.len() as u64 == length => message,
            Some(_) => return nonsense("it sent a message within another one".to_owned()),
            None if length > self.limit => {
                return nonsense(format!("it sent a message of {length} bytes, more than the limit of {}", self.limit));
            }
            None => self.message.insert(Unfinished { channel, bytes: vec![0; length as usize], filled: 0 }),
        };
        let rest = message.bytes.get_mut(message.filled..).unwrap_or_default();
        if piece > PIECE || piece > rest.len() || (piece == 0 && !rest.is_empty()) {
            return nonsense(format!("it sent a piece of {piece} bytes where {} are left", rest.len()));
        }
        self.input.read_exact(rest.get_mut(..piece).unwrap_or_default()).map_err(End::Broken)?;
        message.filled += piece;
        let is_whole = message.filled == message.bytes.len();
        Ok(is_whole.then(|| self.message.take().map(|message| message.bytes)).flatten())
    }
}

fn broken_off() -> End {
    End::Broken(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed within a message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(channel: u32, bytes: &[u8], length: u64) -> Vec<u8> {
        [&header(channel, bytes.len(), length)[..], bytes].concat()
    }

    #[test]
    fn control_frames_come_between_pieces() {
        let lost = Control::Lost { rank: 3, reason: shorten(&"\"\u{1}é".repeat(9000)) };
        let stream =
            [frame(7, b"abc", 5), lost.frame(), frame(7, b"de", 5), frame(0, b"", 0), Control::Goodbye.frame()]
                .concat();
        let mut frames = Frames::new(&stream[..], 5);
        assert_eq!(frames.next().unwrap(), Arrival::Control(lost));
        assert_eq!(frames.next().unwrap(), Arrival::Message { channel: 7, bytes: b"abcde".to_vec() });
        assert_eq!(frames.next().unwrap(), Arrival::Message { channel: 0, bytes: Vec::new() });
        assert_eq!(frames.next().unwrap(), Arrival::Control(Control::Goodbye));
        assert!(matches!(frames.next(), Err(End::Closed)));
    }

    #[test]
    fn nonsense_is_refused_before_memory_is_taken() {
        for stream in [
            frame(1, b"", u64::MAX),
            frame(1, b"", 101),
            frame(1, b"abc", 2),
            frame(1, b"", 2),
            header(1, u32::MAX as usize, 100).to_vec(),
            frame(RESERVED, b"a", 1),
            header(CONTROL, 1 << 30, 1 << 30).to_vec(),
            frame(CONTROL, b"{}", 2),
            [frame(1, b"a", 2), frame(2, b"a", 2)].concat(),
            [frame(1, b"a", 2), frame(1, b"a", 3)].concat(),
        ] {
            let end = Frames::new(&stream[..], 100).next();
            assert!(matches!(end, Err(End::Nonsense(_))), "{end:?}");
        }
        for stream in [frame(1, b"a", 2), vec![0; 3], header(1, 5, 5).to_vec()] {
            assert!(matches!(Frames::new(&stream[..], 100).next(), Err(End::Broken(_))));
        }
    }
}
