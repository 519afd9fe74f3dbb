//! The job that this process is in.

use shards::storage::Workdir;

use super::{SlurmError, command};

/// The job, or task of an array, that this process was started in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// `123`, or `123_4`.
    id: String,
    /// How often it was queued again, for whatever reason.
    restarts: u32,
}

impl Here {
    /// From Slurm's variables; `None` outside of a job.
    pub fn from_environment() -> Option<Self> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let array = variable("SLURM_ARRAY_JOB_ID").zip(variable("SLURM_ARRAY_TASK_ID"));
        let id = array.map(|(job, index)| format!("{job}_{index}")).or_else(|| variable("SLURM_JOB_ID"))?;
        let restarts = variable("SLURM_RESTART_COUNT").and_then(|count| count.parse().ok()).unwrap_or(0);
        Some(Self { id, restarts })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Queues it again, because its time ends; it goes on with what is missing then. An error where that was done `requeues` times, which
    /// `workdir` remembers: Slurm's own count has in it how often others' jobs took this one's place, and nodes that failed.
    pub fn requeue(&self, requeues: u32, workdir: &Workdir) -> Result<(), SlurmError> {
        let record = format!("slurm/requeues.{}", self.id);
        let before = self.requeued(workdir.read(&record)?.as_deref());
        if before >= requeues {
            return Err(SlurmError::TooManyRequeues { restarts: before + 1, requeues });
        }
        workdir.replace(&record, (before + 1).to_string().as_bytes())?;
        command::requeue(&self.id)
    }

    /// How often it was queued again because its time ended, by its record.
    fn requeued(&self, record: Option<&[u8]>) -> u32 {
        let count = record.and_then(|count| std::str::from_utf8(count).ok()?.parse().ok()).unwrap_or(0);
        // Of an earlier job of the same number there may be a larger one.
        self.restarts.min(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_of_an_array_is_known_by_the_array_and_its_index() {
        let of = |variables: &[(&str, &str)]| {
            let found = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
            Here::from_variables(found)
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("SLURM_JOB_ID", "9")]), Some(Here { id: "9".into(), restarts: 0 }));
        let task = [
            ("SLURM_JOB_ID", "12"),
            ("SLURM_ARRAY_JOB_ID", "9"),
            ("SLURM_ARRAY_TASK_ID", "3"),
            ("SLURM_RESTART_COUNT", "2"),
        ];
        assert_eq!(of(&task), Some(Here { id: "9_3".into(), restarts: 2 }));
        let here = of(&task).unwrap();
        for (record, count) in [(Some("1"), 1), (Some("7"), 2), (Some("x"), 0), (None, 0)] {
            assert_eq!(here.requeued(record.map(str::as_bytes)), count, "{record:?}");
        }
        let never = here.requeue(0, &Workdir::local(std::path::Path::new("no such folder")));
        assert!(matches!(never, Err(SlurmError::TooManyRequeues { restarts: 1, requeues: 0 })), "{never:?}");
    }
}
