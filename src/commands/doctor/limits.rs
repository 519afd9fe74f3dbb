//! What this process may use: descriptors, memory, cores; also where a control group allows less than the machine has.

use std::path::{Path, PathBuf};

use super::Finding;
use crate::words::size;

/// `download` by default: 4 partitions of 64 connections, and the files of as many partitions as there are cores.
const DESCRIPTORS_NEEDED: u64 = 512;
const DESCRIPTORS_PLENTY: u64 = 4096;
/// What the demo needs, with some room.
const MEMORY_NEEDED: u64 = 2_000_000_000;

pub(super) fn descriptors() -> Finding {
    const CHECK: &str = "descriptors";
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    // All that is allowed has been asked for at the start.
    let Some(limit) = open_files(&limits) else {
        return Finding::note(CHECK, "this system does not say how many files may be open").advise("see `ulimit -n`");
    };
    let shown = if limit == u64::MAX { "any number of".to_owned() } else { limit.to_string() };
    let found = format!("{shown} files and connections at a time");
    let raise = "an administrator raises it: nofile in /etc/security/limits.conf, LimitNOFILE= in a systemd unit, \
                 --ulimit nofile=65536:65536 of a container";
    match limit {
        DESCRIPTORS_PLENTY.. => Finding::ok(CHECK, found),
        DESCRIPTORS_NEEDED.. => {
            let found = format!("{found}: enough by default, but not for a download with many more requests in flight");
            Finding::note(CHECK, found).advise(raise)
        }
        _ => Finding::problem(CHECK, format!("{found}: fewer than a download needs"), raise),
    }
}

/// How many files may be open (the soft limit), in the text of /proc/PID/limits.
fn open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

pub(super) fn memory() -> Finding {
    const CHECK: &str = "memory";
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let (Some(total), Some(available)) = (of_meminfo(&table, "MemTotal"), of_meminfo(&table, "MemAvailable")) else {
        return Finding::note(CHECK, "this system does not say how much there is");
    };
    let allowed = group_limits("memory", "memory.max", "memory/", "memory.limit_in_bytes")
        .filter_map(|text| text.parse::<u64>().ok())
        .filter(|limit| *limit < total)
        .min();
    let group = allowed.map(|allowed| format!("; a control group allows {}", size(allowed as f64))).unwrap_or_default();
    let found = format!("{} of {} free{group}", size(available as f64), size(total as f64));
    if allowed.unwrap_or(total).min(available) < MEMORY_NEEDED {
        return Finding::note(CHECK, found)
            .advise("stop other programs, or make partitions smaller: stage.download.rows_per_shard and partitions");
    }
    Finding::ok(CHECK, found)
}

/// Bytes of an entry of /proc/meminfo.
fn of_meminfo(table: &str, name: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

pub(super) fn cores() -> Finding {
    const CHECK: &str = "cores";
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    let listed = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let machine = listed.lines().filter(|line| line.starts_with("processor")).count();
    let (noun, of) = (
        if usable == 1 { "core" } else { "cores" },
        if machine > usable { format!(" of the machine's {machine}") } else { String::new() },
    );
    let quota = group_limits("cpu", "cpu.max", "cpu/", "cpu.cfs_quota_us").filter_map(|text| quota(&text));
    match quota.min_by(f64::total_cmp).filter(|cores| *cores < usable as f64 + 0.5) {
        Some(cores) => Finding::ok(CHECK, format!("{usable} {noun}{of}; a control group allows {cores:.1}")),
        None => Finding::ok(CHECK, format!("{usable} {noun}{of}")),
    }
}

/// Cores in `QUOTA PERIOD`, in microseconds; the first control groups have a period of 100 ms unless changed.
fn quota(text: &str) -> Option<f64> {
    let mut numbers = text.split_whitespace();
    let quota: f64 = numbers.next()?.parse().ok()?;
    let period: f64 = numbers.next().map_or(Some(100_000.0), |period| period.parse().ok())?;
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

/// The contents of a limit's files in this process's control group and those above it, of either version.
fn group_limits(
    controller: &str,
    file: &'static str,
    first_folder: &str,
    first_file: &'static str,
) -> impl Iterator<Item = String> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let root = Path::new("/sys/fs/cgroup");
    let mut files: Vec<PathBuf> = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (mount, file) = if controllers.is_empty() {
            (root.to_owned(), file)
        } else if controllers.split(',').any(|name| name == controller) {
            (root.join(first_folder), first_file)
        } else {
            continue;
        };
        let path = Path::new(path.trim_start_matches('/'));
        files.extend(path.ancestors().map(|group| mount.join(group).join(file)));
    }
    files.into_iter().filter_map(|path| std::fs::read_to_string(path).ok()).map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_in_the_kernels_words() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 unlimited            files     \n";
        assert_eq!(open_files(limits), Some(1024));
        assert_eq!(open_files("Max cpu time unlimited unlimited seconds"), None);
        assert_eq!(of_meminfo("MemTotal:       24591236 kB\nMemFree: 1 kB\n", "MemTotal"), Some(24_591_236 * 1024));
        assert_eq!(quota("150000 100000"), Some(1.5));
        assert_eq!(quota("200000"), Some(2.0));
        assert_eq!((quota("max 100000"), quota("-1"), quota("")), (None, None, None));
    }
}
