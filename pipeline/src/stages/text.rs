//! Texts from outside, such as lists of URLs and tables: opened whatever they are compressed by, and read with an eye on how
//! long a row is.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;

/// Bytes that a row may have: more is a fault of the file.
pub(super) const LONGEST_ROW: u64 = 16 << 20;
const BUFFER: usize = 1 << 16;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// Opens a file to be read so many bytes at a time, and undoes gzip and zstd: its first bytes say which.
pub(super) fn decompressed(path: &Path, buffer: usize) -> io::Result<Box<dyn Read>> {
    let (start, file) = first(BufReader::with_capacity(buffer, File::open(path)?), 4)?;
    let (is_gzip, is_zstd) = (start.starts_with(&GZIP), start == ZSTD);
    let whole = Cursor::new(start).chain(file);
    Ok(if is_gzip {
        Box::new(MultiGzDecoder::new(whole))
    } else if is_zstd {
        Box::new(zstd::stream::read::Decoder::with_buffer(whole)?)
    } else {
        Box::new(whole)
    })
}

/// Opens a text: compression is undone, and a byte order mark left out.
pub(super) fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    let (start, text) = first(decompressed(path, BUFFER)?, 3)?;
    let start = if start == BYTE_ORDER_MARK { Vec::new() } else { start };
    Ok(Box::new(BufReader::with_capacity(BUFFER, Cursor::new(start).chain(text))))
}

/// The first `count` bytes, or as many as there are.
pub(super) fn first<R: Read>(mut reader: R, count: u64) -> io::Result<(Vec<u8>, R)> {
    let mut start = Vec::new();
    reader.by_ref().take(count).read_to_end(&mut start)?;
    Ok((start, reader))
}

/// How many bytes may be read until the next row must have ended, so that an open quotation mark does not swallow a file.
#[derive(Clone, Debug)]
pub(super) struct Allowance {
    left: Rc<Cell<u64>>,
    is_spent: Rc<Cell<bool>>,
}

impl Allowance {
    pub(super) fn new() -> Self {
        let allowance = Self { left: Rc::default(), is_spent: Rc::default() };
        allowance.renew();
        allowance
    }

    /// To be called after each row. Buffers may have read ahead.
    pub(super) fn renew(&self) {
        self.left.set(LONGEST_ROW + 2 * BUFFER as u64);
    }

    pub(super) fn is_spent(&self) -> bool {
        self.is_spent.get()
    }
}

/// A reader that an [`Allowance`] stops.
pub(super) struct Allowed<R> {
    pub(super) inner: R,
    pub(super) allowance: Allowance,
}

impl<R: Read> Read for Allowed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.allowance.left.get();
        if left == 0 {
            self.allowance.is_spent.set(true);
            return Err(io::Error::other("a row has no end"));
        }
        let most = buffer.len().min(left as usize);
        let read = self.inner.read(buffer.get_mut(..most).unwrap_or_default())?;
        self.allowance.left.set(left - read as u64);
        Ok(read)
    }
}

/// A line, without its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// Without space around it.
    Whole(&'a [u8]),
    /// Longer than [`LONGEST_ROW`]; it was passed over.
    TooLong,
}

/// The lines of a text.
pub(super) struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, line: Vec::new(), number: 0 }
    }

    /// The next line with its number, from 1.
    pub(super) fn next_line(&mut self) -> io::Result<Option<(u64, Line<'_>)>> {
        self.line.clear();
        let read = self.reader.by_ref().take(LONGEST_ROW + 1).read_until(b'\n', &mut self.line)? as u64;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        if read <= LONGEST_ROW {
            return Ok(Some((self.number, Line::Whole(self.line.trim_ascii()))));
        }
        if !self.line.ends_with(b"\n") {
            self.reader.skip_until(b'\n')?;
        }
        Ok(Some((self.number, Line::TooLong)))
    }
}

/// What is between fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Separator {
    Comma,
    Tab,
    /// As it is between commas, quotation marks around a field protect what is in it.
    TabOfQuoted,
}

impl Separator {
    /// Of TSV, in which quotation marks mean something or not.
    pub(super) fn tab(quotes: bool) -> Self {
        if quotes { Self::TabOfQuoted } else { Self::Tab }
    }

    /// A reader of rows; `has_header` says whether the first is none.
    pub(super) fn reader<R: Read>(self, reader: R, has_header: bool) -> csv::Reader<R> {
        let mut builder = csv::ReaderBuilder::new();
        builder.buffer_capacity(BUFFER).has_headers(has_header);
        match self {
            Self::Comma => builder.delimiter(b','),
            // Tab-separated captions hold quotation marks that quote nothing.
            Self::Tab => builder.delimiter(b'\t').quoting(false),
            Self::TabOfQuoted => builder.delimiter(b'\t'),
        };
        builder.from_reader(reader)
    }
}

