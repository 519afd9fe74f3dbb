//! A plan as Slurm jobs: an array a stage, whose tasks are `ferrotype worker`s.
//!
//! A stage's partitions are dealt to the tasks of its array by their numbers; where a stage reads partition by partition and is
//! dealt alike, task k of one follows task k of the other (`aftercorr`), and those whose inputs are there are an array
//! of their own, which waits for nothing, unless a limit (`at_once`) holds for all together; else a stage follows the whole of what it
//! reads (`afterok`). A record in a folder that all nodes share says which jobs there are, so that submitting again submits only what
//! is neither there nor queued.

mod command;
mod here;
mod jobs;
mod record;
mod script;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use pipeline::plan::Plan;
use pipeline::stage::StageError;
use shards::ShardError;
use shards::digest::Digest;

pub use command::Task;
pub use here::Here;
pub use jobs::{After, Job, Upstream, Work};
use record::Record;
pub use record::Submitted;
pub use script::{Context, quoted};

/// Why something could not be had from Slurm.
#[derive(Debug, thiserror::Error)]
pub enum SlurmError {
    #[error(
        "{program} cannot be started: {source}; run this on a machine of the cluster that may submit jobs, or see the scripts with submit --dry-run"
    )]
    Start { program: &'static str, source: std::io::Error },
    #[error("{program} {arguments}: {said}")]
    Refused { program: &'static str, arguments: String, said: String },
    #[error("sbatch answered {said:?}, which is no job number")]
    NoNumber { said: String },
    #[error("{}", .0.join("\n"))]
    Obstructed(Vec<String>),
    #[error(
        "stage {stage} asks for {ranks} processes that make a partition together (nodes × tasks_per_node), but one process makes it \
         alone: remove them from [stage.{stage}.slurm]; more tasks at a time are `at_once`"
    )]
    Alone { stage: String, ranks: u64 },
    #[error("stage {stage}, with {ranks} processes")]
    Together { stage: String, ranks: u64, source: StageError },
    #[error(
        "jobs of another version of this manifest are still queued ({jobs}): wait for their end, or cancel them first \
         (ferrotype cancel)"
    )]
    OtherManifest { jobs: String },
    #[error(
        "stage {stage} is now dealt to {tasks} tasks, and its job {job}, which is still queued, to {before}: wait for its end, or \
         cancel it first (ferrotype cancel)"
    )]
    OtherTasks { stage: String, tasks: usize, job: u64, before: usize },
    #[error("another submit or cancel of this manifest is at work ({folder} is locked): wait for its end")]
    Busy { folder: PathBuf },
    #[error("{path}: {source}")]
    Record { path: PathBuf, source: serde_json::Error },
    #[error(
        "this job was stopped by the end of its time {restarts} times, and may be queued again {requeues} times: give it more time \
         (slurm.time), smaller partitions, or more slurm.requeues"
    )]
    TooManyRequeues { restarts: u32, requeues: u32 },
    #[error(transparent)]
    Shard(#[from] ShardError),
}

/// Where a manifest's jobs are recorded, with their scripts, logs and the manifest that they run.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

/// What a submission is made of, beside the plan.
#[derive(Debug)]
pub struct Request<'a> {
    /// The manifest's text: jobs run a copy of it, so that it may be edited while they wait.
    pub manifest: &'a str,
    /// Arguments of workers after the manifest: its overrides.
    pub arguments: &'a [OsString],
    /// This program, where nodes find it.
    pub program: &'a Path,
}

impl Folder {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The recorded jobs of which something is still queued or running, with those tasks. Slurm is asked only where some are recorded.
    pub fn alive(&self) -> Result<Vec<(Submitted, Vec<Task>)>, SlurmError> {
        let record = Record::read(&self.path)?;
        if record.jobs.is_empty() {
            return Ok(Vec::new());
        }
        let mut tasks: BTreeMap<u64, Vec<Task>> = BTreeMap::new();
        for task in command::queue()? {
            tasks.entry(task.job).or_default().push(task);
        }
        Ok(record.jobs.into_iter().filter_map(|job| tasks.remove(&job.id).map(|tasks| (job, tasks))).collect())
    }

