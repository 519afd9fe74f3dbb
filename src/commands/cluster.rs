//! `scheduler`, `executor` and `run --executor`: a Ballista cluster that makes partitions.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use cluster::ballista::{self, Address, Cluster, Patience};
use pipeline::manifest::{ByteSize, Manifest};
use pipeline::run::Options;

use super::manifest::{Budget, Source};
use crate::errors::OK;
use crate::stages;
use crate::watch::{self, Watch};

/// Partitions that a cluster is given at a time.
const AT_A_TIME: usize = 256;
const PORT: u16 = 50050;

#[derive(Debug, Args)]
pub(crate) struct Scheduler {
    /// Where to listen. Whoever reaches it can have manifests run: open it to a network that you trust, and no other.
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)))]
    bind: SocketAddr,
    /// The name under which executors and runs reach this machine [the address of --bind; this machine's name where that is 0.0.0.0].
    #[arg(long, value_name = "HOST")]
    public: Option<String>,
    /// After so many seconds without a sign of life an executor is lost, and its partitions are made elsewhere.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(2..))]
    lost_after: u64,
    /// After so many seconds the partitions of an executor that was told to end, and gives them up, are made elsewhere.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    leaving: u64,
    /// So many seconds after the last executor was lost, runs end with an error.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    nobody: u64,
}

impl Scheduler {
    pub(crate) fn run(&self) -> Result<u8> {
        ballista::show_warnings();
        let public = self.public.clone().unwrap_or_else(|| match self.bind.ip() {
            ip if ip.is_unspecified() => shards::lease::host_name(),
            ip => ip.to_string(),
        });
        let patience = Patience {
            lost_after: Duration::from_secs(self.lost_after),
            leaving: Duration::from_secs(self.leaving),
            nobody: Duration::from_secs(self.nobody),
        };
        let runtime = runtime()?;
        runtime.block_on(async {
            let scheduler = ballista::Scheduler::bind(self.bind, &public, patience).await?;
            writeln!(std::io::stdout(), "The scheduler listens: ballista://{}", scheduler.address())?;
            scheduler.serve().await?;
            Ok(OK)
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct Executor {
    /// The scheduler of the cluster.
    #[arg(value_name = "ballista://HOST:PORT")]
    scheduler: Address,
    /// The address to listen at. Whoever reaches it can have manifests run: open it to a network that you trust, and no other.
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::from(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
    /// The name under which the scheduler and other executors reach this machine [the address that the scheduler sees].
    #[arg(long, value_name = "HOST")]
    public: Option<String>,
    /// The first of two ports to listen at [two that are free].
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Partitions to make at a time, and cores that they may keep busy [all].
    #[arg(long)]
    cores: Option<usize>,
    /// Memory for partitions whose stage says how much they take, such as 8GB [four fifths of the machine's].
    #[arg(long)]
    memory: Option<ByteSize>,
    /// Seconds between two signs of life. The executor ends when five in a row find no scheduler.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    heartbeat: u64,
    /// A folder for what queries spill and pass on, on a disk of this machine [one of its own among temporary files].
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,
    #[command(flatten)]
    watch: Watch,
}

impl Executor {
    pub(crate) fn run(&self) -> Result<u8> {
        ballista::show_warnings();
        let usual = Options::default();
        let options = Options {
            cores: self.cores.map_or(usual.cores, |cores| cores.max(1)),
            memory: self.memory.map_or(usual.memory, |size| size.0),
            ..usual
        };
        let own = match &self.scratch {
            Some(_) => None,
            None => Some(tempfile::tempdir().context("cannot create a folder for temporary files")?),
        };
        let scratch = self.scratch.clone().or_else(|| own.as_ref().map(|folder| folder.path().to_owned()));
        let executor = ballista::Executor {
            scheduler: self.scheduler.clone(),
            bind: self.bind,
            public: self.public.clone(),
            port: self.port,
            heartbeat: Duration::from_secs(self.heartbeat),
            scratch: scratch.unwrap_or_default(),
            options,
            events: watch::sink(self.watch.style()),
            registry: stages::registry(),
        };
        let (address, cores, quiet) = (self.scheduler.clone(), options.cores, !self.watch.is_for_people());
        runtime()?.block_on(executor.serve(|[first, second]| {
            if !quiet {
                watch::aside(format_args!(
                    "An executor of ballista://{address}: {cores} at a time, ports {first} and {second}"
                ));
            }
        }))?;
        Ok(OK)
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().context("cannot start a runtime")
}

impl Budget {
    /// The cluster behind `address`, for a run of this manifest.
    pub(super) fn cluster(&self, address: &Address, source: &Source, manifest: &Manifest) -> Result<Cluster> {
        let Manifest { text, file, .. } = manifest;
        let manifest = ballista::Manifest { text: text.clone(), file: file.clone(), sets: source.sets().to_vec() };
        let cluster = Cluster::connect(address.clone(), manifest, self.cores().unwrap_or(AT_A_TIME))?;
        if !cluster.has_executors()? {
            watch::aside(format_args!(
                "note: the cluster at ballista://{address} has no executor yet; `ferrotype executor` starts one"
            ));
        }
        Ok(cluster)
    }
}