/// What is noted of rows in whose TSV quotation marks mean nothing, and which have a field that [`is_quoted`].
pub(super) const QUOTED: &str = "doubled quotation marks; quotes = true undoes them";

/// Whether it is what writers of CSV make of a text with quotation marks: they double those, and put it all between two more.
pub(super) fn is_quoted(field: &str) -> bool {
    let inner = field.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inner.is_some_and(|inner| inner.contains('"') && !inner.replace("\"\"", "").contains('"'))
}

/// How rows lie in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Empty,
    /// An array of rows.
    Array,
    /// An object of columns.
    Columns,
    /// One row behind the other.
    Lines,
}

impl Shape {
    /// Bytes by which it is known.
    pub(super) const LOOK_AHEAD: u64 = 1 << 16;

    /// What JSON is, from its first bytes. In an object of columns the first value is an object or an array.
    pub(super) fn of(start: &[u8]) -> Self {
        let mut start = start.trim_ascii_start().iter().copied();
        match start.next() {
            None => return Self::Empty,
            Some(b'{') => {}
            // Whatever else it is, the parser will say what it expected.
            Some(_) => return Self::Array,
        }
        let mut rest = start.skip_while(u8::is_ascii_whitespace);
        if rest.next() != Some(b'"') {
            return Self::Lines;
        }
        let mut is_escaped = false;
        let rest = rest.skip_while(|byte| {
            let is_end = *byte == b'"' && !is_escaped;
            is_escaped = *byte == b'\\' && !is_escaped;
            !is_end
        });
        let value = rest.skip(1).find(|byte| !byte.is_ascii_whitespace() && *byte != b':');
        if matches!(value, Some(b'{' | b'[')) { Self::Columns } else { Self::Lines }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn compression_is_told_by_the_first_bytes_whatever_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let text = "\u{feff}one\ntwo\n".as_bytes();
        let gzipped = |text: &[u8]| {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(text).unwrap();
            gzip.finish().unwrap()
        };
        // Two members, or frames, one behind the other.
        let gzip = [gzipped(&text[..6]), gzipped(&text[6..])].concat();
        let zstd = [zstd::encode_all(&text[..6], 1).unwrap(), zstd::encode_all(&text[6..], 1).unwrap()].concat();
        for (name, bytes) in [("a.gz", text), ("a.txt", gzip.as_slice()), ("b.txt", zstd.as_slice())] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let mut read = String::new();
            open(&path).unwrap().read_to_string(&mut read).unwrap();
            assert_eq!(read, "one\ntwo\n", "{name}");
        }
        let path = folder.path().join("c.zst");
        std::fs::write(&path, &zstd[..zstd.len() - 3]).unwrap();
        assert!(open(&path).and_then(|mut text| text.read_to_end(&mut Vec::new())).is_err(), "cut off");
    }

    #[test]
    fn lines_that_are_too_long_are_passed_over() {
        let long = vec![b'x'; LONGEST_ROW as usize + 10];
        let text = [b" a \r\n".as_slice(), &long, b"\n\nb"].concat();
        let mut lines = Lines::new(text.as_slice());
        assert_eq!(lines.next_line().unwrap(), Some((1, Line::Whole(b"a"))));
        assert_eq!(lines.next_line().unwrap(), Some((2, Line::TooLong)));
        assert_eq!(lines.next_line().unwrap(), Some((3, Line::Whole(b""))));
        assert_eq!(lines.next_line().unwrap(), Some((4, Line::Whole(b"b"))));
        assert_eq!(lines.next_line().unwrap(), None);
    }

    #[test]
    fn what_was_quoted_is_told_from_what_begins_and_ends_with_a_quotation_mark() {
        for quoted in ["\"He said \"\"hello\"\" to me\"", "\"\"\"\"", "\"\"\"a\"\" b\""] {
            assert!(is_quoted(quoted), "{quoted}");
        }
        for other in ["", "\"", "\"\"", "a \"red\" fox", "\"red\" and \"blue\"", "\"red\"", "\"a\"\" b"] {
            assert!(!is_quoted(other), "{other}");
        }
    }

    #[test]
    fn the_shape_of_json_is_known_from_its_start() {
        for (start, shape) in [
            ("", Shape::Empty),
            (" [ ", Shape::Array),
            ("{\"a\": 1}", Shape::Lines),
            ("{}", Shape::Lines),
            ("{\"a\\\"b\": {\"0\"", Shape::Columns),
            ("{\"a\": [", Shape::Columns),
        ] {
            assert_eq!(Shape::of(start.as_bytes()), shape, "{start}");
        }
    }
}
