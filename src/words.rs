//! Numbers as people read them.

use std::collections::BTreeMap;

/// 1.5 GB
pub(crate) fn size(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["bytes", "KB", "MB", "GB", "TB", "PB"];
    let (mut value, mut unit) = (bytes, 0);
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 { format!("{value:.0} {name}") } else { format!("{value:.1} {name}") }
}

/// 4 min 05 s
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60) {
        (0, 0, 0, s) if s >= 10 => format!("{s} s"),
        (0, 0, 0, _) => format!("{seconds:.1} s"),
        (0, 0, m, s) => format!("{m} min {s:02} s"),
        (0, h, m, _) => format!("{h} h {m:02} min"),
        (d, h, ..) => format!("{d} d {h} h"),
    }
}

/// 11.8 M
#[cfg(feature = "pipeline")]
pub(crate) fn count(n: f64) -> String {
    match n {
        n if n < 99_999.5 => format!("{n:.0}"),
        n if n < 9.995e8 => format!("{:.1} M", n / 1e6),
        n => format!("{:.1} G", n / 1e9),
    }
}

/// http_404 24, timed_out 3
pub(crate) fn counts(counts: &BTreeMap<String, u64>) -> String {
    let parts: Vec<String> = counts.iter().map(|(what, n)| format!("{what} {n}")).collect();
    parts.join(", ")
}

/// 1 task, 8 tasks
pub(crate) fn of(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "pipeline")]
    fn numbers_read_well_at_every_size() {
        assert_eq!(
            [0.0, 999.0, 1000.0, 999_960.0, 2.5e15].map(size),
            ["0 bytes", "999 bytes", "1.0 KB", "1.0 MB", "2.5 PB"]
        );
        assert_eq!(
            [0.44, 59.9, 61.0, 3_700.0, 200_000.0].map(duration),
            ["0.4 s", "59 s", "1 min 01 s", "1 h 01 min", "2 d 7 h"]
        );
        assert_eq!([0, 1, 2].map(|n| of(n, "task")), ["0 tasks", "1 task", "2 tasks"]);
        assert_eq!([0.0, 12_000.4, 1.18e7, 2.0e9].map(count), ["0", "12000", "11.8 M", "2.0 G"]);
    }
}