    /// The jobs that are wanted and not queued yet, each with its script, as a submission would make them.
    pub fn dry_run(&self, plan: &Plan, request: &Request) -> Result<Vec<(Job, String)>, SlurmError> {
        let context = self.context(plan, request);
        let jobs = jobs::jobs(plan, &[], command::DEFAULT_ARRAY)?;
        let name = |job: &Upstream| match job {
            Upstream::Queued(id) => id.to_string(),
            Upstream::New(n) => jobs.get(*n).map(|job| format!("<job of {}>", job.name())).unwrap_or_default(),
        };
        Ok(jobs.iter().map(|job| (job.clone(), script::script(job, &context, &job.dependency(name)))).collect())
    }

    /// Submits what is neither there nor queued; `told` hears of each job with its number.
    pub fn submit(&self, plan: &Plan, request: &Request, mut told: impl FnMut(&Job, u64)) -> Result<usize, SlurmError> {
        shards::disk::create_folder(&self.path)?;
        let _held = self.lock()?;
        let alive = self.alive()?;
        let context = self.context(plan, request);
        let version = Digest::of(format!("{}\n{:?}", request.manifest, request.arguments).as_bytes()).short();
        if alive.iter().any(|(job, _)| job.version != version) {
            let jobs: Vec<String> = alive.iter().map(|(job, _)| format!("{} {}", job.title(), job.id)).collect();
            return Err(SlurmError::OtherManifest { jobs: jobs.join(", ") });
        }
        if plan.is_up_to_date() {
            return Ok(0);
        }
        let jobs = jobs::jobs(plan, &alive, command::largest_array()?)?;
        if jobs.is_empty() {
            return Ok(0);
        }
        shards::disk::replace(&context.manifest, request.manifest.as_bytes())?;
        let mut record = Record { jobs: alive.into_iter().map(|(job, _)| job).collect() };
        let mut numbers: Vec<u64> = Vec::new();
        for job in &jobs {
            let name = |upstream: &Upstream| match upstream {
                Upstream::Queued(id) => id.to_string(),
                Upstream::New(n) => numbers.get(*n).map(u64::to_string).unwrap_or_default(),
            };
            let file = self.path.join(format!("{}.sh", job.name()));
            shards::disk::replace(&file, script::script(job, &context, &job.dependency(name)).as_bytes())?;
            let id = command::submit(&file)?;
            // At once: a job that nobody remembers would be submitted again.
            record.jobs.push(Submitted::new(job, id, version.clone()));
            record.write(&self.path)?;
            told(job, id);
            numbers.push(id);
        }
        Ok(jobs.len())
    }

    /// Cancels what is still queued or running, of these stages or (where none is named) of all; returns those jobs.
    pub fn cancel(&self, stages: &[String]) -> Result<Vec<Submitted>, SlurmError> {
        if !self.path.is_dir() {
            return Ok(Vec::new());
        }
        let _held = self.lock()?;
        let alive = self.alive()?.into_iter().map(|(job, _)| job);
        let meant: Vec<Submitted> = alive.filter(|job| stages.is_empty() || stages.contains(&job.stage)).collect();
        // The last first: what waits for another would start, or be taken for hopeless, in between.
        for job in meant.iter().rev() {
            command::cancel(job.id)?;
        }
        Ok(meant)
    }

    /// Keeps others from submitting and cancelling until the file is dropped: each goes by the record, and writes it anew.
    fn lock(&self) -> Result<File, SlurmError> {
        let path = self.path.join("lock");
        let file = File::create(&path).map_err(ShardError::io("create", &path))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(SlurmError::Busy { folder: self.path.clone() }),
            // Some clusters' file systems cannot lock files; their users may submit all the same.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
        }
    }

    fn context(&self, plan: &Plan, request: &Request) -> Context {
        Context {
            pipeline: plan.name.clone(),
            program: request.program.to_owned(),
            manifest: self.path.join("manifest.toml"),
            arguments: request.arguments.to_vec(),
            folder: self.path.clone(),
        }
    }
}
