//! One partition's rows: all of them asked for at once, as far as the limits allow, and written in their order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, RecordBatch, StringArray};
use shards::columns;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::live::Live;
use super::network::{Network, Refusal, Share};
use super::order::{InOrder, RowResult};
use super::output::Output;
use super::parameters::Semantics;
use super::row::{Expected, is_light, prepare};
use super::url_list::{self, Rows};
use crate::quarantine::{BadRow, Quarantine};
use crate::stage::{Cancel, Outcome, StageError, Task};

/// Rows that have ended and wait to be put in order.
const ENDED: usize = 64;
/// How often it is looked whether to stop, and how it goes.
const LOOK: Duration = Duration::from_millis(100);

/// A row that has ended, by its place in the partition.
type Ended = (usize, RowResult, Option<Share>);

/// What it takes to make a partition.
pub(super) struct Partition<'a> {
    pub(super) network: &'a Arc<Network>,
    pub(super) semantics: &'a Arc<Semantics>,
    pub(super) live: &'a Live,
    /// Bytes of pictures that may wait in memory for an earlier row.
    pub(super) most_waiting: u64,
}

impl Partition<'_> {
    /// Fetches `rows` and writes them.
    pub(super) fn make(&self, rows: &Rows, mut output: Output, task: &Task) -> Result<Outcome, StageError> {
        let texts = Texts::of(&rows.batch)?;
        let mut quarantine = Quarantine::new(task.on_bad_row, task.stage, task.tally);
        let mut observed: BTreeMap<String, u64> = rows.noted.clone();
        let mut in_order = InOrder::new(self.most_waiting, task.folder.path());
        let write = |row: usize, result: RowResult| -> Result<(), StageError> {
            let key = rows.keys.get(row).cloned().unwrap_or_default();
            let (url, caption) = (texts.url.value(row), texts.caption.value(row));
            match &result {
                Ok(picture) => {
                    for event in &picture.observed {
                        *observed.entry(event.clone()).or_default() += 1;
                    }
                }
                Err(Refusal { reason, status, detail, .. }) => {
                    let (url, caption, detail) = (url.to_owned(), caption.to_owned(), detail.clone());
                    quarantine.record(BadRow { key: key.clone(), url, caption, reason, status, detail })?;
                }
            }
            output.row(row, key, url, caption, result)
        };
        self.network.handle().block_on(self.fetch_all(&texts, &mut in_order, write, task))?;
        let (data, rows_out) = output.finish(task)?;
        let (dropped, quarantine) = quarantine.finish(&task.attempt.quarantine())?;
        let rows_in = rows.keys.len() as u64;
        Ok(Outcome { data, quarantine, rows_in, rows_out, dropped, observed, ..Outcome::default() })
    }

    async fn fetch_all(
        &self,
        texts: &Texts,
        in_order: &mut InOrder,
        mut write: impl FnMut(usize, RowResult) -> Result<(), StageError>,
        task: &Task<'_>,
    ) -> Result<(), StageError> {
        let folder = task.folder.path();
        // What is tried again was refused before: a list of hosts that are gone for good is to come to its end.
        let may_stop = task.retry.is_none();
        let (send, mut ended) = mpsc::channel::<Ended>(ENDED);
        // Dropped, it stops what is under way.
        let mut fetching = JoinSet::new();
        for row in 0..texts.url.len() {
            let (network, semantics) = (Arc::clone(self.network), Arc::clone(self.semantics));
            let (url, expected, send) = (texts.url.value(row).to_owned(), texts.expected(row), send.clone());
            fetching.spawn(async move {
                let (result, share) = fetch(&network, &semantics, &url, expected, may_stop).await;
                // Nobody listens any more when the partition has failed.
                let _ = send.send((row, result, share)).await;
            });
        }
        drop(send);
        let mut look = tokio::time::interval(LOOK);
        let gone = self.network.gone();
        tokio::pin!(gone);
        let mut left = texts.url.len();
        while left > 0 {
            tokio::select! {
                biased;
                gone = &mut gone, if may_stop => return Err(StageError::failed(gone)),
                _ = look.tick() => {
                    check(task.cancel)?;
                    self.live.tell(self.network, task);
                }
                next = ended.recv() => {
                    // All senders are gone only when a task has died without a word.
                    let Some((row, result, share)) = next else {
                        return Err(StageError::failed("a row's task ended without a result; this is a fault in the program"));
                    };
                    left -= 1;
                    match &result {
                        Ok(_) => task.tally.good(1),
                        Err(refusal) => task.tally.bad(refusal.reason)?,
                    }
                    let io = || StageError::io("set rows aside in", &folder);
                    in_order.push(row, result, share).map_err(io())?;
                    while let Some((row, result, _share)) = in_order.pop().map_err(io())? {
                        write(row, result)?;
                    }
                }
            }
        }
        match self.network.is_gone_at_the_end().await.filter(|_| may_stop) {
            Some(gone) => Err(StageError::failed(gone)),
            None => Ok(()),
        }
    }
}

fn check(cancel: &Cancel) -> Result<(), StageError> {
    if cancel.is_cancelled() { Err(StageError::Cancelled) } else { Ok(()) }
}

/// One row, from its URL to its picture.
async fn fetch(
    network: &Network,
    semantics: &Arc<Semantics>,
    url: &str,
    expected: Expected,
    is_held: bool,
) -> (RowResult, Option<Share>) {
    let answer = match network.fetch(url, is_held).await {
        Ok(answer) => answer,
        Err(refusal) => return (Err(refusal), None),
    };
    let (bytes, mut share, observed) = (answer.bytes, answer.share, answer.observed);
    let result = if is_light(semantics) {
        prepare(bytes, &expected, observed, semantics)
    } else {
        let (send, receive) = tokio::sync::oneshot::channel();
        let semantics = Arc::clone(semantics);
        // In the order they came, or a row of the beginning might wait for all that came after it.
        rayon::spawn_fifo(move || {
            let made = std::panic::catch_unwind(|| prepare(bytes, &expected, observed, &semantics));
            let _ =
                send.send(made.unwrap_or_else(|_panic| Err(Refusal::picture("damaged_image", "its decoder failed"))));
        });
        receive.await.unwrap_or_else(|_dropped| Err(Refusal::picture("damaged_image", "its decoder failed")))
    };
    match result {
        Ok(picture) => {
            share.shrink(picture.bytes.len() as u64);
            (Ok(picture), Some(share))
        }
        Err(refusal) => (Err(refusal), None),
    }
}

/// The columns of the list that it works with.
struct Texts {
    url: StringArray,
    caption: StringArray,
    hash: Option<StringArray>,
    phash: Option<StringArray>,
}

impl Texts {
    fn of(rows: &RecordBatch) -> Result<Self, StageError> {
        let column = |name: &str| {
            let array = rows.column_by_name(name)?;
            array.as_any().downcast_ref::<StringArray>().cloned()
        };
        let needed = |name: &str| {
            column(name).ok_or_else(|| {
                StageError::failed(format!("the list gave no texts for {name}; this is a fault in the program"))
            })
        };
        Ok(Self {
            url: needed(columns::URL)?,
            caption: needed(columns::CAPTION)?,
            hash: column(url_list::HASH),
            phash: column(url_list::PHASH),
        })
    }

    fn expected(&self, row: usize) -> Expected {
        let text = |column: &Option<StringArray>| {
            column.as_ref().filter(|texts| texts.is_valid(row)).map(|texts| texts.value(row).to_owned())
        };
        Expected { hash: text(&self.hash), phash: text(&self.phash) }
    }
}
