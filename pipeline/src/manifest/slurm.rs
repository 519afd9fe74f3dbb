//! What a stage asks of Slurm: `[pipeline.slurm]` for all stages, `[stage.NAME.slurm]` for one of them. None of it changes what
//! comes out.

use schemars::JsonSchema;
use serde::Deserialize;

use super::byte_size::ByteSize;
use super::diagnostic::Diagnostic;
use super::parameters::Parameters;

/// Resources of a stage's jobs, and how the stage is cut into them. What is not given is left to the cluster's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Slurm {
    /// The partition (queue) of the cluster.
    pub partition: Option<String>,
    /// The account that is charged.
    pub account: Option<String>,
    /// The quality of service.
    pub qos: Option<String>,
    /// Longest time of one job: minutes, "HH:MM:SS" or "D-HH:MM:SS". A job that reaches it is stopped cleanly and queued again.
    pub time: Option<Time>,
    /// Cores of a job (of each task, where it has several).
    pub cpus: Option<u32>,
    /// Memory of a node's share, such as "64 GB".
    pub mem: Option<ByteSize>,
    /// Such as "gpu:8".
    pub gres: Option<String>,
    /// Features that nodes must have.
    pub constraint: Option<String>,
    /// Nodes of a training [1].
    pub nodes: Option<u32>,
    /// Ranks of a training on each node, one for each GPU [1].
    pub tasks_per_node: Option<u32>,
    /// The most tasks of a stage's array: its partitions are dealt to so many [as many as partitions, at most 1000].
    pub tasks: Option<usize>,
    /// The most tasks of the array that run at a time [no limit].
    pub at_once: Option<usize>,
    /// Seconds before the end of its time at which a job is told to stop [120].
    pub grace: Option<u64>,
    /// How often a job may be queued again because its time ended [20].
    pub requeues: Option<u32>,
    /// Lines for the script: those that begin with #SBATCH join the others, the rest is run before the work (`module load cuda`).
    pub lines: Vec<String>,
}

/// A length of time as Slurm writes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected minutes, \"HH:MM:SS\" or \"D-HH:MM:SS\"")]
pub enum Time {
    Minutes(u64),
    Written(String),
}

impl Time {
    /// `None` where it is written in no way that Slurm knows, or is nothing.
    pub fn seconds(&self) -> Option<u64> {
        let text = match self {
            Self::Minutes(minutes) => return minutes.checked_mul(60).filter(|seconds| *seconds > 0),
            Self::Written(text) => text,
        };
        let (days, rest) = text.split_once('-').map_or((None, text.as_str()), |(days, rest)| (Some(days), rest));
        let numbers = |text: &str| -> Option<Vec<u64>> { text.split(':').map(|n| n.parse().ok()).collect() };
        let (rest, days) = (numbers(rest)?, days.map(str::parse::<u64>).transpose().ok()?);
        // After days come hours; without them the first of one or two numbers are minutes.
        let (hours, minutes, seconds) = match (days, rest.as_slice()) {
            (Some(_), &[hours]) => (hours, 0, 0),
            (Some(_), &[hours, minutes]) => (hours, minutes, 0),
            (None, &[minutes]) => (0, minutes, 0),
            (None, &[minutes, seconds]) => (0, minutes, seconds),
            (_, &[hours, minutes, seconds]) => (hours, minutes, seconds),
            _ => return None,
        };
        let hours = days.unwrap_or(0).checked_mul(24)?.checked_add(hours)?;
        let total = hours.checked_mul(3600)?.checked_add(minutes.checked_mul(60)?)?.checked_add(seconds)?;
        Some(total).filter(|total| *total > 0)
    }
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Minutes(minutes) => write!(f, "{minutes}"),
            Self::Written(text) => f.write_str(text),
        }
    }
}

impl Slurm {
    /// Seconds before the end of its time at which a job is told to stop.
    pub fn grace(&self) -> u64 {
        self.grace.unwrap_or(120)
    }

    /// How often a job may be queued again because its time ended.
    pub fn requeues(&self) -> u32 {
        self.requeues.unwrap_or(20)
    }

    /// Processes that work together on one partition.
    pub fn ranks(&self) -> u64 {
        u64::from(self.nodes.unwrap_or(1)) * u64::from(self.tasks_per_node.unwrap_or(1))
    }

