//! Which jobs a plan needs, and which of them follow which.

use std::collections::BTreeSet;

use pipeline::manifest::Slurm;
use pipeline::plan::{Plan, PlannedStage};
use pipeline::stage::Partitioning;

use super::SlurmError;
use super::command::Task;
use super::record::Submitted;

/// A job to be submitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub stage: String,
    pub work: Work,
    pub resources: Slurm,
    pub after: Vec<After>,
}

/// What a job makes of its stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    Survey,
    /// The partitions, dealt to so many tasks of an array, of which these are to run; `partitions` of them are missing.
    Shares {
        tasks: usize,
        indices: BTreeSet<usize>,
        partitions: usize,
    },
    /// The one partition.
    One,
    /// The one partition, by so many processes together.
    Together {
        ranks: u64,
    },
}

/// What a job waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    pub job: Upstream,
    /// Task by task, instead of the whole.
    pub each: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// Its position among the jobs to be submitted.
    New(usize),
    /// Its number in the queue.
    Queued(u64),
}

impl Job {
    /// `bucket`, or `dedup-survey`.
    pub fn title(&self) -> String {
        title(&self.stage, self.work == Work::Survey)
    }

    /// The value of `--dependency`; `name` gives a job's number. Empty where it waits for nothing.
    pub fn dependency(&self, name: impl Fn(&Upstream) -> String) -> String {
        let of = |after: &After| format!("{}:{}", if after.each { "aftercorr" } else { "afterok" }, name(&after.job));
        self.after.iter().map(of).collect::<Vec<_>>().join(",")
    }
}

pub(super) fn title(stage: &str, is_survey: bool) -> String {
    if is_survey { format!("{stage}-survey") } else { stage.to_owned() }
}

/// A job of this plan that is to be waited for: of which stage, whether its survey, how many tasks (0: no array).
struct Pending {
    job: Upstream,
    stage: usize,
    is_survey: bool,
    tasks: usize,
}

/// The jobs that make what the plan's selected stages lack, beside those that are queued; inputs come first. `largest` is the
/// most tasks an array may have.
pub(super) fn jobs(plan: &Plan, queued: &[(Submitted, Vec<Task>)], largest: usize) -> Result<Vec<Job>, SlurmError> {
    if !plan.obstacles.is_empty() {
        return Err(SlurmError::Obstructed(plan.obstacles.clone()));
    }
    let mut jobs: Vec<Job> = Vec::new();
    let mut pending: Vec<Pending> = Vec::new();
    for (index, stage) in plan.stages.iter().enumerate() {
        let of_stage = queued.iter().filter(|(job, _)| job.stage == stage.name);
        pending.extend(of_stage.map(|(job, _)| Pending {
            job: Upstream::Queued(job.id),
            stage: index,
            is_survey: job.is_survey,
            tasks: job.tasks,
        }));
        let missing: Vec<usize> = stage.wanted().collect();
        if missing.is_empty() {
            continue;
        }
        let survey_is_queued = pending.iter().any(|p| p.stage == index && p.is_survey);
        if stage.lacks_survey() && !survey_is_queued {
            let after = of_inputs(stage, None, &pending);
            let resources = stage.slurm.clone();
            pending.push(Pending { job: Upstream::New(jobs.len()), stage: index, is_survey: true, tasks: 0 });
            jobs.push(Job { stage: stage.name.clone(), work: Work::Survey, resources, after });
        }
        let Some(work) = work(stage, &missing, queued, largest)? else { continue };
        let tasks = if let Work::Shares { tasks, .. } = &work { *tasks } else { 0 };
        let survey = pending.iter().find(|p| p.stage == index && p.is_survey);
        // Whatever the survey follows, the partitions follow with it.
        let after = match survey {
            Some(survey) => vec![After { job: survey.job, each: false }],
            None => of_inputs(stage, Some(tasks), &pending),
        };
        pending.push(Pending { job: Upstream::New(jobs.len()), stage: index, is_survey: false, tasks });
        jobs.push(Job { stage: stage.name.clone(), work, resources: stage.slurm.clone(), after });
    }
    Ok(jobs)
}

/// What makes a stage's missing partitions; `None` where all of it is queued.
fn work(
    stage: &PlannedStage,
    missing: &[usize],
    queued: &[(Submitted, Vec<Task>)],
    largest: usize,
) -> Result<Option<Work>, SlurmError> {
    let of_stage = || queued.iter().filter(|(job, _)| job.stage == stage.name && !job.is_survey);
    let (ranks, name) = (stage.slurm.ranks(), || stage.name.clone());
    let leader = stage.stage.leader(usize::try_from(ranks).unwrap_or(usize::MAX));
    if ranks > 1 && leader.map_err(|source| SlurmError::Together { stage: name(), ranks, source })?.is_none() {
        return Err(SlurmError::Alone { stage: name(), ranks });
    }
    if stage.partitions.len() == 1 {
        let work = if ranks > 1 { Work::Together { ranks } } else { Work::One };
        return Ok(of_stage().next().is_none().then_some(work));
    }
    let tasks = stage.slurm.tasks.unwrap_or(largest).min(largest).min(stage.partitions.len());
    if let Some((job, _)) = of_stage().find(|(job, _)| job.tasks != tasks) {
        return Err(SlurmError::OtherTasks { stage: name(), tasks, job: job.id, before: job.tasks });
    }
    let under_way: BTreeSet<usize> = of_stage().flat_map(|(_, tasks)| tasks).filter_map(|task| task.index).collect();
    let lacking = missing.iter().map(|number| number % tasks).filter(|index| !under_way.contains(index));
    let indices: BTreeSet<usize> = lacking.collect();
    Ok((!indices.is_empty()).then_some(Work::Shares { tasks, indices, partitions: missing.len() }))
}

/// What a job that reads a stage's inputs waits for; `tasks` are those of its array (`None`: it reads all of them).
fn of_inputs(stage: &PlannedStage, tasks: Option<usize>, pending: &[Pending]) -> Vec<After> {
    let by_number = match stage.stage.partitioning() {
        Partitioning::EachInput | Partitioning::Surveyed => stage.inputs.len() == 1,
        Partitioning::Joined => true,
        Partitioning::Source | Partitioning::Whole => false,
    };
    let of_input = stage.inputs.iter().enumerate().flat_map(|(position, input)| {
        let jobs = pending.iter().filter(move |p| p.stage == *input && !p.is_survey);
        jobs.map(move |p| {
            let is_array = tasks.is_some_and(|tasks| tasks > 0 && tasks == p.tasks);
            After { job: p.job, each: by_number && position == 0 && is_array }
        })
    });
    of_input.collect()
}
