//! The workdir's file system: room, whether commits work and how long they take; and the clock, which leases compare with it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Finding, output_of};
use crate::words::size;

const DISK: &str = "disk";
const FSYNC: &str = "fsync";
const CLOCK: &str = "clock";
/// A tenth of the room that the demo takes would stop it at once.
const ROOM_NEEDED: u64 = 1_000_000_000;
const ROOM_PLENTY: u64 = 50_000_000_000;
/// Several of these are part of every commit.
const SLOW: Duration = Duration::from_millis(100);
/// Leases are taken over after a minute without a sign of life.
const SKEW_HARMFUL: Duration = Duration::from_secs(20);
const SKEW_NOTABLE: Duration = Duration::from_secs(2);

/// Whether results go to a store, about which nothing here can say anything.
fn is_store(workdir: &Path) -> bool {
    workdir.to_string_lossy().contains("://")
}

pub(super) fn look(workdir: &Path) -> Vec<Finding> {
    if is_store(workdir) {
        let found = format!("{} is a store: not looked at", workdir.display());
        let advice =
            "copies of data in use lie on this machine: give the folder that [pipeline] scratch names as --workdir";
        return vec![Finding::note(DISK, found.clone()).advise(advice), Finding::note(FSYNC, found)];
    }
    let Some(folder) = existing(workdir) else {
        let found = format!("{}: neither it nor a folder above it can be looked at", workdir.display());
        return vec![Finding::problem(DISK, found, "give another --workdir")];
    };
    let mut findings = vec![room(&folder)];
    findings.push(match Probe::new(&folder).and_then(Probe::commit_times) {
        Ok(times) => commit(&folder, times),
        Err(error) => cannot_write(&folder, &error),
    });
    findings
}

/// The workdir, or the nearest folder above it that is there.
fn existing(workdir: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(workdir).ok()?;
    absolute.ancestors().find(|folder| folder.is_dir()).map(Path::to_owned)
}

fn room(folder: &Path) -> Finding {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let canonical = fs::canonicalize(folder).unwrap_or_else(|_unreadable| folder.to_owned());
    let mount = mount_of(&mounts, &canonical);
    let kind = mount.as_ref().map(|mount| format!(" ({})", mount.kind)).unwrap_or_default();
    let place = format!("{}{kind}", folder.display());
    if mount.as_ref().is_some_and(|mount| mount.read_only) {
        return Finding::problem(DISK, format!("{place} is mounted read-only"), "give another --workdir");
    }
    // The standard library does not say how full a disk is; df does, everywhere.
    let df = |option: &str| {
        let text = output_of(Command::new("df").arg(option).arg("--").arg(folder), Duration::from_secs(5))?;
        of_df(&text)
    };
    let Some(free) = df("-Pk").map(|kilobytes| kilobytes.saturating_mul(1024)) else {
        return Finding::note(DISK, format!("{place}: `df` does not say how much is free"));
    };
    let found = format!("{place}: {} free", size(free as f64));
    if free < ROOM_NEEDED {
        return Finding::problem(DISK, found, "free some space, or give another --workdir");
    }
    if let Some(files) = df("-Pi").filter(|files| (1..1000).contains(files)) {
        let found = format!("{found}, but only {files} more files can be created");
        return Finding::problem(DISK, found, "remove small files, or give another --workdir");
    }
    match mount.as_ref().map(|mount| mount.kind.as_str()) {
        Some("tmpfs" | "ramfs") => Finding::note(DISK, found)
            .advise("this is memory: everything is gone after a restart; give another --workdir"),
        Some("overlay") => Finding::note(DISK, found)
            .advise("this is the container's own layer and goes with it: mount a folder of the host for results"),
        _ if free < ROOM_PLENTY => {
            Finding::note(DISK, found).advise("the demo needs 0.4 GB; a million pictures as served take hundreds of GB")
        }
        _ => Finding::ok(DISK, found),
    }
}

/// What is free: the field before the share in use. Names on either side of the numbers may hold spaces.
fn of_df(text: &str) -> Option<u64> {
    let fields: Vec<&str> = text.lines().last()?.split_whitespace().collect();
    let share = fields.iter().rposition(|field| field.ends_with('%'))?;
    fields.get(share.checked_sub(1)?)?.parse().ok()
}

struct Mount {
    kind: String,
    read_only: bool,
}

/// The file system that a path lies on: the mount point that leads farthest, and the last one there.
fn mount_of(mounts: &str, path: &Path) -> Option<Mount> {
    let mut best: Option<(usize, Mount)> = None;
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(point), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let point = PathBuf::from(point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"));
        let depth = point.components().count();
        if path.starts_with(&point) && best.as_ref().is_none_or(|(deepest, _)| depth >= *deepest) {
            let read_only = options.split(',').any(|option| option == "ro");
            best = Some((depth, Mount { kind: kind.to_owned(), read_only }));
        }
    }
    best.map(|(_, mount)| mount)
}

/// A file in the folder that is looked at, and a second name for it. Both go away with the probe.
struct Probe {
    folder: PathBuf,
    path: PathBuf,
    link: PathBuf,
    file: File,
}

impl Probe {
    fn new(folder: &Path) -> std::io::Result<Self> {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let name = format!(".ferrotype-doctor-{}-{nanos}", std::process::id());
        let (path, link) = (folder.join(&name), folder.join(format!("{name}-link")));
        let file = File::create_new(&path)?;
        Ok(Self { folder: folder.to_owned(), path, link, file })
    }

