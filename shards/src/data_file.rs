//! Writing a committed file of any format: it is hashed as it is written, so that no second read is needed for its digest, and
//! it is durable before a sidecar names it.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::ShardError;
use crate::digest::Digest;
use crate::disk::{self, File};
use crate::reader::Shard;
use crate::sidecar::DataFile;

/// What is larger is written as it is, without another copy of it.
const BUFFER: usize = 64 << 10;

/// A file that a partition is about to consist of. Nothing is durable before [`DataFileWriter::finish`].
pub struct DataFileWriter {
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    bytes: u64,
    path: PathBuf,
}

impl DataFileWriter {
    /// Starts a file at `path`, which must not exist.
    pub fn create(path: &Path) -> Result<Self, ShardError> {
        let file = File::create_new(path).map_err(ShardError::io("create", path))?;
        let file = BufWriter::with_capacity(BUFFER, file);
        Ok(Self { file, hasher: blake3::Hasher::new(), bytes: 0, path: path.to_owned() })
    }

    /// Makes the file durable. Returns its description, with `file` as the bare file name.
    pub fn finish(self, rows: u64) -> Result<DataFile, ShardError> {
        let Self { file, hasher, bytes, path } = self;
        let file = file.into_inner().map_err(|e| ShardError::io("write", &path)(e.into_error()))?;
        file.sync().map_err(ShardError::io("sync", &path))?;
        let digest = Digest::from_blake3(hasher.finalize());
        Ok(DataFile { file: name(&path), digest, bytes, rows, footer: None, variant: None })
    }
}

/// Makes a file that is complete elsewhere on this file system, at `from`, the file at `to`, which must not exist. Durable when
/// it returns its description, which says of a parquet file how many rows it has.
pub fn adopt(from: &Path, to: &Path) -> Result<DataFile, ShardError> {
    let file = fs::File::open(from).map_err(ShardError::io("open", from))?;
    let mut hasher = blake3::Hasher::new();
    let bytes = io::copy(&mut &file, &mut hasher).map_err(ShardError::io("read", from))?;
    file.sync_all().map_err(ShardError::io("sync", from))?;
    let is_parquet = to.extension().is_some_and(|extension| extension == "parquet");
    let (rows, footer) = if is_parquet {
        let footer = crate::writer::footer(from).map_err(ShardError::io("read", from))?;
        (Shard::open(from)?.rows(), Some(footer))
    } else {
        (0, None)
    };
    disk::rename(from, to)?;
    let (digest, file) = (Digest::from_blake3(hasher.finalize()), name(to));
    Ok(DataFile { file, digest, bytes, rows, footer, variant: None })
}

/// Makes the committed file at `from`, which `described` describes, the file at `to` as well, without copying it where the file
/// system can.
pub fn link(from: &Path, described: &DataFile, to: &Path) -> Result<DataFile, ShardError> {
    if disk::link(from, to).is_err() {
        // Another file system, or one without links.
        let mut writer = DataFileWriter::create(to)?;
        let mut file = fs::File::open(from).map_err(ShardError::io("open", from))?;
        io::copy(&mut file, &mut writer).map_err(ShardError::io("copy", from))?;
        writer.finish(described.rows)?;
    }
    Ok(DataFile { file: name(to), variant: None, ..described.clone() })
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Write for DataFileWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
