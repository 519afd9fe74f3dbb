//! Charts of how pixels, letters and aspect ratios are distributed.

use std::fmt::Write as _;

use serde::Serialize;

use super::axis::{label, nice_step, ticks};
use super::html::escape;
use super::measure::{Counts, RATIO_STEPS};
use super::numbers::{compact, grouped};

/// Bars of a chart, about.
const BARS: usize = 28;

/// A chart of one column.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Histogram {
    /// Names it for programs: `longest_side`, `aspect_ratio`, `letters_of_caption`.
    pub(super) id: String,
    pub(super) title: String,
    /// Whose rows.
    pub(super) stage: String,
    pub(super) rows: u64,
    /// In the axis's words.
    pub(super) least: String,
    pub(super) median: String,
    pub(super) most: String,
    pub(super) bins: Vec<Bin>,
    /// Whether the last bin holds everything above it too.
    pub(super) open: bool,
    /// Place on the axis and text of each tick.
    #[serde(skip)]
    pub(super) ticks: Vec<(f64, String)>,
    /// Place of the median.
    #[serde(skip)]
    pub(super) middle: f64,
}

/// Rows with a value of at least `from` and below `to`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Bin {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) rows: u64,
    /// The values, in words.
    pub(super) values: String,
}

/// Whole numbers, such as pixels and letters; `None` without rows.
pub(super) fn of_numbers(id: &str, title: &str, stage: &str, counts: &Counts<u32>) -> Option<Histogram> {
    let (&least, _) = counts.first_key_value()?;
    let (&most, _) = counts.last_key_value()?;
    let (bins, step) = bins(counts);
    let (low, high) = (bins.first()?.from, bins.last()?.to);
    let open = f64::from(most) >= high;
    let middle = quantile(counts, 0.5)?;
    let tick = nice_step(high - low, 6).max(step);
    let in_words = |value: u32| grouped(u64::from(value));
    Some(Histogram {
        id: id.to_owned(),
        title: title.to_owned(),
        stage: stage.to_owned(),
        rows: counts.values().sum(),
        least: in_words(least),
        median: in_words(middle),
        most: in_words(most),
        ticks: ticks(low, high, tick).map(|value| (value, label(value, tick))).collect(),
        middle: f64::from(middle),
        bins,
        open,
    })
}

/// The value below or at which `share` of the rows are.
fn quantile<T: Copy + Ord>(counts: &Counts<T>, share: f64) -> Option<T> {
    let rows: u64 = counts.values().sum();
    let rank = (rows as f64 * share).ceil().max(1.0) as u64;
    let mut seen = 0;
    counts
        .iter()
        .find(|(_, n)| {
            seen += **n;
            seen >= rank
        })
        .map(|(value, _)| *value)
}

/// Bins of equal, round width. A few very large values do not squeeze the rest: the last bin takes them.
fn bins(counts: &Counts<u32>) -> (Vec<Bin>, f64) {
    let (Some((&least, _)), Some((&most, _))) = (counts.first_key_value(), counts.last_key_value()) else {
        return (Vec::new(), 1.0);
    };
    let usual = quantile(counts, 0.99).unwrap_or(most);
    let spread = f64::from(usual - least).max(1.0);
    let end = if f64::from(most - least) > 1.5 * spread { usual } else { most };
    let step = nice_step(f64::from(end - least) + 1.0, BARS).max(1.0);
    let start = (f64::from(least) / step).floor();
    let count = (f64::from(end) / step).floor() - start + 1.0;
    let mut bins: Vec<Bin> = (0..count as u64)
        .map(|i| {
            let (from, to) = ((start + i as f64) * step, (start + i as f64 + 1.0) * step);
            let text = |value: f64| grouped(value as u64);
            let values = if step > 1.0 { format!("{}–{}", text(from), text(to - 1.0)) } else { text(from) };
            Bin { from, to, rows: 0, values }
        })
        .collect();
    let last = bins.len().saturating_sub(1);
    for (&value, &rows) in counts {
        let at = ((f64::from(value) / step).floor() - start) as usize;
        if let Some(bin) = bins.get_mut(at.min(last)) {
            bin.rows += rows;
        }
    }
    if let Some(bin) = bins.last_mut()
        && f64::from(most) >= bin.to
    {
        bin.values = format!("{} and more", grouped(bin.from as u64));
    }
    (bins, step)
}

