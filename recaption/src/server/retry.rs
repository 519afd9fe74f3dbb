//! How long to wait before the next try.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

/// The longest wait that a server may ask for.
pub(super) const LONGEST: Duration = Duration::from_mins(2);

/// The wait that a server asks for: in `retry-after-ms`, or in `Retry-After` in seconds or until a date.
pub(super) fn asked_for(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| *number >= 0.0);
    let span = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST);
    let wait = if let Some(milliseconds) = text("retry-after-ms").and_then(number) {
        span(milliseconds / 1000.0)
    } else {
        let value = text(RETRY_AFTER.as_str())?;
        match number(value) {
            Some(seconds) => span(seconds),
            None => httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default(),
        }
    };
    Some(wait.min(LONGEST))
}

/// The wait of our own before the try after `tries`: doubled with each, up to a quarter shorter at random, so that what
/// failed together does not come back together.
pub(super) fn back_off(first: Duration, longest: Duration, tries: u32) -> Duration {
    let random = RandomState::new().hash_one(tries) as f64 / u64::MAX as f64;
    let doubled = first.saturating_mul(1 << tries.saturating_sub(1).min(16));
    doubled.min(longest).mul_f64(1.0 - 0.25 * random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_asked_for_in_three_ways() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (headers, milliseconds) in [
            (&[("retry-after", " 7 ")][..], Some(7_000)),
            (&[("retry-after", "0.5")], Some(500)),
            (&[("retry-after", "7"), ("retry-after-ms", "20.5")], Some(20)),
            (&[("retry-after", "7"), ("retry-after-ms", "soon")], Some(7_000)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:42 GMT")], Some(5_000)),
            (&[("retry-after", "Sat, 06 Nov 1993 08:49:37 GMT")], Some(0)),
            (&[("retry-after", "86400")], Some(120_000)),
            (&[("retry-after", "1e300")], Some(120_000)),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "-3")], None),
            (&[("retry-after", "NaN")], None),
            (&[], None),
        ] {
            let map: HeaderMap =
                headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            let wait = asked_for(&map, now).map(|wait| wait.as_millis());
            assert_eq!(wait, milliseconds, "{headers:?}");
        }
    }

    #[test]
    fn waits_double_to_the_longest() {
        let (first, longest) = (Duration::from_millis(500), Duration::from_secs(8));
        for (tries, most) in [(1, 500), (2, 1000), (3, 2000), (5, 8000), (6, 8000), (u32::MAX, 8000)] {
            let wait = back_off(first, longest, tries).as_millis();
            assert!(wait <= most && wait >= most * 3 / 4, "{tries}: {wait}");
        }
    }
}
