//! Numbers as people read them.

use arrow::temporal_conversions::timestamp_s_to_datetime;

/// 12,345,678
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// As [`grouped`] below a million, then 1.23 M or 4.56 G: for places where there is little room.
pub(crate) fn compact(n: u64) -> String {
    match n {
        0..1_000_000 => grouped(n),
        1_000_000..1_000_000_000 => format!("{:.2} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

/// 1.5 GB
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut name = "bytes";
    for unit in UNITS {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        name = unit;
    }
    if name == "bytes" { format!("{n} bytes") } else { format!("{value:.1} {name}") }
}

/// 12.8 s, 6 min 44 s, 3 h 20 min, 2 d 4 h
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "–".to_owned();
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// A share of a whole: 6.5 %, 100 %, < 0.1 %; of nothing there is none.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    let share = 100.0 * part as f64 / whole as f64;
    match share {
        _ if whole == 0 => "–".to_owned(),
        _ if part == 0 => "0 %".to_owned(),
        _ if part == whole => "100 %".to_owned(),
        _ if share < 0.1 => "< 0.1 %".to_owned(),
        _ => format!("{share:.1} %"),
    }
}

/// Rows a second: 1,234 or 0.31
pub(crate) fn rate(rows: u64, seconds: f64) -> String {
    let rate = rows as f64 / seconds;
    match rate {
        _ if !rate.is_finite() || rows == 0 => "–".to_owned(),
        10.0.. => grouped(rate.round() as u64),
        _ => format!("{rate:.2}"),
    }
}

/// Seconds since 1970 as 2026-11-24 06:31 UTC
pub(crate) fn moment(seconds: u64) -> String {
    let text = i64::try_from(seconds).ok().and_then(timestamp_s_to_datetime).map(|moment| moment.to_string());
    match text.as_deref().and_then(|text| text.get(..16)) {
        Some(minute) => format!("{minute} UTC"),
        None => "–".to_owned(),
    }
}

/// At most `most` letters, the last of them an ellipsis when some are missing.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    if text.chars().nth(most).is_none() {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([999_999, 12_345_678, 2_000_000_000].map(compact), ["999,999", "12.35 M", "2.00 G"]);
        assert_eq!([12, 1500, 5_000_000_000_000_000].map(bytes), ["12 bytes", "1.5 KB", "5000.0 TB"]);
        assert_eq!(
            [0.04, 59.4, 404.0, 12_000.0, 190_000.0].map(duration),
            ["0.0 s", "59.4 s", "6 min 44 s", "3 h 20 min", "2 d 4 h"]
        );
        assert_eq!(duration(f64::NAN), "–");
        assert_eq!(
            [(0, 5), (5, 5), (1, 3), (1, 99_999)].map(|(a, b)| percent(a, b)),
            ["0 %", "100 %", "33.3 %", "< 0.1 %"]
        );
        assert_eq!([percent(0, 0), percent(10_900_000, 0)], ["–", "–"]);
        assert_eq!([(24_690, 2.0), (1, 4.0), (1, 0.0)].map(|(n, s)| rate(n, s)), ["12,345", "0.25", "–"]);
        assert_eq!(moment(1_795_502_483), "2026-11-24 06:41 UTC");
        assert_eq!(moment(u64::MAX), "–");
        assert_eq!(["four", "fives"].map(|text| shortened(text, 4)), ["four", "fiv…"]);
    }
}
