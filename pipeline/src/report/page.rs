//! The page: what is measured, and in which order it is shown.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use arrow::datatypes::DataType;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use shards::columns;
use shards::sidecar::{Section, Sidecar};

use super::buckets::Buckets;
use super::figures::{Figures, StageFigures};
use super::histogram::{of_numbers, of_ratios};
use super::html::{Column, escape, json, table};
use super::measure::{CAPTIONS, Columns, Measured, bucket_rule, has_sizes, measure, only_some, schema};
use super::numbers::{bytes, duration, grouped, moment, percent, rate};
use super::pictures::{Gallery, data_uri, format, gallery};
use super::{captions, curve, flow, refused};
use crate::graph;
use crate::plan::{Plan, PlannedStage};
use crate::stage::{Law, StageError};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("page.js");
/// Larger picture files of stages are named, not shown.
const PICTURE: u64 = 8 << 20;

/// The whole page.
pub(super) fn page(plan: &Plan) -> Result<String, StageError> {
    let seen = Seen::look(plan)?;
    let gallery = match seen.pictures {
        Some(stage) => gallery(stage)?,
        None => Gallery::default(),
    };
    let mut figures = Figures { pictures: &gallery.shown, ..Figures::of_sidecars(plan) };
    seen.measure(&mut figures)?;

    let mut parts: Vec<(String, String, String)> = Vec::new();
    let mut part = |id: &str, title: &str, html: String| {
        if !html.is_empty() {
            parts.push((id.to_owned(), title.to_owned(), html));
        }
    };
    part("stages", "Stages", stages(plan, &figures));
    part("rows", "Where the rows went", rows(plan, &figures)?);
    part("measures", "Sizes and captions", only_some_files(plan) + &measures(&figures));
    part("captions", "Captions", captions::html(&figures.captions));
    part("pictures", "Pictures", if gallery.shown.is_empty() { String::new() } else { gallery.html() });
    for (i, stage) in plan.stages.iter().enumerate() {
        part(&format!("stage-{i}"), &stage.name, sections(stage)?);
    }
    let mut nav = String::new();
    let mut body = String::new();
    for (id, title, html) in &parts {
        let title = escape(title);
        let _ = write!(nav, "<a href='#{id}'>{title}</a>");
        let _ = write!(body, "<section id={id}><h2>{title}</h2>{html}</section>");
    }
    Ok(format!(
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\
         <meta http-equiv=Content-Security-Policy content=\"{policy}\">\
         <meta name=viewport content='width=device-width, initial-scale=1'><meta name=generator content='Ferrotype {version}'>\
         <title>{title} – Ferrotype</title><link rel=icon href='data:,'><style>{STYLE}</style></head>\n<body>{header}\
         <nav aria-label='On this page'><div>{nav}</div></nav>\n<main>{body}</main>\
         <footer>Written by Ferrotype {version} from the records of {workdir}. The figures of this page are in it as JSON too, in \
         the element <code>figures</code>.</footer>\n\
         <script type='application/json' id=figures>{json}</script>\n<script>{SCRIPT}</script></body></html>\n",
        policy = policy(),
        version = env!("CARGO_PKG_VERSION"),
        title = escape(&plan.name),
        header = header(&figures),
        workdir = escape(&figures.workdir),
        json = json(&figures).map_err(StageError::failed)?,
    ))
}

/// No network at all, and no script but the page's own, by its digest.
fn policy() -> String {
    let script = STANDARD.encode(Sha256::digest(SCRIPT.as_bytes()));
    format!(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'; base-uri 'none'; form-action 'none'"
    )
}

/// The stages that have something to measure.
struct Seen<'a> {
    /// The first whose rows have sizes: what came in.
    sizes: Option<&'a PlannedStage>,
    /// The last whose rows name buckets.
    buckets: Option<&'a PlannedStage>,
    /// The last whose rows have a caption of any sort.
    captions: Option<&'a PlannedStage>,
    /// The last whose rows have pictures.
    pictures: Option<&'a PlannedStage>,
}

impl<'a> Seen<'a> {
    fn look(plan: &'a Plan) -> Result<Self, StageError> {
        let mut seen = Self { sizes: None, buckets: None, captions: None, pictures: None };
        for stage in &plan.stages {
            let Some(shard) = schema(stage)? else { continue };
            let has = |name: &str| shard.schema().index_of(name).is_ok();
            if seen.sizes.is_none() && has_sizes(shard.schema()) {
                seen.sizes = Some(stage);
            }
            if has(columns::BUCKET_SIZE) {
                seen.buckets = Some(stage);
            }
            if CAPTIONS.iter().any(|name| has(name)) {
                seen.captions = Some(stage);
            }
            if shard.schema().field_with_name(columns::IMAGE).is_ok_and(|f| *f.data_type() == DataType::Binary) {
                seen.pictures = Some(stage);
            }
        }
        Ok(seen)
    }

