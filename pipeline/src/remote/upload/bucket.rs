//! A folder of a bucket. Each object carries the digest of its content, so that it is known again without being read.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{
    Attribute, Attributes, GetOptions, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload,
    WriteMultipart,
};
use shards::ShardError;
use shards::digest::Digest;

use super::{BLOCK, next_block, unless_cancelled};
use crate::remote::store::{bucket_of, object_path};
use crate::remote::{Access, Failure, RemoteError, Watch, patiently};

/// Files larger than this go in parts of at least this size.
const PART: u64 = 8 << 20;
/// Stores take no more parts than 10000.
const MOST_PARTS: u64 = 9000;
/// Parts of one file on their way, and in memory, at a time.
const AT_A_TIME: usize = 4;
/// Larger objects are not copied in one request.
const LARGEST_COPY: u64 = 5 << 30;
/// Among an object's metadata: the digest of its content.
const DIGEST: &str = "ferrotype-digest";
/// What a watcher who wants no more of it waits for, so that the store keeps no parts of a file.
const TO_ABORT: Duration = Duration::from_millis(500);

/// A folder of a bucket, for publishing to.
pub(crate) struct Bucket<'a> {
    store: Arc<dyn ObjectStore>,
    folder: ObjectPath,
    shown: &'a str,
    tries: u32,
    watch: &'a dyn Watch,
}

impl<'a> Bucket<'a> {
    /// `shown` is for messages. Whatever may pass is tried `tries` times.
    pub(crate) fn open(
        (bucket, folder): (&str, &str),
        shown: &'a str,
        access: &Access,
        tries: u32,
        watch: &'a dyn Watch,
    ) -> Result<Self, RemoteError> {
        let store = bucket_of(bucket, access).map_err(|failure| failure.into_error_of_sending(shown))?;
        Ok(Self { store, folder: object_path(folder), shown, tries, watch })
    }

    fn object(&self, name: &str) -> ObjectPath {
        self.folder.parts().chain(object_path(name).parts()).collect()
    }

    async fn tried<T>(&self, once: impl AsyncFnMut() -> Result<T, Failure>) -> Result<T, RemoteError> {
        let ended = patiently(self.tries, self.watch, once).await;
        ended.map_err(|failure| failure.into_error_of_sending(self.shown))
    }

    async fn unless_cancelled<T>(&self, work: impl Future<Output = object_store::Result<T>>) -> Result<T, Failure> {
        unless_cancelled(self.watch, work).await?.map_err(failed)
    }

    /// What is in a folder below this one, by its name here, with its size.
    pub(crate) async fn list(&self, folder: &str) -> Result<BTreeMap<String, u64>, RemoteError> {
        self.tried(async || {
            let root = self.object(folder);
            let objects: Vec<_> = self.unless_cancelled(self.store.list(Some(&root)).try_collect()).await?;
            let entry = |object: object_store::ObjectMeta| {
                let parts = object.location.prefix_match(&self.folder)?;
                let name = parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
                Some((name, object.size))
            };
            Ok(objects.into_iter().filter_map(entry).collect())
        })
        .await
    }

    /// The digest that an object carries, if it does.
    pub(crate) async fn digest(&self, name: &str) -> Result<Option<Digest>, RemoteError> {
        self.tried(async || {
            let options = GetOptions { head: true, ..GetOptions::default() };
            let object = self.object(name);
            match unless_cancelled(self.watch, self.store.get_opts(&object, options)).await? {
                Ok(found) => {
                    let digest = found.attributes.get(&Attribute::Metadata(DIGEST.into()));
                    Ok(digest.and_then(|digest| digest.parse().ok()))
                }
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(failed(error)),
            }
        })
        .await
    }

