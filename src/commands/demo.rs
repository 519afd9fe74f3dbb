//! `demo`: the demo origin, and `manifests/demo.toml` run against it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use demo::{Catalogue, HOST, Origin};
use pipeline::plan::{Plan, PlannedStage};
use pipeline::run::Options;
use shards::sidecar::Section;

use super::manifest::{Source, make};
use crate::errors::Usage;
use crate::settings::cancelled_by_interrupt;
use crate::stages;
use crate::stages::evaluate::{SUMMARY, TABLE, print_table};
use crate::watch::{self, Watch, say};

/// What the demo runs; the same file can be run, planned and changed like any other manifest.
const MANIFEST: &str = include_str!("../../manifests/demo.toml");

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Where everything goes: a folder of this machine.
    #[arg(long, default_value = "data/demo")]
    workdir: PathBuf,
    /// Port of the demo origin on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// How many URLs the list has.
    #[arg(long, default_value_t = demo::DEFAULT_PICTURES)]
    pictures: usize,
    /// Overrides a key of the manifest: --set stage.train.steps=100
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    watch: Watch,
}

impl Demo {
    pub(crate) fn run(self) -> Result<u8> {
        if self.workdir.to_string_lossy().contains("://") {
            let workdir = self.workdir.display();
            return Err(Usage(format!("--workdir {workdir}: the demo needs a folder of this machine")).into());
        }
        let cancel = cancelled_by_interrupt()?;
        let catalogue = Catalogue::new(self.pictures, demo::DEFAULT_SEED);
        shards::disk::create_folder(&self.workdir)?;
        let urls = self.workdir.join("urls.tsv");
        write_if_different(&urls, &catalogue.url_list())?;
        let manifest = self.workdir.join("demo.toml");
        // The copy names its own workdir, so that it can be run by itself afterwards.
        let here = format!("workdir = {}", quoted(&self.workdir.to_string_lossy()));
        write_if_different(&manifest, &MANIFEST.replace("workdir = \"data/demo\"", &here))?;

        let planted = catalogue.planted();
        let runtime = tokio::runtime::Runtime::new().context("cannot start the demo origin's threads")?;
        let origin = runtime.block_on(Origin::start(catalogue, self.port))?;
        let mut sets = vec![format!("stage.download.connect_to={{ \"{HOST}\" = \"{}\" }}", origin.address())];
        sets.extend(self.set.iter().cloned());
        let manifest_read = Source::new(manifest.clone(), sets).read()?;
        let mut plan = Plan::new(&manifest_read, &stages::registry())?;
        let code = make(None, &mut plan, manifest_read.notify.as_ref(), &Options::default(), self.watch, &cancel)?;
        runtime.block_on(origin.stop());
        runtime.shutdown_background();

        if plan.is_up_to_date() && self.watch.is_for_people() {
            let planted = planted.into_iter().map(|(fault, n)| (fault.name(), fault.is_lost(), n)).collect();
            summary(&plan, &manifest, &self.set, planted)?;
        }
        Ok(code)
    }
}

/// TOML text in quotes.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// An unchanged file keeps its time, so that nothing looks new. One that holds something else may be somebody's work: it gets another
/// name.
fn write_if_different(path: &Path, content: &str) -> Result<()> {
    match std::fs::read(path) {
        Ok(old) if old == content.as_bytes() => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        _ => {
            let before = free_name(path);
            shards::disk::rename(path, &before)?;
            watch::aside(format_args!(
                "note: {} held something else, which is now {}",
                path.display(),
                before.display()
            ));
        }
    }
    Ok(shards::disk::replace(path, content.as_bytes())?)
}

/// `demo.toml.before`, or where that is taken `demo.toml.before2`, and so on.
fn free_name(path: &Path) -> PathBuf {
    let mut first = path.as_os_str().to_owned();
    first.push(".before");
    let mut free = PathBuf::from(&first);
    let mut number = 1_u32;
    // A link that leads nowhere has its name all the same.
    while std::fs::symlink_metadata(&free).is_ok() {
        number += 1;
        let mut next = first.clone();
        next.push(number.to_string());
        free = next.into();
    }
    free
}

