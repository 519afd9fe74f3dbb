//! What is packed in a file that came.
//!
//! Archives are untrusted: names in them are data, and no path is made of one.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use shards::data_file::{DataFileWriter, adopt};
use shards::sidecar::DataFile;
use shards::{ShardError, disk};

use super::transfer::Partial;
use super::{Brought, ending};
use crate::stage::{StageError, Task};

/// Files that an archive may hold: each is a file of the partition, and its record names them all.
const MOST_FILES: usize = 10_000;
const BLOCK: usize = 1 << 20;

/// The files that are packed in `partial`, which came under `name`, with their names; `None` where it is no archive.
pub(super) fn unpack(partial: &Partial, name: &str, task: &Task) -> Result<Option<Brought>, StageError> {
    let path = partial.path();
    let lower = name.to_ascii_lowercase();
    let (bare, packing) = Packing::of(&lower);
    let is_tar = bare.ends_with(".tar") || lower.ends_with(".tgz");
    if packing == Packing::None && !is_tar {
        return Ok(None);
    }
    let file = File::open(path).map_err(ShardError::io("open", path))?;
    let reader = packing.reader(BufReader::with_capacity(BLOCK, file)).map_err(StageError::io("unpack", path))?;
    let unpacked = if is_tar { members(reader, name, task) } else { content(reader, name, bare.len(), task) };
    unpacked.map(Some).map_err(|error| match error {
        Fault::Stage(error) => error,
        Fault::Archive(error) => StageError::failed(UnpackError::Damaged { name: name.to_owned(), error }),
    })
}

#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    #[error("{name} cannot be unpacked: {error}; leave `unpack` away, or fetch it again")]
    Damaged { name: String, error: io::Error },
    #[error(
        "{name} holds more than {MOST_FILES} files; leave `unpack` away: tars of samples are read whole by `extract`, those of \
         labelled pictures too"
    )]
    TooMany { name: String },
}

enum Fault {
    Stage(StageError),
    /// What reading the archive met.
    Archive(io::Error),
}

impl<E: Into<StageError>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Stage(error.into())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

impl Packing {
    /// A name without what says how it is packed, and how that is.
    fn of(name: &str) -> (&str, Self) {
        if let Some(bare) = name.strip_suffix(".gz") {
            return (bare, Self::Gzip);
        }
        match name.strip_suffix(".zst") {
            Some(bare) => (bare, Self::Zstd),
            None if name.ends_with(".tgz") => (name, Self::Gzip),
            None => (name, Self::None),
        }
    }

    fn reader(self, file: BufReader<File>) -> io::Result<Box<dyn Read>> {
        Ok(match self {
            Self::None => Box::new(file),
            Self::Gzip => Box::new(MultiGzDecoder::new(file)),
            Self::Zstd => Box::new(zstd::Decoder::with_buffer(file)?),
        })
    }
}

/// The one file that a compressed file is.
fn content(reader: Box<dyn Read>, name: &str, bare: usize, task: &Task) -> Result<Brought, Fault> {
    let name = name.get(..bare).unwrap_or(name).to_owned();
    Ok((vec![copy(reader, 0, &name, task)?], vec![name]))
}

/// The files in a tar, in their order.
fn members(reader: Box<dyn Read>, name: &str, task: &Task) -> Result<Brought, Fault> {
    let mut archive = tar::Archive::new(reader);
    let (mut data, mut names) = (Vec::new(), Vec::new());
    for member in archive.entries().map_err(Fault::Archive)? {
        let member = member.map_err(Fault::Archive)?;
        if !member.header().entry_type().is_file() {
            continue;
        }
        if data.len() == MOST_FILES {
            return Err(StageError::failed(UnpackError::TooMany { name: name.to_owned() }).into());
        }
        let inside = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        data.push(copy(member, data.len(), &inside, task)?);
        names.push(format!("{name}/{inside}"));
    }
    Ok((data, names))
}

/// Writes what `reader` gives as file `number` of the partition.
fn copy(mut reader: impl Read, number: usize, name: &str, task: &Task) -> Result<DataFile, Fault> {
    let path = task.attempt.with_ending(number, &ending(name));
    // Of parquet the footer has to be read, which adopting it does.
    let is_parquet = path.extension().is_some_and(|extension| extension == "parquet");
    let written = if is_parquet { path.with_extension("unpacked") } else { path.clone() };
    let mut writer = DataFileWriter::create(&written)?;
    let mut block = vec![0; BLOCK];
    loop {
        task.check_cancelled()?;
        let read = reader.read(&mut block).map_err(Fault::Archive)?;
        let Some(bytes) = block.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        writer.write_all(bytes).map_err(StageError::io("write", &written))?;
    }
    let data = writer.finish(0)?;
    Ok(if is_parquet { adopted(&written, &path)? } else { data })
}

fn adopted(from: &Path, to: &Path) -> Result<DataFile, ShardError> {
    adopt(from, to).inspect_err(|_| drop(disk::remove(from)))
}