    /// Puts under the name `to` what the object `from` holds, whose content has this digest, without sending it; says whether it is there.
    /// A store that does not copy is no error: the file can still be put.
    pub(crate) async fn copy(&self, from: &str, to: &str, bytes: u64, digest: Digest) -> Result<bool, RemoteError> {
        if bytes > LARGEST_COPY {
            return Ok(false);
        }
        let (source, target) = (self.object(from), self.object(to));
        match unless_cancelled(self.watch, self.store.copy(&source, &target)).await {
            // Somebody may have written over it meanwhile, and a store may leave an object's metadata behind.
            Ok(Ok(())) => Ok(self.digest(to).await? == Some(digest)),
            Ok(Err(_)) => Ok(false),
            Err(failure) => Err(failure.into_error_of_sending(self.shown)),
        }
    }

    /// Puts a file of this machine, whose content has this digest.
    pub(crate) async fn put(&self, name: &str, from: &Path, bytes: u64, digest: Digest) -> Result<(), RemoteError> {
        self.tried(async || {
            let attributes = Attributes::from_iter([(Attribute::Metadata(DIGEST.into()), digest.to_string())]);
            let to = self.object(name);
            if bytes <= PART {
                let content = tokio::fs::read(from).await.map_err(unreadable(from))?;
                let options = PutOptions { attributes, ..PutOptions::default() };
                self.unless_cancelled(self.store.put_opts(&to, PutPayload::from(content), options)).await?;
                self.watch.came(bytes);
                return Ok(());
            }
            let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
            let upload = self.unless_cancelled(self.store.put_multipart_opts(&to, options)).await?;
            let part = PART.max(bytes.div_ceil(MOST_PARTS)) as usize;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, part);
            if let Err(failure) = self.write(&mut upload, from, bytes).await {
                // Stores keep parts, and ask money for them, until they are told.
                let _ = tokio::time::timeout(TO_ABORT, upload.abort()).await;
                return Err(failure);
            }
            self.unless_cancelled(upload.finish()).await.map(drop)
        })
        .await
    }

    async fn write(&self, upload: &mut WriteMultipart, from: &Path, bytes: u64) -> Result<(), Failure> {
        let (mut file, mut offset) = (None, 0);
        while offset < bytes {
            let (opened, block) =
                next_block(file, from, 0, (bytes - offset).min(BLOCK)).await.map_err(unreadable(from))?;
            file = Some(opened);
            self.unless_cancelled(upload.wait_for_capacity(AT_A_TIME)).await?;
            upload.write(&block);
            offset += block.len() as u64;
            self.watch.came(block.len() as u64);
        }
        self.unless_cancelled(upload.wait_for_capacity(1)).await
    }

    /// An object's content; `None` where there is none.
    pub(crate) async fn read(&self, name: &str) -> Result<Option<Vec<u8>>, RemoteError> {
        self.tried(async || {
            let object = self.object(name);
            let content = async { self.store.get(&object).await?.bytes().await };
            match unless_cancelled(self.watch, content).await? {
                Ok(content) => Ok(Some(content.to_vec())),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(failed(error)),
            }
        })
        .await
    }

    /// Puts a text.
    pub(crate) async fn write_text(&self, name: &str, text: &str) -> Result<(), RemoteError> {
        self.tried(async || {
            let to = self.object(name);
            self.unless_cancelled(self.store.put(&to, PutPayload::from(text.as_bytes().to_vec()))).await.map(drop)
        })
        .await
    }

    /// Removes an object; one that is gone already is no error.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), RemoteError> {
        self.tried(async || {
            let object = self.object(name);
            match unless_cancelled(self.watch, self.store.delete(&object)).await? {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(failed(error)),
            }
        })
        .await
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: object_store::Error) -> Failure {
    use object_store::Error;
    match &error {
        Error::NotFound { .. } => Failure::Final("there is no such bucket".to_owned()),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Failure::Final(
            "the store refuses; the credentials (AWS_… variables) must be good for listing, reading, writing and deleting".to_owned(),
        ),
        _ => Failure::passing(error.to_string()),
    }
}

fn unreadable(path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let path = path.to_owned();
    move |error| Failure::Disk(ShardError::io("read", &path)(error))
}
