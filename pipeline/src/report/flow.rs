//! Where rows went, drawn: a band that narrows from stage to stage, each reason a branch of it.
//!
//! The band flows down, so that any number of stages and reasons has room: a stage is as high as its list of reasons.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::figures::{StageFigures, ends};
use super::html::escape;
use super::numbers::{compact, grouped, percent, shortened};

/// Reasons of one stage that are drawn by themselves; the rest is one branch.
const REASONS: usize = 12;
/// A plan with more ends shows the first.
const FLOWS: usize = 4;

/// The way to one end of the data stages.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Flow {
    pub(super) steps: Vec<Step>,
    /// Stages that read the rows at the end.
    pub(super) readers: Vec<String>,
}

/// A stage on the way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Step {
    pub(super) stage: String,
    pub(super) rows_in: u64,
    pub(super) rows_out: u64,
    /// Rows in that did not come from the step before.
    pub(super) joined: u64,
    /// Rows out that the next step has not read yet.
    pub(super) waiting: u64,
    /// Most frequent first.
    pub(super) branches: Vec<Branch>,
}

/// Rows lost for a reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Branch {
    pub(super) reason: String,
    pub(super) rows: u64,
}

/// The ways through the stages that pass rows on, one for each end. Where a stage takes the rows of several, the way follows
/// the largest and counts the others as joining; it ends where the rows are that have come furthest.
pub(super) fn flows(stages: &[StageFigures]) -> Vec<Flow> {
    ends(stages)
        .take(FLOWS)
        .map(|end| flow(stages, end))
        .filter(|flow| flow.steps.iter().any(|s| s.rows_in > 0))
        .collect()
}

fn flow(stages: &[StageFigures], end: usize) -> Flow {
    let mut way: Vec<(usize, &StageFigures)> = Vec::new();
    let mut position = Some(end);
    // Inputs come before their readers, so this ends.
    while let Some((at, stage)) = position.and_then(|at| Some((at, stages.get(at)?))) {
        way.push((at, stage));
        let inputs = stage.rows_from.iter().copied().filter(|&i| i < at && stages.get(i).is_some_and(|s| s.passes_on));
        position = inputs.max_by_key(|&i| (stages.get(i).map(|s| s.rows_out), std::cmp::Reverse(i)));
    }
    // What no row has reached yet is not on the way.
    let unreached = way.iter().take_while(|(_, stage)| stage.rows_in == 0).count();
    way.drain(..unreached);
    let end = way.first().map_or(end, |(at, _)| *at);
    way.reverse();
    let mut steps: Vec<Step> = Vec::new();
    for (i, (_, stage)) in way.iter().enumerate() {
        let before = i.checked_sub(1).and_then(|i| way.get(i)).map_or(stage.rows_in, |(_, before)| before.rows_out);
        let next = way.get(i + 1).map_or(stage.rows_out, |(_, next)| next.rows_in);
        steps.push(Step {
            stage: stage.name.clone(),
            rows_in: stage.rows_in,
            rows_out: stage.rows_out,
            joined: stage.rows_in.saturating_sub(before),
            waiting: stage.rows_out.saturating_sub(next),
            branches: branches(&stage.dropped),
        });
    }
    let readers = stages.iter().filter(|stage| stage.inputs.contains(&end)).map(|stage| stage.name.clone());
    Flow { steps, readers: readers.collect() }
}

/// Reasons by frequency, the tail merged.
fn branches(dropped: &BTreeMap<String, u64>) -> Vec<Branch> {
    let mut branches: Vec<Branch> =
        dropped.iter().filter(|(_, n)| **n > 0).map(|(r, n)| Branch { reason: r.clone(), rows: *n }).collect();
    branches.sort_by_key(|branch| std::cmp::Reverse(branch.rows));
    if branches.len() > REASONS {
        let tail = branches.split_off(REASONS - 1);
        let rows = tail.iter().map(|branch| branch.rows).sum();
        branches.push(Branch { reason: format!("{} other reasons", tail.len()), rows });
    }
    branches
}

