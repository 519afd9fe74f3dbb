//! The batch script of a job.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::jobs::{Job, Work};

/// What all scripts of a submission share.
#[derive(Clone, Debug)]
pub struct Context {
    pub pipeline: String,
    pub program: PathBuf,
    pub manifest: PathBuf,
    /// After the manifest.
    pub arguments: Vec<OsString>,
    /// For logs.
    pub folder: PathBuf,
}

/// The script; `dependency` is the value of that option, or empty.
pub(super) fn script(job: &Job, context: &Context, dependency: &str) -> String {
    let Job { stage, work, resources, .. } = job;
    let mut text = String::from("#!/bin/bash\n");
    let mut directive = |name: &str, value: &str| {
        let equals = if value.is_empty() { "" } else { "=" };
        let _ = writeln!(text, "#SBATCH --{name}{equals}{value}");
    };
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let pipeline: String = context.pipeline.chars().map(safe).collect();
    directive("job-name", &format!("{pipeline}.{}", job.title()));
    let number = if matches!(work, Work::Shares { .. }) { "%A_%a" } else { "%j" };
    let folder = context.folder.to_string_lossy().replace('%', "%%");
    directive("output", &quoted_for_sbatch(&format!("{folder}/{}-{number}.log", job.title())));
    // A job that is queued again goes on in the same log.
    directive("open-mode", "append");
    directive("requeue", "");
    directive("kill-on-invalid-dep", "yes");
    let together = matches!(work, Work::Together { .. });
    // The processes of a training hear of it by themselves; else the worker is in the place of the script.
    directive("signal", &format!("{}USR1@{}", if together { "" } else { "B:" }, resources.grace()));
    if !dependency.is_empty() {
        directive("dependency", dependency);
    }
    if let Work::Shares { indices, .. } = work {
        let limit = resources.at_once.map(|most| format!("%{most}")).unwrap_or_default();
        directive("array", &format!("{}{limit}", ranges(indices)));
    }
    let words = [
        ("partition", &resources.partition),
        ("account", &resources.account),
        ("qos", &resources.qos),
        ("gres", &resources.gres),
        ("constraint", &resources.constraint),
    ];
    for (name, value) in words {
        if let Some(value) = value {
            directive(name, value);
        }
    }
    if let Some(time) = &resources.time {
        directive("time", &time.to_string());
    }
    if let Some(cpus) = resources.cpus {
        directive("cpus-per-task", &cpus.to_string());
    }
    if let Some(mem) = resources.mem {
        directive("mem", &format!("{}M", mem.0.div_ceil(1 << 20)));
    }
    if together {
        directive("nodes", &resources.nodes.unwrap_or(1).to_string());
        directive("ntasks-per-node", &resources.tasks_per_node.unwrap_or(1).to_string());
    }
    let (directives, commands): (Vec<&String>, Vec<&String>) =
        resources.lines.iter().partition(|line| line.starts_with("#SBATCH"));
    for line in directives {
        let _ = writeln!(text, "{line}");
    }
    let about = match work {
        Work::Survey => "its survey".to_owned(),
        Work::Shares { tasks, partitions, .. } => format!("{partitions} partitions, dealt to {tasks} tasks"),
        Work::One => "one partition".to_owned(),
        Work::Together { ranks } => format!("one partition, by {ranks} processes together"),
    };
    let _ = writeln!(text, "\n# Stage {stage}: {about}. Written by `ferrotype submit`.");
    for line in commands {
        let _ = writeln!(text, "{line}");
    }
    if together {
        // Ranks let in only who knows it.
        text += "export FERROTYPE_SECRET=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \\n')\n";
    }
    if together {
        text += "srun --kill-on-bad-exit=0 ";
        // Since version 22.05 it does not take that over from the job.
        if let Some(cpus) = resources.cpus {
            let _ = write!(text, "--cpus-per-task={cpus} ");
        }
    } else {
        text += "exec ";
    }
    let _ = write!(text, "{} worker {}", quoted(&context.program), quoted(&context.manifest));
    for argument in &context.arguments {
        let _ = write!(text, " {}", quoted(Path::new(argument)));
    }
    let _ = write!(text, " --stage {stage}");
    match work {
        Work::Survey => text += " --survey",
        Work::Shares { tasks, .. } => _ = write!(text, " --share \"$SLURM_ARRAY_TASK_ID/{tasks}\""),
        Work::One => {}
        Work::Together { .. } => text += " --together",
    }
    if let Some(cpus) = resources.cpus {
        let _ = write!(text, " --cores {cpus}");
    }
    if let Some(mem) = resources.mem {
        let _ = write!(text, " --memory {}", mem.0 / 5 * 4);
    }
    text.push('\n');
    text
}

/// `0-3,7`: indices as sbatch takes them.
fn ranges(indices: &BTreeSet<usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &index in indices {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => runs.push((index, index)),
        }
    }
    let run =
        |(first, last): &(usize, usize)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    runs.iter().map(run).collect::<Vec<_>>().join(",")
}

/// A path, or another word of a command line, as the shell takes it.
pub fn quoted(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-=+:,@%".contains(byte);
    if !bytes.is_empty() && bytes.iter().all(is_plain) {
        return path.to_string_lossy().into_owned();
    }
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

/// For a line of `#SBATCH`, which knows quotes and backslashes only.
fn quoted_for_sbatch(text: &str) -> String {
    let needs = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\' | '#');
    if text.contains(needs) {
        format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use pipeline::manifest::Slurm;

    use super::*;

    fn of(work: Work, resources: Slurm) -> String {
        let job = Job { stage: "train".to_owned(), part: None, work, resources, after: Vec::new() };
        let context = Context {
            pipeline: "web".to_owned(),
            program: PathBuf::from("/bin/ferrotype"),
            manifest: PathBuf::from("manifest.toml"),
            arguments: Vec::new(),
            folder: PathBuf::from("slurm"),
        };
        script(&job, &context, "")
    }

    #[test]
    fn ranks_have_the_cores_that_their_job_asks_for() {
        let cpus = |cpus| Slurm { cpus, ..Slurm::default() };
        let together = Work::Together { ranks: 2 };
        let text = of(together.clone(), cpus(Some(8)));
        assert!(text.contains("#SBATCH --cpus-per-task=8\n"), "{text}");
        assert!(text.contains("\nsrun --kill-on-bad-exit=0 --cpus-per-task=8 /bin/ferrotype worker "), "{text}");
        assert!(of(together, cpus(None)).contains("\nsrun --kill-on-bad-exit=0 /bin/ferrotype worker "));
        assert!(of(Work::One, cpus(Some(8))).contains("\nexec /bin/ferrotype worker "));
    }

    #[test]
    fn indices_are_written_as_ranges() {
        let of = |indices: &[usize]| ranges(&indices.iter().copied().collect());
        assert_eq!(of(&[0, 1, 2, 3, 7, 9, 10]), "0-3,7,9-10");
        assert_eq!(of(&[5]), "5");
    }

    #[test]
    fn what_the_shell_would_take_apart_is_quoted() {
        assert_eq!(quoted(Path::new("/a/b-c.toml")), "/a/b-c.toml");
        assert_eq!(quoted(Path::new("a b'; rm -rf $HOME")), r"'a b'\''; rm -rf $HOME'");
        assert_eq!(quoted_for_sbatch("/a b/\"c"), "\"/a b/\\\"c\"");
    }
}
