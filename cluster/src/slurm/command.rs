//! What is asked of Slurm's own programs.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use super::SlurmError;

/// The most tasks an array has where nobody says otherwise: Slurm's own default, less one for indices from 0.
pub(super) const DEFAULT_ARRAY: usize = 1000;

/// A job of this user that is queued or running, or one task of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    pub job: u64,
    /// Of an array.
    pub index: Option<usize>,
    /// `PENDING`, `RUNNING`, …
    pub state: String,
    /// Why it waits: `Dependency`, `Resources`; `None` where it does not.
    pub reason: Option<String>,
}

fn run(program: &'static str, arguments: &[&OsStr]) -> Result<String, SlurmError> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|source| SlurmError::Start { program, source })?;
    if !output.status.success() {
        let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_string_lossy()).collect();
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let said = if said.is_empty() { output.status.to_string() } else { said };
        return Err(SlurmError::Refused { program, arguments: arguments.join(" "), said });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Submits a script; returns the job's number.
pub(super) fn submit(script: &Path) -> Result<u64, SlurmError> {
    let said = run("sbatch", &["--parsable".as_ref(), script.as_os_str()])?;
    // `123`, or `123;cluster`.
    let number = said.trim().split(';').next().and_then(|number| number.parse().ok());
    number.ok_or(SlurmError::NoNumber { said })
}

pub(super) fn cancel(job: u64) -> Result<(), SlurmError> {
    run("scancel", &[job.to_string().as_ref()]).map(drop)
}

/// Queues a job or task of an array (`123_4`) that is running once more.
pub(super) fn requeue(job: &str) -> Result<(), SlurmError> {
    run("scontrol", &["requeue".as_ref(), job.as_ref()]).map(drop)
}

/// This user's jobs that wait or run, each task of an array by itself.
pub(super) fn queue() -> Result<Vec<Task>, SlurmError> {
    let arguments = ["--me", "--noheader", "--array", "--format=%F|%K|%T|%r"].map(OsStr::new);
    Ok(run("squeue", &arguments)?.lines().filter_map(task).collect())
}

/// `12|3|PENDING|Dependency`; what has done its work and is only cleared away is no longer there.
fn task(line: &str) -> Option<Task> {
    let mut fields = line.trim().split('|');
    let (job, index, state) = (fields.next()?, fields.next()?, fields.next()?);
    let reason = fields.next().filter(|reason| !reason.is_empty() && *reason != "None").map(str::to_owned);
    let task = Task { job: job.parse().ok()?, index: index.parse().ok(), state: state.to_owned(), reason };
    (task.state != "COMPLETING").then_some(task)
}

/// The most tasks that an array may have here.
pub(super) fn largest_array() -> Result<usize, SlurmError> {
    let configuration = run("scontrol", &["show".as_ref(), "config".as_ref()])?;
    let line = configuration.lines().find(|line| line.trim_start().starts_with("MaxArraySize"));
    let largest = line.and_then(|line| line.split('=').nth(1)?.trim().parse::<usize>().ok());
    // Indices are below it, and a thousand jobs a stage are enough for any scheduler.
    Ok(largest.map_or(DEFAULT_ARRAY, |largest| largest.saturating_sub(1).clamp(1, DEFAULT_ARRAY)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_read_line_by_line() {
        let of = |job, index, state: &str, reason: Option<&str>| Task {
            job,
            index,
            state: state.to_owned(),
            reason: reason.map(str::to_owned),
        };
        assert_eq!(task("12|3|PENDING|Dependency"), Some(of(12, Some(3), "PENDING", Some("Dependency"))));
        assert_eq!(task(" 12|N/A|RUNNING|None "), Some(of(12, None, "RUNNING", None)));
        for line in ["12|3|COMPLETING|None", "", "x|3|RUNNING|None", "12"] {
            assert_eq!(task(line), None, "{line}");
        }
    }
}
