//! A workdir in a local, or mounted, folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Entry, Storage};
use crate::range_cache::RangeCache;
use crate::ranges::{LocalFile, Ranges};
use crate::sidecar::DataFile;
use crate::{ShardError, disk};

#[derive(Debug)]
pub(super) struct Local {
    folder: PathBuf,
}

impl Local {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The path of `name`, whose folder exists afterwards.
    fn place(&self, name: &str) -> Result<PathBuf, ShardError> {
        let path = self.folder.join(name);
        if let Some(folder) = path.parent() {
            disk::create_folder(folder)?;
        }
        Ok(path)
    }
}

impl Storage for Local {
    fn location(&self) -> String {
        self.folder.display().to_string()
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn is_remote(&self) -> bool {
        false
    }

    fn create_if_absent(&self, name: &str, bytes: &[u8]) -> Result<bool, ShardError> {
        disk::create_if_absent(&self.place(name)?, bytes)
    }

    fn claim(&self, name: &str, bytes: &[u8]) -> Result<bool, ShardError> {
        disk::claim(&self.place(name)?, bytes)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), ShardError> {
        disk::replace(&self.place(name)?, bytes)
    }

    fn replace_soon(&self, name: &str, bytes: &[u8]) -> Result<(), ShardError> {
        disk::replace_soon(&self.place(name)?, bytes)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, ShardError> {
        let path = self.folder.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ShardError::io("read", &path)(error)),
        }
    }

    fn read_all(&self, names: &[String]) -> Result<Vec<Option<Vec<u8>>>, ShardError> {
        names.iter().map(|name| self.read(name)).collect()
    }

    fn list(&self, folder: &str, deep: bool) -> Result<Vec<Entry>, ShardError> {
        let mut entries = Vec::new();
        list(&self.folder.join(folder), "", deep, &mut entries)?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn ranges(
        &self,
        name: &str,
        _file: &DataFile,
        _cache: Option<&Arc<RangeCache>>,
    ) -> Result<Arc<dyn Ranges>, ShardError> {
        Ok(Arc::new(LocalFile::open(&self.folder.join(name))?))
    }

    fn exists(&self, name: &str) -> Result<bool, ShardError> {
        let path = self.folder.join(name);
        path.try_exists().map_err(ShardError::io("look for", &path))
    }

    fn remove(&self, name: &str) -> Result<(), ShardError> {
        disk::remove(&self.folder.join(name))
    }

    fn publish(&self, _name: &str) -> Result<(), ShardError> {
        Ok(())
    }

    fn fetch(&self, folder: &str, file: &DataFile) -> Result<PathBuf, ShardError> {
        Ok(self.folder.join(folder).join(&file.file))
    }
}

fn list(folder: &Path, prefix: &str, deep: bool, entries: &mut Vec<Entry>) -> Result<(), ShardError> {
    let found = match fs::read_dir(folder) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ShardError::io("list", folder)(error)),
    };
    for entry in found {
        let entry = entry.map_err(ShardError::io("list", folder))?;
        // A file that went away since the folder was read is simply not there.
        let Ok(metadata) = entry.metadata() else { continue };
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if metadata.is_dir() {
            if deep {
                list(&entry.path(), &format!("{name}/"), deep, entries)?;
            }
        } else {
            let modified = metadata.modified().map_err(ShardError::io("look at", &entry.path()))?;
            entries.push(Entry { name, bytes: metadata.len(), modified });
        }
    }
    Ok(())
}
