//! `download`: a list of URLs to shards of images.
//!
//! - in: a csv or tsv file with a header; each partition is a run of its rows
//! - out: key, image (bytes as served), caption, url, width, height (upright), sha256; in the order of the list, whatever
//!   order the answers came in
//! - stale when: the rows of its partition, the column names, or a limit changed
//! - law: in = out + Σ dropped by reason (see [`fetch::Refusal`])

mod address;
mod client;
mod fetch;
mod list;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures::{StreamExt, stream};
use ipnet::IpNet;
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::columns;

use super::samples::{self, Sample};
use crate::quarantine::{BadRow, Quarantine};
use crate::stage::{Cancel, Law, Load, Outcome, Partitioning, Source, Stage, StageError, StageKind, Task};
use fetch::{Fetched, Fetcher, Refusal};
use list::UrlRow;

/// What determines the result.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Semantics {
    /// Which columns of the list hold what.
    #[serde(default)]
    columns: Columns,
    /// First part of every key [the list's file name without its ending].
    #[serde(default)]
    source: String,
    /// Rows of the list in one shard [10000].
    #[serde(default = "default_rows")]
    rows_per_shard: u64,
    /// Larger answers are refused, in bytes [20 MB].
    #[serde(default = "default_bytes")]
    max_bytes: u64,
    /// Larger images are refused, in pixels [100 million].
    #[serde(default = "default_pixels")]
    max_pixels: u64,
    /// Answers whose X-Robots-Tag holds one of these are refused [noai, noimageai, noindex, noimageindex].
    #[serde(default = "default_directives")]
    disallowed_header_directives: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Columns {
    #[serde(default = "url_column")]
    url: String,
    #[serde(default = "caption_column")]
    caption: String,
}

impl Default for Columns {
    fn default() -> Self {
        Self { url: url_column(), caption: caption_column() }
    }
}

/// How it is done; changes nothing about what a given answer becomes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
struct Operations {
    /// The list of URLs: a .csv or .tsv file with a header.
    urls: PathBuf,
    /// Only the first so many rows of the list [all].
    #[serde(default)]
    limit: Option<u64>,
    /// Requests in flight in one partition [64].
    #[serde(default = "default_in_flight")]
    in_flight: usize,
    /// Partitions at a time [4].
    #[serde(default = "default_partitions")]
    partitions: usize,
    /// Seconds that one try may take in all [10].
    #[serde(default = "default_timeout")]
    timeout: f64,
    /// Further tries after a failure that may pass [2].
    #[serde(default = "default_retries")]
    retries: u32,
    /// Sent with every request.
    #[serde(default = "default_agent")]
    user_agent: String,
    /// Host names and the address to connect to for them: { "host" = "127.0.0.1:8080" }.
    #[serde(default)]
    connect_to: BTreeMap<String, String>,
    /// Private networks that may be connected to, such as "127.0.0.0/8"; all others are refused.
    #[serde(default)]
    allow_networks: Vec<String>,
}

