//! Publishing to a bucket: the shards, then the card, then what is no longer part of it goes.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt};
use serde_json::Value;

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
        let puts = files.iter().map(|file| put(&bucket, file, &there, progress));
        let sent: Vec<u64> = futures::stream::iter(puts)
            .buffer_unordered(stage.operations.uploads)
            .try_filter_map(|sent| std::future::ready(Ok(sent)))
            .try_collect()
            .await?;
        // A reader of the card finds everything that it names.
        if bucket.read(FILE).await?.as_deref() != Some(card.as_bytes()) {
            bucket.write_text(FILE, card).await?;
        }
        let kept: BTreeSet<&str> = files.iter().map(|file| file.name.as_str()).collect();
        let old: Vec<&String> = there.keys().filter(|name| is_ours(name) && !kept.contains(name.as_str())).collect();
        for name in &old {
            task.check_cancelled()?;
            bucket.remove(name).await?;
        }
        let details =
            [("files_sent", sent.len() as u64), ("bytes_sent", sent.iter().sum()), ("files_removed", old.len() as u64)];
        let details = details.into_iter().map(|(name, value)| (name.to_owned(), value.into()));
        Ok::<BTreeMap<String, Value>, StageError>(details.collect())
    })?
}

/// Puts a file, unless it is there; the bytes that went.
async fn put(
    bucket: &Bucket<'_>,
    file: &PublishedFile,
    there: &BTreeMap<String, u64>,
    progress: &Progress<'_>,
) -> Result<Option<u64>, StageError> {
    let is_there = there.get(&file.name) == Some(&file.bytes) && bucket.digest(&file.name).await? == Some(file.digest);
    if !is_there {
        bucket.put(&file.name, &file.path, file.bytes, file.digest).await?;
    }
    progress.there(1, file.rows);
    Ok((!is_there).then_some(file.bytes))
}
