//! Objects in an S3-compatible store.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig};
use shards::ShardError;

use super::location::{Entries, Entry};
use super::{Access, Failure, MOST_FILES, Watch, length};

/// Opens a bucket; credentials and endpoint come from the AWS_… variables. There are tries around it already.
pub(super) fn open(bucket: &str) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
    let retry = RetryConfig { max_retries: 2, retry_timeout: Duration::from_secs(20), ..RetryConfig::default() };
    Ok(Arc::new(AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry).build()?))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: object_store::Error) -> Failure {
    use object_store::Error;
    match &error {
        Error::NotFound { .. } => Failure::Final("there is no such object".to_owned()),
        Error::Precondition { .. } => Failure::Final("it changed while it was fetched; plan again".to_owned()),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            Failure::Final("the store refuses; check the credentials (AWS_… variables)".to_owned())
        }
        _ => Failure::passing(error.to_string()),
    }
}

pub(super) fn bucket_of(bucket: &str, access: &Access) -> Result<Arc<dyn ObjectStore>, Failure> {
    (access.store)(bucket).map_err(|error| Failure::Final(error.to_string()))
}

/// A path as the store has it, or as it may be written.
pub(super) fn object_path(path: &str) -> ObjectPath {
    ObjectPath::parse(path).unwrap_or_else(|_fault| ObjectPath::from(path))
}

/// The object at a path, or those below it.
pub(super) async fn entries(bucket: &str, path: &str, access: &Access) -> Result<Entries, Failure> {
    let store = bucket_of(bucket, access)?;
    let prefix = object_path(path);
    if !path.is_empty() {
        match store.head(&prefix).await {
            Ok(meta) => {
                let name = path.rsplit('/').next().unwrap_or(path).to_owned();
                return Ok(Entries::of_file(entry(name, &meta)));
            }
            Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let mut found = Vec::new();
    let mut listed = store.list(Some(&prefix));
    while let Some(meta) = listed.try_next().await.map_err(failed)? {
        let Some(parts) = meta.location.prefix_match(&prefix) else { continue };
        let parts: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
        if parts.is_empty() {
            continue;
        }
        found.push(entry(parts.join("/"), &meta));
        if found.len() > MOST_FILES {
            return Err(Failure::Final(format!("it has more than {MOST_FILES} objects")));
        }
    }
    Ok(Entries::of_folder(found))
}

fn entry(name: String, meta: &ObjectMeta) -> Entry {
    let version = meta.e_tag.clone().or_else(|| meta.version.clone());
    let version = version.unwrap_or_else(|| meta.last_modified.to_rfc3339());
    Entry { name, bytes: Some(meta.size), version }
}

/// Brings what is missing of an object, in one try.
pub(super) async fn fetch(
    bucket: &str,
    path: &str,
    entry: &Entry,
    partial: &Path,
    access: &Access,
    watch: &dyn Watch,
) -> Result<(), Failure> {
    let have = length(partial);
    if entry.bytes == Some(have) && have > 0 {
        return Ok(());
    }
    let store = bucket_of(bucket, access)?;
    let meta = store.head(&object_path(path)).await.map_err(failed)?;
    // The partial file's name holds the listed version, so the object must still be that.
    if self::entry(entry.name.clone(), &meta) != *entry {
        return Err(Failure::Final("it changed since it was listed; plan again".to_owned()));
    }
    let options = GetOptions {
        range: (have > 0).then_some(GetRange::Offset(have)),
        if_match: meta.e_tag.clone(),
        ..GetOptions::default()
    };
    let disk = |error| Failure::Disk(ShardError::io("write", partial)(error));
    let mut file = OpenOptions::new().append(true).create(true).open(partial).map_err(disk)?;
    if entry.bytes != Some(0) {
        let mut stream = store.get_opts(&object_path(path), options).await.map_err(failed)?.into_stream();
        while let Some(chunk) = stream.try_next().await.map_err(failed)? {
            file.write_all(&chunk).map_err(disk)?;
            watch.came(chunk.len() as u64);
            if watch.is_cancelled() {
                return Err(Failure::Cancelled);
            }
        }
    }
    file.sync_all().map_err(disk)
}