/// Aspect ratios, counted in fifths of an octave; the axis is the same on both sides of 1:1.
pub(super) fn of_ratios(id: &str, title: &str, stage: &str, counts: &Counts<i32>) -> Option<Histogram> {
    const NAMES: [(i32, &str); 11] = [
        (-15, "1:8"),
        (-10, "1:4"),
        (-5, "1:2"),
        (-3, "2:3"),
        (0, "1:1"),
        (2, "4:3"),
        (3, "3:2"),
        (4, "16:9"),
        (5, "2:1"),
        (10, "4:1"),
        (15, "8:1"),
    ];
    let (&least, _) = counts.first_key_value()?;
    let (&most, _) = counts.last_key_value()?;
    let middle = quantile(counts, 0.5)?;
    let reach = least.abs().max(most.abs()).max(5);
    let in_words = |step: i32| match NAMES.iter().find(|(at, _)| *at == step) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("{:.2}", (f64::from(step) / RATIO_STEPS).exp2()),
    };
    let bins = (-reach..=reach).map(|step| {
        let edge = |half: f64| ((f64::from(step) + half) / RATIO_STEPS).exp2();
        let rows = counts.get(&step).copied().unwrap_or(0);
        Bin { from: edge(-0.5), to: edge(0.5), rows, values: format!("about {}", in_words(step)) }
    });
    let marked = [-15, -10, -5, -3, 0, 3, 5, 10, 15];
    let shown = NAMES.iter().filter(|(at, _)| at.abs() <= reach && marked.contains(at));
    Some(Histogram {
        id: id.to_owned(),
        title: title.to_owned(),
        stage: stage.to_owned(),
        rows: counts.values().sum(),
        least: in_words(least),
        median: in_words(middle),
        most: in_words(most),
        ticks: shown.map(|(at, name)| ((f64::from(*at) / RATIO_STEPS).exp2(), (*name).to_owned())).collect(),
        middle: (f64::from(middle) / RATIO_STEPS).exp2(),
        bins: bins.collect(),
        open: false,
    })
}

/// Width of a chart, and of one that has a row for itself.
const WIDTHS: [f64; 2] = [520.0, 1080.0];
const HEIGHT: f64 = 220.0;
/// The plot within it.
const LEFT: f64 = 52.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 188.0;
const RIGHT_MARGIN: f64 = 12.0;

impl Histogram {
    /// A figure with the chart, its title and its median; `is_wide` for one that has a row for itself.
    pub(super) fn html(&self, is_wide: bool) -> String {
        let full = WIDTHS[usize::from(is_wide)];
        let (left, right, top, bottom) = (LEFT, full - RIGHT_MARGIN, TOP, BOTTOM);
        let most = self.bins.iter().map(|bin| bin.rows).max().unwrap_or(0).max(1) as f64;
        let step = nice_step(most, 4).max(1.0);
        let high = (most / step).ceil() * step;
        let y = |rows: f64| bottom - (bottom - top) * rows / high;
        let width = (right - left) / self.bins.len().max(1) as f64;
        let mut svg =
            format!("<svg class=chart viewBox='0 0 {full} {HEIGHT}' role=img aria-label='{}'>", escape(&self.title));
        for tick in ticks(0.0, high, step) {
            let (at, text) = (y(tick), compact(tick as u64));
            let _ = write!(
                svg,
                "<line class=grid x1={left} y1='{at:.1}' x2={right} y2='{at:.1}'/>\
                 <text x='{:.1}' y='{:.1}' text-anchor=end>{text}</text>",
                left - 8.0,
                at + 4.0
            );
        }
        for (i, bin) in self.bins.iter().enumerate().filter(|(_, bin)| bin.rows > 0) {
            let (x, at) = (left + i as f64 * width, y(bin.rows as f64).min(bottom - 1.0));
            let _ = write!(
                svg,
                "<rect class=bar x='{:.2}' y='{at:.2}' width='{:.2}' height='{:.2}'><title>{}: {} rows</title></rect>",
                x + 0.5,
                (width - 1.0).max(0.5),
                bottom - at,
                bin.values,
                grouped(bin.rows)
            );
        }
        let _ = write!(svg, "<line class=axis x1={left} y1={bottom} x2={right} y2={bottom} />");
        for (value, text) in &self.ticks {
            let at = left + self.across(*value) * (right - left);
            let _ = write!(
                svg,
                "<line class=axis x1='{at:.1}' y1={bottom} x2='{at:.1}' y2='{:.1}'/>\
                 <text x='{at:.1}' y='{:.1}' text-anchor=middle>{text}</text>",
                bottom + 4.0,
                bottom + 19.0
            );
        }
        let middle = left + self.across(self.middle) * (right - left);
        let _ = write!(svg, "<line class=median x1='{middle:.1}' y1={top} x2='{middle:.1}' y2={bottom} /></svg>");
        format!(
            "<figure class='panel{}' id='{}'><figcaption><b>{}</b><span>{} rows of {}</span></figcaption>{svg}\
             <p class=stats><span>least <b>{}</b></span><span class=middle>median <b>{}</b></span><span>most <b>{}</b>{}</span></p></figure>",
            if is_wide { " wide" } else { "" },
            escape(&self.id),
            escape(&self.title),
            grouped(self.rows),
            escape(&self.stage),
            self.least,
            self.median,
            self.most,
            match self.bins.last() {
                Some(last) if self.open => format!(", last bar {}", last.values),
                _ => String::new(),
            }
        )
    }

