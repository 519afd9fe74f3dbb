//! The DAG, drawn.

use std::fmt::Write as _;

use crate::manifest::with_variant;
use crate::plan::{Plan, PlannedStage, Totals};
use crate::report::html::escape;
use crate::report::numbers::{compact, duration, shortened};
use crate::stage::Law;

/// What to draw it as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Lines for a terminal.
    Text,
    /// For Markdown pages that render it.
    Mermaid,
    /// For Graphviz.
    Dot,
    /// A picture, without any other program.
    Svg,
}

/// Draws the plan's stages, with what is committed of each.
pub fn draw(plan: &Plan, format: Format) -> String {
    match format {
        Format::Text => text(plan),
        Format::Mermaid => mermaid(plan),
        Format::Dot => dot(plan),
        Format::Svg => svg(plan),
    }
}

/// `8 of 8 partitions, 2244 rows`
fn state(stage: &PlannedStage) -> String {
    let rows: u64 = stage.committed().map(|sidecar| sidecar.rows_out).sum();
    let partitions = stage.partitions.len();
    let noun = if partitions == 1 { "partition" } else { "partitions" };
    format!("{} of {partitions} {noun}, {rows} rows", stage.committed().count())
}

/// (from, to), positions in the plan.
fn edges(plan: &Plan) -> impl Iterator<Item = (usize, usize)> + '_ {
    plan.stages.iter().enumerate().flat_map(|(to, stage)| stage.inputs.iter().map(move |&from| (from, to)))
}

fn text(plan: &Plan) -> String {
    let mut out = String::new();
    let width = plan.stages.iter().map(|stage| stage.name.len()).max().unwrap_or(0);
    for stage in &plan.stages {
        let from = plan.read_by(stage).map(|(input, variant)| with_variant(&input.name, variant));
        let from = from.collect::<Vec<_>>().join(", ");
        let from = if from.is_empty() { String::new() } else { format!("  ← {from}") };
        let _ = writeln!(out, "{:<width$}  {:<12} {}{from}", stage.name, stage.kind, state(stage));
    }
    out
}

fn mermaid(plan: &Plan) -> String {
    let mut out = String::from("flowchart LR\n");
    for (i, stage) in plan.stages.iter().enumerate() {
        let _ = writeln!(out, "    s{i}[\"{}<br/>{}<br/>{}\"]", stage.name, stage.kind, state(stage));
    }
    for (from, to) in edges(plan) {
        let _ = writeln!(out, "    s{from} --> s{to}");
    }
    out
}

fn dot(plan: &Plan) -> String {
    let mut out = String::from("digraph pipeline {\n    rankdir=LR;\n    node [shape=box, style=rounded];\n");
    for (i, stage) in plan.stages.iter().enumerate() {
        let _ = writeln!(out, "    s{i} [label=\"{}\\n{}\\n{}\"];", stage.name, stage.kind, state(stage));
    }
    for (from, to) in edges(plan) {
        let _ = writeln!(out, "    s{from} -> s{to};");
    }
    out + "}\n"
}

const BOX: [f64; 2] = [184.0, 96.0];
const GAP: [f64; 2] = [28.0, 22.0];
const MARGIN: f64 = 16.0;
/// Letters of a name that fit into a box.
const LETTERS: usize = 17;

/// Colours as classes, so that the picture follows a dark page. No variables: not every viewer of SVG knows them.
const STYLE: &str = ".dag{font-family:system-ui,sans-serif}.dag .paper{fill:#f8f5ef}.dag .edge{fill:none;stroke:#a79d90;stroke-width:1.5}\
    .dag .end{fill:#a79d90}.dag .box{stroke-width:1.5}.dag .done{fill:#fffdf9;stroke:#c79a7c}.dag .open{fill:#fbf3df;stroke:#b79a55;stroke-dasharray:5 3}\
    .dag text{font-size:13.5px;fill:#29241f}.dag .name{font-size:17px;font-weight:600}.dag .soft{fill:#746b60}\
    @media (prefers-color-scheme:dark){.dag .paper{fill:#191715}.dag .edge{stroke:#7d7468}.dag .end{fill:#7d7468}\
    .dag .done{fill:#221f1c;stroke:#a8704c}.dag .open{fill:#2c2618;stroke:#c9ad68}.dag text{fill:#ebe5dc}.dag .soft{fill:#a99f92}}";

