//! What a manifest says of a download: what determines the result, and how it is done.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shards::columns;

use super::url_list::{self, ColumnNames, Format, UrlList};
use crate::manifest::{Diagnostic, OneOrMore, Parameters};
use crate::stages::fields::NamedColumns;
use picture::{Check, Resize};

/// What determines the result.
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the manifest")]
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct Semantics {
    /// Which columns of the list hold what.
    #[serde(default)]
    columns: Columns,
    /// Further columns of the list: names of them, to be passed on as they are (of csv and tsv as text), or each with its type:
    /// { WIDTH = "integer", similarity = "number" }. Types are number, integer, boolean and text; a field that is empty, or of
    /// another type, is null.
    #[serde(default)]
    additional_columns: NamedColumns,
    /// The names of all columns, in their order, of a csv or tsv list that does not begin with them [its first line].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    header: Vec<String>,
    /// Of a tsv list: fields that hold tabs, line breaks or quotation marks stand in quotation marks, as in csv; pandas and Python's
    /// csv write them so [false].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    quotes: bool,
    /// First part of every key [the list's file name without its ending].
    #[serde(default)]
    source: String,
    /// Rows of the list in one shard [10000].
    #[serde(default = "default_rows")]
    pub(super) rows_per_shard: u64,
    /// Larger answers are refused, in bytes [20 MB].
    #[serde(default = "default_bytes")]
    pub(super) max_bytes: u64,
    /// Larger images are refused, in pixels [100 million].
    #[serde(default = "default_pixels")]
    pub(super) max_pixels: u64,
    /// Our name in `X-Robots-Tag: NAME: noai` and in robots.txt [ferrotype].
    #[serde(default = "default_token")]
    pub(super) user_agent_token: String,
    /// Answers whose X-Robots-Tag holds one of these are refused [noai, noimageai, noindex, noimageindex].
    #[serde(default = "default_directives")]
    pub(super) disallowed_header_directives: Vec<String>,
    /// Refuse answers with the header `tdm-reservation: 1` [true].
    #[serde(default = "yes")]
    pub(super) tdm_reservation: bool,
    /// Ask each host for its robots.txt, and follow it [false].
    #[serde(default)]
    pub(super) robots_txt: bool,
    /// How an image that is kept as served is checked: `decode` all of it, or read its `header` and look for its end [decode].
    #[serde(default)]
    pub(super) check: Check,
    /// What is made of an image [nothing: its bytes are kept as served].
    #[serde(default)]
    pub(super) resize: Resize,
    /// Hash of the bytes as served, as a column of its name [sha256].
    #[serde(default)]
    pub(super) compute_hash: Hash,
    /// Add a perceptual hash of 64 bits (dHash, as in `dedup`) as the column phash [false].
    #[serde(default)]
    pub(super) compute_phash: bool,
    /// Compare the bytes with a hash in the list.
    #[serde(default)]
    pub(super) verify_hash: Option<VerifyHash>,
    /// Add the EXIF tags as a JSON object in the column exif [false].
    #[serde(default)]
    pub(super) extract_exif: bool,
    /// Shards of ours, which later stages read, or img2dataset's layout for programs that read that [parquet].
    #[serde(default)]
    pub(super) output: Output,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct Columns {
    /// The column of addresses.
    #[serde(default = "url_column")]
    url: String,
    /// That of captions; "" where the list has none.
    #[serde(default = "caption_column")]
    caption: String,
}

impl Default for Columns {
    fn default() -> Self {
        Self { url: url_column(), caption: caption_column() }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Hash {
    #[default]
    Sha256,
    Sha512,
    Md5,
    None,
}

impl Hash {
    /// The column that it makes.
    pub(super) fn column(self) -> Option<&'static str> {
        match self {
            Self::Sha256 => Some(columns::SHA256),
            Self::Sha512 => Some("sha512"),
            Self::Md5 => Some("md5"),
            Self::None => None,
        }
    }
}

/// Three verdicts: the same bytes; other bytes of the same picture, which the site has re-encoded; another picture.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct VerifyHash {
    /// The list's column that holds the hash, in hexadecimal; rows without one are not compared.
    pub(super) column: String,
    /// Which hash it is: sha256, sha512 or md5.
    #[serde(rename = "type")]
    pub(super) kind: Hash,
    /// The list's column of 64-bit perceptual hashes (dHash, 16 hexadecimal digits), for the second verdict.
    #[serde(default)]
    pub(super) phash_column: Option<String>,
    /// Bits by which perceptual hashes of the same picture may differ [6].
    #[serde(default = "default_distance")]
    pub(super) distance: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Output {
    #[default]
    Parquet,
    Webdataset,
}

/// How it is done; changes nothing about what a given answer becomes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(super) struct Operations {
    /// The list of URLs: a file or folder, here or at hf://datasets/…, s3://… or https://…; or several.
    pub(super) urls: OneOrMore,
    /// txt, csv, tsv, json, jsonl or parquet; all but the last may be compressed by gzip [by the ending].
    #[serde(default)]
    input_format: Option<Format>,
    /// Only the first so many rows of the list [all].
    #[serde(default)]
    limit: Option<u64>,
    /// Requests in flight, of all partitions together [256].
    #[serde(default = "default_in_flight")]
    pub(super) in_flight: usize,
    /// How gently each host is treated.
    #[serde(default)]
    pub(super) per_host: PerHost,
    /// Partitions at a time [2].
    #[serde(default = "default_partitions")]
    pub(super) partitions: usize,
    /// Seconds for a name and a connection, TLS included [5].
    #[serde(default = "default_connect_timeout")]
    pub(super) connect_timeout: f64,
    /// Seconds from the request to the answer's headers [timeout].
    #[serde(default)]
    pub(super) first_byte_timeout: Option<f64>,
    /// Seconds that one try may take in all [10].
    #[serde(default = "default_timeout")]
    pub(super) timeout: f64,
    /// Slower transfers are given up, in bytes per second over three seconds; 0 is without limit [1000].
    #[serde(default = "default_rate")]
    pub(super) min_bytes_per_second: f64,
    /// The most bytes per second of all requests together; 0 is without limit [0].
    #[serde(default)]
    pub(super) bytes_per_second: f64,
    /// Memory for images under way; what waits for an earlier row goes to disk above a share of it [256 MB].
    #[serde(default = "default_buffer")]
    pub(super) buffer_bytes: u64,
    /// Further tries after a failure that may pass; a 429 is none of them while its host answers others [2].
    #[serde(default = "default_retries")]
    pub(super) retries: u32,
    /// Stop, blaming no row, when so many tries in a row have reached no host; 0 is never [100].
    #[serde(default = "default_unreachable")]
    pub(super) stop_when_unreachable: usize,
    /// Sent with every request.
    #[serde(default = "default_agent")]
    pub(super) user_agent: String,
    /// Host names and the address to connect to for them: { "host" = "127.0.0.1:8080" }.
    #[serde(default)]
    connect_to: BTreeMap<String, String>,
    /// Private networks that may be connected to, such as "127.0.0.0/8"; all others are refused.
    #[serde(default)]
    allow_networks: Vec<String>,
    /// Name servers to ask, such as "9.9.9.9:53" [those of this machine].
    #[serde(default)]
    nameservers: Vec<String>,
    /// A PEM file of certificates to trust besides those of this machine.
    #[serde(default)]
    pub(super) trusted_certificates: Option<PathBuf>,
}

/// Limits that keep a site from taking us for an attack.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub(super) struct PerHost {
    /// Requests at a time [16].
    #[serde(default = "default_per_host")]
    pub(super) in_flight: usize,
    /// Requests begun in a second, fewer where the host says 429; 0 is without limit [50].
    #[serde(default = "default_per_second")]
    pub(super) per_second: f64,
}

