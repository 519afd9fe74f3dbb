//! A workdir below a prefix of an object store, with a scratch folder of the same layout on this machine.
//!
//! Commits stand on the store's conditional put (`If-None-Match: *` on S3). Data files are uploaded before their sidecar, and
//! brought here when a stage needs them; checkpoints of a training go there as they are written. The scratch folder holds copies only, and may
//! be deleted between runs.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, WriteMultipart};
use tokio::runtime::Runtime;

use super::{Entry, Storage};
use crate::digest::Digest;
use crate::range_cache::RangeCache;
use crate::ranges::{LocalFile, Ranges, StoredFile};
use crate::sidecar::DataFile;
use crate::{ShardError, disk};

/// Files larger than this are uploaded in parts of this size.
const PART: usize = 8 << 20;
/// Parts of one file, or small records, in flight at a time.
const AT_A_TIME: usize = 8;

pub(super) struct Remote {
    store: Arc<dyn ObjectStore>,
    prefix: ObjectPath,
    location: String,
    scratch: PathBuf,
    runtime: Runtime,
    /// Says to other processes that the scratch folder is in use here; created with the first copy.
    in_use: OnceLock<Mark>,
}

/// A file in a scratch folder that is locked for as long as its process uses the folder. The lock ends with the process, whatever ends
/// that, and is seen where the process is not: from another container, or over NFS.
struct Mark {
    path: PathBuf,
    _lock: fs::File,
}

/// Begins the names of marks: `.in-use.<unique>`.
const IN_USE: &str = ".in-use.";

impl Mark {
    fn create(folder: &Path) -> Result<Self, ShardError> {
        let path = folder.join(format!("{IN_USE}{}", disk::unique()));
        // It has that name only once it is locked: one that is not is taken for a dead process's.
        let staged = disk::staging_name(&path);
        let lock = fs::File::create_new(&staged).map_err(ShardError::io("create", &staged))?;
        // Where files cannot be locked, nobody can tell that it is not.
        let _ = lock.try_lock();
        fs::rename(&staged, &path).map_err(ShardError::io("create", &path))?;
        Ok(Self { path, _lock: lock })
    }

    /// Whether a mark is held, as far as can be told. One that is left of a dead process is removed.
    fn is_held(path: &Path) -> bool {
        let Ok(mark) = fs::File::options().write(true).open(path) else { return path.exists() };
        let is_left = mark.try_lock().is_ok();
        if is_left {
            let _ = fs::remove_file(path);
        }
        !is_left
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("location", &self.location).finish_non_exhaustive()
    }
}

impl Remote {
    pub(super) fn open(location: &str, scratch: Option<&Path>) -> Result<Self, ShardError> {
        let refused = |reason: String| ShardError::Location { location: location.to_owned(), reason };
        let Some(rest) = location.strip_prefix("s3://") else {
            return Err(refused("a workdir is a local folder, or s3://BUCKET/PREFIX".to_owned()));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(refused("it names no bucket: write s3://BUCKET/PREFIX".to_owned()));
        }
        let store = AmazonS3Builder::from_env().with_bucket_name(bucket).build();
        let store = store.map_err(|error| refused(error.to_string()))?;
        let scratch = match scratch {
            Some(scratch) => scratch.to_owned(),
            None => default_scratch(location),
        };
        Self::new(Arc::new(store), prefix, location.trim_end_matches('/'), &scratch)
    }

