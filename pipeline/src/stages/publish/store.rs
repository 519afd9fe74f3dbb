//! Publishing to a bucket: the shards, then the card, then what is no longer part of it goes.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt};
use serde_json::Value;
use shards::digest::Digest;

use super::Publish;
use super::dataset_card::FILE;
use super::files::{FOLDER, PublishedFile, is_ours};
use super::progress::Progress;
use crate::remote::block_on;
use crate::remote::upload::Bucket;
use crate::stage::{StageError, Task};

/// Publishes `files` and the card; what is to be known of it afterwards.
pub(super) fn publish(
    stage: &Publish,
    place: (&str, &str),
    files: &[&PublishedFile],
    card: &str,
    task: &Task,
    progress: &Progress,
) -> Result<BTreeMap<String, Value>, StageError> {
    let shown = stage.shown();
    let retries = stage.operations.retries;
    block_on(|| async {
        let bucket = Bucket::open(place, &shown, &stage.access, retries.saturating_add(1), progress)?;
        let there = bucket.list(FOLDER).await?;
        let kept: BTreeSet<&str> = files.iter().map(|file| file.name.as_str()).collect();
        let old: Vec<(&str, u64)> = there
            .iter()
            .filter(|(name, _)| is_ours(name) && !kept.contains(name.as_str()))
            .map(|(name, bytes)| (name.as_str(), *bytes))
            .collect();
        let uploads = stage.operations.uploads;
        // Names hold how many there are: with another number of shards, what is there already is there under other names.
        let renamed = contents(&bucket, &old, files, &there, uploads).await?;
        let puts = files.iter().map(|file| put(&bucket, file, &there, &renamed, progress));
        let puts: Vec<Put> = futures::stream::iter(puts).buffer_unordered(uploads).try_collect().await?;
        // A reader of the card finds everything that it names.
        if bucket.read(FILE).await?.as_deref() != Some(card.as_bytes()) {
            bucket.write_text(FILE, card).await?;
        }
        for (name, _) in &old {
            task.check_cancelled()?;
            bucket.remove(name).await?;
        }
        let sent = puts.iter().filter_map(|put| if let Put::Sent(bytes) = put { Some(*bytes) } else { None });
        let details = [
            ("files_sent", sent.clone().count() as u64),
            ("bytes_sent", sent.sum()),
            ("files_copied", puts.iter().filter(|put| matches!(put, Put::Copied)).count() as u64),
            ("files_removed", old.len() as u64),
        ];
        let details = details.into_iter().map(|(name, value)| (name.to_owned(), value.into()));
        Ok::<BTreeMap<String, Value>, StageError>(details.collect())
    })?
}

/// What was done for a file to be there.
enum Put {
    Nothing,
    /// Within the store.
    Copied,
    /// So many bytes.
    Sent(u64),
}

/// By their digests, contents of `files` that are not there under their own names, but under one of the `old`, which stay as they are until
/// all files are there.
async fn contents<'a>(
    bucket: &Bucket<'_>,
    old: &[(&'a str, u64)],
    files: &[&PublishedFile],
    there: &BTreeMap<String, u64>,
    at_a_time: usize,
) -> Result<BTreeMap<Digest, &'a str>, StageError> {
    let missing = files.iter().filter(|file| there.get(&file.name) != Some(&file.bytes));
    let sizes: BTreeSet<u64> = missing.map(|file| file.bytes).collect();
    let asked = old.iter().filter(|(_, bytes)| sizes.contains(bytes)).map(|&(name, _)| async move {
        let digest = bucket.digest(name).await?;
        Ok::<_, StageError>(digest.map(|digest| (digest, name)))
    });
    let found = futures::stream::iter(asked).buffer_unordered(at_a_time);
    found.try_filter_map(|found| std::future::ready(Ok(found))).try_collect().await
}

/// Puts a file, unless it is there.
async fn put(
    bucket: &Bucket<'_>,
    file: &PublishedFile,
    there: &BTreeMap<String, u64>,
    renamed: &BTreeMap<Digest, &str>,
    progress: &Progress<'_>,
) -> Result<Put, StageError> {
    let PublishedFile { name, path, bytes, digest, .. } = file;
    let done = if there.get(name) == Some(bytes) && bucket.digest(name).await? == Some(*digest) {
        Put::Nothing
    } else if let Some(from) = renamed.get(digest)
        && bucket.copy(from, name, *bytes, *digest).await?
    {
        Put::Copied
    } else {
        bucket.put(name, path, *bytes, *digest).await?;
        Put::Sent(*bytes)
    };
    progress.there(1, file.rows);
    Ok(done)
}