/// Where each stage's box lies, and the size of it all.
fn layout(plan: &Plan) -> (Vec<[f64; 2]>, [f64; 2]) {
    // A stage's column is the longest way to it; within a column, the manifest's order.
    let mut columns: Vec<usize> = Vec::new();
    for stage in &plan.stages {
        let column = stage.inputs.iter().filter_map(|&i| columns.get(i)).max().map_or(0, |c| c + 1);
        columns.push(column);
    }
    let mut filled: Vec<usize> = vec![0; columns.iter().max().map_or(0, |c| c + 1)];
    let mut places: Vec<[f64; 2]> = Vec::new();
    for &column in &columns {
        let row = filled.get_mut(column).map_or(0, |filled| {
            *filled += 1;
            *filled - 1
        });
        let place = |axis: usize, n: usize| MARGIN + n as f64 * (BOX[axis] + GAP[axis]);
        places.push([place(0, column), place(1, row)]);
    }
    let extent = |axis: usize, count: usize| 2.0 * MARGIN + count as f64 * (BOX[axis] + GAP[axis]) - GAP[axis];
    (places, [extent(0, filled.len()), extent(1, filled.iter().copied().max().unwrap_or(1))])
}

fn svg(plan: &Plan) -> String {
    let (places, [width, height]) = layout(plan);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"dag\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\" aria-label=\"Stages of {}\">\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n",
        escape(&plan.name)
    );
    for (from, to) in edges(plan) {
        if let (Some([x1, y1]), Some([x2, y2])) = (places.get(from), places.get(to)) {
            let (x1, y1, y2) = (x1 + BOX[0], y1 + BOX[1] / 2.0, y2 + BOX[1] / 2.0);
            let middle = f64::midpoint(x1, *x2);
            let _ = writeln!(
                out,
                "<path class=\"edge\" d=\"M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}\"/>\n\
                 <circle class=\"end\" cx=\"{x2}\" cy=\"{y2}\" r=\"3.5\"/>"
            );
        }
    }
    for (stage, [x, y]) in plan.stages.iter().zip(&places) {
        let class = if stage.to_run() == 0 { "done" } else { "open" };
        let _ = writeln!(
            out,
            "<g><title>{}: {}</title><rect class=\"box {class}\" x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" rx=\"8\"/>",
            escape(&stage.name),
            escape(&state(stage)),
            BOX[0],
            BOX[1]
        );
        let lines = box_lines(stage);
        let classes = ["name", "soft", "", "soft"];
        for ((line, class), down) in lines.iter().zip(classes).zip([26.0, 45.0, 67.0, 85.0]) {
            let (x, y) = (x + 13.0, y + down);
            let _ = writeln!(out, "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{}</text>", escape(line));
        }
        out += "</g>\n";
    }
    out + "</svg>\n"
}

/// Name, kind, rows, and the time they took, or how much is missing.
fn box_lines(stage: &PlannedStage) -> [String; 4] {
    let Totals { rows_in, rows_out, .. } = stage.totals();
    let seconds: f64 = stage.committed().map(|sidecar| sidecar.seconds).sum();
    let (made, partitions) = (stage.committed().count(), stage.partitions.len());
    let rows = if made == 0 {
        String::new()
    } else if stage.stage.law() == Law::Reads {
        format!("{} rows read", compact(rows_in))
    } else if rows_in == rows_out {
        format!("{} rows", compact(rows_out))
    } else {
        format!("{} → {} rows", compact(rows_in), compact(rows_out))
    };
    let work = match made {
        0 => "not made yet".to_owned(),
        _ if made == partitions => duration(seconds),
        _ => format!("{made} of {partitions} partitions"),
    };
    [shortened(&stage.name, LETTERS), stage.kind.clone(), rows, work]
}