/// The download's own word for what the origin did to a row that passed or was refused.
fn reported_as(fault: &str) -> &'static str {
    match fault {
        "not_found" => "http_404",
        "server_error_once" => "recovered from http_500",
        "too_many_requests_once" => "recovered from http_429",
        "redirect" => "redirected",
        "stalled" => "timed_out",
        "truncated" => "truncated",
        "html_page" => "not_an_image",
        "corrupt_jpeg" => "damaged_image",
        "no_ai" => "opted_out",
        "unresolvable_host" => "unresolvable_host",
        _ => "",
    }
}

fn summary(
    plan: &Plan,
    manifest: &Path,
    sets: &[String],
    planted: Vec<(&'static str, bool, u64)>,
) -> std::io::Result<()> {
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    for sidecar in plan.stages.iter().filter(|s| s.name == "download").flat_map(PlannedStage::committed) {
        for (what, n) in sidecar.dropped.iter().chain(&sidecar.observed) {
            *found.entry(what.clone()).or_default() += n;
        }
    }
    say("\nWhat the origin planted, and what the download reported:")?;
    say(format_args!("  {:<24} {:>7}   {:<26} {:>8}", "planted", "URLs", "reported as", "rows"))?;
    for (fault, lost, urls) in planted {
        let name = reported_as(fault);
        let rows = found.get(name).copied().unwrap_or(0);
        let fate = if lost { "refused" } else { "kept" };
        let verdict = if rows == urls { "" } else { "  (differs)" };
        say(format_args!("  {fault:<24} {urls:>7}   {name:<26} {rows:>8}  {fate}{verdict}"))?;
    }
    let detail = |stage: &str, key: &str| {
        let stage = plan.stages.iter().find(|s| s.name == stage)?;
        let value = stage.committed().find_map(|s| s.details.get(key)?.as_str().map(str::to_owned))?;
        Some((stage, value))
    };
    say("\nSeconds of work by stage:")?;
    for stage in &plan.stages {
        let seconds: f64 = stage.committed().map(|s| s.seconds).sum();
        say(format_args!("  {:<10} {seconds:>7.1}", stage.name))?;
    }
    if let Some(bytes) = peak_memory() {
        say(format_args!("Peak memory of this process: {} MB", bytes >> 20))?;
    }
    let evaluated = plan.stages.iter().filter(|s| s.name == "evaluate").flat_map(PlannedStage::committed);
    for section in evaluated.flat_map(|sidecar| &sidecar.sections) {
        if let Section::Table { title, rows, .. } = section
            && title == TABLE
        {
            say("")?;
            print_table(rows.iter().map(Vec::as_slice))?;
        }
    }
    if let Some((_, words)) = detail("evaluate", SUMMARY) {
        say(format_args!("\n{words}"))?;
    }
    say("")?;
    for (title, stage, key) in [("checkpoint", "train", "checkpoint"), ("samples", "samples", "grid")] {
        if let Some((stage, file)) = detail(stage, key) {
            say(format_args!("{title:<11} {}", stage.folder.path().join(file).display()))?;
        }
    }
    say(format_args!("{:<11} {}", "report", pipeline::report::path(plan).display()))?;
    // An address to notify may be a secret, and changes nothing about what is made.
    let shown = sets.iter().filter(|set| !set.trim_start().starts_with("pipeline.notify"));
    let sets: Vec<String> = shown.map(|set| format!(" --set '{set}'")).collect();
    let (manifest, sets) = (manifest.display(), sets.concat());
    say(format_args!("\nThe same again, without the origin: ferrotype run {manifest}{sets}"))
}

/// The most memory this process has had at a time, in bytes; where the system says so.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