    /// Where a value lies, as a share of the axis: within its bin in proportion, whatever the bins' widths.
    fn across(&self, value: f64) -> f64 {
        let at = self.bins.iter().take_while(|bin| bin.to <= value).count().min(self.bins.len().saturating_sub(1));
        let within = self.bins.get(at).map_or(0.0, |bin| ((value - bin.from) / (bin.to - bin.from)).clamp(0.0, 1.0));
        (at as f64 + within) / self.bins.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows_of(histogram: &Histogram) -> u64 {
        histogram.bins.iter().map(|bin| bin.rows).sum()
    }

    #[test]
    fn bins_are_round_hold_every_row_and_take_outliers_at_the_end() {
        let mut counts: Counts<u32> = (0..1000).map(|i| (200 + i, 2)).collect();
        counts.insert(60_000, 3);
        let histogram = of_numbers("id", "t", "s", &counts).unwrap();
        assert_eq!(histogram.rows, 2003);
        assert_eq!(rows_of(&histogram), 2003);
        let (first, last) = (&histogram.bins[0], histogram.bins.last().unwrap());
        assert_eq!((first.from, first.to, first.values.as_str()), (200.0, 250.0, "200–249"));
        assert!(histogram.open && last.to < 2000.0 && last.values.ends_with("and more"), "{last:?}");
        assert_eq!([&histogram.least, &histogram.median, &histogram.most], ["200", "700", "60,000"]);
    }

    #[test]
    fn a_single_value_and_no_value_at_all_are_fine() {
        let one = of_numbers("id", "t", "s", &Counts::from([(7, 5)])).unwrap();
        assert_eq!((one.bins.len(), one.bins[0].rows, one.bins[0].values.as_str()), (1, 5, "7"));
        assert!(one.html(false).contains("median <b>7</b>"));
        assert!(of_numbers("id", "t", "s", &Counts::new()).is_none());
        assert!(of_ratios("id", "t", "s", &Counts::new()).is_none());
        let extreme = of_numbers("id", "t", "s", &Counts::from([(0, 1), (u32::MAX, 1)])).unwrap();
        assert!(extreme.bins.len() <= BARS + 2 && rows_of(&extreme) == 2);
    }

    #[test]
    fn ratios_are_laid_out_around_one() {
        let histogram = of_ratios("id", "t", "s", &Counts::from([(-3, 2), (0, 5), (8, 1)])).unwrap();
        assert_eq!((histogram.bins.len(), rows_of(&histogram)), (17, 8));
        assert_eq!(histogram.bins[8], Bin { values: "about 1:1".to_owned(), rows: 5, ..histogram.bins[8].clone() });
        assert_eq!([&histogram.least, &histogram.median], ["2:3", "1:1"]);
        assert!((histogram.across(1.0) - 0.5).abs() < 0.01, "{}", histogram.across(1.0));
    }
}
