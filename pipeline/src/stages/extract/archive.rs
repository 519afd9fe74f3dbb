//! A tar as a stream of members: v7, ustar, GNU (long names) and PAX (long names, sizes).
//!
//! Nothing that a header says is believed further than memory goes: data is read only up to the size that the caller allows,
//! names only up to [`MOST_RECORD`], and a size that is larger than the file is found out by reading to its end. Names are
//! data: no member is ever written anywhere. (The reader of the crate `tar` takes in records of any size, and cannot be asked
//! for PAX sizes without them; its headers are used.)

use std::io::{self, Read};
use std::path::Path;

use tar::{EntryType, GnuExtSparseHeader, GnuHeader, Header};

use crate::stages::text::decompressed;

const BLOCK: u64 = 512;
/// The most bytes of a record that gives the next member a name.
const MOST_RECORD: u64 = 1 << 20;

/// Why a tar cannot be read on. Offsets are those of the tar, of a compressed one those of what is in it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The operating system refused: no fault of the tar, and it may pass.
    #[error("it cannot be read on at byte {offset}")]
    Read { offset: u64, source: io::Error },
    #[error("it is cut off at byte {offset}: {detail}")]
    Truncated { offset: u64, detail: &'static str },
    #[error("it is damaged at byte {offset}: {detail}")]
    Damaged { offset: u64, detail: String },
}

impl Fault {
    /// The word by which what it costs is counted.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "unreadable_tar",
            Self::Truncated { .. } => "truncated_tar",
            Self::Damaged { .. } => "damaged_tar",
        }
    }
}

fn damaged(offset: u64, detail: impl Into<String>) -> Fault {
    Fault::Damaged { offset, detail: detail.into() }
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    /// A file with holes, whose data only some programs can put together.
    Sparse,
    /// A folder, link, device, or something that only one program knows.
    Other,
}

/// A member; its data comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    /// Bytes of data, as the header says.
    pub(super) size: u64,
    /// Where its header lies.
    pub(super) offset: u64,
    pub(super) kind: Kind,
}

/// Opens a tar, or one that is compressed by gzip or zstd: its first bytes say which.
pub(super) fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    decompressed(path, 1 << 20)
}

/// The members of a tar, one after the other.
pub(super) struct Members<R> {
    reader: R,
    /// Bytes read so far.
    position: u64,
    /// Bytes of the present member's data that were not asked for yet.
    data: u64,
    /// Bytes until the next header.
    left: u64,
}

