//! Which jobs a plan needs, and which of them follow which.

use std::collections::{BTreeMap, BTreeSet};

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
    /// Which of the stage's jobs it is, counted from 1, where its partitions are dealt to the tasks of several.
    pub part: Option<usize>,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

    /// `bucket`, or `bucket.2`: its title, by which a submission's jobs can be told apart.
    pub fn name(&self) -> String {
        let title = self.title();
        match self.part {
            Some(part) => format!("{title}.{part}"),
            None => title,
        }
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

/// A job of this plan that is to be waited for.
struct Pending {
    job: Upstream,
    stage: usize,
    is_survey: bool,
    /// To so many the stage's partitions are dealt; 0 where it is no array.
    tasks: usize,
    /// Of these, the ones that are still to run.
    indices: BTreeSet<usize>,
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
        pending.extend(of_stage.map(|(job, tasks)| Pending {
            job: Upstream::Queued(job.id),
            stage: index,
            is_survey: job.is_survey,
            tasks: job.tasks,
            indices: tasks.iter().filter_map(|task| task.index).collect(),
        }));
        let missing: Vec<usize> = stage.wanted().collect();
        if missing.is_empty() {
            continue;
        }
        let survey_is_queued = pending.iter().any(|p| p.stage == index && p.is_survey);
        if stage.lacks_survey() && !survey_is_queued {
            let (job, resources) = (Upstream::New(jobs.len()), stage.slurm.clone());
            let after = of_inputs(stage, &pending).map(|(_, p)| After { job: p.job, each: false }).collect();
            pending.push(Pending { job, stage: index, is_survey: true, tasks: 0, indices: BTreeSet::new() });
            jobs.push(Job { stage: stage.name.clone(), part: None, work: Work::Survey, resources, after });
        }
        let Some(work) = work(stage, &missing, queued, largest)? else { continue };
        let survey = pending.iter().find(|p| p.stage == index && p.is_survey);
        // Whatever the survey follows, the partitions follow with it.
        let parts = match survey {
            Some(survey) => vec![(work, vec![After { job: survey.job, each: false }])],
            None => in_parts(stage, work, &missing, &pending),
        };
        let is_divided = parts.len() > 1;
        for (part, (work, after)) in (1..).zip(parts) {
            let part = is_divided.then_some(part);
            let (job, resources) = (Upstream::New(jobs.len()), stage.slurm.clone());
            let (tasks, indices) = match &work {
                Work::Shares { tasks, indices, .. } => (*tasks, indices.clone()),
                _ => (0, BTreeSet::new()),
            };
            pending.push(Pending { job, stage: index, is_survey: false, tasks, indices });
            jobs.push(Job { stage: stage.name.clone(), part, work, resources, after });
        }
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

/// The jobs that make what a stage reads, each with the position of its stage among the inputs.
fn of_inputs<'a>(stage: &'a PlannedStage, pending: &'a [Pending]) -> impl Iterator<Item = (usize, &'a Pending)> {
    stage.inputs.iter().enumerate().flat_map(move |(position, input)| {
        pending.iter().filter(move |p| p.stage == *input && !p.is_survey).map(move |p| (position, p))
    })
}

/// A stage's work, cut where parts of it follow different jobs, each with what it follows.
fn in_parts(stage: &PlannedStage, work: Work, missing: &[usize], pending: &[Pending]) -> Vec<(Work, Vec<After>)> {
    let by_number = match stage.stage.partitioning() {
        Partitioning::EachInput | Partitioning::Surveyed => stage.inputs.len() == 1,
        Partitioning::Joined => true,
        Partitioning::Source | Partitioning::Whole => false,
    };
    let Work::Shares { tasks, indices, .. } = &work else {
        let after = of_inputs(stage, pending).map(|(_, p)| After { job: p.job, each: false }).collect();
        return vec![(work, after)];
    };
    // Task k of such an array makes what task k reads.
    let is_alike = |position: usize, p: &Pending| by_number && position == 0 && p.tasks == *tasks;
    let alike: Vec<&Pending> = of_inputs(stage, pending).filter(|(n, p)| is_alike(*n, p)).map(|(_, p)| p).collect();
    let is_one_array = stage.slurm.at_once.is_some();
    let parts = by_followed(indices, &alike, is_one_array).into_iter().map(|(followed, indices)| {
        let partitions = missing.iter().filter(|number| indices.contains(&(*number % tasks))).count();
        let after = of_inputs(stage, pending).filter_map(|(position, p)| {
            let each = is_alike(position, p);
            (!each || followed.contains(&p.job)).then_some(After { job: p.job, each })
        });
        (Work::Shares { tasks: *tasks, indices, partitions }, after.collect())
    });
    parts.collect()
}

/// The tasks by which of the jobs have one of the same number, which is to run before. Slurm would have a task wait for the whole of an
/// array that has none; so it does where all are to stay in `one_array`, whose limit each of several would have for itself.
fn by_followed(
    indices: &BTreeSet<usize>,
    alike: &[&Pending],
    one_array: bool,
) -> BTreeMap<Vec<Upstream>, BTreeSet<usize>> {
    if one_array {
        let followed = alike.iter().filter(|p| !p.indices.is_disjoint(indices)).map(|p| p.job).collect();
        return BTreeMap::from([(followed, indices.clone())]);
    }
    let mut parts: BTreeMap<Vec<Upstream>, BTreeSet<usize>> = BTreeMap::new();
    for &index in indices {
        let followed = alike.iter().filter(|p| p.indices.contains(&index)).map(|p| p.job).collect();
        parts.entry(followed).or_default().insert(index);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_follows_only_jobs_that_have_its_counterpart() {
        let of = |job, indices: &[usize]| {
            let indices = indices.iter().copied().collect();
            Pending { job, stage: 0, is_survey: false, tasks: 8, indices }
        };
        let (queued, new) = (Upstream::Queued(7), Upstream::New(0));
        let (queued, new) = (of(queued, &[0, 1, 4]), of(new, &[2, 4]));
        let parts = by_followed(&(0..6).collect(), &[&queued, &new], false);
        let set = |indices: &[usize]| indices.iter().copied().collect::<BTreeSet<_>>();
        let expected = [
            (vec![], set(&[3, 5])),
            (vec![new.job], set(&[2])),
            (vec![queued.job], set(&[0, 1])),
            (vec![queued.job, new.job], set(&[4])),
        ];
        assert_eq!(parts, BTreeMap::from(expected));
        assert_eq!(by_followed(&set(&[1, 2]), &[], false), BTreeMap::from([(vec![], set(&[1, 2]))]));
        let one_array = by_followed(&set(&[1, 3]), &[&queued, &new], true);
        assert_eq!(one_array, BTreeMap::from([(vec![queued.job], set(&[1, 3]))]));
    }
}
