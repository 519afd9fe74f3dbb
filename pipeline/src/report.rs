//! One self-contained page about a workdir: what each stage did, what was refused and why, and what the stages left to see.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use polars::prelude::{
    IntoLazy, LazyFrame, PlRefPath, PolarsResult, ScanArgsParquet, SortMultipleOptions, UnionArgs, col, concat, len,
};
use shards::columns;
use shards::sidecar::Section;

use crate::plan::{Plan, PlannedStage};
use crate::stage::{Law, StageError};

/// Where the report of a plan's workdir is written.
pub fn path(plan: &Plan) -> PathBuf {
    plan.workdir.join("report.html")
}

/// Writes the report; returns its path.
pub fn write(plan: &Plan) -> Result<PathBuf, StageError> {
    let path = path(plan);
    shards::commit::create_folder(&plan.workdir)?;
    shards::commit::replace(&path, page(plan)?.as_bytes())?;
    Ok(path)
}

/// Refused rows of a stage, by reason: how many, and one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub reason: String,
    pub rows: u64,
    /// Key and message of the first, where the stage keeps its refused rows.
    pub example: Option<(String, String)>,
}

/// What a stage refused, most frequent first.
pub fn refused(stage: &PlannedStage) -> Result<Vec<Refused>, StageError> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for sidecar in stage.committed() {
        sidecar.dropped.iter().for_each(|(reason, n)| *counts.entry(reason.clone()).or_default() += n);
    }
    let files: Vec<PathBuf> =
        stage.committed().filter_map(|s| s.quarantine.as_ref()).map(|q| stage.folder.path().join(&q.file)).collect();
    let examples = examples(&files)
        .map_err(|error| StageError::failed(format!("the quarantine of {} cannot be read: {error}", stage.name)))?;
    let mut refused: Vec<Refused> = counts
        .into_iter()
        .map(|(reason, rows)| Refused { example: examples.get(&reason).cloned(), reason, rows })
        .collect();
    refused.sort_by(|a, b| b.rows.cmp(&a.rows).then_with(|| a.reason.cmp(&b.reason)));
    Ok(refused)
}

/// The first row of each reason, by key.
fn examples(files: &[PathBuf]) -> PolarsResult<BTreeMap<String, (String, String)>> {
    let mut frames = Vec::new();
    for file in files {
        frames.push(LazyFrame::scan_parquet(PlRefPath::try_from_path(file)?, ScanArgsParquet::default())?);
    }
    if frames.is_empty() {
        return Ok(BTreeMap::new());
    }
    let table = concat(frames, UnionArgs::default())?
        .sort([columns::KEY], SortMultipleOptions::default())
        .group_by([col(columns::REASON)])
        .agg([col(columns::KEY).first(), col(columns::ERROR_MESSAGE).first(), len().alias("rows")])
        .collect()?
        .lazy()
        .collect()?;
    let text = |name: &str, row: usize| -> PolarsResult<String> {
        Ok(table.column(name)?.str()?.get(row).unwrap_or_default().to_owned())
    };
    (0..table.height())
        .map(|row| Ok((text(columns::REASON, row)?, (text(columns::KEY, row)?, text(columns::ERROR_MESSAGE, row)?))))
        .collect()
}

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #26231f; --soft: #6d675f; --line: #ddd8cf; --paper: #faf9f6; --card: #fff; --mark: #8a4b2a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e9e5de; --soft: #a39c91; --line: #3a3732; --paper: #1b1a18; --card: #23211f; --mark: #d99a72; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 64rem; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); }
.flow { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; margin: 1.2rem 0 0; }
.flow span { border: 1px solid var(--line); background: var(--card); border-radius: .4rem; padding: .25rem .7rem; }
.flow i { color: var(--soft); font-style: normal; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); min-width: 24rem; }
th, td { padding: .3rem .8rem; text-align: left; border-top: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); border-top: 0; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.detail { color: var(--soft); font-size: .9em; max-width: 26rem; overflow-wrap: anywhere; }
img { max-width: 100%; border: 1px solid var(--line); } svg { background: var(--card); border: 1px solid var(--line); max-width: 100%; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; } svg path { stroke: var(--mark); fill: none; stroke-width: 1.8; } svg line { stroke: var(--line); }
pre { white-space: pre-wrap; background: var(--card); border: 1px solid var(--line); padding: .6rem .8rem; }
";

fn page(plan: &Plan) -> Result<String, StageError> {
    let mut body = String::new();
    let _ = write!(
        body,
        "<h1>{}</h1><p class=soft>{}</p>",
        escape(&plan.name),
        escape(&plan.workdir.display().to_string())
    );
    body += "<div class=flow>";
    for (i, stage) in plan.stages.iter().enumerate() {
        let arrow = if i > 0 { "<i>→</i>" } else { "" };
        let _ = write!(body, "{arrow}<span>{}</span>", escape(&stage.name));
    }
    body += "</div><h2>Stages</h2>";
    body += &stage_table(plan);
    body += &refused_tables(plan)?;
    for stage in &plan.stages {
        for sidecar in stage.committed() {
            for section in &sidecar.sections {
                body += &section_html(stage, section)?;
            }
        }
    }
    Ok(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>{} – Ferrotype</title><style>{STYLE}</style><body>{body}</body></html>\n",
        escape(&plan.name)
    ))
}

