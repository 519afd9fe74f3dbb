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

use arrow::array::{ArrayRef, BinaryArray, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field};
use arrow::record_batch::RecordBatch;
use futures::{StreamExt, stream};
use ipnet::IpNet;
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::columns;
use shards::writer::ShardWriter;

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
            if let Err(error) = list::columns(&operations.urls, &semantics.columns.url, &semantics.columns.caption) {
                return Err(parameters.fault("urls", error));
            }
            Ok(Box::new(Download { semantics, operations, connect_to, allowed }))
        },
    }
}

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
        list::partitions(&self.operations.urls, &self.semantics.columns, self.semantics.rows_per_shard)
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let first = task.number as u64 * self.semantics.rows_per_shard;
        let rows = list::rows(&self.operations.urls, &self.semantics.columns, first, self.semantics.rows_per_shard)?;
        let rows_in = rows.len() as u64;
        // A runtime a partition: its threads end with it, and a blocked partition cannot hold up another.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(StageError::io("start the network threads of", task.folder.path()))?;
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
        self.write(results?, first, rows_in, task)
    }
}

impl Download {
    fn write(&self, results: Vec<RowResult>, first: u64, rows_in: u64, task: &Task) -> Result<Outcome, StageError> {
        let mut quarantine = Quarantine::new(task.on_bad_row, task.stage, task.tally);
        let mut observed: BTreeMap<String, u64> = BTreeMap::new();
        let mut good: Vec<(String, UrlRow, Fetched)> = Vec::new();
        for (i, (row, result)) in results.into_iter().enumerate() {
            let key = format!("{}/{:09}", self.semantics.source, first + i as u64);
            match result {
                Ok(fetched) => {
                    for event in &fetched.observed {
                        *observed.entry(event.clone()).or_default() += 1;
                    }
                    good.push((key, row, fetched));
                }
                Err(Refusal { reason, status, detail, .. }) => {
                    let UrlRow { url, caption } = row;
                    quarantine.record(BadRow { key, url, caption, reason, status, detail })?;
                }
            }
        }
        let schema = Arc::new(columns::schema_of_samples(vec![
            Field::new(columns::KEY, DataType::Utf8, false),
            Field::new(columns::IMAGE, DataType::Binary, false),
            Field::new(columns::CAPTION, DataType::Utf8, false),
            Field::new(columns::URL, DataType::Utf8, false),
            Field::new(columns::WIDTH, DataType::UInt32, false),
            Field::new(columns::HEIGHT, DataType::UInt32, false),
            Field::new(columns::SHA256, DataType::Utf8, false),
        ]));
        let path = task.attempt.data();
        let mut writer = ShardWriter::create(&path, &schema)?;
        for rows in good.chunks(256) {
            let text = |value: fn(&(String, UrlRow, Fetched)) -> &str| -> ArrayRef {
                Arc::new(StringArray::from_iter_values(rows.iter().map(value)))
            };
            let number = |value: fn(&Fetched) -> u32| -> ArrayRef {
                Arc::new(UInt32Array::from_iter_values(rows.iter().map(|(.., f)| value(f))))
            };
            let arrays = vec![
                text(|(key, ..)| key),
                Arc::new(BinaryArray::from_iter_values(rows.iter().map(|(.., f)| &f.bytes))) as ArrayRef,
                text(|(_, row, _)| &row.caption),
                text(|(_, row, _)| &row.url),
                number(|f| f.width),
                number(|f| f.height),
                text(|(.., f)| &f.sha256),
            ];
            writer
                .write(&RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(shards::ShardError::arrow(&path))?)?;
        }
        let data = writer.finish()?;
        let (dropped, quarantine) = quarantine.finish(&task.attempt.quarantine())?;
        let rows_out = data.rows;
        Ok(Outcome { data: vec![data], quarantine, rows_in, rows_out, dropped, observed, ..Outcome::default() })
    }
}