impl Default for PerHost {
    fn default() -> Self {
        Self { in_flight: default_per_host(), per_second: default_per_second() }
    }
}

pub(super) fn default_rows() -> u64 {
    10_000
}
fn default_bytes() -> u64 {
    20_000_000
}
fn default_pixels() -> u64 {
    100_000_000
}
fn default_token() -> String {
    "ferrotype".to_owned()
}
fn default_directives() -> Vec<String> {
    ["noai", "noimageai", "noindex", "noimageindex"].map(str::to_owned).to_vec()
}
fn yes() -> bool {
    true
}
fn url_column() -> String {
    columns::URL.to_owned()
}
fn caption_column() -> String {
    columns::CAPTION.to_owned()
}
fn default_distance() -> u32 {
    6
}
fn default_in_flight() -> usize {
    256
}
fn default_partitions() -> usize {
    2
}
fn default_connect_timeout() -> f64 {
    5.0
}
fn default_timeout() -> f64 {
    10.0
}
fn default_rate() -> f64 {
    1000.0
}
fn default_buffer() -> u64 {
    256_000_000
}
fn default_retries() -> u32 {
    2
}
fn default_unreachable() -> usize {
    100
}
fn default_per_host() -> usize {
    16
}
fn default_per_second() -> f64 {
    50.0
}
fn default_agent() -> String {
    format!("Mozilla/5.0 (compatible; ferrotype/{})", env!("CARGO_PKG_VERSION"))
}

/// A download as its manifest wants it.
pub(super) struct Wanted {
    pub(super) semantics: Semantics,
    pub(super) operations: Operations,
    pub(super) list: UrlList,
    pub(super) connect_to: BTreeMap<String, SocketAddr>,
    pub(super) nameservers: Vec<SocketAddr>,
    pub(super) allowed: Vec<IpNet>,
}

const RELATIVE_PATHS: &str =
    "a path is looked up from the folder that the command runs in; \"{workdir}/…\" is below the workdir";

