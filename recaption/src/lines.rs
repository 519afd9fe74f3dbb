//! Lines of a stream, numbered, of which only one is in memory, and never more of it than is allowed.

use std::io::{self, BufRead, BufReader, Read};

/// The lines of a stream, without their ends.
pub(crate) struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    number: u64,
    /// Bytes of the stream that were lines.
    read: u64,
    longest: usize,
}

/// A line.
pub(crate) struct Line<'a> {
    /// From 1.
    pub(crate) number: u64,
    /// How many bytes of the stream come before it.
    pub(crate) at: u64,
    /// Nothing, if it was too long.
    pub(crate) bytes: Option<&'a [u8]>,
}

impl<R: Read> Lines<R> {
    pub(crate) fn new(stream: R, longest: usize) -> Self {
        Self { reader: BufReader::with_capacity(1 << 16, stream), line: Vec::new(), number: 0, read: 0, longest }
    }

    /// The number of the last line.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The next line, if there is one.
    pub(crate) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let most = self.longest as u64 + 1;
        let read = self.reader.by_ref().take(most).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        let line = Line { number: self.number, at: self.read, bytes: None };
        self.read += read as u64;
        match self.line.strip_suffix(b"\n") {
            Some(bytes) => Ok(Some(Line { bytes: Some(bytes), ..line })),
            None if self.line.len() <= self.longest => Ok(Some(Line { bytes: Some(&self.line), ..line })),
            None => {
                self.read += self.reader.skip_until(b'\n')? as u64;
                Ok(Some(line))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_too_long_are_skipped_whole() {
        let mut lines = Lines::new(&b"a\n\n12345\n123456\n1234567890\nb"[..], 5);
        let mut found = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            found.push((line.number, line.at, line.bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned())));
        }
        let line = |text: &str| Some(text.to_owned());
        let expected = [
            (1, 0, line("a")),
            (2, 2, line("")),
            (3, 3, line("12345")),
            (4, 9, None),
            (5, 16, None),
            (6, 27, line("b")),
        ];
        assert_eq!(found, expected);
    }
}