fn stage_table(plan: &Plan) -> String {
    let header = ["stage", "kind", "partitions", "rows in", "rows out", "dropped", "work"];
    let rows = plan.stages.iter().map(|stage| {
        let committed: Vec<_> = stage.committed().collect();
        let rows_in: u64 = committed.iter().map(|s| s.rows_in).sum();
        let rows_out: u64 = committed.iter().map(|s| s.rows_out).sum();
        let dropped: u64 = committed.iter().map(|s| s.rows_dropped()).sum();
        let seconds: f64 = committed.iter().map(|s| s.seconds).sum();
        let passed_on = stage.stage.law() == Law::RowWise;
        vec![
            stage.name.clone(),
            stage.kind.clone(),
            format!("{} of {}", committed.len(), stage.partitions.len()),
            rows_in.to_string(),
            if passed_on { rows_out.to_string() } else { "–".to_owned() },
            if passed_on { dropped.to_string() } else { "–".to_owned() },
            format!("{seconds:.1} s"),
        ]
    });
    table(&header.map(str::to_owned), &rows.collect::<Vec<_>>())
}

fn refused_tables(plan: &Plan) -> Result<String, StageError> {
    let mut html = String::new();
    for stage in &plan.stages {
        let refused = refused(stage)?;
        let rows: Vec<Vec<String>> = refused
            .into_iter()
            .map(|r| {
                let (key, message) = r.example.unwrap_or_default();
                vec![r.reason, r.rows.to_string(), key, message]
            })
            .collect();
        if !rows.is_empty() {
            let header = ["reason", "rows", "for example", "which said"].map(str::to_owned);
            let _ = write!(html, "<h2>Refused by {}</h2>{}", escape(&stage.name), table(&header, &rows));
        }
        let mut observed: BTreeMap<&str, u64> = BTreeMap::new();
        for sidecar in stage.committed() {
            sidecar.observed.iter().for_each(|(what, n)| *observed.entry(what).or_default() += n);
        }
        if !observed.is_empty() {
            let rows: Vec<Vec<String>> =
                observed.into_iter().map(|(what, n)| vec![what.to_owned(), n.to_string()]).collect();
            let header = ["observed on rows that passed", "times"].map(str::to_owned);
            let _ = write!(html, "<h3>On the way, in {}</h3>{}", escape(&stage.name), table(&header, &rows));
        }
    }
    Ok(html)
}

fn section_html(stage: &PlannedStage, section: &Section) -> Result<String, StageError> {
    Ok(match section {
        Section::Table { title, header, rows } => format!("<h2>{}</h2>{}", escape(title), table(header, rows)),
        Section::Text { title, text } => format!("<h2>{}</h2><pre>{}</pre>", escape(title), escape(text)),
        Section::Curve { title, x_label, x, y } => format!("<h2>{}</h2>{}", escape(title), curve(x_label, x, y)),
        Section::Picture { title, file } => {
            let path = stage.folder.path().join(file);
            let bytes = fs::read(&path).map_err(StageError::io("read", &path))?;
            let data = STANDARD.encode(bytes);
            format!("<h2>{0}</h2><img alt='{0}' src='data:image/png;base64,{data}'>", escape(title))
        }
    })
}

fn table(header: &[String], rows: &[Vec<String>]) -> String {
    // A column is set like numbers when all its cells begin like one.
    let numeric = |column: usize| {
        rows.iter().all(|row| row.get(column).is_some_and(|c| c.starts_with(|l: char| l.is_ascii_digit() || l == '–')))
    };
    let class = |column: usize| match header.get(column).map(String::as_str) {
        Some("which said") => " class=detail",
        _ if numeric(column) => " class=n",
        _ => "",
    };
    let mut html = String::from("<div class=scroll><table><tr>");
    for (i, name) in header.iter().enumerate() {
        let _ = write!(html, "<th{}>{}</th>", class(i), escape(name));
    }
    html += "</tr>";
    for row in rows {
        html += "<tr>";
        for (i, cell) in row.iter().enumerate() {
            let _ = write!(html, "<td{}>{}</td>", class(i), escape(cell));
        }
        html += "</tr>";
    }
    html + "</table></div>"
}

/// A line chart, 720×260, with its extremes written at the axes.
fn curve(x_label: &str, x: &[f64], y: &[f64]) -> String {
    let points: Vec<(f64, f64)> =
        x.iter().copied().zip(y.iter().copied()).filter(|(a, b)| a.is_finite() && b.is_finite()).collect();
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (x0, x1) = range(&mut points.iter().map(|p| p.0));
    let (y0, y1) = range(&mut points.iter().map(|p| p.1));
    if points.len() < 2 {
        return "<p class=soft>too few points for a curve</p>".to_owned();
    }
    let across = |v: f64| 60.0 + 640.0 * (v - x0) / (x1 - x0).max(f64::MIN_POSITIVE);
    let down = |v: f64| 220.0 - 200.0 * (v - y0) / (y1 - y0).max(f64::MIN_POSITIVE);
    let mut path = String::new();
    for (i, (a, b)) in points.iter().enumerate() {
        let _ = write!(path, "{}{:.1} {:.1}", if i == 0 { "M" } else { "L" }, across(*a), down(*b));
    }
    format!(
        "<svg viewBox='0 0 720 260' width=720 height=260 role=img><line x1=60 y1=220 x2=700 y2=220 /><line x1=60 y1=20 x2=60 y2=220 />\
         <path d='{path}'/><text x=52 y=26 text-anchor=end>{y1:.3}</text><text x=52 y=224 text-anchor=end>{y0:.3}</text>\
         <text x=60 y=242>{x0:.0}</text><text x=700 y=242 text-anchor=end>{x1:.0} {}</text></svg>",
        escape(x_label)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;").replace('"', "&quot;")
}
