//! Writing a committed file of any format: it is hashed as it is written, so that no second read is needed for its digest, and
//! it is durable before a sidecar names it.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::ShardError;
use crate::digest::Digest;
use crate::disk::File;
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
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(DataFile { file, digest, bytes, rows, footer: None, variant: None })
    }
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