/// What records before a member say of it.
#[derive(Default)]
struct Said {
    name: Option<Vec<u8>>,
    /// The name of a sparse file, whose `name` is made up.
    sparse_name: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl<R: Read> Members<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, position: 0, data: 0, left: 0 }
    }

    /// The next member; `None` at the mark that ends a tar. Without that mark it is cut off.
    pub(super) fn next_member(&mut self) -> Result<Option<Member>, Fault> {
        let mut said: Option<Said> = None;
        loop {
            self.skip()?;
            let offset = self.position;
            let Some(header) = self.header()? else {
                return match said {
                    None => Ok(None),
                    Some(_) => Err(damaged(offset, "it ends after a record that names a member which does not come")),
                };
            };
            let kind = header.entry_type();
            let size = match kind {
                // Their headers may give a size, but no data follows.
                EntryType::Link
                | EntryType::Symlink
                | EntryType::Char
                | EntryType::Block
                | EntryType::Directory
                | EntryType::Fifo => 0,
                _ => header.entry_size().map_err(|error| damaged(offset, error.to_string()))?,
            };
            match kind {
                EntryType::GNULongName => {
                    let mut name = self.record(size, offset)?;
                    name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
                    said.get_or_insert_default().name = Some(name);
                }
                EntryType::XHeader => {
                    let records = self.record(size, offset)?;
                    let read = said.get_or_insert_default().read_pax(&records);
                    read.map_err(|detail| damaged(offset, detail))?;
                }
                // Names of what links lead to, and what holds for all members: nothing of either is used.
                EntryType::GNULongLink | EntryType::XGlobalHeader => self.enter(size, offset)?,
                _ => return self.member(&header, size, offset, said.unwrap_or_default()).map(Some),
            }
        }
    }

    fn member(&mut self, header: &Header, size: u64, offset: u64, said: Said) -> Result<Member, Fault> {
        let name = said.sparse_name.or(said.name).unwrap_or_else(|| header.path_bytes().into_owned());
        let name = String::from_utf8_lossy(&name).into_owned();
        let (kind, size) = match header.entry_type() {
            EntryType::GNUSparse => {
                let mut more = header.as_gnu().is_some_and(GnuHeader::is_extended);
                while more {
                    let mut map = GnuExtSparseHeader::new();
                    *map.as_mut_bytes() = self.block("in the map of a sparse file")?;
                    more = map.is_extended();
                }
                (Kind::Sparse, size)
            }
            EntryType::Regular | EntryType::Continuous => {
                // Before tars knew folders, they were files with such names.
                let kind = if name.ends_with('/') {
                    Kind::Other
                } else if said.sparse {
                    Kind::Sparse
                } else {
                    Kind::File
                };
                (kind, said.size.unwrap_or(size))
            }
            _ => (Kind::Other, size),
        };
        self.enter(size, offset)?;
        Ok(Member { name, size, offset, kind })
    }

    /// The present member's data, once; `None` when it is more than `most`: then nothing is read.
    pub(super) fn read(&mut self, most: u64) -> Result<Option<Vec<u8>>, Fault> {
        if self.data > most {
            return Ok(None);
        }
        let wanted = std::mem::take(&mut self.data);
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(wanted).read_to_end(&mut bytes);
        let count = bytes.len() as u64;
        self.position += count;
        self.left = self.left.saturating_sub(count);
        read.map_err(|error| self.failed(error))?;
        if count < wanted {
            return Err(self.cut("in the middle of a member"));
        }
        Ok(Some(bytes))
    }

    /// Whether nothing but padding follows the mark that ends the tar.
    pub(super) fn ends_here(&mut self) -> Result<bool, Fault> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let read = self.reader.by_ref().take(1 << 16).read_to_end(&mut bytes);
            self.position += bytes.len() as u64;
            read.map_err(|error| self.failed(error))?;
            if bytes.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            if bytes.is_empty() {
                return Ok(true);
            }
        }
    }

    /// The next header; `None` for a block of zeros, which ends a tar.
    fn header(&mut self) -> Result<Option<Header>, Fault> {
        let offset = self.position;
        let mut header = Header::new_old();
        *header.as_mut_bytes() = self.block("without the mark that ends a tar")?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if !checksum_holds(&header) {
            let detail = if offset == 0 { "this is no tar" } else { "what should be a header has another checksum" };
            return Err(damaged(offset, detail));
        }
        Ok(Some(header))
    }

    /// `missing` says of a tar without a further block where it ends.
    fn block(&mut self, missing: &'static str) -> Result<[u8; BLOCK as usize], Fault> {
        let mut bytes = Vec::with_capacity(BLOCK as usize);
        let read = self.reader.by_ref().take(BLOCK).read_to_end(&mut bytes);
        self.position += bytes.len() as u64;
        read.map_err(|error| self.failed(error))?;
        let detail = if bytes.is_empty() { missing } else { "in the middle of a header" };
        bytes.as_slice().try_into().map_err(|_too_short| self.cut(detail))
    }

    /// The data of a record that speaks of the next member.
    fn record(&mut self, size: u64, offset: u64) -> Result<Vec<u8>, Fault> {
        self.enter(size, offset)?;
        let large =
            || damaged(offset, format!("a record of {size} bytes about a member; at most {MOST_RECORD} are read"));
        self.read(MOST_RECORD)?.ok_or_else(large)
    }

    fn enter(&mut self, size: u64, offset: u64) -> Result<(), Fault> {
        let padded = size.checked_next_multiple_of(BLOCK);
        self.left = padded.ok_or_else(|| damaged(offset, format!("a member of {size} bytes")))?;
        self.data = size;
        Ok(())
    }

    /// Passes over what is left of the present member.
    fn skip(&mut self) -> Result<(), Fault> {
        let skipped = io::copy(&mut self.reader.by_ref().take(self.left), &mut io::sink());
        let skipped = skipped.map_err(|error| self.failed(error))?;
        self.position += skipped;
        let missing = std::mem::take(&mut self.left) > skipped;
        self.data = 0;
        if missing { Err(self.cut("in the middle of a member")) } else { Ok(()) }
    }

    fn cut(&self, detail: &'static str) -> Fault {
        Fault::Truncated { offset: self.position, detail }
    }

    fn failed(&self, error: io::Error) -> Fault {
        if error.raw_os_error().is_some() {
            return Fault::Read { offset: self.position, source: error };
        }
        // What is left are the words of the decompressor.
        match error.kind() {
            io::ErrorKind::UnexpectedEof => self.cut("its compressed data ends"),
            _ => damaged(self.position, format!("it cannot be decompressed: {error}")),
        }
    }
}