    pub(super) fn new(
        store: Arc<dyn ObjectStore>,
        prefix: &str,
        location: &str,
        scratch: &Path,
    ) -> Result<Self, ShardError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("object store")
            .enable_all()
            .build()
            .map_err(ShardError::io("start the threads for", Path::new(location)))?;
        let prefix = ObjectPath::from(prefix.trim_matches('/'));
        Ok(Self {
            store,
            prefix,
            location: location.to_owned(),
            scratch: scratch.to_owned(),
            runtime,
            in_use: OnceLock::new(),
        })
    }

    fn mark_in_use(&self) -> Result<(), ShardError> {
        if self.in_use.get().is_none() {
            disk::create_folder(&self.scratch)?;
            // If another thread was faster, this one's goes.
            let _ = self.in_use.set(Mark::create(&self.scratch)?);
        }
        Ok(())
    }

    /// Whether another process, or another part of this one, uses the scratch folder.
    fn is_shared(&self) -> bool {
        let own = self.in_use.get().map(|mark| mark.path.as_path());
        let entries = fs::read_dir(&self.scratch).into_iter().flatten().flatten();
        let marks = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(IN_USE));
        marks.map(|entry| entry.path()).any(|path| Some(path.as_path()) != own && Mark::is_held(&path))
    }

    fn object_path(&self, name: &str) -> ObjectPath {
        self.prefix.parts().chain(ObjectPath::from(name).parts()).collect()
    }

    fn failed(&self, action: &'static str, name: &str) -> impl FnOnce(object_store::Error) -> ShardError {
        let object = format!("{}/{name}", self.location);
        move |source| ShardError::Store { action, object, source: Box::new(source) }
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>, ShardError> {
        match self.store.get(&self.object_path(name)).await {
            Ok(found) => found.bytes().await.map(Some).map_err(self.failed("read", name)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("read", name)(error)),
        }
    }

    async fn upload(&self, name: &str, mut file: fs::File, bytes: u64) -> Result<(), ShardError> {
        let to = self.object_path(name);
        let from = self.scratch.join(name);
        if bytes <= PART as u64 {
            let mut content = Vec::with_capacity(bytes as usize);
            file.read_to_end(&mut content).map_err(ShardError::io("read", &from))?;
            self.store.put(&to, PutPayload::from(content)).await.map_err(self.failed("write", name))?;
            return Ok(());
        }
        let upload = self.store.put_multipart(&to).await.map_err(self.failed("write", name))?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART);
        let mut buffer = vec![0; PART];
        loop {
            let read = file.read(&mut buffer).map_err(ShardError::io("read", &from))?;
            let Some(part) = buffer.get(..read).filter(|part| !part.is_empty()) else { break };
            upload.wait_for_capacity(AT_A_TIME).await.map_err(self.failed("write", name))?;
            upload.write(part);
        }
        upload.finish().await.map(drop).map_err(self.failed("write", name))
    }

    async fn download(&self, name: &str, file: &DataFile, staged: &Path) -> Result<(), ShardError> {
        let found = self.store.get(&self.object_path(name)).await.map_err(self.failed("read", name))?;
        let mut out = fs::File::create_new(staged).map_err(ShardError::io("create", staged))?;
        let mut hasher = blake3::Hasher::new();
        let mut bytes = 0;
        let mut stream = found.into_stream();
        while let Some(chunk) = stream.try_next().await.map_err(self.failed("read", name))? {
            hasher.update(&chunk);
            bytes += chunk.len() as u64;
            out.write_all(&chunk).map_err(ShardError::io("write", staged))?;
        }
        let digest = Digest::from_blake3(hasher.finalize());
        if digest != file.digest {
            let detail =
                format!("{bytes} bytes with digest {digest}; its record says {} with {}", file.bytes, file.digest);
            return Err(ShardError::Changed { object: format!("{}/{name}", self.location), detail });
        }
        Ok(())
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<bool, ShardError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let payload = PutPayload::from(bytes.to_vec());
        match self.runtime.block_on(self.store.put_opts(&self.object_path(name), payload, options)) {
            Ok(_) => Ok(true),
            // An answer that was lost on its way made the client ask twice: then what is there is ours.
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(self.read(name)?.is_some_and(|there| there == bytes))
            }
            Err(error) => Err(self.failed("create", name)(error)),
        }
    }
}