impl Wanted {
    pub(super) fn read(parameters: &Parameters) -> Result<Self, Diagnostic> {
        let mut semantics: Semantics = parameters.read()?;
        let operations: Operations = parameters.read()?;
        check_numbers(&semantics, &operations, parameters)?;
        let locations = operations.urls.as_slice();
        if semantics.source.is_empty() {
            semantics.source = stem(locations.first().map_or("", String::as_str));
        }
        if let Err(fault) = semantics.resize.check() {
            return Err(parameters.fault("resize", format!("resize: {fault}")));
        }
        if semantics.verify_hash.as_ref().is_some_and(|verify| verify.kind == Hash::None) {
            return Err(parameters.fault("verify_hash", "verify_hash: type must be sha256, sha512 or md5"));
        }
        let mut connect_to = BTreeMap::new();
        for (host, address) in &operations.connect_to {
            let address = socket(address, "connect_to", parameters)?;
            connect_to.insert(host.to_lowercase(), address);
        }
        let nameservers = operations.nameservers.iter();
        let nameservers =
            nameservers.map(|address| socket(address, "nameservers", parameters)).collect::<Result<_, _>>()?;
        let mut allowed = Vec::new();
        for network in &operations.allow_networks {
            let network: IpNet = network.parse().map_err(|_malformed| {
                let message = format!("allow_networks: `{network}` is not a network such as 10.0.0.0/8");
                parameters.fault("allow_networks", message)
            })?;
            allowed.push(network);
        }
        let list = semantics.list(&operations, operations.urls.as_slice().to_vec());
        if let Err(error) = list.check() {
            let key = if error.is_about_columns() && parameters.has("columns") { "columns" } else { "urls" };
            let fault = parameters.fault(key, &error);
            return Err(if error.is_absent() { fault.hint(RELATIVE_PATHS) } else { fault });
        }
        Ok(Self { semantics, operations, list, connect_to, nameservers, allowed })
    }
}

impl Semantics {
    fn list(&self, operations: &Operations, locations: Vec<String>) -> UrlList {
        let verify = self.verify_hash.as_ref();
        let additional = self.additional_columns.all();
        let names = ColumnNames {
            url: self.columns.url.clone(),
            caption: Some(self.columns.caption.clone()).filter(|name| !name.is_empty()),
            hash: verify.map(|verify| verify.column.clone()),
            phash: verify.and_then(|verify| verify.phash_column.clone()),
            extra: additional.iter().map(|(name, _)| name.clone()).collect(),
            types: additional.into_iter().filter_map(|(name, kind)| Some((name, kind?))).collect(),
            header: self.header.clone(),
            quotes: self.quotes,
        };
        let limit = operations.limit.unwrap_or(u64::MAX);
        UrlList::new(locations, operations.input_format, names, &self.source, self.rows_per_shard, limit)
    }

    /// Whether the list is said to have captions.
    pub(super) fn has_captions(&self) -> bool {
        !self.columns.caption.is_empty()
    }
}

fn check_numbers(semantics: &Semantics, operations: &Operations, parameters: &Parameters) -> Result<(), Diagnostic> {
    let positive = [
        ("rows_per_shard", semantics.rows_per_shard),
        ("in_flight", operations.in_flight as u64),
        ("per_host", operations.per_host.in_flight as u64),
        ("partitions", operations.partitions as u64),
        ("max_bytes", semantics.max_bytes),
        ("max_pixels", semantics.max_pixels),
        ("buffer_bytes", operations.buffer_bytes),
    ];
    if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
        return Err(parameters.fault(key, format!("{key} = 0: expected 1 or more")));
    }
    let seconds = [
        ("timeout", operations.timeout),
        ("connect_timeout", operations.connect_timeout),
        ("first_byte_timeout", operations.first_byte_timeout.unwrap_or(1.0)),
    ];
    if let Some((key, _)) = seconds.iter().find(|(_, value)| !(*value > 0.0 && *value <= 3600.0)) {
        return Err(parameters.fault(key, format!("{key} must be more than 0 and at most 3600 seconds")));
    }
    let rates = [
        ("min_bytes_per_second", operations.min_bytes_per_second),
        ("bytes_per_second", operations.bytes_per_second),
        ("per_host", operations.per_host.per_second),
    ];
    match rates.iter().find(|(_, value)| !(*value >= 0.0 && value.is_finite())) {
        Some((key, value)) => Err(parameters.fault(key, format!("{key}: {value} is not a rate: expected 0 or more"))),
        None => Ok(()),
    }
}

fn socket(text: &str, key: &str, parameters: &Parameters) -> Result<SocketAddr, Diagnostic> {
    text.parse().map_err(|_malformed| {
        parameters.fault(key, format!("{key}: `{text}` is not an address such as 127.0.0.1:8080"))
    })
}

/// The name of a location without its endings: `cc12m` of `hf://datasets/…/cc12m.tsv.gz`.
fn stem(location: &str) -> String {
    let name = url_list::name_of(location);
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    match name.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem.to_owned(),
        _ => name.to_owned(),
    }
}