/// Old programs added up bytes with their signs.
fn checksum_holds(header: &Header) -> bool {
    let Ok(written) = header.cksum() else { return false };
    let bytes = header.as_bytes().iter().enumerate();
    let bytes = bytes.map(|(i, byte)| if (148..156).contains(&i) { b' ' } else { *byte });
    let unsigned: i64 = bytes.clone().map(i64::from).sum();
    let signed: i64 = bytes.map(|byte| i64::from(byte as i8)).sum();
    [unsigned, signed].contains(&i64::from(written))
}

impl Said {
    /// Takes in PAX records: `LENGTH KEY=VALUE` and a line break, LENGTH being that of all of it.
    fn read_pax(&mut self, records: &[u8]) -> Result<(), &'static str> {
        let malformed = "a PAX record that is malformed";
        let mut rest = records;
        // Some programs fill the last block up and count that in.
        while rest.first().is_some_and(|byte| *byte != 0) {
            let space = rest.iter().position(|byte| *byte == b' ').ok_or(malformed)?;
            let length = rest.get(..space).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok());
            let length = length.ok_or(malformed)?;
            let record = rest.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or(malformed)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(malformed)?;
            let (key, value) = record.split_at(equals);
            self.set(key, value.get(1..).unwrap_or_default())?;
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"path" => self.name = Some(value.to_owned()).filter(|name| !name.is_empty()),
            b"size" => {
                let size = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
                self.size = Some(size.ok_or("a PAX record gives a size that is no number")?);
            }
            b"GNU.sparse.name" => (self.sparse, self.sparse_name) = (true, Some(value.to_owned())),
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_records_hold_line_breaks_and_wrong_lengths_are_refused() {
        let mut said = Said::default();
        said.read_pax(b"13 path=a\nb=\n11 size=77\n\0\0").unwrap();
        assert_eq!((said.name.as_deref(), said.size), (Some(b"a\nb=".as_slice()), Some(77)));
        for bad in [
            &b"path=a\n"[..],
            b"x path=a\n",
            b"0 path=a\n",
            b"2 path=a\n",
            b"99 path=a\n",
            b"18446744073709551616 path=a\n",
            b"8 path=a\n",
            b"7 path\n",
            b"11 size=-7\n",
        ] {
            assert!(Said::default().read_pax(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn bytes_that_are_no_tar_end_in_an_error_wherever_they_are_cut() {
        let mut header = Header::new_gnu();
        header.set_path("a.jpg").unwrap();
        header.set_size(700);
        header.set_cksum();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header, &[7_u8; 700][..]).unwrap();
        let whole = builder.into_inner().unwrap();
        for cut in [0, 1, 511, 512, 513, 1211, 1212, 1535, 1536, 1600] {
            let mut members = Members::new(&whole[..cut]);
            let fault = std::iter::repeat_with(|| members.next_member()).find_map(Result::err);
            assert!(matches!(fault, Some(Fault::Truncated { .. })), "{cut}: {fault:?}");
        }
        let mut members = Members::new(whole.as_slice());
        let member = members.next_member().unwrap().unwrap();
        assert_eq!((member.name.as_str(), member.size, member.offset, member.kind), ("a.jpg", 700, 0, Kind::File));
        assert_eq!(members.read(699).unwrap(), None);
        assert_eq!(members.read(700).unwrap().unwrap(), [7; 700]);
        assert_eq!(members.next_member().unwrap(), None);
        assert!(members.ends_here().unwrap());
        let error = Members::new(&[b'<'; 600][..]).next_member().unwrap_err();
        assert_eq!((error.reason(), error.to_string().contains("no tar")), ("damaged_tar", true));
    }
}