    /// How long writing a little durably takes, several times; then the step that a commit consists of.
    fn commit_times(mut self) -> std::io::Result<Vec<Duration>> {
        let mut times = Vec::new();
        for _ in 0..5 {
            let started = Instant::now();
            self.file.write_all(&[0; 4096])?;
            self.file.sync_all()?;
            times.push(started.elapsed());
        }
        fs::hard_link(&self.path, &self.link)?;
        File::open(&self.folder)?.sync_all()?;
        Ok(times)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.link);
    }
}

fn commit(folder: &Path, mut times: Vec<Duration>) -> Finding {
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let longest = times.last().copied().unwrap_or_default();
    let milliseconds = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    let found = format!(
        "{} for 4 KB, at most {}; hard links work in {}",
        milliseconds(median),
        milliseconds(longest),
        folder.display()
    );
    if median < SLOW {
        return Finding::ok(FSYNC, found);
    }
    Finding::note(FSYNC, found)
        .advise("slow: every commit waits for it; larger partitions (rows_per_shard) or a local disk help")
}

fn cannot_write(folder: &Path, error: &std::io::Error) -> Finding {
    use std::io::ErrorKind;
    let advice = match error.kind() {
        ErrorKind::PermissionDenied => "change the folder's owner or mode, or give another --workdir",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space, or give another --workdir",
        ErrorKind::ReadOnlyFilesystem => "the file system is read-only: give another --workdir",
        ErrorKind::Unsupported => "commits need hard links, which this file system lacks: give another --workdir",
        _ => "commits need to create, sync and hard-link files: give another --workdir",
    };
    Finding::problem(FSYNC, format!("cannot write durably in {}: {error}", folder.display()), advice)
}

/// Whether the year is sane, and whether the workdir's file system agrees about the time.
pub(super) fn clock(workdir: &Path) -> Finding {
    const SET: &str = "set the clock: `timedatectl set-ntp true`, or chrony";
    let now = SystemTime::now();
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let shown = date(seconds);
    // A clock before the making of this binary is wrong for certain; certificates and leases fail with it.
    let built = std::env::current_exe().and_then(fs::metadata).and_then(|binary| binary.modified()).ok();
    let too_early = built.is_some_and(|built| built > now + Duration::from_hours(24));
    if too_early || !(2025..2100).contains(&year(seconds)) {
        return Finding::problem(CLOCK, format!("{shown} UTC, which cannot be"), SET);
    }
    if is_store(workdir) {
        return Finding::note(CLOCK, format!("{shown} UTC; {} is a store: not looked at", workdir.display()));
    }
    match existing(workdir).and_then(|folder| skew(&folder)) {
        None => Finding::ok(CLOCK, format!("{shown} UTC")),
        Some(skew) if skew < SKEW_NOTABLE => {
            Finding::ok(CLOCK, format!("{shown} UTC; the workdir's file system agrees"))
        }
        Some(skew) => {
            let found = format!("{shown} UTC; the workdir's file system differs by {:.0} s", skew.as_secs_f64());
            if skew < SKEW_HARMFUL {
                return Finding::note(CLOCK, found)
                    .advise("set both clocks, this machine's and the file server's, by NTP");
            }
            let advice = "set both clocks, this machine's and the file server's, by NTP: a running process could be taken \
                          for a dead one";
            Finding::problem(CLOCK, found, advice)
        }
    }
}

/// By how much the time of a new file lies outside of the time in which it was written.
fn skew(folder: &Path) -> Option<Duration> {
    let mut probe = Probe::new(folder).ok()?;
    let before = SystemTime::now();
    probe.file.write_all(b"now").and_then(|()| probe.file.sync_all()).ok()?;
    let modified = fs::metadata(&probe.path).and_then(|file| file.modified()).ok()?;
    let after = SystemTime::now();
    let early = before.duration_since(modified).unwrap_or_default();
    let late = modified.duration_since(after).unwrap_or_default();
    Some(early.max(late))
}

fn year(seconds: u64) -> u64 {
    civil(seconds / 86_400).0
}

/// 2026-11-24 06:31
fn date(seconds: u64) -> String {
    let (year, month, day) = civil(seconds / 86_400);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60)
}

/// Year, month and day of a day since 1970. Years are counted from March on, so that leap days come last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00");
        assert_eq!(date(951_782_399), "2000-02-28 23:59");
        assert_eq!(date(951_782_400), "2000-02-29 00:00");
        assert_eq!(date(1_795_501_883), "2026-11-24 06:31");
        assert_eq!(year(4_102_444_800), 2100);
    }

    #[test]
    fn the_file_system_of_a_path_is_the_mount_that_leads_farthest() {
        let mounts =
            "/dev/sda / ext4 rw,relatime 0 0\ntmpfs /mnt tmpfs rw 0 0\n/dev/sdb /mnt/a\\040disk xfs ro,noatime 0 0\n";
        let kind = |path: &str| mount_of(mounts, Path::new(path)).map(|mount| (mount.kind, mount.read_only));
        assert_eq!(kind("/mntx/y"), Some(("ext4".to_owned(), false)));
        assert_eq!(kind("/mnt/x"), Some(("tmpfs".to_owned(), false)));
        assert_eq!(kind("/mnt/a disk/x"), Some(("xfs".to_owned(), true)));
        let df =
            "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda 263926100 15000000 80000000 16% /\n";
        assert_eq!(of_df(df), Some(80_000_000));
    }

    #[test]
    fn a_probe_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let findings = look(&folder.path().join("not/there/yet"));
        assert_eq!(findings.iter().map(|finding| finding.check).collect::<Vec<_>>(), [DISK, FSYNC]);
        assert_eq!(clock(folder.path()).check, CLOCK);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
