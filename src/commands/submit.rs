//! `submit` and `cancel`: a manifest's stages as Slurm jobs.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use cluster::slurm::{self, After, Job, Request, Upstream, Work};
use pipeline::manifest::Manifest;
use pipeline::plan;

use super::manifest::{Selected, Source};
use crate::errors::OK;
use crate::stages;
use crate::words;

/// Where the jobs of a manifest are recorded.
#[derive(Debug, Args)]
pub(crate) struct JobsFolder {
    /// The folder of job scripts, logs and their record, which all nodes see [slurm in the workdir; slurm/NAME here for a workdir
    /// on a store].
    #[arg(long, value_name = "FOLDER")]
    jobs: Option<PathBuf>,
}

impl JobsFolder {
    pub(crate) fn of(&self, manifest: &Manifest) -> Result<slurm::Folder> {
        let is_remote = manifest.workdir.to_string_lossy().contains("://");
        let usual = if is_remote { Path::new("slurm").join(&manifest.name) } else { manifest.workdir.join("slurm") };
        let folder = self.jobs.clone().unwrap_or(usual);
        // Jobs may be started elsewhere.
        Ok(slurm::Folder::new(std::path::absolute(&folder).with_context(|| folder.display().to_string())?))
    }
}

#[derive(Debug, Args)]
pub(crate) struct Submit {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    selected: Selected,
    #[command(flatten)]
    jobs: JobsFolder,
    /// Print the scripts of all that is missing, and submit nothing.
    #[arg(long)]
    dry_run: bool,
}

impl Submit {
    pub(crate) fn run(&self) -> Result<u8> {
        let manifest = self.source.read()?;
        let selection = self.selected.selection();
        if selection.force {
            let text = "submit --force: partitions are made again by `run --force`; jobs make what is missing";
            return Err(crate::errors::Usage(text.to_owned()).into());
        }
        let plan = plan::Plan::select(&manifest, &stages::registry(), &selection)?;
        let mut arguments: Vec<OsString> = Vec::new();
        for set in self.source.sets() {
            arguments.extend(["--set".into(), set.into()]);
        }
        if selection.only_missing {
            arguments.push("--only-missing".into());
        }
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let request = Request { manifest: &manifest.text, arguments: &arguments, program: &program };
        let folder = self.jobs.of(&manifest)?;
        let mut out = std::io::stdout().lock();
        if self.dry_run {
            let jobs = folder.dry_run(&plan, &request)?;
            for (job, script) in &jobs {
                writeln!(out, "# ==> {}.sh\n{script}", job.name())?;
            }
            if jobs.is_empty() {
                writeln!(out, "Nothing to submit: everything is there.")?;
            }
            return Ok(OK);
        }
        let mut numbers = Vec::new();
        let submitted = folder.submit(&plan, &request, |job, id| {
            let text = in_words(job, id, &numbers);
            numbers.push(id);
            // Said at once: the next one may be refused.
            let _ = writeln!(out, "{text}");
        })?;
        match submitted {
            0 => writeln!(out, "Nothing to submit: everything is there or queued.")?,
            _ => writeln!(out, "Scripts and logs: {}", folder.path().display())?,
        }
        Ok(OK)
    }
}

/// `bucket: job 12, 118 tasks for 118 partitions, after 11`; `numbers` are those of the jobs before it.
fn in_words(job: &Job, id: u64, numbers: &[u64]) -> String {
    let what = match &job.work {
        Work::Survey => "the survey".to_owned(),
        Work::Shares { indices, partitions, .. } => {
            format!("{} for {}", words::of(indices.len(), "task"), words::of(*partitions, "partition"))
        }
        Work::One => "one partition".to_owned(),
        Work::Together { ranks } => format!("{ranks} processes"),
    };
    let number = |After { job, each }: &After| {
        let number = match job {
            Upstream::New(n) => numbers.get(*n).map(ToString::to_string).unwrap_or_default(),
            Upstream::Queued(id) => id.to_string(),
        };
        if *each { format!("{number} task by task") } else { number }
    };
    let after: Vec<String> = job.after.iter().map(number).collect();
    let after = if after.is_empty() { String::new() } else { format!(", after {}", after.join(" and ")) };
    format!("{}: job {id}, {what}{after}", job.title())
}

#[derive(Debug, Args)]
pub(crate) struct Cancel {
    #[command(flatten)]
    source: Source,
    /// Only this stage's jobs; may be given more than once.
    #[arg(long, value_name = "STAGE")]
    stage: Vec<String>,
    #[command(flatten)]
    jobs: JobsFolder,
}

impl Cancel {
    pub(crate) fn run(&self) -> Result<u8> {
        let manifest = self.source.read()?;
        let known: Vec<String> = manifest.stages.iter().map(|stage| stage.name.clone()).collect();
        if let Some(name) = self.stage.iter().find(|name| !known.contains(name)) {
            return Err(plan::PlanError::UnknownStage { name: name.clone(), known }.into());
        }
        let mut out = std::io::stdout().lock();
        let cancelled = self.jobs.of(&manifest)?.cancel(&self.stage)?;
        for job in &cancelled {
            writeln!(out, "{}: job {} cancelled", job.title(), job.id)?;
        }
        if cancelled.is_empty() {
            writeln!(out, "Nothing to cancel: no job of this manifest is queued.")?;
        }
        Ok(OK)
    }
}
