//! Round numbers for the axes of charts.

use super::numbers::grouped;

/// The smallest of 1, 2, 5, 10, 20, … and of 0.5, 0.2, 0.1, … that cuts `range` into at most `most` steps.
pub(super) fn nice_step(range: f64, most: usize) -> f64 {
    let least = range / most.max(1) as f64;
    if !least.is_finite() || least <= 0.0 {
        return 1.0;
    }
    let magnitude = 10_f64.powf(least.log10().floor());
    // A hair of tolerance: 0.3 / 3 must not become 0.2.
    [1.0, 2.0, 5.0]
        .map(|n| n * magnitude)
        .into_iter()
        .find(|step| *step >= least * 0.999_999)
        .unwrap_or(10.0 * magnitude)
}

/// Multiples of `step` from `low` to `high`. The caller chose `step`, so there are few.
pub(super) fn ticks(low: f64, high: f64, step: f64) -> impl Iterator<Item = f64> {
    let (first, last) = ((low / step - 1e-6).ceil() as i64, (high / step + 1e-6).floor() as i64);
    (first..=last).take(100).map(move |n| n as f64 * step)
}

/// A value on an axis, with as many places as its step needs.
pub(super) fn label(value: f64, step: f64) -> String {
    if step >= 1.0 {
        let digits = grouped(value.abs().round() as u64);
        return if value <= -0.5 { format!("−{digits}") } else { digits };
    }
    let places = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{value:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_cover_the_range() {
        assert_eq!(nice_step(100.0, 10), 10.0);
        assert_eq!(nice_step(101.0, 10), 20.0);
        assert_eq!(nice_step(1900.0, 24), 100.0);
        assert!((nice_step(0.3, 3) - 0.1).abs() < 1e-12);
        assert_eq!(nice_step(0.0, 5), 1.0);
        assert_eq!(nice_step(f64::NAN, 5), 1.0);
        assert_eq!(ticks(0.0, 50.0, 20.0).collect::<Vec<_>>(), [0.0, 20.0, 40.0]);
        assert_eq!(ticks(-3.0, 3.0, 2.0).collect::<Vec<_>>(), [-2.0, 0.0, 2.0]);
        assert_eq!([label(1200.0, 200.0), label(0.25, 0.05), label(-4.0, 2.0)], ["1,200", "0.25", "−4"]);
    }
}