const WIDTH: f64 = 960.0;
/// Where the band's area begins and how wide it may be.
const LEFT: f64 = 210.0;
const BAND: f64 = 300.0;
/// Where branches end and their names begin.
const LABELS: f64 = 604.0;
const LINE: f64 = 23.0;
const BAR: f64 = 9.0;
/// The least height of a step, and the room between its last label and the next.
const STEP: f64 = 78.0;
const REST: f64 = 34.0;

/// A step, placed.
#[derive(Clone, Debug, PartialEq)]
struct Placed {
    /// Top of its bar.
    top: f64,
    left: f64,
    width_in: f64,
    /// Of the band that goes on to the next step.
    width_on: f64,
    /// Width of what joins, at the left of its bar.
    joined: f64,
    ribbons: Vec<Ribbon>,
}

/// A branch, placed: it leaves the band between `from` and `from + width` and ends at the height `to`.
#[derive(Clone, Debug, PartialEq)]
struct Ribbon {
    from: f64,
    width: f64,
    to: f64,
}

/// Places the steps; returns them with the place of the end, whose bar has the width of what is left.
fn place(flow: &Flow) -> (Vec<Placed>, [f64; 2]) {
    // The band's extent in rows: to the right it only narrows, to the left it grows by what joins.
    let joining: u64 = flow.steps.iter().skip(1).map(|step| step.joined).sum();
    let first = flow.steps.first().map_or(0, |step| step.rows_in);
    let scale = BAND / (first + joining).max(1) as f64;
    let mut left = LEFT + joining as f64 * scale;
    let mut top = 12.0;
    let mut placed = Vec::new();
    for (i, step) in flow.steps.iter().enumerate() {
        let joined = if i > 0 { step.joined as f64 * scale } else { 0.0 };
        left -= joined;
        let width_on = (step.rows_out - step.waiting) as f64 * scale;
        // The widest branch turns off first, at the right, and ends uppermost: no two cross.
        let mut right = left + step.rows_in as f64 * scale;
        let mut to = top + BAR + 26.0;
        let mut ribbons = Vec::new();
        for rows in step.branches.iter().map(|branch| branch.rows).chain((step.waiting > 0).then_some(step.waiting)) {
            let width = rows as f64 * scale;
            right -= width;
            // A wide branch needs the room below it too.
            let room = (width + 6.0 - LINE).max(0.0) / 2.0;
            ribbons.push(Ribbon { from: right, width, to: to + room });
            to += LINE + 2.0 * room;
        }
        let height = (to - top - BAR - 26.0 + REST + 12.0).max(STEP);
        placed.push(Placed { top, left, width_in: step.rows_in as f64 * scale, width_on, joined, ribbons });
        top += height;
    }
    (placed, [left, top])
}

/// The flow as an SVG; colours come from the page's style.
pub(super) fn svg(flow: &Flow) -> String {
    let (placed, [end_left, end_top]) = place(flow);
    let height = end_top + 44.0;
    let total = flow.steps.first().map_or(0, |step| step.rows_in);
    let mut out = format!(
        "<svg class=flow viewBox='0 0 {WIDTH} {height:.0}' role=img aria-label='Rows from stage to stage, and why some were lost'>"
    );
    for (i, (step, at)) in flow.steps.iter().zip(&placed).enumerate() {
        let under = at.top + BAR;
        let next = placed.get(i + 1).map_or(end_top, |next| next.top);
        if at.width_on > 0.0 {
            let _ = write!(
                out,
                "<rect class=band x='{:.2}' y='{under:.2}' width='{:.2}' height='{:.2}'/>",
                at.left,
                at.width_on,
                next - under
            );
        }
        for (ribbon, (name, rows, class)) in at.ribbons.iter().zip(named(step)) {
            out += &branch(ribbon, under, class, name, rows, total);
        }
        if at.joined > 0.0 {
            // From the left, down into the bar.
            let (x, y, w) = (at.left, at.top - 30.0, at.joined);
            let _ = write!(
                out,
                "<path class=joins d='M{start:.1} {y:.1}H{x:.1}C{end:.1} {y:.1} {end:.1} {y:.1} {end:.1} {top:.1}H{x:.1}\
                 C{x:.1} {under:.1} {x:.1} {under:.1} {start:.1} {under:.1}Z'/>",
                start = x - 14.0,
                end = x + w,
                top = at.top,
                under = y + 8.0,
            );
            let _ = write!(
                out,
                "<text class=small x='{:.0}' y='{:.0}' text-anchor=end>{} rows join</text>",
                LEFT - 18.0,
                y + 2.0,
                grouped(step.joined)
            );
        }
        out += &bar([at.left, at.top], at.width_in, &step.stage, &format!("{} rows in", grouped(step.rows_in)));
    }
    let rows_out = flow.steps.last().map_or(0, |step| step.rows_out);
    let width = placed.last().map_or(0.0, |last| last.width_on);
    let share = format!("{} rows, {}", grouped(rows_out), percent(rows_out, total.max(rows_out)));
    out += &bar([end_left, end_top], width, "kept", &share);
    if !flow.readers.is_empty() {
        let _ = write!(
            out,
            "<text class=small x='{LABELS}' y='{:.0}'>read by {}</text>",
            end_top + BAR,
            escape(&shortened(&flow.readers.join(", "), 44))
        );
    }
    out + "</svg>"
}