    fn measure(&self, figures: &mut Figures) -> Result<(), StageError> {
        let rule = self.buckets.and_then(bucket_rule);
        let sizes = match self.sizes {
            Some(stage) => measure(stage, Columns::Sizes(rule))?,
            None => Measured::default(),
        };
        if let Some(stage) = self.sizes {
            let title = "Longest side, in pixels";
            figures.histograms.extend(of_numbers("longest_side", title, &stage.name, &sizes.longest));
            let title = "Aspect ratio, wide to the right";
            figures.histograms.extend(of_ratios("aspect_ratio", title, &stage.name, &sizes.ratios));
        }
        let texts = match self.captions {
            Some(stage) => measure(stage, Columns::Texts)?,
            None => Measured::default(),
        };
        if let Some(stage) = self.captions {
            for (column, counts) in &texts.letters {
                let title = format!("Length of {column}, in letters");
                let id = format!("letters_of_{column}");
                figures.histograms.extend(of_numbers(&id, &title, &stage.name, counts));
            }
        }
        if let Some(stage) = self.buckets {
            let is_measured = self.captions.is_some_and(|captions| captions.name == stage.name);
            figures.buckets = Some(Buckets {
                stage: stage.name.clone(),
                kept: if is_measured { texts.buckets } else { measure(stage, Columns::Texts)?.buckets },
                source: rule.and(self.sizes).map(|stage| stage.name.clone()),
                came_in: sizes.natural,
            });
        }
        Ok(())
    }
}

fn header(figures: &Figures) -> String {
    let totals = &figures.totals;
    let finished =
        totals.finished_at.map_or("nothing is finished yet".to_owned(), |at| format!("finished {}", moment(at)));
    let (size, unit) =
        bytes(totals.bytes).split_once(' ').map(|(n, unit)| (n.to_owned(), unit.to_owned())).unwrap_or_default();
    let kept = if totals.is_partial { "so far".to_owned() } else { percent(totals.rows_out, totals.rows_in) };
    let tiles = [
        ("rows in", grouped(totals.rows_in), String::new()),
        ("rows kept", grouped(totals.rows_out), kept),
        ("rows refused", grouped(totals.dropped), percent(totals.dropped, totals.rows_in)),
        ("work", duration(totals.seconds), String::new()),
        ("on disk", size, unit),
    ];
    let mut html = format!(
        "<header><p class=over>Ferrotype report</p><h1>{}</h1><p class=where>{} · {finished}</p><dl class=tiles>",
        escape(figures.pipeline),
        escape(&figures.workdir)
    );
    for (name, value, detail) in tiles {
        let _ = write!(html, "<div><dt>{name}</dt><dd>{value} <small>{detail}</small></dd></div>");
    }
    html + "</dl></header>"
}

/// The DAG and its table.
fn stages(plan: &Plan, figures: &Figures) -> String {
    let header = ["stage", "kind", "partitions", "rows in", "rows out", "dropped", "work", "rows/s", "bytes"];
    let mut kinds = [Column::Number; 9];
    kinds[..2].fill(Column::Text);
    let row = |stage: &StageFigures| {
        let passed = |n: u64| if stage.passes_on { grouped(n) } else { "–".to_owned() };
        let partitions = if stage.committed == stage.partitions {
            grouped(stage.partitions as u64)
        } else {
            format!("{} of {}", grouped(stage.committed as u64), grouped(stage.partitions as u64))
        };
        vec![
            stage.name.clone(),
            stage.kind.clone(),
            partitions,
            grouped(stage.rows_in),
            passed(stage.rows_out),
            passed(stage.rows_dropped()),
            duration(stage.seconds),
            rate(stage.rows_in, stage.seconds),
            bytes(stage.bytes),
        ]
    };
    let rows: Vec<Vec<String>> = figures.stages.iter().map(row).collect();
    format!(
        "<div class=drawing>{}</div><div class=full>{}</div>",
        graph::draw(plan, graph::Format::Svg),
        table(&header, &kinds, &rows)
    )
}

