//! What the engine itself costs: a DAG of stages × partitions of no work.
//!
//! `cargo bench --workspace --bench overhead`, or `make bench-engine`, which sets it beside Snakemake and DVC.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark prints, and may fail by panicking")]

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use pipeline::manifest::Manifest;
use pipeline::plan::Plan;
use pipeline::run::{Options, run};
use pipeline::stage::{
    Cancel, Law, Outcome, Partitioning, Registry, Source, Stage, StageError, StageKind, Task, as_it_is,
};
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::digest::Digest;
use shards::event::EventSink;

const STAGES: usize = 6;
const PARTITIONS: usize = 10_000;

/// A partition of no work: it says how many rows it has, and leaves no data.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Nothing {
    partitions: usize,
    rows: u64,
    first: bool,
}

impl Stage for Nothing {
    fn semantics(&self) -> Value {
        serde_json::json!({ "rows": self.rows })
    }
    fn partitioning(&self) -> Partitioning {
        if self.first { Partitioning::Source } else { Partitioning::EachInput }
    }
    fn law(&self) -> Law {
        Law::RowWise
    }
    fn sources(&self, _folder: &std::path::Path) -> Result<Vec<Source>, StageError> {
        let source = |n: usize| Source { name: format!("{n}"), digest: Digest::of(&n.to_le_bytes()), rows: self.rows };
        Ok(if self.first { (0..self.partitions).map(source).collect() } else { Vec::new() })
    }
    fn process(&self, _: &Task) -> Result<Outcome, StageError> {
        Ok(Outcome { rows_in: self.rows, rows_out: self.rows, ..Outcome::default() })
    }
}

fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add(StageKind {
        name: "nothing",
        version: 1,
        about: "No work.",
        inputs: (0, 1),
        schemas: || vec![schema_for!(Nothing)],
        rehearse: as_it_is,
        build: |parameters| parameters.read::<Nothing>().map(|stage| Box::new(stage) as Box<dyn Stage>),
    });
    registry
}

fn manifest(workdir: &Path, rows: u64) -> Manifest {
    let mut text = format!("[pipeline]\nname = \"overhead\"\nworkdir = '{}'\n", workdir.display());
    for i in 0..STAGES {
        let from = if i == 0 { String::new() } else { format!("from = \"s{}\"\n", i - 1) };
        let first = i == 0;
        let _ = write!(
            text,
            "[stage.s{i}]\nuses = \"nothing\"\npartitions = {PARTITIONS}\nrows = {rows}\nfirst = {first}\n{from}"
        );
    }
    Manifest::parse(&text, Path::new("overhead.toml"), &[]).unwrap()
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed().as_secs_f64())
}

/// Resident memory of this process in MB: now, and at its most.
fn memory() -> [u64; 2] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ["VmRSS:", "VmHWM:"].map(|name| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) / 1024
    })
}

fn main() {
    // Beside the target directory, which lies on a disk; a temporary folder may lie in memory.
    let place = std::env::var_os("CARGO_TARGET_DIR").map_or_else(std::env::temp_dir, Into::into);
    println!("{STAGES} stages × {PARTITIONS} partitions of no work, two cores:");
    for rows in [1, 1_000_000] {
        let folder = tempfile::tempdir_in(&place).unwrap();
        let manifest = manifest(folder.path(), rows);
        let options = Options { cores: 2, ..Options::default() };
        let (mut plan, fresh) = timed(|| Plan::new(&manifest, &registry()).unwrap());
        let (_, ran) = timed(|| run(&mut plan, &options, &EventSink::silent(), &Cancel::default()).unwrap());
        assert!(plan.is_up_to_date());
        drop(plan);
        let (mut plan, known) = timed(|| Plan::new(&manifest, &registry()).unwrap());
        let (_, nothing) = timed(|| run(&mut plan, &options, &EventSink::silent(), &Cancel::default()).unwrap());
        let [_, peak] = memory();
        println!("  {rows} rows a partition");
        println!("    plan, nothing made yet     {fresh:>7.2} s        (2 s asked for)");
        println!(
            "    run                        {:>7.0} partitions/s (2000 asked for)",
            (STAGES * PARTITIONS) as f64 / ran
        );
        println!("    plan, everything there     {known:>7.2} s        (2 s asked for)");
        println!("    plan and run, nothing to do{:>7.2} s        (2 s asked for)", known + nothing);
        println!("    peak memory                {peak:>7} MB");
    }
}