/// Name, rows and class of the step's branches, in the order of its ribbons.
fn named(step: &Step) -> impl Iterator<Item = (&str, u64, &'static str)> {
    let lost = step.branches.iter().map(|branch| (branch.reason.as_str(), branch.rows, "lost"));
    lost.chain((step.waiting > 0).then_some(("not read yet", step.waiting, "waits")))
}

fn bar([left, top]: [f64; 2], width: f64, name: &str, rows: &str) -> String {
    format!(
        "<rect class=bar x='{left:.2}' y='{top:.2}' width='{:.2}' height='{BAR}' rx=2 />\
         <text class=name x='{x}' y='{:.1}' text-anchor=end>{}</text><text class=small x='{x}' y='{:.1}' text-anchor=end>{rows}</text>",
        width.max(2.0),
        top + 10.0,
        escape(&shortened(name, 22)),
        top + 28.0,
        x = LEFT - 18.0,
    )
}

/// A ribbon with its name, rows and share of all rows.
fn branch(ribbon: &Ribbon, y: f64, class: &str, name: &str, rows: u64, total: u64) -> String {
    // Thin ones are drawn thicker than they are: they must be seen.
    let shown = ribbon.width.max(1.2);
    let (inner, outer) = (ribbon.from, ribbon.from + shown);
    let (above, below) = (ribbon.to - shown / 2.0, ribbon.to + shown / 2.0);
    // Edges are quarters of ellipses that end on the same line.
    let radius = ((above - y) * 0.8).clamp(20.0, 90.0);
    let turn = outer + radius;
    let edge = |x: f64, to: f64| (y + (to - y) * 0.55, turn - (turn - x) * 0.55);
    let ((down1, across1), (down2, across2)) = (edge(outer, above), edge(inner, below));
    format!(
        "<path class={class} d='M{outer:.2} {y:.1}C{outer:.2} {down1:.1} {across1:.1} {above:.2} {turn:.1} {above:.2}H{LABELS}V{below:.2}\
         H{turn:.1}C{across2:.1} {below:.2} {inner:.2} {down2:.1} {inner:.2} {y:.1}Z'><title>{name}: {count} rows</title></path>\
         <text class=count x='{:.0}' y='{text:.1}' text-anchor=end>{count}</text>\
         <text class=reason x='{:.0}' y='{text:.1}'>{short}<tspan class=small dx=8>{share}</tspan></text>",
        LABELS + 62.0,
        LABELS + 74.0,
        text = ribbon.to + 4.5,
        count = compact(rows),
        short = escape(&shortened(name, 26)),
        name = escape(name),
        share = percent(rows, total),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(name: &str, inputs: &[usize], rows: [u64; 2], dropped: &[(&str, u64)]) -> StageFigures {
        StageFigures {
            name: name.to_owned(),
            inputs: inputs.to_vec(),
            rows_from: inputs.to_vec(),
            passes_on: true,
            rows_in: rows[0],
            rows_out: rows[1],
            dropped: dropped.iter().map(|(reason, n)| ((*reason).to_owned(), *n)).collect(),
            ..StageFigures::default()
        }
    }

    #[test]
    fn the_way_follows_the_rows_and_counts_what_joins_and_what_waits() {
        let stages = [
            stage("small", &[], [50, 40], &[("gone", 10)]),
            stage("large", &[], [1000, 900], &[("gone", 60), ("torn", 40)]),
            stage("all", &[0, 1], [940, 940], &[]),
            stage("bucket", &[2], [600, 599], &[("torn", 1)]),
            StageFigures { passes_on: false, ..stage("index", &[3], [599, 599], &[]) },
        ];
        let flows = flows(&stages);
        assert_eq!(flows.len(), 1);
        let way: Vec<_> = flows[0].steps.iter().map(|s| (s.stage.as_str(), s.joined, s.waiting)).collect();
        assert_eq!(way, [("large", 0, 0), ("all", 40, 340), ("bucket", 0, 0)]);
        assert_eq!(flows[0].readers, ["index"]);
        assert!(super::flows(&[stage("a", &[], [0, 0], &[])]).is_empty());

        let half_made = [stage("a", &[], [9, 9], &[]), stage("b", &[0], [0, 0], &[]), stage("c", &[1], [0, 0], &[])];
        let flow = &super::flows(&half_made)[0];
        assert_eq!((flow.steps.len(), flow.steps[0].waiting, &flow.readers[..]), (1, 0, &["b".to_owned()][..]));
    }

    #[test]
    fn widths_are_rows_and_nothing_of_the_band_is_lost() {
        let flow = &flows(&[
            stage("download", &[], [2400, 2244], &[("http_404", 24), ("timed_out", 100), ("opted_out", 32)]),
            stage("filter", &[0], [2244, 2244], &[]),
            stage("bucket", &[1], [2244, 2000], &[("damaged_image", 244)]),
        ])[0];
        let (placed, end) = place(flow);
        assert!((placed[0].width_in - BAND).abs() < 1e-9);
        for (i, at) in placed.iter().enumerate() {
            let branches: f64 = at.ribbons.iter().map(|ribbon| ribbon.width).sum();
            assert!((at.width_in - branches - at.width_on).abs() < 1e-9, "{at:?}");
            let next_width = placed.get(i + 1).map_or(at.width_on, |next| next.width_in);
            assert!((next_width - at.width_on).abs() < 1e-9);
            let next_top = placed.get(i + 1).map_or(end[1], |next| next.top);
            assert!(next_top - at.top >= STEP && at.ribbons.iter().all(|r| r.to + LINE / 2.0 < next_top));
        }
        // The most frequent reason leaves at the right and ends uppermost.
        let [first, second, third] = &placed[0].ribbons[..] else { panic!("three reasons") };
        assert!(first.width > second.width && first.from > second.from && second.from > third.from);
        assert!(second.to - first.to >= LINE && third.to - second.to >= LINE);
        assert!((third.from - placed[0].left - placed[0].width_on).abs() < 1e-9);
    }

    #[test]
    fn a_long_tail_of_reasons_becomes_one_branch_and_names_are_escaped() {
        let reasons: Vec<(String, u64)> = (0..40).map(|i| (format!("<b>{i:02}"), 40 - i)).collect();
        let reasons: Vec<(&str, u64)> = reasons.iter().map(|(reason, n)| (reason.as_str(), *n)).collect();
        let lost = reasons.iter().map(|(_, n)| n).sum::<u64>();
        let flow = &flows(&[stage("<i>", &[], [1_000_000, 1_000_000 - lost], &reasons)])[0];
        let branches = &flow.steps[0].branches;
        assert_eq!(branches.len(), REASONS);
        assert_eq!(branches[0], Branch { reason: "<b>00".to_owned(), rows: 40 });
        assert_eq!(branches[REASONS - 1].reason, "29 other reasons");
        assert_eq!(branches.iter().map(|branch| branch.rows).sum::<u64>(), lost);
        let svg = svg(flow);
        assert!(!svg.contains("<b>") && !svg.contains("<i>") && svg.contains("&lt;b&gt;00"), "{svg}");
    }
}
