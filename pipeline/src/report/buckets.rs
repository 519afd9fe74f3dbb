//! Rows by bucket, kept and before any resize, as bars.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Serialize;
use shards::bucket::BucketSize;

use super::html::escape;
use super::measure::Counts;
use super::numbers::{compact, grouped, percent};

/// Buckets that are shown by themselves.
const BUCKETS: usize = 24;
/// As many fit beside a chart.
const NARROW: usize = 9;

/// Rows by bucket: those that came in by the bucket their own size belongs to, and those that were kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Buckets {
    /// Whose rows were kept.
    pub(super) stage: String,
    pub(super) kept: Counts<String>,
    /// Whose rows came in, with sizes from before any resize.
    pub(super) source: Option<String>,
    pub(super) came_in: Counts<String>,
}

impl Buckets {
    /// Name, kept and came in; largest first, the tail merged.
    fn rows(&self) -> Vec<(String, u64, u64)> {
        let names: BTreeSet<&String> = self.kept.keys().chain(self.came_in.keys()).collect();
        let of = |counts: &Counts<String>, name: &str| counts.get(name).copied().unwrap_or(0);
        let mut rows: Vec<(String, u64, u64)> =
            names.into_iter().map(|name| (name.clone(), of(&self.kept, name), of(&self.came_in, name))).collect();
        rows.sort_by_key(|(_, kept, came_in)| std::cmp::Reverse((*kept, *came_in)));
        if rows.len() > BUCKETS {
            let tail = rows.split_off(BUCKETS - 1);
            let sum = |of: fn(&(String, u64, u64)) -> u64| tail.iter().map(of).sum();
            rows.push((format!("{} others", tail.len()), sum(|row| row.1), sum(|row| row.2)));
        }
        rows
    }

    /// Whether the figure needs a row for itself.
    pub(super) fn is_wide(&self) -> bool {
        self.rows().len() > NARROW
    }

    /// A figure with a bar for each bucket; `is_wide` for one that has a row for itself.
    pub(super) fn html(&self, is_wide: bool) -> String {
        let rows = self.rows();
        let most = rows.iter().map(|(_, kept, came_in)| *kept.max(came_in)).max().unwrap_or(0).max(1) as f64;
        let total: u64 = self.kept.values().sum();
        let mut html = format!(
            "<figure class='panel{}' id=buckets><figcaption><b>Buckets</b><span>{} rows of {} in {} buckets</span></figcaption>",
            if is_wide { " wide" } else { "" },
            grouped(total),
            escape(&self.stage),
            self.kept.len()
        );
        if let Some(source) = &self.source {
            let _ = write!(
                html,
                "<p class=legend><i class=kept></i>kept <i class=came></i>came in with {}, by the size before any resize</p>",
                escape(source)
            );
        }
        html += "<div class=buckets>";
        for (name, kept, came_in) in rows {
            let shape = name.parse::<BucketSize>().map_or_else(
                |_| String::new(),
                |size| {
                    let ratio = size.aspect_ratio().clamp(0.15, 6.0);
                    let (width, height) = if ratio >= 1.0 { (20.0, 20.0 / ratio) } else { (20.0 * ratio, 20.0) };
                    format!("<i style='width:{width:.1}px;height:{height:.1}px'></i>")
                },
            );
            let share = |rows: u64| 100.0 * rows as f64 / most;
            let _ = write!(
                html,
                "<div class=bucket title='{kept} kept, {came_in} came in'><span class=shape>{shape}</span><span class=size>{}</span>\
                 <span class=bars><i class=came style='width:{:.2}%'></i><i class=kept style='width:{:.2}%'></i></span>\
                 <span class=n>{}</span><span class='n soft'>{}</span></div>",
                escape(&name),
                share(came_in),
                share(kept),
                compact(kept),
                percent(kept, total)
            );
        }
        html + "</div></figure>"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_sorted_their_tail_merged_and_their_names_escaped() {
        let kept: Counts<String> = (0..40).map(|i| (format!("{}x8", 8 * (i + 1)), i + 1)).collect();
        let came_in = Counts::from([("320x8".to_owned(), 50), ("<x>".to_owned(), 1)]);
        let buckets = Buckets { stage: "<b>".to_owned(), kept, source: Some("<s>".to_owned()), came_in };
        let rows = buckets.rows();
        assert_eq!(rows.len(), BUCKETS);
        assert_eq!(rows[0], ("320x8".to_owned(), 40, 50));
        assert_eq!(rows.iter().map(|row| row.1).sum::<u64>(), 820);
        assert_eq!(rows.last().unwrap().0, "18 others");
        let few = Buckets { kept: Counts::from([("<i>".to_owned(), 1)]), ..buckets };
        let html = few.html(false);
        assert!(
            !html.contains("<b>in")
                && !html.contains("<s>")
                && html.contains("&lt;i&gt;")
                && html.contains("&lt;x&gt;")
        );
    }
}