fn default_rows() -> u64 {
    10_000
}
fn default_bytes() -> u64 {
    20_000_000
}
fn default_pixels() -> u64 {
    100_000_000
}
fn default_directives() -> Vec<String> {
    ["noai", "noimageai", "noindex", "noimageindex"].map(str::to_owned).to_vec()
}
fn url_column() -> String {
    columns::URL.to_owned()
}
fn caption_column() -> String {
    columns::CAPTION.to_owned()
}
fn default_in_flight() -> usize {
    64
}
fn default_partitions() -> usize {
    4
}
fn default_timeout() -> f64 {
    10.0
}
fn default_retries() -> u32 {
    2
}
fn default_agent() -> String {
    format!("ferrotype/{}", env!("CARGO_PKG_VERSION"))
}

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "download",
        version: 1,
        about: "Fetches a list of URLs into shards of images.",
        inputs: (0, 0),
        schemas: || vec![schema_for!(Semantics), schema_for!(Operations)],
        rehearse: |parameters, rows| {
            let usual = parameters.read::<Semantics>().map_or_else(|_fault| default_rows(), |s| s.rows_per_shard);
            // Several partitions, so that what runs beside each other later does so now.
            let shard = usual.min(rows.div_ceil(4)).max(1);
            vec![("limit", rows.into()), ("rows_per_shard", shard.into())]
        },
        build: |parameters| {
            let mut semantics: Semantics = parameters.read()?;
            let operations: Operations = parameters.read()?;
            if semantics.source.is_empty() {
                let stem = operations.urls.file_stem().unwrap_or_default();
                semantics.source = stem.to_string_lossy().into_owned();
            }
            let positive = [
                ("rows_per_shard", semantics.rows_per_shard),
                ("in_flight", operations.in_flight as u64),
                ("partitions", operations.partitions as u64),
                ("max_bytes", semantics.max_bytes),
                ("max_pixels", semantics.max_pixels),
            ];
            if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
                return Err(parameters.fault(key, format!("{key} = 0: expected 1 or more")));
            }
            if !(operations.timeout > 0.0 && operations.timeout <= 3600.0) {
                return Err(parameters.fault("timeout", "timeout must be more than 0 and at most 3600 seconds"));
            }
            let mut connect_to = BTreeMap::new();
            for (host, address) in &operations.connect_to {
                let address: SocketAddr = address.parse().map_err(|_malformed| {
                    parameters.fault(
                        "connect_to",
                        format!("connect_to: `{address}` is not an address such as 127.0.0.1:8080"),
                    )
                })?;
                connect_to.insert(host.to_lowercase(), address);
            }
            let mut allowed = Vec::new();
            for network in &operations.allow_networks {
                let network: IpNet = network.parse().map_err(|_malformed| {
                    parameters.fault(
                        "allow_networks",
                        format!("allow_networks: `{network}` is not a network such as 10.0.0.0/8"),
                    )
                })?;
                allowed.push(network);
            }
            if let Err(error) = list::positions(&operations.urls, &semantics.columns.url, &semantics.columns.caption) {
                let key = if error.is_about_columns() && parameters.has("columns") { "columns" } else { "urls" };
                let fault = parameters.fault(key, &error);
                return Err(if error.is_absent() { fault.hint(RELATIVE_PATHS) } else { fault });
            }
            Ok(Box::new(Download { semantics, operations, connect_to, allowed }))
        },
    }
}

const RELATIVE_PATHS: &str =
    "a path is looked up from the folder that the command runs in; \"{workdir}/…\" is below the workdir";

struct Download {
    semantics: Semantics,
    operations: Operations,
    connect_to: BTreeMap<String, SocketAddr>,
    allowed: Vec<IpNet>,
}

/// What became of a row.
type RowResult = (UrlRow, Result<Fetched, Refusal>);

impl Download {
    async fn fetch_all(
        &self,
        fetcher: Fetcher,
        rows: Vec<UrlRow>,
        task: &Task<'_>,
    ) -> Result<Vec<RowResult>, StageError> {
        let fetcher = Arc::new(fetcher);
        let fetched = stream::iter(rows.into_iter().enumerate())
            .map(|(number, row)| {
                let fetcher = Arc::clone(&fetcher);
                async move {
                    let result = fetcher.fetch(&row.url).await;
                    let counted = match &result {
                        Ok(_) => {
                            task.tally.good(1);
                            Ok(())
                        }
                        Err(refusal) => task.tally.bad(refusal.reason),
                    };
                    counted.map(|()| (number, row, result))
                }
            })
            .buffer_unordered(self.operations.in_flight);
        let mut fetched = std::pin::pin!(fetched);
        let mut results: Vec<(usize, UrlRow, Result<Fetched, Refusal>)> = Vec::new();
        loop {
            tokio::select! {
                next = fetched.next() => match next {
                    Some(result) => results.push(result?),
                    None => break,
                },
                () = cancelled(task.cancel) => return Err(StageError::Cancelled),
            }
        }
        // Rows come out as they went in, whatever order the answers came in.
        results.sort_by_key(|(number, ..)| *number);
        Ok(results.into_iter().map(|(_, row, result)| (row, result)).collect())
    }
}

