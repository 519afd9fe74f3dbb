//! The job that this process is in.

use super::{SlurmError, command};

/// The job, or task of an array, that this process was started in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// `123`, or `123_4`.
    id: String,
    /// How often it was queued again.
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

    /// Queues it again, because its time ends; it goes on with what is missing then. An error where that was done `requeues` times.
    pub fn requeue(&self, requeues: u32) -> Result<(), SlurmError> {
        let restarts = self.restarts;
        if restarts >= requeues {
            return Err(SlurmError::TooManyRequeues { restarts: restarts + 1, requeues });
        }
        command::requeue(&self.id)
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
        assert!(matches!(of(&task).unwrap().requeue(2), Err(SlurmError::TooManyRequeues { restarts: 3, requeues: 2 })));
    }
}
