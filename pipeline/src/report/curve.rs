//! A line chart: the values, faint, under their moving average.

use std::fmt::Write as _;

use super::axis::{label, nice_step, ticks};
use super::html::escape;

/// More points than this are averaged in groups.
const POINTS: usize = 1500;
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 320.0;
/// Left, right, top and bottom of the plot.
const PLOT: [f64; 4] = [64.0, 944.0, 14.0, 272.0];

type Point = (f64, f64);

/// `y` against `x` as an SVG. Points that are not numbers are left out.
pub(super) fn svg(title: &str, x_label: &str, x: &[f64], y: &[f64]) -> String {
    let points: Vec<Point> =
        x.iter().copied().zip(y.iter().copied()).filter(|(a, b)| a.is_finite() && b.is_finite()).collect();
    let points = grouped(&points, POINTS);
    if points.len() < 2 {
        return "<p class=soft>Too few points for a curve.</p>".to_owned();
    }
    let range = |of: fn(&Point) -> f64| {
        points.iter().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let ((x0, x1), (y0, y1)) = (range(|p| p.0), range(|p| p.1));
    let step = nice_step((y1 - y0).max(y1.abs() * 1e-6), 5);
    let (y0, y1) = ((y0 / step).floor() * step, ((y1 / step).ceil() * step).max((y0 / step).floor() * step + step));
    let [left, right, top, bottom] = PLOT;
    let across = |v: f64| left + (right - left) * (v - x0) / (x1 - x0).max(f64::MIN_POSITIVE);
    let down = |v: f64| bottom - (bottom - top) * (v - y0) / (y1 - y0);
    let mut svg = format!("<svg class=chart viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='{}'>", escape(title));
    for tick in ticks(y0, y1, step) {
        let (at, text) = (down(tick), label(tick, step));
        let _ = write!(
            svg,
            "<line class=grid x1={left} y1='{at:.1}' x2={right} y2='{at:.1}'/><text x='{:.1}' y='{:.1}' text-anchor=end>{text}</text>",
            left - 10.0,
            at + 4.0
        );
    }
    let step = nice_step(x1 - x0, 8);
    for tick in ticks(x0, x1, step) {
        let (at, text) = (across(tick), label(tick, step));
        let _ = write!(
            svg,
            "<line class=axis x1='{at:.1}' y1={bottom} x2='{at:.1}' y2='{:.1}'/><text x='{at:.1}' y='{:.1}' text-anchor=middle>{text}</text>",
            bottom + 5.0,
            bottom + 20.0
        );
    }
    let path = |points: &[Point]| {
        let mut path = String::new();
        for (i, (a, b)) in points.iter().enumerate() {
            let _ = write!(path, "{}{:.1} {:.1}", if i == 0 { "M" } else { "L" }, across(*a), down(*b));
        }
        path
    };
    let smooth = smoothed(&points);
    let _ = write!(
        svg,
        "<line class=axis x1={left} y1={bottom} x2={right} y2={bottom} /><path class=raw d='{}'/><path class=smooth d='{}'/>\
         <text x={right} y='{:.1}' text-anchor=end>{}</text>",
        path(&points),
        path(&smooth),
        HEIGHT - 8.0,
        escape(x_label)
    );
    if let Some((a, b)) = smooth.last() {
        let (x, y) = (across(*a), down(*b));
        let _ = write!(
            svg,
            "<circle class=last cx='{x:.1}' cy='{y:.1}' r=3.5 /><text class=last x='{:.1}' y='{:.1}' text-anchor=end>{}</text>",
            x - 2.0,
            y - 10.0,
            label(*b, step_of(*b))
        );
    }
    svg + "</svg>"
}

/// A step that gives a value about three digits.
fn step_of(value: f64) -> f64 {
    if value == 0.0 { 1.0 } else { 10_f64.powf(value.abs().log10().floor() - 2.0) }
}

/// At most about `most` points: neighbours become their mean.
fn grouped(points: &[Point], most: usize) -> Vec<Point> {
    points.chunks(points.len().div_ceil(most).max(1)).filter_map(mean).collect()
}

fn mean(points: &[Point]) -> Option<Point> {
    let n = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), (a, b)| (x + a, y + b));
    (!points.is_empty()).then_some((x / n, y / n))
}

/// The mean of each point and its neighbours, a twentieth of the curve; fewer at its ends, as many on each side.
fn smoothed(points: &[Point]) -> Vec<Point> {
    let reach = (points.len() / 40).max(1);
    points
        .iter()
        .enumerate()
        .map(|(i, point)| {
            let reach = reach.min(i).min(points.len() - 1 - i);
            let near = points.get(i - reach..=i + reach).and_then(mean);
            (point.0, near.map_or(point.1, |(_, y)| y))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_smoothed_between_the_same_ends() {
        let points: Vec<Point> = (0..100).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        let smooth = smoothed(&points);
        assert_eq!((smooth[0], smooth[99]), (points[0], points[99]));
        assert!(smooth[10..90].iter().all(|(_, y)| (y - 0.5).abs() < 0.2));
        assert_eq!(grouped(&points, 50).len(), 50);
        assert_eq!(grouped(&points, 50)[0], (0.5, 0.5));
        assert_eq!(grouped(&[], 50), []);
    }

    #[test]
    fn odd_values_do_no_harm() {
        let nan = svg("t", "x", &[0.0, 1.0, 2.0], &[f64::NAN, 1.0, f64::INFINITY]);
        assert!(nan.contains("Too few points"), "{nan}");
        for y in [[5.0, 5.0], [0.0, 0.0], [-1e9, 1e9]] {
            let flat = svg("<t>", "<x>", &[0.0, 1.0], &y);
            assert!(!flat.contains("NaN") && !flat.contains("inf") && !flat.contains("<t>") && !flat.contains("<x>"));
        }
    }
}