    /// What a stage asks for itself, and where it is silent what is asked for all.
    #[must_use]
    pub fn or(self, all: &Self) -> Self {
        let text = |own: Option<String>, all: &Option<String>| own.or_else(|| all.clone());
        Self {
            partition: text(self.partition, &all.partition),
            account: text(self.account, &all.account),
            qos: text(self.qos, &all.qos),
            time: self.time.or_else(|| all.time.clone()),
            cpus: self.cpus.or(all.cpus),
            mem: self.mem.or(all.mem),
            gres: text(self.gres, &all.gres),
            constraint: text(self.constraint, &all.constraint),
            nodes: self.nodes.or(all.nodes),
            tasks_per_node: self.tasks_per_node.or(all.tasks_per_node),
            tasks: self.tasks.or(all.tasks),
            at_once: self.at_once.or(all.at_once),
            grace: self.grace.or(all.grace),
            requeues: self.requeues.or(all.requeues),
            lines: all.lines.iter().cloned().chain(self.lines).collect(),
        }
    }

    /// The first fault of what `table` says. Its values become lines of a shell script.
    pub(super) fn check(&self, table: &Parameters) -> Result<(), Diagnostic> {
        let words = [
            ("partition", &self.partition),
            ("account", &self.account),
            ("qos", &self.qos),
            ("gres", &self.gres),
            ("constraint", &self.constraint),
        ];
        for (key, value) in words {
            if let Some(value) = value
                && (value.is_empty() || !value.chars().all(|c| c.is_ascii_graphic()))
            {
                let fault = table.fault(key, format!("{key} = {value:?} is no word that Slurm takes"));
                return Err(fault.hint("write it as for sbatch, without spaces"));
            }
        }
        if let Some(line) = self.lines.iter().find(|line| line.chars().any(char::is_control)) {
            return Err(table
                .fault("lines", format!("lines has {line:?}"))
                .hint("write one line of the script a text"));
        }
        if let Some(time) = &self.time {
            let Some(seconds) = time.seconds() else {
                let fault = table.fault("time", format!("time = \"{time}\" is no time"));
                return Err(fault.hint("write minutes, \"HH:MM:SS\" or \"D-HH:MM:SS\""));
            };
            if seconds <= self.grace() {
                let message =
                    format!("a job's time is {seconds} s, and it is told to stop {} s before its end", self.grace());
                return Err(table.fault("time", message).hint("give more time, or less grace"));
            }
        }
        let counts = [
            ("cpus", self.cpus.map(u64::from)),
            ("nodes", self.nodes.map(u64::from)),
            ("tasks_per_node", self.tasks_per_node.map(u64::from)),
            ("tasks", self.tasks.map(|n| n as u64)),
            ("at_once", self.at_once.map(|n| n as u64)),
        ];
        match counts.into_iter().find(|(_, count)| *count == Some(0)) {
            Some((key, _)) => Err(table.fault(key, format!("{key} is 0")).hint("expected 1 or more")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_slurm_reads_them() {
        let seconds = |text: &str| Time::Written(text.to_owned()).seconds();
        assert_eq!(seconds("90"), Some(5400));
        assert_eq!(seconds("90:30"), Some(5430));
        assert_eq!(seconds("1:30:05"), Some(5405));
        assert_eq!(seconds("2-1"), Some(49 * 3600));
        assert_eq!(seconds("2-1:30"), Some(49 * 3600 + 1800));
        assert_eq!(seconds("2-1:30:05"), Some(49 * 3600 + 1805));
        assert_eq!(Time::Minutes(3).seconds(), Some(180));
        for text in ["", "0", "1:2:3:4", "one", "1-", "-1", "1:-1", "99999999999999999999"] {
            assert_eq!(seconds(text), None, "{text}");
        }
        assert_eq!(Time::Minutes(u64::MAX).seconds(), None);
    }

    #[test]
    fn what_a_stage_asks_for_comes_before_what_all_do() {
        let all = Slurm { cpus: Some(2), qos: Some("low".into()), lines: vec!["a".into()], ..Slurm::default() };
        let own = Slurm { cpus: Some(8), lines: vec!["b".into()], ..Slurm::default() }.or(&all);
        let lines = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(own, Slurm { cpus: Some(8), qos: Some("low".into()), lines, ..Slurm::default() });
    }
}
