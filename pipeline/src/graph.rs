//! The DAG, drawn.

use std::fmt::Write as _;

use crate::plan::{Plan, PlannedStage};

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
    let names = |indices: &[usize]| -> Vec<&str> {
        indices.iter().filter_map(|&i| plan.stages.get(i)).map(|stage| stage.name.as_str()).collect()
    };
    let width = plan.stages.iter().map(|stage| stage.name.len()).max().unwrap_or(0);
    for stage in &plan.stages {
        let from = names(&stage.inputs).join(", ");
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

const BOX: [f64; 2] = [210.0, 74.0];
const GAP: [f64; 2] = [56.0, 28.0];
const MARGIN: f64 = 20.0;

fn svg(plan: &Plan) -> String {
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
    let (width, height) = (extent(0, filled.len()), extent(1, filled.iter().copied().max().unwrap_or(1)));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"system-ui, sans-serif\" role=\"img\" aria-label=\"{}\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#faf9f6\"/>\n",
        escaped(&plan.name)
    );
    for (from, to) in edges(plan) {
        if let (Some([x1, y1]), Some([x2, y2])) = (places.get(from), places.get(to)) {
            let (x1, y1, y2) = (x1 + BOX[0], y1 + BOX[1] / 2.0, y2 + BOX[1] / 2.0);
            let middle = f64::midpoint(x1, *x2);
            let _ = writeln!(
                out,
                "<path d=\"M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}\" fill=\"none\" stroke=\"#8a8680\" stroke-width=\"1.5\"/>\n\
                 <circle cx=\"{x2}\" cy=\"{y2}\" r=\"3.5\" fill=\"#8a8680\"/>"
            );
        }
    }
    for (stage, [x, y]) in plan.stages.iter().zip(&places) {
        let done = stage.to_run() == 0;
        let (edge, paper) = if done { ("#4f7d5b", "#eef4ef") } else { ("#b0803a", "#faf1e2") };
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" rx=\"8\" fill=\"{paper}\" stroke=\"{edge}\" stroke-width=\"1.5\"/>",
            BOX[0], BOX[1]
        );
        let lines = [
            (&stage.name, 16, "600", "#28262a"),
            (&stage.kind, 12, "400", "#6b6862"),
            (&state(stage), 12, "400", "#28262a"),
        ];
        for ((line, size, weight, color), down) in lines.into_iter().zip([26.0, 45.0, 62.0]) {
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{}\" font-size=\"{size}\" font-weight=\"{weight}\" fill=\"{color}\">{}</text>",
                x + 14.0,
                y + down,
                escaped(line)
            );
        }
    }
    out + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