/// `~/.cache/ferrotype/workdirs/<digest of the location>`
fn default_scratch(location: &str) -> PathBuf {
    let home = || std::env::var_os("HOME").map_or_else(std::env::temp_dir, |home| Path::new(&home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    cache.join("ferrotype/workdirs").join(Digest::of(location.as_bytes()).short())
}

impl Storage for Remote {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn folder(&self) -> &Path {
        &self.scratch
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn create_if_absent(&self, name: &str, bytes: &[u8]) -> Result<bool, ShardError> {
        self.create(name, bytes)
    }

    fn claim(&self, name: &str, bytes: &[u8]) -> Result<bool, ShardError> {
        self.create(name, bytes)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), ShardError> {
        let path = self.object_path(name);
        let put = self.store.put(&path, PutPayload::from(bytes.to_vec()));
        self.runtime.block_on(put).map(drop).map_err(self.failed("write", name))
    }

    fn replace_soon(&self, name: &str, bytes: &[u8]) -> Result<(), ShardError> {
        self.replace(name, bytes)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, ShardError> {
        Ok(self.runtime.block_on(self.get(name))?.map(Vec::from))
    }

    fn read_all(&self, names: &[String]) -> Result<Vec<Option<Vec<u8>>>, ShardError> {
        let reads = futures::stream::iter(names).map(|name| self.get(name)).buffered(4 * AT_A_TIME);
        let contents: Vec<Option<Bytes>> = self.runtime.block_on(reads.try_collect())?;
        Ok(contents.into_iter().map(|content| content.map(Vec::from)).collect())
    }

    fn list(&self, folder: &str, deep: bool) -> Result<Vec<Entry>, ShardError> {
        let root = self.object_path(folder);
        let found: Vec<ObjectMeta> = if deep {
            self.runtime.block_on(self.store.list(Some(&root)).try_collect())
        } else {
            self.runtime.block_on(self.store.list_with_delimiter(Some(&root))).map(|found| found.objects)
        }
        .map_err(self.failed("list", folder))?;
        let mut entries: Vec<Entry> = found
            .into_iter()
            .filter_map(|object| {
                let parts = object.location.prefix_match(&root)?;
                let name = parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
                Some(Entry { name, bytes: object.size, modified: object.last_modified.into() })
            })
            .collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn exists(&self, name: &str) -> Result<bool, ShardError> {
        match self.runtime.block_on(async { self.store.head(&self.object_path(name)).await }) {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.failed("look for", name)(error)),
        }
    }

    fn remove(&self, name: &str) -> Result<(), ShardError> {
        let _ = fs::remove_file(self.scratch.join(name));
        match self.runtime.block_on(async { self.store.delete(&self.object_path(name)).await }) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("remove", name)(error)),
        }
    }

    fn publish(&self, name: &str) -> Result<(), ShardError> {
        self.mark_in_use()?;
        let path = self.scratch.join(name);
        let file = fs::File::open(&path).map_err(ShardError::io("open", &path))?;
        let bytes = file.metadata().map_err(ShardError::io("read", &path))?.len();
        self.runtime.block_on(self.upload(name, file, bytes))
    }

    fn fetch(&self, folder: &str, file: &DataFile) -> Result<PathBuf, ShardError> {
        self.mark_in_use()?;
        let name = format!("{folder}/{}", file.file);
        let path = self.scratch.join(&name);
        // Files here are complete or have another name: see below.
        if fs::metadata(&path).is_ok_and(|found| found.len() == file.bytes) {
            return Ok(path);
        }
        if let Some(parent) = path.parent() {
            disk::create_folder(parent)?;
        }
        let staged = disk::staging_name(&path);
        let downloaded = self.runtime.block_on(self.download(&name, file, &staged));
        let moved = downloaded.and_then(|()| disk::rename(&staged, &path));
        if moved.is_err() {
            let _ = fs::remove_file(&staged);
        }
        moved.map(|()| path)
    }

    fn ranges(
        &self,
        name: &str,
        file: &DataFile,
        cache: Option<&Arc<RangeCache>>,
    ) -> Result<Arc<dyn Ranges>, ShardError> {
        let path = self.scratch.join(name);
        if fs::metadata(&path).is_ok_and(|found| found.len() == file.bytes) {
            return Ok(Arc::new(LocalFile::open(&path)?));
        }
        Ok(Arc::new(StoredFile {
            address: format!("{}/{name}", self.location).into(),
            store: Arc::clone(&self.store),
            object: self.object_path(name),
            runtime: self.runtime.handle().clone(),
            bytes: file.bytes,
            digest: file.digest,
            cache: cache.cloned(),
        }))
    }

    fn let_go(&self, names: &[String]) {
        if !self.is_shared() {
            for name in names {
                let _ = fs::remove_file(self.scratch.join(name));
            }
        }
    }

    fn object(&self, name: &str) -> Option<(Arc<dyn ObjectStore>, String)> {
        Some((Arc::clone(&self.store), self.object_path(name).to_string()))
    }
}