/// The flow, and below it each stage's reasons with an example.
fn rows(plan: &Plan, figures: &Figures) -> Result<String, StageError> {
    let mut html = String::new();
    for flow in &figures.flows {
        let _ = write!(html, "<div class=drawing>{}</div>", flow::svg(flow));
    }
    for (stage, sums) in plan.stages.iter().zip(&figures.stages) {
        // Rows that were only not chosen are counted above; nobody refused them.
        let refused = if stage.stage.law() == Law::Chooses { Vec::new() } else { refused(stage)? };
        let rows: Vec<Vec<String>> = refused
            .into_iter()
            .map(|r| {
                let (key, message) = r.example.unwrap_or_default();
                vec![r.reason, grouped(r.rows), percent(r.rows, sums.rows_in), key, message]
            })
            .collect();
        if !rows.is_empty() {
            let header = ["reason", "rows", "share", "for example", "which said"];
            let kinds = [Column::Text, Column::Number, Column::Number, Column::Text, Column::Detail];
            let _ = write!(html, "<h3>Refused by {}</h3>{}", escape(&stage.name), table(&header, &kinds, &rows));
        }
        if !sums.observed.is_empty() {
            html += &observed(&stage.name, &sums.observed);
        }
    }
    Ok(html)
}

fn observed(stage: &str, counts: &BTreeMap<String, u64>) -> String {
    let rows: Vec<Vec<String>> = counts.iter().map(|(what, n)| vec![what.clone(), grouped(*n)]).collect();
    let kinds = [Column::Text, Column::Number];
    let table = table(&["observed on rows that passed", "times"], &kinds, &rows);
    format!("<h3>On the way, in {}</h3>{table}", escape(stage))
}

fn measures(figures: &Figures) -> String {
    if figures.histograms.is_empty() && figures.buckets.is_none() {
        return String::new();
    }
    let mut html = String::from("<div class=panels>");
    // Two in a row; where one is left over, few buckets stand beside it, or it has the row for itself.
    let count = figures.histograms.len();
    let buckets_are_wide = figures.buckets.as_ref().is_none_or(|buckets| count.is_multiple_of(2) || buckets.is_wide());
    for (i, histogram) in figures.histograms.iter().enumerate() {
        html += &histogram.html(buckets_are_wide && !count.is_multiple_of(2) && i + 1 == count);
    }
    if let Some(buckets) = &figures.buckets {
        html += &buckets.html(buckets_are_wide);
    }
    html + "</div>"
}

/// Of a workdir on a store: that the measures are of some of its files.
fn only_some_files(plan: &Plan) -> String {
    let most = plan.stages.iter().filter_map(only_some).max_by_key(|(_, all)| *all);
    most.map_or_else(String::new, |(read, all)| {
        format!("<p class=soft>Measured on {read} of {all} files: the workdir lies on a store. `ferrotype query` counts them all.</p>")
    })
}

/// What the stage's partitions left to see.
fn sections(stage: &PlannedStage) -> Result<String, StageError> {
    let mut html = String::new();
    for (sidecar, section) in stage.committed().flat_map(|s| s.sections.iter().map(move |section| (s, section))) {
        let (title, inside) = match section {
            Section::Table { title, header, rows } => {
                let header: Vec<&str> = header.iter().map(String::as_str).collect();
                (title, table(&header, &[], rows))
            }
            Section::Text { title, text } => (title, format!("<pre>{}</pre>", escape(text))),
            Section::Curve { title, x_label, x, y } => {
                let note = "<p class=soft>Faint: as measured. Bold: the moving average.</p>";
                (title, format!("{note}<div class=panel>{}</div>", curve::svg(title, x_label, x, y)))
            }
            Section::Picture { title, file } => (title, picture(stage, sidecar, title, file)?),
        };
        let _ = write!(html, "<h3>{}</h3>{inside}", escape(title));
    }
    Ok(html)
}

fn picture(stage: &PlannedStage, sidecar: &Sidecar, title: &str, file: &str) -> Result<String, StageError> {
    let path = match sidecar.data.iter().find(|data| data.file == file) {
        Some(data) => stage.fetch(data)?,
        None => stage.folder.path().join(file),
    };
    let named = |why: &str| format!("<p class=soft>{} {why}</p>", escape(&path.display().to_string()));
    let length = fs::metadata(&path).map_err(StageError::io("read", &path))?.len();
    if length > PICTURE {
        return Ok(named(&format!("is too large for this page ({}).", bytes(length))));
    }
    let content = fs::read(&path).map_err(StageError::io("read", &path))?;
    let Some(format) = format(&content) else { return Ok(named("is not a picture that browsers show.")) };
    Ok(format!("<img class=picture alt='{}' src='{}'>", escape(title), data_uri(format, &content)))
}