async fn cancelled(cancel: &Cancel) {
    while !cancel.is_cancelled() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

impl Stage for Download {
    fn semantics(&self) -> Value {
        serde_json::to_value(&self.semantics).unwrap_or_default()
    }

    fn partitioning(&self) -> Partitioning {
        Partitioning::Source
    }

    fn law(&self) -> Law {
        Law::RowWise
    }

    fn load(&self) -> Load {
        Load::Network(self.operations.partitions)
    }

    fn sources(&self) -> Result<Vec<Source>, StageError> {
        let Semantics { columns, rows_per_shard, .. } = &self.semantics;
        list::partitions(&self.operations.urls, columns, *rows_per_shard, self.operations.limit.unwrap_or(u64::MAX))
    }

    fn may_retry(&self) -> bool {
        true
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let rows = match task.retry {
            Some(list) => list::to_try_again(list)?,
            None => self.rows_of(task.number)?,
        };
        let rows_in = rows.len() as u64;
        // A runtime a partition: its threads end with it, and a blocked partition cannot hold up another.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(StageError::io("start the network threads of", &task.folder.path()))?;
        let client = client::build(&self.operations, &self.connect_to, &self.allowed).map_err(StageError::failed)?;
        let fetcher = Fetcher {
            client,
            allowed: self.allowed.clone(),
            max_bytes: self.semantics.max_bytes,
            max_pixels: self.semantics.max_pixels,
            directives: self.semantics.disallowed_header_directives.iter().map(|d| d.to_lowercase()).collect(),
            retries: self.operations.retries,
        };
        let results = runtime.block_on(self.fetch_all(fetcher, rows, task));
        runtime.shutdown_background();
        Self::write(results?, rows_in, task)
    }
}

impl Download {
    /// The list's rows of a partition.
    fn rows_of(&self, number: usize) -> Result<Vec<UrlRow>, StageError> {
        let Semantics { columns, rows_per_shard, source, .. } = &self.semantics;
        let first = number as u64 * rows_per_shard;
        let count = (*rows_per_shard).min(self.operations.limit.unwrap_or(u64::MAX).saturating_sub(first));
        list::rows(&self.operations.urls, columns, source, first, count)
    }

    fn write(results: Vec<RowResult>, rows_in: u64, task: &Task) -> Result<Outcome, StageError> {
        let mut quarantine = Quarantine::new(task.on_bad_row, task.stage, task.tally);
        let mut observed: BTreeMap<String, u64> = BTreeMap::new();
        let mut good: Vec<Sample> = Vec::new();
        for (row, result) in results {
            match result {
                Ok(fetched) => {
                    for event in &fetched.observed {
                        *observed.entry(event.clone()).or_default() += 1;
                    }
                    let UrlRow { key, url, caption } = row;
                    let Fetched { bytes, width, height, sha256, .. } = fetched;
                    good.push(Sample { key, bytes, caption, url, width, height, sha256 });
                }
                Err(Refusal { reason, status, detail, .. }) => {
                    let UrlRow { key, url, caption } = row;
                    quarantine.record(BadRow { key, url, caption, reason, status, detail })?;
                }
            }
        }
        let data = samples::write(&task.attempt.data(), &good)?;
        let (dropped, quarantine) = quarantine.finish(&task.attempt.quarantine())?;
        let rows_out = data.rows;
        Ok(Outcome { data: vec![data], quarantine, rows_in, rows_out, dropped, observed, ..Outcome::default() })
    }
}
